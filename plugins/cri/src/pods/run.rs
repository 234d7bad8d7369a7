//! RunPodSandbox.
//!
//! Each step pushes its undo. An undo that fails leaves the pod to the kubelet: what it still holds is kept, its record
//! and its name too, and it is shown as not ready, so that StopPodSandbox and RemovePodSandbox try again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use corten_core::rollback::Rollback;
use corten_core::sandbox::CreateOptions;
use corten_core::scope::CALLER;
use corten_core::{Any, Context, Error, Kind, Labels, Result};
use corten_protos::containerd::services::sandbox::v1::ControllerStartResponse;
use corten_protos::runtime::v1::{
    ContainerEventType, PodSandboxConfig, RunPodSandboxRequest, RunPodSandboxResponse,
};
use corten_protos::{any, time};
use corten_sys::blocking;
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::{controller, monitor, network, options, record, request};
use crate::Cri;
use crate::config::{CORTEN, Handler, SHIM};
use crate::metrics::Timer;
use crate::store::pod::{Metadata, Pod, State};

/// How long a pod whose client left stays as it is. If the client left because this daemon ends, that is for ever: then the
/// next daemon finds its record and shows it as not ready.
const GRACE: Duration = Duration::from_millis(500);
/// Label of an instance with its SELinux label.
const SELINUX: &str = "selinux_label";

/// A pod that is being made.
#[derive(Clone)]
struct Draft {
    cri: Arc<Cri>,
    pod: Arc<Pod>,
    /// Something of it could not be taken back.
    left: Arc<AtomicBool>,
}

impl Cri {
    /// # Errors
    /// InvalidArgument for its configuration; AlreadyExists for a pod of that name; those of its steps.
    pub async fn run_pod_sandbox(
        self: &Arc<Self>,
        request: RunPodSandboxRequest,
    ) -> Result<RunPodSandboxResponse> {
        let (mut client, made) = oneshot::channel();
        let cri = self.clone();
        let work = async move {
            let mut undo = Rollback::new();
            let made = tokio::select! {
                made = make(&cri, request, &mut undo) => made,
                () = client.closed() => Err(Error::new(Kind::Canceled, Kind::Canceled.words())),
            };
            if let Err(e) = &made {
                if client.is_closed() {
                    info!(error = %e, "nobody waits for a pod that is being made");
                    tokio::time::sleep(GRACE).await;
                }
                undo.run().await;
            } else {
                undo.commit();
            }
            if let Ok(pod) = &made {
                started(&cri, pod).await;
            }
            // Made for a client that is gone: it finds the pod in its list.
            let _ = client.send(made);
        };
        self.background
            .spawn("run a pod", CALLER.scope(self.scope(), work));
        let made = made.await;
        let pod = made.map_err(|_| Error::new(Kind::Canceled, Kind::Canceled.words()))??;
        Ok(RunPodSandboxResponse {
            pod_sandbox_id: pod.id.clone(),
        })
    }
}

async fn make(
    cri: &Arc<Cri>,
    request: RunPodSandboxRequest,
    undo: &mut Rollback,
) -> Result<Arc<Pod>> {
    let config = request.config.unwrap_or_default();
    let wanted = request.runtime_handler;
    let of = config.metadata.as_ref().ok_or_else(|| {
        Error::new(
            Kind::InvalidArgument,
            "sandbox config must include metadata",
        )
    })?;
    let (id, name) = (request::new_id(), request::name(of));
    request::userns(&config)?;
    request::check_hostname(&config)?;
    let (_, handler) = request::handler(&cri.runtime.containerd, &config, &wanted)
        .with_context(|| format!("unable to get OCI runtime for sandbox {id:?}"))?;
    let reserved = cri.pod_names.reserve(&name, &id);
    reserved
        .with_context(|| format!("failed to reserve sandbox name {name:?}"))?
        .keep();
    let metadata = Metadata {
        id: id.clone(),
        name: name.clone(),
        config: config.clone(),
        runtime_handler: wanted.clone(),
        ..Metadata::default()
    };
    let runtime = options::runtime(handler).to_owned();
    let pod = Arc::new(Pod::new(metadata, handler.sandboxer().to_owned(), runtime));
    pod.status.write().created_at = time::unix_nanos(&time::now());
    let draft = Draft {
        cri: cri.clone(),
        pod: pod.clone(),
        left: Arc::default(),
    };
    draft.push(undo, "sandbox name", |draft| async move {
        if !draft.is_left() {
            let name = draft.pod.metadata.read().name.clone();
            draft.cri.pod_names.release(&name, &draft.pod.id);
        }
        Ok(())
    });
    let leases = cri.metadata.leases();
    leases
        .create(&cri.ns, &id, Labels::new())
        .await
        .with_context(|| format!("failed to create lease for sandbox name {name:?}"))?;
    draft.push(undo, "lease", |draft| async move {
        record::release_lease(&draft.cri, &draft.pod.id).await
    });
    draft.make_record(undo, handler).await?;
    if !request::host_network(&config) {
        draft.make_network(undo, &config).await?;
    }
    let began = Instant::now();
    draft.start(undo, &config, handler).await?;
    let _block = cri.block_plugins().await;
    cri.nri_run_pod(&pod, undo).await?;
    pod.status.write().state = State::Ready;
    cri.pods
        .add(&id, pod.clone())
        .with_context(|| format!("failed to add sandbox {id} into store"))?;
    cri.metrics
        .took(Timer::SandboxRuntimeCreate, &pod.runtime, began);
    info!(sandbox.id = %id, %name, "pod sandbox runs");
    Ok(pod)
}

