//! Owns the containers of this shim: who exists, who is being made, and when the shim may go.

pub(crate) mod exec;
pub(crate) mod exit;
pub(crate) mod init;
pub(crate) mod launch;
pub(crate) mod process;
pub(crate) mod state;

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeMap;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use corten_oci::Cgroup;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

use crate::criu;
use crate::engine::binary::Binary;
use crate::error::{Error, Result};
use crate::events::Events;
use crate::io::Streams;
use crate::oom;
use crate::options::Options;
use crate::reaper::{Pidfd, Reaper};
use crate::sandbox::Sandbox;
use crate::{log, socket};
use process::{Process, SIGKILL};
use state::State;

/// Seccomp programs kept; a node sees a handful of profiles.
const MAX_CACHED: usize = 32;

/// Everything the shim knows. One thread, no locks; no borrow lives across an await.
#[derive(Debug)]
pub(crate) struct Shim {
    pub(crate) namespace: String,
    pub(crate) events: Rc<Events>,
    pub(crate) reaper: Rc<Reaper>,
    /// Byte streams that clients opened for stdio.
    pub(crate) streams: Rc<Streams>,
    /// Folder of compiled seccomp programs, shared by all shims of a daemon.
    cache: Option<PathBuf>,
    /// Notified when the shim is to end.
    pub(crate) done: Notify,
    /// It is: a container that came now would be left behind.
    leaving: Cell<bool>,
    /// The path of its socket, until it leaves.
    socket: RefCell<Option<PathBuf>>,
    /// Notified when a container is gone.
    pub(crate) removed: Notify,
    containers: RefCell<BTreeMap<String, Rc<Container>>>,
    /// Ids whose Create is under way: invisible to every other call but Delete, which cancels it.
    creating: RefCell<BTreeMap<String, Rc<Pending>>>,
    sandbox: RefCell<Option<Rc<Sandbox>>>,
    finish: Cell<Finish>,
}

/// Whether the shim goes as soon as it is idle, without another Shutdown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Finish {
    #[default]
    No,
    /// Shutdown came while a Create was under way: nobody will ask again if that fails.
    Asked,
    /// The sandbox is over; daemons before 2.4 send no Shutdown for its containers.
    Over,
}

/// A Create under way.
#[derive(Debug)]
struct Pending {
    cancelled: Cell<bool>,
    /// Its process, once there is one.
    child: OnceCell<Pidfd>,
    /// Closed at its end.
    end: watch::Receiver<()>,
}

/// One container.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) options: Options,
    pub(crate) cgroup: Cgroup,
    /// The runtime that made it, when that is not this process.
    pub(crate) binary: Option<Rc<Binary>>,
    /// Killing init kills everything: it is pid 1 of a namespace of its own.
    pub(crate) private_pids: bool,
    pub(crate) init: Rc<Process>,
    pub(crate) execs: RefCell<BTreeMap<String, Rc<Process>>>,
    /// init is gone, though its exit may still be held back for the execs.
    pub(crate) init_gone: Cell<bool>,
    /// Execs being started or running, and word of each that ends.
    pub(crate) live_execs: Cell<usize>,
    pub(crate) exec_ended: Notify,
    pub(crate) oom: oom::Seen,
    pub(crate) oom_watch: RefCell<Option<AbortHandle>>,
    /// Inodes of the pipes that init got as streams; a checkpoint names them.
    pub(crate) pipes: Cell<[u64; 3]>,
    /// Until Start: init is to come out of a checkpoint.
    pub(crate) pending: RefCell<Option<Box<criu::Pending>>>,
    /// It did, and lives in a time namespace that config.json knows nothing of.
    pub(crate) restored: Cell<bool>,
}

/// Keeps an id reserved while its Create runs.
#[derive(Debug)]
pub(crate) struct Reservation<'a> {
    shim: &'a Shim,
    id: &'a str,
    pending: Rc<Pending>,
    _end: watch::Sender<()>,
}

// === impl Shim ===

