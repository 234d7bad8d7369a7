//! A container as a daemon sees it: a bundle, the connection to its shim, and the calls of the task API.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use corten_protos::any;
use corten_protos::containerd::task::v3::{
    ConnectRequest, ConnectResponse, CreateTaskRequest, DeleteRequest, DeleteResponse,
    ExecProcessRequest, KillRequest, PauseRequest, ResumeRequest, ShutdownRequest, StartRequest,
    StateRequest, StateResponse, WaitRequest,
};
use corten_protos::containerd::types::Mount;
use corten_protos::ttrpc::TaskClient;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::{Value, json};
use tokio::net::UnixStream;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;

use crate::host::{Host, shared_root, shown};

/// No call may take longer, apart from Wait.
const LIMIT: Duration = Duration::from_secs(40);

/// A container that is not made yet.
#[derive(Debug)]
pub(crate) struct Recipe {
    host: Arc<Host>,
    id: String,
    pub(crate) spec: Value,
    root: Vec<Mount>,
    socket_dir: Option<PathBuf>,
}

/// A container whose shim runs.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) host: Arc<Host>,
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) address: String,
    pub(crate) shim: Shim,
    root: Vec<Mount>,
    _log: File,
}

/// A connection to a shim.
#[derive(Clone)]
pub(crate) struct Shim {
    pub(crate) client: Client,
    pub(crate) task: TaskClient,
}

/// Where the standard streams go; nowhere by default.
#[derive(Clone, Debug, Default)]
pub(crate) struct Io {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) terminal: bool,
}

impl std::fmt::Debug for Shim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shim")
    }
}

/// A call's answer; one that never comes fails the test.
pub(crate) async fn within<T>(
    what: &str,
    call: impl Future<Output = ttrpc::Result<T>>,
) -> ttrpc::Result<T> {
    let outcome = tokio::time::timeout(LIMIT, call).await;
    outcome.unwrap_or_else(|_| panic!("{what}: no answer in {LIMIT:?}"))
}

pub(crate) fn context() -> ttrpc::context::Context {
    ttrpc::context::Context::default()
}

// === impl Recipe ===

impl Recipe {
    pub(crate) fn new(host: Arc<Host>, id: &str, spec: Value) -> Self {
        let work = host.base.join("w").join(id);
        let dir = |name: &str| work.join(name).display().to_string();
        let root = Mount {
            r#type: "overlay".to_owned(),
            source: "overlay".to_owned(),
            options: vec![
                format!("lowerdir={}", shared_root().display()),
                format!("upperdir={}", dir("upper")),
                format!("workdir={}", dir("work")),
            ],
            ..Mount::default()
        };
        Self {
            host,
            id: id.to_owned(),
            spec,
            root: vec![root],
            socket_dir: None,
        }
    }

    /// Puts it into the shim of the container `group`.
    pub(crate) fn group(mut self, group: &str) -> Self {
        self.spec["annotations"] = json!({"io.containerd.runc.v2.group": group});
        self
    }

    /// Puts it into the pod `sandbox`.
    pub(crate) fn pod(mut self, sandbox: &str) -> Self {
        self.spec["annotations"] = json!({
            "io.kubernetes.cri.sandbox-id": sandbox, "io.kubernetes.cri.container-type": "container",
        });
        self
    }

    pub(crate) fn memory(mut self, limit: u64) -> Self {
        self.spec["linux"]["resources"]["memory"] = json!({"limit": limit});
        self
    }

    pub(crate) fn terminal(mut self) -> Self {
        self.spec["process"]["terminal"] = true.into();
        self
    }

    pub(crate) fn hook(mut self, kind: &str, script: &str) -> Self {
        self.spec["hooks"][kind] = json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}]);
        self
    }

    pub(crate) fn socket_dir(mut self, dir: &Path) -> Self {
        self.socket_dir = Some(dir.to_owned());
        self
    }

    /// Writes the bundle, starts the shim and connects to it.
    pub(crate) async fn make(self) -> Container {
        let bundle = self.host.bundle(&self.id);
        fs::create_dir_all(bundle.join("rootfs")).unwrap();
        let work = self.host.base.join("w").join(&self.id);
        for part in ["upper", "work"] {
            fs::create_dir_all(work.join(part)).unwrap();
        }
        fs::write(bundle.join("config.json"), self.spec.to_string()).unwrap();
        mknodat(
            CWD,
            bundle.join("log"),
            FileType::Fifo,
            Mode::RUSR | Mode::WUSR,
            0,
        )
        .unwrap();
        // Open for reading, or the stock shim would wait for that.
        let log = File::options()
            .read(true)
            .write(true)
            .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
            .open(bundle.join("log"))
            .unwrap();
        let answer = self.host.start(&self.id, self.socket_dir.as_deref()).await;
        Container {
            shim: Shim::connect(&answer.address).await,
            host: self.host,
            id: self.id,
            bundle,
            address: answer.address,
            root: self.root,
            _log: log,
        }
    }
}

// === impl Shim ===

impl Shim {
    pub(crate) async fn connect(address: &str) -> Self {
        let path = address.strip_prefix("unix://").expect("a unix socket");
        let stream = UnixStream::connect(path).await;
        let stream = stream.unwrap_or_else(|e| panic!("connect to {path}: {e}"));
        let client = Client::new(Socket::new(stream));
        let task = TaskClient::new(client.clone());
        Self { client, task }
    }
}

// === impl Container ===

