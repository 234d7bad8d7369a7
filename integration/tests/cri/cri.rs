//! One test's view of a daemon: clients of the CRI that wait for each answer, pods and containers in short, and what must
//! be gone at the end.

use std::fmt::Debug;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use corten_integration::leaks;
use corten_integration::peers;
use corten_integration::process::{Cmd, DEADLINE, eventually, patience};
use corten_protos::runtime::v1::image_service_client::ImageServiceClient;
use corten_protos::runtime::v1::runtime_service_client::RuntimeServiceClient;
use corten_protos::runtime::v1::{self, ContainerState, NamespaceMode};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

use crate::machine::Machine;

/// What a message may be long in tests: more than either daemon sends.
const MESSAGE: usize = 64 << 20;

/// Calls a method of the runtime service and waits for its answer.
#[macro_export]
macro_rules! rpc {
    ($cri:expr, $method:ident($request:expr)) => {{
        let mut client = $cri.runtime();
        $cri.wait(client.$method($request))
    }};
}

/// Calls a method of the image service and waits for its answer.
#[macro_export]
macro_rules! image_rpc {
    ($cri:expr, $method:ident($request:expr)) => {{
        let mut client = $cri.images();
        $cri.wait(client.$method($request))
    }};
}

/// Everything a test needs.
#[derive(Debug)]
pub(crate) struct Cri {
    pub(crate) machine: Arc<Machine>,
    /// Unique on the machine: the uid of this test's pods starts with it.
    pub(crate) name: String,
    /// A directory for the test's own files; gone at the end.
    pub(crate) dir: PathBuf,
    runtime: tokio::runtime::Runtime,
    channel: Channel,
    /// Pods and containers made.
    made: Mutex<Vec<String>>,
}

/// A pod that runs, and what it was made from.
#[derive(Debug, Clone)]
pub(crate) struct Pod {
    pub(crate) id: String,
    pub(crate) config: v1::PodSandboxConfig,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

// === impl Cri ===

impl Cri {
    #[must_use]
    pub(crate) fn new(machine: Arc<Machine>) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("cri{}x{number}z", std::process::id());
        let dir = machine.daemon.base.join("n").join(&name);
        fs::create_dir_all(dir.join("logs")).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("threads can be made");
        let address = format!("unix://{}", machine.daemon.socket().display());
        let channel = {
            let _inside = runtime.enter();
            Endpoint::from_shared(address)
                .expect("a path makes an address")
                .connect_lazy()
        };
        Self {
            machine,
            name,
            dir,
            runtime,
            channel,
            made: Mutex::default(),
        }
    }

    /// True if the daemon under test is stock containerd.
    #[must_use]
    pub(crate) fn is_reference(&self) -> bool {
        self.machine.is_reference()
    }