impl Shim {
    pub(crate) fn new(namespace: &str, events: Rc<Events>, cache: Option<PathBuf>) -> Self {
        Self {
            namespace: namespace.to_owned(),
            events,
            reaper: Rc::default(),
            streams: Rc::default(),
            cache,
            done: Notify::new(),
            leaving: Cell::default(),
            socket: RefCell::default(),
            removed: Notify::new(),
            containers: RefCell::default(),
            creating: RefCell::default(),
            sandbox: RefCell::default(),
            finish: Cell::default(),
        }
    }

    pub(crate) fn sandbox(&self) -> Option<Rc<Sandbox>> {
        self.sandbox.borrow().clone()
    }

    pub(crate) fn set_sandbox(&self, sandbox: Option<Rc<Sandbox>>) {
        *self.sandbox.borrow_mut() = sandbox;
    }

    pub(crate) fn container(&self, id: &str) -> Result<Rc<Container>> {
        self.containers
            .borrow()
            .get(id)
            .cloned()
            .ok_or_else(|| Error::not_found("container not created"))
    }

    /// A process of a container: init for an empty `exec`.
    pub(crate) fn process(&self, id: &str, exec: &str) -> Result<(Rc<Container>, Rc<Process>)> {
        let container = self.container(id)?;
        let process = container.process(exec)?;
        Ok((container, process))
    }

    pub(crate) fn reserve<'a>(&'a self, id: &'a str) -> Result<Reservation<'a>> {
        if self.leaving.get() {
            return Err(Error::unavailable("the shim is going away"));
        }
        let taken = self.containers.borrow().contains_key(id);
        if taken || self.creating.borrow().contains_key(id) {
            return Err(Error::exists(format!("container {id}")));
        }
        let (_end, end) = watch::channel(());
        let pending = Rc::new(Pending {
            cancelled: Cell::new(false),
            child: OnceCell::new(),
            end,
        });
        self.creating
            .borrow_mut()
            .insert(id.to_owned(), pending.clone());
        Ok(Reservation {
            shim: self,
            id,
            pending,
            _end,
        })
    }

    /// Makes a Create under way fail, and waits for that. A daemon that gave up on it would never come back for the
    /// container.
    pub(crate) async fn cancel_create(&self, id: &str) {
        let Some(pending) = self.creating.borrow().get(id).cloned() else {
            return;
        };
        pending.cancelled.set(true);
        if let Some(child) = pending.child.get() {
            // Fails only when it is gone already.
            let _ = child.signal(SIGKILL);
        }
        let mut end = pending.end.clone();
        while end.changed().await.is_ok() {}
    }

    pub(crate) fn add(&self, container: &Rc<Container>) {
        if self.finish.get() == Finish::Asked {
            self.finish.set(Finish::No);
        }
        self.containers
            .borrow_mut()
            .insert(container.id.clone(), container.clone());
    }

    pub(crate) fn remove(&self, id: &str) {
        self.containers.borrow_mut().remove(id);
        self.removed.notify_one();
        self.finish_if_idle();
    }

    /// Where a seccomp program may be kept. Custom profiles must not fill a tmpfs, so a full folder is left alone.
    pub(crate) fn cache(&self, spec: &corten_oci::Spec) -> Option<&Path> {
        let dir = self.cache.as_deref()?;
        spec.linux.seccomp.as_ref()?;
        if !dir.exists() {
            let made = std::fs::DirBuilder::new().mode(0o700).create(dir);
            made.ok()?;
        }
        // Whoever can write here decides what containers may call.
        let meta = std::fs::symlink_metadata(dir).ok()?;
        let own = meta.uid() == rustix::process::geteuid().as_raw();
        if !(own && meta.is_dir() && meta.mode() & 0o077 == 0) {
            return None;
        }
        let count = std::fs::read_dir(dir).ok()?.take(MAX_CACHED + 1).count();
        (count <= MAX_CACHED).then_some(dir)
    }

    /// Says where the shim can be reached.
    pub(crate) fn listens_at(&self, socket: Option<PathBuf>) {
        *self.socket.borrow_mut() = socket;
    }

    /// Ends the shim. From now on no container is taken in, and a `start` for this group makes a new shim; whoever asked
    /// for the end is answered later, and need not wait for it.
    pub(crate) fn leave(&self) {
        self.leaving.set(true);
        if let Some(path) = self.socket.take()
            && let Err(e) = socket::remove(&path)
        {
            log::warning!("remove socket {}: {e}", path.display());
        }
        self.done.notify_one();
    }

