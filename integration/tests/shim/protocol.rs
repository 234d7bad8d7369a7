//! How others find a shim, start it, speak with it and let it go.

use std::io::{ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

use corten_integration::ctr::Client as Ctr;
use corten_integration::process::{DEADLINE, patience};
use corten_protos::any;
use corten_protos::containerd::types::MountCapabilities;
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_gid, set_thread_uid};

use crate::container::{Container, Shim};
use crate::host::{Dialect, Host, is_reference, until};

fn socket_of(c: &Container) -> PathBuf {
    let path = c.address.strip_prefix("unix://").expect("a unix socket");
    PathBuf::from(path)
}

async fn is_gone(socket: PathBuf) {
    until("the socket is gone", move || !socket.exists()).await;
}

/// `ctr shim --id` computes the socket's path from the default directory, the daemon's address and the id.
pub(crate) async fn ctr_finds_a_shim_by_its_id(h: Arc<Host>) {
    let recipe = h.container("c", &["sleep", "1000000"]);
    let c = recipe
        .socket_dir(Path::new("/run/containerd/s"))
        .make()
        .await;
    c.create().await.unwrap();
    c.start().await.unwrap();
    let pid = c.state().await.unwrap().pid;
    let ctr = Ctr::New.command(&h.address(), &h.namespace, &h.base);
    let done = ctr.words("shim --id c state").run();
    done.expect_code(0);
    assert!(done.out().contains(&pid.to_string()), "{}", done.report());
    assert_eq!(c.kill_and_delete().await, 137);
    is_gone(socket_of(&c)).await;
}

pub(crate) async fn a_start_tells_what_it_mounts(h: Arc<Host>) {
    if is_reference() {
        println!("Corten only: the stock shim leaves that to the daemon's list of exceptions");
        return;
    }
    let c = h.running("c", &["sleep", "1000000"]).await;
    let again = h.start("c", None, None).await;
    assert_eq!(again.address, c.address);
    let said = again.extensions.iter().filter_map(|e| e.value.as_ref());
    let said: Vec<MountCapabilities> = said.map(|v| any::unpack(v).unwrap()).collect();
    assert_eq!(said, [MountCapabilities::default()]);
    assert_eq!(c.kill_and_delete().await, 137);
}

/// Containers' whole lives with a daemon of another day, and its version of the task service.
async fn lives(h: &Arc<Host>, dialect: Dialect) {
    if is_reference() {
        println!("Corten only: the stock shim of 2.4 refuses daemons before 2.3");
        return;
    }
    let of = |id: &str, script: &str| {
        let recipe = h.container(id, &["sh", "-c", script]);
        recipe.dialect(dialect)
    };
    let first = of("first", "exec sleep 1000000").make().await;
    first.create().await.unwrap();
    let pid = first.start().await.unwrap();
    // The same listener answers those who know version 3.
    let newer = Shim::connect(&first.address).await;
    let request = corten_protos::containerd::task::v3::StateRequest {
        id: "first".to_owned(),
        ..Default::default()
    };
    let state = newer
        .task
        .state(crate::container::context(), &request)
        .await;
    assert_eq!(state.unwrap().pid, pid);
    let second = of("second", "exit 5").group("first").make().await;
    assert_eq!(second.address, first.address);
    second.create().await.unwrap();
    second.start().await.unwrap();
    assert_eq!(second.wait().await, 5);
    assert_eq!(second.delete().await, 5);
    assert_eq!(first.run("e", &["true"]).await, 0);
    assert_eq!(first.kill_and_delete().await, 137);
    is_gone(socket_of(&first)).await;
}

pub(crate) async fn daemons_of_1_6_are_served(h: Arc<Host>) {
    lives(&h, Dialect::Plain).await;
}

pub(crate) async fn daemons_of_1_7_are_served(h: Arc<Host>) {
    lives(&h, Dialect::Json).await;
}

/// 2.4 says Shutdown after every Delete, as all other tests here; those before it only after the last.
pub(crate) async fn shutdown_may_come_at_the_end_only(h: Arc<Host>) {
    let first = h.running("first", &["sleep", "1000000"]).await;
    let recipe = h.container("second", &["sleep", "1000000"]).group("first");
    let second = recipe.make().await;
    second.create().await.unwrap();
    second.start().await.unwrap();
    for c in [&first, &second] {
        c.kill(9).await.unwrap();
        assert_eq!(c.wait().await, 137);
        assert_eq!(c.delete_exec("").await.unwrap().exit_status, 137);
    }
    // Empty, and still there: only who says so lets it go.
    let socket = socket_of(&first);
    assert_eq!(second.connect().await.task_pid, 0);
    assert!(socket.exists());
    second.shutdown().await;
    is_gone(socket).await;
    for c in [&first, &second] {
        c.delete_command().await;
        c.remove_bundle();
    }
}

/// The socket's mode keeps others out; so does the shim itself.
pub(crate) async fn other_users_are_sent_away(h: Arc<Host>) {
    let c = h.running("c", &["sleep", "1000000"]).await;
    let socket = socket_of(&c);
    let open = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
    for dir in [&h.base, socket.parent().expect("a directory")] {
        open(dir, 0o755).unwrap();
    }
    open(&socket, 0o666).unwrap();
    for (uid, gid) in [(1000, 1000), (1000, 0), (0, 1000)] {
        let path = socket.clone();
        // Of this one thread only, and it ends.
        let heard = std::thread::spawn(move || -> io::Result<usize> {
            set_thread_gid(Gid::from_raw(gid))?;
            set_thread_uid(Uid::from_raw(uid))?;
            let mut stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(DEADLINE * patience()))?;
            stream.read(&mut [0])
        });
        match heard.join().expect("it does not panic") {
            Ok(0) => {}
            Err(e) if e.kind() == ErrorKind::ConnectionReset => {}
            other => panic!("{uid}:{gid}: {other:?}"),
        }
    }
    assert_eq!(c.kill_and_delete().await, 137);
}
