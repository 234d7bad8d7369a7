//! A container as a daemon sees it: a bundle, the connection to its shim, and the calls of the task API.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use corten_integration::process::patience;
use corten_protos::any;
use corten_protos::containerd::task::v3::{
    ConnectRequest, ConnectResponse, CreateTaskRequest, DeleteRequest, DeleteResponse,
    ExecProcessRequest, KillRequest, PauseRequest, ResumeRequest, ShutdownRequest, StartRequest,
    StateRequest, StateResponse, UpdateTaskRequest, WaitRequest,
};
use corten_protos::containerd::types::Mount;
use corten_protos::google::protobuf::Any;
use corten_protos::ttrpc::{TASK_V2, TaskClient};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::{Value, json};
use tokio::net::UnixStream;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;

use crate::host::{Dialect, Host, shared_root, shown};

/// No call may take longer, apart from Wait.
const LIMIT: Duration = Duration::from_secs(40);

/// A container that is not made yet.
#[derive(Debug)]
pub(crate) struct Recipe {
    host: Arc<Host>,
    id: String,
    pub(crate) spec: Value,
    root: Vec<Mount>,
    options: Option<Any>,
    dialect: Dialect,
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
    options: Option<Any>,
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
    let limit = LIMIT * patience();
    let outcome = tokio::time::timeout(limit, call).await;
    outcome.unwrap_or_else(|_| panic!("{what}: no answer in {limit:?}"))
}

pub(crate) fn context() -> ttrpc::context::Context {
    ttrpc::context::Context::default()
}

// === impl Io ===

impl Io {
    /// All output goes to the end of a file.
    pub(crate) fn file(path: &Path) -> Self {
        let uri = format!("file://{}", path.display());
        Self {
            stdout: uri.clone(),
            stderr: uri,
            ..Self::default()
        }
    }
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
            options: None,
            dialect: Dialect::Bootstrap,
            socket_dir: None,
        }
    }

    /// Sets a field of the document, by its JSON pointer; what is missing on the way to it is made. `-` is one more of
    /// a list.
    pub(crate) fn set(mut self, pointer: &str, value: Value) -> Self {
        let keys = pointer.split('/').skip(1);
        *keys.fold(&mut self.spec, |at, key| match at {
            Value::Array(list) => {
                let index = key.parse().unwrap_or(list.len());
                if index == list.len() {
                    list.push(Value::Null);
                }
                &mut list[index]
            }
            other => &mut other[key],
        }) = value;
        self
    }

    /// Options of the runtime, for `start` and for Create.
    pub(crate) fn options(mut self, options: Any) -> Self {
        self.options = Some(options);
        self
    }

    /// How its daemon speaks.
    pub(crate) fn dialect(mut self, dialect: Dialect) -> Self {
        self.dialect = dialect;
        self
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
        let host = self.host;
        let address = match self.dialect {
            Dialect::Bootstrap => {
                let dir = self.socket_dir.as_deref();
                let answer = host.start(&self.id, self.options.as_ref(), dir).await;
                answer.address
            }
            old => host.start_as(old, &self.id, self.options.as_ref()).await,
        };
        let mut shim = Shim::connect(&address).await;
        if self.dialect != Dialect::Bootstrap {
            shim.task = TaskClient::with_service(shim.client.clone(), TASK_V2);
        }
        Container {
            shim,
            host,
            id: self.id,
            bundle,
            address,
            root: self.root,
            options: self.options,
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
        self.create_from(io, "").await
    }

    /// A container that is to come out of the images in a folder.
    pub(crate) async fn create_from(&self, io: &Io, images: &str) -> ttrpc::Result<u32> {
        let request = CreateTaskRequest {
            id: self.id.clone(),
            bundle: self.bundle.display().to_string(),
            rootfs: self.root.clone(),
            terminal: io.terminal,
            stdin: io.stdin.clone(),
            stdout: io.stdout.clone(),
            stderr: io.stderr.clone(),
            options: self.options.clone(),
            checkpoint: images.to_owned(),
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

    /// What a script says that runs in it.
    pub(crate) async fn says(&self, exec: &str, script: &str) -> String {
        let file = self.host.base.join(format!("{}-{exec}", self.id));
        let io = Io::file(&file);
        let script = format!("exec 2>&1; {script}");
        self.exec(exec, &["sh", "-c", &script], &io).await.unwrap();
        self.start_exec(exec).await.unwrap();
        self.wait_exec(exec).await.unwrap();
        // Everything has been copied when this returns.
        self.delete_exec(exec).await.unwrap();
        fs::read_to_string(file).unwrap()
    }

    /// Changes its limits.
    pub(crate) async fn update(&self, resources: &Value) -> ttrpc::Result<()> {
        let resources = any::pack_json(any::OCI_LINUX_RESOURCES, resources.to_string());
        let request = UpdateTaskRequest {
            id: self.id.clone(),
            resources: Some(resources),
            ..UpdateTaskRequest::default()
        };
        within("Update", self.shim.task.update(context(), &request))
            .await
            .map(drop)
    }

    /// Takes away what is left of one whose Create was refused.
    pub(crate) async fn give_up(&self) {
        self.shutdown().await;
        self.delete_command().await;
        self.remove_bundle();
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
        let host = &self.host;
        let done = host
            .helper(Dialect::Bootstrap, &self.id, "delete", Vec::new())
            .await;
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
