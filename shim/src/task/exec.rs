//! Owns the life of further processes of a container: add, start, delete.

use std::rc::Rc;

use corten_oci::{ExecParams, plan_exec};
use corten_protos::containerd::events::{TaskExecAdded, TaskExecStarted};
use corten_protos::containerd::task::v3::ExecProcessRequest;
use corten_protos::time;
use tokio::task::spawn_local;

use super::init::console_size;
use super::launch::Child;
use super::process::Process;
use super::state::{Move, Need};
use super::{Container, Shim, exit};
use crate::bundle::{self, Exit};
use crate::engine::native;
use crate::error::{Context, Error, Result};
use crate::hooks::Subject;
use crate::io::{self, Stdio};
use crate::log;

const EXEC: &str = "OCI runtime exec failed: exec failed";

/// Exec: registers a process; nothing runs yet.
pub(crate) fn add(shim: &Shim, container: &Container, request: &ExecProcessRequest) -> Result<()> {
    let id = &request.exec_id;
    if id.is_empty() || id.contains('/') {
        return Err(Error::invalid(format!("invalid exec id {id:?}")));
    }
    if container.execs.borrow().contains_key(id) {
        return Err(Error::exists(format!("id {id}")));
    }
    container.init.state.get().allow(Need::Exec)?;
    if container.pending.borrow().is_some() {
        return Err(Error::unknown("cannot exec in a created state"));
    }
    let spec = request.spec.as_ref().map_or(&[][..], |any| &any.value);
    let spec = corten_oci::Process::parse(spec)?;
    let process = Process::new(
        id.clone(),
        Stdio {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        },
    );
    *process.spec.borrow_mut() = Some(spec);
    container
        .execs
        .borrow_mut()
        .insert(id.clone(), Rc::new(process));
    shim.events.publish(&TaskExecAdded {
        container_id: container.id.clone(),
        exec_id: id.clone(),
    });
    Ok(())
}

/// Start of an exec.
pub(crate) async fn start(
    shim: &Rc<Shim>,
    container: &Rc<Container>,
    exec: &Rc<Process>,
) -> Result<u32> {
    let _order = exec.order.lock().await;
    if container.init_gone.get() {
        return Err(Error::precondition(format!(
            "container {} init process is not running",
            container.id
        )));
    }
    exec.state.get().transition(Move::Start)?;
    container.init.state.get().allow(Need::Exec)?;
    // Counted from here on, so that init's exit waits for this exec's.
    container.exec_started();
    match launch(shim, container, exec).await {
        Ok(()) => {}
        Err(e) => {
            // containerd tells no exit of an exec that never ran; whoever waits for it is let go.
            exec.set_exit(Exit {
                pid: 0,
                status: 255,
                at: time::now(),
            });
            container.exec_gone();
            return Err(e);
        }
    }
    exec.advance(Move::Start)?;
    let pid = exec.pid();
    shim.events.publish(&TaskExecStarted {
        container_id: container.id.clone(),
        exec_id: exec.exec_id.clone(),
        pid,
    });
    spawn_local(exit::watch_exec(
        shim.clone(),
        container.clone(),
        exec.clone(),
    ));
    Ok(pid)
}

/// Delete of an exec that was never started or has ended.
pub(crate) async fn delete(container: &Container, exec: &Process) -> Result<Exit> {
    let _order = exec.order.lock().await;
    exec.state.get().transition(Move::Delete)?;
    let io = exec.io.borrow().clone();
    if let Some(io) = io {
        io.drain().await;
        io.close().await;
    }
    exec.advance(Move::Delete)?;
    bundle::remove_pid(&container.bundle, &exec.exec_id);
    container.execs.borrow_mut().remove(&exec.exec_id);
    Ok(exec.exit().unwrap_or(Exit {
        pid: 0,
        status: 0,
        at: time::GO_ZERO,
    }))
}

async fn launch(shim: &Rc<Shim>, container: &Container, exec: &Process) -> Result<()> {
    let process = exec.spec.borrow_mut().take();
    let process = process.ok_or_else(|| Error::unknown("cannot start a stopped process"))?;
    let owner = (container.options.io_uid, container.options.io_gid);
    let size = console_size(Some(&process));
    let (streams, io) = io::open(shim, &container.id, &exec.stdio, owner, &size).await?;
    if exec.stdin_closed.get() {
        io.close_stdin();
    }
    *exec.io.borrow_mut() = Some(io.clone());
    let outcome = run(shim, container, exec, &process, streams, &io).await;
    if outcome.is_err() {
        io.close().await;
    }
    outcome.context(match container.binary {
        // Its own words go on: "exec failed: ..".
        Some(_) => "OCI runtime exec failed",
        None => EXEC,
    })
}

async fn run(
    shim: &Rc<Shim>,
    container: &Container,
    exec: &Process,
    process: &corten_oci::Process,
    streams: corten_oci::Stdio,
    io: &io::Io,
) -> Result<()> {
    let init = container
        .init
        .pidfd
        .get()
        .ok_or_else(|| Error::precondition("container must be created"))?;
    // Opening the streams took its time. While init is not collected its number is its own, and from here to the
    // clone nobody else runs.
    if container.init_gone.get() {
        return Err(Error::precondition(format!(
            "container {} init process is not running",
            container.id
        )));
    }
    if let Some(binary) = &container.binary {
        let made = binary.exec(&exec.exec_id, process, streams, io).await?;
        bundle::write_pid(&container.bundle, &exec.exec_id, made.pid())?;
        // A fresh cell takes its first value.
        let _ = exec.pidfd.set(made);
        return Ok(());
    }
    let mut spec = bundle::read_spec(&container.bundle)?;
    if container.restored.get() {
        spec.join_time_namespace();
    }
    let plan = plan_exec(
        &spec,
        process,
        ExecParams {
            id: &container.id,
            init_pid: init.pid(),
            init_pidfd: init.as_fd(),
            stdio: streams,
            cgroup: &container.cgroup,
            no_new_keyring: container.options.no_new_keyring,
            cache: shim.cache(&spec),
        },
    )?;
    for warning in &plan.warnings {
        log::warning!("exec {}: {warning}", exec.exec_id);
    }
    let mut child = Child::spawn(&shim.reaper, &plan.plan)?;
    drop(plan);
    let subject = Subject {
        spec: &spec,
        id: &container.id,
        bundle: &container.bundle,
        pid: init.pid(),
        status: "running",
    };
    match native::agent(subject, child.pidfd.pid()) {
        Ok(agent) => child.inform(agent),
        Err(e) => {
            child.destroy(&shim.reaper).await;
            return Err(e);
        }
    }
    drop(spec);
    let begun = match child.at_gate().await {
        Ok(()) => begin(container, exec, &mut child, io).await,
        Err(e) => Err(e),
    };
    match begun {
        Ok(()) => {
            // A fresh cell takes its first value.
            let _ = exec.pidfd.set(child.pidfd.clone());
            Ok(())
        }
        Err(e) => {
            child.destroy(&shim.reaper).await;
            Err(e)
        }
    }
}

async fn begin(
    container: &Container,
    exec: &Process,
    child: &mut Child,
    io: &io::Io,
) -> Result<()> {
    for warning in child.take_warnings() {
        log::warning!("exec {}: {warning}", exec.exec_id);
    }
    if let Some(console) = child.take_console() {
        io.attach_console(console)
            .context("failed to start console copy")?;
    }
    bundle::write_pid(&container.bundle, &exec.exec_id, child.pidfd.pid())?;
    child.go().await
}
