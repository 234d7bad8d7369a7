//! Owns `containerd.task.v2.Task` and `containerd.task.v3.Task`, whose messages are equal: one fn per RPC.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::rc::Rc;

use corten_protos::any;
use corten_protos::containerd::events::{TaskPaused, TaskResumed};
use corten_protos::containerd::runc::v1::{CheckpointOptions, ProcessDetails};
use corten_protos::containerd::task::v3::{
    CheckpointTaskRequest, CloseIoRequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, ExecProcessRequest, KillRequest,
    PauseRequest, PidsRequest, PidsResponse, ResizePtyRequest, ResumeRequest, ShutdownRequest,
    StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest, StatsResponse,
    UpdateTaskRequest, WaitRequest, WaitResponse,
};
use corten_protos::containerd::v1::types::ProcessInfo;
use corten_protos::google::protobuf::Empty;

use super::{decode, encode};
use crate::criu;
use crate::error::{Context, Error, Result};
use crate::stats;
use crate::task::process::{SIGKILL, finished};
use crate::task::state::{Move, Need, State};
use crate::task::{Container, Shim, exec, init};

/// The one call that does nothing but wait.
pub(super) const WAIT: &str = "Wait";

/// SIGRTMAX
const MAX_SIGNAL: i32 = 64;

/// All methods of the service.
pub(super) const METHODS: &[&str] = &[
    "State",
    "Create",
    "Start",
    "Delete",
    "Pids",
    "Pause",
    "Resume",
    "Checkpoint",
    "Kill",
    "Exec",
    "ResizePty",
    "CloseIO",
    "Update",
    WAIT,
    "Stats",
    "Connect",
    "Shutdown",
];

/// Decodes, serves, encodes.
pub(super) async fn call(shim: &Rc<Shim>, method: &str, payload: &[u8]) -> Result<Vec<u8>> {
    match method {
        "State" => encode(state(shim, decode(payload)?)?),
        "Create" => encode(create(shim, decode(payload)?).await?),
        "Start" => encode(start(shim, decode(payload)?).await?),
        "Delete" => encode(delete(shim, decode(payload)?).await?),
        "Pids" => encode(pids(shim, decode(payload)?).await?),
        "Pause" => encode(pause(shim, decode(payload)?).await?),
        "Resume" => encode(resume(shim, decode(payload)?).await?),
        "Checkpoint" => encode(checkpoint(shim, decode(payload)?).await?),
        "Kill" => encode(kill(shim, decode(payload)?).await?),
        "Exec" => encode(exec(shim, &decode(payload)?).await?),
        "ResizePty" => encode(resize_pty(shim, &decode(payload)?)?),
        "CloseIO" => encode(close_io(shim, &decode(payload)?)?),
        "Update" => encode(update(shim, decode(payload)?).await?),
        WAIT => encode(wait(shim, decode(payload)?).await?),
        "Stats" => encode(stats(shim, &decode(payload)?)?),
        "Connect" => encode(connect(shim, &decode(payload)?)?),
        "Shutdown" => encode(shutdown(shim, decode(payload)?)?),
        other => Err(Error::unimplemented(format!("method {other}"))),
    }
}

fn state(shim: &Shim, r: StateRequest) -> Result<StateResponse> {
    let (container, process) = shim.process(&r.id, &r.exec_id)?;
    let exit = process.exit();
    let stdio = &process.stdio;
    Ok(StateResponse {
        id: if r.exec_id.is_empty() {
            container.id.clone()
        } else {
            r.exec_id.clone()
        },
        bundle: container.bundle.to_string_lossy().into_owned(),
        pid: process.pid(),
        status: container.shown_state(&process).status().into(),
        stdin: stdio.stdin.clone(),
        stdout: stdio.stdout.clone(),
        stderr: stdio.stderr.clone(),
        terminal: stdio.terminal,
        exit_status: exit.map_or(0, |e| e.status),
        // containerd sends Go's zero time of a process that still lives.
        exited_at: Some(exit.map_or(corten_protos::time::GO_ZERO, |e| e.at)),
        exec_id: r.exec_id,
    })
}

async fn create(shim: &Rc<Shim>, r: CreateTaskRequest) -> Result<CreateTaskResponse> {
    // Boxed, or every small call would be as large as this one.
    let pid = Box::pin(init::create(shim, r)).await?;
    Ok(CreateTaskResponse { pid })
}

