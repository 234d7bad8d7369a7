//! Classes of block I/O: what the tasks service is told of them, containers of the CRI are in.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;

use serde_json::json;

use crate::cri::{Cri, fails};
use crate::runner::Test;
use crate::tests;

const FILE: &str = "/run/blockio-classes.yaml";
const CONFIG: &str = "[plugins.'io.containerd.service.v1.tasks-service']\n\
    blockio_config_file = \"/run/blockio-classes.yaml\"\n";

pub(crate) fn tests() -> Vec<Test> {
    let all = tests![throttles_a_disk];
    all.into_iter().map(|t| t.own_daemon(CONFIG)).collect()
}

/// A whole disk, which is all that the kernel throttles: its node and its number as `major:minor`.
fn disk() -> Option<(PathBuf, String)> {
    let disks = fs::read_dir("/sys/block").ok()?.flatten();
    disks.into_iter().find_map(|entry| {
        let node = PathBuf::from("/dev").join(entry.file_name());
        let is_block = fs::metadata(&node).is_ok_and(|m| m.file_type().is_block_device());
        let number = fs::read_to_string(entry.path().join("dev")).ok()?;
        is_block.then(|| (node, number.trim().to_owned()))
    })
}

fn throttles_a_disk(cri: &Cri) {
    let Some((node, number)) = disk() else {
        println!("not tried: this machine has no disk");
        return;
    };
    let text = format!(
        "Classes:\n  slow:\n    - Devices: ['{}']\n      ThrottleReadBps: 2M\n",
        node.display()
    );
    fs::write(FILE, text).unwrap();
    // It is read at the start.
    cri.machine.daemon.kill();
    cri.machine.daemon.start();
    let pod = cri.pod();
    let of_class = |name: &str, class: &str| {
        let mut config = cri.container_config(name, &["sleep", "1000"]);
        let key = "io.kubernetes.cri.blockio-class";
        config.annotations.insert(key.into(), class.into());
        config
    };
    let id = cri.started(&pod, &of_class("slow", "slow"));
    let (major, minor) = number.split_once(':').unwrap();
    let want = json!([{"major": major.parse::<u32>().unwrap(), "minor": minor.parse::<u32>().unwrap(),
        "rate": 2_000_000}]);
    let spec = cri.runtime_spec(&id);
    let got = &spec["linux"]["resources"]["blockIO"]["throttleReadBpsDevice"];
    assert_eq!(got, &want);
    let cgroup = &cri.machine.world.cgroup;
    let places = [
        format!("/sys/fs/cgroup/blkio{cgroup}/{id}/blkio.throttle.read_bps_device"),
        format!("/sys/fs/cgroup{cgroup}/{id}/io.max"),
    ];
    let rules = places.iter().find_map(|p| fs::read_to_string(p).ok());
    let rules = rules.expect("the container's cgroup");
    assert!(
        rules.contains(&number) && rules.contains("2000000"),
        "{rules:?}"
    );
    fails(
        cri.create(&pod, &of_class("fast", "fast")),
        "no OCI BlockIO parameters for class \"fast\"",
    );
}
