//! RemovePodSandbox: stops the pod, removes its containers, and forgets it.

use std::sync::Arc;
use std::time::Instant;

use corten_core::{Context, Error, Kind, Result};
use corten_protos::runtime::v1::{
    ContainerEventType, RemovePodSandboxRequest, RemovePodSandboxResponse,
};
use tracing::info;

use super::stop::{find, lock, stop};
use super::{controller, network, record, request};
use crate::Cri;
use crate::metrics::Timer;
use crate::store::pod::Pod;

impl Cri {
    /// An unknown pod is removed.
    ///
    /// # Errors
    /// InvalidArgument for an ambiguous id; those of the steps.
    pub async fn remove_pod_sandbox(
        self: &Arc<Self>,
        request: RemovePodSandboxRequest,
    ) -> Result<RemovePodSandboxResponse> {
        if let Some(pod) = find(self, &request.pod_sandbox_id)? {
            let _one = lock(self, &pod).await;
            let _block = self.block_plugins().await;
            remove(self, &pod).await?;
        }
        Ok(RemovePodSandboxResponse {})
    }
}

async fn remove(cri: &Arc<Cri>, pod: &Arc<Pod>) -> Result<()> {
    let began = Instant::now();
    let id = &pod.id;
    // One that is not ready may still have a network.
    stop(cri, pod)
        .await
        .with_context(|| format!("failed to forcibly stop sandbox {id:?}"))?;
    record::release_lease(cri, id)
        .await
        .with_context(|| format!("failed to delete lease for sandbox {id:?}"))?;
    let metadata = pod.metadata.read().clone();
    if !request::host_network(&metadata.config) && !network::is_closed(&metadata).await? {
        return Err(Error::new(
            Kind::FailedPrecondition,
            format!(
                "sandbox network namespace {:?} is not fully closed",
                metadata.netns_path
            ),
        ));
    }
    for container in cri.containers.list() {
        if container.sandbox_id == *id {
            cri.remove_container_now(&container.id)
                .await
                .with_context(|| format!("failed to remove container {:?}", container.id))?;
        }
    }
    let gone = controller(cri, &pod.sandboxer)?.shutdown(&cri.ns, id).await;
    match gone {
        Err(e) if e.kind() == Kind::NotFound => {}
        other => other.with_context(|| format!("failed to delete sandbox {id:?}"))?,
    }
    let deleted = ContainerEventType::ContainerDeletedEvent;
    cri.announce(id, id, deleted).await;
    cri.nri_remove_pod(pod).await;
    // The record before the memory: a failure leaves a pod that can be removed again.
    record::delete(cri, id)
        .await
        .context("failed to remove sandbox metadata from store")?;
    cri.pods.remove(id);
    cri.pod_names.release(&metadata.name, id);
    cri.specs.release(&metadata.process_label);
    cri.metrics
        .took(Timer::SandboxRemove, &metadata.runtime_handler, began);
    info!(sandbox.id = %id, "pod sandbox removed");
    Ok(())
}
