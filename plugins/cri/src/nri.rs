//! NRI: pods and containers as plugins of other processes are told of them, and what those want of them.
//!
//! Each event has one method here, which the RPC calls at its place. What a plugin refuses before the fact fails the RPC; what
//! fails after it is logged. While nobody listens no message is built: who comes later is told by [`Kubernetes`] of all there
//! is. An RPC that fires events holds [`Cri::block_plugins`] from before the first to its end.
//!
//! No lock of a container is held while plugins are asked: they may change containers meanwhile, also this one.

mod messages;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use corten_core::nri::{
    ContainerEviction, ContainerUpdate, Domain, Nri, PodSandbox, SyncBlock, adjust,
};
use corten_core::rollback::Rollback;
use corten_core::{Any, Context, Error, Labels, Result};
use corten_protos::any;
use corten_protos::runtime::v1::{ContainerState, LinuxContainerResources};
use corten_sys::{blocking, mountinfo};
use serde_json::Value;
use tracing::error;

use crate::Cri;
use crate::cri::NAMESPACE;
use crate::spec::{Specs, oci};
use crate::store::container::{Metadata, Status};
use crate::store::pod::State;
use crate::store::{Container, Pod};

type Message = corten_core::nri::Container;

/// Lets plugins in, once everything is there that they are told of.
///
/// # Errors
/// The socket cannot be opened.
pub(crate) async fn start(cri: &Arc<Cri>) -> Result<()> {
    let Some(nri) = cri.nri.as_ref().filter(|nri| nri.enabled()) else {
        return Ok(());
    };
    nri.register(Arc::new(Kubernetes(cri.clone())))?;
    nri.start()
        .await
        .context("failed to set up NRI for CRI service")
}

impl Cri {
    /// Keeps new plugins out until it is dropped.
    pub(crate) async fn block_plugins(&self) -> SyncBlock {
        match &self.nri {
            Some(nri) => nri.block_sync().await,
            None => SyncBlock::none(),
        }
    }

    /// A pod runs; it is not in the store yet.
    ///
    /// # Errors
    /// A plugin refused it.
    pub(crate) async fn nri_run_pod(&self, pod: &Arc<Pod>, undo: &mut Rollback) -> Result<()> {
        let Some(nri) = self.listened() else {
            return Ok(());
        };
        let message = self.pod_message(pod).await;
        let ran = nri.run_pod_sandbox(message.clone()).await;
        ran.context("NRI RunPodSandbox failed")?;
        let nri = nri.clone();
        undo.push("NRI", async move { nri.remove_pod_sandbox(message).await });
        Ok(())
    }

    /// A pod stopped; its network is still there.
    pub(crate) async fn nri_stop_pod(&self, pod: &Pod) {
        if let Some(nri) = self.listened() {
            let message = self.pod_message(pod).await;
            log("stop of a pod", nri.stop_pod_sandbox(message).await);
        }
    }

    /// A pod is removed.
    pub(crate) async fn nri_remove_pod(&self, pod: &Pod) {
        if let Some(nri) = self.listened() {
            let message = self.pod_message(pod).await;
            log("removal of a pod", nri.remove_pod_sandbox(message).await);
        }
    }

    /// A pod's resources are about to change.
    ///
    /// # Errors
    /// A plugin refused.
    pub(crate) async fn nri_update_pod(
        &self,
        pod: &Pod,
        overhead: Option<&LinuxContainerResources>,
        resources: Option<&LinuxContainerResources>,
    ) -> Result<()> {
        let Some(nri) = self.listened() else {
            return Ok(());
        };
        let message = self.pod_message(pod).await;
        let overhead = overhead.map(messages::resources);
        let resources = resources.map(messages::resources);
        nri.update_pod_sandbox(message, overhead, resources)
            .await
            .context("NRI sandbox update failed")
    }

    /// A pod's resources changed.
    pub(crate) async fn nri_updated_pod(&self, pod: &Pod) {
        if let Some(nri) = self.listened() {
            let message = self.pod_message(pod).await;
            log(
                "update of a pod",
                nri.post_update_pod_sandbox(message).await,
            );
        }
    }

