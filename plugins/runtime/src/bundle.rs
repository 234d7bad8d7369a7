//! A task's folders, laid out as containerd does, because shims and tools read them:
//!
//! ```text
//! <state>/<ns>/<id>/           0700 (0710 and the mapped group with a user namespace)
//!     config.json              the spec, verbatim
//!     rootfs/                  0711, where the shim mounts
//!     work -> <root>/<ns>/<id> 0711, persistent
//!     log                      FIFO: the shim's log
//!     bootstrap.json           how to reach the shim
//!     shim-binary-path         whom to ask for `delete`
//!     sandbox                  id of the sandbox whose shim serves this container, if one does
//! ```
//!
//! The folder is also the reservation of the id: creating it twice fails.

use std::fs::{DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use corten_core::{Any, Context, Error, Kind, Namespace, Result, id};
use corten_sys::blocking;
use parking_lot::Mutex;
use serde::Deserialize;

/// Name of the spec in a bundle.
pub(crate) const CONFIG: &str = "config.json";
/// Tail of the type URL of an OCI spec.
const SPEC_URL: &str = "opencontainers/runtime-spec/1/Spec";

/// The folders of one task.
#[derive(Debug, Clone)]
pub(crate) struct Bundle {
    pub(crate) id: String,
    pub(crate) namespace: Namespace,
    pub(crate) path: PathBuf,
    /// Whether this very bundle is deleted: the folder may be another task's by then. Held while deleting.
    deleted: Arc<Mutex<bool>>,
}

impl Bundle {
    /// A bundle that is there already.
    pub(crate) fn load(state: &Path, namespace: &Namespace, id: &str) -> Self {
        Self {
            id: id.to_owned(),
            namespace: namespace.clone(),
            path: state.join(namespace.as_str()).join(id),
            deleted: Arc::default(),
        }
    }

    /// Makes all folders; leaves nothing behind when it fails.
    pub(crate) async fn create(
        root: &Path,
        state: &Path,
        namespace: &Namespace,
        id: &str,
        spec: Option<&Any>,
    ) -> Result<Self> {
        id::validate(id).with_context(|| format!("invalid task id {id}"))?;
        let bundle = Self::load(state, namespace, id);
        let work = root.join(namespace.as_str()).join(id);
        let (made, spec) = (bundle.clone(), spec.cloned());
        blocking(move || {
            make_parents(&made.path)?;
            DirBuilder::new()
                .mode(0o700)
                .create(&made.path)
                .map_err(|e| match e.kind() {
                    std::io::ErrorKind::AlreadyExists => {
                        Error::already_exists(format!("task {}: bundle", made.id))
                    }
                    _ => at(e, "mkdir", &made.path),
                })?;
            let filled = made.fill(&work, spec.as_ref());
            if filled.is_err() {
                let _ = std::fs::remove_dir_all(&work);
                let _ = std::fs::remove_dir_all(&made.path);
            }
            filled
        })
        .await?;
        Ok(bundle)
    }

    fn fill(&self, work: &Path, spec: Option<&Any>) -> Result<()> {
        let is_oci = spec.is_some_and(|s| s.type_url.ends_with(SPEC_URL));
        if let (true, Some(spec)) = (is_oci, spec) {
            self.open_to_mapped_group(&spec.value)?;
        }
        make_parents(work)?;
        let folder = |path: &Path| {
            DirBuilder::new()
                .mode(0o711)
                .create(path)
                .map_err(|e| at(e, "mkdir", path))
        };
        folder(&self.rootfs())?;
        if work.symlink_metadata().is_ok() {
            // Left by a task of the same id whose state folder was on a tmpfs: its content means nothing any more.
            std::fs::remove_dir_all(work).map_err(|e| at(e, "remove", work))?;
        }
        folder(work)?;
        let link = self.path.join("work");
        std::os::unix::fs::symlink(work, &link).map_err(|e| at(e, "symlink", &link))?;
        match spec {
            Some(spec) if !spec.value.is_empty() => {
                let path = self.path.join(CONFIG);
                OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(0o666)
                    .open(&path)
                    .and_then(|mut f| f.write_all(&spec.value))
                    .map_err(|e| at(e, "write", &path))
            }
            _ => Ok(()),
        }
    }

    /// With a user namespace, the container's root must be able to pass through the bundle to its rootfs: the
    /// folder gets the group that gid 0 is mapped to, and lets it search.
    fn open_to_mapped_group(&self, spec: &[u8]) -> Result<()> {
        let Some(gid) = mapped_gid(spec)? else {
            return Ok(());
        };
        std::os::unix::fs::chown(&self.path, None, Some(gid))
            .and_then(|()| {
                std::fs::set_permissions(&self.path, std::fs::Permissions::from_mode(0o710))
            })
            .map_err(|e| at(e, "chown", &self.path))
    }

    /// Unmounts the rootfs and removes all folders. Fine when they are gone, and does nothing a second time.
    pub(crate) async fn delete(&self) -> Result<()> {
        let bundle = self.clone();
        blocking(move || {
            let mut deleted = bundle.deleted.lock();
            if *deleted {
                return Ok(());
            }
            let work = std::fs::read_link(bundle.path.join("work")).ok();
            let rootfs = bundle.rootfs();
            corten_sys::mount::unmount_recursive(&rootfs, false)
                .with_context(|| format!("unmount rootfs {}", rootfs.display()))?;
            // Never recursively: were something still mounted there, its files would go with it.
            match std::fs::remove_dir(&rootfs) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(at(e, "failed to remove bundle rootfs", &rootfs));
                }
                _ => {}
            }
            // The bundle last: with it the id is free, and the working folder may be another task's.
            let removed = work.map_or(Ok(()), |w| remove_atomically(&w));
            remove_atomically(&bundle.path).and(removed)?;
            *deleted = true;
            Ok(())
        })
        .await
    }

    /// Unmounts what is below the rootfs, and nothing else.
    pub(crate) async fn unmount(&self) -> Result<()> {
        let rootfs = self.rootfs();
        blocking(move || corten_sys::mount::unmount_recursive(&rootfs, false)).await
    }

    pub(crate) fn rootfs(&self) -> PathBuf {
        self.path.join("rootfs")
    }

    /// Reads a small file of the bundle.
    pub(crate) async fn read(&self, name: &str) -> std::io::Result<Vec<u8>> {
        tokio::fs::read(self.path.join(name)).await
    }

    /// Writes a small file of the bundle so that a reader sees all or nothing.
    pub(crate) async fn write(&self, name: &'static str, data: Vec<u8>, mode: u32) -> Result<()> {
        let (path, temp) = (self.path.join(name), self.path.join(format!(".{name}")));
        blocking(move || {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(mode)
                .open(&temp)
                .map_err(|e| at(e, "write", &temp))?;
            file.write_all(&data)
                .and_then(|()| std::fs::rename(&temp, &path))
                .map_err(|e| at(e, "write", &path))
        })
        .await
    }
}

