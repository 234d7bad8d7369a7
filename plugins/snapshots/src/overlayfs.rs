//! Plugin `io.containerd.snapshotter.v1.overlayfs`: each snapshot is one layer; mounts stack the layers.
//!
//! ```text
//! snapshots/<id>/fs      the layer; its own mode and owner are the root's, so they are copied from the parent
//! snapshots/<id>/work    overlayfs' work folder, for active ones
//! ```
//! Without parent, or for a view of one layer, an overlay is impossible or needless: such mounts are binds.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use corten_core::snapshots::{
    Info, ONLY_REMAP_IDS, REBASE, REMAP_IDS, SnapshotKind, Snapshotter, Usage,
};
use corten_core::{Context, Labels, Mount, Result, kinds};
use corten_registry::{Registration, skip};
use corten_sys::{blocking, idmap, overlay, userns};
use serde::{Deserialize, Serialize};

use crate::base::Base;
use crate::records::{New, Record, Snapshot};
use crate::trees::NewTree;

/// Id maps that clients put on a snapshot.
pub(crate) const UID_MAP: &str = "containerd.io/snapshot/uidmapping";
pub(crate) const GID_MAP: &str = "containerd.io/snapshot/gidmapping";
/// Where the layer is, shown on request.
const UPPERDIR: &str = "containerd.io/snapshot/overlay.upperdir";

/// The plugin's config table.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Another folder than the plugin's own.
    pub root_path: String,
    /// Show the layer's path as a label.
    pub upperdir_label: bool,
    /// Remove waits until the layer is deleted.
    pub sync_remove: bool,
    /// Clients may copy and chown where id-mapped mounts are missing.
    pub slow_chown: bool,
    /// More options for each overlay mount.
    pub mount_options: Vec<String>,
}

/// The snapshotter.
#[derive(Debug, Clone)]
pub struct Overlay {
    base: Base,
    options: Arc<Vec<String>>,
    upperdir_label: bool,
    remap_ids: bool,
}

impl Overlay {
    /// Opens `root`, making it when it is not there. `remap_ids`: the host can id-map layers.
    ///
    /// # Errors
    /// The file system's and the database's.
    pub async fn open(root: PathBuf, config: &Config, remap_ids: bool) -> Result<Self> {
        let mut options = config.mount_options.clone();
        if !has_option(&options, "userxattr") && overlay::needs_userxattr() {
            options.push("userxattr".into());
        }
        // The kernel obeys the last word: one in the config must stay the last.
        if !has_option(&options, "index") && overlay::knows_index() {
            options.push("index=off".into());
        }
        Ok(Self {
            base: Base::open(root, config.sync_remove).await?,
            options: Arc::new(options),
            upperdir_label: config.upperdir_label,
            remap_ids,
        })
    }

    fn layer(&self, id: u64) -> String {
        self.base.path(id).join("fs").to_string_lossy().into_owned()
    }

    fn info(&self, key: &str, record: &Record) -> Info {
        let mut info = record.info(key);
        if self.upperdir_label {
            info.labels.insert(UPPERDIR.into(), self.layer(record.id));
        }
        info
    }

    async fn create(
        &self,
        kind: SnapshotKind,
        key: &str,
        parent: &str,
        labels: Labels,
    ) -> Result<Vec<Mount>> {
        let owner = mapped_root(&labels)?;
        let new = New {
            kind,
            key: key.into(),
            parent: parent.into(),
            labels,
        };
        let make = move |tree: &NewTree, chain: &[PathBuf]| make_layer(tree, chain, kind, owner);
        let snapshot = self.base.create(new, Some(make)).await?;
        Ok(self.mounts_of(&snapshot))
    }

