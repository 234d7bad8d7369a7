//! Image volumes: an image, or a folder of it, mounted read-only into a container.
//!
//! ```text
//! <state>/image-volumes/<pod>/<digest of the target>
//! ```
//! is the place of the mount, the key of its snapshot and, behind `cri-image-mount-`, the name of its activation, if its
//! recipe needs the mount manager: all as containerd has it. The containers of a pod share it; it goes with the last of
//! them, or with the pod. Everything is found again by the folders, so that a release after a restart, or after a mount
//! that failed half way, leaves nothing.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use corten_core::keylock::KeyGuard;
use corten_core::mounts::ActivateOptions;
use corten_core::{Context, Error, Kind, Labels, Mount, Result, Scope, labels};
use corten_protos::runtime::v1;
use corten_sys::root::path_of;
use corten_sys::{blocking, mount, mountinfo};
use parking_lot::Mutex;
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};

use super::Images;
use super::rootfs::id_labels;

/// What the kubelet looks for at the start of an error.
pub const IMAGE_VOLUME_MOUNT_FAILED: &str = "ImageVolumeMountFailed";
/// What the activations' names begin with.
const ACTIVATION: &str = "cri-image-mount-";
/// Stands for containers of before a restart: nobody knows which.
const SOMEBODY: &str = "";

/// The image volumes.
#[derive(Debug)]
pub(super) struct Volumes {
    base: PathBuf,
    /// Containers by the volume that they hold.
    holders: Mutex<HashMap<PathBuf, BTreeSet<String>>>,
}

// === impl Volumes ===

impl Volumes {
    pub(super) fn new(base: PathBuf) -> Self {
        Self {
            base,
            holders: Mutex::default(),
        }
    }

    // `was` says that it was mounted before: by somebody of this life, or of an earlier one.
    fn hold(&self, target: &Path, container: &str, was: bool) {
        let mut all = self.holders.lock();
        let first = || BTreeSet::from_iter(was.then(|| SOMEBODY.to_owned()));
        let holders = all.entry(target.to_owned()).or_insert_with(first);
        holders.insert(container.to_owned());
    }

    // The volumes of `pod` that only `container` held.
    fn let_go(&self, pod: &str, container: &str) -> Vec<PathBuf> {
        let mut out = Vec::new();
        let below = self.base.join(pod);
        self.holders.lock().retain(|target, holders| {
            if target.starts_with(&below) && holders.remove(container) && holders.is_empty() {
                out.push(target.clone());
                return false;
            }
            true
        });
        out
    }

    fn is_held(&self, target: &Path) -> bool {
        self.holders.lock().contains_key(target)
    }

    fn forget(&self, pod: &Path) {
        self.holders
            .lock()
            .retain(|target, _| !target.starts_with(pod));
    }
}

impl Images {
    /// Mounts the image of `wanted`, unless a container of the pod has it already; gives the folder to bind. The
    /// scope's lease holds its snapshot.
    ///
    /// # Errors
    /// All begin with [`IMAGE_VOLUME_MOUNT_FAILED`] and are Unknown, as only then the kubelet reads them: an image that
    /// is not here, a writable mount, a sub-path that is no folder of the image. What was mounted stays for the next
    /// try.
    pub async fn mount_volume(
        &self,
        scope: &Scope,
        sandbox: &str,
        container: &str,
        snapshotter: &str,
        wanted: &v1::Mount,
    ) -> Result<PathBuf> {
        let done = async {
            let (target, was, _turn) = self
                .mount_image(scope, sandbox, snapshotter, wanted)
                .await?;
            let (at, sub_path) = (target.clone(), PathBuf::from(&wanted.image_sub_path));
            let folder = blocking(move || sub_folder(&at, &sub_path)).await?;
            self.volumes.hold(&target, container, was);
            Ok(folder)
        };
        done.await.map_err(|e: Error| {
            e.context(IMAGE_VOLUME_MOUNT_FAILED)
                .reclassify(Kind::Unknown)
        })
    }

    // The folder of the volume, and whether it was mounted already. Until the guard goes nobody else touches it.
    async fn mount_image(
        &self,
        scope: &Scope,
        sandbox: &str,
        snapshotter: &str,
        wanted: &v1::Mount,
    ) -> Result<(PathBuf, bool, KeyGuard)> {
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
        let image = self
            .find(name)
            .with_context(|| format!("failed to resolve image {name:?}"))?;
        let hex = image.target.digest.rsplit(':').next().unwrap_or_default();
        let target = self.volumes.base.join(sandbox).join(hex);
        let key = target.to_string_lossy().into_owned();
        let turn = self.locks.lock(key.clone()).await;
        let at = target.clone();
        if blocking(move || Ok(mountinfo::all()?.iter().any(|m| m.path == at))).await? {
            return Ok((target, true, turn));
        }
        self.unpacked(scope, &image, snapshotter)
            .await
            .context("failed to unpack image volume")?;
        let labels = id_labels(&wanted.uid_mappings, &wanted.gid_mappings);
        let recipe = self
            .layer(scope, snapshotter, &key, &image.chain_id, labels)
            .await?;
        let recipe = self.activated(scope, snapshotter, &key, recipe).await?;
        let at = target.clone();
        blocking(move || mount_recipe(recipe, &at))
            .await
            .with_context(|| format!("failed to mount image volume component {key:?}"))?;
        Ok((target, false, turn))
    }

