//! Resource limits: what `ctr run` asks for is what the kernel enforces.

use corten_integration::case::Case;
use corten_integration::cgroup::{directory, setting};
use corten_integration::runner::{Test, with_both_clients};
use corten_integration::tests;

pub(crate) fn tests() -> Vec<Test> {
    let mut all = with_both_clients(tests![
        uses_the_cgroup_asked_for,
        adds_a_device,
        limits_memory,
        limits_cpu_time,
        weighs_cpu_shares,
        puts_the_container_into_its_own_cgroup,
    ]);
    all.extend(tests![
        kills_what_uses_too_much_memory,
        pins_the_container_to_a_processor,
        limits_open_files,
        allows_only_the_default_devices,
    ]);
    all
}

fn limits_memory(c: &Case) {
    c.run(
        "-d --null-io --memory-limit 67108864",
        "a",
        &["sleep", "1000"],
    )
    .ok();
    let limit = setting(c.pid("a"), "memory/memory.limit_in_bytes", "memory.max");
    assert_eq!(limit, "67108864");
    c.remove("a");
}

fn limits_cpu_time(c: &Case) {
    c.run("-d --null-io --cpus 0.5", "a", &["sleep", "1000"])
        .ok();
    let pid = c.pid("a");
    let (_, is_v2) = directory(pid, "cpu");
    let quota = setting(pid, "cpu/cpu.cfs_quota_us", "cpu.max");
    assert_eq!(quota, if is_v2 { "50000 100000" } else { "50000" });
    c.remove("a");
}

fn weighs_cpu_shares(c: &Case) {
    c.run("-d --null-io --cpu-shares 512", "a", &["sleep", "1000"])
        .ok();
    let pid = c.pid("a");
    if !directory(pid, "cpu").1 {
        assert_eq!(setting(pid, "cpu/cpu.shares", "cpu.weight"), "512");
    }
    c.remove("a");
}

fn puts_the_container_into_its_own_cgroup(c: &Case) {
    c.sleeper("a");
    let pid = c.pid("a");
    for controller in ["memory", "pids", "devices", "freezer", "cpu"] {
        let (dir, _) = directory(pid, controller);
        let wanted = format!("/{}/a", c.namespace);
        assert!(
            dir.ends_with(&wanted[1..]),
            "{controller}: {}",
            dir.display()
        );
        let members = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap();
        assert_eq!(members.trim(), pid.to_string());
    }
    c.remove("a");
}

fn kills_what_uses_too_much_memory(c: &Case) {
    let mut events = c.events();
    let hog = ["sh", "-c", "exec tail -c 100000000 /dev/zero"];
    let done = c.run("--rm --memory-limit 16777216", "a", &hog).run();
    done.expect_code(137);
    let seen = events.wait_output("/tasks/oom");
    let line = seen.lines().find(|l| l.contains("/tasks/oom")).unwrap();
    assert!(line.contains(r#""container_id":"a""#), "{line}");
}

fn pins_the_container_to_a_processor(c: &Case) {
    c.run("-d --null-io --cpuset-cpus 0", "a", &["sleep", "1000"])
        .ok();
    assert_eq!(
        setting(c.pid("a"), "cpuset/cpuset.cpus", "cpuset.cpus"),
        "0"
    );
    c.remove("a");
}

fn uses_the_cgroup_asked_for(c: &Case) {
    let path = format!("/{}/some/where", c.namespace);
    c.run(
        &format!("-d --null-io --cgroup {path}"),
        "a",
        &["sleep", "1000"],
    )
    .ok();
    let (dir, _) = directory(c.pid("a"), "memory");
    assert!(dir.ends_with(&path[1..]), "{}", dir.display());
    c.remove("a");
    // The parents in between stay with any runtime; the leaf must be gone.
    assert!(!dir.exists(), "{} is still there", dir.display());
    let _ = std::fs::remove_dir(dir.parent().unwrap());
    for root in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        let _ = std::fs::remove_dir(root.path().join(&c.namespace).join("some"));
    }
}

fn limits_open_files(c: &Case) {
    // Lower than the default of 1024, which needs no privilege to reach.
    let script = "ulimit -Sn; ulimit -Hn";
    c.run("--rm --rlimit-nofile 200:300", "a", &["sh", "-c", script])
        .prints("200\n300\n");
    c.run("--rm", "b", &["sh", "-c", script])
        .prints("1024\n1024\n");
}

fn allows_only_the_default_devices(c: &Case) {
    // The node of a disk can be made, but not opened: the device cgroup (or program) refuses.
    let script = "mknod /disk b 7 0 && cat /disk > /dev/null";
    c.run("--rm", "a", &["sh", "-c", script])
        .fails("Operation not permitted");
    c.run("--rm", "b", &["sh", "-c", "head -c 3 /dev/zero | wc -c"])
        .prints("3\n");
}

fn adds_a_device(c: &Case) {
    let script = "stat -c '%F %t:%T' /dev/loop-control; head -c 0 /dev/loop-control && echo opened";
    c.run(
        "--rm --device /dev/loop-control",
        "a",
        &["sh", "-c", script],
    )
    .prints("character special file a:ed\nopened\n");
}
