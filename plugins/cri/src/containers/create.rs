//! CreateContainer: folders, a writable layer, a specification, a record; no process.
//!
//! Each step pushes its undo; a client that goes away in the middle leaves them to a background task. A lease holds the
//! layer until the record does.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use corten_core::rollback::Rollback;
use corten_core::{Context, Error, Kind, Labels, Mount as Recipe, Result, Scope};
use corten_protos::containerd::services::containers::v1::Container as Record;
use corten_protos::containerd::services::containers::v1::container::Runtime;
use corten_protos::runtime::v1::{
    ContainerConfig, ContainerEventType, ContainerState, CreateContainerRequest,
    CreateContainerResponse, IdMapping, NamespaceMode, PodSandboxConfig,
};
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::remove::remove_folder;
use super::{record, state, volumes};
use crate::config::Handler;
use crate::cri::Cri;
use crate::images::{ImageRecord, Rootfs};
use crate::metrics::Timer;
use crate::pods::pause::files;
use crate::pods::{self, options, request};
use crate::spec::{self, ContainerInput, ImageConfig, PodFiles};
use crate::store::container::{Metadata, Status};
use crate::store::pod::State;
use crate::store::{Container, Pod};

/// What a container is made from.
struct Draft<'a> {
    id: String,
    pod: Arc<Pod>,
    /// Of whoever keeps the pod's namespaces.
    pid: u32,
    handler_name: &'a str,
    handler: &'a Handler,
    image: Arc<ImageRecord>,
    snapshotter: String,
    /// As asked for, with the places of image volumes filled in.
    config: ContainerConfig,
    pod_config: PodSandboxConfig,
}

impl Cri {
    /// Makes a container.
    ///
    /// # Errors
    /// NotFound: no such pod or image. AlreadyExists: the name is taken. InvalidArgument for its configuration.
    pub async fn create_container(
        self: &Arc<Self>,
        r: CreateContainerRequest,
    ) -> Result<CreateContainerResponse> {
        let began = Instant::now();
        let mut undo = Rollback::new();
        let _block = self.block_plugins().await;
        // Boxed: it is large, and most of its life it waits.
        match Box::pin(self.create_now(r, &mut undo)).await {
            Ok(container) => {
                undo.commit();
                let created = ContainerEventType::ContainerCreatedEvent;
                self.announce(&container.id, &container.sandbox_id, created)
                    .await;
                self.nri_created(&container).await;
                self.metrics
                    .took(Timer::ContainerCreate, &container.runtime, began);
                Ok(CreateContainerResponse {
                    container_id: container.id.clone(),
                })
            }
            Err(e) => {
                let (done, undone) = oneshot::channel::<()>();
                self.background.spawn("undo a container", async move {
                    undo.run().await;
                    // A client that has gone does not wait.
                    let _ = done.send(());
                });
                let _ = undone.await;
                Err(e)
            }
        }
    }

    async fn create_now(
        self: &Arc<Self>,
        r: CreateContainerRequest,
        undo: &mut Rollback,
    ) -> Result<Arc<Container>> {
        let pod = self
            .pods
            .get(&r.pod_sandbox_id)
            .with_context(|| format!("failed to find sandbox id {:?}", r.pod_sandbox_id))?;
        if pod.state() != State::Ready {
            let why = format!("sandbox container {:?} is not running", pod.id);
            return Err(Error::new(Kind::Unknown, why));
        }
        let invalid = |what: &'static str| Error::new(Kind::InvalidArgument, what);
        let config = r.config.unwrap_or_default();
        let pod_config = r.sandbox_config.unwrap_or_default();
        let of_container = config
            .metadata
            .as_ref()
            .ok_or_else(|| invalid("container config must include metadata"))?;
        let of_pod = pod_config
            .metadata
            .as_ref()
            .ok_or_else(|| invalid("pod sandbox config must include metadata"))?;
        check_log(&pod_config.log_directory, &config.log_path)?;
        let stop_signal = spec::signals::of_cri(config.stop_signal)?;
        let (id, name) = (request::new_id(), record::full_name(of_container, of_pod));
        let reserved = self.container_names.reserve(&name, &id).with_context(|| {
            format!(
                "failed to reserve container name {name:?}; check if another CreateContainer request is in progress"
            )
        })?;
        let mut draft = self.draft(id, pod, config, pod_config).await?;
        let scope = self.lease(&draft.id, undo).await?;
        self.make_folders(&draft.id, undo)?;
        self.mount_images(&mut draft, &scope, undo).await?;
        let mut metadata = draft.metadata(name, stop_signal);
        let record = self
            .make_record(&draft, &mut metadata, &scope, undo)
            .await?;
        let container = self.keep(&draft, metadata, &record, undo).await?;
        reserved.keep();
        self.end_lease(&draft.id);
        info!(container.id = %container.id, sandbox.id = %container.sandbox_id, "container created");
        Ok(container)
    }

