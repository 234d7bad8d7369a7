//! A relay and plugins on its socket, in one process.

use std::collections::BTreeSet;
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

use crate::config::{Config, DefaultValidator};
use crate::mux::Mux;
use crate::relay::Relay;

type Log = Arc<Mutex<Vec<String>>>;

/// Two pods' worth of containers; remembers what was asked of it.
#[derive(Default)]
struct Node {
    containers: Mutex<Vec<Container>>,
    log: Log,
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
struct Fake {
    name: &'static str,
    index: &'static str,
    events: i32,
    log: Log,
    /// Knows StateChange only.
    old: bool,
    /// Never answers this.
    hangs: Option<&'static str>,
    /// Answers this with an error.
    fails: Option<&'static str>,
    /// Asks for updates of itself when a container is created.
    asks: bool,
    adjust: Option<ContainerAdjustment>,
    update: Vec<ContainerUpdate>,
    evict: Vec<ContainerEviction>,
    resources: Option<LinuxResources>,
    rejects: Option<&'static str>,
    runtime: OnceCell<RuntimeClient>,
}

struct Connected {
    fake: Arc<Fake>,
    runtime: RuntimeClient,
    mux: Mux,
    /// Carry its bytes as long as they are held.
    _tasks: TaskSet,
    _server: ttrpc::r#async::Server,
}

// === impl Fake ===

impl Fake {
    fn new(index: &'static str, name: &'static str, log: &Log) -> Self {
        Self {
            index,
            name,
            log: log.clone(),
            // All but validation.
            events: (1 << (api::Event::ValidateContainerAdjustment as i32 - 1)) - 1,
            ..Default::default()
        }
    }

