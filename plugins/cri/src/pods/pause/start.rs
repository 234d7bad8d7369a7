//! The pause container: files, snapshot, record, task. What fails is taken back; what cannot be is left to shutdown.

use std::sync::Arc;

use corten_core::rollback::Rollback;
use corten_core::runtime::{CreateOptions, Stdio};
use corten_core::sandbox::Instance;
use corten_core::{Context, Error, Kind, Labels, Mount, Result, labels};
use corten_protos::containerd::services::containers::v1::{Container, container};
use corten_protos::time;
use corten_sys::{blocking, mount, netns};
use tokio::sync::oneshot;
use tracing::warn;

use super::{Entry, files};
use crate::Cri;
use crate::images::{ImageRecord, Rootfs};
use crate::pods::{record, request};
use crate::spec;
use crate::store::pod::{self, Metadata, State};

/// Label of containers of the CRI.
pub const KIND: &str = "io.cri-containerd.kind";
/// Its value on a pause container.
pub const SANDBOX: &str = "sandbox";

/// Label namespaces that images may not write.
const RESERVED: [&str; 2] = ["containerd.io/", "io.cri-containerd."];

/// Starts the pause container of a pod. [`Entry::is_left`] tells of a failure that left something.
///
/// # Errors
/// Those of its steps.
pub async fn start(cri: &Arc<Cri>, entry: &Arc<Entry>) -> Result<Instance> {
    let mut undo = Rollback::new();
    match make(cri, entry, &mut undo).await {
        Ok(instance) => {
            undo.commit();
            Ok(instance)
        }
        Err(e) => {
            // On a task of its own, as for the pod.
            let (done, undone) = oneshot::channel::<()>();
            cri.background.spawn("undo a pause container", async move {
                undo.run().await;
                let _ = done.send(());
            });
            let _ = undone.await;
            Err(e)
        }
    }
}

async fn make(cri: &Arc<Cri>, entry: &Arc<Entry>, undo: &mut Rollback) -> Result<Instance> {
    let (id, metadata) = (&entry.id, entry.metadata.read().clone());
    let name = cri
        .images
        .pinned("sandbox")
        .unwrap_or(super::IMAGE)
        .to_owned();
    let image = cri
        .images
        .find(&name)
        .with_context(|| format!("failed to get sandbox image {name:?}"))?;
    make_files(cri, entry, &metadata, undo).await?;
    let rootfs = make_rootfs(cri, entry, &metadata, &image, undo).await?;
    let built = build(cri, &metadata, &image, &name, rootfs.clone()).await?;
    entry.metadata.write().process_label = built.process_label.clone();
    {
        let (cri, label) = (cri.clone(), built.process_label.clone());
        undo.push("selinux label", async move {
            cri.specs.release(&label);
            Ok(())
        });
    }
    let record = make_container(cri, entry, &image, &name, &built).await?;
    let options = CreateOptions {
        spec: record.spec.clone(),
        rootfs,
        stdio: Stdio::default(),
        runtime: entry.runtime.name.clone(),
        runtime_options: entry.runtime.options.clone(),
        ..CreateOptions::default()
    };
    {
        let (cri, entry) = (cri.clone(), entry.clone());
        undo.push("pause task", async move {
            entry.or_leave(entry.delete_task(&cri).await)
        });
    }
    let task = cri
        .tasks
        .create(&cri.ns, id, options)
        .await
        .context("failed to create containerd task")?;
    // Asked before the start, so that no end is missed.
    let pid = task
        .start("")
        .await
        .with_context(|| format!("failed to start sandbox container task {id:?}"))?;
    entry.phase.send_modify(|phase| {
        phase.state = State::Ready;
        phase.pid = pid;
        phase.created_at = record.created_at;
    });
    entry.watch(cri, task);
    let mut labels = record.labels.clone();
    labels.insert("oci_runtime_type".into(), entry.runtime.name.clone());
    labels.insert("selinux_label".into(), built.process_label.clone());
    Ok(Instance {
        sandbox_id: id.clone(),
        pid,
        created_at: record.created_at,
        labels,
        spec: record.spec,
        ..Instance::default()
    })
}

async fn make_files(
    cri: &Arc<Cri>,
    entry: &Arc<Entry>,
    metadata: &Metadata,
    undo: &mut Rollback,
) -> Result<()> {
    {
        let (cri, entry) = (cri.clone(), entry.clone());
        undo.push("sandbox files", async move {
            if entry.is_left() {
                return Ok(());
            }
            entry.or_leave(files::remove(&cri, &entry.id).await)
        });
    }
    let (root, state) = (cri.root.clone(), cri.state.clone());
    let (id, metadata) = (entry.id.clone(), metadata.clone());
    blocking(move || {
        files::make(&root, &state, &id, &metadata.config)
            .context("failed to setup sandbox files")?;
        let owned = request::userns(&metadata.config)?.is_some();
        if owned && !metadata.netns_path.is_empty() {
            let at = files::user_namespace(&state, &id);
            netns::pin_owner(metadata.netns_path.as_ref(), &at)
                .context("failed to pin user namespace")?;
        }
        Ok(())
    })
    .await
}

