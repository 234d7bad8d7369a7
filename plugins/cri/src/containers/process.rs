//! A process that is added to a running container, from Exec to Delete in its shim.
//!
//! Whoever asked may go away at any time: the process is then ended or left, and its record deleted, by the
//! background task that [`run`] is.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use corten_core::runtime::{ExecOptions, Exit, Task};
use corten_core::{Any, Context, Error, Kind, Result, duration};
use corten_protos::runtime::v1::ContainerState;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use tracing::{debug, warn};

use super::fifos::{Fifos, Wanted, folder};
use super::{signal, state};
use crate::cri::Cri;
use crate::logs::copier::Ends;
use crate::store::Container;
use crate::streaming::{Input, Output, Resize};

/// Type URL of an OCI process, as containerd's clients have it.
const PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
/// How long a process that was killed is waited for before whoever asked is answered.
const KILLED: Duration = Duration::from_secs(5);
/// How long the deletion of a process may take: its shim waits for those who hold its streams.
const DELETION: Duration = Duration::from_secs(60);
const PART: usize = 32 << 10;

/// A process to be added.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) args: Vec<String>,
    pub(super) wanted: Wanted,
    /// For how long it may run; then it is killed. So it is when nobody waits for it any more, which one without a
    /// limit and with a terminal hears of as of a terminal that is gone.
    pub(super) limit: Option<Duration>,
    /// Killed when nobody waits for it any more; otherwise a terminal hangs up.
    pub(super) owned: bool,
}

/// What becomes of the streams.
pub(super) struct Streams<O> {
    pub(super) stdin: Option<Input>,
    pub(super) stdout: O,
    pub(super) stderr: O,
    pub(super) resize: Resize,
}

/// The exit code, and who took the output.
pub(super) type Ended<O> = Result<(u32, O, O)>;

/// Takes one stream of output.
pub(super) trait Take: Send {
    /// Takes all of it.
    fn take_all(&mut self, from: Option<pipe::Receiver>) -> impl Future<Output = ()> + Send;
}

/// Keeps the first bytes, up to a limit; the rest is read and lost.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) bytes: Vec<u8>,
    limit: usize,
}

/// Carries bytes to a client while there is one.
pub(super) struct Carried(pub(super) Option<Output>);

/// A process that runs.
struct Process {
    task: Arc<dyn Task>,
    id: String,
    tty: bool,
    /// Removed with it.
    _fifos: Fifos,
}

/// How the attendance of a process ended.
enum End {
    Exited(u32),
    /// It ran for too long; whether it is known to be dead.
    TimedOut(bool),
    /// It exited, but others hold its streams.
    Held,
    /// Nobody wants to know.
    Left,
    /// Nobody can tell.
    Lost(Error),
}

/// Only as much of the specification as is wanted.
#[derive(Deserialize)]
struct OnlyProcess {
    process: serde_json::Map<String, serde_json::Value>,
}

/// Runs a process to its end and tells of it. The answer is sent when the process is deleted, or before that when
/// deleting may take its time; whoever drops the receiver leaves.
pub(super) async fn run<O: Take>(
    cri: Arc<Cri>,
    container: Arc<Container>,
    command: Command,
    mut streams: Streams<O>,
    mut tell: oneshot::Sender<Ended<O>>,
) {
    let (process, ends) = match cri.start_process(&container, &command).await {
        Ok(started) => started,
        Err(e) => {
            // Nobody there is fine.
            let _ = tell.send(Err(e));
            return;
        }
    };
    let drain = cri.runtime.drain_exec_sync_io_timeout;
    let end = process
        .attend(ends, &mut streams, &command, drain, &mut tell)
        .await;
    let Streams { stdout, stderr, .. } = streams;
    let id = process.id.clone();
    match end {
        End::Exited(code) => {
            process.delete().await;
            let _ = tell.send(Ok((code, stdout, stderr)));
        }
        End::Left => process.delete().await,
        End::TimedOut(dead) => {
            let limit = duration::text(command.limit.unwrap_or_default());
            let why = format!(
                "timeout {limit} exceeded: {}",
                Kind::DeadlineExceeded.words()
            );
            let _ = tell.send(Err(Error::new(Kind::DeadlineExceeded, why)));
            if !dead && let Err(error) = process.task.wait(&id).await {
                debug!(exec.id = %id, %error, "wait for a killed process");
            }
            process.delete().await;
        }
        End::Held => {
            let within = duration::text(drain);
            let why = format!(
                "failed to drain exec process {id:?} io: failed to drain exec process {id:?} io in {within} because io is still held by other processes"
            );
            let _ = tell.send(Err(Error::new(Kind::Unknown, why)));
            process.delete().await;
        }
        End::Lost(e) => {
            process.kill(signal::KILL).await;
            process.delete().await;
            let _ = tell.send(Err(
                e.context(format!("failed while waiting for exec {id:?}"))
            ));
        }
    }
}

