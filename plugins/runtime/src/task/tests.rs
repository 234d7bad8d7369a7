//! Tasks in a fake shim: the way there, the way back, and every way to fall off it.

use std::time::Duration;

use corten_protos::containerd::runc::v1::Options;
use corten_protos::containerd::runtime::bootstrap::v1::BootstrapParams;
use corten_protos::containerd::types::Sandbox;
use prost::Message;

use super::*;
use crate::fake::{Fake, is_empty, ns, options};

const PATIENCE: Duration = Duration::from_secs(10);

/// Waits for something that another task brings about.
async fn until(what: &str, done: impl Fn() -> bool) {
    let wait = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"));
}

#[tokio::test]
async fn a_task_comes_and_goes() {
    let fake = Fake::new();
    let _server = fake.serve().await;
    let tasks = fake.manager();
    let mut o = options();
    o.runtime_options = Some(corten_protos::any::pack(&Options {
        binary_name: "crun".into(),
        ..Default::default()
    }));
    let task = tasks.create(&ns(), "c", o).await.unwrap();
    assert_eq!((task.id(), task.pid()), ("c", 42));

    let argv = fake.argv();
    assert_eq!(
        argv,
        ["-namespace ns -address /run/test.sock -publish-binary /usr/bin/true -id c start"]
    );
    let params = std::fs::read(fake.path("stdin")).unwrap();
    let params = BootstrapParams::decode(params.as_slice()).unwrap();
    assert_eq!(
        (params.instance_id.as_str(), params.namespace.as_str()),
        ("c", "ns")
    );
    assert_eq!(params.containerd_ttrpc_address, "/run/test.sock.ttrpc");
    assert_eq!(
        params.extensions[0].value.as_ref().unwrap().type_url,
        "containerd.runc.v1.Options"
    );
    assert_eq!(
        params.socket_dir.unwrap(),
        fake.path("").display().to_string().trim_end_matches('/')
    );
    let env = std::fs::read_to_string(fake.path("env")).unwrap();
    for line in [
        "MAX_SHIM_VERSION=2",
        "TTRPC_ADDRESS=/run/test.sock.ttrpc",
        "NAMESPACE=ns",
        "GOMAXPROCS=2",
    ] {
        assert!(env.lines().any(|l| l == line), "{line} in {env}");
    }
    let bundle = fake.bundle("c");
    let cwd = std::fs::read_to_string(fake.path("cwd")).unwrap();
    assert_eq!(
        cwd.trim(),
        bundle.canonicalize().unwrap().display().to_string()
    );
    let read = |name: &str| std::fs::read_to_string(bundle.join(name)).unwrap();
    assert_eq!(read("config.json"), "{}");
    assert_eq!(read("bootstrap.json"), fake.bootstrap("sock"));
    assert_eq!(
        read("shim-binary-path"),
        fake.binary().display().to_string()
    );

    let twice = tasks.create(&ns(), "c", options()).await.err().unwrap();
    assert_eq!(twice.kind(), Kind::AlreadyExists);
    assert_eq!(tasks.list(&ns()).await.unwrap().len(), 1);

    let waiting = task.clone();
    let waiting = tokio::spawn(async move { waiting.wait("").await });
    let exit = tasks.delete(&ns(), "c").await.unwrap();
    assert_eq!((exit.pid, exit.status), (42, 7));
    assert_eq!(fake.calls(), ["create ns/c", "delete c", "shutdown c"]);
    // The shim told of the end itself and cleaned up: neither events nor its binary are needed.
    assert!(fake.events.all().is_empty());
    assert_eq!(fake.ran("delete"), 0);
    assert!(is_empty(&fake.path("state/ns")) && is_empty(&fake.path("root/ns")));
    assert_eq!(
        tasks.get(&ns(), "c").await.err().unwrap().kind(),
        Kind::NotFound
    );
    assert_eq!(waiting.await.unwrap().unwrap().status, 7);
}

