//! A node and plugins made for tests.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use corten_core::nri::{
    Container, ContainerAdjustment, ContainerEviction, ContainerState, ContainerUpdate, Domain,
    LinuxResources, Nri, PodSandbox,
};
use corten_core::tasks_set::TaskSet;
use corten_core::{Error, Result};
use corten_protos::nri::pkg::api::v1alpha1 as api;
use corten_protos::ttrpc::runtime::{Client, Context, TtrpcContext};
use corten_protos::ttrpc::{Plugin, RuntimeClient, create_plugin};
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use tokio::net::UnixStream;
use tokio::sync::OnceCell;
use ttrpc::Code;
use ttrpc::r#async::transport::{Listener, Socket};

use crate::config::Config;
use crate::mux::Mux;
use crate::relay::Relay;

pub(super) type Log = Arc<Mutex<Vec<String>>>;

/// Two pods' worth of containers; remembers what was asked of it.
#[derive(Default)]
pub(super) struct Node {
    pub(super) containers: Mutex<Vec<Container>>,
    pub(super) log: Log,
}

#[async_trait]
impl Domain for Node {
    fn namespace(&self) -> &str {
        "k8s.io"
    }
    async fn pods(&self) -> Vec<PodSandbox> {
        vec![pod("p0")]
    }
    async fn containers(&self) -> Vec<Container> {
        self.containers.lock().clone()
    }
    fn has_container(&self, id: &str) -> bool {
        self.containers.lock().iter().any(|c| c.id == id)
    }
    async fn update_container(&self, update: &ContainerUpdate) -> Result<()> {
        let resources = update.linux.as_ref().and_then(|l| l.resources.as_ref());
        let cpus = resources.and_then(|r| r.cpu.as_ref()).map(|c| &c.cpus);
        if cpus.is_some_and(|c| c == "bad") {
            return Err(Error::invalid("cpus"));
        }
        let line = format!("update {} {cpus:?}", update.container_id);
        self.log.lock().push(line);
        Ok(())
    }
    async fn evict_container(&self, eviction: &ContainerEviction) -> Result<()> {
        let line = format!("evict {} {}", eviction.container_id, eviction.reason);
        self.log.lock().push(line);
        Ok(())
    }
}

/// A plugin: what it subscribes for and how it answers.
#[derive(Default)]
pub(super) struct Fake {
    pub(super) name: &'static str,
    pub(super) index: &'static str,
    pub(super) events: i32,
    pub(super) log: Log,
    /// Knows StateChange only.
    pub(super) old: bool,
    /// Never answers this.
    pub(super) hangs: Option<&'static str>,
    /// Answers this with an error.
    pub(super) fails: Option<&'static str>,
    /// Asks for updates of itself when a container is created.
    pub(super) asks: bool,
    pub(super) adjust: Option<ContainerAdjustment>,
    pub(super) update: Vec<ContainerUpdate>,
    pub(super) evict: Vec<ContainerEviction>,
    pub(super) resources: Option<LinuxResources>,
    pub(super) rejects: Option<&'static str>,
    pub(super) runtime: OnceCell<RuntimeClient>,
}

pub(super) struct Connected {
    pub(super) fake: Arc<Fake>,
    pub(super) runtime: RuntimeClient,
    pub(super) mux: Mux,
    /// Carry its bytes as long as they are held.
    _tasks: TaskSet,
    _server: ttrpc::r#async::Server,
}

// === impl Fake ===

impl Fake {
    pub(super) fn new(index: &'static str, name: &'static str, log: &Log) -> Self {
        Self {
            index,
            name,
            log: log.clone(),
            // All but validation.
            events: (1 << (api::Event::ValidateContainerAdjustment as i32 - 1)) - 1,
            ..Default::default()
        }
    }

    pub(super) async fn hear(&self, what: &'static str, of: &str) -> ttrpc::Result<()> {
        self.log
            .lock()
            .push(format!("{}-{} {what} {of}", self.index, self.name));
        if self.hangs == Some(what) {
            std::future::pending::<()>().await;
        }
        if self.fails == Some(what) {
            return Err(corten_protos::ttrpc::error(Code::UNKNOWN, "no way"));
        }
        Ok(())
    }

