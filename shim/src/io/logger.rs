//! Owns `binary://` loggers: a process that reads a container's output from descriptors 3 and 4.
//!
//! Protocol: argv is the query of the URI flattened in its own order (`k`, then the first value when there is one), the
//! environment is CONTAINER_ID and CONTAINER_NAMESPACE only, descriptor 5 is closed by the logger when it is ready
//! (`binary-v2`: it writes one byte instead). Create returns after that. At Delete it has a second to read the rest and
//! end by itself; then it gets SIGTERM and 12 s.

use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use corten_launch::{Exec, Op, Plan, cstr};
use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::Interest;
use tokio::task::{JoinHandle, spawn_local};

use crate::error::{Context, Error, Result};
use crate::log;
use crate::readiness::watch;
use crate::reaper::Pidfd;
use crate::task::Shim;
use crate::task::launch::Child;

const READY: Duration = Duration::from_secs(10);
const READ: Duration = Duration::from_secs(1);
const TERM: Duration = Duration::from_secs(12);
const SIGTERM: i32 = 15;
const SIGKILL: i32 = 9;
/// Above every number that the plan puts a descriptor on.
const ABOVE: i32 = 10;

/// A running logger. Its end is collected whenever it comes: a zombie that nobody collects hides strays from the sweep.
#[derive(Debug)]
pub(super) struct Logger {
    pidfd: Pidfd,
    ended: JoinHandle<()>,
}

/// The write ends that the container gets.
#[derive(Debug)]
pub(super) struct Pipes {
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
}

// === impl Logger ===

impl Logger {
    /// Starts the logger of `uri` (without its scheme) and waits until it is ready.
    pub(super) async fn start(
        shim: &Shim,
        id: &str,
        uri: &str,
        handshake: bool,
    ) -> Result<(Self, Pipes)> {
        let (out_read, stdout) = pipe_with(PipeFlags::CLOEXEC).context("create stdout pipes")?;
        let (err_read, stderr) = pipe_with(PipeFlags::CLOEXEC).context("create stderr pipes")?;
        let (ready, ready_write) = pipe_with(PipeFlags::CLOEXEC).context("create ready pipe")?;
        let environment = [
            format!("CONTAINER_ID={id}"),
            format!("CONTAINER_NAMESPACE={}", shim.namespace),
        ];
        let plan = plan(uri, &environment, [out_read, err_read, ready_write])?;
        let mut child = Child::spawn(&shim.reaper, &plan).context("start binary process")?;
        drop(plan);
        let begun = async {
            child.at_gate().await?;
            child.go().await?;
            tokio::time::timeout(READY, await_ready(ready, handshake))
                .await
                .unwrap_or_else(|_| Err(Error::unknown("logging binary is not ready in time")))
        };
        if let Err(e) = begun.await {
            child.destroy(&shim.reaper).await;
            return Err(e.context("start binary process"));
        }
        let pidfd = child.pidfd.clone();
        let (reaper, followed) = (shim.reaper.clone(), pidfd.clone());
        let ended = spawn_local(async move {
            // How it ended is nobody's business but its own.
            let _ = reaper.exit(&followed).await;
        });
        Ok((Self { pidfd, ended }, Pipes { stdout, stderr }))
    }

    /// Lets it end, asks it to, then insists. Nobody writes any more: one that reads to the end loses no line.
    pub(super) async fn stop(mut self) {
        if tokio::time::timeout(READ, &mut self.ended).await.is_ok() {
            return;
        }
        // Fails only when it is gone already.
        let _ = self.pidfd.signal(SIGTERM);
        if tokio::time::timeout(TERM, &mut self.ended).await.is_ok() {
            return;
        }
        log::warning!("the logger ignores SIGTERM: killed");
        let _ = self.pidfd.signal(SIGKILL);
        let _ = self.ended.await;
    }
}

/// Descriptors of `streams` become 3, 4 and 5.
fn plan(uri: &str, environment: &[String], streams: [OwnedFd; 3]) -> Result<Plan> {
    let argv = arguments(uri)?;
    let path = argv.first().cloned().unwrap_or_default();
    let mut plan = Plan::default();
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .context("open /dev/null")?;
    for (target, fd) in (3_u8..).zip(streams) {
        let fd = plan.give(rustix::io::fcntl_dupfd_cloexec(&fd, ABOVE)?);
        plan.push(Op::Stdio { fd, target }, "pass a pipe to the logger");
    }
    let null = plan.give(rustix::io::fcntl_dupfd_cloexec(&null, ABOVE)?);
    for target in 0..3 {
        plan.push(Op::Stdio { fd: null, target }, "open /dev/null");
    }
    plan.push(Op::SetSid, "setsid");
    plan.push(Op::Gate, "wait at the gate");
    plan.exec = Some(Exec {
        candidates: vec![cstr(&path)],
        name: path,
        argv: argv.iter().map(cstr).collect::<Vec<CString>>(),
        envp: environment.iter().map(cstr).collect(),
        ..Exec::default()
    });
    Ok(plan)
}

/// `/path?k=v&flag` as an argument vector.
fn arguments(uri: &str) -> Result<Vec<String>> {
    let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
    let mut argv = vec![unescape(path)?];
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        argv.push(unescape(&key.replace('+', " "))?);
        if !value.is_empty() {
            argv.push(unescape(&value.replace('+', " "))?);
        }
    }
    Ok(argv)
}

/// Undoes percent escapes.
pub(super) fn unescape(text: &str) -> Result<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        if first != b'%' {
            bytes.push(first);
            continue;
        }
        let escaped = tail
            .get(..2)
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        let byte = escaped.ok_or_else(|| {
            Error::invalid(format!(
                "unable to parse stdout uri: invalid escape in {text:?}"
            ))
        })?;
        bytes.push(byte);
        rest = tail.get(2..).unwrap_or_default();
    }
    String::from_utf8(bytes)
        .map_err(|_| Error::invalid(format!("unable to parse stdout uri {text:?}")))
}

/// Waits for the logger's sign. A logger that dies closes the pipe too: `binary` cannot tell, `binary-v2` can.
async fn await_ready(ready: OwnedFd, handshake: bool) -> Result<()> {
    rustix::fs::fcntl_setfl(&ready, OFlags::NONBLOCK)?;
    let ready = watch(ready, Interest::READABLE)?;
    let mut byte = [0; 1];
    loop {
        match rustix::io::read(ready.get_ref(), &mut byte) {
            Ok(0) if handshake => {
                return Err(Error::unknown(
                    "logging binary did not call ready (it may have crashed or exited prematurely)",
                ));
            }
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::AGAIN) => ready.readable().await?.clear_ready(),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(io::Error::from(e).into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_becomes_arguments_in_its_order() {
        let check = |uri: &str, want: &[&str]| assert_eq!(arguments(uri).unwrap(), want, "{uri}");
        check("/bin/log", &["/bin/log"]);
        check(
            "/bin/log?id=x&verbose&path=%2Ftmp%2Fa+b",
            &["/bin/log", "id", "x", "verbose", "path", "/tmp/a b"],
        );
        check(
            "/usr/bin/nerdctl?_NERDCTL_INTERNAL_LOGGING=%2Fvar",
            &["/usr/bin/nerdctl", "_NERDCTL_INTERNAL_LOGGING", "/var"],
        );
        assert!(arguments("/bin/log?x=%zz").is_err());
    }
}