    /// Shutdown: with nothing left to serve the shim goes. What is still being created may turn out to be nothing.
    pub(crate) fn shutdown(&self) {
        if self.containers.borrow().is_empty() && self.sandbox().is_none() {
            self.ask(Finish::Asked);
        }
    }

    /// The sandbox is no more: the shim goes after its last container.
    pub(crate) fn finish(&self) {
        self.ask(Finish::Over);
    }

    fn ask(&self, finish: Finish) {
        self.finish.set(finish);
        self.finish_if_idle();
    }

    fn finish_if_idle(&self) {
        if self.finish.get() != Finish::No && self.is_idle() {
            self.leave();
        }
    }

    /// Neither sandbox nor container, and none on its way.
    pub(crate) fn is_idle(&self) -> bool {
        self.containers.borrow().is_empty()
            && self.creating.borrow().is_empty()
            && self.sandbox.borrow().is_none()
    }
}

// === impl Container ===

impl Container {
    pub(crate) fn process(&self, exec: &str) -> Result<Rc<Process>> {
        if exec.is_empty() {
            return Ok(self.init.clone());
        }
        self.execs
            .borrow()
            .get(exec)
            .cloned()
            .ok_or_else(|| Error::not_found(format!("process does not exist {exec}")))
    }

    /// An exec shows as paused while its container is.
    pub(crate) fn shown_state(&self, process: &Process) -> State {
        match (process.state.get(), self.init.state.get()) {
            (State::Running, State::Paused) => State::Paused,
            (state, _) => state,
        }
    }

    pub(crate) fn exec_started(&self) {
        self.live_execs.set(self.live_execs.get() + 1);
    }

    pub(crate) fn exec_gone(&self) {
        self.live_execs.set(self.live_execs.get() - 1);
        self.exec_ended.notify_waiters();
    }
}

// === impl Reservation ===

impl Reservation<'_> {
    /// Delete came meanwhile.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.pending.cancelled.get()
    }

    /// Names the process that is to be killed when Delete comes.
    pub(crate) fn follow(&self, child: &Pidfd) {
        // A fresh cell takes its first value.
        let _ = self.pending.child.set(child.clone());
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.shim.creating.borrow_mut().remove(self.id);
        self.shim.finish_if_idle();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn shim() -> Shim {
        Shim::new("n", Rc::new(Events::new("n", "")), None)
    }

    #[test]
    fn a_shutdown_that_came_too_early_is_remembered() {
        let shim = shim();
        let failing = shim.reserve("a").unwrap();
        assert!(shim.reserve("a").is_err());
        shim.shutdown();
        assert!(!shim.leaving.get(), "something is being created");
        drop(failing);
        assert!(shim.leaving.get() && shim.reserve("b").is_err());
    }

    #[test]
    fn a_cancelled_create_is_waited_for() {
        let shim = shim();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async {
            let reservation = shim.reserve("a").unwrap();
            let create = async {
                tokio::task::yield_now().await;
                assert!(reservation.is_cancelled());
                drop(reservation);
            };
            tokio::join!(shim.cancel_create("a"), create);
            shim.cancel_create("nobody").await;
        });
        assert!(shim.is_idle() && !shim.leaving.get());
    }

    #[test]
    fn a_cache_that_others_can_write_is_not_used() {
        let dir = std::env::temp_dir().join(format!("corten-cache-{}", std::process::id()));
        let shim = Shim::new("n", Rc::new(Events::new("n", "")), Some(dir.clone()));
        let spec =
            br#"{"ociVersion":"1.1.0","linux":{"seccomp":{"defaultAction":"SCMP_ACT_ALLOW"}}}"#;
        let spec = corten_oci::Spec::parse(spec).unwrap();
        assert_eq!(shim.cache(&spec), Some(dir.as_path()));
        std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o777)).unwrap();
        assert_eq!(shim.cache(&spec), None);
        std::fs::remove_dir(dir).unwrap();
    }
}