    pub(super) fn unknown_if_old(&self) -> ttrpc::Result<()> {
        if self.old {
            return Err(corten_protos::ttrpc::error(Code::UNIMPLEMENTED, "what?"));
        }
        Ok(())
    }

    pub(super) async fn connect(self, socket: &Path) -> (Connected, ttrpc::Result<api::Empty>) {
        let stream = UnixStream::connect(socket).await.unwrap();
        let tasks = TaskSet::new();
        let (mux, ends) = Mux::open(stream, &tasks);
        let fake = Arc::new(self);
        let once = stream::once(async { Ok::<_, std::io::Error>(ends.plugin) });
        let mut server = ttrpc::r#async::Server::new()
            .add_listener(Listener::new(once.chain(stream::pending())))
            .register_service(create_plugin(fake.clone()));
        server.start().await.unwrap();
        let runtime = RuntimeClient::new(Client::new(Socket::new(ends.runtime)));
        fake.runtime.set(runtime.clone()).unwrap();
        let request = api::RegisterPluginRequest {
            plugin_name: fake.name.into(),
            plugin_idx: fake.index.into(),
            nri_version: "test".into(),
        };
        let answer = runtime.register_plugin(Context::default(), &request).await;
        let connected = Connected {
            fake,
            runtime,
            mux,
            _tasks: tasks,
            _server: server,
        };
        (connected, answer)
    }

    /// Connects and waits until it is heard of.
    pub(super) async fn join(self, relay: &Relay, socket: &Path) -> Connected {
        let before = relay.plugins().len();
        let (connected, answer) = self.connect(socket).await;
        answer.unwrap();
        until(|| relay.plugins().len() > before).await;
        connected
    }
}

#[async_trait]
impl Plugin for Fake {
    async fn configure(
        &self,
        _: &TtrpcContext,
        r: api::ConfigureRequest,
    ) -> ttrpc::Result<api::ConfigureResponse> {
        assert_eq!((r.request_timeout, r.runtime_version.as_str()), (300, "v1"));
        self.hear("Configure", &r.runtime_name).await?;
        Ok(api::ConfigureResponse {
            events: self.events,
        })
    }
    async fn synchronize(
        &self,
        _: &TtrpcContext,
        r: api::SynchronizeRequest,
    ) -> ttrpc::Result<api::SynchronizeResponse> {
        let counts = format!("{}+{}", r.pods.len(), r.containers.len());
        self.hear("Synchronize", &counts).await?;
        Ok(api::SynchronizeResponse {
            more: r.more && !self.old,
            update: vec![],
        })
    }
    async fn run_pod_sandbox(
        &self,
        _: &TtrpcContext,
        r: api::RunPodSandboxRequest,
    ) -> ttrpc::Result<api::RunPodSandboxResponse> {
        self.unknown_if_old()?;
        self.hear("RunPodSandbox", &r.pod.unwrap().id).await?;
        Ok(api::RunPodSandboxResponse {})
    }
    async fn stop_pod_sandbox(
        &self,
        _: &TtrpcContext,
        r: api::StopPodSandboxRequest,
    ) -> ttrpc::Result<api::StopPodSandboxResponse> {
        self.unknown_if_old()?;
        self.hear("StopPodSandbox", &r.pod.unwrap().id).await?;
        Ok(api::StopPodSandboxResponse {})
    }
    async fn remove_container(
        &self,
        _: &TtrpcContext,
        r: api::RemoveContainerRequest,
    ) -> ttrpc::Result<api::RemoveContainerResponse> {
        self.unknown_if_old()?;
        self.hear("RemoveContainer", &r.container.unwrap().id)
            .await?;
        Ok(api::RemoveContainerResponse {})
    }
    async fn state_change(
        &self,
        _: &TtrpcContext,
        r: api::StateChangeEvent,
    ) -> ttrpc::Result<api::Empty> {
        self.hear("StateChange", r.event().as_str_name()).await?;
        Ok(api::Empty {})
    }
    async fn create_container(
        &self,
        _: &TtrpcContext,
        r: api::CreateContainerRequest,
    ) -> ttrpc::Result<api::CreateContainerResponse> {
        let container = r.container.unwrap();
        self.hear("CreateContainer", &container.env.join(","))
            .await?;
        if self.asks {
            let request = api::UpdateContainersRequest {
                update: vec![cpus("c0", "5")],
                evict: vec![],
            };
            let runtime = self.runtime.get().unwrap();
            runtime
                .update_containers(Context::default(), &request)
                .await?;
        }
        Ok(api::CreateContainerResponse {
            adjust: self.adjust.clone(),
            update: self.update.clone(),
            evict: self.evict.clone(),
        })
    }
    async fn update_container(
        &self,
        _: &TtrpcContext,
        r: api::UpdateContainerRequest,
    ) -> ttrpc::Result<api::UpdateContainerResponse> {
        let id = r.container.unwrap().id;
        let own = self.resources.clone().map(|resources| ContainerUpdate {
            container_id: id,
            linux: Some(api::LinuxContainerUpdate {
                resources: Some(resources),
            }),
            ignore_failure: false,
        });
        Ok(api::UpdateContainerResponse {
            update: own.into_iter().chain(self.update.clone()).collect(),
            evict: vec![],
        })
    }
    async fn stop_container(
        &self,
        _: &TtrpcContext,
        r: api::StopContainerRequest,
    ) -> ttrpc::Result<api::StopContainerResponse> {
        self.hear("StopContainer", &r.container.unwrap().id).await?;
        Ok(api::StopContainerResponse::default())
    }
    async fn validate_container_adjustment(
        &self,
        _: &TtrpcContext,
        r: api::ValidateContainerAdjustmentRequest,
    ) -> ttrpc::Result<api::ValidateContainerAdjustmentResponse> {
        let names: Vec<_> = r.plugins.iter().map(|p| p.name.as_str()).collect();
        self.hear("Validate", &names.join(",")).await?;
        Ok(api::ValidateContainerAdjustmentResponse {
            reject: self.rejects.is_some(),
            reason: self.rejects.unwrap_or_default().to_owned(),
        })
    }
}