impl Cri {
    /// The container of this id or prefix, if it runs.
    ///
    /// # Errors
    /// NotFound; of no class: it is in another state.
    pub(super) fn running(&self, id: &str) -> Result<Arc<Container>> {
        let container = self.containers.get(id)?;
        let now = container.state();
        if now != ContainerState::ContainerRunning {
            let why = format!("container is in {} state", state::name(now));
            return Err(Error::new(Kind::Unknown, why));
        }
        Ok(container)
    }

    async fn start_process(
        &self,
        container: &Container,
        command: &Command,
    ) -> Result<(Process, Ends)> {
        let task = self
            .tasks
            .get(&self.ns, &container.id)
            .await
            .context("failed to load task")?;
        let spec = self.process_spec(container, command).await?;
        let id = super::make_id();
        let dir = folder(&self.container_state(&container.id));
        let fifos = Fifos::make(&dir, &id, command.wanted)?;
        let ends = fifos.open()?;
        let options = ExecOptions {
            exec_id: id.clone(),
            spec: Some(spec),
            stdio: fifos.stdio(),
        };
        task.exec(options)
            .await
            .with_context(|| format!("failed to create exec {id:?}"))?;
        let process = Process {
            task,
            id,
            tty: command.wanted.tty,
            _fifos: fifos,
        };
        if let Err(e) = process.task.start(&process.id).await {
            process.delete().await;
            return Err(e.context(format!("failed to start exec {:?}", process.id)));
        }
        Ok((process, ends))
    }

    /// The container's own process with other arguments.
    async fn process_spec(&self, container: &Container, command: &Command) -> Result<Any> {
        let spec = self.record(&container.id).await?.spec.unwrap_or_default();
        let bad = |e: serde_json::Error| {
            Error::internal("read a container's specification").with_source(e)
        };
        let OnlyProcess { process } = serde_json::from_slice(&spec.value).map_err(bad)?;
        let process = with_command(process, command);
        Ok(Any {
            type_url: PROCESS.into(),
            value: serde_json::to_vec(&process).map_err(bad)?,
        })
    }
}

fn with_command(
    mut process: serde_json::Map<String, serde_json::Value>,
    command: &Command,
) -> serde_json::Map<String, serde_json::Value> {
    process.insert("args".into(), command.args.clone().into());
    process.remove("commandLine");
    process.remove("terminal");
    if command.wanted.tty {
        process.insert("terminal".into(), true.into());
        let env = process
            .entry("env")
            .or_insert_with(|| serde_json::Value::Array(Vec::new()));
        if let Some(env) = env.as_array_mut() {
            env.retain(|v| !v.as_str().is_some_and(|v| v.starts_with("TERM=")));
            env.push("TERM=xterm".into());
        }
    }
    process
}

/// Ends after a time, if there is one.
async fn after(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

// === impl Process ===

impl Process {
    /// Serves the streams until the process has exited and its output is taken.
    async fn attend<O: Take>(
        &self,
        ends: Ends,
        streams: &mut Streams<O>,
        command: &Command,
        drain: Duration,
        tell: &mut oneshot::Sender<Ended<O>>,
    ) -> End {
        let (stdin, resize) = (streams.stdin.take(), std::mem::take(&mut streams.resize));
        let mut aside = pin!(async {
            tokio::join!(self.feed(stdin, ends.stdin), self.resize(resize));
            std::future::pending::<()>().await;
        });
        let mut outputs = pin!(async {
            tokio::join!(
                streams.stdout.take_all(ends.stdout),
                streams.stderr.take_all(ends.stderr)
            );
        });
        let mut wait = pin!(self.task.wait(&self.id));
        let mut limit = pin!(after(command.limit));
        let (mut taken, mut left) = (false, false);
        let exit: Exit = loop {
            tokio::select! {
                biased;
                exit = &mut wait => match exit {
                    Ok(exit) => break exit,
                    Err(e) => return End::Lost(e),
                },
                () = &mut outputs, if !taken => taken = true,
                () = &mut limit => {
                    self.kill(signal::KILL).await;
                    let dead = tokio::time::timeout(KILLED, &mut wait).await.is_ok();
                    return End::TimedOut(dead);
                }
                () = tell.closed(), if !left => {
                    left = true;
                    if command.owned {
                        self.kill(signal::KILL).await;
                    } else if self.tty {
                        self.kill(signal::HANG_UP).await;
                    }
                }
                () = &mut aside => {}
            }
        };
        if !taken && !left {
            tokio::select! {
                () = &mut outputs => {}
                () = after(Some(drain).filter(|d| !d.is_zero())) => return End::Held,
                () = tell.closed() => left = true,
                () = &mut aside => {}
            }
        }
        if left {
            End::Left
        } else {
            End::Exited(exit.status)
        }
    }

    async fn feed(&self, from: Option<Input>, to: Option<pipe::Sender>) {
        let Some(mut to) = to else { return };
        if let Some(mut from) = from {
            // Either side's end is the end of input.
            let _ = tokio::io::copy(&mut from, &mut to).await;
        }
        drop(to);
        if let Err(error) = self.task.close_io(&self.id, true).await {
            debug!(exec.id = %self.id, %error, "close stdin");
        }
    }

    async fn resize(&self, mut sizes: Resize) {
        while let Some(size) = sizes.next().await {
            let (width, height) = (size.width.into(), size.height.into());
            if let Err(error) = self.task.resize_pty(&self.id, width, height).await {
                warn!(exec.id = %self.id, %error, "resize a terminal");
            }
        }
    }

    async fn kill(&self, signal: u32) {
        match self.task.kill(&self.id, signal, false).await {
            // It may have exited just now.
            Err(error) if error.kind() != Kind::NotFound => {
                warn!(exec.id = %self.id, %error, "kill a process");
            }
            _ => {}
        }
    }

    async fn delete(&self) {
        let deleted = tokio::time::timeout(DELETION, self.task.delete_exec(&self.id)).await;
        match deleted {
            Ok(Ok(_)) => {}
            Ok(Err(error)) if error.kind() == Kind::NotFound => {}
            Ok(Err(error)) => warn!(exec.id = %self.id, %error, "delete a process"),
            Err(_) => warn!(exec.id = %self.id, "deleting a process takes too long"),
        }
    }
}

// === impl Take ===

impl Kept {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            bytes: Vec::new(),
            limit,
        }
    }
}

