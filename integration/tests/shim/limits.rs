//! Limits while a container runs: what an update names changes, what it does not stays.

use std::sync::Arc;

use corten_integration::cgroup::{directory, setting};
use serde_json::json;

use crate::host::{Host, is_reference};

pub(crate) async fn an_update_changes_what_it_names(h: Arc<Host>) {
    let recipe = h.container("c", &["sleep", "1000000"]);
    let recipe = recipe
        .memory(64 << 20)
        .set("/linux/resources/pids", json!({"limit": 50}));
    let c = recipe.make().await;
    c.create().await.unwrap();
    let pid = c.start().await.unwrap();
    let memory = || setting(pid, "memory/memory.limit_in_bytes", "memory.max");
    let pids = || setting(pid, "pids/pids.max", "pids.max");
    let shares = || setting(pid, "cpu/cpu.shares", "cpu.weight");
    assert_eq!((memory().as_str(), pids().as_str()), ("67108864", "50"));
    // A disk that nobody may open, not even after an update that brings no rules.
    let disk = "mknod /tmp/disk b 7 0; head -c 1 /tmp/disk; rm /tmp/disk";
    assert!(c.says("e0", disk).await.contains("not permitted"));
    let weight = if directory(pid, "cpu").1 { "59" } else { "512" };
    c.update(&json!({"cpu": {"shares": 512}, "pids": {"limit": 20}}))
        .await
        .unwrap();
    assert_eq!(
        (memory().as_str(), pids().as_str(), shares().as_str()),
        ("67108864", "20", weight)
    );
    c.update(&json!({"memory": {"limit": 128 << 20}, "pids": {"limit": -1}}))
        .await
        .unwrap();
    assert_eq!(
        (memory().as_str(), pids().as_str(), shares().as_str()),
        ("134217728", "max", weight)
    );
    assert!(c.says("e1", disk).await.contains("not permitted"));
    for refused in [
        json!({"memory": {"limit": 4096, "checkBeforeUpdate": true}}),
        json!({"unified": {"no.such.file": "1"}}),
        json!({"rdma": {"no_such": {"hcaHandles": 1}}}),
    ] {
        let answer = c.update(&refused).await;
        assert!(answer.is_err() || is_reference(), "{refused} is ignored");
    }
    assert_eq!(memory(), "134217728");
    assert_eq!(c.kill_and_delete().await, 137);
}

pub(crate) async fn a_burst_falls_and_rises_with_its_quota(h: Arc<Host>) {
    let c = h.container("c", &["sleep", "1000000"]).make().await;
    c.create().await.unwrap();
    let pid = c.start().await.unwrap();
    // None exceeds the quota that comes with it, but each way round one exceeds the other's.
    for (quota, burst) in [(50_000, 40_000), (20_000, 10_000), (60_000, 60_000)] {
        let cpu = json!({"quota": quota, "period": 100_000, "burst": burst});
        c.update(&json!({"cpu": cpu})).await.unwrap();
        let got = setting(pid, "cpu/cpu.cfs_burst_us", "cpu.max.burst");
        assert_eq!(got, burst.to_string());
    }
    assert_eq!(c.kill_and_delete().await, 137);
}
