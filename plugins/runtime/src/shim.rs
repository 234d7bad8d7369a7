//! One container's shim as the daemon holds it: bundle, connection, and what is known of its end.
//!
//! ```text
//! starting --add--> serving --Delete+Shutdown--> closed on purpose (no events: the shim told)
//!                      \--connection lost--> dead: `delete` binary, TaskExit + TaskDelete once
//! starting --failure--> abandoned (torn down by its creator, no events)
//! ```
//! Nothing of a container's state is cached here except its pid and its exit: the shim's answer is the truth.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::time::SystemTime;

use async_trait::async_trait;
use corten_core::runtime::{ExecOptions, Exit, ProcessInfo, State, Stdio, Task};
use corten_core::{Any, Context as _, Error, Kind, Namespace, Result, Timestamp, id};
use corten_protos::containerd::runtime::bootstrap::v1::BootstrapResult;
use corten_protos::containerd::task::v3;
use corten_protos::containerd::v1::types::Status;
use corten_protos::corten::pod::v1::{AttachRequest, ReopenLogRequest};
use corten_protos::time::is_unset;
use corten_protos::ttrpc::runtime::Context;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::bootstrap::NEWEST;
use crate::bundle::Bundle;
use crate::client::Tasks;
use crate::connection::{CallError, Connection};
use crate::manager::Timeouts;
use crate::task::Role;

/// A connected shim.
#[derive(Debug)]
pub(crate) struct Shim {
    pub(crate) role: Role,
    pub(crate) bundle: Bundle,
    pub(crate) binary: PathBuf,
    pub(crate) bootstrap: BootstrapResult,
    pub(crate) connection: Connection,
    /// Task API in use; lowered once when the shim turns out not to have the newest.
    version: AtomicI32,
    pid: AtomicU32,
    /// Answer of a successful Delete: a retry returns it, and nobody else reports this exit again.
    deleted: Mutex<Option<Exit>>,
    /// Whether the container was made, so that its end is news.
    announced: AtomicBool,
    /// Whoever set this takes care of what the connection's end means.
    released: AtomicBool,
    /// Set when the end was dealt with: the exit that was reported, if one was.
    end: watch::Sender<Option<Option<Exit>>>,
    timeouts: Timeouts,
}

// === impl Shim ===

impl Shim {
    pub(crate) fn new(
        role: Role,
        bundle: Bundle,
        binary: PathBuf,
        bootstrap: BootstrapResult,
        connection: Connection,
        timeouts: Timeouts,
    ) -> Self {
        Self {
            role,
            version: AtomicI32::new(bootstrap.version),
            bundle,
            binary,
            bootstrap,
            connection,
            pid: AtomicU32::new(0),
            deleted: Mutex::new(None),
            announced: AtomicBool::new(false),
            released: AtomicBool::new(false),
            end: watch::channel(None).0,
            timeouts,
        }
    }

    /// One call within `patience`.
    async fn within<T, F>(
        &self,
        patience: Option<std::time::Duration>,
        call: impl FnOnce(Tasks, Context) -> F,
    ) -> Result<T, CallError>
    where
        F: Future<Output = ttrpc::Result<T>>,
    {
        let client = self.connection.task(self.version.load(Ordering::Relaxed));
        self.connection.call(patience, |cx| call(client, cx)).await
    }

    /// One call as long as it takes.
    async fn call<T, F>(&self, call: impl FnOnce(Tasks, Context) -> F) -> Result<T, CallError>
    where
        F: Future<Output = ttrpc::Result<T>>,
    {
        self.within(None, call).await
    }

    /// A second try with the older API when the shim does not know the newer one: shims of 1.7 can say version 3
    /// for a pod whose running shim speaks version 2.
    async fn downgrading<T, F, R>(&self, attempt: F) -> Result<T, CallError>
    where
        F: Fn() -> R,
        R: Future<Output = Result<T, CallError>>,
    {
        let first = attempt().await;
        let refused = first.as_ref().is_err_and(|e| e.is(Kind::NotImplemented));
        let newest = self.version.load(Ordering::Relaxed) >= NEWEST;
        if !refused || !newest || !self.connection.may_be_older() {
            return first;
        }
        tracing::warn!(container.id = %self.bundle.id, "downgrading the task API of a shim");
        self.version.store(NEWEST - 1, Ordering::Relaxed);
        attempt().await
    }

