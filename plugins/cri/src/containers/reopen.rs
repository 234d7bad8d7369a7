//! ReopenContainerLog: after somebody, such as the kubelet, has renamed the file.

use std::sync::Arc;

use corten_core::{Error, Kind, Result};
use corten_protos::runtime::v1::{
    ContainerState, ReopenContainerLogRequest, ReopenContainerLogResponse,
};

use crate::cri::Cri;

impl Cri {
    /// # Errors
    /// NotFound; of no class: the container does not run. Those of the file system: the old file stays in use.
    pub async fn reopen_container_log(
        self: &Arc<Self>,
        r: ReopenContainerLogRequest,
    ) -> Result<ReopenContainerLogResponse> {
        let container = self.containers.get(&r.container_id)?;
        if container.state() != ContainerState::ContainerRunning {
            return Err(Error::new(Kind::Unknown, "container is not running"));
        }
        let copier = container.io.read().clone();
        match copier {
            Some(copier) => copier.reopen().await?,
            None => {
                self.container_task(&container.id)
                    .await?
                    .reopen_log("")
                    .await?;
            }
        }
        Ok(ReopenContainerLogResponse {})
    }
}
