//! Images as the CRI sees them: pulled through the transfer plugin, kept under up to three names, found by any of them.
//!
//! An image's id is the digest of its configuration, wherever the CRI names one. Its records in the metadata (tag,
//! `repository@digest`, id) are the truth; [`Images`] holds an index over them, built at start and kept by the events of
//! the records, so that images that others brought to the namespace (ctr, nerdctl) are images of the CRI as well.
//!
//! The limits are in [`crate::limits`].
//!
//! - [`reference`], [`config`], [`record`]: names, configuration blobs, what is known of an image
//! - `known`: the index; `sync`: how it follows the records
//! - [`pull`], `auth`, `progress`, [`registry`]: how an image comes here
//! - `rootfs`, [`volume`]: what containers get of it
//! - `usage`: bytes on disk
//! - [`rpc`]: the ImageService

mod auth;
pub mod config;
mod known;
pub mod labels;
mod plugin;
mod progress;
pub mod pull;
pub mod record;
pub mod reference;
pub mod registry;
mod rootfs;
pub mod rpc;
mod sync;
mod usage;
pub mod volume;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use corten_core::content::Content;
use corten_core::events::Events;
use corten_core::gc::Scheduler;
use corten_core::images::Images as Records;
use corten_core::keylock::KeyLocks;
use corten_core::mounts::Manager;
use corten_core::snapshots::Snapshots;
use corten_core::streaming::Streams;
use corten_core::tasks_set::TaskSet;
use corten_core::transfer::Transfer;
use corten_core::warnings::Deprecation;
use corten_core::{Kind, Namespace, Result, Scope};
use corten_protos::runtime::v1::AuthConfig;
use parking_lot::RwLock;

pub use config::{ImageConfig, Process};
pub use plugin::{CriService, registration};
pub use record::ImageRecord;
pub use rootfs::Rootfs;

use crate::metrics::Metrics;

/// The images of the CRI's namespace.
pub struct Images {
    ns: Namespace,
    config: crate::config::Images,
    registries: registry::Registries,
    auths: Arc<BTreeMap<String, AuthConfig>>,
    records: Arc<dyn Records>,
    snapshots: Arc<dyn Snapshots>,
    gc: Arc<dyn Scheduler>,
    transfer: Arc<dyn Transfer>,
    streams: Arc<dyn Streams>,
    mounts: Arc<dyn Manager>,
    events: Arc<dyn Events>,
    loader: record::Loader,
    known: known::Known,
    /// Names that must not be collected by the kubelet, made whole.
    pinned: Vec<String>,
    /// By name of an image record, and by target of an image volume.
    locks: KeyLocks,
    pulls: pull::Pulls,
    /// By handler.
    snapshotters: RwLock<BTreeMap<String, String>>,
    /// Folders of the snapshotters.
    roots: BTreeMap<String, PathBuf>,
    usages: usage::Usages,
    volumes: volume::Volumes,
    metrics: Arc<Metrics>,
    tasks: TaskSet,
}

/// What [`Images::new`] works with.
pub struct Parts {
    pub ns: Namespace,
    pub records: Arc<dyn Records>,
    pub content: Arc<dyn Content>,
    pub snapshots: Arc<dyn Snapshots>,
    pub gc: Arc<dyn Scheduler>,
    pub transfer: Arc<dyn Transfer>,
    pub streams: Arc<dyn Streams>,
    pub mounts: Arc<dyn Manager>,
    pub events: Arc<dyn Events>,
    /// Folders of the snapshotters, by id.
    pub roots: BTreeMap<String, PathBuf>,
    /// Where hosts.toml of old configurations are written. Volatile.
    pub state: PathBuf,
    /// Where image volumes are mounted. Volatile.
    pub volumes: PathBuf,
    pub metrics: Arc<Metrics>,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Images {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Images").finish_non_exhaustive()
    }
}

// === impl Images ===