    /// Makes the container in the shim.
    pub(crate) async fn create(&self, request: v3::CreateTaskRequest) -> Result<u32, CallError> {
        let answer = self
            .downgrading(|| {
                self.call(|c, cx| {
                    let request = request.clone();
                    async move { c.create(cx, &request).await }
                })
            })
            .await?;
        self.pid.store(answer.pid, Ordering::Relaxed);
        self.announce();
        Ok(answer.pid)
    }

    /// The container exists from here on.
    pub(crate) fn announce(&self) {
        self.announced.store(true, Ordering::Release);
    }

    pub(crate) fn is_announced(&self) -> bool {
        self.announced.load(Ordering::Acquire)
    }

    /// Asks whether the shim is there, and for the pid of init.
    pub(crate) async fn connect(&self) -> Result<(), CallError> {
        let request = v3::ConnectRequest {
            id: self.bundle.id.clone(),
        };
        let answer = self
            .downgrading(|| {
                self.call(|c, cx| {
                    let request = request.clone();
                    async move { c.connect(cx, &request).await }
                })
            })
            .await?;
        self.pid.store(answer.task_pid, Ordering::Relaxed);
        Ok(())
    }

    /// For a shim that could not be asked: the pid that it once wrote down.
    pub(crate) fn assume_pid(&self, pid: u32) {
        self.pid.store(pid, Ordering::Relaxed);
    }

    /// All processes of the container.
    pub(crate) async fn processes(&self) -> Result<Vec<ProcessInfo>, CallError> {
        let request = v3::PidsRequest {
            id: self.bundle.id.clone(),
        };
        let answer = self
            .call(|c, cx| async move { c.pids(cx, &request).await })
            .await?;
        let info = |p: corten_protos::containerd::v1::types::ProcessInfo| ProcessInfo {
            pid: p.pid,
            info: p.info,
        };
        Ok(answer.processes.into_iter().map(info).collect())
    }

    /// Deletes init in the shim and remembers the answer.
    pub(crate) async fn delete_init(
        &self,
        patience: Option<std::time::Duration>,
    ) -> Result<Exit, CallError> {
        let request = v3::DeleteRequest {
            id: self.bundle.id.clone(),
            ..Default::default()
        };
        let call = self.within(
            patience,
            |c, cx| async move { c.delete(cx, &request).await },
        );
        let exit = exit_of(call.await?);
        *self.deleted.lock() = Some(exit);
        Ok(exit)
    }

    /// `ttrpc+unix:///…` and the API version, for a client that wants to talk to the shim itself.
    pub(crate) fn endpoint(&self) -> (String, u32) {
        let b = &self.bootstrap;
        let address = format!("{}+{}", b.protocol, b.address);
        (address, u32::try_from(b.version).unwrap_or_default())
    }

