//! Plugin `io.containerd.snapshotter.v1.erofs`: each committed layer is one read-only erofs image; mounts stack the
//! images under an overlay.
//!
//! ```text
//! snapshots/<id>/fs            upper folder of an active one; afterwards empty, with the root's mode and owner
//!                work          overlayfs' work folder, for active ones
//!                .erofslayer   tells the erofs differ that it may put the layer here itself
//!                layer.erofs   the layer, from that differ or made of `fs` at commit
//!                cached        instead of it: the path of an image in a layer content cache
//!                fsmeta.erofs  made by others: metadata of this layer and all below it
//!                rwlayer.img   upper and work folder as an ext4 image (`default_size`)
//! ```
//! Recipes need the mount manager ([`recipe`]). Layers are never changed after commit; on request the file system
//! guards that (fs-verity, the immutable flag).

mod image;
mod recipe;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use corten_core::snapshots::{
    Info, ONLY_REMAP_IDS, REBASE, REMAP_IDS, SnapshotKind, Snapshotter, Usage,
};
use corten_core::{Context, Digest, Error, Labels, Mount, Result, kinds, labels, size};
use corten_registry::{InitError, Registration, skip};
use corten_sys::{blocking, idmap, image as images, mount, overlay, seal};
use serde::{Deserialize, Serialize};

use crate::base::Base;
use crate::overlayfs::mapped_root;
use crate::records::{New, Record, Snapshot};
use crate::trees::NewTree;
use recipe::Recipes;

/// The diff id of the layer that a Prepare is for.
const DIFF_ID: &str = "containerd.io/snapshot/diff-id";
/// Where a layer's image comes from, shown of those in a cache. Clients cannot set them: only labels of the prefix
/// `containerd.io/snapshot/` reach a snapshotter.
const BLOB_SOURCE: &str = "io.containerd.erofs.v1/blob.source";
const BLOB_REF: &str = "io.containerd.erofs.v1/blob.ref";

/// The plugin's config table.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Another folder than the plugin's own.
    pub root_path: String,
    /// More options for each overlay mount.
    pub ovl_mount_options: Vec<String>,
    /// fs-verity on layers.
    pub enable_fsverity: bool,
    /// The immutable flag on layers.
    pub set_immutable: bool,
    /// Size of the writable layer as an image of its own, e.g. `10GiB`; empty or 0 = a folder.
    pub default_size: String,
    /// `auto`, `on` or `off`. Only `off` and `auto` without dm-verity data are supported.
    pub dmverity_mode: String,
    /// Folders of images by diff id, from which layers are taken instead of being made.
    pub layer_content_caches: Vec<PathBuf>,
}

/// The snapshotter.
#[derive(Debug, Clone)]
pub struct Erofs {
    base: Base,
    recipes: Arc<Recipes>,
    config: Arc<Config>,
}

impl Erofs {
    /// Opens `root`, making it when it is not there. `remap_ids`: the host can id-map layers.
    ///
    /// # Errors
    /// InvalidArgument for a config that contradicts itself or asks for what this host cannot do.
    pub async fn open(root: PathBuf, config: &Config, remap_ids: bool) -> Result<Self> {
        let size = check(config)?;
        let base = Base::open(root.clone(), true).await?;
        if config.enable_fsverity {
            let dir = root.clone();
            if !blocking(move || Ok(seal::verity_works(&dir))).await? {
                return Err(Error::precondition(format!(
                    "fsverity is not supported on the filesystem of {:?}",
                    root.display()
                )));
            }
        }
        Ok(Self {
            recipes: Arc::new(Recipes {
                snapshots: root.join("snapshots"),
                options: config.ovl_mount_options.clone(),
                default_size: size,
                remap_ids,
                verity: config.enable_fsverity,
                dmverity: config.dmverity_mode != "off",
            }),
            base,
            config: Arc::new(config.clone()),
        })
    }

    async fn create(
        &self,
        kind: SnapshotKind,
        key: &str,
        parent: &str,
        labels: Labels,
    ) -> Result<Vec<Mount>> {
        let owner = mapped_root(&labels)?;
        let cached = match kind {
            SnapshotKind::Active => self.cached(&labels),
            _ => None,
        };
        let block = self.recipes.default_size > 0;
        let new = New {
            kind,
            key: key.into(),
            parent: parent.into(),
            labels,
        };
        let make = move |tree: &NewTree, chain: &[PathBuf]| {
            make_layer(tree, chain, kind, (owner, block), cached)
        };
        let snapshot = self.base.create(new, Some(make)).await?;
        self.mounts_of(snapshot).await
    }

    async fn mounts_of(&self, snapshot: Snapshot) -> Result<Vec<Mount>> {
        let recipes = self.recipes.clone();
        blocking(move || recipes.mounts(&snapshot)).await
    }

