//! RemoveContainer: everything of a container goes; the log stays, it is the kubelet's.
//!
//! What fails leaves the container listed, and asking again goes on from there: each step is fine with what is done
//! already.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use corten_core::{Context, Kind, Result};
use corten_protos::runtime::v1::{
    ContainerEventType, ContainerState, RemoveContainerRequest, RemoveContainerResponse,
};
use tracing::info;

use super::state::{Work, Working};
use crate::cri::Cri;
use crate::metrics::Timer;
use crate::store::Container;

impl Cri {
    /// Removes a container, which is stopped at once if it runs; one that is unknown is removed.
    ///
    /// # Errors
    /// Of no class: it is being started or removed. Those of shim, store and file system.
    pub async fn remove_container(
        self: &Arc<Self>,
        r: RemoveContainerRequest,
    ) -> Result<RemoveContainerResponse> {
        let began = Instant::now();
        let container = match self.containers.get(&r.container_id) {
            Ok(container) => container,
            Err(e) if e.kind() == Kind::NotFound => return Ok(RemoveContainerResponse {}),
            Err(e) => return Err(e),
        };
        let _block = self.block_plugins().await;
        if matches!(
            container.state(),
            ContainerState::ContainerRunning | ContainerState::ContainerUnknown
        ) {
            info!(container.id = %container.id, "forcibly stopping container");
            self.stop(&container, Duration::ZERO)
                .await
                .with_context(|| format!("failed to forcibly stop container {:?}", container.id))?;
        }
        let working = Working::begin(&container, Work::Removing)
            .await
            .with_context(|| {
                format!(
                    "failed to set removing state for container {:?}",
                    container.id
                )
            })?;
        self.nri_remove(&container).await;
        self.take_apart(&container).await?;
        drop(working);
        let telling = container.telling.lock().await;
        let deleted = ContainerEventType::ContainerDeletedEvent;
        self.announce(&container.id, &container.sandbox_id, deleted)
            .await;
        drop(telling);
        self.metrics
            .took(Timer::ContainerRemove, &container.runtime, began);
        Ok(RemoveContainerResponse {})
    }

    /// The same for other RPCs.
    ///
    /// # Errors
    /// As [`Self::remove_container`].
    pub(crate) async fn remove_container_now(self: &Arc<Self>, id: &str) -> Result<()> {
        let r = RemoveContainerRequest {
            container_id: id.into(),
        };
        self.remove_container(r).await?;
        Ok(())
    }

    async fn take_apart(self: &Arc<Self>, container: &Arc<Container>) -> Result<()> {
        let id = &container.id;
        // A failed start may have left one.
        self.delete_task(id).await?;
        let containers = self.metadata.containers();
        match containers.delete(&self.scope(), id).await {
            Err(e) if e.kind() != Kind::NotFound => {
                return Err(e.context(format!("failed to delete containerd container {id:?}")));
            }
            _ => {}
        }
        self.images
            .remove_rootfs(id, &container.snapshotter)
            .await?;
        self.images
            .release_volumes(&container.sandbox_id, id)
            .await?;
        container.io.write().take();
        remove_folder(
            self.container_state(id),
            "volatile container root directory",
        )
        .await?;
        remove_folder(container.dir.clone(), "container root directory").await?;
        let (name, label) = {
            let metadata = container.metadata.read();
            (metadata.name.clone(), metadata.process_label.clone())
        };
        self.containers.remove(id);
        self.container_names.release(&name, id);
        self.specs.release(&label);
        info!(container.id = %id, "container removed");
        Ok(())
    }
}

/// Removes a folder with everything in it and on it; none is fine.
///
/// # Errors
/// The file system's.
pub(super) async fn remove_folder(path: PathBuf, what: &'static str) -> Result<()> {
    let removed = corten_sys::blocking(move || {
        // A volume that somebody mounted on keeps its inside.
        corten_sys::mount::unmount_recursive(&path, true)?;
        match std::fs::remove_dir_all(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(e).with_context(|| path.display().to_string())
            }
            _ => Ok(()),
        }
    });
    removed
        .await
        .with_context(|| format!("failed to remove {what}"))
}
