//! The shim with another OCI runtime behind it: the same task API, driven by runc's command line.

use std::sync::Arc;

use corten_integration::cgroup::setting;
use corten_integration::peers;
use corten_protos::any;
use corten_protos::containerd::runc::v1::Options;
use corten_protos::containerd::v1::types::Status;
use serde_json::json;

use crate::container::Container;
use crate::death::{clean_up, kill};
use crate::host::Host;

async fn made(h: &Arc<Host>, id: &str, script: &str) -> Container {
    let options = any::pack(&Options {
        binary_name: peers::reference("runc").display().to_string(),
        root: h.base.join("runc").display().to_string(),
        ..Options::default()
    });
    let recipe = h.container(id, &["sh", "-c", script]).options(options);
    let c = recipe
        .set("/linux/resources/pids", json!({"limit": 50}))
        .make()
        .await;
    c.create().await.unwrap();
    c
}

/// runc's list of the containers that it knows of.
fn known(h: &Host) -> usize {
    let list = std::fs::read_dir(h.base.join("runc").join(&h.namespace));
    list.map_or(0, Iterator::count)
}

pub(crate) async fn runc_is_driven(h: Arc<Host>) {
    let c = made(&h, "c", "exec sleep 1000000").await;
    let pid = c.start().await.unwrap();
    assert_eq!(known(&h), 1);
    assert_eq!(c.says("e0", "cat /proc/1/comm").await, "sleep\n");
    assert_eq!(c.run("e1", &["sh", "-c", "exit 7"]).await, 7);
    assert!(
        c.exec("e2", &["/no/such"], &crate::container::Io::default())
            .await
            .is_ok()
    );
    let refused = c.start_exec("e2").await.unwrap_err().to_string();
    assert!(refused.contains("no such file"), "{refused}");
    let _ = c.delete_exec("e2").await;
    c.update(&json!({"pids": {"limit": 20}})).await.unwrap();
    assert_eq!(setting(pid, "pids/pids.max", "pids.max"), "20");
    c.pause().await;
    assert_eq!(c.state().await.unwrap().status, Status::Paused as i32);
    c.resume().await;
    assert_eq!(c.kill_and_delete().await, 137);
    let seen = h.events.of("c");
    assert!(
        seen.starts_with(&["create".to_owned(), "start".to_owned()]),
        "{seen:?}"
    );
    assert_eq!(known(&h), 0);
}

pub(crate) async fn runc_cleans_up_after_a_dead_shim(h: Arc<Host>) {
    let c = made(&h, "c", "sleep 1000000 & exec sleep 1000001").await;
    c.start().await.unwrap();
    kill(c.connect().await.shim_pid);
    assert_eq!(clean_up(&c).await, 137);
    assert_eq!(known(&h), 0);
}
