//! UpdateContainerResources: in the specification, which is the truth from then on, and in the running container.

use std::collections::BTreeMap;
use std::sync::Arc;

use corten_core::{Context, Error, Kind, Result};
use corten_protos::runtime::v1::{
    ContainerState, LinuxContainerResources, UpdateContainerResourcesRequest,
    UpdateContainerResourcesResponse,
};
use tracing::error;

use super::{record, state};
use crate::cri::Cri;
use crate::spec::oci::Spec;
use crate::spec::{status_resources, task_resources};
use crate::store::Container;

impl Cri {
    /// # Errors
    /// NotFound; InvalidArgument; those of the shim, after which nothing has changed.
    pub async fn update_container_resources(
        self: &Arc<Self>,
        r: UpdateContainerResourcesRequest,
    ) -> Result<UpdateContainerResourcesResponse> {
        let container = self
            .containers
            .get(&r.container_id)
            .context("failed to find container")?;
        let _block = self.block_plugins().await;
        let resources = self
            .nri_update(&container, r.linux.unwrap_or_default())
            .await?;
        self.set_resources(&container, &resources)
            .await
            .context("failed to update resources")?;
        self.nri_updated(&container).await;
        Ok(UpdateContainerResourcesResponse {})
    }

    /// Changes the limits of a container, wherever they are.
    ///
    /// # Errors
    /// See [`Self::update_container_resources`].
    pub(crate) async fn set_resources(
        &self,
        container: &Arc<Container>,
        resources: &LinuxContainerResources,
    ) -> Result<()> {
        // Held to the end: neither a start nor another update comes between.
        let turn = state::lock(container).await;
        if container.status.read().removing {
            let why = format!("container {:?} is in removing state", container.id);
            return Err(Error::new(Kind::Unknown, why));
        }
        let old = record::document(&self.record(&container.id).await?)?;
        let new = self
            .specs
            .update(&old, resources)
            .context("failed to update resource in spec")?;
        self.store_spec(&container.id, &new).await?;
        let shown = status_resources(&new);
        let applied = async {
            self.apply_resources(container, &new).await?;
            turn.apply(|status| status.resources = Some(shown)).await
        };
        if let Err(e) = applied.await {
            if let Err(error) = self.store_spec(&container.id, &old).await {
                error!(container.id = %container.id, %error, "put back a specification");
            }
            return Err(e);
        }
        Ok(())
    }

    async fn apply_resources(&self, container: &Container, spec: &Spec) -> Result<()> {
        // One that does not run yet gets them from its specification.
        if container.state() != ContainerState::ContainerRunning {
            return Ok(());
        }
        let task = match self.container_task(&container.id).await {
            Ok(task) => task,
            Err(e) if e.kind() == Kind::NotFound => return Ok(()),
            Err(e) => return Err(e.context("failed to get task")),
        };
        let resources = task_resources(spec);
        match task.update(Some(resources), BTreeMap::new()).await {
            // It has ended meanwhile.
            Err(e) if e.kind() == Kind::NotFound => Ok(()),
            other => other.context("failed to update resources"),
        }
    }
}