/// The host's gid of the container's gid 0; `None` without a user namespace or when it is root itself.
fn mapped_gid(spec: &[u8]) -> Result<Option<u32>> {
    #[derive(Deserialize, Default)]
    struct Spec {
        linux: Option<Linux>,
    }
    #[derive(Deserialize, Default)]
    #[serde(default, rename_all = "camelCase")]
    struct Linux {
        gid_mappings: Option<Vec<Mapping>>,
    }
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Mapping {
        #[serde(rename = "containerID")]
        container: u32,
        #[serde(rename = "hostID")]
        host: u32,
    }
    let spec: Spec = serde_json::from_slice(spec)
        .map_err(|e| Error::new(Kind::Unknown, format!("decode spec: {e}")))?;
    Ok(spec
        .linux
        .and_then(|l| l.gid_mappings)
        .into_iter()
        .flatten()
        .find(|m| m.container == 0)
        .map(|m| m.host)
        .filter(|host| *host != 0))
}

/// Removes a tree in one step as others see it: it is first renamed to a hidden name, which a restart sweeps.
fn remove_atomically(path: &Path) -> Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::internal(format!("remove {}", path.display())));
    };
    let hidden = parent.join(format!(".{}", name.to_string_lossy()));
    if hidden.symlink_metadata().is_ok() {
        std::fs::remove_dir_all(&hidden).map_err(|e| at(e, "remove", &hidden))?;
    }
    match std::fs::rename(path, &hidden) {
        Ok(()) => std::fs::remove_dir_all(&hidden).map_err(|e| at(e, "remove", &hidden)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(at(e, "remove", path)),
    }
}

