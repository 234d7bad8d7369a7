//! For tests: a shim whose binary is a script and whose server runs in the test, and stores that know nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use corten_core::containers::Containers;
use corten_core::events::Events;
use corten_core::filter::Filter;
use corten_core::runtime::CreateOptions;
use corten_core::sandbox::Sandboxes;
use corten_core::tasks_set::TaskSet;
use corten_core::{Any, Error, Namespace, Result, Scope};
use corten_protos::any;
use corten_protos::containerd::events::{TaskDelete, TaskExit};
use corten_protos::containerd::runtime::sandbox::v1 as sb;
use corten_protos::containerd::services::containers::v1::Container;
use corten_protos::containerd::task::v3;
use corten_protos::containerd::types::{Envelope, Sandbox as Record};
use corten_protos::containerd::v1::types::{ProcessInfo, Status};
use corten_protos::google::protobuf::Empty;
use corten_protos::ttrpc::runtime::TtrpcContext;
use corten_protos::ttrpc::{Sandbox, Task, create_sandbox, create_task_v2, create_task_v3, error};
use parking_lot::Mutex;
use prost::Message;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use ttrpc::Code;
use ttrpc::r#async::Server;
use ttrpc::r#async::transport::Listener;

use crate::manager::{Manager, Timeouts};
use crate::task::{Inner, Role, TaskManager};

pub(crate) const TIMEOUTS: Timeouts = Timeouts {
    load: Duration::from_millis(500),
    cleanup: Duration::from_secs(5),
    shutdown: Duration::from_secs(3),
    state: Duration::from_millis(500),
};

/// What the fake shim does and was asked.
#[derive(Debug, Clone, Default)]
pub(crate) struct Script {
    pub(crate) calls: Vec<String>,
    pub(crate) pids: Vec<u32>,
    pub(crate) stopped: bool,
    pub(crate) create_fails: Option<String>,
    pub(crate) create_hangs: bool,
    pub(crate) connect_hangs: bool,
    pub(crate) shutdown_fails: u32,
    pub(crate) deleted: bool,
}

#[derive(Clone, Default)]
pub(crate) struct FakeTask(pub(crate) Arc<Mutex<Script>>);

impl FakeTask {
    fn called(&self, what: &str, id: &str) {
        self.0.lock().calls.push(format!("{what} {id}"));
    }
}

#[async_trait]
impl Task for FakeTask {
    async fn create(
        &self,
        cx: &TtrpcContext,
        r: v3::CreateTaskRequest,
    ) -> ttrpc::Result<v3::CreateTaskResponse> {
        let ns = cx.metadata["containerd-namespace-ttrpc"][0].clone();
        self.called("create", &format!("{ns}/{}", r.id));
        let script = self.0.lock().clone();
        if script.create_hangs {
            std::future::pending::<()>().await;
        }
        match script.create_fails {
            Some(text) => Err(error(Code::UNKNOWN, text)),
            None => Ok(v3::CreateTaskResponse { pid: 42 }),
        }
    }
    async fn connect(
        &self,
        _: &TtrpcContext,
        r: v3::ConnectRequest,
    ) -> ttrpc::Result<v3::ConnectResponse> {
        self.called("connect", &r.id);
        if self.0.lock().connect_hangs {
            std::future::pending::<()>().await;
        }
        Ok(v3::ConnectResponse {
            shim_pid: 1,
            task_pid: 42,
            version: String::new(),
        })
    }
    async fn pids(&self, _: &TtrpcContext, _: v3::PidsRequest) -> ttrpc::Result<v3::PidsResponse> {
        let pids = self.0.lock().pids.clone();
        let processes = pids
            .into_iter()
            .map(|pid| ProcessInfo { pid, info: None })
            .collect();
        Ok(v3::PidsResponse { processes })
    }
    async fn state(
        &self,
        _: &TtrpcContext,
        _: v3::StateRequest,
    ) -> ttrpc::Result<v3::StateResponse> {
        let script = self.0.lock().clone();
        if !script.stopped && script.pids.is_empty() {
            return Err(error(Code::NOT_FOUND, "container not created: not found"));
        }
        let status = if script.stopped {
            Status::Stopped
        } else {
            Status::Running
        };
        Ok(v3::StateResponse {
            status: status.into(),
            pid: 42,
            ..Default::default()
        })
    }
    async fn wait(&self, _: &TtrpcContext, _: v3::WaitRequest) -> ttrpc::Result<v3::WaitResponse> {
        std::future::pending().await
    }
    async fn delete(
        &self,
        _: &TtrpcContext,
        r: v3::DeleteRequest,
    ) -> ttrpc::Result<v3::DeleteResponse> {
        self.called("delete", &r.id);
        let mut script = self.0.lock();
        if std::mem::replace(&mut script.deleted, true) {
            return Err(error(Code::NOT_FOUND, "container not created: not found"));
        }
        Ok(v3::DeleteResponse {
            pid: 42,
            exit_status: 7,
            ..Default::default()
        })
    }
    async fn shutdown(&self, _: &TtrpcContext, r: v3::ShutdownRequest) -> ttrpc::Result<Empty> {
        self.called("shutdown", &r.id);
        let mut script = self.0.lock();
        if script.shutdown_fails > 0 {
            script.shutdown_fails -= 1;
            return Err(error(Code::INTERNAL, "not now"));
        }
        Ok(Empty::default())
    }
}

