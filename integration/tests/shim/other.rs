//! The shim with another OCI runtime behind it: the same task API, driven by runc's command line. Each test is run on
//! the runc of today and on Debian's, which is years older.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use corten_integration::cgroup::setting;
use corten_integration::peers;
use corten_protos::any;
use corten_protos::containerd::runc::v1::Options;
use corten_protos::containerd::task::v3::{KillRequest, PidsRequest, StatsRequest};
use corten_protos::containerd::v1::types::Status;
use corten_protos::google::protobuf::Any;
use serde_json::json;

use crate::container::{Container, Io, context, within};
use crate::death::{clean_up, kill};
use crate::host::Host;
use crate::pod::processes;
use crate::streams::{logger, on_a_terminal};

fn todays() -> PathBuf {
    peers::reference("runc")
}

fn debians() -> PathBuf {
    peers::dir().join("debian/usr/sbin/runc")
}

fn options(h: &Host, runc: &Path) -> Any {
    any::pack(&Options {
        binary_name: runc.display().to_string(),
        root: h.base.join("runc").display().to_string(),
        ..Options::default()
    })
}

async fn made(h: &Arc<Host>, runc: &Path, id: &str, args: &[&str]) -> Container {
    let recipe = h.container(id, args).options(options(h, runc));
    recipe
        .set("/linux/resources/pids", json!({"limit": 50}))
        .make()
        .await
}

/// runc's list of the containers that it knows of.
fn known(h: &Host) -> usize {
    let list = std::fs::read_dir(h.base.join("runc").join(&h.namespace));
    list.map_or(0, Iterator::count)
}

async fn life(h: &Arc<Host>, runc: &Path) {
    let c = made(h, runc, "c", &["sh", "-c", "exec sleep 1000000"]).await;
    c.create().await.unwrap();
    assert_eq!(c.state().await.unwrap().status, Status::Created as i32);
    let pid = c.start().await.unwrap();
    assert_eq!(known(h), 1);
    assert_eq!(pids(&c).await, [pid]);
    assert_eq!(processes(&stats(&c).await), 1);
    assert_eq!(c.says("e0", "cat /proc/1/comm").await, "sleep\n");
    assert_eq!(c.run("e1", &["sh", "-c", "exit 7"]).await, 7);
    assert!(c.exec("e2", &["/no/such"], &Io::default()).await.is_ok());
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
    assert_eq!(known(h), 0);
}

async fn pids(c: &Container) -> Vec<u32> {
    let id = c.id.clone();
    let request = PidsRequest { id };
    let answer = within("Pids", c.shim.task.pids(context(), &request)).await;
    answer.unwrap().processes.iter().map(|p| p.pid).collect()
}

async fn stats(c: &Container) -> Any {
    let id = c.id.clone();
    let request = StatsRequest { id };
    let answer = within("Stats", c.shim.task.stats(context(), &request)).await;
    answer.unwrap().stats.expect("numbers")
}

/// Containers end by themselves, by a signal to all of their processes, and before they have begun.
async fn ends(h: &Arc<Host>, runc: &Path) {
    let c = made(h, runc, "own", &["sh", "-c", "exit 7"]).await;
    c.create().await.unwrap();
    c.start().await.unwrap();
    assert_eq!(c.wait().await, 7);
    assert_eq!(c.delete().await, 7);
    let c = made(
        h,
        runc,
        "all",
        &["sh", "-c", "sleep 1000000 & exec sleep 1000001"],
    )
    .await;
    c.create().await.unwrap();
    c.start().await.unwrap();
    let request = KillRequest {
        id: c.id.clone(),
        signal: 9,
        all: true,
        ..KillRequest::default()
    };
    within("Kill", c.shim.task.kill(context(), &request))
        .await
        .unwrap();
    assert_eq!(c.wait().await, 137);
    assert_eq!(c.delete().await, 137);
    let c = made(h, runc, "never", &["/no/such"]).await;
    let refused = c.create().await.unwrap_err().to_string();
    assert!(refused.contains("no such file"), "{refused}");
    c.give_up().await;
    assert_eq!(known(h), 0);
}

pub(crate) async fn runc_is_driven(h: Arc<Host>) {
    life(&h, &todays()).await;
}

pub(crate) async fn debians_runc_is_driven(h: Arc<Host>) {
    life(&h, &debians()).await;
}

pub(crate) async fn runc_tells_how_containers_end(h: Arc<Host>) {
    for runc in [todays(), debians()] {
        ends(&h, &runc).await;
    }
}

pub(crate) async fn runc_gives_terminals(h: Arc<Host>) {
    let path = logger(&h, "");
    let uri = |file: &Path| format!("binary://{}?file={}", path.display(), file.display());
    for runc in [todays(), debians()] {
        on_a_terminal(&h, Some(options(&h, &runc)), &uri).await;
    }
}

pub(crate) async fn runc_cleans_up_after_a_dead_shim(h: Arc<Host>) {
    for runc in [todays(), debians()] {
        let args = ["sh", "-c", "sleep 1000000 & exec sleep 1000001"];
        let c = made(&h, &runc, "c", &args).await;
        c.create().await.unwrap();
        c.start().await.unwrap();
        kill(c.connect().await.shim_pid);
        assert_eq!(clean_up(&c).await, 137);
        assert_eq!(known(&h), 0);
    }
}