/// It is in the store: follows it and tells of it.
async fn started(cri: &Arc<Cri>, pod: &Arc<Pod>) {
    let created = ContainerEventType::ContainerCreatedEvent;
    cri.announce(&pod.id, &pod.id, created).await;
    // Before its end is watched for: that is told later, however soon it comes.
    let started = ContainerEventType::ContainerStartedEvent;
    cri.announce(&pod.id, &pod.id, started).await;
    monitor::watch(cri, pod);
}

// === impl Draft ===

impl Draft {
    fn push<F>(&self, undo: &mut Rollback, what: &'static str, how: impl FnOnce(Self) -> F)
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        undo.push(what, how(self.clone()));
    }

    fn is_left(&self) -> bool {
        self.left.load(Ordering::Acquire)
    }

    /// Leaves the rest to the kubelet when `undone` is an error.
    fn or_leave(&self, undone: Result<()>) -> Result<()> {
        if undone.is_err() {
            self.left.store(true, Ordering::Release);
        }
        undone
    }

    async fn make_record(&self, undo: &mut Rollback, handler: &Handler) -> Result<()> {
        let options = options::of(handler).context("failed to generate sandbox runtime options")?;
        let record = record::draft(&self.pod, options, None)?;
        let sandboxes = self.cri.metadata.sandboxes();
        sandboxes
            .create(&self.cri.scope(), record)
            .await
            .context("failed to save sandbox metadata")?;
        self.push(undo, "sandbox record", |draft| async move {
            let (cri, pod) = (&draft.cri, &draft.pod);
            if !draft.is_left() {
                draft.or_leave(record::delete(cri, &pod.id).await)?;
                return Ok(());
            }
            warn!(sandbox.id = %pod.id, "a pod could not be taken back whole; it is kept as not ready");
            record::save(cri, pod).await?;
            cri.pods.add(&pod.id, pod.clone())
        });
        Ok(())
    }

    async fn make_network(&self, undo: &mut Rollback, config: &PodSandboxConfig) -> Result<()> {
        let began = Instant::now();
        let (cri, pod) = (&self.cri, &self.pod);
        let path = network::make_namespace(cri, config)
            .await
            .with_context(|| {
                format!(
                    "failed to create network namespace for sandbox {:?}",
                    pod.id
                )
            })?;
        pod.metadata.write().netns_path = path.to_string_lossy().into_owned();
        self.push(undo, "network namespace", |draft| async move {
            if draft.is_left() {
                return Ok(());
            }
            let path = draft.pod.metadata.read().netns_path.clone();
            draft.or_leave(network::remove_namespace(&path).await)?;
            draft.pod.metadata.write().netns_path.clear();
            Ok(())
        });
        record::save(cri, pod).await?;
        // Before the set-up: plugins that fail may have done half of it.
        self.push(undo, "network", |draft| async move {
            if draft.is_left() {
                return Ok(());
            }
            let metadata = draft.pod.metadata.read().clone();
            if metadata.cni_result.is_null() {
                network::abandon(&draft.cri, &metadata).await;
                return Ok(());
            }
            let torn = network::tear_down(&draft.cri, &metadata).await;
            draft.or_leave(torn)
        });
        network::set_up(cri, pod)
            .await
            .with_context(|| format!("failed to setup network for sandbox {:?}", pod.id))?;
        cri.metrics.took(Timer::SandboxCreateNetwork, "", began);
        record::save(cri, pod).await?;
        Ok(())
    }