    fn mounts_of(&self, s: &Snapshot) -> Vec<Mount> {
        let mut options = Vec::new();
        if self.remap_ids {
            for (label, option) in [(UID_MAP, "uidmap"), (GID_MAP, "gidmap")] {
                options.extend(s.labels.get(label).map(|map| format!("{option}={map}")));
            }
        }
        let bind = |id: u64, access: &str, mut options: Vec<String>| {
            options.extend([access.to_owned(), "rbind".to_owned()]);
            vec![Mount {
                r#type: "bind".into(),
                source: self.layer(id),
                options,
                ..Default::default()
            }]
        };
        match (s.kind, s.parents.as_slice()) {
            (SnapshotKind::View, []) => return bind(s.id, "ro", options),
            (_, []) => return bind(s.id, "rw", options),
            (SnapshotKind::View, [only]) => return bind(*only, "ro", options),
            (SnapshotKind::View, _) => {}
            _ => {
                let work = self.base.path(s.id).join("work");
                options.push(format!("workdir={}", work.display()));
                options.push(format!("upperdir={}", self.layer(s.id)));
            }
        }
        let lower: Vec<_> = s.parents.iter().map(|id| self.layer(*id)).collect();
        options.push(format!("lowerdir={}", lower.join(":")));
        options.extend(self.options.iter().cloned());
        vec![Mount {
            r#type: "overlay".into(),
            source: "overlay".into(),
            options,
            ..Default::default()
        }]
    }
}

fn has_option(options: &[String], key: &str) -> bool {
    options
        .iter()
        .any(|o| o == key || o.split_once('=').is_some_and(|(k, _)| k == key))
}

/// Owner of the root under the id maps of the labels.
pub(crate) fn mapped_root(labels: &Labels) -> Result<Option<(u32, u32)>> {
    match (labels.get(UID_MAP), labels.get(GID_MAP)) {
        (None, None) => Ok(None),
        (uids, gids) => {
            let text = |m: Option<&String>| m.cloned().unwrap_or_default();
            idmap::root_pair(&text(uids), &text(gids))
                .map(Some)
                .context("failed to unmarshal snapshot ID mapped labels")
        }
    }
}

fn make_layer(
    tree: &NewTree,
    chain: &[PathBuf],
    kind: SnapshotKind,
    owner: Option<(u32, u32)>,
) -> Result<()> {
    let layer = tree.path().join("fs");
    fs::create_dir(&layer).context("make layer folder")?;
    let (mut mode, mut owner) = (0o755, owner);
    if let Some(parent) = chain.first() {
        let found = fs::metadata(parent.join("fs")).context("failed to stat parent")?;
        mode = found.mode() & 0o7777;
        owner = owner.or_else(|| Some((found.uid(), found.gid())));
    }
    if let Some((uid, gid)) = owner {
        std::os::unix::fs::lchown(&layer, Some(uid), Some(gid)).context("failed to chown")?;
    }
    fs::set_permissions(&layer, fs::Permissions::from_mode(mode)).context("set mode of layer")?;
    if kind == SnapshotKind::Active {
        let work = tree.path().join("work");
        fs::create_dir(&work).context("make work folder")?;
        fs::set_permissions(&work, fs::Permissions::from_mode(0o711))
            .context("set mode of work folder")?;
    }
    // The mode that every host user meets on the way to the layer.
    fs::set_permissions(tree.path(), fs::Permissions::from_mode(0o700))
        .context("set mode of snapshot")
}

#[async_trait]
impl Snapshotter for Overlay {
    async fn stat(&self, key: &str) -> Result<Info> {
        Ok(self.info(key, &self.base.get(key).await?))
    }
    async fn update(&self, info: Info, paths: &[String]) -> Result<Info> {
        let name = info.name.clone();
        Ok(self.info(&name, &self.base.update(info, paths).await?))
    }
    async fn usage(&self, key: &str) -> Result<Usage> {
        self.base.usage(key, "fs").await
    }
    async fn mounts(&self, key: &str) -> Result<Vec<Mount>> {
        let snapshot = self
            .base
            .snapshot(key)
            .await
            .context("failed to get active mount")?;
        Ok(self.mounts_of(&snapshot))
    }
    async fn prepare(&self, key: &str, parent: &str, labels: Labels) -> Result<Vec<Mount>> {
        self.create(SnapshotKind::Active, key, parent, labels).await
    }
    async fn view(&self, key: &str, parent: &str, labels: Labels) -> Result<Vec<Mount>> {
        self.create(SnapshotKind::View, key, parent, labels).await
    }
    async fn commit(&self, name: &str, key: &str, parent: &str, labels: Labels) -> Result<()> {
        self.base.commit((name, key, parent), labels, "fs").await
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
            .map(|(key, r)| self.info(key, r))
            .collect())
    }
    async fn cleanup(&self) -> Result<()> {
        self.base.cleanup().await
    }
}

