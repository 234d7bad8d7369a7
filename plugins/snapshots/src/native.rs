//! Plugin `io.containerd.snapshotter.v1.native`: each snapshot is a full copy of its parent, mounted by bind.
//!
//! Works on any file system; costs a copy for each layer, shared blocks where the file system can.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use corten_core::snapshots::{Info, SnapshotKind, Snapshotter, Usage};
use corten_core::{Context, Labels, Mount, Result, kinds};
use corten_registry::Registration;
use serde::{Deserialize, Serialize};

use crate::base::Base;
use crate::records::{New, Snapshot};
use crate::trees::NewTree;

/// The plugin's config table.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Another folder than the plugin's own.
    pub root_path: String,
}

/// The snapshotter.
#[derive(Debug, Clone)]
pub struct Native {
    base: Base,
}

impl Native {
    /// Opens `root`, making it when it is not there.
    ///
    /// # Errors
    /// The file system's and the database's.
    pub async fn open(root: PathBuf) -> Result<Self> {
        Ok(Self {
            base: Base::open(root, true).await?,
        })
    }

    async fn create(
        &self,
        kind: SnapshotKind,
        key: &str,
        parent: &str,
        labels: Labels,
    ) -> Result<Vec<Mount>> {
        let new = New {
            kind,
            key: key.into(),
            parent: parent.into(),
            labels,
        };
        // A view of a parent is the parent itself, read-only.
        let own = kind == SnapshotKind::Active || parent.is_empty();
        let snapshot = self.base.create(new, own.then_some(copy_parent)).await?;
        Ok(self.mounts_of(&snapshot))
    }

    fn mounts_of(&self, s: &Snapshot) -> Vec<Mount> {
        let (id, access) = match (s.kind, s.parents.first()) {
            (SnapshotKind::View, Some(parent)) => (*parent, "ro"),
            (SnapshotKind::View, None) => (s.id, "ro"),
            _ => (s.id, "rw"),
        };
        vec![Mount {
            r#type: "bind".into(),
            source: self.base.path(id).to_string_lossy().into_owned(),
            options: vec!["rbind".into(), access.into()],
            ..Default::default()
        }]
    }
}

fn copy_parent(tree: &NewTree, chain: &[PathBuf]) -> Result<()> {
    // The umask had its say when the folder was made.
    fs::set_permissions(tree.path(), fs::Permissions::from_mode(0o755))
        .context("set mode of snapshot")?;
    match chain.first() {
        Some(parent) => {
            corten_sys::copy::tree(parent, tree.path()).context("copying of parent failed")
        }
        None => Ok(()),
    }
}

#[async_trait]
impl Snapshotter for Native {
    async fn stat(&self, key: &str) -> Result<Info> {
        Ok(self.base.get(key).await?.info(key))
    }
    async fn update(&self, info: Info, paths: &[String]) -> Result<Info> {
        let name = info.name.clone();
        Ok(self.base.update(info, paths).await?.info(&name))
    }
    async fn usage(&self, key: &str) -> Result<Usage> {
        self.base.usage(key, "").await
    }
    async fn mounts(&self, key: &str) -> Result<Vec<Mount>> {
        let snapshot = self
            .base
            .snapshot(key)
            .await
            .context("failed to get snapshot mount")?;
        Ok(self.mounts_of(&snapshot))
    }
    async fn prepare(&self, key: &str, parent: &str, labels: Labels) -> Result<Vec<Mount>> {
        self.create(SnapshotKind::Active, key, parent, labels).await
    }
    async fn view(&self, key: &str, parent: &str, labels: Labels) -> Result<Vec<Mount>> {
        self.create(SnapshotKind::View, key, parent, labels).await
    }
    async fn commit(&self, name: &str, key: &str, parent: &str, labels: Labels) -> Result<()> {
        self.base.commit((name, key, parent), labels, "").await
    }
    async fn remove(&self, key: &str) -> Result<()> {
        self.base.remove(key).await
    }
    async fn list(&self) -> Result<Vec<Info>> {
        Ok(self
            .base
            .list()
            .await?
            .iter()
            .map(|(key, r)| r.info(key))
            .collect())
    }
    async fn cleanup(&self) -> Result<()> {
        self.base.cleanup().await
    }
}

/// The plugin.
pub fn registration() -> Registration {
    Registration::new::<kinds::Snapshotter>("native")
        .config::<Config>()
        .init(|cx, config| {
            Box::pin(async move {
                cx.host_platform();
                let root = match config.root_path.as_str() {
                    "" => cx.root(),
                    path => PathBuf::from(path),
                };
                cx.export("root", root.to_string_lossy());
                Ok(Arc::new(Native::open(root).await?) as Arc<dyn Snapshotter>)
            })
        })
}
