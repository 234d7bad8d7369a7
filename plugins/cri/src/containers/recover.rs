//! What a new daemon makes of the containers of an earlier one: records and status files, against the tasks that there
//! are now.
//!
//! A container that cannot be understood is unknown, never lost: it can be stopped and removed. One that hangs holds up
//! nobody else.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use corten_core::filter::Filter;
use corten_core::runtime::{State, Task};
use corten_core::{Context, Error, Kind, Result};
use corten_protos::containerd::services::containers::v1::Container as Record;
use corten_protos::containerd::v1::types::Status as TaskStatus;
use corten_protos::runtime::v1::ContainerState;
use futures::StreamExt;
use tracing::{debug, error, warn};

use super::exit::Exit;
use super::remove::remove_folder;
use super::{record, signal, state};
use crate::cri::Cri;
use crate::store::Container;
use crate::store::container::Status;

/// How long one container may take.
const EACH: Duration = Duration::from_secs(10);
/// How many are loaded at a time.
const AT_A_TIME: usize = 32;

/// Loads all containers. The pods are in the store already.
///
/// # Errors
/// The metadata store's.
pub async fn recover(cri: &Arc<Cri>) -> Result<()> {
    let filter = format!("labels.{:?}=={}", record::KIND, record::CONTAINER);
    let containers = cri.metadata.containers();
    let records = containers
        .list(&cri.ns, &Filter::parse(&[filter])?)
        .await
        .context("failed to list containers")?;
    let known: HashSet<String> = records.iter().map(|r| r.id.clone()).collect();
    futures::stream::iter(records)
        .for_each_concurrent(AT_A_TIME, async |record| {
            let id = record.id.clone();
            if let Err(error) = cri.load(record).await {
                error!(container.id = %id, %error, "failed to load container");
            }
        })
        .await;
    for base in [cri.root.join("containers"), cri.state.join("containers")] {
        remove_orphans(&base, &known).await;
    }
    Ok(())
}

/// Removes the folders of containers without a record.
async fn remove_orphans(base: &Path, known: &HashSet<String>) {
    let entries = match std::fs::read_dir(base) {
        Ok(entries) => entries,
        Err(error) => return debug!(path = %base.display(), %error, "no folders of containers"),
    };
    for entry in entries.flatten() {
        let is_known = entry
            .file_name()
            .to_str()
            .is_some_and(|n| known.contains(n));
        if is_known || !entry.file_type().is_ok_and(|t| t.is_dir()) {
            continue;
        }
        if let Err(error) = remove_folder(entry.path(), "orphaned container directory").await {
            warn!(%error, "clean up");
        }
    }
}

impl Cri {
    async fn load(self: &Arc<Self>, record: Record) -> Result<()> {
        let metadata = record::metadata(&record)?;
        let dir = self.container_root(&record.id);
        let stored = {
            let dir = dir.clone();
            corten_sys::blocking(move || state::load(&dir)).await
        };
        let status = stored.unwrap_or_else(|error| {
            warn!(container.id = %record.id, %error, "failed to load container status");
            unknown()
        });
        let runtime = record.runtime.unwrap_or_default().name;
        let name = metadata.name.clone();
        let container = Arc::new(Container::new(
            metadata,
            status,
            dir,
            record.snapshotter,
            runtime,
        ));
        let watched = tokio::time::timeout(EACH, self.compare(&container)).await;
        let watched = watched.unwrap_or_else(|_| {
            Err(Error::new(
                Kind::DeadlineExceeded,
                Kind::DeadlineExceeded.words(),
            ))
        });
        let task = match watched {
            Ok(task) => task,
            Err(error) => {
                error!(container.id = %container.id, %error, "failed to load container status");
                // The other fields may still be of use.
                container.status.write().unknown = true;
                None
            }
        };
        if container.state() == ContainerState::ContainerExited {
            container.stopped.send_replace(true);
        }
        self.containers.add(&container.id, container.clone())?;
        self.specs.reserve(&container.metadata.read().process_label);
        match self.container_names.reserve(&name, &container.id) {
            Ok(reservation) => reservation.keep(),
            Err(error) => warn!(container.id = %container.id, %error, "reserve a container's name"),
        }
        if let Some(task) = task {
            self.watch(container, task);
        }
        Ok(())
    }

