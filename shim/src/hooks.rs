//! Owns running OCI hooks: one after the other, each with its timeout, never blocking the shim.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use corten_launch::Exit;
use corten_oci::{Place, Spec, hooks as oci_hooks, spec::Hook};
use rustix::fs::OFlags;
use tokio::io::Interest;

use crate::engine::native;
use crate::error::{Context, Error, Result};
use crate::log;
use crate::readiness::watch;
use crate::reaper::Reaper;
use crate::task::launch::Child;

/// What of a hook's output is kept for the error text; the rest is read and dropped.
const MAX_OUTPUT: usize = 4096;

/// Whom a hook is told about.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub(crate) spec: &'a Spec,
    pub(crate) id: &'a str,
    pub(crate) bundle: &'a Path,
    /// 0 when there is no process any more.
    pub(crate) pid: i32,
    /// creating | created | running | stopped
    pub(crate) status: &'a str,
}

/// Runs a list; the first failure ends it.
pub(crate) async fn run(
    reaper: &Reaper,
    subject: Subject<'_>,
    name: &str,
    hooks: &[Hook],
    place: Place<'_>,
) -> Result<()> {
    let subject = match place {
        Place::Namespaces(_) | Place::Container { .. } if !hooks.is_empty() => Subject {
            pid: pid_inside(subject.pid),
            ..subject
        },
        _ => subject,
    };
    for (index, hook) in hooks.iter().enumerate() {
        run_one(reaper, subject, hook, place)
            .await
            .map_err(|e| e.context(format!("error running {name} hook #{index}")))?;
    }
    Ok(())
}

/// Runs the poststop hooks of a stopped container; failures are logged and do not stop the next one.
pub(crate) async fn poststop_with(reaper: &Reaper, spec: &Spec, id: &str, bundle: &Path) {
    let subject = Subject {
        spec,
        id,
        bundle,
        pid: 0,
        status: "stopped",
    };
    for (index, hook) in spec.hooks.poststop.iter().enumerate() {
        if let Err(e) = run_one(reaper, subject, hook, Place::Runtime).await {
            log::warning!("container {id}: error running poststop hook #{index}: {e}");
        }
    }
}

/// The same for the one-shot `delete` command.
pub(crate) async fn poststop(spec: &Spec, id: &str, bundle: &Path) {
    poststop_with(&Reaper::default(), spec, id, bundle).await;
}

async fn run_one(
    reaper: &Reaper,
    subject: Subject<'_>,
    hook: &Hook,
    place: Place<'_>,
) -> Result<()> {
    let state = oci_hooks::State {
        oci_version: &subject.spec.oci_version,
        id: subject.id,
        status: subject.status,
        pid: subject.pid,
        bundle: subject
            .bundle
            .to_str()
            .ok_or_else(|| Error::invalid("the bundle's path is not UTF-8"))?,
        annotations: &subject.spec.annotations,
    };
    let run = oci_hooks::prepare(hook, &state, place)?;
    let mut child = Child::spawn(reaper, &run.plan).context(format!("start {}", run.path))?;
    let pid = child.pidfd.pid();
    let confined = matches!(place, Place::Container { .. });
    match confined.then(|| native::agent(subject, pid)).transpose() {
        Ok(agent) => child.inform(agent.flatten()),
        Err(e) => {
            child.destroy(reaper).await;
            return Err(e);
        }
    }
    let (output, timeout) = (run.output, run.timeout);
    // The write ends of the pipes are the hook's alone from here on, or its output would never end.
    drop(run.plan);
    let work = async {
        child.at_gate().await?;
        child.go().await?;
        let (exit, text) = tokio::join!(reaper.exit(&child.pidfd), collect(output));
        judge(exit.context("wait for the hook")?, &text)
    };
    let outcome = match timeout {
        None => work.await,
        Some(limit) => tokio::time::timeout(limit, work)
            .await
            .unwrap_or_else(|_| Err(timed_out(limit))),
    };
    if outcome.is_err() {
        child.destroy(reaper).await;
    }
    outcome
}

/// The pid as the container sees it, which is what hooks of its namespaces are to be told.
fn pid_inside(pid: i32) -> i32 {
    std::fs::read_to_string(format!("/proc/{pid}/status"))
        .ok()
        .and_then(|status| {
            let line = status.lines().find_map(|l| l.strip_prefix("NSpid:"))?;
            line.split_whitespace().last()?.parse().ok()
        })
        .unwrap_or(pid)
}

fn timed_out(limit: Duration) -> Error {
    Error::unknown(format!("hook ran past specified timeout of {limit:?}"))
}

fn judge(exit: Exit, output: &str) -> Result<()> {
    match exit {
        Exit {
            code: 0,
            signal: None,
        } => Ok(()),
        Exit {
            signal: Some(signal),
            ..
        } => Err(Error::unknown(format!(
            "signal: {signal}, stdout: , stderr: {output}"
        ))),
        Exit { code, .. } => Err(Error::unknown(format!(
            "exit status {code}, stdout: , stderr: {output}"
        ))),
    }
}

/// Reads until the last writer is gone, keeping the beginning.
async fn collect(output: OwnedFd) -> String {
    let mut kept = Vec::new();
    let drained = async {
        rustix::fs::fcntl_setfl(&output, OFlags::NONBLOCK)?;
        let output = watch(output, Interest::READABLE)?;
        let mut buffer = [0; 1024];
        loop {
            match rustix::io::read(output.get_ref(), &mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => {
                    let room = MAX_OUTPUT.saturating_sub(kept.len());
                    kept.extend_from_slice(&buffer[..n.min(room)]);
                }
                Err(rustix::io::Errno::AGAIN) => output.readable().await?.clear_ready(),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(io::Error::from(e)),
            }
        }
    };
    if let Err(e) = drained.await {
        log::warning!("read a hook's output: {e}");
    }
    String::from_utf8_lossy(&kept).trim_end().to_owned()
}
