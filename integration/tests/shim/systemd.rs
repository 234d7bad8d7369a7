//! Cgroups that systemd makes: limits changed while a container runs, and pods. `make test-vm` has such machines.

use std::path::Path;
use std::sync::Arc;

use corten_integration::cgroup::{directory, setting};
use corten_integration::process::{Cmd, DEADLINE, eventually};
use corten_protos::any;
use corten_protos::containerd::runc::v1::Options;
use corten_protos::google::protobuf::Any;
use serde_json::json;

use crate::host::{Host, is_reference, until};
use crate::pod::{Pod, below, processes};

fn is_missing() -> bool {
    let there = Path::new("/run/systemd/system").is_dir();
    if !there {
        println!("not tried: this machine has no systemd");
    }
    !there
}

fn options() -> Any {
    any::pack(&Options {
        systemd_cgroup: true,
        ..Options::default()
    })
}

/// Asks again if need be: on a slow machine systemd may answer nobody while it reads its units anew.
fn systemctl(args: &[&str]) -> String {
    let answer = eventually(DEADLINE, || {
        let done = Cmd::new("systemctl").args(args).run();
        (done.code() == 0).then(|| done.out().trim().to_owned())
    });
    answer.unwrap_or_else(|| panic!("systemctl {args:?} fails"))
}

fn show(unit: &str, property: &str) -> String {
    systemctl(&["show", "--value", "-p", property, unit])
}

async fn is_gone(unit: String) {
    let what = format!("{unit} is gone");
    until(&what, move || show(&unit, "LoadState") == "not-found").await;
}

pub(crate) async fn an_update_goes_through_systemd(h: Arc<Host>) {
    if is_missing() {
        return;
    }
    let unit = format!("cit-{}.scope", h.namespace);
    let path = format!("system.slice:cit:{}", h.namespace);
    let recipe = h.container("c", &["sleep", "1000000"]).options(options());
    let recipe = recipe
        .memory(64 << 20)
        .set("/linux/resources/pids", json!({"limit": 50}));
    let c = recipe.set("/linux/cgroupsPath", json!(path)).make().await;
    c.create().await.unwrap();
    let pid = c.start().await.unwrap();
    let memory = || setting(pid, "memory/memory.limit_in_bytes", "memory.max");
    let pids = || setting(pid, "pids/pids.max", "pids.max");
    let of_memory = if directory(pid, "memory").1 {
        "MemoryMax"
    } else {
        "MemoryLimit"
    };
    assert_eq!((memory().as_str(), pids().as_str()), ("67108864", "50"));
    assert_eq!(show(&unit, "TasksMax"), "50");
    c.update(&json!({"memory": {"limit": 128 << 20}, "pids": {"limit": 20}}))
        .await
        .unwrap();
    for _ in 0..2 {
        assert_eq!((memory().as_str(), pids().as_str()), ("134217728", "20"));
        assert_eq!(show(&unit, of_memory), "134217728");
        assert_eq!(show(&unit, "TasksMax"), "20");
        // What it was told it sets again.
        systemctl(&["daemon-reload"]);
    }
    // One limit leaves the others as they are.
    c.update(&json!({"cpu": {"quota": 50_000, "period": 100_000}}))
        .await
        .unwrap();
    assert_eq!(show(&unit, "CPUQuotaPerSecUSec"), "500ms");
    assert_eq!((memory().as_str(), pids().as_str()), ("134217728", "20"));
    assert_eq!(c.kill_and_delete().await, 137);
    is_gone(unit).await;
}

pub(crate) async fn pods_are_in_their_slice(h: Arc<Host>) {
    if is_missing() {
        return;
    }
    if is_reference() {
        println!("Corten only: the stock shim has no sandbox service");
        return;
    }
    let slice = format!("cit-{}.slice", h.namespace);
    let inside = format!("/cit.slice/{slice}");
    let mut pod = Pod::start(&h, "p", Some(options()), Some(below(&inside))).await;
    let holder = "cri-containerd-p.scope".to_owned();
    assert_eq!(show(&holder, "Slice"), slice);
    assert_eq!(show(&holder, "ControlGroup"), format!("{inside}/{holder}"));
    let (dir, _) = directory(pod.holder, "pids");
    assert!(dir.ends_with(&holder), "{}", dir.display());
    let pid = pod.add(&format!("{slice}:cri-containerd:pc")).await;
    let (dir, _) = directory(pid, "pids");
    assert!(
        dir.ends_with("cri-containerd-pc.scope"),
        "{}",
        dir.display()
    );
    assert_eq!(processes(&pod.metrics().await), 2);
    pod.stop().await;
    is_gone(holder).await;
    is_gone("cri-containerd-pc.scope".to_owned()).await;
    // The kubelet would stop it.
    systemctl(&["stop", &slice]);
}
