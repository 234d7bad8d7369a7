//! Owns the life of a container's first process: create, start, delete.

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use corten_launch::Status;
use corten_oci::{
    Cgroup, HOOKS, InitParams, Place, Spec, Stdio as ChildStdio, cgroup, netdev, plan_init,
};
use corten_protos::containerd::events::{TaskCreate, TaskDelete, TaskIo, TaskStart};
use corten_protos::containerd::task::v3::CreateTaskRequest;
use corten_protos::time;
use tokio::task::spawn_local;

use super::launch::{Child, failed};
use super::process::{Process, SIGKILL};
use super::state::{Move, State};
use super::{Container, Reservation, Shim, exit};
use crate::bundle::{self, Exit};
use crate::engine::{binary::Binary, native};
use crate::error::{Context, Error, Result};
use crate::hooks::{self, Subject};
use crate::io::{self, Io, Stdio};
use crate::log;
use crate::options::Options;
use crate::reaper::Pidfd;
use crate::{criu, oom, rootfs, systemd};

const CREATE: &str = "OCI runtime create failed";
const RESTORE: &str = "OCI runtime restore failed";
const START: &str = "OCI runtime start failed";
const DELETE: &str = "failed to delete task";

/// How long a cgroup may stay busy after the last process was killed.
const CGROUP_PATIENCE: Duration = Duration::from_secs(10);

/// What has been made of a container that is not one yet; undone in reverse when a step fails.
struct Draft {
    id: String,
    bundle: PathBuf,
    options: Options,
    spec: Spec,
    io: Option<Rc<Io>>,
    cgroup: Option<Cgroup>,
    child: Option<Child>,
    /// The runtime that is to make it, and what that made.
    binary: Option<Rc<Binary>>,
    adopted: Option<Pidfd>,
    /// Folder of the checkpoint to restore; empty for none.
    images: PathBuf,
    pending: Option<Box<criu::Pending>>,
    pipes: [u64; 3],
}

/// Create: mounts, streams, cgroup, process up to its gate.
pub(crate) async fn create(shim: &Rc<Shim>, request: CreateTaskRequest) -> Result<u32> {
    if request.id.is_empty() || request.bundle.is_empty() {
        return Err(Error::invalid("create: id and bundle are required"));
    }
    let reservation = shim.reserve(&request.id)?;
    shim.events.room().await;
    let options = Options::from_any(request.options.as_ref())?;
    let bundle = PathBuf::from(&request.bundle);
    let mut spec = bundle::read_spec(&bundle).context(CREATE)?;
    if let Some(sandbox) = shim.sandbox() {
        sandbox.furnish(&mut spec);
    }
    let mut draft = Draft {
        id: request.id.clone(),
        spec,
        bundle,
        options,
        io: None,
        cgroup: None,
        child: None,
        binary: None,
        adopted: None,
        images: PathBuf::from(&request.checkpoint),
        pending: None,
        pipes: [0; 3],
    };
    let (id, namespace) = (&draft.id, &shim.namespace);
    draft.binary = Binary::of(&draft.options, namespace, id, &draft.bundle, &shim.reaper);
    bundle::write_options(&draft.bundle, &draft.options)?;
    let stdio = Stdio {
        stdin: request.stdin.clone(),
        stdout: request.stdout.clone(),
        stderr: request.stderr.clone(),
        terminal: request.terminal,
    };
    let built = async {
        prepare_rootfs(&request, &draft.bundle)?;
        draft.build(shim, &stdio, &reservation).await?;
        match reservation.is_cancelled() {
            true => Err(Error::unavailable("create was cancelled by a delete")),
            false => Ok(()),
        }
    }
    .await;
    if let Err(e) = built {
        draft.undo(shim).await;
        return Err(e);
    }
    let container = draft.finish(stdio)?;
    let order = container.init.order.lock().await;
    let pid = container.init.pid();
    shim.add(&container);
    shim.events.publish(&TaskCreate {
        container_id: request.id.clone(),
        bundle: request.bundle.clone(),
        rootfs: request.rootfs,
        io: Some(TaskIo {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        }),
        checkpoint: request.checkpoint,
        pid,
    });
    if container.pending.borrow().is_none() {
        follow(shim, &container);
    }
    drop(order);
    log::info!("container {} created, pid {pid}", container.id);
    Ok(pid)
}