async fn build(
    cri: &Arc<Cri>,
    metadata: &Metadata,
    image: &ImageRecord,
    name: &str,
    rootfs: Vec<Mount>,
) -> Result<spec::Built> {
    let config = &metadata.config;
    let (_, handler) = request::handler(&cri.runtime.containerd, config, &metadata.runtime_handler)
        .context("failed to get sandbox runtime")?;
    let image_config = serde_json::to_value(&image.config.config)
        .map_err(|e| Error::internal("encode an image's config").with_source(e))?;
    let image_config = spec::ImageConfig::from_value(&image_config)?;
    let (specs, handler, name) = (cri.specs.clone(), handler.clone(), name.to_owned());
    let (root, state, metadata) = (cri.root.clone(), cri.state.clone(), metadata.clone());
    blocking(move || {
        let id = &metadata.id;
        let pinned = files::user_namespace(&state, id);
        let shm = if request::host_ipc(&metadata.config) {
            "/dev/shm".into()
        } else {
            files::shm(&state, id)
        };
        let files = spec::PodFiles {
            hostname: Some(files::hostname(&root, id)),
            hosts: Some(files::hosts(&root, id)),
            resolv_conf: Some(files::resolv_conf(&root, id)),
            shm: Some(shm),
        };
        let input = spec::SandboxInput {
            id,
            config: &metadata.config,
            image: &image_config,
            image_name: &name,
            netns_path: &metadata.netns_path,
            userns_path: pinned.exists().then_some(pinned.as_path()),
            files: &files,
            handler: &handler,
            rootfs: None,
        };
        if !spec::sandbox_needs_rootfs(&metadata.config, &image_config) {
            return specs.sandbox(&input);
        }
        let recipe = corten_core::mounts::read_only(&rootfs);
        mount::with_temp_mount(&recipe, None, |rootfs| {
            specs.sandbox(&spec::SandboxInput {
                rootfs: Some(rootfs),
                ..input
            })
        })
    })
    .await
    .context("failed to generate sandbox container spec")
}

/// The snapshot that the pod's lease holds until the record does.
async fn make_rootfs(
    cri: &Arc<Cri>,
    entry: &Arc<Entry>,
    metadata: &Metadata,
    image: &ImageRecord,
    undo: &mut Rollback,
) -> Result<Vec<Mount>> {
    let id = &metadata.id;
    let snapshotter = cri.images.snapshotter_of(&metadata.runtime_handler);
    let maps = request::userns(&metadata.config)?;
    let (uids, gids) = maps.map_or((vec![], vec![]), |(u, g)| (vec![u], vec![g]));
    {
        let (cri, entry) = (cri.clone(), entry.clone());
        undo.push("pause container", async move {
            if entry.is_left() {
                return Ok(());
            }
            entry.or_leave(delete_container(&cri, &entry.id).await)
        });
    }
    let rootfs = Rootfs {
        key: id,
        image,
        snapshotter: &snapshotter,
        uid_mappings: &uids,
        gid_mappings: &gids,
        labels: Labels::new(),
    };
    let scope = cri.scope().with_lease(id.clone());
    let mounts = cri.images.prepare_rootfs(&scope, rootfs).await;
    mounts.context("failed to create containerd container")
}

async fn make_container(
    cri: &Arc<Cri>,
    entry: &Arc<Entry>,
    image: &ImageRecord,
    name: &str,
    built: &spec::Built,
) -> Result<Container> {
    let (id, metadata) = (&entry.id, entry.metadata.read().clone());
    let snapshotter = cri.images.snapshotter_of(&metadata.runtime_handler);
    let wanted = Container {
        id: id.clone(),
        labels: labels_of(&metadata, image),
        image: name.to_owned(),
        runtime: Some(container::Runtime {
            name: entry.runtime.name.clone(),
            options: entry.runtime.options.clone(),
        }),
        spec: Some(built.spec.to_any()),
        snapshotter,
        snapshot_key: id.clone(),
        created_at: Some(time::now()),
        extensions: [(pod::METADATA.to_owned(), record::extension(&metadata)?)].into(),
        ..Container::default()
    };
    let made = cri.metadata.containers().create(&cri.scope(), wanted).await;
    let made = made.context("failed to create containerd container")?;
    entry.phase.send_modify(|phase| phase.container = true);
    Ok(made)
}

/// Removes the record and the snapshot of a pause container; none is fine.
///
/// # Errors
/// Of the store.
pub async fn delete_container(cri: &Cri, id: &str) -> Result<()> {
    let containers = cri.metadata.containers();
    let snapshotter = match containers.get(&cri.ns, id).await {
        Ok(record) => record.snapshotter,
        Err(e) if e.kind() == Kind::NotFound => cri.images.snapshotter_of(""),
        Err(e) => return Err(e),
    };
    if !snapshotter.is_empty() {
        cri.images.remove_rootfs(id, &snapshotter).await?;
    }
    match containers.delete(&cri.scope(), id).await {
        Err(e) if e.kind() != Kind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// The pod's labels over the image's, but for what images may not say.
fn labels_of(metadata: &Metadata, image: &ImageRecord) -> Labels {
    let mut all = Labels::new();
    for (key, value) in &image.config.config.labels {
        if RESERVED.iter().any(|r| key.starts_with(r)) || labels::validate(key, value).is_err() {
            warn!(key, "a label of an image is not taken over");
            continue;
        }
        all.insert(key.clone(), value.clone());
    }
    all.extend(metadata.config.labels.clone());
    all.insert(KIND.into(), SANDBOX.into());
    all
}
