//! StartContainer: a task for a created container.
//!
//! Done by a background task: a client that goes away is noticed there, and ends the attempt like any failure. A
//! container that could not be started has exited with 128 and reason StartError; if its task could not be got rid of,
//! it is unknown, so that removing it tries again.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use corten_core::runtime::{CreateOptions, Task};
use corten_core::{Any, Context, Error, Kind, Result};
use corten_protos::any;
use corten_protos::containerd::runc::v1::Options;
use corten_protos::containerd::services::containers::v1::Container as Record;
use corten_protos::runtime::v1::{
    ContainerConfig, ContainerEventType, ContainerState, NamespaceMode, StartContainerRequest,
    StartContainerResponse,
};
use serde_json::Value;
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::record;
use super::signal;
use super::state::{self, Work, Working};
use crate::config::Handler;
use crate::cri::Cri;
use crate::metrics::Timer;
use crate::pods::{options, request};
use crate::store::pod::State;
use crate::store::{Container, Pod};

/// How long the undoing of a failed start may take.
const UNDO: Duration = Duration::from_secs(60);

impl Cri {
    /// Starts a created container.
    ///
    /// # Errors
    /// Of no class: it is in another state, or its pod is not ready. Those of the shim.
    pub async fn start_container(
        self: &Arc<Self>,
        r: StartContainerRequest,
    ) -> Result<StartContainerResponse> {
        let began = Instant::now();
        let container = self.containers.get(&r.container_id)?;
        let working = Working::begin(&container, Work::Starting)
            .await
            .with_context(|| {
                format!(
                    "failed to set starting state for container {:?}",
                    container.id
                )
            })?;
        let (mut tell, told) = oneshot::channel();
        let this = self.clone();
        self.background.spawn("start container", async move {
            let started = tokio::select! {
                started = this.start_now(&container) => started,
                () = tell.closed() => Err(Error::new(Kind::Canceled, Kind::Canceled.words())),
            };
            match &started {
                Ok(()) => this
                    .metrics
                    .took(Timer::ContainerStart, &container.runtime, began),
                Err(error) => this.undo_start(&container, error).await,
            }
            drop(working);
            // A client that has gone will ask again.
            let _ = tell.send(started);
        });
        told.await
            .map_err(|_| Error::internal("starting a container ended early"))??;
        Ok(StartContainerResponse {})
    }

    async fn start_now(self: &Arc<Self>, container: &Arc<Container>) -> Result<()> {
        let pod = self
            .pods
            .get(&container.sandbox_id)
            .with_context(|| format!("sandbox {:?} not found", container.sandbox_id))?;
        if pod.state() != State::Ready {
            let why = format!("sandbox container {:?} is not running", pod.id);
            return Err(Error::new(Kind::Unknown, why));
        }
        let config = container.metadata.read().config.clone();
        self.check_target(&pod, &config)?;
        let record = self.record(&container.id).await?;
        let (pod_config, wanted) = {
            let metadata = pod.metadata.read();
            (metadata.config.clone(), metadata.runtime_handler.clone())
        };
        let (_, handler) = request::handler(&self.runtime.containerd, &pod_config, &wanted)
            .context("failed to get sandbox runtime")?;
        let prepared = self
            .prepare_streams(container, &handler.runtime_type)
            .await?;
        let options = self.task_options(record, &pod, handler, &config).await?;
        let options = CreateOptions {
            stdio: prepared.stdio.clone(),
            ..options
        };
        let task = self
            .tasks
            .create(&self.ns, &container.id, options)
            .await
            .context("failed to create containerd task")?;
        self.start_streams(container, prepared);
        let _block = self.block_plugins().await;
        self.nri_start(container).await?;
        task.start("")
            .await
            .with_context(|| format!("failed to start containerd task {:?}", container.id))?;
        let pid = task.pid();
        state::change(container, |status| {
            status.pid = pid;
            status.started_at = state::nanos(SystemTime::now());
        })
        .await
        .with_context(|| format!("failed to update container {:?} state", container.id))?;
        info!(container.id = %container.id, pid, "container started");
        // Its end, however soon it comes, is told after this.
        let telling = container.telling.lock().await;
        self.watch(container.clone(), task);
        let started = ContainerEventType::ContainerStartedEvent;
        self.announce(&container.id, &container.sandbox_id, started)
            .await;
        drop(telling);
        self.nri_started(container).await;
        Ok(())
    }

    /// What the task is made from, besides its streams.
    async fn task_options(
        &self,
        record: Record,
        pod: &Pod,
        handler: &Handler,
        config: &ContainerConfig,
    ) -> Result<CreateOptions> {
        let snapshots = self.metadata.snapshots();
        let rootfs = snapshots
            .mounts(&self.ns, &record.snapshotter, &record.snapshot_key)
            .await
            .context("get the mounts of the root file system")?;
        let runtime = record.runtime.clone().unwrap_or_default();
        let task_options = owner_of_streams(&record, config)?.map(|owner| {
            let base = runtime.options.as_ref();
            with_owner(base, owner)
        });
        let (address, version) = pod.endpoint.read().clone();
        Ok(CreateOptions {
            spec: record.spec,
            rootfs,
            runtime: match options::runtime(handler) {
                "" => runtime.name,
                runtime => runtime.to_owned(),
            },
            runtime_options: runtime.options,
            task_options,
            sandbox_id: record.sandbox,
            address,
            version,
            ..CreateOptions::default()
        })
    }