impl Take for Kept {
    async fn take_all(&mut self, from: Option<pipe::Receiver>) {
        let Some(mut from) = from else { return };
        let mut part = vec![0; PART];
        while let Ok(n @ 1..) = from.read(&mut part).await {
            let room = self.limit.saturating_sub(self.bytes.len());
            let more = part.get(..n.min(room)).unwrap_or_default();
            self.bytes.extend_from_slice(more);
        }
    }
}

impl Take for Carried {
    async fn take_all(&mut self, from: Option<pipe::Receiver>) {
        let Some(mut from) = from else { return };
        let mut part = vec![0; PART];
        while let Ok(n @ 1..) = from.read(&mut part).await {
            // What comes when the client is gone is read and lost: the process is not held up.
            if let Some(to) = &mut self.0 {
                let bytes = part.get(..n).unwrap_or_default();
                if to.write_all(bytes).await.is_err() {
                    self.0 = None;
                }
            }
        }
        // The end of the stream.
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn command(args: &[&str], tty: bool) -> Command {
        Command {
            args: args.iter().map(|a| (*a).to_owned()).collect(),
            wanted: Wanted {
                tty,
                stdin: false,
                stdout: true,
                stderr: true,
            },
            limit: None,
            owned: true,
        }
    }

    #[test]
    fn a_process_is_the_containers_with_other_arguments() {
        let check = |process: serde_json::Value, tty, want: serde_json::Value| {
            let process = process.as_object().unwrap().clone();
            let got = with_command(process, &command(&["a", "b"], tty));
            assert_eq!(serde_json::Value::from(got), want);
        };
        check(
            json!({"args": ["x"], "terminal": true, "cwd": "/", "commandLine": "x", "env": ["TERM=vt", "A=b"]}),
            false,
            json!({"args": ["a", "b"], "cwd": "/", "env": ["TERM=vt", "A=b"]}),
        );
        check(
            json!({"args": ["x"], "cwd": "/", "env": ["TERM=vt", "A=b"]}),
            true,
            json!({"args": ["a", "b"], "cwd": "/", "terminal": true, "env": ["A=b", "TERM=xterm"]}),
        );
        check(
            json!({"cwd": "/"}),
            true,
            json!({"args": ["a", "b"], "cwd": "/", "terminal": true, "env": ["TERM=xterm"]}),
        );
    }

    #[tokio::test]
    async fn output_is_kept_up_to_its_limit_exactly() {
        for (length, want) in [(9, 9), (10, 10), (11, 10), (100_000, 10)] {
            let (mut writer, reader) = pipe::pipe().unwrap();
            let mut kept = Kept::new(10);
            let write = async {
                writer.write_all(&vec![b'x'; length]).await.unwrap();
                drop(writer);
            };
            tokio::join!(kept.take_all(Some(reader)), write);
            assert_eq!(kept.bytes.len(), want, "{length}");
        }
    }

    #[tokio::test]
    async fn output_goes_on_when_its_client_is_gone() {
        let (mut writer, reader) = pipe::pipe().unwrap();
        let (client, wire) = tokio::io::duplex(16);
        let mut carried = Carried(Some(Box::new(client)));
        let write = async {
            writer.write_all(b"to nobody").await.unwrap();
            drop(wire);
            writer.write_all(&[b'x'; 200_000]).await.unwrap();
            drop(writer);
        };
        tokio::join!(carried.take_all(Some(reader)), write);
        assert!(carried.0.is_none());
    }
}