async fn start(shim: &Rc<Shim>, r: StartRequest) -> Result<StartResponse> {
    let (container, process) = shim.process(&r.id, &r.exec_id)?;
    let pid = if r.exec_id.is_empty() {
        init::start(shim, &container).await?
    } else {
        exec::start(shim, &container, &process).await?
    };
    Ok(StartResponse { pid })
}

async fn delete(shim: &Rc<Shim>, r: DeleteRequest) -> Result<DeleteResponse> {
    if r.exec_id.is_empty() {
        shim.cancel_create(&r.id).await;
    }
    let (container, process) = shim.process(&r.id, &r.exec_id)?;
    let exit = if r.exec_id.is_empty() {
        init::delete(shim, &container).await?
    } else {
        exec::delete(&container, &process).await?
    };
    Ok(DeleteResponse {
        pid: exit.pid,
        exit_status: exit.status,
        exited_at: Some(exit.at),
    })
}

async fn pids(shim: &Shim, r: PidsRequest) -> Result<PidsResponse> {
    let container = shim.container(&r.id)?;
    let pids = container.pids().await?;
    let execs = container.execs.borrow();
    let info = |pid: u32| {
        execs.values().find(|e| e.pid() == pid).map(|e| {
            any::pack(&ProcessDetails {
                exec_id: e.exec_id.clone(),
            })
        })
    };
    Ok(PidsResponse {
        processes: pids
            .into_iter()
            .filter_map(|pid| u32::try_from(pid).ok())
            .map(|pid| ProcessInfo {
                pid,
                info: info(pid),
            })
            .collect(),
    })
}

async fn pause(shim: &Shim, r: PauseRequest) -> Result<Empty> {
    let container = shim.container(&r.id)?;
    let _order = container.init.order.lock().await;
    container.init.state.get().transition(Move::Pause)?;
    container.freeze().await?;
    container.init.advance(Move::Pause)?;
    shim.events.publish(&TaskPaused { container_id: r.id });
    Ok(Empty {})
}

async fn resume(shim: &Shim, r: ResumeRequest) -> Result<Empty> {
    let container = shim.container(&r.id)?;
    let _order = container.init.order.lock().await;
    container.init.state.get().transition(Move::Resume)?;
    container.thaw().await?;
    container.init.advance(Move::Resume)?;
    shim.events.publish(&TaskResumed { container_id: r.id });
    Ok(Empty {})
}

async fn checkpoint(shim: &Shim, r: CheckpointTaskRequest) -> Result<Empty> {
    let container = shim.container(&r.id)?;
    let options = r.options.as_ref().filter(|any| !any.type_url.is_empty());
    let options: CheckpointOptions = options
        .map(any::unpack)
        .transpose()
        .map_err(|e| Error::invalid(e.to_string()))?
        .unwrap_or_default();
    // An exit that it brings is told afterwards.
    let _order = container.init.order.lock().await;
    container.init.state.get().allow(Need::Checkpoint)?;
    let images = PathBuf::from(r.path);
    // Boxed, or every small call would be as large as this one.
    let saved = Box::pin(criu::checkpoint(shim, &container, &images, &options));
    saved.await.map(|()| Empty {})
}

async fn kill(shim: &Shim, r: KillRequest) -> Result<Empty> {
    let (container, process) = shim.process(&r.id, &r.exec_id)?;
    let signal = i32::try_from(r.signal)
        .ok()
        .filter(|signal| (0..=MAX_SIGNAL).contains(signal))
        .ok_or_else(|| Error::invalid(format!("invalid signal {}", r.signal)))?;
    let is_init = r.exec_id.is_empty();
    if is_init && !process.state.get().is_alive() {
        return Err(finished());
    }
    // Nobody else kills the others when init's death does not.
    if let Some(binary) = container.binary.as_ref().filter(|_| is_init) {
        // The probe tells a process that has just ended from a runtime that fails.
        process.signal(0)?;
        if let Err(e) = binary.kill(signal, r.all).await {
            process.signal(0)?;
            return Err(e);
        }
        if signal == SIGKILL && process.state.get() == State::Paused {
            // Best effort: not every runtime leaves that to its caller.
            let _ = container.cgroup.thaw();
        }
        return Ok(Empty {});
    }
    let everyone = is_init && (r.all || (signal == SIGKILL && !container.private_pids));
    if everyone {
        match signal {
            SIGKILL => container.cgroup.kill()?,
            other => signal_all(&container, other)?,
        }
    } else {
        process.signal(signal)?;
    }
    if is_init && signal == SIGKILL && process.state.get() == State::Paused {
        // A process frozen by cgroup v1 dies when it thaws.
        container.cgroup.thaw()?;
    }
    Ok(Empty {})
}

