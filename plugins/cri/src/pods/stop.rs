//! StopPodSandbox: containers, the sandbox itself, its network. Each step is fine when it was done before.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use corten_core::keylock::KeyGuard;
use corten_core::{Context, Kind, Result};
use corten_protos::runtime::v1::{StopPodSandboxRequest, StopPodSandboxResponse};
use tracing::{info, warn};

use super::{controller, monitor, network};
use crate::Cri;
use crate::metrics::Timer;
use crate::store::pod::{Pod, State};

/// How long a controller may take to end what has no reason to go on.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the monitor of a stopped pod may take to notice.
const NOTICE: Duration = Duration::from_secs(5);

impl Cri {
    /// An unknown pod is stopped.
    ///
    /// # Errors
    /// InvalidArgument for an ambiguous id; those of the steps.
    pub async fn stop_pod_sandbox(
        self: &Arc<Self>,
        request: StopPodSandboxRequest,
    ) -> Result<StopPodSandboxResponse> {
        if let Some(pod) = find(self, &request.pod_sandbox_id)? {
            let _one = lock(self, &pod).await;
            let _block = self.block_plugins().await;
            stop(self, &pod).await?;
        }
        Ok(StopPodSandboxResponse {})
    }
}

/// The pod of that id or prefix, if there is one.
///
/// # Errors
/// InvalidArgument: several.
pub fn find(cri: &Cri, id: &str) -> Result<Option<Arc<Pod>>> {
    match cri.pods.get(id) {
        Ok(pod) => Ok(Some(pod)),
        Err(e) if e.kind() == Kind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// One stop or removal of a pod at a time.
pub async fn lock(cri: &Cri, pod: &Pod) -> KeyGuard {
    cri.locks.lock(pod.id.clone()).await
}

/// Stops a pod; the caller holds its lock.
///
/// # Errors
/// Those of the steps; what was done stays done.
pub async fn stop(cri: &Arc<Cri>, pod: &Arc<Pod>) -> Result<()> {
    let began = Instant::now();
    for container in cri.containers.list() {
        if container.sandbox_id == pod.id {
            cri.stop_container_now(&container.id)
                .await
                .with_context(|| format!("failed to stop container {:?}", container.id))?;
        }
    }
    stop_sandbox(cri, pod).await?;
    let handler = pod.metadata.read().runtime_handler.clone();
    cri.metrics.took(Timer::SandboxRuntimeStop, &handler, began);
    cri.nri_stop_pod(pod).await;
    tear_down(cri, pod).await?;
    cri.images
        .release_pod_volumes(&pod.id)
        .await
        .with_context(|| format!("failed to cleanup image mounts for sandbox {:?}", pod.id))?;
    info!(sandbox.id = %pod.id, "pod sandbox stopped");
    Ok(())
}

async fn stop_sandbox(cri: &Arc<Cri>, pod: &Arc<Pod>) -> Result<()> {
    let keeper = controller(cri, &pod.sandboxer)?;
    // Also one whose end was seen: a controller has more to take down than a process.
    match keeper.stop(&cri.ns, &pod.id, PATIENCE).await {
        Err(e) if e.kind() == Kind::NotFound => {
            warn!(sandbox.id = %pod.id, "a sandbox to be stopped is not there");
        }
        other => other.with_context(|| format!("failed to stop sandbox {:?}", pod.id))?,
    }
    if pod.state() == State::Ready {
        let mut stopped = pod.stopped.subscribe();
        let noticed = tokio::time::timeout(NOTICE, stopped.wait_for(|s| *s)).await;
        if noticed.is_err() {
            warn!(sandbox.id = %pod.id, "the end of a stopped sandbox was not seen");
        }
    }
    monitor::ended_unseen(cri, pod).await;
    Ok(())
}

async fn tear_down(cri: &Arc<Cri>, pod: &Arc<Pod>) -> Result<()> {
    let mut metadata = pod.metadata.read().clone();
    if super::request::host_network(&metadata.config) || pod.detached.load(Ordering::Acquire) {
        return Ok(());
    }
    let began = Instant::now();
    let path = metadata.netns_path.clone();
    if network::is_closed(&metadata).await? {
        // Plugins are to be told that there is none.
        metadata.netns_path.clear();
    }
    if metadata.cni_result.is_null() {
        network::abandon(cri, &metadata).await;
    } else {
        network::tear_down(cri, &metadata)
            .await
            .with_context(|| format!("failed to destroy network for sandbox {:?}", pod.id))?;
    }
    network::remove_namespace(&path).await.with_context(|| {
        format!(
            "failed to remove network namespace for sandbox {:?}",
            pod.id
        )
    })?;
    pod.detached.store(true, Ordering::Release);
    cri.metrics.took(Timer::SandboxDeleteNetwork, "", began);
    Ok(())
}