    async fn layer(
        &self,
        scope: &Scope,
        snapshotter: &str,
        key: &str,
        parent: &str,
        labels: Labels,
    ) -> Result<Vec<Mount>> {
        match self
            .snapshots
            .prepare(scope, snapshotter, key, parent, labels)
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

    /// A container is gone: undoes the image volumes that only it had. None is fine.
    ///
    /// # Errors
    /// The first of those of unmounting and of the snapshotter; the rest is undone nevertheless.
    pub async fn release_volumes(&self, sandbox: &str, container: &str) -> Result<()> {
        let mut first = Ok(());
        for target in self.volumes.let_go(sandbox, container) {
            let done = self.release(&target, false).await;
            first = first.and(done);
        }
        first
    }

    /// Undoes all image volumes of a pod, none of whose containers runs any more. None is fine.
    ///
    /// # Errors
    /// See [`Images::release_volumes`].
    pub async fn release_pod_volumes(&self, sandbox: &str) -> Result<()> {
        let pod = self.volumes.base.join(sandbox);
        self.volumes.forget(&pod);
        let mut first = Ok(());
        for target in folders(pod.clone()).await? {
            let done = self.release(&target, true).await;
            first = first.and(done);
        }
        first?;
        remove(pod).await
    }

    async fn release(&self, target: &Path, for_good: bool) -> Result<()> {
        let key = target.to_string_lossy().into_owned();
        let _turn = self.locks.lock(key.clone()).await;
        if !for_good && self.volumes.is_held(target) {
            // Another container wants it, since a moment.
            return Ok(());
        }
        let at = target.to_owned();
        blocking(move || mount::unmount_all(&at, false))
            .await
            .with_context(|| format!("failed to unmount image volume component {key:?}"))?;
        gone(
            self.mounts
                .deactivate(&self.ns, &format!("{ACTIVATION}{key}"))
                .await,
        )?;
        for snapshotter in self.snapshots.names() {
            gone(
                self.snapshots
                    .remove(&self.scope(), &snapshotter, &key)
                    .await,
            )
            .context("failed to remove snapshot")?;
        }
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

fn mount_recipe(mut recipe: Vec<Mount>, target: &Path) -> Result<()> {
    std::fs::create_dir_all(target).with_context(|| format!("make {}", target.display()))?;
    for m in recipe.iter_mut().filter(|m| m.r#type == "overlay") {
        let volatile = |o: &String| o == "volatile" || o == "fsync=volatile";
        // Nothing is ever written, so nothing has to be synced when it goes; kernels before 5.10 say no.
        if !m.options.iter().any(volatile) && m.options.iter().any(|o| o.starts_with("upperdir=")) {
            m.options.push("volatile".into());
        }
    }
    match mount::mount_all(&recipe, target) {
        Err(e) if e.kind() == Kind::InvalidArgument => {
            for m in &mut recipe {
                m.options.retain(|o| o != "volatile");
            }
            mount::mount_all(&recipe, target)
        }
        other => other,
    }
}

// What would leave the image, by `..`, by an absolute path or by a symbolic link, is refused.
fn sub_folder(mounted: &Path, sub_path: &Path) -> Result<PathBuf> {
    if sub_path.as_os_str().is_empty() {
        return Ok(mounted.to_owned());
    }
    let what = || {
        format!(
            "failed to ensure image subpath {sub_path:?} in {}",
            mounted.display()
        )
    };
    let open = || -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, mounted, flags | OFlags::DIRECTORY, Mode::empty())?;
        let inside = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(&root, sub_path, flags, Mode::empty(), inside)
    };
    let found = match open() {
        Ok(found) => found,
        Err(rustix::io::Errno::XDEV) => {
            return Err(Error::invalid("path escapes from parent").context(what()));
        }
        Err(e) => return Err(std::io::Error::from(e)).with_context(what),
    };
    let stat = rustix::fs::fstat(&found).map_err(std::io::Error::from);
    let mode = stat.with_context(what)?.st_mode;
    if FileType::from_raw_mode(mode) != FileType::Directory {
        let text = format!(
            "only directory subpath is supported, subpath: {sub_path:?}, mountpoint: {mounted:?}"
        );
        return Err(Error::invalid(text).context(what()));
    }
    path_of(&found).with_context(what)
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
        symlink("a/b", root.join("image/inside")).unwrap();
        let image = root.join("image");
        let at = |sub: &str| sub_folder(&image, Path::new(sub));
        assert_eq!(at("").unwrap(), image);
        assert_eq!(at("a/b").unwrap(), image.join("a/b"));
        assert_eq!(at("a/../a").unwrap(), image.join("a"));
        assert_eq!(at("inside").unwrap(), image.join("a/b"));
        for bad in ["absolute", "absolute/b", "out", "..", "a/../..", "/a", "/"] {
            let e = at(bad).unwrap_err().to_string();
            assert!(e.contains("path escapes from parent"), "{bad}: {e}");
        }
        let e = at("file").unwrap_err().to_string();
        assert!(e.contains("only directory subpath is supported"), "{e}");
        assert_eq!(at("none").unwrap_err().kind(), Kind::NotFound);
    }

    #[test]
    fn a_volume_goes_with_its_last_container() {
        let v = Volumes::new("/base".into());
        let target = Path::new("/base/pod/x");
        v.hold(target, "a", false);
        v.hold(target, "b", true);
        v.hold(Path::new("/base/other/x"), "a", false);
        assert!(v.let_go("pod", "a").is_empty());
        assert!(v.let_go("pod", "never").is_empty() && v.is_held(target));
        assert_eq!(v.let_go("pod", "b"), [target]);
        assert!(!v.is_held(target));
        // It was there before this daemon: others may have it.
        v.hold(target, "c", true);
        assert!(v.let_go("pod", "c").is_empty() && v.is_held(target));
        v.forget(Path::new("/base/pod"));
        assert!(!v.is_held(target) && v.is_held(Path::new("/base/other/x")));
    }
}
