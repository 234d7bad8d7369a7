//! Owns idmapped parts of a rootfs: the layers of an overlay, or a bound tree, seen with the owners of a user namespace.
//!
//! `uidmap=` and `gidmap=` among a mount's options carry `container:host:size[,..]`. An overlay cannot be idmapped itself,
//! so each lower layer is mounted idmapped in a folder beside the rootfs; the overlay keeps copies of these mounts, and
//! the folder goes again.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use corten_launch::{IdMaps, cstr, mounts};
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, UnmountFlags, move_mount, unmount};

use crate::error::{Context, Error, Result};

/// Layers that are mounted idmapped until this is dropped.
#[derive(Debug)]
pub(crate) struct Layers {
    dir: PathBuf,
    pub(crate) paths: Vec<PathBuf>,
}

/// The user namespace of two options.
pub(crate) fn user_namespace(uids: &str, gids: &str) -> Result<OwnedFd> {
    let maps = IdMaps {
        uid_map: table(uids)?,
        gid_map: table(gids)?,
        deny_setgroups: false,
    };
    corten_launch::user_namespace(&maps).context("make a user namespace for idmapped mounts")
}

/// Binds `source` at `target` with the owners of `userns`.
pub(crate) fn bind(source: &Path, target: &Path, userns: &OwnedFd, recursive: bool) -> Result<()> {
    let what = || format!("idmap {}", source.display());
    let path = cstr(source.as_os_str().as_bytes());
    let tree = mounts::clone_tree(&path, recursive).context(what())?;
    mounts::idmap(tree.as_fd(), userns.as_fd(), recursive).context(what())?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&tree, "", CWD, target, flags).context(what())
}

/// `0:1000:10,10:5000:1` as the kernel's table.
fn table(text: &str) -> Result<Vec<u8>> {
    let wrong = || Error::invalid(format!("invalid id mapping {text:?}"));
    let mut table = String::new();
    for map in text.split(',') {
        let numbers: Option<Vec<u32>> = map.split(':').map(|n| n.parse().ok()).collect();
        match numbers.as_deref() {
            Some([inside, outside, size]) if *size > 0 => {
                table.push_str(&format!("{inside} {outside} {size}\n"));
            }
            _ => return Err(wrong()),
        }
    }
    Ok(table.into_bytes())
}

// === impl Layers ===

impl Layers {
    /// Mounts each of `lower` idmapped below `dir`, which is made and goes with the layers.
    pub(crate) fn mount(lower: &[&str], userns: &OwnedFd, dir: &Path) -> Result<Self> {
        let mut layers = Self {
            dir: dir.to_owned(),
            paths: Vec::new(),
        };
        make(dir)?;
        for (index, source) in lower.iter().enumerate() {
            let place = dir.join(index.to_string());
            make(&place)?;
            layers.paths.push(place.clone());
            bind(Path::new(source), &place, userns, false)?;
        }
        Ok(layers)
    }
}

impl Drop for Layers {
    fn drop(&mut self) {
        for path in &self.paths {
            // The last one may not have been mounted. What stays is an empty folder in a bundle.
            let _ = unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
            let _ = std::fs::remove_dir(path);
        }
        let _ = std::fs::remove_dir(&self.dir);
    }
}

fn make(dir: &Path) -> Result<()> {
    match std::fs::create_dir(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(e).context(format!("mkdir {}", dir.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn tables_are_the_kernel_s() {
        assert_eq!(table("0:1000:10").unwrap(), b"0 1000 10\n");
        assert_eq!(table("0:1000:10,10:5:1").unwrap(), b"0 1000 10\n10 5 1\n");
        for wrong in ["", "0:1", "0:1:0", "a:1:1", "0:1:1,"] {
            assert!(table(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn layers_belong_to_the_namespace_and_go_again() {
        let dir = std::env::temp_dir().join(format!("corten-idmap-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("layer")).unwrap();
        std::fs::write(dir.join("layer/file"), "").unwrap();
        let lower = dir.join("layer");
        let scratch = dir.join("lower");
        let layers = user_namespace("0:1000000:65536", "0:1000000:65536")
            .and_then(|userns| Layers::mount(&[lower.to_str().unwrap()], &userns, &scratch));
        match layers {
            Err(e) => println!("skipped: {e} (needs root)"),
            Ok(layers) => {
                let file = std::fs::metadata(layers.paths[0].join("file")).unwrap();
                assert_eq!((file.uid(), file.gid()), (1_000_000, 1_000_000));
            }
        }
        assert!(!scratch.exists());
        std::fs::remove_dir_all(dir).unwrap();
    }
}