    /// What is known before anything is made.
    async fn draft(
        &self,
        id: String,
        pod: Arc<Pod>,
        config: ContainerConfig,
        pod_config: PodSandboxConfig,
    ) -> Result<Draft<'_>> {
        let wanted = config.image.as_ref().map_or("", |i| i.image.as_str());
        let image = self
            .images
            .find(wanted)
            .with_context(|| format!("failed to resolve image {wanted:?}"))?;
        let (stored, handler_name) = {
            let metadata = pod.metadata.read();
            (metadata.config.clone(), metadata.runtime_handler.clone())
        };
        let containerd = &self.runtime.containerd;
        let (handler_name, handler) = match request::handler(containerd, &stored, &handler_name) {
            Ok((name, _)) => containerd.handler(name),
            Err(e) => return Err(e.context("failed to get sandbox runtime")),
        }
        .ok_or_else(|| Error::internal("a handler that was just found"))?;
        self.check_target(&pod, &config)?;
        let status = pods::controller(self, &pod.sandboxer)?
            .status(&self.ns, &pod.id, false)
            .await
            .context("failed to get controller status")?;
        Ok(Draft {
            id,
            pid: status.pid,
            pod,
            handler_name,
            handler,
            image,
            snapshotter: self.images.snapshotter_of(handler_name),
            config,
            pod_config,
        })
    }

    /// A lease of the container's id, until its record holds what is made.
    async fn lease(self: &Arc<Self>, id: &str, undo: &mut Rollback) -> Result<Scope> {
        let leases = self.metadata.leases();
        leases
            .create(&self.ns, id, Labels::new())
            .await
            .context("create a lease")?;
        let (this, held) = (self.clone(), id.to_owned());
        undo.push("lease", async move { this.drop_lease(&held).await });
        Ok(self.scope().with_lease(id))
    }

    async fn drop_lease(&self, id: &str) -> Result<()> {
        let leases = self.metadata.leases();
        match leases.delete(&self.ns, id, false).await {
            Err(e) if e.kind() != Kind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// Nobody waits for it: it holds only what the record holds by now.
    fn end_lease(self: &Arc<Self>, id: &str) {
        let (this, id) = (self.clone(), id.to_owned());
        self.background.spawn("end a lease", async move {
            if let Err(error) = this.drop_lease(&id).await {
                warn!(container.id = %id, %error, "delete the lease of a container");
            }
        });
    }

    fn make_folders(&self, id: &str, undo: &mut Rollback) -> Result<()> {
        let make = |path: PathBuf, what, undo: &mut Rollback| {
            let made = std::fs::create_dir_all(&path);
            undo.push(what, remove_folder(path.clone(), what));
            made.with_context(|| format!("failed to create {what} {}", path.display()))
        };
        make(self.container_root(id), "container root directory", undo)?;
        let what = "volatile container root directory";
        make(self.container_state(id), what, undo)
    }

    /// Mounts the images that are volumes, and says where in the configuration.
    async fn mount_images(
        self: &Arc<Self>,
        draft: &mut Draft<'_>,
        scope: &Scope,
        undo: &mut Rollback,
    ) -> Result<()> {
        if draft.config.mounts.iter().all(|m| m.image.is_none()) {
            return Ok(());
        }
        let (this, pod, id) = (self.clone(), draft.pod.id.clone(), draft.id.clone());
        undo.push("image volumes", async move {
            this.images.release_volumes(&pod, &id).await
        });
        // The pod's lease holds their snapshots: no record does.
        let scope = scope.with_lease(draft.pod.id.clone());
        for m in &mut draft.config.mounts {
            if m.image.is_none() {
                continue;
            }
            let path = self
                .images
                .mount_volume(&scope, &draft.pod.id, &draft.id, &draft.snapshotter, m)
                .await?;
            m.host_path = path.to_string_lossy().into_owned();
            // The snapshot has the ids already.
            m.uid_mappings.clear();
            m.gid_mappings.clear();
        }
        Ok(())
    }

    /// The layer, the specification, the record.
    async fn make_record(
        self: &Arc<Self>,
        draft: &Draft<'_>,
        metadata: &mut Metadata,
        scope: &Scope,
        undo: &mut Rollback,
    ) -> Result<Record> {
        let (this, id) = (self.clone(), draft.id.clone());
        let snapshotter = draft.snapshotter.clone();
        undo.push("snapshot", async move {
            this.images.remove_rootfs(&id, &snapshotter).await
        });
        let (uids, gids) = draft.id_maps();
        let rootfs = Rootfs {
            key: &draft.id,
            image: &draft.image,
            snapshotter: &draft.snapshotter,
            uid_mappings: &uids,
            gid_mappings: &gids,
            labels: Labels::new(),
        };
        let recipe = self.images.prepare_rootfs(scope, rootfs).await?;
        let built = self
            .make_spec(draft, &metadata.image_name, scope, &recipe)
            .await
            .with_context(|| format!("failed to generate container {:?} spec", draft.id))?;
        let (this, label) = (self.clone(), built.process_label.clone());
        undo.push("label", async move {
            this.specs.release(&label);
            Ok(())
        });
        metadata.process_label = built.process_label;
        let labels = record::build_labels(&draft.config.labels, &draft.image.config.config.labels);
        let spec = self
            .nri_create(&draft.pod, metadata, &labels, built.spec.to_any(), undo)
            .await?;
        let (this, id) = (self.clone(), draft.id.clone());
        undo.push("record", async move {
            match this.metadata.containers().delete(&this.scope(), &id).await {
                Err(e) if e.kind() != Kind::NotFound => Err(e),
                _ => Ok(()),
            }
        });
        let record = Record {
            id: draft.id.clone(),
            labels,
            image: metadata.image_name.clone(),
            runtime: Some(Runtime {
                name: draft.handler.runtime_type.clone(),
                options: options::of(draft.handler)?,
            }),
            spec: Some(spec),
            snapshotter: draft.snapshotter.clone(),
            snapshot_key: draft.id.clone(),
            extensions: record::extensions(metadata)?,
            sandbox: draft.pod.id.clone(),
            ..Record::default()
        };
        let containers = self.metadata.containers();
        containers
            .create(scope, record)
            .await
            .context("failed to create containerd container")
    }

    /// The specification, with the volumes that it mounts.
    async fn make_spec(
        &self,
        draft: &Draft<'_>,
        image_name: &str,
        scope: &Scope,
        recipe: &[Recipe],
    ) -> Result<spec::Built> {
        let image = draft.image_config();
        let volumes = match self.runtime.ignore_image_defined_volumes {
            true => Vec::new(),
            false => spec::volumes(&self.container_root(&draft.id), &draft.config, &image),
        };
        let needed = !volumes.is_empty() || spec::needs_rootfs(&draft.config, &image);
        let (specs, id, handler) = (self.specs.clone(), draft.id.clone(), draft.handler.clone());
        let (config, pod_config) = (draft.config.clone(), draft.pod_config.clone());
        let (sandbox_id, sandbox_pid) = (draft.pod.id.clone(), draft.pid);
        let sandbox_label = draft.pod.metadata.read().process_label.clone();
        let image_name = match config.image.as_ref() {
            Some(image) if !image.user_specified_image.is_empty() => {
                image.user_specified_image.clone()
            }
            _ => image_name.to_owned(),
        };
        let files = PodFiles {
            hostname: Some(files::hostname(&self.root, &sandbox_id)),
            hosts: Some(files::hosts(&self.root, &sandbox_id)),
            resolv_conf: Some(files::resolv_conf(&self.root, &sandbox_id)),
            shm: Some(files::shm(&self.state, &sandbox_id)),
        };
        let target_pid = self.target_pid(&sandbox_id, &config)?;
        let rro = self.recursive_read_only(draft.handler_name);
        let build = move |rootfs: Option<&Path>| {
            if let Some(root) = rootfs {
                volumes::fill(root, &volumes)?;
            }
            let built = specs.container(&ContainerInput {
                id: &id,
                config: &config,
                pod: &pod_config,
                image: &image,
                image_name: &image_name,
                sandbox_id: &sandbox_id,
                sandbox_pid,
                sandbox_label: &sandbox_label,
                target_pid,
                files: &files,
                extra_mounts: &volumes,
                handler: &handler,
                rro,
                rootfs,
            });
            // containerd's words, which its own tests look for.
            built.context("failed to generate spec opts")
        };
        self.with_rootfs(scope, &draft.id, recipe, needed, build)
            .await
    }

    /// The process of the container whose processes are joined: a running one of the same pod.
    fn target_pid(&self, sandbox_id: &str, config: &ContainerConfig) -> Result<Option<u32>> {
        let security = config
            .linux
            .as_ref()
            .and_then(|l| l.security_context.as_ref());
        match security.and_then(|s| s.namespace_options.as_ref()) {
            Some(n) if n.pid == NamespaceMode::Target as i32 => {
                let (id, wrong) = (&n.target_id, "invalid target container");
                let target = self.containers.get(id).context(wrong)?;
                if target.sandbox_id != sandbox_id {
                    return Err(Error::invalid(format!(
                        "{wrong}: container {id:?} (sandbox {}) does not belong to sandbox {sandbox_id}",
                        target.sandbox_id
                    )));
                }
                if target.state() != ContainerState::ContainerRunning {
                    return Err(Error::precondition(format!(
                        "{wrong}: container {id:?} is not running - in state {}",
                        target.state().as_str_name()
                    )));
                }
                Ok(Some(target.status.read().pid))
            }
            _ => Ok(None),
        }
    }

    /// Its status on disk, then itself in the store.
    async fn keep(
        self: &Arc<Self>,
        draft: &Draft<'_>,
        metadata: Metadata,
        record: &Record,
        undo: &mut Rollback,
    ) -> Result<Arc<Container>> {
        let status = Status {
            created_at: state::nanos(SystemTime::now()),
            resources: Some(spec::status_resources(&record::document(record)?)),
            ..Status::default()
        };
        let dir = self.container_root(&draft.id);
        let (folder, saved) = (dir.clone(), status.clone());
        corten_sys::blocking(move || state::save(&folder, &saved)).await?;
        let container = Arc::new(Container::new(
            metadata,
            status,
            dir,
            draft.snapshotter.clone(),
            draft.handler.runtime_type.clone(),
        ));
        self.containers
            .add(&container.id, container.clone())
            .with_context(|| format!("failed to add container {:?} into store", container.id))?;
        // Last: nothing after it may fail or wait.
        let (this, id) = (self.clone(), container.id.clone());
        undo.push("store", async move {
            this.containers.remove(&id);
            Ok(())
        });
        Ok(container)
    }
}

/// A log is in the folder of its pod. containerd would write it wherever dots lead.
fn check_log(directory: &str, path: &str) -> Result<()> {
    let up = |path: &str| {
        let mut parts = Path::new(path).components();
        parts.any(|part| part == std::path::Component::ParentDir)
    };
    if up(directory) || up(path) {
        return Err(Error::invalid(format!(
            "log path {path:?} leaves the log directory {directory:?}"
        )));
    }
    Ok(())
}

// === impl Draft ===

impl Draft<'_> {
    /// The maps of the pod's user namespace.
    fn id_maps(&self) -> (Vec<IdMapping>, Vec<IdMapping>) {
        let security = self
            .config
            .linux
            .as_ref()
            .and_then(|l| l.security_context.as_ref());
        let namespaces = security.and_then(|s| s.namespace_options.as_ref());
        match namespaces.and_then(|n| n.userns_options.as_ref()) {
            Some(userns) if userns.mode != NamespaceMode::Node as i32 => {
                (userns.uids.clone(), userns.gids.clone())
            }
            _ => (Vec::new(), Vec::new()),
        }
    }

    /// What its image says of containers.
    fn image_config(&self) -> ImageConfig {
        let image = &self.image.config.config;
        ImageConfig {
            user: image.user.clone(),
            env: image.env.clone(),
            entrypoint: image.entrypoint.clone(),
            cmd: image.cmd.clone(),
            working_dir: image.working_dir.clone(),
            volumes: image.volumes.keys().cloned().collect(),
            stop_signal: image.stop_signal.clone(),
        }
    }

    /// What is stored of it.
    fn metadata(&self, name: String, stop_signal: String) -> Metadata {
        let image = &self.image;
        let tag = image.repo_tags().into_iter().next();
        let image_name = tag.or_else(|| image.repo_digests().into_iter().next());
        let log_path = match (
            self.pod_config.log_directory.as_str(),
            self.config.log_path.as_str(),
        ) {
            ("", _) | (_, "") => {
                info!(container.id = %self.id, "no log: the pod or the container names none");
                String::new()
            }
            (directory, path) => Path::new(directory)
                .join(path.trim_start_matches('/'))
                .to_string_lossy()
                .into_owned(),
        };
        Metadata {
            id: self.id.clone(),
            name,
            sandbox_id: self.pod.id.clone(),
            config: self.config.clone(),
            image_ref: image.id.clone(),
            image_digest: image.target.digest.clone(),
            image_name: image_name.unwrap_or_else(|| image.id.clone()),
            log_path,
            stop_signal: match stop_signal.as_str() {
                "" => image.config.config.stop_signal.clone(),
                _ => stop_signal,
            },
            process_label: String::new(),
        }
    }
}
