//! Owns the mount calls the parent makes itself, which rustix lacks: idmapped detached mounts.

use crate::sys::{self, MountAttr};
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;

/// A detached copy of the tree at a host path, for a child that may not open it itself.
pub fn clone_tree(path: &CStr, recursive: bool) -> io::Result<OwnedFd> {
    let raw = sys::open_tree(libc::AT_FDCWD, path, recursive)
        .map_err(|e| io::Error::from_raw_os_error(e.0))?;
    // SAFETY: open_tree returned this descriptor just now and nobody else holds it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Cuts what a detached mount would tell the peers of the one it was copied from; it still hears of theirs.
pub fn enslave(mount: BorrowedFd<'_>) -> io::Result<()> {
    let attr = MountAttr {
        propagation: libc::MS_SLAVE,
        ..MountAttr::default()
    };
    sys::mount_setattr(mount.as_raw_fd(), true, &attr)
        .map_err(|e| io::Error::from_raw_os_error(e.0))
}

/// Maps the owners of a detached mount by a user namespace.
pub fn idmap(mount: BorrowedFd<'_>, userns: BorrowedFd<'_>, recursive: bool) -> io::Result<()> {
    let attr = MountAttr {
        set: MOUNT_ATTR_IDMAP,
        userns: userns.as_raw_fd() as u64,
        ..MountAttr::default()
    };
    sys::mount_setattr(mount.as_raw_fd(), recursive, &attr)
        .map_err(|e| io::Error::from_raw_os_error(e.0))
}