#[tokio::test]
async fn an_unknown_runtime_leaves_nothing() {
    let fake = Fake::new();
    let tasks = fake.manager();
    let mut o = options();
    o.runtime = "io.containerd.none.v9".into();
    let e = tasks.create(&ns(), "c", o).await.err().unwrap();
    assert_eq!(
        e.to_string(),
        "failed to start shim: failed to resolve runtime path: runtime \"io.containerd.none.v9\" \
         binary not installed \"containerd-shim-none-v9\": file does not exist"
    );
    assert!(is_empty(&fake.path("state/ns")) && is_empty(&fake.path("root/ns")));
}

#[tokio::test]
async fn a_start_that_fails_is_cleaned_up_after() {
    let fake = Fake::new();
    let tasks = fake.manager();
    fake.on_start("echo boom; exit 3");
    let e = tasks.create(&ns(), "c", options()).await.err().unwrap();
    assert_eq!(
        e.to_string(),
        "failed to start shim: start failed: boom: exit status 3"
    );
    assert_eq!(fake.ran("delete"), 1);
    assert!(is_empty(&fake.path("state/ns")));

    // It says where it is, but is not there.
    fake.answer(&fake.bootstrap("nowhere"));
    let e = tasks
        .create(&ns(), "c", options())
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(
        e.starts_with("failed to start shim: start failed: failed to create TTRPC connection"),
        "{e}"
    );
    assert_eq!(fake.ran("delete"), 2);
    assert!(is_empty(&fake.path("state/ns")));
}