/// Any signal to everything in the container, real-time ones and 0 too. A pidfd that is checked to be still of the
/// container cannot hit whoever got the number since.
fn signal_all(container: &Container, signal: i32) -> Result<()> {
    let pids = container.cgroup.pids()?;
    let opened: Vec<_> = pids
        .into_iter()
        .filter_map(|pid| {
            let pidfd = rustix::process::pidfd_open(
                rustix::process::Pid::from_raw(pid)?,
                rustix::process::PidfdFlags::empty(),
            );
            Some((pid, pidfd.ok()?))
        })
        .collect();
    let still = container.cgroup.pids()?;
    for (_, pidfd) in opened.iter().filter(|(pid, _)| still.contains(pid)) {
        match corten_launch::signal(pidfd.as_fd(), signal) {
            Err(e) if e.raw_os_error() != Some(rustix::io::Errno::SRCH.raw_os_error()) => {
                return Err(e).context("signal the container's processes");
            }
            _ => {}
        }
    }
    Ok(())
}

async fn exec(shim: &Shim, r: &ExecProcessRequest) -> Result<Empty> {
    shim.events.room().await;
    let container = shim.container(&r.id)?;
    exec::add(shim, &container, r)?;
    Ok(Empty {})
}

fn resize_pty(shim: &Shim, r: &ResizePtyRequest) -> Result<Empty> {
    let (_, process) = shim.process(&r.id, &r.exec_id)?;
    let is_exec = !r.exec_id.is_empty();
    if is_exec && !process.state.get().is_alive() {
        return Err(Error::unknown("cannot resize a stopped container"));
    }
    let io = process.io.borrow().clone();
    let cut = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
    match io {
        Some(io) => io.resize(cut(r.height), cut(r.width)).map(|()| Empty {}),
        None => Ok(Empty {}),
    }
}

fn close_io(shim: &Shim, r: &CloseIoRequest) -> Result<Empty> {
    let (_, process) = shim.process(&r.id, &r.exec_id)?;
    if r.stdin {
        process.stdin_closed.set(true);
        if let Some(io) = process.io.borrow().as_ref() {
            io.close_stdin();
        }
    }
    Ok(Empty {})
}

async fn update(shim: &Shim, r: UpdateTaskRequest) -> Result<Empty> {
    let container = shim.container(&r.id)?;
    container.init.state.get().allow(Need::Update)?;
    let resources = r.resources.unwrap_or_default();
    container.limit(&resources.value).await?;
    Ok(Empty {})
}

async fn wait(shim: &Shim, r: WaitRequest) -> Result<WaitResponse> {
    let (_, process) = shim.process(&r.id, &r.exec_id)?;
    let exit = process.wait().await?;
    Ok(WaitResponse {
        exit_status: exit.status,
        exited_at: Some(exit.at),
    })
}

fn stats(shim: &Shim, r: &StatsRequest) -> Result<StatsResponse> {
    let container = shim.container(&r.id)?;
    let stats = container.cgroup.stats()?;
    Ok(StatsResponse {
        stats: Some(stats::metrics(&stats)),
    })
}

/// Answers for ids it does not know, too: the caller learns the shim's pid.
fn connect(shim: &Shim, r: &ConnectRequest) -> Result<ConnectResponse> {
    let holder = || {
        shim.sandbox()
            .filter(|s| s.id == r.id)
            .map_or(0, |s| s.pid())
    };
    let task_pid = shim
        .container(&r.id)
        .map_or_else(|_| holder(), |c| c.init.pid());
    Ok(ConnectResponse {
        shim_pid: std::process::id(),
        task_pid,
        version: String::new(),
    })
}

/// containerd 2.4 calls it after every Delete and 2.4's shim ignores `now`: the last container decides, or the sandbox.
fn shutdown(shim: &Shim, _: ShutdownRequest) -> Result<Empty> {
    shim.shutdown();
    Ok(Empty {})
}