    async fn hear(&self, what: &'static str, of: &str) -> ttrpc::Result<()> {
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

    fn unknown_if_old(&self) -> ttrpc::Result<()> {
        if self.old {
            return Err(corten_protos::ttrpc::error(Code::UNIMPLEMENTED, "what?"));
        }
        Ok(())
    }

    async fn connect(self, socket: &Path) -> (Connected, ttrpc::Result<api::Empty>) {
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
    async fn join(self, relay: &Relay, socket: &Path) -> Connected {
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

fn pod(id: &str) -> PodSandbox {
    PodSandbox {
        id: id.into(),
        ..Default::default()
    }
}

fn container(id: &str) -> Container {
    Container {
        id: id.into(),
        state: ContainerState::ContainerRunning as i32,
        ..Default::default()
    }
}

fn cpus(id: &str, cpus: &str) -> ContainerUpdate {
    ContainerUpdate {
        container_id: id.into(),
        linux: Some(api::LinuxContainerUpdate {
            resources: Some(resources(cpus)),
        }),
        ignore_failure: false,
    }
}

fn resources(cpus: &str) -> LinuxResources {
    LinuxResources {
        cpu: Some(api::LinuxCpu {
            cpus: cpus.into(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn env(key: &str, value: &str) -> Option<ContainerAdjustment> {
    Some(ContainerAdjustment {
        env: vec![api::KeyValue {
            key: key.into(),
            value: value.into(),
        }],
        ..Default::default()
    })
}

async fn until(done: impl Fn() -> bool) {
    let waiting = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting)
        .await
        .unwrap();
}

struct Set {
    relay: Arc<Relay>,
    node: Arc<Node>,
    log: Log,
    dir: tempfile::TempDir,
}

impl Set {
    async fn new(change: impl FnOnce(&mut Config)) -> Self {
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

    async fn join(&self, fake: Fake) -> Connected {
        fake.join(&self.relay, &self.socket()).await
    }

    fn socket(&self) -> std::path::PathBuf {
        self.dir.path().join("nri.sock")
    }

    fn fake(&self, index: &'static str, name: &'static str) -> Fake {
        Fake::new(index, name, &self.log)
    }

    fn heard(&self) -> Vec<String> {
        std::mem::take(&mut *self.log.lock())
    }
}

#[tokio::test]
async fn plugins_are_told_in_the_order_of_their_indices_of_what_they_want() {
    let set = Set::new(|_| {}).await;
    assert!(set.relay.enabled() && !set.relay.active());
    let _b = set.join(set.fake("20", "b")).await;
    let mut quiet = set.fake("15", "quiet");
    quiet.events = 1 << (api::Event::CreateContainer as i32 - 1);
    let _quiet = set.join(quiet).await;
    let _a = set.join(set.fake("10", "a")).await;
    assert_eq!(set.relay.plugins(), ["10-a", "15-quiet", "20-b"]);
    let heard = set.heard();
    assert_eq!(
        heard[..2],
        ["20-b Configure containerd", "20-b Synchronize 1+1"]
    );
    set.relay.run_pod_sandbox(pod("p1")).await.unwrap();
    assert_eq!(
        set.heard(),
        ["10-a RunPodSandbox p1", "20-b RunPodSandbox p1"]
    );
    // Told once, whoever tells.
    set.relay.stop_pod_sandbox(pod("p1")).await.unwrap();
    set.relay.stop_pod_sandbox(pod("p1")).await.unwrap();
    assert_eq!(set.heard().len(), 2);
    // Known by synchronization.
    set.relay.notify_container_exit(pod("p0"), container("c0"));
    until(|| set.log.lock().len() == 2).await;
    set.relay
        .remove_container(pod("p0"), container("c0"))
        .await
        .unwrap();
    set.relay
        .remove_container(pod("p0"), container("c0"))
        .await
        .unwrap();
    let heard: BTreeSet<String> = set.heard().into_iter().collect();
    assert_eq!(heard.len(), 4);
    assert!(heard.contains("10-a RemoveContainer c0"));
}

#[tokio::test]
async fn wishes_are_merged_and_conflicts_fail_the_creation() {
    let set = Set::new(|_| {}).await;
    let mut a = set.fake("10", "a");
    a.adjust = env("A", "1");
    a.update = vec![cpus("c0", "3"), cpus("unknown", "3")];
    a.evict = vec![ContainerEviction {
        container_id: "c0".into(),
        reason: "full".into(),
    }];
    let _a = set.join(a).await;
    let mut b = set.fake("20", "b");
    b.adjust = env("B", "2");
    let b = set.join(b).await;
    set.heard();
    let adjust = set
        .relay
        .create_container(pod("p0"), container("c1"))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(adjust.env.len(), 2);
    assert_eq!(
        set.heard(),
        [
            "10-a CreateContainer ",
            "20-b CreateContainer A=1",
            "evict c0 full",
            "update c0 Some(\"3\")"
        ]
    );
    let mut c = set.fake("30", "c");
    c.adjust = env("A", "3");
    let _c = set.join(c).await;
    let failed = set.relay.create_container(pod("p0"), container("c2")).await;
    assert_eq!(
        failed.unwrap_err().to_string(),
        "plugins \"30-c\" and \"10-a\" both tried to set Env A"
    );
    // A plugin that leaves is forgotten.
    b.mux.close();
    until(|| set.relay.plugins() == ["10-a", "30-c"]).await;
}

#[tokio::test]
async fn a_plugin_that_hangs_is_dropped_and_one_that_refuses_is_heeded() {
    let set = Set::new(|_| {}).await;
    let mut hangs = set.fake("10", "hangs");
    hangs.hangs = Some("RunPodSandbox");
    let hangs = set.join(hangs).await;
    let mut fails = set.fake("20", "fails");
    fails.fails = Some("CreateContainer");
    let _fails = set.join(fails).await;
    set.heard();
    set.relay.run_pod_sandbox(pod("p1")).await.unwrap();
    assert_eq!(
        set.heard(),
        ["10-hangs RunPodSandbox p1", "20-fails RunPodSandbox p1"]
    );
    hangs.mux.ended().await;
    until(|| set.relay.plugins() == ["20-fails"]).await;
    let refused = set.relay.create_container(pod("p1"), container("c1")).await;
    assert_eq!(
        refused.unwrap_err().to_string(),
        "rpc error: code = Unknown desc = no way"
    );
    assert_eq!(set.relay.plugins(), ["20-fails"]);
}

#[tokio::test]
async fn a_refused_pod_is_taken_back() {
    let set = Set::new(|_| {}).await;
    let mut a = set.fake("10", "a");
    a.fails = Some("RunPodSandbox");
    let _a = set.join(a).await;
    set.heard();
    assert!(set.relay.run_pod_sandbox(pod("p1")).await.is_err());
    let heard = set.heard();
    assert_eq!(heard[0], "10-a RunPodSandbox p1");
    assert_eq!(heard[1], "10-a StopPodSandbox p1");
    assert_eq!(heard[2], "10-a StateChange REMOVE_POD_SANDBOX");
    set.relay.stop_pod_sandbox(pod("p1")).await.unwrap();
    assert_eq!(set.heard().len(), 0);
}

#[tokio::test]
async fn a_plugin_may_update_containers_at_any_time() {
    let set = Set::new(|_| {}).await;
    let mut a = set.fake("10", "a");
    a.asks = true;
    let a = set.join(a).await;
    set.heard();
    set.relay
        .create_container(pod("p0"), container("c1"))
        .await
        .unwrap();
    assert_eq!(
        set.heard(),
        ["10-a CreateContainer ", "update c0 Some(\"5\")"]
    );
    let ask = async |update: Vec<ContainerUpdate>| {
        let evict = vec![ContainerEviction {
            container_id: "c0".into(),
            reason: "r".into(),
        }];
        let request = api::UpdateContainersRequest { update, evict };
        let runtime = &a.runtime;
        runtime
            .update_containers(Context::default(), &request)
            .await
    };
    ask(vec![cpus("c0", "1"), cpus("gone", "bad")])
        .await
        .unwrap();
    assert_eq!(set.heard(), ["evict c0 r", "update c0 Some(\"1\")"]);
    let mut tolerant = cpus("c0", "bad");
    tolerant.ignore_failure = true;
    ask(vec![tolerant]).await.unwrap();
    let failed = ask(vec![cpus("c0", "bad")]).await.unwrap_err();
    assert!(
        failed
            .to_string()
            .contains("NRI update of some containers failed"),
        "{failed}"
    );
    assert_eq!(a.fake.name, "a");
}

#[tokio::test]
async fn plugins_correct_what_a_client_wants() {
    let set = Set::new(|_| {}).await;
    let plain = set.join(set.fake("10", "plain")).await;
    let update = |cpus: &str| {
        let wanted = resources(cpus);
        set.relay
            .update_container(pod("p0"), container("c0"), wanted)
    };
    assert_eq!(update("0").await.unwrap(), None);
    let mut a = set.fake("20", "a");
    a.resources = Some(resources("7"));
    a.update = vec![cpus("c0", "7")];
    let _a = set.join(a).await;
    let conflict = update("0").await.unwrap_err().to_string();
    assert_eq!(
        conflict,
        "plugins \"20-a\" and \"20-a\" both tried to set CPUSetCPUs"
    );
    drop(plain);
    let set = Set::new(|_| {}).await;
    let mut a = set.fake("20", "a");
    a.resources = Some(resources("7"));
    let _a = set.join(a).await;
    let wanted = set
        .relay
        .update_container(pod("p0"), container("c0"), resources("0"));
    assert_eq!(wanted.await.unwrap().unwrap().cpu.unwrap().cpus, "7");
}

#[tokio::test]
async fn old_plugins_hear_state_changes_and_cannot_be_told_in_parts() {
    let set = Set::new(|_| {}).await;
    let mut old = set.fake("10", "old");
    old.old = true;
    let _old = set.join(old).await;
    set.heard();
    set.relay.run_pod_sandbox(pod("p1")).await.unwrap();
    set.relay.stop_pod_sandbox(pod("p1")).await.unwrap();
    assert_eq!(
        set.heard(),
        [
            "10-old StateChange RUN_POD_SANDBOX",
            "10-old StateChange STOP_POD_SANDBOX"
        ]
    );
    let large = "x".repeat(3 << 20);
    for id in ["c2", "c3"] {
        let mut c = container(id);
        c.args = vec![large.clone()];
        set.node.containers.lock().push(c);
    }
    let _new = set.join(set.fake("20", "new")).await;
    assert_eq!(
        set.heard()[1..],
        ["20-new Synchronize 1+2", "20-new Synchronize 0+1"]
    );
    let mut old = set.fake("30", "old");
    old.old = true;
    let (old, registered) = old.connect(&set.socket()).await;
    registered.unwrap();
    old.mux.ended().await;
    assert_eq!(set.relay.plugins(), ["10-old", "20-new"]);
}

#[tokio::test]
async fn validators_see_the_whole_and_may_reject_it() {
    let set = Set::new(|c| {
        c.default_validator = DefaultValidator {
            enable: true,
            required_plugins: vec!["a".into()],
            ..Default::default()
        };
    })
    .await;
    assert!(set.relay.active());
    let create = || set.relay.create_container(pod("p0"), container("c1"));
    assert_eq!(
        create().await.unwrap_err().to_string(),
        "validator \"00-default-validator\" rejected container adjustment, reason: \
         validation error: required plugin \"a\" not present"
    );
    let mut a = set.fake("10", "a");
    // All.
    a.events = 0;
    let a = set.join(a).await;
    set.heard();
    create().await.unwrap();
    assert_eq!(
        set.heard(),
        ["10-a CreateContainer ", "10-a Validate default-validator,a"]
    );
    let mut b = set.fake("20", "b");
    b.events = 0;
    b.rejects = Some("");
    let _b = set.join(b).await;
    assert_eq!(
        create().await.unwrap_err().to_string(),
        "validator \"20-b\" rejected container adjustment, reason: unknown rejection reason"
    );
    drop(a);
}

#[tokio::test]
async fn who_does_not_introduce_itself_properly_is_not_admitted() {
    let set = Set::new(|_| {}).await;
    let (bad, answer) = set.fake("1", "a").connect(&set.socket()).await;
    let text = answer.unwrap_err().to_string();
    assert!(text.contains("invalid plugin index \\\"1\\\""), "{text}");
    bad.mux.ended().await;
    let mut greedy = set.fake("10", "greedy");
    greedy.events = 1 << 20;
    let (greedy, _) = greedy.connect(&set.socket()).await;
    greedy.mux.ended().await;
    // One that says nothing.
    let mut silent = UnixStream::connect(set.socket()).await.unwrap();
    let mut byte = [0];
    let end = tokio::io::AsyncReadExt::read(&mut silent, &mut byte);
    let end = tokio::time::timeout(Duration::from_secs(5), end).await;
    assert_eq!(end.unwrap().unwrap(), 0);
    let _good = set.join(set.fake("10", "good")).await;
    assert_eq!(set.relay.plugins(), ["10-good"]);
}

#[tokio::test]
async fn a_request_keeps_newcomers_waiting_and_stop_ends_all() {
    let set = Set::new(|_| {}).await;
    let block = set.relay.block_sync().await;
    let (a, registered) = set.fake("10", "a").connect(&set.socket()).await;
    registered.unwrap();
    until(|| set.log.lock().len() == 1).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(set.heard(), ["10-a Configure containerd"]);
    drop(block);
    until(|| set.relay.active()).await;
    set.relay.stop().await;
    a.mux.ended().await;
    assert!(!set.socket().exists());
}

#[tokio::test]
async fn the_configuration_turns_it_off() {
    let off = Set::new(|c| c.disable = true).await;
    assert!(!off.relay.enabled() && !off.relay.active() && !off.socket().exists());
    off.relay.run_pod_sandbox(pod("p1")).await.unwrap();
    let adjust = off.relay.create_container(pod("p1"), container("c1")).await;
    assert_eq!(adjust.unwrap(), None);
    let closed = Set::new(|c| c.disable_connections = true).await;
    assert!(closed.relay.enabled() && !closed.socket().exists());
}

#[tokio::test]
async fn installed_plugins_are_launched_and_broken_ones_left_out() {
    use std::os::unix::fs::PermissionsExt;
    let seen = tempfile::NamedTempFile::new().unwrap();
    let set = Set::new(|c| {
        std::fs::create_dir_all(&c.plugin_path).unwrap();
        let script = format!(
            "#!/bin/sh\n{{ env; test -S /proc/self/fd/3 && echo socket; }} > {}\nexit 1\n",
            seen.path().display()
        );
        let path = c.plugin_path.join("10-broken");
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    })
    .await;
    assert_eq!(set.relay.plugins().len(), 0);
    let text = std::fs::read_to_string(seen.path()).unwrap();
    for line in [
        "NRI_PLUGIN_NAME=broken",
        "NRI_PLUGIN_IDX=10",
        "NRI_PLUGIN_SOCKET=3",
        "socket",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} in {text}");
    }
}