impl Images {
    /// Reads the configuration. Nothing runs before [`Images::start`]. Blocks for a moment.
    ///
    /// # Errors
    /// NotFound: no such snapshotter. InvalidArgument: a registry configuration that contradicts itself.
    pub fn new(parts: Parts, config: crate::config::Images) -> Result<Self> {
        if !parts.snapshots.names().contains(&config.snapshotter) {
            let text = format!("failed to find snapshotter {:?}", config.snapshotter);
            return Err(corten_core::Error::new(Kind::NotFound, text));
        }
        let mut registries = registry::read(&config.registry, &parts.state.join("hosts"))?;
        let snapshotters = config
            .runtime_platforms
            .iter()
            .filter(|(_, p)| !p.snapshotter.is_empty())
            .map(|(handler, p)| (handler.clone(), p.snapshotter.clone()))
            .collect();
        let whole = |name: &String| {
            reference::Named::pulled(name).map_or_else(|_| name.clone(), |n| n.to_string())
        };
        Ok(Self {
            auths: Arc::new(std::mem::take(&mut registries.auths)),
            pinned: config.pinned_images.values().map(whole).collect(),
            registries,
            config,
            loader: record::Loader {
                ns: parts.ns.clone(),
                content: parts.content,
            },
            ns: parts.ns,
            records: parts.records,
            snapshots: parts.snapshots,
            gc: parts.gc,
            transfer: parts.transfer,
            streams: parts.streams,
            mounts: parts.mounts,
            events: parts.events,
            known: known::Known::default(),
            locks: KeyLocks::default(),
            pulls: pull::Pulls::default(),
            snapshotters: RwLock::new(snapshotters),
            roots: parts.roots,
            usages: usage::Usages::default(),
            volumes: volume::Volumes::new(parts.volumes),
            metrics: parts.metrics,
            tasks: TaskSet::new(),
        })
    }

    /// The image of a name or an id, which may be shortened.
    ///
    /// # Errors
    /// NotFound; InvalidArgument when several ids begin so.
    pub fn find(&self, name_or_id: &str) -> Result<Arc<ImageRecord>> {
        self.known.find(name_or_id)
    }

    /// The image of a name or an id, which may be shortened.
    pub fn resolve(&self, name_or_id: &str) -> Option<Arc<ImageRecord>> {
        self.find(name_or_id).ok()
    }

    /// All images, by id.
    pub fn list(&self) -> Vec<Arc<ImageRecord>> {
        self.known.list()
    }

    /// The image `reference`; pulled for `handler` if it is not here.
    ///
    /// # Errors
    /// See [`Images::pull`].
    pub async fn ensure(
        self: &Arc<Self>,
        reference: &str,
        handler: &str,
    ) -> Result<Arc<ImageRecord>> {
        match self.find(reference) {
            Err(e) if e.kind() == Kind::NotFound => {}
            found => return found,
        }
        let snapshotter = self.snapshotter_of(handler);
        let id = self.pull(reference, None, &snapshotter).await?;
        self.find(&id)
    }

    /// The configured image for a use: `sandbox` is the pause image.
    pub fn pinned(&self, use_: &str) -> Option<&str> {
        self.config.pinned_images.get(use_).map(String::as_str)
    }

    /// Where images and containers of a handler are unpacked.
    pub fn snapshotter_of(&self, handler: &str) -> String {
        let own = self.snapshotters.read().get(handler).cloned();
        own.unwrap_or_else(|| self.config.snapshotter.clone())
    }

    /// A handler's own snapshotter, from its runtime's table; what `runtime_platforms` says wins.
    pub fn set_runtime_snapshotter(&self, handler: &str, snapshotter: &str) {
        if !snapshotter.is_empty() {
            let mut all = self.snapshotters.write();
            all.entry(handler.into())
                .or_insert_with(|| snapshotter.into());
        }
    }

    /// The folder of a snapshotter: what the kubelet takes as the file system's name.
    pub fn root_of(&self, snapshotter: &str) -> String {
        let root = self.roots.get(snapshotter);
        root.map(|r| r.to_string_lossy().into_owned())
            .unwrap_or_default()
    }

    /// The deprecation warnings that the configuration earns.
    pub fn deprecated(&self) -> &[Deprecation] {
        &self.registries.deprecated
    }

    /// The configuration.
    pub fn config(&self) -> &crate::config::Images {
        &self.config
    }

    fn scope(&self) -> Scope {
        Scope::new(self.ns.clone())
    }

    fn labels_for(&self, name: &str) -> corten_core::Labels {
        labels::of(self.pinned.iter().any(|p| p == name))
    }
}