    /// Brings the status up to date with the task; gives a task that runs.
    async fn compare(&self, container: &Arc<Container>) -> Result<Option<Arc<dyn Task>>> {
        let missing = |e: &Error| e.kind() == Kind::NotFound;
        let found = match self.container_task(&container.id).await {
            Err(e) if missing(&e) => None,
            Err(e) => return Err(e.context("failed to load task")),
            Ok(task) => match task.state("").await {
                Err(e) if missing(&e) => None,
                Err(e) => return Err(e.context("failed to get task status")),
                Ok(state) => Some((task, state)),
            },
        };
        let known = container.state();
        let Some((task, now)) = found else {
            if known == ContainerState::ContainerRunning {
                set(container, Exit::unknown(), Some(state::UNKNOWN)).await;
            }
            return Ok(None);
        };
        match now.status {
            TaskStatus::Created => {
                // A start that the earlier daemon did not get to the end of.
                self.clear(task.as_ref()).await?;
                if known != ContainerState::ContainerCreated {
                    return Err(unexpected(known, "created"));
                }
                Ok(None)
            }
            TaskStatus::Running | TaskStatus::Pausing | TaskStatus::Paused => {
                self.go_on(container, known, &task, &now).await?;
                Ok(Some(task))
            }
            TaskStatus::Stopped => {
                let exit = Exit {
                    code: i32::try_from(now.exit_status).unwrap_or(state::UNKNOWN_CODE),
                    at: now.exited_at.unwrap_or_else(SystemTime::now),
                };
                let oom = self.ended_by_oom(task.as_ref(), exit).await;
                self.delete_task(&container.id).await?;
                set(container, exit, oom.then_some(state::OOM_KILLED)).await;
                Ok(None)
            }
            TaskStatus::Unknown => Err(Error::internal("unexpected task status unknown")),
        }
    }

    /// Of a task that runs.
    async fn go_on(
        &self,
        container: &Arc<Container>,
        known: ContainerState,
        task: &Arc<dyn Task>,
        now: &State,
    ) -> Result<()> {
        match known {
            ContainerState::ContainerExited => return Err(unexpected(known, "running")),
            ContainerState::ContainerRunning => {}
            ContainerState::ContainerCreated | ContainerState::ContainerUnknown => {
                // The earlier daemon ended between the start and its checkpoint.
                state::change(container, |status| {
                    status.started_at = state::nanos(SystemTime::now());
                    status.pid = task.pid();
                    status.unknown = false;
                    if status.created_at == 0 {
                        status.created_at = status.started_at;
                    }
                    if status.reason == state::UNKNOWN {
                        status.reason.clear();
                        status.exit_code = 0;
                    }
                })
                .await?;
            }
        }
        if let Err(error) = self.resume_streams(container, &now.stdio).await {
            // The container goes on; what it writes waits in the FIFOs.
            warn!(container.id = %container.id, %error, "go on with a container's log");
        }
        Ok(())
    }

    async fn clear(&self, task: &dyn Task) -> Result<()> {
        // It has not come to life.
        let _ = task.kill("", signal::KILL, true).await;
        self.delete_task(task.id()).await
    }
}

async fn set(container: &Arc<Container>, exit: Exit, reason: Option<&str>) {
    if reason == Some(state::OOM_KILLED) {
        container.oom.store(true, Ordering::Release);
    }
    state::end(container, |status| {
        status.pid = 0;
        status.finished_at = state::nanos(exit.at);
        status.exit_code = exit.code;
        status.unknown = false;
        if let Some(reason) = reason {
            status.reason = reason.into();
        }
    })
    .await;
}

fn unknown() -> Status {
    Status {
        exit_code: state::UNKNOWN_CODE,
        reason: state::UNKNOWN.into(),
        unknown: true,
        ..Status::default()
    }
}

fn unexpected(state: ContainerState, task: &str) -> Error {
    let state = state::name(state);
    Error::internal(format!(
        "unexpected container state for {task} task: {state:?}"
    ))
}
