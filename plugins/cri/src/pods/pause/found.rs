//! Pause containers that a new daemon finds.

use std::sync::Arc;

use corten_core::{Context, Error, Kind, Result};
use corten_protos::containerd::services::containers::v1::Container;
use corten_protos::containerd::types::sandbox;
use corten_protos::containerd::v1::types::Status;
use serde_json::{Value, json};
use tracing::warn;

use super::{Entry, Pause, Phase};
use crate::Cri;
use crate::store;
use crate::store::pod::{self, Metadata, State};

impl Pause {
    /// Takes over the pod of a pause container.
    ///
    /// # Errors
    /// InvalidArgument or NotFound: the record is not one of the CRI's.
    pub async fn take_over(
        &self,
        cri: &Arc<Cri>,
        container: &Container,
    ) -> Result<(Metadata, Phase)> {
        let extension = container
            .extensions
            .get(pod::METADATA)
            .ok_or_else(|| Error::not_found(format!("metadata extension {:?}", pod::METADATA)))?;
        let metadata: Metadata = store::decode(extension)?;
        let runtime = container.runtime.clone().unwrap_or_default();
        let runtime = sandbox::Runtime {
            name: runtime.name,
            options: runtime.options,
        };
        let phase = Phase {
            created_at: container.created_at,
            container: true,
            ..Phase::default()
        };
        let entry = Entry::new(metadata.clone(), runtime, phase);
        if let Err(error) = look(cri, &entry).await {
            warn!(sandbox.id = %container.id, %error, "failed to load the status of a sandbox");
        }
        self.keep(&entry);
        Ok((metadata, entry.phase()))
    }
}

/// Finds out how its task is and follows it; a task that has ended is deleted.
async fn look(cri: &Arc<Cri>, entry: &Arc<Entry>) -> Result<()> {
    let none = |e: &Error| e.kind() == Kind::NotFound;
    let gone = || {
        entry.phase.send_modify(|phase| {
            phase.state = State::NotReady;
            phase.exit = Some((super::UNKNOWN, std::time::SystemTime::now()));
        });
    };
    let task = match cri.tasks.get(&cri.ns, &entry.id).await {
        Ok(task) => task,
        Err(e) if none(&e) => {
            gone();
            return Ok(());
        }
        Err(e) => return Err(e).context("failed to load task"),
    };
    match task.state("").await {
        Ok(state) if state.status == Status::Running => {
            let pid = state.pid;
            entry.phase.send_modify(|phase| {
                phase.state = State::Ready;
                phase.pid = pid;
            });
            entry.watch(cri, task);
            Ok(())
        }
        Ok(_) => {
            entry
                .delete_task(cri)
                .await
                .context("failed to delete task")?;
            gone();
            Ok(())
        }
        Err(e) if none(&e) => {
            gone();
            Ok(())
        }
        Err(e) => Err(e).context("failed to get task status"),
    }
}

/// What a verbose status shows of the container.
pub async fn shown(cri: &Cri, id: &str) -> Option<Value> {
    let record = cri.metadata.containers().get(&cri.ns, id).await.ok()?;
    let spec = record.spec.as_ref();
    let spec: Option<Value> = spec.and_then(|s| serde_json::from_slice(&s.value).ok());
    Some(json!({
        "image": record.image,
        "snapshotKey": record.snapshot_key,
        "snapshotter": record.snapshotter,
        "runtimeSpec": spec,
    }))
}