/// Watches a container that has a process.
fn follow(shim: &Rc<Shim>, container: &Rc<Container>) {
    let watch = spawn_local(oom::watch(container.clone(), shim.events.clone()));
    *container.oom_watch.borrow_mut() = Some(watch.abort_handle());
    spawn_local(exit::watch_init(shim.clone(), container.clone()));
}

/// Start of init: hooks, the gate, hooks.
pub(crate) async fn start(shim: &Rc<Shim>, container: &Rc<Container>) -> Result<u32> {
    let init = &container.init;
    let _order = init.order.lock().await;
    init.state.get().transition(Move::Start)?;
    let pending = container.pending.borrow_mut().take();
    if let Some(pending) = pending {
        // Boxed, or every start would be as large as this one.
        return Box::pin(restore(shim, container, *pending)).await;
    }
    if let Some(binary) = &container.binary {
        if let Err(e) = binary.start().await {
            let _ = init.signal(SIGKILL);
            return Err(e.context(START));
        }
        init.advance(Move::Start)?;
        return Ok(tell_start(shim, container));
    }
    let child = init.child.borrow_mut().take();
    // The only way here without a child: it died, and its exit waits for the lock held above.
    let mut child = child.ok_or_else(|| Error::unknown("cannot start a stopped process"))?;
    let spec = bundle::read_spec(&container.bundle).context(START)?;
    let subject = Subject {
        spec: &spec,
        id: &container.id,
        bundle: &container.bundle,
        pid: child.pidfd.pid(),
        status: "created",
    };
    let before = &spec.hooks.start_container;
    let place = Place::Container {
        init: child.pidfd.as_fd(),
        cgroup: &container.cgroup,
        spec: &spec,
    };
    let begun = match hooks::run(&shim.reaper, subject, "startContainer", before, place).await {
        Ok(()) => child.go().await,
        Err(e) => Err(e),
    };
    if let Err(e) = begun {
        // The watcher collects it and tells, as containerd does for a start that failed.
        let _ = child.pidfd.signal(SIGKILL);
        return Err(e.context(START));
    }
    init.advance(Move::Start)?;
    let after = Subject {
        status: "running",
        ..subject
    };
    if let Err(e) = hooks::run(
        &shim.reaper,
        after,
        "poststart",
        &spec.hooks.poststart,
        Place::Runtime,
    )
    .await
    {
        let _ = child.pidfd.signal(SIGKILL);
        return Err(e.context(START));
    }
    Ok(tell_start(shim, container))
}

/// Start of an init that comes out of a checkpoint. After a failure there is nothing to start any more.
async fn restore(
    shim: &Rc<Shim>,
    container: &Rc<Container>,
    pending: criu::Pending,
) -> Result<u32> {
    let init = &container.init;
    let made = match criu::start(shim, container, pending).await {
        Ok(made) => made,
        Err(e) => {
            let io = init.io.borrow().clone();
            if let Some(io) = io {
                io.close().await;
            }
            return Err(e.context(RESTORE));
        }
    };
    // A fresh cell takes its first value.
    let _ = init.pidfd.set(made);
    init.advance(Move::Start)?;
    follow(shim, container);
    Ok(tell_start(shim, container))
}

fn tell_start(shim: &Shim, container: &Container) -> u32 {
    let pid = container.init.pid();
    shim.events.publish(&TaskStart {
        container_id: container.id.clone(),
        pid,
    });
    pid
}

