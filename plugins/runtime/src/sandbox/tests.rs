//! Sandboxes in a fake shim.

use corten_core::runtime::Tasks;
use corten_core::sandbox::READY;
use corten_protos::containerd::types::sandbox::Runtime;

use super::*;
use crate::fake::{Fake, TIMEOUTS, is_empty, ns, options};
use crate::manager::Manager;

fn record() -> Sandbox {
    Sandbox {
        sandbox_id: "s".into(),
        runtime: Some(Runtime {
            name: "io.containerd.fake.v2".into(),
            options: None,
        }),
        ..Default::default()
    }
}

/// A controller and a task manager over the same shims.
fn both(fake: &Fake) -> (Sandboxes, TaskManager) {
    let manager = Arc::new(Manager::for_test(&fake.path(""), TIMEOUTS));
    let sandboxes = Sandboxes(fake.manager_for(Role::Sandbox, manager.clone()));
    (sandboxes, fake.manager_for(Role::Task, manager))
}

#[tokio::test]
async fn a_sandbox_comes_and_goes_and_is_no_task() {
    let fake = Fake::new();
    let _server = fake.serve().await;
    let (sandboxes, tasks) = both(&fake);
    let o = CreateOptions {
        netns_path: "/run/netns/x".into(),
        ..Default::default()
    };
    sandboxes.create(&ns(), record(), o.clone()).await.unwrap();
    let bundle = fake.path("sandboxes/state/ns/s");
    assert!(bundle.join("bootstrap.json").exists() && !bundle.join("config.json").exists());
    let e = sandboxes.create(&ns(), record(), o).await.unwrap_err();
    assert_eq!(e.kind(), Kind::AlreadyExists);
    let i = sandboxes.start(&ns(), "s").await.unwrap();
    assert_eq!((i.pid, i.version), (7, 3));
    assert!(i.address.starts_with("ttrpc+unix://"), "{}", i.address);
    let status = sandboxes.status(&ns(), "s", true).await.unwrap();
    assert_eq!((status.state.as_str(), status.pid), (READY, 7));
    assert!(tasks.list(&ns()).await.unwrap().is_empty());
    assert!(tasks.get(&ns(), "s").await.is_err());

    sandboxes
        .stop(&ns(), "s", Duration::from_secs(1))
        .await
        .unwrap();
    assert_eq!(sandboxes.wait(&ns(), "s").await.unwrap().exit_status, 137);
    sandboxes.shutdown(&ns(), "s").await.unwrap();
    assert_eq!(
        fake.calls(),
        [
            "sandbox create s /run/netns/x",
            "sandbox start s",
            "sandbox stop s",
            "sandbox shutdown s"
        ]
    );
    assert!(is_empty(&fake.path("sandboxes/state/ns")));
    assert!(is_empty(&fake.path("sandboxes/root/ns")));
    assert!(fake.events.all().is_empty(), "a sandbox is no task");
    let e = sandboxes.shutdown(&ns(), "s").await.unwrap_err();
    assert_eq!(e.kind(), Kind::NotFound);
    let status = sandboxes.status(&ns(), "s", false).await.unwrap();
    assert_eq!(status.state, "");
}

#[tokio::test]
async fn a_task_joins_the_shim_of_its_sandbox() {
    let fake = Fake::new();
    let _server = fake.serve().await;
    let (sandboxes, tasks) = both(&fake);
    sandboxes
        .create(&ns(), record(), CreateOptions::default())
        .await
        .unwrap();
    fake.sandboxes.0.lock().insert("s".into(), record());
    let mut o = options();
    o.sandbox_id = "s".into();
    tasks.create(&ns(), "c", o).await.unwrap();
    assert_eq!(fake.ran("start"), 1, "{:?}", fake.argv());
    let file = std::fs::read_to_string(fake.bundle("c").join("sandbox"));
    assert_eq!(file.unwrap(), "s");
}

#[tokio::test]
async fn what_cannot_be_made_leaves_nothing() {
    let fake = Fake::new();
    let _server = fake.serve().await;
    let (sandboxes, _) = both(&fake);
    fake.task.0.lock().create_fails = Some("no sandboxes here".into());
    let e = sandboxes
        .create(&ns(), record(), CreateOptions::default())
        .await
        .unwrap_err();
    assert_eq!(
        e.to_string(),
        "failed to create sandbox s: no sandboxes here"
    );
    assert!(is_empty(&fake.path("sandboxes/state/ns")));
    assert_eq!(fake.ran("delete"), 1);
}

#[tokio::test]
async fn sandboxes_are_found_again_after_a_restart() {
    let fake = Fake::new();
    let server = fake.serve().await;
    let (sandboxes, _) = both(&fake);
    sandboxes
        .create(&ns(), record(), CreateOptions::default())
        .await
        .unwrap();
    fake.sandboxes.0.lock().insert("s".into(), record());
    let (again, tasks) = both(&fake);
    crate::restore::run(&again.0).await;
    assert_eq!(again.status(&ns(), "s", false).await.unwrap().pid, 7);
    let mut o = options();
    o.sandbox_id = "s".into();
    tasks.create(&ns(), "c", o).await.unwrap();

    // One whose record is gone was being removed.
    fake.sandboxes.0.lock().clear();
    let (third, _) = both(&fake);
    crate::restore::run(&third.0).await;
    assert!(third.find(&ns(), "s").is_err());
    assert!(!fake.path("sandboxes/state/ns/s").exists());
    server.kill();
}
