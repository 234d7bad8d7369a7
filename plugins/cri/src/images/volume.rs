//! Image volumes: an image, or a folder of it, mounted read-only into a container.
//!
//! ```text
//! <state>/image-volumes/<pod>/<container>/<snapshotter>/<digest of the target>
//! ```
//! is the place of the mount, the key of its snapshot (a view: nobody can write to it) and, behind `cri-image-mount-`,
//! the name of its activation, if its recipe needs the mount manager. Everything is found again by the folders, so that
//! a release after a restart, or after a mount that failed half way, leaves nothing.

use std::path::{Component, Path, PathBuf};

use corten_core::mounts::ActivateOptions;
use corten_core::{Context, Error, Kind, Labels, Mount, Result, Scope, labels};
use corten_protos::runtime::v1;
use corten_sys::root::path_of;
use corten_sys::{Root, blocking, mount, mountinfo};

use super::Images;
use super::rootfs::id_labels;

/// What the kubelet looks for at the start of an error.
pub const IMAGE_VOLUME_MOUNT_FAILED: &str = "ImageVolumeMountFailed";
/// What the activations' names begin with.
const ACTIVATION: &str = "cri-image-mount-";

impl Images {
    /// Mounts the image of `wanted`; gives the folder to bind. The scope's lease holds its snapshot.
    ///
    /// # Errors
    /// All begin with [`IMAGE_VOLUME_MOUNT_FAILED`] and are Unknown, as only then the kubelet reads them: an image that
    /// is not here, a writable mount, a sub-path that is no folder of the image.
    pub async fn mount_volume(
        &self,
        scope: &Scope,
        sandbox: &str,
        container: &str,
        snapshotter: &str,
        wanted: &v1::Mount,
    ) -> Result<PathBuf> {
        let place = Path::new(sandbox).join(container).join(snapshotter);
        self.mount_at(scope, &self.volumes.join(place), snapshotter, wanted)
            .await
            .map_err(|e| {
                e.context(IMAGE_VOLUME_MOUNT_FAILED)
                    .reclassify(Kind::Unknown)
            })
    }

    async fn mount_at(
        &self,
        scope: &Scope,
        base: &Path,
        snapshotter: &str,
        wanted: &v1::Mount,
    ) -> Result<PathBuf> {
        let name = wanted.image.as_ref().map_or("", |i| i.image.as_str());
        if name.is_empty() {
            return Err(Error::invalid("image not specified"));
        }
        if !wanted.host_path.is_empty() {
            return Err(Error::invalid("hostpath must be empty while mount image"));
        }
        if !wanted.readonly {
            return Err(Error::invalid("readonly must be true while mount image"));
        }
        let sub_path = PathBuf::from(&wanted.image_sub_path);
        check_sub_path(&sub_path)?;
        let image = self
            .find(name)
            .with_context(|| format!("failed to resolve image {name:?}"))?;
        let hex = image.target.digest.rsplit(':').next().unwrap_or_default();
        let target = base.join(hex);
        let key = target.to_string_lossy().into_owned();
        let _turn = self.locks.lock(key.clone()).await;
        let at = target.clone();
        if !blocking(move || Ok(mountinfo::all()?.iter().any(|m| m.path == at))).await? {
            self.unpacked(scope, &image, snapshotter)
                .await
                .context("failed to unpack image volume")?;
            let labels = id_labels(&wanted.uid_mappings, &wanted.gid_mappings);
            let recipe = self
                .view(scope, snapshotter, &key, &image.chain_id, labels)
                .await?;
            let recipe = self.activated(scope, snapshotter, &key, recipe).await?;
            let at = target.clone();
            blocking(move || mount_recipe(&recipe, &at))
                .await
                .with_context(|| format!("failed to mount image volume component {key:?}"))?;
        }
        blocking(move || sub_folder(&target, &sub_path)).await
    }

    async fn view(
        &self,
        scope: &Scope,
        snapshotter: &str,
        key: &str,
        parent: &str,
        labels: Labels,
    ) -> Result<Vec<Mount>> {
        match self
            .snapshots
            .view(scope, snapshotter, key, parent, labels)
            .await
        {
            // Of an attempt that failed later, or of before a restart.
            Err(e) if e.kind() == Kind::AlreadyExists => {
                self.snapshots.mounts(&self.ns, snapshotter, key).await
            }
            other => other,
        }
        .with_context(|| format!("failed to prepare for image volume {key:?}"))
    }

    async fn activated(
        &self,
        scope: &Scope,
        snapshotter: &str,
        key: &str,
        recipe: Vec<Mount>,
    ) -> Result<Vec<Mount>> {
        let name = format!("{ACTIVATION}{key}");
        let keeper = format!("{}.{snapshotter}", labels::GC_BREF_SNAPSHOT);
        let options = ActivateOptions {
            labels: Labels::from([(keeper, key.to_owned())]),
            ..ActivateOptions::default()
        };
        let info = match self.mounts.activate(scope, &name, &recipe, options).await {
            Err(e) if e.kind() == Kind::NotImplemented => return Ok(recipe),
            Err(e) if e.kind() == Kind::AlreadyExists => self.mounts.info(&self.ns, &name).await,
            other => other,
        };
        let info = info.with_context(|| format!("failed to activate mounts {key:?}"))?;
        Ok(info.system)
    }