    /// A container's specification as plugins want it.
    ///
    /// # Errors
    /// A plugin refused, two wanted different things, or it cannot be had.
    pub(crate) async fn nri_create(
        &self,
        pod: &Pod,
        metadata: &Metadata,
        labels: &Labels,
        spec: Any,
        undo: &mut Rollback,
    ) -> Result<Any> {
        let Some(nri) = self.listened() else {
            return Ok(spec);
        };
        let mut document: Value = serde_json::from_slice(&spec.value)
            .map_err(|e| Error::internal("read a container's specification").with_source(e))?;
        let pod = self.pod_message(pod).await;
        let container = messages::container(metadata, &Status::default(), labels, &document);
        let (told, undone) = (nri.clone(), (pod.clone(), container.clone()));
        undo.push("NRI", async move {
            told.remove_container(undone.0, undone.1).await
        });
        let wanted = nri
            .create_container(pod, container)
            .await
            .context("failed to get NRI adjustment for container")
            .context("failed to create containerd container")?;
        let Some(wanted) = wanted else {
            return Ok(spec);
        };
        let host = Host {
            specs: self.specs.clone(),
            hugetlb: !self.runtime.disable_hugetlb_controller,
        };
        let document = blocking(move || {
            adjust::adjust(&mut document, &wanted, &host)?;
            Ok(document)
        })
        .await
        .context("failed to NRI-adjust container Spec")?;
        Ok(any::pack_json(&spec.type_url, document.to_string()))
    }

    /// A container was created.
    pub(crate) async fn nri_created(&self, container: &Container) {
        if let Some(nri) = self.listened() {
            let (pod, message) = self.both(container).await;
            let told = nri.post_create_container(pod, message).await;
            log("creation of a container", told);
        }
    }

    /// A container's process is about to start.
    ///
    /// # Errors
    /// A plugin refused.
    pub(crate) async fn nri_start(&self, container: &Container) -> Result<()> {
        let Some(nri) = self.listened() else {
            return Ok(());
        };
        let (pod, message) = self.both(container).await;
        nri.start_container(pod, message)
            .await
            .context("NRI container start failed")
    }

    /// A container's process started.
    pub(crate) async fn nri_started(&self, container: &Container) {
        if let Some(nri) = self.listened() {
            let (pod, message) = self.both(container).await;
            let told = nri.post_start_container(pod, message).await;
            log("start of a container", told);
        }
    }

    /// What a container gets instead of the resources that a client wants.
    ///
    /// # Errors
    /// A plugin refused, or two wanted different things.
    pub(crate) async fn nri_update(
        &self,
        container: &Container,
        wanted: LinuxContainerResources,
    ) -> Result<LinuxContainerResources> {
        let Some(nri) = self.listened() else {
            return Ok(wanted);
        };
        let (pod, message) = self.both(container).await;
        let set = nri
            .update_container(pod, message, messages::resources(&wanted))
            .await
            .context("NRI container update failed")?;
        Ok(match set {
            Some(set) => messages::overlay(wanted, &set),
            None => wanted,
        })
    }

    /// A container's resources changed.
    pub(crate) async fn nri_updated(&self, container: &Container) {
        if let Some(nri) = self.listened() {
            let (pod, message) = self.both(container).await;
            let told = nri.post_update_container(pod, message).await;
            log("update of a container", told);
        }
    }

    /// A container was stopped, or will not start.
    pub(crate) async fn nri_stop(&self, container: &Container) {
        if let Some(nri) = self.listened() {
            let (pod, message) = self.both(container).await;
            log(
                "stop of a container",
                nri.stop_container(pod, message).await,
            );
        }
    }

    /// A container ended. Nobody waits for what plugins make of it.
    pub(crate) async fn nri_exited(&self, container: &Container) {
        if let Some(nri) = self.listened() {
            let (pod, message) = self.both(container).await;
            nri.notify_container_exit(pod, message);
        }
    }

    /// A container is removed.
    pub(crate) async fn nri_remove(&self, container: &Container) {
        if let Some(nri) = self.listened() {
            let (pod, message) = self.both(container).await;
            let told = nri.remove_container(pod, message).await;
            log("removal of a container", told);
        }
    }

    fn listened(&self) -> Option<&Arc<dyn Nri>> {
        self.nri.as_ref().filter(|nri| nri.active())
    }

    async fn both(&self, container: &Container) -> (PodSandbox, Message) {
        let pod = match self.pods.get(&container.sandbox_id) {
            Ok(pod) => self.pod_message(&pod).await,
            // It may be gone before its containers.
            Err(_) => PodSandbox {
                id: container.sandbox_id.clone(),
                ..PodSandbox::default()
            },
        };
        (pod, self.container_message(container).await)
    }