/// Delete of the container: a created one is killed first, a stopped one taken apart.
pub(crate) async fn delete(shim: &Rc<Shim>, container: &Rc<Container>) -> Result<Exit> {
    let init = &container.init;
    init.state.get().transition(Move::Delete)?;
    if init.pidfd.get().is_none() {
        give_up(container).await;
    }
    if init.state.get() == State::Created {
        // Its exit is told like any other before the deletion is.
        let _ = init.signal(SIGKILL);
    }
    let exit = init.wait().await?;
    let _order = init.order.lock().await;
    // A second Delete that waited for this lock finds the work done.
    init.state.get().transition(Move::Delete)?;
    let io = init.io.borrow().clone();
    if let Some(io) = io {
        io.drain().await;
        io.close().await;
    }
    if let Some(watch) = container.oom_watch.borrow_mut().take() {
        watch.abort();
    }
    if let Some(binary) = &container.binary {
        binary.delete(false).await.context(DELETE)?;
    } else {
        remove_cgroup(&container.cgroup, CGROUP_PATIENCE)
            .await
            .context(DELETE)?;
        native::remove_rdt(&container.bundle, &container.id);
        run_poststop(shim, &container.id, &container.bundle).await;
    }
    rootfs::unmount(&container.bundle.join("rootfs")).context("failed rootfs umount")?;
    init.advance(Move::Delete)?;
    shim.remove(&container.id);
    shim.events.publish(&TaskDelete {
        container_id: container.id.clone(),
        pid: exit.pid,
        exit_status: exit.status,
        exited_at: Some(exit.at),
        id: String::new(),
    });
    log::info!("container {} deleted", container.id);
    Ok(exit)
}

/// A container that was to be restored and has no process gets an end nobody is told of, unless a Start comes first.
async fn give_up(container: &Container) {
    let init = &container.init;
    let _order = init.order.lock().await;
    if init.pidfd.get().is_none() {
        container.pending.borrow_mut().take();
        init.set_exit(Exit {
            pid: 0,
            status: 0,
            at: time::GO_ZERO,
        });
    }
}

/// Mounts what the daemon sent; without mounts the rootfs is the spec's business.
fn prepare_rootfs(request: &CreateTaskRequest, bundle: &Path) -> Result<()> {
    if request.rootfs.is_empty() {
        return Ok(());
    }
    let rootfs = bundle.join("rootfs");
    match std::fs::create_dir(&rootfs) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(e).context("create rootfs");
        }
        _ => {}
    }
    rootfs::mount_all(&request.rootfs, &rootfs)
}

/// Removes a cgroup whose processes have been killed, as soon as the kernel has let go of them.
pub(crate) async fn remove_cgroup(cgroup: &Cgroup, patience: Duration) -> Result<()> {
    let stopped = systemd::stop(cgroup).await;
    let mut pause = Duration::from_millis(1);
    let mut waited = Duration::ZERO;
    while !cgroup.delete()? {
        if waited >= patience {
            return Err(Error::unknown(format!(
                "unable to remove container's cgroup {}: device or resource busy",
                cgroup.path()
            )));
        }
        cgroup.kill()?;
        // cgroup v1 tells nobody when a cgroup becomes empty.
        tokio::time::sleep(pause).await;
        waited += pause;
        pause = (pause * 2).min(Duration::from_millis(100));
    }
    stopped
}

async fn run_poststop(shim: &Shim, id: &str, bundle: &Path) {
    match bundle::read_spec(bundle) {
        Ok(spec) if spec.hooks.poststop.is_empty() => {}
        Ok(spec) => {
            if bundle::claim_poststop(bundle) {
                hooks::poststop_with(&shim.reaper, &spec, id, bundle).await;
            }
        }
        Err(e) => log::warning!("container {id}: poststop hooks: {e}"),
    }
}

// === impl Draft ===