    #[must_use]
    pub(crate) fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE)
            .max_encoding_message_size(MESSAGE)
    }

    #[must_use]
    pub(crate) fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE)
            .max_encoding_message_size(MESSAGE)
    }

    /// The answer of a call.
    ///
    /// # Errors
    /// The daemon's.
    pub(crate) fn wait<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Status> {
        self.block(call).map(Response::into_inner)
    }

    /// Waits for anything that tokio runs.
    pub(crate) fn block<T>(&self, what: impl Future<Output = T>) -> T {
        let deadline = DEADLINE * patience();
        self.runtime
            .block_on(async { tokio::time::timeout(deadline, what).await })
            .unwrap_or_else(|_| panic!("no answer in {deadline:?}"))
    }

    // --- pods

    /// The config of a pod on the host's network.
    #[must_use]
    pub(crate) fn pod_config(&self, name: &str) -> v1::PodSandboxConfig {
        let mut config = self.cni_config(name);
        self.security(&mut config).namespace_options = Some(v1::NamespaceOption {
            network: NamespaceMode::Node.into(),
            ..Default::default()
        });
        config
    }

    /// The config of a pod with a network of its own.
    #[must_use]
    pub(crate) fn cni_config(&self, name: &str) -> v1::PodSandboxConfig {
        v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                name: name.into(),
                uid: format!("{}-{name}", self.name),
                namespace: "tests".into(),
                attempt: 0,
            }),
            labels: [("test".to_owned(), self.name.clone())].into(),
            log_directory: self.dir.join("logs").to_string_lossy().into_owned(),
            linux: Some(v1::LinuxPodSandboxConfig {
                cgroup_parent: self.machine.world.cgroup.clone(),
                security_context: Some(v1::LinuxSandboxSecurityContext::default()),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// The security context of such a config.
    pub(crate) fn security<'a>(
        &self,
        config: &'a mut v1::PodSandboxConfig,
    ) -> &'a mut v1::LinuxSandboxSecurityContext {
        let linux = config.linux.get_or_insert_default();
        linux.security_context.get_or_insert_default()
    }

    /// RunPodSandbox.
    ///
    /// # Errors
    /// The daemon's.
    pub(crate) fn try_run(&self, config: &v1::PodSandboxConfig) -> Result<Pod, Status> {
        self.try_run_with(config, "")
    }

    /// RunPodSandbox with a handler.
    ///
    /// # Errors
    /// The daemon's.
    pub(crate) fn try_run_with(
        &self,
        config: &v1::PodSandboxConfig,
        handler: &str,
    ) -> Result<Pod, Status> {
        let request = v1::RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: handler.into(),
        };
        let id = rpc!(self, run_pod_sandbox(request))?.pod_sandbox_id;
        self.made.lock().unwrap().push(id.clone());
        Ok(Pod {
            id,
            config: config.clone(),
        })
    }

    #[track_caller]
    pub(crate) fn run(&self, config: &v1::PodSandboxConfig) -> Pod {
        self.try_run(config)
            .unwrap_or_else(|e| panic!("run a pod: {e}"))
    }

    /// A pod on the host's network.
    #[track_caller]
    pub(crate) fn pod(&self) -> Pod {
        self.run(&self.pod_config("pod"))
    }

    pub(crate) fn stop_pod(&self, id: &str) {
        let request = v1::StopPodSandboxRequest {
            pod_sandbox_id: id.into(),
        };
        rpc!(self, stop_pod_sandbox(request)).unwrap_or_else(|e| panic!("stop pod {id}: {e}"));
    }

    pub(crate) fn remove_pod(&self, id: &str) {
        let request = v1::RemovePodSandboxRequest {
            pod_sandbox_id: id.into(),
        };
        rpc!(self, remove_pod_sandbox(request)).unwrap_or_else(|e| panic!("remove pod {id}: {e}"));
    }

    /// # Errors
    /// The daemon's.
    pub(crate) fn pod_status(&self, id: &str) -> Result<v1::PodSandboxStatusResponse, Status> {
        let request = v1::PodSandboxStatusRequest {
            pod_sandbox_id: id.into(),
            verbose: true,
        };
        rpc!(self, pod_sandbox_status(request))
    }

    /// Pods of this test.
    #[must_use]
    pub(crate) fn pods(&self) -> Vec<v1::PodSandbox> {
        let filter = v1::PodSandboxFilter {
            label_selector: [("test".to_owned(), self.name.clone())].into(),
            ..Default::default()
        };
        let request = v1::ListPodSandboxRequest {
            filter: Some(filter),
        };
        rpc!(self, list_pod_sandbox(request)).unwrap().items
    }

    // --- containers

    /// The config of a container of busybox, with a log of its name.
    #[must_use]
    pub(crate) fn container_config(&self, name: &str, argv: &[&str]) -> v1::ContainerConfig {
        v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata {
                name: name.into(),
                attempt: 0,
            }),
            image: Some(spec(&self.busybox())),
            command: argv.iter().map(|&a| a.to_owned()).collect(),
            log_path: format!("{name}.log"),
            labels: [("test".to_owned(), self.name.clone())].into(),
            linux: Some(v1::LinuxContainerConfig {
                security_context: Some(v1::LinuxContainerSecurityContext::default()),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// CreateContainer.
    ///
    /// # Errors
    /// The daemon's.
    pub(crate) fn create(&self, pod: &Pod, config: &v1::ContainerConfig) -> Result<String, Status> {
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config.clone()),
            sandbox_config: Some(pod.config.clone()),
        };
        let id = rpc!(self, create_container(request))?.container_id;
        self.made.lock().unwrap().push(id.clone());
        Ok(id)
    }

    /// # Errors
    /// The daemon's.
    pub(crate) fn start(&self, id: &str) -> Result<(), Status> {
        let request = v1::StartContainerRequest {
            container_id: id.into(),
        };
        rpc!(self, start_container(request)).map(|_| ())
    }

    /// A container that runs.
    #[track_caller]
    pub(crate) fn started(&self, pod: &Pod, config: &v1::ContainerConfig) -> String {
        let id = self
            .create(pod, config)
            .unwrap_or_else(|e| panic!("create a container: {e}"));
        self.start(&id)
            .unwrap_or_else(|e| panic!("start a container: {e}"));
        id
    }

    /// A pod and a container in it that sleeps.
    #[track_caller]
    pub(crate) fn sleeper(&self) -> (Pod, String) {
        let pod = self.pod();
        let id = self.started(&pod, &self.container_config("sleeper", &["sleep", "1000"]));
        (pod, id)
    }

    /// Runs a container of this config to its end; gives its status and its standard output.
    #[track_caller]
    pub(crate) fn outcome(
        &self,
        pod: &Pod,
        config: &v1::ContainerConfig,
    ) -> (v1::ContainerStatus, String) {
        let id = self.started(pod, config);
        let status = self.ended(&id);
        (status, self.logged(&config.log_path))
    }

    pub(crate) fn stop(&self, id: &str, timeout: i64) {
        let request = v1::StopContainerRequest {
            container_id: id.into(),
            timeout,
        };
        rpc!(self, stop_container(request)).unwrap_or_else(|e| panic!("stop {id}: {e}"));
    }

    pub(crate) fn remove(&self, id: &str) {
        let request = v1::RemoveContainerRequest {
            container_id: id.into(),
        };
        rpc!(self, remove_container(request)).unwrap_or_else(|e| panic!("remove {id}: {e}"));
    }

    #[track_caller]
    pub(crate) fn status(&self, id: &str) -> v1::ContainerStatus {
        let request = v1::ContainerStatusRequest {
            container_id: id.into(),
            verbose: false,
        };
        let answer = rpc!(self, container_status(request));
        answer
            .unwrap_or_else(|e| panic!("status of {id}: {e}"))
            .status
            .expect("a status")
    }

    /// The status of a container that has ended, which is waited for.
    #[track_caller]
    pub(crate) fn ended(&self, id: &str) -> v1::ContainerStatus {
        let mut last = None;
        let ended = eventually(DEADLINE, || {
            let status = self.status(id);
            let ended = status.state == i32::from(ContainerState::ContainerExited);
            last = Some(status.clone());
            ended.then_some(status)
        });
        ended.unwrap_or_else(|| panic!("still not ended: {last:?}"))
    }

    /// The config that the container was started with.
    #[must_use]
    pub(crate) fn runtime_spec(&self, id: &str) -> serde_json::Value {
        let request = v1::ContainerStatusRequest {
            container_id: id.into(),
            verbose: true,
        };
        let answer = rpc!(self, container_status(request)).unwrap();
        let info: serde_json::Value = serde_json::from_str(&answer.info["info"]).unwrap();
        info["runtimeSpec"].clone()
    }

    /// ExecSync without a time limit.
    ///
    /// # Errors
    /// The daemon's.
    pub(crate) fn exec(&self, id: &str, argv: &[&str]) -> Result<v1::ExecSyncResponse, Status> {
        let request = v1::ExecSyncRequest {
            container_id: id.into(),
            cmd: argv.iter().map(|&a| a.to_owned()).collect(),
            timeout: 0,
        };
        rpc!(self, exec_sync(request))
    }

    /// What a shell in the container prints on standard output.
    #[track_caller]
    pub(crate) fn shell(&self, id: &str, script: &str) -> String {
        let answer = self
            .exec(id, &["sh", "-c", script])
            .unwrap_or_else(|e| panic!("exec {script}: {e}"));
        let error = String::from_utf8_lossy(&answer.stderr);
        assert!(answer.exit_code == 0, "{script}: {answer:?} {error}");
        String::from_utf8_lossy(&answer.stdout).into_owned()
    }

    /// The lines of standard output of a log, without what the format puts before them.
    #[must_use]
    pub(crate) fn logged(&self, log_path: &str) -> String {
        self.log(log_path)
            .lines()
            .filter_map(|l| l.split_once(" stdout F "))
            .map(|(_, line)| format!("{line}\n"))
            .collect()
    }

    /// A log as it is.
    #[must_use]
    pub(crate) fn log(&self, log_path: &str) -> String {
        let bytes = fs::read(self.dir.join("logs").join(log_path)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    // --- images

    /// The reference of busybox, which is there.
    #[must_use]
    pub(crate) fn busybox(&self) -> String {
        let name = self.machine.world.busybox.clone();
        self.pull(&name).unwrap_or_else(|e| panic!("pull: {e}"));
        name
    }

    /// PullImage of a reference; gives its image reference.
    ///
    /// # Errors
    /// The daemon's.
    pub(crate) fn pull(&self, reference: &str) -> Result<String, Status> {
        let request = v1::PullImageRequest {
            image: Some(spec(reference)),
            ..Default::default()
        };
        image_rpc!(self, pull_image(request)).map(|a| a.image_ref)
    }

    #[must_use]
    pub(crate) fn image(&self, reference: &str) -> Option<v1::Image> {
        let request = v1::ImageStatusRequest {
            image: Some(spec(reference)),
            verbose: false,
        };
        image_rpc!(self, image_status(request)).unwrap().image
    }

    pub(crate) fn remove_image(&self, reference: &str) {
        let request = v1::RemoveImageRequest {
            image: Some(spec(reference)),
        };
        image_rpc!(self, remove_image(request)).unwrap_or_else(|e| panic!("{reference}: {e}"));
    }

    // --- streams

    /// A command of Kubernetes' own client of the streaming server.
    #[must_use]
    pub(crate) fn streams(&self, words: &str) -> Cmd {
        Cmd::new(peers::reference("streams")).words(words)
    }

    // --- end

    /// Removes the test's pods; gives what is left of them.
    #[must_use]
    pub(crate) fn finish(&self) -> Vec<String> {
        for pod in self.pods() {
            self.stop_pod(&pod.id);
            self.remove_pod(&pod.id);
        }
        let made = self.made.lock().unwrap().clone();
        let left = leaks::settle(Duration::from_secs(10), || {
            let daemon = &self.machine.daemon;
            made.iter()
                .flat_map(|id| leaks::of_id(daemon, id))
                .collect()
        });
        let _ = fs::remove_dir_all(&self.dir);
        left
    }
}

/// An image by name, and nothing else.
#[must_use]
pub(crate) fn spec(image: &str) -> v1::ImageSpec {
    v1::ImageSpec {
        image: image.into(),
        ..Default::default()
    }
}

/// An id or size as the CRI has it.
#[must_use]
pub(crate) fn number(value: i64) -> Option<v1::Int64Value> {
    Some(v1::Int64Value { value })
}

/// Fails unless this is an error of that code with that in its text.
#[track_caller]
pub(crate) fn refused<T: Debug>(answer: Result<T, Status>, code: Code, text: &str) {
    let error = answer.expect_err("this must be refused");
    assert!(
        error.code() == code && error.message().contains(text),
        "should be {code:?} with {text:?}: {error:?}"
    );
}

/// Fails unless this is an error with that in its text, of whatever code.
#[track_caller]
pub(crate) fn fails<T: Debug>(answer: Result<T, Status>, text: &str) {
    let error = answer.expect_err("this must be refused");
    assert!(
        error.message().contains(text),
        "should say {text:?}: {error:?}"
    );
}