    async fn pod_message(&self, pod: &Pod) -> PodSandbox {
        let record = self.metadata.sandboxes().get(&self.ns, &pod.id).await;
        let record = record.unwrap_or_default();
        let (metadata, status) = (pod.metadata.read().clone(), pod.status.read().clone());
        let mut message = messages::pod(
            &metadata,
            &status,
            &record.labels,
            &parse(record.spec.as_ref()),
        );
        if let Some(linux) = &mut message.linux {
            // containerd internal/cri/nri/nri_api_linux.go: not a namespace that was taken down.
            linux.namespaces.retain(|n| {
                n.r#type != "network" || (!n.path.is_empty() && Path::new(&n.path).exists())
            });
        }
        message
    }

    async fn container_message(&self, container: &Container) -> Message {
        let record = self.record(&container.id).await.unwrap_or_default();
        let (metadata, mut status) = (
            container.metadata.read().clone(),
            container.status.read().clone(),
        );
        if status.pid == 0
            && status.state() == ContainerState::ContainerCreated
            && let Ok(task) = self.container_task(&container.id).await
        {
            // About to start.
            status.pid = task.pid();
        }
        let spec = parse(record.spec.as_ref());
        messages::container(&metadata, &status, &record.labels, &spec)
    }
}

fn parse(spec: Option<&Any>) -> Value {
    let parsed = spec.and_then(|any| serde_json::from_slice(&any.value).ok());
    parsed.unwrap_or_default()
}

fn log(what: &str, told: Result<()>) {
    if let Err(error) = told {
        error!(%error, what, "NRI notification failed");
    }
}

/// The host as adjustments of specifications see it.
struct Host {
    specs: Arc<Specs>,
    hugetlb: bool,
}

impl adjust::Host for Host {
    fn hugetlb(&self) -> bool {
        self.hugetlb
    }

    fn block_io(&self, class: &str) -> Result<Option<Value>> {
        let meaning = self.specs.block_io(class)?;
        serde_json::to_value(meaning)
            .map(Some)
            .map_err(|e| Error::internal("encode a class of block I/O").with_source(e))
    }

    fn inject_cdi(&self, spec: &mut Value, devices: &[String]) -> Result<()> {
        let document = any::pack_json(any::OCI_SPEC, spec.to_string());
        let mut document = oci::Spec::from_any(&document)?;
        self.specs.inject_cdi(&mut document, devices)?;
        *spec = parse(Some(&document.to_any()));
        Ok(())
    }

    fn propagation(&self, path: &str) -> Result<Option<&'static str>> {
        let mounts = mountinfo::all()?;
        // Later mounts cover earlier ones.
        let over = mounts
            .iter()
            .filter(|m| Path::new(path).starts_with(&m.path));
        let on = over.max_by_key(|m| m.path.components().count());
        let mut fields = on.iter().flat_map(|m| m.optional.split(' '));
        Ok(fields.find_map(|field| match field.split(':').next() {
            Some("shared") => Some("rshared"),
            Some("master") => Some("rslave"),
            _ => None,
        }))
    }
}

/// Everything of Kubernetes, for plugins.
struct Kubernetes(Arc<Cri>);

#[async_trait]
impl Domain for Kubernetes {
    fn namespace(&self) -> &str {
        NAMESPACE
    }

    async fn pods(&self) -> Vec<PodSandbox> {
        let mut out = Vec::new();
        for pod in self.0.pods.list() {
            if pod.state() != State::Unknown {
                out.push(self.0.pod_message(&pod).await);
            }
        }
        out
    }

    async fn containers(&self) -> Vec<Message> {
        let mut out = Vec::new();
        for container in self.0.containers.list() {
            if matches!(
                container.state(),
                ContainerState::ContainerCreated | ContainerState::ContainerRunning
            ) {
                out.push(self.0.container_message(&container).await);
            }
        }
        out
    }

    fn has_container(&self, id: &str) -> bool {
        self.0.containers.get(id).is_ok_and(|c| c.id == id)
    }

    async fn update_container(&self, update: &ContainerUpdate) -> Result<()> {
        let container = self.0.containers.get(&update.container_id)?;
        let resources = update.linux.as_ref().and_then(|l| l.resources.as_ref());
        let Some(resources) = resources else {
            return Ok(());
        };
        let resources = messages::overlay(LinuxContainerResources::default(), resources);
        self.0.set_resources(&container, &resources).await
    }

    async fn evict_container(&self, eviction: &ContainerEviction) -> Result<()> {
        let container = self.0.containers.get(&eviction.container_id)?;
        // Not by the RPC, which would tell plugins of it and wait for them.
        self.0.stop(&container, Duration::ZERO).await
    }
}
