//! UpdatePodSandboxResources: what the kubelet is about to give to a pod is stored and told to who keeps it. The pod's
//! cgroup is the kubelet's to write.

use std::sync::Arc;

use corten_core::{Context, Kind, Result};
use corten_protos::runtime::v1::{
    UpdatePodSandboxResourcesRequest, UpdatePodSandboxResourcesResponse,
};

use super::record::{self, Updated};
use super::{controller, stop};
use crate::Cri;

impl Cri {
    /// # Errors
    /// NotFound; those of the store and the controller, unless it has no use for resources.
    pub async fn update_pod_sandbox_resources(
        self: &Arc<Self>,
        request: UpdatePodSandboxResourcesRequest,
    ) -> Result<UpdatePodSandboxResourcesResponse> {
        let pod = self
            .pods
            .get(&request.pod_sandbox_id)
            .context("failed to find sandbox")?;
        let _one = stop::lock(self, &pod).await;
        let updated = Updated {
            overhead: request.overhead,
            resources: request.resources,
        };
        let (overhead, resources) = (updated.overhead.as_ref(), updated.resources.as_ref());
        self.nri_update_pod(&pod, overhead, resources).await?;
        let record = record::save_resources(self, &pod.id, &updated)
            .await
            .context("failed to update sandbox store")?;
        {
            let mut status = pod.status.write();
            status.overhead = updated.overhead;
            status.resources = updated.resources;
        }
        let keeper = controller(self, &pod.sandboxer)?;
        let fields = vec!["extensions".to_owned()];
        match keeper.update(&self.ns, &pod.id, record, fields).await {
            Err(e) if e.kind() == Kind::NotImplemented => {}
            other => other.context("failed to update sandbox controller")?,
        }
        self.nri_updated_pod(&pod).await;
        Ok(UpdatePodSandboxResourcesResponse {})
    }
}