pub(super) fn pod(id: &str) -> PodSandbox {
    PodSandbox {
        id: id.into(),
        ..Default::default()
    }
}

pub(super) fn container(id: &str) -> Container {
    Container {
        id: id.into(),
        state: ContainerState::ContainerRunning as i32,
        ..Default::default()
    }
}

pub(super) fn cpus(id: &str, cpus: &str) -> ContainerUpdate {
    ContainerUpdate {
        container_id: id.into(),
        linux: Some(api::LinuxContainerUpdate {
            resources: Some(resources(cpus)),
        }),
        ignore_failure: false,
    }
}

pub(super) fn resources(cpus: &str) -> LinuxResources {
    LinuxResources {
        cpu: Some(api::LinuxCpu {
            cpus: cpus.into(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

pub(super) fn env(key: &str, value: &str) -> Option<ContainerAdjustment> {
    Some(ContainerAdjustment {
        env: vec![api::KeyValue {
            key: key.into(),
            value: value.into(),
        }],
        ..Default::default()
    })
}

pub(super) async fn until(done: impl Fn() -> bool) {
    let waiting = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting)
        .await
        .unwrap();
}

pub(super) struct Set {
    pub(super) relay: Arc<Relay>,
    pub(super) node: Arc<Node>,
    pub(super) log: Log,
    pub(super) dir: tempfile::TempDir,
}

impl Set {
    pub(super) async fn new(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config {
            socket_path: dir.path().join("nri.sock"),
            plugin_path: dir.path().join("plugins"),
            plugin_registration_timeout: Duration::from_millis(300),
            plugin_request_timeout: Duration::from_millis(300),
            ..Default::default()
        };
        change(&mut config);
        let relay = Relay::new(config, "v1".into());
        let node = Arc::new(Node::default());
        node.containers.lock().push(container("c0"));
        relay.register(node.clone()).unwrap();
        relay.start().await.unwrap();
        let log = node.log.clone();
        Self {
            relay,
            node,
            log,
            dir,
        }
    }

    pub(super) async fn join(&self, fake: Fake) -> Connected {
        fake.join(&self.relay, &self.socket()).await
    }

    pub(super) fn socket(&self) -> std::path::PathBuf {
        self.dir.path().join("nri.sock")
    }

    pub(super) fn fake(&self, index: &'static str, name: &'static str) -> Fake {
        Fake::new(index, name, &self.log)
    }

    pub(super) fn heard(&self) -> Vec<String> {
        std::mem::take(&mut *self.log.lock())
    }
}
