//! Tasks: running containers, each served by a shim (containerd: core/runtime).

use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;

use crate::error::Result;
use crate::protos::containerd::types::RuntimeInfo;
use crate::protos::containerd::v1::types::Status;
use crate::{Any, Descriptor, Mount, Namespace};

/// Standard streams of a process: FIFO paths or URIs; empty = none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stdio {
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
    pub terminal: bool,
}

/// Everything a task is made from.
#[derive(Debug, Clone, Default)]
pub struct CreateOptions {
    /// The OCI spec: Any whose value is config.json, verbatim.
    pub spec: Option<Any>,
    pub rootfs: Vec<Mount>,
    pub stdio: Stdio,
    /// Directory of an unpacked checkpoint; empty = none.
    pub checkpoint: String,
    /// `io.containerd.runc.v2`, an absolute path, …
    pub runtime: String,
    /// Options of the runtime (container record).
    pub runtime_options: Option<Any>,
    /// Options of this task (request); win over `runtime_options`.
    pub task_options: Option<Any>,
    /// Sandbox that the container joins; empty = none.
    pub sandbox_id: String,
    /// Address of a running task API (`ttrpc+unix://…`); empty = start a shim.
    pub address: String,
    /// Task API version at `address`.
    pub version: u32,
}

/// State of a process.
#[derive(Debug, Clone)]
pub struct State {
    pub status: Status,
    pub pid: u32,
    pub exit_status: u32,
    pub exited_at: Option<SystemTime>,
    pub stdio: Stdio,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    pub pid: u32,
    pub status: u32,
    pub at: SystemTime,
}

/// A process in a container's cgroup.
#[derive(Debug, Clone)]
pub struct ProcessInfo {
    pub pid: u32,
    /// `containerd.runc.v1.ProcessDetails` of exec processes.
    pub info: Option<Any>,
}

/// Arguments of [`Task::exec`].
#[derive(Debug, Clone, Default)]
pub struct ExecOptions {
    pub exec_id: String,
    /// OCI Process: Any whose value is JSON.
    pub spec: Option<Any>,
    pub stdio: Stdio,
}

/// A task. `exec_id` is empty for the init process.
#[async_trait]
pub trait Task: Send + Sync {
    fn id(&self) -> &str;
    fn namespace(&self) -> &Namespace;
    /// Pid of init.
    fn pid(&self) -> u32;
    async fn state(&self, exec_id: &str) -> Result<State>;
    /// Returns the pid.
    async fn start(&self, exec_id: &str) -> Result<u32>;
    async fn kill(&self, exec_id: &str, signal: u32, all: bool) -> Result<()>;
    async fn exec(&self, options: ExecOptions) -> Result<()>;
    async fn wait(&self, exec_id: &str) -> Result<Exit>;
    async fn delete_exec(&self, exec_id: &str) -> Result<Exit>;
    async fn pids(&self) -> Result<Vec<ProcessInfo>>;
    async fn pause(&self) -> Result<()>;
    async fn resume(&self) -> Result<()>;
    async fn resize_pty(&self, exec_id: &str, width: u32, height: u32) -> Result<()>;
    async fn close_io(&self, exec_id: &str, stdin: bool) -> Result<()>;
    async fn checkpoint(&self, path: &str, options: Option<Any>) -> Result<()>;
    async fn update(
        &self,
        resources: Option<Any>,
        annotations: std::collections::BTreeMap<String, String>,
    ) -> Result<()>;
    /// `io.containerd.cgroups.v1.Metrics` or v2.
    async fn stats(&self) -> Result<Option<Any>>;

    /// Opens the log file of a process whose stdout is `cri-log://` again, by its name.
    ///
    /// # Errors
    /// NotImplemented: the shim writes no logs. NotFound: the process writes none.
    async fn reopen_log(&self, exec_id: &str) -> Result<()>;
    /// Copies the output of such a process, from now on, to FIFOs that their reader has opened; empty for none.
    ///
    /// # Errors
    /// As [`Task::reopen_log`].
    async fn attach(&self, exec_id: &str, stdout: &str, stderr: &str) -> Result<()>;
}

/// The runtime manager.
#[async_trait]
pub trait Tasks: Send + Sync {
    /// AlreadyExists; NotFound for a runtime that is not installed.
    async fn create(
        &self,
        ns: &Namespace,
        id: &str,
        options: CreateOptions,
    ) -> Result<Arc<dyn Task>>;
    /// NotFound.
    async fn get(&self, ns: &Namespace, id: &str) -> Result<Arc<dyn Task>>;
    async fn list(&self, ns: &Namespace) -> Result<Vec<Arc<dyn Task>>>;
    /// Deletes a stopped task, its shim and its bundle. FailedPrecondition while it runs.
    async fn delete(&self, ns: &Namespace, id: &str) -> Result<Exit>;
    /// Runs the runtime's `-info`.
    async fn info(&self, runtime: &str, options: Option<Any>) -> Result<RuntimeInfo>;
}

/// A checkpoint as it is stored: images and config.
#[derive(Debug, Clone, Default)]
pub struct Checkpoint {
    pub descriptors: Vec<Descriptor>,
}