#[async_trait]
impl Sandbox for FakeTask {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        r: sb::CreateSandboxRequest,
    ) -> ttrpc::Result<sb::CreateSandboxResponse> {
        self.called(
            "sandbox create",
            format!("{} {}", r.sandbox_id, r.netns_path).trim(),
        );
        match self.0.lock().create_fails.clone() {
            Some(text) => Err(error(Code::UNKNOWN, text)),
            None => Ok(sb::CreateSandboxResponse::default()),
        }
    }
    async fn start_sandbox(
        &self,
        _: &TtrpcContext,
        r: sb::StartSandboxRequest,
    ) -> ttrpc::Result<sb::StartSandboxResponse> {
        self.called("sandbox start", &r.sandbox_id);
        Ok(sb::StartSandboxResponse {
            pid: 7,
            ..Default::default()
        })
    }
    async fn stop_sandbox(
        &self,
        _: &TtrpcContext,
        r: sb::StopSandboxRequest,
    ) -> ttrpc::Result<sb::StopSandboxResponse> {
        self.called("sandbox stop", &r.sandbox_id);
        Ok(sb::StopSandboxResponse::default())
    }
    async fn wait_sandbox(
        &self,
        _: &TtrpcContext,
        _: sb::WaitSandboxRequest,
    ) -> ttrpc::Result<sb::WaitSandboxResponse> {
        Ok(sb::WaitSandboxResponse {
            exit_status: 137,
            exited_at: None,
        })
    }
    async fn sandbox_status(
        &self,
        _: &TtrpcContext,
        r: sb::SandboxStatusRequest,
    ) -> ttrpc::Result<sb::SandboxStatusResponse> {
        Ok(sb::SandboxStatusResponse {
            sandbox_id: r.sandbox_id,
            pid: 7,
            state: corten_core::sandbox::READY.into(),
            ..Default::default()
        })
    }
    async fn shutdown_sandbox(
        &self,
        _: &TtrpcContext,
        r: sb::ShutdownSandboxRequest,
    ) -> ttrpc::Result<sb::ShutdownSandboxResponse> {
        self.called("sandbox shutdown", &r.sandbox_id);
        Ok(sb::ShutdownSandboxResponse::default())
    }
}

/// A folder with everything: the shim's binary, its socket, and the daemon's folders.
pub(crate) struct Fake {
    temp: tempfile::TempDir,
    pub(crate) task: FakeTask,
    pub(crate) events: Arc<Recorder>,
    pub(crate) sandboxes: Arc<NoSandboxes>,
}