#[tokio::test]
async fn a_create_that_the_shim_refuses_is_torn_down() {
    let fake = Fake::new();
    let _server = fake.serve().await;
    let tasks = fake.manager();
    {
        let mut script = fake.task.0.lock();
        script.create_fails = Some("OCI runtime create failed: exec: \"x\": no such file".into());
        script.deleted = true;
    }
    let e = tasks.create(&ns(), "c", options()).await.err().unwrap();
    assert_eq!(
        e.to_string(),
        "failed to create shim task: OCI runtime create failed: exec: \"x\": no such file"
    );
    assert_eq!(e.kind(), Kind::Unknown);
    assert_eq!(fake.calls(), ["create ns/c", "delete c", "shutdown c"]);
    assert_eq!(fake.ran("delete"), 1);
    assert!(is_empty(&fake.path("state/ns")));
    assert!(fake.events.all().is_empty());
    assert!(tasks.list(&ns()).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_leaves_nothing_behind() {
    let fake = Fake::new();
    let _server = fake.serve().await;
    let tasks = fake.manager();
    fake.task.0.lock().create_hangs = true;
    let create = tokio::spawn({
        let tasks = tasks.clone();
        async move { tasks.create(&ns(), "c", options()).await.map(|_| ()) }
    });
    until("create reaches the shim", || {
        fake.calls().contains(&"create ns/c".to_owned())
    })
    .await;
    create.abort();
    until("the shim is shut down", || {
        fake.calls().contains(&"shutdown c".to_owned())
    })
    .await;
    until("the bundle is gone", || is_empty(&fake.path("state/ns"))).await;
    assert!(tasks.list(&ns()).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_start_that_hangs_or_never_stops_talking_does_not_keep_the_id() {
    let fake = Fake::new();
    let tasks = fake.manager();
    fake.on_start("exec sleep 1000");
    let create = tokio::spawn({
        let tasks = tasks.clone();
        async move { tasks.create(&ns(), "c", options()).await.map(|_| ()) }
    });
    until("start runs", || fake.ran("start") == 1).await;
    create.abort();
    until("the bundle is gone", || is_empty(&fake.path("state/ns"))).await;
    assert_eq!(fake.ran("delete"), 1);

    fake.on_start("exec cat /dev/zero");
    let ns = ns();
    let create = tasks.create(&ns, "c", options());
    let e = tokio::time::timeout(PATIENCE, create).await.unwrap();
    let e = e.err().unwrap();
    assert_eq!(e.kind(), Kind::Unknown, "{e}");
    assert!(is_empty(&fake.path("state/ns")));
}

#[tokio::test]
async fn a_delete_whose_shutdown_fails_can_be_repeated() {
    let fake = Fake::new();
    let _server = fake.serve().await;
    let tasks = fake.manager();
    tasks.create(&ns(), "c", options()).await.unwrap();
    fake.task.0.lock().shutdown_fails = 1;
    let e = tasks.delete(&ns(), "c").await.unwrap_err();
    assert_eq!(
        e.to_string(),
        "failed to delete task: failed to invoke shutdown: not now"
    );
    assert!(fake.bundle("c").exists());
    let exit = tasks.delete(&ns(), "c").await.unwrap();
    assert_eq!(exit.status, 7);
    assert!(!fake.bundle("c").exists());
    assert!(fake.events.all().is_empty());
}

#[tokio::test]
async fn a_task_that_the_shim_does_not_know_is_still_removed() {
    let fake = Fake::new();
    let _server = fake.serve().await;
    let tasks = fake.manager();
    tasks.create(&ns(), "c", options()).await.unwrap();
    fake.task.0.lock().deleted = true;
    let e = tasks.delete(&ns(), "c").await.unwrap_err();
    assert_eq!(e.kind(), Kind::NotFound);
    assert!(!fake.bundle("c").exists());
    assert!(tasks.list(&ns()).await.unwrap().is_empty());
}

#[tokio::test]
async fn the_death_of_a_shim_is_told_exactly_once() {
    let fake = Fake::new();
    let server = fake.serve().await;
    let tasks = fake.manager();
    let task = tasks.create(&ns(), "c", options()).await.unwrap();
    let waiting = tokio::spawn({
        let task = task.clone();
        async move { task.wait("").await }
    });
    server.kill();
    let exit = tokio::time::timeout(PATIENCE, waiting)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(exit.status, 137);
    assert_eq!(
        fake.events.all(),
        ["/tasks/exit ns/c 137", "/tasks/delete ns/c 137"]
    );
    assert_eq!(
        fake.argv().last().unwrap(),
        &format!(
            "-namespace ns -address /run/test.sock -publish-binary /usr/bin/true -id c -bundle {} delete",
            fake.bundle("c").display()
        )
    );
    assert!(!fake.bundle("c").exists());
    assert!(tasks.list(&ns()).await.unwrap().is_empty());
    assert_eq!(task.state("").await.unwrap_err().kind(), Kind::NotFound);
    assert_eq!(fake.ran("delete"), 1);
}

#[tokio::test]
async fn a_kill_while_a_dead_shim_is_cleaned_up_finds_nothing_when_that_is_done() {
    let fake = Fake::new();
    let server = fake.serve().await;
    let tasks = fake.manager();
    let task = tasks.create(&ns(), "c", options()).await.unwrap();
    // `delete` takes until this says so.
    let fifo = fake.path("deleted");
    let deleted = std::fs::read(&fifo).unwrap();
    std::fs::remove_file(&fifo).unwrap();
    let made = std::process::Command::new("mkfifo").arg(&fifo).status();
    assert!(made.unwrap().success());
    server.kill();
    until("delete", || fake.ran("delete") == 1).await;
    let mut kill = task.kill("", 9, false);
    assert!(futures::poll!(&mut kill).is_pending());
    tokio::fs::write(&fifo, deleted).await.unwrap();
    let killed = tokio::time::timeout(PATIENCE, kill).await.unwrap();
    assert_eq!(killed.unwrap_err().kind(), Kind::NotFound);
    assert_eq!(
        fake.events.all(),
        ["/tasks/exit ns/c 137", "/tasks/delete ns/c 137"]
    );
    assert_eq!(
        tasks.get(&ns(), "c").await.err().unwrap().kind(),
        Kind::NotFound
    );
    assert_eq!(task.wait("").await.unwrap().status, 137);
}

#[tokio::test]
async fn a_dead_shim_whose_delete_fails_is_told_of_with_255_and_its_bundle_kept() {
    let fake = Fake::new();
    let server = fake.serve().await;
    let tasks = fake.manager();
    let task = tasks.create(&ns(), "c", options()).await.unwrap();
    std::fs::remove_file(fake.path("deleted")).unwrap();
    server.kill();
    let exit = tokio::time::timeout(PATIENCE, task.wait(""))
        .await
        .unwrap()
        .unwrap();
    assert_eq!((exit.pid, exit.status), (42, 255));
    assert_eq!(
        fake.events.all(),
        ["/tasks/exit ns/c 255", "/tasks/delete ns/c 255"]
    );
    assert!(fake.bundle("c").exists());
    // Whoever wants the id makes the daemon try again, until it works.
    let taken = tasks.create(&ns(), "c", options()).await.err().unwrap();
    assert_eq!(taken.kind(), Kind::AlreadyExists);
    assert_eq!(fake.ran("delete"), 2);
    fake.can_delete();
    std::fs::remove_file(fake.path("sock")).unwrap();
    let _server = fake.serve().await;
    let again = tasks.create(&ns(), "c", options()).await.unwrap();
    assert_eq!((again.pid(), fake.ran("delete")), (42, 3));
}

#[tokio::test]
async fn a_shim_that_overstates_its_version_is_asked_in_the_older_one() {
    let fake = Fake::new();
    let _server = fake.serve_v2().await;
    let tasks = fake.manager();
    let task = tasks.create(&ns(), "c", options()).await.unwrap();
    assert_eq!(task.pid(), 42);
    fake.task.0.lock().pids = vec![42];
    assert_eq!(task.pids().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_container_of_a_sandbox_joins_its_shim() {
    let fake = Fake::new();
    let _server = fake.serve().await;
    let tasks = fake.manager();
    fake.sandboxes
        .0
        .lock()
        .insert("s".into(), Sandbox::default());
    let mut o = options();
    o.sandbox_id = "s".into();
    let e = tasks.create(&ns(), "c", o.clone()).await.err().unwrap();
    assert_eq!(
        e.to_string(),
        "failed to start shim: can't find shim for sandbox s: not found"
    );

    tasks.create(&ns(), "s", options()).await.unwrap();
    let task = tasks.create(&ns(), "c", o).await.unwrap();
    assert_eq!(fake.ran("start"), 1);
    assert_eq!(
        std::fs::read_to_string(fake.bundle("c").join("sandbox")).unwrap(),
        "s"
    );
    assert_eq!(fake.calls(), ["create ns/s", "create ns/c"]);
    tasks.delete(&ns(), "c").await.unwrap();
    assert_eq!(fake.calls()[2..], ["delete c", "shutdown c"]);
    assert_eq!(task.state("").await.unwrap_err().kind(), Kind::NotFound);
    assert!(tasks.get(&ns(), "s").await.is_ok());
}

#[tokio::test]
async fn the_state_of_a_stuck_shim_is_not_waited_for() {
    let fake = Fake::new();
    let listener = tokio::net::UnixListener::bind(fake.path("sock")).unwrap();
    let (stream, _accepted) = tokio::join!(
        tokio::net::UnixStream::connect(fake.path("sock")),
        listener.accept()
    );
    let connection = Connection::over(&ns(), stream.unwrap());
    let bundle = Bundle::load(&fake.path("state"), &ns(), "c");
    let timeouts = fake.manager().manager.timeouts;
    let shim = Shim::new(
        Role::Task,
        bundle,
        fake.binary(),
        BootstrapResult::default(),
        connection,
        timeouts,
    );
    let e = tokio::time::timeout(PATIENCE, shim.state(""))
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(e.kind(), Kind::DeadlineExceeded);
}

#[test]
fn platforms_are_parsed() {
    let p = platform("linux/arm64/v8").unwrap();
    assert_eq!(
        (p.os.as_str(), p.architecture.as_str(), p.variant.as_str()),
        ("linux", "arm64", "v8")
    );
    platform("linux").unwrap_err();
    platform("a/b/c/d").unwrap_err();
}