    /// The image of a layer that is being unpacked, if a cache has it. What cannot be read is not there: the layer is
    /// made in the usual way then.
    fn cached(&self, labels: &Labels) -> Option<PathBuf> {
        let caches = &self.config.layer_content_caches;
        if caches.is_empty()
            || labels
                .get(labels::SNAPSHOT_REF)
                .is_none_or(String::is_empty)
        {
            return None;
        }
        let digest = Digest::parse(labels.get(DIFF_ID)?).ok()?;
        let (algorithm, hex) = digest.as_str().split_once(':')?;
        let inner = Path::new(algorithm)
            .join(hex.get(..2)?)
            .join(format!("{hex}.erofs"));
        caches.iter().map(|dir| dir.join(&inner)).find(|blob| {
            fs::metadata(blob)
                .map(|m| m.is_file())
                .inspect_err(|error| {
                    if error.kind() != std::io::ErrorKind::NotFound {
                        tracing::warn!(blob = %blob.display(), %error, "read layer content cache");
                    }
                })
                .unwrap_or(false)
        })
    }

    fn info(&self, key: &str, record: &Record) -> Info {
        let mut info = record.info(key);
        if let Ok(blob) = fs::read_to_string(self.base.path(record.id).join(image::CACHED)) {
            info.labels.insert(BLOB_SOURCE.into(), "cache".into());
            info.labels.insert(BLOB_REF.into(), blob);
        }
        info
    }

    /// Finishes the tree of a snapshot that is committed.
    fn seal(&self, tree: &Path) -> Result<Usage> {
        let blob = match image::find(tree)? {
            Some(blob) => blob,
            // Applied by another differ than erofs'.
            None => image::convert(tree, self.recipes.default_size > 0)?,
        };
        if blob.owned {
            if self.config.enable_fsverity {
                seal::enable_verity(&blob.path).context("failed to enable fsverity")?;
            }
            if self.config.set_immutable
                && let Err(error) = seal::set_immutable(&blob.path, true)
            {
                tracing::warn!(path = %blob.path.display(), %error, "set immutable flag");
            }
        }
        let found = fs::metadata(&blob.path).context("failed to get the converted erofs blob")?;
        Ok(Usage {
            inodes: 1,
            size: i64::try_from(found.blocks())
                .unwrap_or(i64::MAX)
                .saturating_mul(512),
        })
    }
}

/// The size of writable images; 0 = none.
fn check(config: &Config) -> Result<u64> {
    match config.dmverity_mode.as_str() {
        "" | "auto" | "off" => {}
        "on" => {
            return Err(Error::precondition(
                "dmverity_mode is 'on' but dm-verity is not supported",
            ));
        }
        other => {
            return Err(Error::invalid(format!(
                "invalid dmverity_mode {other:?}: must be \"auto\", \"on\", or \"off\""
            )));
        }
    }
    let caches = &config.layer_content_caches;
    if !caches.is_empty() && (config.enable_fsverity || config.set_immutable) {
        return Err(Error::invalid(
            "enable_fsverity and set_immutable are incompatible with layer_content_caches",
        ));
    }
    if let Some(dir) = caches.iter().find(|dir| !dir.is_absolute()) {
        return Err(Error::invalid(format!(
            "layer_content_caches {:?} must be an absolute path",
            dir.display()
        )));
    }
    match config.default_size.as_str() {
        "" => Ok(0),
        text => size::parse(text).with_context(|| format!("failed to parse default_size '{text}'")),
    }
}

fn make_layer(
    tree: &NewTree,
    chain: &[PathBuf],
    kind: SnapshotKind,
    (owner, block): (Option<(u32, u32)>, bool),
    cached: Option<PathBuf>,
) -> Result<()> {
    let layer = tree.path().join("fs");
    fs::create_dir(&layer).context("make layer folder")?;
    let (mut mode, mut owner) = (0o755, owner);
    if let Some(parent) = chain.first() {
        let found = fs::metadata(parent.join("fs")).context("failed to get parent ownership")?;
        mode = found.mode() & 0o7777;
        owner = owner.or_else(|| Some((found.uid(), found.gid())));
    }
    if let Some((uid, gid)) = owner {
        std::os::unix::fs::lchown(&layer, Some(uid), Some(gid)).context("failed to chown")?;
    }
    fs::set_permissions(&layer, fs::Permissions::from_mode(mode)).context("set mode of layer")?;
    if kind == SnapshotKind::Active {
        if !block {
            let work = tree.path().join("work");
            fs::create_dir(&work).context("make work folder")?;
            fs::set_permissions(&work, fs::Permissions::from_mode(0o711))
                .context("set mode of work folder")?;
        }
        fs::write(tree.path().join(image::MARK), "").context("mark erofs layer")?;
        if let Some(blob) = cached {
            fs::write(
                tree.path().join(image::CACHED),
                blob.as_os_str().as_encoded_bytes(),
            )
            .context("note the cached layer")?;
        }
    }
    fs::set_permissions(tree.path(), fs::Permissions::from_mode(0o700))
        .context("set mode of snapshot")
}