impl Fake {
    pub(crate) fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().display();
        let script = format!(
            "#!/bin/sh\nfor last; do :; done\necho \"$*\" >> {dir}/argv\n\
             case $last in\nstart) cat > {dir}/stdin; env > {dir}/env; pwd > {dir}/cwd; . {dir}/start ;;\n\
             delete) cat {dir}/deleted ;;\nesac\n"
        );
        let fake = Self {
            task: FakeTask::default(),
            events: Arc::default(),
            sandboxes: Arc::default(),
            temp,
        };
        let binary = fake.binary();
        std::fs::write(&binary, script).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&binary, mode).unwrap();
        fake.can_delete();
        fake.answer(&fake.bootstrap("sock"));
        fake
    }

    /// Makes `delete` of the binary succeed: without the file it fails.
    pub(crate) fn can_delete(&self) {
        let deleted = v3::DeleteResponse {
            pid: 42,
            exit_status: 137,
            exited_at: None,
        }
        .encode_to_vec();
        std::fs::write(self.path("deleted"), deleted).unwrap();
    }

    /// What a shim of version 3 at socket `name` answers.
    pub(crate) fn bootstrap(&self, name: &str) -> String {
        let address = self.path(name).display().to_string();
        format!(r#"{{"version":3,"address":"unix://{address}","protocol":"ttrpc"}}"#)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    pub(crate) fn binary(&self) -> PathBuf {
        self.path("containerd-shim-fake-v2")
    }

    /// Makes `start` print this.
    pub(crate) fn answer(&self, text: &str) {
        self.on_start(&format!("printf '%s' '{text}'"));
    }

    /// Makes `start` run this.
    pub(crate) fn on_start(&self, commands: &str) {
        std::fs::write(self.path("start"), commands).unwrap();
    }

    /// Command lines of the binary so far.
    pub(crate) fn argv(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.path("argv")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// How often the binary ran `action`.
    pub(crate) fn ran(&self, action: &str) -> usize {
        self.argv().iter().filter(|l| l.ends_with(action)).count()
    }

    pub(crate) fn calls(&self) -> Vec<String> {
        self.task.0.lock().calls.clone()
    }

    /// Serves the task API under both names.
    pub(crate) async fn serve(&self) -> Shim {
        let (server, connections) = self.server();
        let task = Arc::new(self.task.clone());
        let server = server
            .register_service(create_task_v3(task.clone()))
            .register_service(create_sandbox(task));
        Shim::start(server, connections).await
    }

    /// Serves the older name only.
    pub(crate) async fn serve_v2(&self) -> Shim {
        let (server, connections) = self.server();
        Shim::start(server, connections).await
    }

    fn server(&self) -> (Server, Connections) {
        let listener = UnixListener::bind(self.path("sock")).unwrap();
        let connections = Connections::default();
        let accepted = connections.clone();
        let sockets = futures::stream::unfold((listener, accepted), |(listener, accepted)| async {
            let socket = listener.accept().await.map(|(socket, _)| {
                let socket = socket.into_std().unwrap();
                accepted.lock().push(socket.try_clone().unwrap());
                UnixStream::from_std(socket).unwrap()
            });
            Some((socket, (listener, accepted)))
        });
        let server = Server::new()
            .add_listener(Listener::new(sockets))
            .register_service(create_task_v2(Arc::new(self.task.clone())));
        (server, connections)
    }

    pub(crate) fn manager(&self) -> TaskManager {
        let manager = Manager::for_test(self.temp.path(), TIMEOUTS);
        self.manager_for(Role::Task, Arc::new(manager))
    }

    /// A manager of its own sort of shims over shared ones.
    pub(crate) fn manager_for(&self, role: Role, manager: Arc<Manager>) -> TaskManager {
        let folder = |base: &str| match role {
            Role::Task => self.path(base),
            Role::Sandbox => self.path("sandboxes").join(base),
        };
        let tasks = TaskManager::new(Inner {
            role,
            manager,
            root: folder("root"),
            state: folder("state"),
            events: self.events.clone(),
            containers: Arc::new(NoContainers),
            sandboxes: self.sandboxes.clone(),
            background: TaskSet::new(),
            mounts: crate::mounts::TaskMounts::default(),
        });
        crate::restore::make_folders(&tasks).unwrap();
        tasks
    }

    pub(crate) fn bundle(&self, id: &str) -> PathBuf {
        self.path("state").join("ns").join(id)
    }
}

type Connections = Arc<Mutex<Vec<std::os::unix::net::UnixStream>>>;

/// The fake shim's process, so to speak.
pub(crate) struct Shim {
    _server: Server,
    connections: Connections,
}

impl Shim {
    async fn start(mut server: Server, connections: Connections) -> Self {
        server.start().await.unwrap();
        Self {
            _server: server,
            connections,
        }
    }

    /// Ends as a killed process does: all at once.
    pub(crate) fn kill(&self) {
        for socket in self.connections.lock().drain(..) {
            socket.shutdown(std::net::Shutdown::Both).unwrap();
        }
    }
}

pub(crate) fn ns() -> Namespace {
    Namespace::new("ns").unwrap()
}

/// A container for the fake runtime.
pub(crate) fn options() -> CreateOptions {
    CreateOptions {
        runtime: "io.containerd.fake.v2".into(),
        spec: Some(any::pack_json(any::OCI_SPEC, b"{}".to_vec())),
        ..Default::default()
    }
}

pub(crate) fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).map_or(true, |mut d| d.next().is_none())
}

