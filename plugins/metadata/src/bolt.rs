//! The metadata plugin (`io.containerd.metadata.v1.bolt`).
//!
//! The id is the one that users, configs and other plugins know; the store behind it is redb, not bolt. It lies in
//! `<root>/io.containerd.metadata.v1.bolt/meta.redb`. containerd's own `meta.db` in that folder is left alone,
//! and while it is there no blob or snapshot is ever freed, because it may name them.

use std::sync::Arc;

use async_trait::async_trait;
use corten_core::containers::Containers;
use corten_core::content::Content;
use corten_core::gc::{Collector, Resources};
use corten_core::images::Images;
use corten_core::leases::Leases;
use corten_core::metadata::Metadata;
use corten_core::namespaces::Namespaces;
use corten_core::sandbox::Sandboxes;
use corten_core::snapshots::Snapshots;
use corten_core::{Error, Result, kinds};
use corten_registry::Registration;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::db::{Db, FILE, Parts};

/// The timeout of opening; zero, the default, is none.
const OPEN: &str = "io.containerd.timeout.bolt.open";
const SHARED: &str = "shared";
const ISOLATED: &str = "isolated";

/// The config of the plugin, in containerd's words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// `shared`: a blob that any namespace has can be linked into another by its digest. `isolated`: each namespace
    /// has to bring the bytes, unless a namespace that has the blob carries `containerd.io/namespace.shareable=true`.
    pub content_sharing_policy: String,
    /// Commits are durable only after half a second: faster, but a crash loses what was acknowledged in it.
    pub no_sync: bool,
}

/// The handles over one database.
struct Handle(Arc<Db>);

// === impl Config ===

impl Default for Config {
    fn default() -> Self {
        Self {
            content_sharing_policy: SHARED.into(),
            no_sync: false,
        }
    }
}

// === impl Handle ===

#[async_trait]
impl Metadata for Handle {
    fn namespaces(&self) -> Arc<dyn Namespaces> {
        Arc::new(crate::namespaces::Store(self.0.clone()))
    }
    fn images(&self) -> Arc<dyn Images> {
        Arc::new(crate::images::Store(self.0.clone()))
    }
    fn containers(&self) -> Arc<dyn Containers> {
        Arc::new(crate::containers::Store(self.0.clone()))
    }
    fn content(&self) -> Arc<dyn Content> {
        Arc::new(crate::content::Store(self.0.clone()))
    }
    fn snapshots(&self) -> Arc<dyn Snapshots> {
        Arc::new(crate::snapshots::Store(self.0.clone()))
    }
    fn leases(&self) -> Arc<dyn Leases> {
        Arc::new(crate::leases::Store(self.0.clone()))
    }
    fn sandboxes(&self) -> Arc<dyn Sandboxes> {
        Arc::new(crate::sandboxes::Store(self.0.clone()))
    }
    fn collector(&self) -> Arc<dyn Collector> {
        Arc::new(crate::collect::Store(self.0.clone()))
    }
    fn collect_also(&self, resources: Arc<dyn Resources>) {
        self.0.collect_also(resources);
    }
    fn on_mutation(&self, callback: Box<dyn Fn(bool) + Send + Sync>) {
        self.0.on_mutation(callback);
    }
}

/// Opens the database; blocks while another process has it open, as long as the parts say.
///
/// # Errors
/// Unavailable when another process has it open; FailedPrecondition for a later schema; I/O errors.
pub fn open(parts: Parts) -> Result<Arc<dyn Metadata>> {
    Ok(Arc::new(Handle(Db::open(parts)?)))
}

/// Plugin `bolt`.
pub fn registration() -> Registration {
    Registration::new::<kinds::Metadata>("bolt")
        .requires::<kinds::Content>()
        .requires::<kinds::Event>()
        .requires::<kinds::Snapshotter>()
        .config::<Config>()
        .init(|cx, config| {
            Box::pin(async move {
                let isolated = match config.content_sharing_policy.as_str() {
                    SHARED | "" => false,
                    ISOLATED => true,
                    other => return Err(Error::invalid(format!("unknown policy: {other}")).into()),
                };
                let policy = if isolated { ISOLATED } else { SHARED };
                info!(policy, "metadata content store policy set");
                if config.no_sync {
                    warn!("metadata is written without waiting for the disk: a crash loses the last changes");
                }
                let root = cx.root();
                cx.export("policy", policy);
                cx.export("path", root.join(FILE).display().to_string());
                let timeouts = &cx.properties().timeouts;
                let patience = timeouts.get(OPEN).copied().filter(|p| !p.is_zero());
                let snapshotters = cx.all::<kinds::Snapshotter>()?;
                let parts = Parts {
                    root,
                    content: cx.single::<kinds::Content>()?,
                    snapshotters: snapshotters.into_iter().map(|(id, (s, _))| (id, s)).collect(),
                    events: cx.single::<kinds::Event>()?,
                    isolated,
                    no_sync: config.no_sync,
                    patience,
                };
                Ok(tokio::task::spawn_blocking(move || open(parts)).await??)
            })
        })
}