    /// A container that joins the processes of another needs that to run, in the same pod.
    pub(super) fn check_target(&self, pod: &Pod, config: &ContainerConfig) -> Result<()> {
        let linux = config.linux.as_ref();
        let security = linux.and_then(|l| l.security_context.as_ref());
        let Some(namespaces) = security.and_then(|s| s.namespace_options.as_ref()) else {
            return Ok(());
        };
        if namespaces.pid != NamespaceMode::Target as i32 {
            return Ok(());
        }
        let target = self
            .containers
            .get(&namespaces.target_id)
            .context("invalid target container")?;
        let why = if target.sandbox_id != pod.id {
            format!(
                "container {:?} (sandbox {}) does not belong to sandbox {}",
                target.id, target.sandbox_id, pod.id
            )
        } else if target.state() != ContainerState::ContainerRunning {
            format!("container {:?} is not running", target.id)
        } else {
            return Ok(());
        };
        Err(Error::new(Kind::FailedPrecondition, why).context("invalid target container"))
    }

    async fn undo_start(self: &Arc<Self>, container: &Arc<Container>, error: &Error) {
        warn!(container.id = %container.id, %error, "start container");
        let gone = tokio::time::timeout(UNDO, self.undo_task(&container.id)).await;
        let gone = match gone {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                warn!(container.id = %container.id, %error, "delete the task of a failed start");
                false
            }
            Err(_) => false,
        };
        container.io.write().take();
        let message = error.to_string();
        state::end(container, |status| {
            status.pid = 0;
            status.finished_at = state::nanos(SystemTime::now());
            status.exit_code = state::START_ERROR_CODE;
            status.reason = state::START_ERROR.into();
            status.message = message;
            // containerd 2.4.1: a task that may still be there is tried again by RemoveContainer.
            status.unknown = !gone;
        })
        .await;
        if gone {
            container.stopped.send_replace(true);
        }
        self.nri_stop(container).await;
    }

    async fn undo_task(&self, id: &str) -> Result<()> {
        let task: Arc<dyn Task> = match self.container_task(id).await {
            Ok(task) => task,
            Err(e) if e.kind() == Kind::NotFound => return Ok(()),
            Err(e) => return Err(e),
        };
        // It may not have come to life.
        let _ = task.kill("", signal::KILL, true).await;
        self.delete_task(id).await
    }
}

/// Who owns the pipes of a container in a user namespace of its own: its process, as the host sees it. Otherwise it
/// could not open its /dev/stdout again.
fn owner_of_streams(record: &Record, config: &ContainerConfig) -> Result<Option<(u32, u32)>> {
    let linux = config.linux.as_ref();
    let security = linux.and_then(|l| l.security_context.as_ref());
    let namespaces = security.and_then(|s| s.namespace_options.as_ref());
    let userns = namespaces.and_then(|n| n.userns_options.as_ref());
    if userns.is_none_or(|u| u.mode == NamespaceMode::Node as i32) {
        return Ok(None);
    }
    let spec = record::parse(record).context("failed to get spec")?;
    let host = |id: &str, maps: &str| {
        let id = spec.pointer(&format!("/process/user/{id}"));
        let id = id.and_then(Value::as_u64).unwrap_or(0);
        let maps = spec.pointer(&format!("/linux/{maps}"));
        to_host(id, maps.and_then(Value::as_array).into_iter().flatten())
            .ok_or_else(|| Error::invalid(format!("failed to do idmap to get host ID of {id}")))
    };
    Ok(Some((
        host("uid", "uidMappings")?,
        host("gid", "gidMappings")?,
    )))
}

fn to_host<'a>(id: u64, mut maps: impl Iterator<Item = &'a Value>) -> Option<u32> {
    let number = |map: &Value, key| map.get(key).and_then(Value::as_u64).unwrap_or(0);
    let host = maps.find_map(|map| {
        let offset = id.checked_sub(number(map, "containerID"))?;
        (offset < number(map, "size")).then(|| number(map, "hostID").checked_add(offset))?
    })?;
    u32::try_from(host).ok()
}

/// Options of the runtime with the owner of the streams; those of runtimes that are not like runc's have none.
fn with_owner(options: Option<&Any>, (uid, gid): (u32, u32)) -> Any {
    let base = match options {
        None => Ok(Options::default()),
        Some(options) => any::unpack::<Options>(options),
    };
    match (base, options) {
        (Ok(base), _) => any::pack(&Options {
            io_uid: uid,
            io_gid: gid,
            ..base
        }),
        (Err(_), options) => options.cloned().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn streams_belong_to_the_process_as_the_host_sees_it() {
        let maps = [
            json!({"containerID": 0, "hostID": 100_000, "size": 10}),
            json!({"containerID": 1000, "hostID": 5, "size": 1}),
        ];
        let check = |id, want| assert_eq!(to_host(id, maps.iter()), want, "{id}");
        check(0, Some(100_000));
        check(9, Some(100_009));
        check(10, None);
        check(999, None);
        check(1000, Some(5));
        check(1001, None);
        let options = any::pack(&Options {
            binary_name: "crun".into(),
            ..Options::default()
        });
        let owned: Options = any::unpack(&with_owner(Some(&options), (1, 2))).unwrap();
        assert_eq!(
            (owned.io_uid, owned.io_gid, owned.binary_name.as_str()),
            (1, 2, "crun")
        );
        let owned: Options = any::unpack(&with_owner(None, (3, 4))).unwrap();
        assert_eq!((owned.io_uid, owned.io_gid), (3, 4));
        let other = Any {
            type_url: "x".into(),
            value: vec![1],
        };
        assert_eq!(with_owner(Some(&other), (1, 2)), other);
    }
}