fn make_parents(path: &Path) -> Result<()> {
    match path.parent() {
        Some(parent) => DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(parent)
            .map_err(|e| at(e, "mkdir", parent)),
        None => Ok(()),
    }
}

fn at(e: std::io::Error, what: &str, path: &Path) -> Error {
    Error::from(e).context(format!("{what} {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn spec(json: &str) -> Any {
        Any {
            type_url: format!("types.containerd.io/{SPEC_URL}"),
            value: json.as_bytes().to_vec(),
        }
    }

    fn mode(path: &Path) -> u32 {
        path.symlink_metadata().unwrap().mode() & 0o7777
    }

    #[tokio::test]
    async fn folders_are_laid_out_and_removed_as_in_containerd() {
        let temp = tempfile::tempdir().unwrap();
        let (root, state) = (temp.path().join("root"), temp.path().join("state"));
        let ns = Namespace::new("default").unwrap();
        let json = r#"{"ociVersion":"1.2.0",  "linux":{}}"#;
        let b = Bundle::create(&root, &state, &ns, "c1", Some(&spec(json)))
            .await
            .unwrap();
        assert_eq!(b.path, state.join("default/c1"));
        assert_eq!(mode(&b.path), 0o700);
        assert_eq!(mode(&state.join("default")), 0o711);
        assert_eq!(mode(&b.rootfs()), 0o711);
        assert_eq!(mode(&root.join("default/c1")), 0o711);
        assert_eq!(
            std::fs::read_link(b.path.join("work")).unwrap(),
            root.join("default/c1")
        );
        assert_eq!(std::fs::read_to_string(b.path.join(CONFIG)).unwrap(), json);

        let twice = Bundle::create(&root, &state, &ns, "c1", None)
            .await
            .unwrap_err();
        assert_eq!(twice.kind(), Kind::AlreadyExists);

        b.delete().await.unwrap();
        assert_eq!(std::fs::read_dir(state.join("default")).unwrap().count(), 0);
        assert_eq!(std::fs::read_dir(root.join("default")).unwrap().count(), 0);
        let next = Bundle::create(&root, &state, &ns, "c1", None)
            .await
            .unwrap();
        b.delete().await.unwrap();
        assert!(next.path.exists(), "the bundle of the next task");
    }

    #[tokio::test]
    async fn a_stale_work_folder_is_replaced_and_bad_ids_leave_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let (root, state) = (temp.path().join("root"), temp.path().join("state"));
        let ns = Namespace::new("default").unwrap();
        std::fs::create_dir_all(root.join("default/c1/old")).unwrap();
        Bundle::create(&root, &state, &ns, "c1", None)
            .await
            .unwrap();
        assert!(!root.join("default/c1/old").exists());
        for bad in ["", "../x", "a/b"] {
            let e = Bundle::create(&root, &state, &ns, bad, None)
                .await
                .unwrap_err();
            assert_eq!(e.kind(), Kind::InvalidArgument, "{bad}");
        }
        let broken = Bundle::create(&root, &state, &ns, "c2", Some(&spec("{"))).await;
        broken.unwrap_err();
        assert!(!state.join("default/c2").exists());
    }

    #[test]
    fn the_mapped_group_is_found() {
        let check = |json: &str, want| assert_eq!(mapped_gid(json.as_bytes()).unwrap(), want);
        check("{}", None);
        check(r#"{"linux":{"gidMappings":null}}"#, None);
        check(
            r#"{"linux":{"gidMappings":[{"containerID":0,"hostID":0,"size":1}]}}"#,
            None,
        );
        check(
            r#"{"linux":{"gidMappings":[{"containerID":5,"hostID":7,"size":1},{"containerID":0,"hostID":9,"size":1}]}}"#,
            Some(9),
        );
    }
}