/// The plugin: skipped where overlayfs does not work on the root's file system.
pub fn registration() -> Registration {
    Registration::new::<kinds::Snapshotter>("overlayfs")
        .config::<Config>()
        .init(|cx, config| {
            Box::pin(async move {
                cx.host_platform();
                let root = match config.root_path.as_str() {
                    "" => cx.root(),
                    path => PathBuf::from(path),
                };
                cx.export("root", root.to_string_lossy());
                let dir = root.clone();
                let (works, maps) = blocking(move || {
                    use std::os::unix::fs::DirBuilderExt;
                    fs::DirBuilder::new()
                        .recursive(true)
                        .mode(0o700)
                        .create(&dir)
                        .with_context(|| format!("make {}", dir.display()))?;
                    Ok((overlay::probe(&dir), idmap::supported(&dir)))
                })
                .await?;
                if let Err(e) = works {
                    return Err(skip(format!("overlayfs on {}: {e}", root.display())));
                }
                if maps {
                    cx.capability(REMAP_IDS);
                }
                if !config.slow_chown {
                    cx.capability(ONLY_REMAP_IDS);
                }
                // Rebasing needs whiteout devices, which a user namespace cannot make.
                if !userns::running_in_user_ns() {
                    cx.capability(REBASE);
                }
                Ok(Arc::new(Overlay::open(root, &config, maps).await?) as Arc<dyn Snapshotter>)
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlay(root: &std::path::Path, options: &[&str]) -> Overlay {
        let config = Config {
            mount_options: options.iter().map(|o| (*o).to_owned()).collect(),
            upperdir_label: true,
            ..Default::default()
        };
        let opened = Overlay::open(root.to_owned(), &config, true);
        tokio::runtime::Runtime::new()
            .unwrap()
            .block_on(opened)
            .unwrap()
    }

    #[test]
    fn mounts_have_containerds_shape() {
        let root = tempfile::tempdir().unwrap();
        let o = overlay(root.path(), &["index=on", "metacopy=on"]);
        let s = |kind, parents: &[u64]| Snapshot {
            id: 9,
            kind,
            labels: Labels::from([
                (UID_MAP.into(), "0:1:2".into()),
                (GID_MAP.into(), "0:3:4".into()),
            ]),
            parents: parents.to_vec(),
        };
        let dir = root.path().join("snapshots");
        let d = dir.display();
        let first = &o.mounts_of(&s(SnapshotKind::Active, &[]))[0];
        assert_eq!(
            (first.r#type.as_str(), first.source.clone()),
            ("bind", format!("{d}/9/fs"))
        );
        assert_eq!(
            first.options,
            ["uidmap=0:1:2", "gidmap=0:3:4", "rw", "rbind"]
        );
        let view = &o.mounts_of(&s(SnapshotKind::View, &[4]))[0];
        assert_eq!(view.source, format!("{d}/4/fs"));
        assert_eq!(view.options[2..], ["ro", "rbind"]);
        let stacked = &o.mounts_of(&s(SnapshotKind::Active, &[7, 3]))[0];
        assert_eq!(
            (stacked.r#type.as_str(), stacked.source.as_str()),
            ("overlay", "overlay")
        );
        assert_eq!(
            stacked.options[2..],
            [
                format!("workdir={d}/9/work"),
                format!("upperdir={d}/9/fs"),
                format!("lowerdir={d}/7/fs:{d}/3/fs"),
                "index=on".to_owned(),
                "metacopy=on".to_owned(),
            ]
        );
        assert_eq!(
            o.mounts_of(&s(SnapshotKind::View, &[7, 3]))[0]
                .options
                .len(),
            5
        );
    }
}