/// Remembers topics and exit codes.
#[derive(Default)]
pub(crate) struct Recorder(pub(crate) Mutex<Vec<String>>);

impl Recorder {
    pub(crate) fn all(&self) -> Vec<String> {
        self.0.lock().clone()
    }
}

#[async_trait]
impl Events for Recorder {
    async fn publish(&self, ns: &Namespace, topic: &str, event: Any) -> Result<()> {
        let (id, code) = if let Ok(e) = any::unpack::<TaskExit>(&event) {
            (e.container_id, e.exit_status)
        } else {
            let e = any::unpack::<TaskDelete>(&event).unwrap();
            (e.container_id, e.exit_status)
        };
        self.0.lock().push(format!("{topic} {ns}/{id} {code}"));
        Ok(())
    }
    async fn forward(&self, _: Envelope) -> Result<()> {
        unreachable!()
    }
    fn subscribe(&self, _: Filter) -> mpsc::Receiver<Envelope> {
        unreachable!()
    }
}

struct NoContainers;

#[async_trait]
impl Containers for NoContainers {
    async fn get(&self, _: &Namespace, id: &str) -> Result<Container> {
        Err(Error::not_found(id))
    }
    async fn list(&self, _: &Namespace, _: &Filter) -> Result<Vec<Container>> {
        unreachable!()
    }
    async fn create(&self, _: &Scope, _: Container) -> Result<Container> {
        unreachable!()
    }
    async fn update(&self, _: &Scope, _: Container, _: &[String]) -> Result<Container> {
        unreachable!()
    }
    async fn delete(&self, _: &Scope, _: &str) -> Result<()> {
        unreachable!()
    }
}

/// Has the sandboxes whose ids are set.
#[derive(Default)]
pub(crate) struct NoSandboxes(pub(crate) Mutex<BTreeMap<String, Record>>);

#[async_trait]
impl Sandboxes for NoSandboxes {
    async fn get(&self, _: &Namespace, id: &str) -> Result<Record> {
        self.0
            .lock()
            .get(id)
            .cloned()
            .ok_or_else(|| Error::not_found(id))
    }
    async fn list(&self, _: &Namespace, _: &Filter) -> Result<Vec<Record>> {
        unreachable!()
    }
    async fn create(&self, _: &Scope, _: Record) -> Result<Record> {
        unreachable!()
    }
    async fn update(&self, _: &Scope, _: Record, _: &[String]) -> Result<Record> {
        unreachable!()
    }
    async fn delete(&self, _: &Scope, _: &str) -> Result<()> {
        unreachable!()
    }
}