    /// Undoes all image volumes of a container. None is fine.
    ///
    /// # Errors
    /// The first of those of unmounting and of the snapshotter; the rest is undone nevertheless.
    pub async fn release_volumes(&self, sandbox: &str, container: &str) -> Result<()> {
        self.release_below(self.volumes.join(sandbox).join(container))
            .await
    }

    /// Undoes all image volumes of a pod. None is fine.
    ///
    /// # Errors
    /// See [`Images::release_volumes`].
    pub async fn release_pod_volumes(&self, sandbox: &str) -> Result<()> {
        let pod = self.volumes.join(sandbox);
        let mut first = Ok(());
        for container in folders(pod.clone()).await? {
            let done = self.release_below(container).await;
            first = first.and(done);
        }
        first?;
        remove(pod).await
    }

    async fn release_below(&self, container: PathBuf) -> Result<()> {
        let mut first = Ok(());
        for snapshotter in folders(container.clone()).await? {
            let name = snapshotter
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            for target in folders(snapshotter.clone()).await? {
                let done = self.release(&name, &target).await;
                first = first.and(done);
            }
            if first.is_ok() {
                first = remove(snapshotter).await;
            }
        }
        first?;
        remove(container).await
    }

    async fn release(&self, snapshotter: &str, target: &Path) -> Result<()> {
        let key = target.to_string_lossy().into_owned();
        let _turn = self.locks.lock(key.clone()).await;
        let at = target.to_owned();
        blocking(move || mount::unmount_all(&at, false))
            .await
            .with_context(|| format!("failed to unmount image volume component {key:?}"))?;
        gone(
            self.mounts
                .deactivate(&self.ns, &format!("{ACTIVATION}{key}"))
                .await,
        )?;
        gone(
            self.snapshots
                .remove(&self.scope(), snapshotter, &key)
                .await,
        )
        .context("failed to remove snapshot")?;
        remove(target.to_owned()).await
    }
}

fn gone(done: Result<()>) -> Result<()> {
    match done {
        Err(e) if e.kind() == Kind::NotFound => Ok(()),
        other => other,
    }
}

// Only empty ones: a mount that is left must not lose its files.
async fn remove(dir: PathBuf) -> Result<()> {
    blocking(move || match std::fs::remove_dir(&dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("remove {}", dir.display()))
        }
        _ => Ok(()),
    })
    .await
}

async fn folders(dir: PathBuf) -> Result<Vec<PathBuf>> {
    blocking(move || match std::fs::read_dir(&dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e).with_context(|| format!("list {}", dir.display())),
        Ok(entries) => Ok(entries.filter_map(|e| Some(e.ok()?.path())).collect()),
    })
    .await
}

fn mount_recipe(recipe: &[Mount], target: &Path) -> Result<()> {
    std::fs::create_dir_all(target).with_context(|| format!("make {}", target.display()))?;
    // Whatever the snapshotter gave: an image volume is read-only.
    mount::mount_all(&corten_core::mounts::read_only(recipe), target)
}

// What would leave the image is refused, not bent.
fn check_sub_path(path: &Path) -> Result<()> {
    let inside = |c| matches!(c, Component::Normal(_) | Component::CurDir);
    if path.components().all(inside) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "image subpath {path:?} escapes from the image"
    )))
}

fn sub_folder(mounted: &Path, sub_path: &Path) -> Result<PathBuf> {
    if sub_path.as_os_str().is_empty() {
        return Ok(mounted.to_owned());
    }
    let open = || {
        let folder = Root::open(mounted)?.dir(sub_path)?;
        path_of(&folder)
    };
    let found = match open() {
        Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => {
            return Err(Error::invalid(format!(
                "only directory subpath is supported, subpath: {sub_path:?}, mountpoint: {mounted:?}"
            )));
        }
        other => other.with_context(|| {
            format!(
                "failed to ensure image subpath {sub_path:?} in {}",
                mounted.display()
            )
        })?,
    };
    if found.starts_with(mounted) {
        return Ok(found);
    }
    Err(Error::internal(format!(
        "image subpath {sub_path:?} left its image"
    )))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn sub_paths_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("image/a/b")).unwrap();
        std::fs::create_dir_all(root.join("outside")).unwrap();
        std::fs::write(root.join("image/file"), "x").unwrap();
        symlink("/a", root.join("image/absolute")).unwrap();
        symlink("../../outside", root.join("image/out")).unwrap();
        let image = root.join("image");
        let at = |sub: &str| sub_folder(&image, Path::new(sub));
        assert_eq!(at("").unwrap(), image);
        assert_eq!(at("a/b").unwrap(), image.join("a/b"));
        // As a process in the image would see it.
        assert_eq!(at("absolute/b").unwrap(), image.join("a/b"));
        assert_eq!(at("out").unwrap_err().kind(), Kind::NotFound);
        assert!(
            at("file")
                .unwrap_err()
                .to_string()
                .starts_with("only directory subpath")
        );
        assert_eq!(at("none").unwrap_err().kind(), Kind::NotFound);
        for bad in ["..", "a/../..", "/a", "a/.."] {
            assert!(check_sub_path(Path::new(bad)).is_err(), "{bad}");
        }
        assert!(check_sub_path(Path::new("./a/b")).is_ok());
    }
}
