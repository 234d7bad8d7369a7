//! The boot over bundles in every state.

use std::path::PathBuf;
use std::time::{Duration, Instant as Clock};

use corten_core::runtime::Tasks;
use corten_protos::containerd::types::Sandbox;

use super::*;
use crate::fake::{Fake, is_empty, ns};

/// A bundle as a previous daemon left it, served at socket `name`.
fn left(fake: &Fake, id: &str, name: &str) -> PathBuf {
    let bundle = fake.bundle(id);
    let work = fake.path("root/ns").join(id);
    std::fs::create_dir_all(bundle.join("rootfs")).unwrap();
    std::fs::create_dir_all(&work).unwrap();
    std::os::unix::fs::symlink(&work, bundle.join("work")).unwrap();
    std::fs::write(bundle.join("bootstrap.json"), fake.bootstrap(name)).unwrap();
    std::fs::write(
        bundle.join("shim-binary-path"),
        fake.binary().to_str().unwrap(),
    )
    .unwrap();
    bundle
}

#[tokio::test]
async fn a_living_shim_is_served_again_and_its_later_death_noticed() {
    let fake = Fake::new();
    let server = fake.serve().await;
    left(&fake, "c", "sock");
    fake.task.0.lock().pids = vec![42];
    let tasks = fake.manager();
    run(&tasks).await;
    let task = tasks.get(&ns(), "c").await.unwrap();
    assert_eq!(task.pid(), 42);
    assert!(fake.events.all().is_empty());
    server.kill();
    let exit = tokio::time::timeout(Duration::from_secs(10), task.wait(""))
        .await
        .unwrap();
    assert_eq!(exit.unwrap().status, 137);
    assert_eq!(
        fake.events.all(),
        ["/tasks/exit ns/c 137", "/tasks/delete ns/c 137"]
    );
}

#[tokio::test]
async fn a_living_shim_whose_program_is_gone_is_served_again() {
    let fake = Fake::new();
    let _server = fake.serve().await;
    let bundle = left(&fake, "c", "sock");
    std::fs::write(bundle.join("shim-binary-path"), "/nonexistent/shim").unwrap();
    fake.task.0.lock().pids = vec![42];
    let tasks = fake.manager();
    run(&tasks).await;
    assert_eq!(tasks.get(&ns(), "c").await.unwrap().pid(), 42);
    assert!(bundle.join("rootfs").exists());
}

#[tokio::test]
async fn a_container_that_ended_meanwhile_keeps_its_exit() {
    let fake = Fake::new();
    let _server = fake.serve().await;
    left(&fake, "c", "sock");
    fake.task.0.lock().stopped = true;
    let tasks = fake.manager();
    run(&tasks).await;
    assert_eq!(tasks.delete(&ns(), "c").await.unwrap().status, 7);
}

#[tokio::test]
async fn dead_shims_are_cleaned_up_and_told_of() {
    let fake = Fake::new();
    left(&fake, "gone", "no-socket");
    // A socket file that nobody serves any more.
    drop(std::os::unix::net::UnixListener::bind(fake.path("stale")).unwrap());
    left(&fake, "refused", "stale");
    let broken = left(&fake, "broken", "sock");
    std::fs::write(broken.join("bootstrap.json"), "\n\n").unwrap();
    let tasks = fake.manager();
    run(&tasks).await;
    let mut events = fake.events.all();
    events.sort();
    assert_eq!(events.len(), 6, "{events:?}");
    assert_eq!(events[0], "/tasks/delete ns/broken 137");
    assert_eq!(fake.ran("delete"), 3);
    assert!(!fake.path("stale").exists());
    assert!(is_empty(&fake.path("state/ns")) && is_empty(&fake.path("root/ns")));
    assert!(tasks.list(&ns()).await.unwrap().is_empty());
}

#[tokio::test]
async fn silent_shims_are_kept_and_hold_up_nobody() {
    let fake = Fake::new();
    // Accepted by the kernel, read by nobody: a stopped process.
    let _listener = std::os::unix::net::UnixListener::bind(fake.path("silent")).unwrap();
    for i in 0..20 {
        let bundle = left(&fake, &format!("c{i}"), "silent");
        std::fs::write(bundle.join("init.pid"), "77").unwrap();
    }
    let tasks = fake.manager();
    let begun = Clock::now();
    run(&tasks).await;
    assert!(
        begun.elapsed() < Duration::from_secs(3),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(tasks.list(&ns()).await.unwrap().len(), 20);
    assert_eq!(tasks.get(&ns(), "c0").await.unwrap().pid(), 77);
    assert!(fake.events.all().is_empty());
    assert_eq!(fake.ran("delete"), 0);
}

#[tokio::test]
async fn a_shim_left_by_a_create_that_never_ended_is_torn_down_unless_it_is_a_sandbox() {
    let fake = Fake::new();
    let _server = fake.serve().await;
    left(&fake, "leaked", "sock");
    left(&fake, "sandbox", "sock");
    fake.sandboxes
        .0
        .lock()
        .insert("sandbox".into(), Sandbox::default());
    let tasks = fake.manager();
    run(&tasks).await;
    assert!(tasks.get(&ns(), "sandbox").await.is_ok());
    assert_eq!(
        tasks.get(&ns(), "leaked").await.err().unwrap().kind(),
        Kind::NotFound
    );
    assert!(fake.calls().contains(&"shutdown leaked".to_owned()));
    assert!(!fake.bundle("leaked").exists());
    assert!(fake.events.all().is_empty());
}

#[tokio::test]
async fn leftovers_are_swept() {
    let fake = Fake::new();
    std::fs::create_dir_all(fake.bundle("empty")).unwrap();
    std::fs::create_dir_all(fake.bundle(".half").join("rest")).unwrap();
    std::fs::create_dir_all(fake.path("root/ns/rebooted/x")).unwrap();
    std::fs::create_dir_all(fake.path("root/other/rebooted")).unwrap();
    let nameless = left(&fake, "nameless", "sock");
    std::fs::remove_file(nameless.join("shim-binary-path")).unwrap();
    let tasks = fake.manager();
    run(&tasks).await;
    assert!(is_empty(&fake.path("state/ns")));
    assert!(is_empty(&fake.path("root/ns")) && is_empty(&fake.path("root/other")));
}

#[tokio::test]
async fn nothing_at_all_is_fine() {
    let fake = Fake::new();
    run(&fake.manager()).await;
}