impl Draft {
    /// Everything up to the gate. Whatever was made so far is in `self`, for `undo`.
    async fn build(
        &mut self,
        shim: &Shim,
        stdio: &Stdio,
        reservation: &Reservation<'_>,
    ) -> Result<()> {
        let owner = (self.options.io_uid, self.options.io_gid);
        let (streams, io) = io::open(shim, &self.id, stdio, owner, &self.spec_console()).await?;
        self.io = Some(io.clone());
        if !self.images.as_os_str().is_empty() {
            return self.prepare_restore(shim, streams).await;
        }
        self.pipes = criu::pipes(&streams);
        if let Some(binary) = self.binary.clone() {
            let made = binary.create(streams, &io).await.context(CREATE)?;
            reservation.follow(&made);
            self.cgroup = Some(Cgroup::of(made.pid()).context(CREATE)?);
            self.adopted = Some(made);
            return Ok(());
        }
        let cgroup_options = cgroup::Options {
            systemd: self.options.systemd_cgroup,
        };
        let made = systemd::create(&shim.reaper, &self.spec, &self.id, &cgroup_options).await;
        let (cgroup, keeper) = made.context(CREATE)?;
        let cgroup = self.cgroup.insert(cgroup);
        let init = plan_init(
            &self.spec,
            InitParams {
                id: &self.id,
                bundle: &self.bundle,
                stdio: streams,
                cgroup,
                no_pivot_root: self.options.no_pivot_root,
                no_new_keyring: self.options.no_new_keyring,
                cache: shim.cache(&self.spec),
            },
        )
        .context(CREATE)?;
        for warning in &init.warnings {
            log::warning!("container {}: {warning}", self.id);
        }
        let child = Child::spawn(&shim.reaper, &init.plan).context(CREATE)?;
        drop(init);
        let child = self.child.insert(child);
        reservation.follow(&child.pidfd);
        if reservation.is_cancelled() {
            return Err(Error::unavailable("create was cancelled by a delete"));
        }
        let pid = child.pidfd.pid();
        bundle::write_pid(&self.bundle, "", pid)?;
        let subject = Subject {
            spec: &self.spec,
            id: &self.id,
            bundle: &self.bundle,
            pid,
            status: "creating",
        };
        child.inform(native::agent(subject, pid)?);
        native::join_rdt(&self.spec, &self.id, pid).context(CREATE)?;
        loop {
            match child.settle().await.context(CREATE)? {
                Status::Ready => break,
                Status::Rendezvous(HOOKS) => {
                    netdev::attach(&self.spec, pid).context(CREATE)?;
                    run_create_hooks(shim, &self.spec, &self.id, &self.bundle, child)
                        .await
                        .context(CREATE)?;
                    child.proceed().context(CREATE)?;
                }
                Status::Failed(failure) => return Err(failed(failure).context(CREATE)),
                other => {
                    return Err(Error::unknown(format!(
                        "{CREATE}: unexpected news {other:?}"
                    )));
                }
            }
        }
        if let Some(cgroup) = &self.cgroup {
            let released = keeper.release(cgroup, &self.spec).await;
            released.context(CREATE)?;
        }
        for warning in child.take_warnings() {
            log::warning!("container {}: {warning}", self.id);
        }
        if let Some(console) = child.take_console() {
            io.attach_console(console)
                .context("failed to start console copy")?;
        }
        Ok(())
    }

    /// All that a Start needs to restore the container; its process is made by then.
    async fn prepare_restore(&mut self, shim: &Shim, streams: ChildStdio) -> Result<()> {
        let options = cgroup::Options {
            systemd: self.options.systemd_cgroup,
        };
        let keeper = if self.binary.is_some() {
            let cgroup = Cgroup::open(&self.spec, &self.id, &options).context(CREATE)?;
            self.cgroup = Some(cgroup);
            None
        } else {
            let made = systemd::create(&shim.reaper, &self.spec, &self.id, &options).await;
            let (cgroup, keeper) = made.context(CREATE)?;
            self.cgroup = Some(cgroup);
            // Whoever cleans up after a dead shim is to find that there is something.
            bundle::write_pid(&self.bundle, "", 0)?;
            Some(keeper)
        };
        self.pending = Some(Box::new(criu::Pending {
            images: self.images.clone(),
            work: self.options.criu_work_path.clone(),
            streams,
            keeper,
        }));
        Ok(())
    }