impl Container {
    pub(crate) async fn create(&self) -> ttrpc::Result<u32> {
        self.create_with(&Io::default()).await
    }

    pub(crate) async fn create_with(&self, io: &Io) -> ttrpc::Result<u32> {
        let request = CreateTaskRequest {
            id: self.id.clone(),
            bundle: self.bundle.display().to_string(),
            rootfs: self.root.clone(),
            terminal: io.terminal,
            stdin: io.stdin.clone(),
            stdout: io.stdout.clone(),
            stderr: io.stderr.clone(),
            ..CreateTaskRequest::default()
        };
        let call = self.shim.task.create(context(), &request);
        within("Create", call).await.map(|r| r.pid)
    }

    pub(crate) async fn start(&self) -> ttrpc::Result<u32> {
        self.start_exec("").await
    }

    pub(crate) async fn start_exec(&self, exec: &str) -> ttrpc::Result<u32> {
        let request = StartRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
        };
        let call = self.shim.task.start(context(), &request);
        within("Start", call).await.map(|r| r.pid)
    }

    /// The exit code of the container's first process.
    pub(crate) async fn wait(&self) -> u32 {
        self.wait_exec("").await.unwrap()
    }

    pub(crate) async fn wait_exec(&self, exec: &str) -> ttrpc::Result<u32> {
        let request = WaitRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
        };
        let call = self.shim.task.wait(context(), &request);
        within("Wait", call).await.map(|r| r.exit_status)
    }

    pub(crate) async fn kill(&self, signal: u32) -> ttrpc::Result<()> {
        let request = KillRequest {
            id: self.id.clone(),
            signal,
            ..KillRequest::default()
        };
        let call = self.shim.task.kill(context(), &request);
        within("Kill", call).await.map(drop)
    }

    pub(crate) async fn pause(&self) {
        let id = self.id.clone();
        let request = PauseRequest { id };
        within("Pause", self.shim.task.pause(context(), &request))
            .await
            .unwrap();
    }

    pub(crate) async fn resume(&self) {
        let id = self.id.clone();
        let request = ResumeRequest { id };
        within("Resume", self.shim.task.resume(context(), &request))
            .await
            .unwrap();
    }

    pub(crate) async fn state(&self) -> ttrpc::Result<StateResponse> {
        let request = StateRequest {
            id: self.id.clone(),
            ..StateRequest::default()
        };
        within("State", self.shim.task.state(context(), &request)).await
    }

    pub(crate) async fn connect(&self) -> ConnectResponse {
        let id = self.id.clone();
        let request = ConnectRequest { id };
        within("Connect", self.shim.task.connect(context(), &request))
            .await
            .unwrap()
    }

    /// Registers an exec.
    pub(crate) async fn exec(&self, exec: &str, args: &[&str], io: &Io) -> ttrpc::Result<()> {
        let process = json!({
            "args": args, "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0},
            "terminal": io.terminal,
        });
        let request = ExecProcessRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            terminal: io.terminal,
            stdin: io.stdin.clone(),
            stdout: io.stdout.clone(),
            stderr: io.stderr.clone(),
            spec: Some(any::pack_json(any::OCI_PROCESS, process.to_string())),
        };
        within("Exec", self.shim.task.exec(context(), &request))
            .await
            .map(drop)
    }

    /// An exec from beginning to end; gives its exit code.
    pub(crate) async fn run(&self, exec: &str, args: &[&str]) -> u32 {
        self.exec(exec, args, &Io::default()).await.unwrap();
        self.start_exec(exec).await.unwrap();
        let code = self.wait_exec(exec).await.unwrap();
        assert_eq!(
            self.delete_exec(exec).await.unwrap().exit_status,
            code,
            "{exec}"
        );
        code
    }

    pub(crate) async fn delete_exec(&self, exec: &str) -> ttrpc::Result<DeleteResponse> {
        let request = DeleteRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
        };
        within("Delete", self.shim.task.delete(context(), &request)).await
    }

    /// Everything that a daemon does at a task's end; gives the exit code.
    pub(crate) async fn delete(&self) -> u32 {
        let exit = self.delete_exec("").await.unwrap();
        self.shutdown().await;
        // So do daemons after every Delete, in case something was left.
        self.delete_command().await;
        self.remove_bundle();
        exit.exit_status
    }

    /// Asks the shim to go unless it is needed. It may go before it answers.
    pub(crate) async fn shutdown(&self) {
        let request = ShutdownRequest {
            id: self.id.clone(),
            ..ShutdownRequest::default()
        };
        let _ = within("Shutdown", self.shim.task.shutdown(context(), &request)).await;
    }

    pub(crate) async fn kill_and_delete(&self) -> u32 {
        // Fails when it has ended already.
        let _ = self.kill(9).await;
        self.wait().await;
        self.delete().await
    }

    /// The shim's `delete`.
    pub(crate) async fn delete_command(&self) -> DeleteResponse {
        let done = self.host.helper(&self.id, "delete", Vec::new()).await;
        assert!(
            done.status.success(),
            "delete {}: {}",
            self.id,
            shown(&done)
        );
        prost::Message::decode(done.stdout.as_slice())
            .unwrap_or_else(|e| panic!("the answer of delete: {e}: {}", shown(&done)))
    }

    pub(crate) fn remove_bundle(&self) {
        let _ = fs::remove_dir_all(&self.bundle);
        let _ = fs::remove_dir_all(self.host.base.join("w").join(&self.id));
    }
}