    /// Whether nobody can reach it any more: ours unlinks its socket before it answers the call that ends it.
    pub(crate) async fn socket_is_gone(&self) -> bool {
        let Some(path) = self.bootstrap.address.strip_prefix("unix://") else {
            return false;
        };
        tokio::fs::symlink_metadata(path)
            .await
            .is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound)
    }

    /// How long each step of its end may take.
    pub(crate) fn patience_to_end(&self) -> std::time::Duration {
        self.timeouts.cleanup
    }

    /// Tells the shim to go when it has nothing left to do. A connection that is lost by it is what was wanted.
    pub(crate) async fn shutdown(&self) -> Result<(), CallError> {
        let request = v3::ShutdownRequest {
            id: self.bundle.id.clone(),
            now: false,
        };
        let call = self.within(Some(self.timeouts.shutdown), |c, cx| async move {
            c.shutdown(cx, &request).await
        });
        match call.await {
            Ok(_) | Err(CallError::Lost) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// The exit that a Delete gave, if one succeeded.
    pub(crate) fn deleted(&self) -> Option<Exit> {
        *self.deleted.lock()
    }

    /// Claims the end of the connection; `false` when someone has it already.
    pub(crate) fn release(&self) -> bool {
        !self.released.swap(true, Ordering::AcqRel)
    }

    /// Says that the end was dealt with.
    pub(crate) fn set_end(&self, exit: Option<Exit>) {
        self.end.send_replace(Some(exit));
    }

    /// Waits until the end was dealt with.
    pub(crate) async fn end(&self) -> Option<Exit> {
        let mut end = self.end.subscribe();
        match end.wait_for(Option::is_some).await {
            Ok(exit) => exit.flatten(),
            Err(_) => None,
        }
    }

    fn stdio_request(&self, o: ExecOptions) -> v3::ExecProcessRequest {
        v3::ExecProcessRequest {
            id: self.bundle.id.clone(),
            exec_id: o.exec_id,
            terminal: o.stdio.terminal,
            stdin: o.stdio.stdin,
            stdout: o.stdio.stdout,
            stderr: o.stdio.stderr,
            spec: o.spec,
        }
    }
}

#[async_trait]
impl Task for Shim {
    fn id(&self) -> &str {
        &self.bundle.id
    }

    fn namespace(&self) -> &Namespace {
        &self.bundle.namespace
    }

    fn pid(&self) -> u32 {
        self.pid.load(Ordering::Relaxed)
    }

    async fn state(&self, exec_id: &str) -> Result<State> {
        let request = v3::StateRequest {
            id: self.bundle.id.clone(),
            exec_id: exec_id.to_owned(),
        };
        let call = self.within(Some(self.timeouts.state), |c, cx| async move {
            c.state(cx, &request).await
        });
        match call.await {
            Ok(s) => Ok(State {
                status: Status::try_from(s.status).unwrap_or(Status::Unknown),
                pid: s.pid,
                exit_status: s.exit_status,
                exited_at: system_time(s.exited_at),
                stdio: Stdio {
                    stdin: s.stdin,
                    stdout: s.stdout,
                    stderr: s.stderr,
                    terminal: s.terminal,
                },
            }),
            // containerd: a shim that is gone has no task.
            Err(CallError::Lost) => Err(Error::new(Kind::NotFound, Kind::NotFound.words())),
            Err(e) => Err(e.into()),
        }
    }

    async fn start(&self, exec_id: &str) -> Result<u32> {
        let request = v3::StartRequest {
            id: self.bundle.id.clone(),
            exec_id: exec_id.to_owned(),
        };
        let answer = self
            .call(|c, cx| async move { c.start(cx, &request).await })
            .await?;
        if exec_id.is_empty() && answer.pid != 0 {
            self.pid.store(answer.pid, Ordering::Relaxed);
        }
        Ok(answer.pid)
    }

    async fn kill(&self, exec_id: &str, signal: u32, all: bool) -> Result<()> {
        let request = v3::KillRequest {
            id: self.bundle.id.clone(),
            exec_id: exec_id.to_owned(),
            signal,
            // containerd: `all` means the container, and is not handed on with an exec id.
            all: all && exec_id.is_empty(),
        };
        let killed = self.call(|c, cx| async move { c.kill(cx, &request).await });
        match killed.await {
            Ok(_) => Ok(()),
            // What it had is being killed. Once that is told to everybody, there is nothing to kill, and the answer
            // does not depend on who was first.
            Err(CallError::Lost) => {
                self.end().await;
                Err(Error::new(Kind::NotFound, Kind::NotFound.words()))
            }
            Err(e) => Err(e.into()),
        }
    }

    async fn exec(&self, options: ExecOptions) -> Result<()> {
        id::validate(&options.exec_id)
            .with_context(|| format!("invalid exec id {}", options.exec_id))?;
        let request = self.stdio_request(options);
        self.call(|c, cx| async move { c.exec(cx, &request).await })
            .await?;
        Ok(())
    }

    async fn wait(&self, exec_id: &str) -> Result<Exit> {
        let request = v3::WaitRequest {
            id: self.bundle.id.clone(),
            exec_id: exec_id.to_owned(),
        };
        match self
            .call(|c, cx| async move { c.wait(cx, &request).await })
            .await
        {
            Ok(answer) => Ok(Exit {
                pid: if exec_id.is_empty() { self.pid() } else { 0 },
                status: answer.exit_status,
                at: system_time(answer.exited_at).unwrap_or_else(SystemTime::now),
            }),
            // The shim died, and what it had is being killed: its end is the end of every process of it.
            Err(CallError::Lost) => match self.end().await {
                Some(exit) => Ok(exit),
                None => Err(CallError::Lost.into()),
            },
            Err(e) => Err(e.into()),
        }
    }

    async fn delete_exec(&self, exec_id: &str) -> Result<Exit> {
        let request = v3::DeleteRequest {
            id: self.bundle.id.clone(),
            exec_id: exec_id.to_owned(),
        };
        let answer = self
            .call(|c, cx| async move { c.delete(cx, &request).await })
            .await?;
        Ok(exit_of(answer))
    }

    async fn pids(&self) -> Result<Vec<ProcessInfo>> {
        Ok(self.processes().await?)
    }

    async fn pause(&self) -> Result<()> {
        let request = v3::PauseRequest {
            id: self.bundle.id.clone(),
        };
        self.call(|c, cx| async move { c.pause(cx, &request).await })
            .await?;
        Ok(())
    }

    async fn resume(&self) -> Result<()> {
        let request = v3::ResumeRequest {
            id: self.bundle.id.clone(),
        };
        self.call(|c, cx| async move { c.resume(cx, &request).await })
            .await?;
        Ok(())
    }

    async fn resize_pty(&self, exec_id: &str, width: u32, height: u32) -> Result<()> {
        let request = v3::ResizePtyRequest {
            id: self.bundle.id.clone(),
            exec_id: exec_id.to_owned(),
            width,
            height,
        };
        self.call(|c, cx| async move { c.resize_pty(cx, &request).await })
            .await?;
        Ok(())
    }

    async fn close_io(&self, exec_id: &str, stdin: bool) -> Result<()> {
        let request = v3::CloseIoRequest {
            id: self.bundle.id.clone(),
            exec_id: exec_id.to_owned(),
            stdin,
        };
        self.call(|c, cx| async move { c.close_io(cx, &request).await })
            .await?;
        Ok(())
    }

    async fn checkpoint(&self, path: &str, options: Option<Any>) -> Result<()> {
        let request = v3::CheckpointTaskRequest {
            id: self.bundle.id.clone(),
            path: path.to_owned(),
            options,
        };
        self.call(|c, cx| async move { c.checkpoint(cx, &request).await })
            .await?;
        Ok(())
    }

    async fn update(
        &self,
        resources: Option<Any>,
        annotations: std::collections::BTreeMap<String, String>,
    ) -> Result<()> {
        let request = v3::UpdateTaskRequest {
            id: self.bundle.id.clone(),
            resources,
            annotations,
        };
        self.call(|c, cx| async move { c.update(cx, &request).await })
            .await?;
        Ok(())
    }

    async fn stats(&self) -> Result<Option<Any>> {
        let request = v3::StatsRequest {
            id: self.bundle.id.clone(),
        };
        let answer = self
            .call(|c, cx| async move { c.stats(cx, &request).await })
            .await?;
        Ok(answer.stats)
    }

    async fn reopen_log(&self, exec_id: &str) -> Result<()> {
        let request = ReopenLogRequest {
            container_id: self.bundle.id.clone(),
            exec_id: exec_id.to_owned(),
        };
        let pod = self.connection.pod();
        self.connection
            .call(None, |cx| async move { pod.reopen_log(cx, &request).await })
            .await?;
        Ok(())
    }

    async fn attach(&self, exec_id: &str, stdout: &str, stderr: &str) -> Result<()> {
        let request = AttachRequest {
            container_id: self.bundle.id.clone(),
            exec_id: exec_id.to_owned(),
            stdout: stdout.to_owned(),
            stderr: stderr.to_owned(),
        };
        let pod = self.connection.pod();
        self.connection
            .call(None, |cx| async move { pod.attach(cx, &request).await })
            .await?;
        Ok(())
    }
}

fn exit_of(answer: v3::DeleteResponse) -> Exit {
    Exit {
        pid: answer.pid,
        status: answer.exit_status,
        at: system_time(answer.exited_at).unwrap_or_else(SystemTime::now),
    }
}

/// A time that a shim told; `None` where Go's zero time stands for "not yet".
pub(crate) fn system_time(time: Option<Timestamp>) -> Option<SystemTime> {
    time.filter(|t| !is_unset(Some(t)))
        .and_then(|t| t.try_into().ok())
}