    async fn start(
        &self,
        undo: &mut Rollback,
        config: &PodSandboxConfig,
        handler: &Handler,
    ) -> Result<()> {
        let (cri, pod) = (&self.cri, &self.pod);
        let keeper = controller(cri, &pod.sandboxer)?.clone();
        let spec = self.holder_spec(undo, config, handler).await?;
        let options = options::of(handler)?;
        let mut sandbox = record::draft(pod, options, spec.clone())?;
        sandbox.created_at = Some(time::now());
        let create = CreateOptions {
            options: Some(any::pack(config)),
            netns_path: pod.metadata.read().netns_path.clone(),
            ..CreateOptions::default()
        };
        keeper
            .create(&cri.ns, sandbox, create)
            .await
            .with_context(|| format!("failed to create sandbox {:?}", pod.id))?;
        self.push(undo, "sandbox", |draft| async move {
            if draft.is_left() {
                return Ok(());
            }
            let keeper = controller(&draft.cri, &draft.pod.sandboxer)?;
            let gone = match keeper.shutdown(&draft.cri.ns, &draft.pod.id).await {
                Err(e) if e.kind() == Kind::NotFound => Ok(()),
                other => other,
            };
            draft.or_leave(gone)
        });
        if needs_pause(pod, handler) {
            let image = cri.images.pinned("sandbox").unwrap_or(super::pause::IMAGE);
            let wanted = pod.metadata.read().runtime_handler.clone();
            cri.images
                .ensure(image, &wanted)
                .await
                .with_context(|| format!("failed to get sandbox image {image:?}"))?;
        }
        let started = match keeper.start(&cri.ns, &pod.id).await {
            Ok(started) => started,
            Err(e) => {
                // A controller that still knows it could not take it back.
                let known = keeper.status(&cri.ns, &pod.id, false).await;
                if known.is_ok_and(|s| !s.state.is_empty()) {
                    self.left.store(true, Ordering::Release);
                }
                return Err(e.context(format!("failed to start sandbox {:?}", pod.id)));
            }
        };
        self.note(&started);
        record::complete(cri, pod, &started, spec).await?;
        Ok(())
    }

    /// The document of a holder of our shim's; others make their own.
    async fn holder_spec(
        &self,
        undo: &mut Rollback,
        config: &PodSandboxConfig,
        handler: &Handler,
    ) -> Result<Option<Any>> {
        if self.pod.sandboxer != SHIM || handler.runtime_type != CORTEN {
            return Ok(None);
        }
        let (specs, id) = (self.cri.specs.clone(), self.pod.id.clone());
        let netns = self.pod.metadata.read().netns_path.clone();
        let (config, handler) = (config.clone(), handler.clone());
        let built = blocking(move || specs.holder(&id, &config, &netns, &handler))
            .await
            .context("failed to generate sandbox spec")?;
        self.pod.metadata.write().process_label = built.process_label.clone();
        self.push(undo, "selinux label", |draft| async move {
            let label = draft.pod.metadata.read().process_label.clone();
            draft.cri.specs.release(&label);
            Ok(())
        });
        Ok(Some(built.spec.to_any()))
    }

    /// Takes over what the controller told.
    fn note(&self, started: &ControllerStartResponse) {
        let pod = &self.pod;
        if !started.address.is_empty() {
            *pod.endpoint.write() = (started.address.clone(), started.version);
        }
        if let Some(label) = started.labels.get(SELINUX) {
            pod.metadata.write().process_label.clone_from(label);
        }
        let mut status = pod.status.write();
        status.pid = started.pid;
        if let Some(at) = &started.created_at {
            status.created_at = time::unix_nanos(at);
        }
    }
}

/// Only a pause container needs its image; other controllers may be told so by their handler.
fn needs_pause(pod: &Pod, handler: &Handler) -> bool {
    let ours = pod.sandboxer == SHIM && handler.runtime_type == CORTEN;
    !ours && !handler.disable_pause_image_pull
}