    fn spec_console(&self) -> (u16, u16) {
        console_size(self.spec.process.as_ref())
    }

    /// Takes everything apart again; goes on over errors.
    async fn undo(self, shim: &Shim) {
        if let Some(child) = &self.child {
            child.destroy(&shim.reaper).await;
        }
        let mut problems: Vec<Error> = Vec::new();
        if let Some(binary) = &self.binary {
            problems.extend(binary.delete(true).await.err());
            if let Some(made) = &self.adopted {
                // Fails only when it is gone already.
                let _ = made.signal(SIGKILL);
                let _ = shim.reaper.exit(made).await;
            }
        } else if let Some(cgroup) = &self.cgroup {
            problems.extend(remove_cgroup(cgroup, CGROUP_PATIENCE).await.err());
        }
        if let Some(io) = &self.io {
            io.close().await;
        }
        if self.child.is_some() {
            native::remove_rdt(&self.bundle, &self.id);
            run_poststop(shim, &self.id, &self.bundle).await;
        }
        let unmounted = rootfs::unmount(&self.bundle.join("rootfs"));
        problems.extend(unmounted.context("unmount rootfs").err());
        for problem in problems {
            log::warning!("undo create of {}: {problem}", self.id);
        }
    }

    fn finish(self, stdio: Stdio) -> Result<Rc<Container>> {
        let made = self.child.as_ref().map(|c| c.pidfd.clone());
        let made = made.or(self.adopted);
        let cgroup = self
            .cgroup
            .filter(|_| made.is_some() || self.pending.is_some());
        let Some(cgroup) = cgroup else {
            return Err(Error::unknown(format!("{CREATE}: nothing was created")));
        };
        let init = Process::new(String::new(), stdio);
        if let Some(made) = made {
            // A fresh cell takes its first value.
            let _ = init.pidfd.set(made);
        }
        *init.child.borrow_mut() = self.child;
        *init.io.borrow_mut() = self.io;
        let private_pids = self
            .spec
            .linux
            .namespaces
            .iter()
            .any(|ns| ns.kind == "pid" && ns.path.is_empty());
        Ok(Rc::new(Container {
            id: self.id,
            bundle: self.bundle,
            options: self.options,
            cgroup,
            binary: self.binary,
            private_pids,
            init: Rc::new(init),
            execs: RefCell::default(),
            init_gone: Default::default(),
            live_execs: Default::default(),
            exec_ended: Default::default(),
            oom: oom::Seen::default(),
            oom_watch: RefCell::default(),
            pipes: Cell::new(self.pipes),
            pending: RefCell::new(self.pending),
            restored: Cell::default(),
        }))
    }
}

/// rows, columns
pub(crate) fn console_size(process: Option<&corten_oci::Process>) -> (u16, u16) {
    let size = process.and_then(|p| p.console_size.as_ref());
    let cut = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
    size.map_or((0, 0), |s| (cut(s.height), cut(s.width)))
}

async fn run_create_hooks(
    shim: &Shim,
    spec: &Spec,
    id: &str,
    bundle: &Path,
    child: &Child,
) -> Result<()> {
    let subject = Subject {
        spec,
        id,
        bundle,
        pid: child.pidfd.pid(),
        status: "creating",
    };
    let reaper = &shim.reaper;
    let outside = [
        ("prestart", &spec.hooks.prestart),
        ("createRuntime", &spec.hooks.create_runtime),
    ];
    for (name, list) in outside {
        hooks::run(reaper, subject, name, list, Place::Runtime).await?;
    }
    let last = &spec.hooks.create_container;
    let place = Place::Namespaces(child.pidfd.as_fd());
    hooks::run(reaper, subject, "createContainer", last, place).await
}