#[async_trait]
impl Snapshotter for Erofs {
    async fn stat(&self, key: &str) -> Result<Info> {
        Ok(self.info(key, &self.base.get(key).await?))
    }
    async fn update(&self, mut info: Info, paths: &[String]) -> Result<Info> {
        info.labels.retain(|k, _| k != BLOB_SOURCE && k != BLOB_REF);
        let name = info.name.clone();
        Ok(self.info(&name, &self.base.update(info, paths).await?))
    }
    async fn usage(&self, key: &str) -> Result<Usage> {
        let sub = if self.recipes.default_size > 0 {
            ""
        } else {
            "fs"
        };
        self.base.usage(key, sub).await
    }
    async fn mounts(&self, key: &str) -> Result<Vec<Mount>> {
        let snapshot = self
            .base
            .snapshot(key)
            .await
            .context("failed to get active mount")?;
        self.mounts_of(snapshot).await
    }
    async fn prepare(&self, key: &str, parent: &str, labels: Labels) -> Result<Vec<Mount>> {
        self.create(SnapshotKind::Active, key, parent, labels).await
    }
    async fn view(&self, key: &str, parent: &str, labels: Labels) -> Result<Vec<Mount>> {
        self.create(SnapshotKind::View, key, parent, labels).await
    }
    async fn commit(&self, name: &str, key: &str, parent: &str, labels: Labels) -> Result<()> {
        // Before the layer is made: that takes its time, and must not happen to what is not a layer.
        if self.base.get(key).await?.kind() != SnapshotKind::Active {
            return Err(Error::precondition(format!(
                "snapshot {key:?} is not active"
            )));
        }
        let this = self.clone();
        let seal = move |tree: &Path| this.seal(tree);
        self.base
            .commit_with((name, key, parent), labels, seal)
            .await
    }
    async fn remove(&self, key: &str) -> Result<()> {
        let record = self.base.get(key).await?;
        let tree = self.base.path(record.id);
        let (blob, upper) = (tree.join(image::LAYER), tree.join("fs"));
        let guarded = self.config.set_immutable && record.kind() == SnapshotKind::Committed;
        let at = blob.clone();
        let freed = blocking(move || {
            // Left there by a commit that a crash cut short.
            mount::unmount_all(&upper, false)?;
            // The flag may be from an earlier configuration.
            if at.is_file()
                && let Err(error) = seal::set_immutable(&at, false)
            {
                tracing::debug!(path = %at.display(), %error, "clear immutable flag");
            }
            Ok(())
        });
        freed.await?;
        let removed = self.base.remove(key).await;
        if removed.is_err() && guarded {
            blocking(move || Ok(seal::set_immutable(&blob, true)?)).await?;
        }
        removed
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

/// Why erofs cannot be used on `root`.
fn unusable(root: &Path) -> Option<String> {
    if !images::kernel_knows("erofs") {
        return Some("EROFS unsupported, please `modprobe erofs`".into());
    }
    if let Err(e) = images::mkfs_erofs_help() {
        return Some(format!("mkfs.erofs: {e}"));
    }
    let works = overlay::probe(root);
    works
        .err()
        .map(|e| format!("overlayfs on {}: {e}", root.display()))
}

/// The plugin: skipped where kernel or mkfs.erofs is missing.
pub fn registration() -> Registration {
    Registration::new::<kinds::Snapshotter>("erofs")
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
                let (reason, maps) = blocking(move || {
                    use std::os::unix::fs::DirBuilderExt;
                    fs::DirBuilder::new()
                        .recursive(true)
                        .mode(0o700)
                        .create(&dir)
                        .with_context(|| format!("make {}", dir.display()))?;
                    Ok((unusable(&dir), idmap::supported(&dir)))
                })
                .await?;
                if let Some(reason) = reason {
                    return Err(skip(reason));
                }
                cx.capability(ONLY_REMAP_IDS);
                if maps {
                    cx.capability(REMAP_IDS);
                }
                cx.capability(REBASE);
                let opened = Erofs::open(root, &config, maps).await;
                let opened = opened.map_err(InitError::from)?;
                Ok(Arc::new(opened) as Arc<dyn Snapshotter>)
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contradictions_in_the_config_are_told() {
        let good = Config {
            default_size: "1GiB".into(),
            dmverity_mode: "auto".into(),
            ..Default::default()
        };
        assert_eq!(check(&good).unwrap(), 1 << 30);
        assert_eq!(check(&Config::default()).unwrap(), 0);
        let with = |change: fn(&mut Config)| {
            let mut config = Config::default();
            change(&mut config);
            check(&config)
        };
        assert!(with(|c| c.dmverity_mode = "on".into()).is_err());
        assert!(with(|c| c.dmverity_mode = "maybe".into()).is_err());
        assert!(with(|c| c.default_size = "big".into()).is_err());
        assert!(with(|c| c.layer_content_caches = vec!["relative".into()]).is_err());
        assert!(
            with(|c| {
                c.layer_content_caches = vec!["/c".into()];
                c.set_immutable = true;
            })
            .is_err()
        );
    }
}
