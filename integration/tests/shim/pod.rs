//! A sandbox that its shim holds, as a daemon's controller sees it, and what runs in it.

use std::fs;
use std::sync::Arc;

use corten_integration::cgroup::directory;
use corten_integration::leaks::remove_namespace_cgroups;
use corten_protos::any;
use corten_protos::containerd::runtime::sandbox::v1::{
    CreateSandboxRequest, SandboxMetricsRequest, ShutdownSandboxRequest, StartSandboxRequest,
    StopSandboxRequest,
};
use corten_protos::google::protobuf::Any;
use corten_protos::runtime::v1::{LinuxPodSandboxConfig, PodSandboxConfig};
use corten_protos::ttrpc::SandboxClient;
use serde_json::json;

use crate::container::{Container, Shim, context, within};
use crate::host::{Host, is_reference};

/// See the file's note.
pub(crate) struct Pod {
    pub(crate) id: String,
    pub(crate) shim: u32,
    pub(crate) holder: u32,
    host: Arc<Host>,
    sandbox: SandboxClient,
    options: Option<Any>,
    containers: Vec<Container>,
}

// === impl Pod ===

impl Pod {
    /// Makes and starts one; `options` are the runtime's, `config` is the CRI's.
    pub(crate) async fn start(
        h: &Arc<Host>,
        id: &str,
        options: Option<Any>,
        config: Option<PodSandboxConfig>,
    ) -> Self {
        let bundle = h.bundle(id);
        fs::create_dir_all(&bundle).unwrap();
        let answer = h.start(id, options.as_ref(), None).await;
        let connection = Shim::connect(&answer.address).await;
        let sandbox = SandboxClient::new(connection.client);
        let create = CreateSandboxRequest {
            sandbox_id: id.to_owned(),
            bundle_path: bundle.display().to_string(),
            options: config.map(|config| any::pack(&config)),
            ..CreateSandboxRequest::default()
        };
        within("CreateSandbox", sandbox.create_sandbox(context(), &create))
            .await
            .unwrap();
        let start = StartSandboxRequest {
            sandbox_id: id.to_owned(),
        };
        let started = within("StartSandbox", sandbox.start_sandbox(context(), &start)).await;
        Self {
            id: id.to_owned(),
            shim: 0,
            holder: started.unwrap().pid,
            host: h.clone(),
            sandbox,
            options,
            containers: Vec::new(),
        }
    }

    /// Adds a container that sleeps, in a cgroup of its own unless one is named; gives its pid.
    pub(crate) async fn add(&mut self, cgroup: &str) -> u32 {
        let id = format!("{}c{}", self.id, self.containers.len());
        let mut recipe = self
            .host
            .container(&id, &["sleep", "1000000"])
            .pod(&self.id);
        if !cgroup.is_empty() {
            recipe = recipe.set("/linux/cgroupsPath", cgroup.into());
        }
        if let Some(options) = &self.options {
            recipe = recipe.options(options.clone());
        }
        let c = recipe.make().await;
        c.create().await.unwrap();
        let pid = c.start().await.unwrap();
        self.shim = c.connect().await.shim_pid;
        self.containers.push(c);
        pid
    }

    /// What its cgroup counts, as the message that its host's cgroups ask for.
    pub(crate) async fn metrics(&self) -> Any {
        let request = SandboxMetricsRequest {
            sandbox_id: self.id.clone(),
        };
        let call = self.sandbox.sandbox_metrics(context(), &request);
        let answer = within("SandboxMetrics", call).await.unwrap();
        answer.metrics.and_then(|m| m.data).expect("numbers")
    }

    pub(crate) async fn stop(self) {
        for c in &self.containers {
            assert_eq!(c.kill_and_delete().await, 137);
        }
        let stop = StopSandboxRequest {
            sandbox_id: self.id.clone(),
            timeout_secs: 5,
        };
        within("StopSandbox", self.sandbox.stop_sandbox(context(), &stop))
            .await
            .unwrap();
        let shutdown = ShutdownSandboxRequest {
            sandbox_id: self.id,
        };
        // The shim may be gone before it answers.
        let _ = within(
            "ShutdownSandbox",
            self.sandbox.shutdown_sandbox(context(), &shutdown),
        )
        .await;
    }
}

/// A pod whose cgroup is below `parent`.
pub(crate) fn below(parent: &str) -> PodSandboxConfig {
    PodSandboxConfig {
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: parent.to_owned(),
            ..LinuxPodSandboxConfig::default()
        }),
        ..PodSandboxConfig::default()
    }
}

/// How many processes a cgroup of either version counts.
pub(crate) fn processes(metrics: &Any) -> u64 {
    use corten_protos::io::containerd::cgroups::{v1, v2};
    if any::is::<v2::Metrics>(metrics) {
        let metrics: v2::Metrics = any::unpack(metrics).unwrap();
        return metrics.pids.map_or(0, |p| p.current);
    }
    let metrics: v1::Metrics = any::unpack(metrics).unwrap();
    metrics.pids.map_or(0, |p| p.current)
}

/// A pod is measured as a whole: the group that the kubelet made.
pub(crate) async fn a_pod_tells_what_all_of_it_uses(h: Arc<Host>) {
    if is_reference() {
        println!("Corten only: the stock shim has no sandbox service");
        return;
    }
    let parent = format!("/{}/pod", h.namespace);
    let mut pod = Pod::start(&h, "p", None, Some(below(&parent))).await;
    for name in ["a", "b"] {
        pod.add(&format!("{parent}/{name}")).await;
    }
    // The holder, and one process of each container.
    assert_eq!(processes(&pod.metrics().await), 3);
    pod.stop().await;
    // As the kubelet does, who made it.
    remove_namespace_cgroups(&h.namespace);
}

/// The document of `ctr oci spec` names the cgroup that all containers of the namespace are below.
pub(crate) async fn a_client_s_sandbox_leaves_others_alone(h: Arc<Host>) {
    if is_reference() {
        println!("Corten only: the stock shim has no sandbox service");
        return;
    }
    let other = h.running("other", &["sleep", "1000000"]).await;
    let document = json!({
        "ociVersion": "1.1.0",
        "linux": {"cgroupsPath": format!("/{}", h.namespace), "namespaces": [{"type": "ipc"}]},
    });
    fs::create_dir_all(h.bundle("p")).unwrap();
    fs::write(h.bundle("p").join("config.json"), document.to_string()).unwrap();
    let pod = Pod::start(&h, "p", None, None).await;
    let (dir, _) = directory(pod.holder, "pids");
    assert!(
        dir.ends_with(format!("{}/p", h.namespace)),
        "{}",
        dir.display()
    );
    pod.stop().await;
    assert_eq!(other.run("e", &["true"]).await, 0);
    assert_eq!(other.kill_and_delete().await, 137);
}
