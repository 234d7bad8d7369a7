//! Owns the system calls on namespaces and mounts, under the same rules as `sys.rs`.

use super::{Res, call, fd, p, plain};
use std::ffi::CStr;
use std::os::fd::RawFd;

/// struct mount_attr.
#[repr(C)]
#[derive(Default)]
pub(crate) struct MountAttr {
    pub(crate) set: u64,
    pub(crate) clear: u64,
    pub(crate) propagation: u64,
    pub(crate) userns: u64,
}

pub(crate) fn setns(raw: RawFd, flags: u32) -> Res<()> {
    plain(libc::SYS_setns, [fd(raw), flags as usize, 0, 0, 0, 0]).map(drop)
}

pub(crate) fn unshare(flags: u32) -> Res<()> {
    plain(libc::SYS_unshare, [flags as usize, 0, 0, 0, 0, 0]).map(drop)
}

pub(crate) fn mount(source: &CStr, target: &CStr, kind: &CStr, flags: u64, data: &CStr) -> Res<()> {
    refs!(
        libc::SYS_mount,
        p(source),
        p(target),
        p(kind),
        flags as usize,
        p(data)
    )
    .map(drop)
}

pub(crate) fn umount_detach(path: &CStr) -> Res<()> {
    refs!(libc::SYS_umount2, p(path), libc::MNT_DETACH as usize).map(drop)
}

pub(crate) fn pivot_root(new: &CStr, old: &CStr) -> Res<()> {
    refs!(libc::SYS_pivot_root, p(new), p(old)).map(drop)
}

pub(crate) fn open_tree(dir: RawFd, path: &CStr, recursive: bool) -> Res<RawFd> {
    const CLONE: u32 = 1;
    let mut flags = CLONE | (libc::O_CLOEXEC | libc::AT_EMPTY_PATH) as u32;
    if recursive {
        flags |= libc::AT_RECURSIVE as u32;
    }
    refs!(libc::SYS_open_tree, fd(dir), p(path), flags as usize).map(|n| n as RawFd)
}

/// move_mount(2) of the mount behind `from` onto `path` from `to`, or onto `to` with an empty path.
pub(crate) fn move_mount(from: RawFd, to: RawFd, path: &CStr) -> Res<()> {
    const F_EMPTY_PATH: usize = 0x04;
    const T_EMPTY_PATH: usize = 0x40;
    let flags = F_EMPTY_PATH | T_EMPTY_PATH;
    refs!(
        libc::SYS_move_mount,
        fd(from),
        p(c""),
        fd(to),
        p(path),
        flags
    )
    .map(drop)
}

pub(crate) fn mount_setattr(raw: RawFd, recursive: bool, attr: &MountAttr) -> Res<()> {
    let mut flags = libc::AT_EMPTY_PATH as usize;
    if recursive {
        flags |= libc::AT_RECURSIVE as usize;
    }
    let size = size_of::<MountAttr>();
    refs!(
        libc::SYS_mount_setattr,
        fd(raw),
        p(c""),
        flags,
        p(attr),
        size
    )
    .map(drop)
}

pub(crate) fn fsopen(kind: &CStr) -> Res<RawFd> {
    refs!(libc::SYS_fsopen, p(kind), 1).map(|n| n as RawFd)
}

/// One fsconfig(2): flag without value, string with one, and `None` for the create command.
pub(crate) fn fsconfig(raw: RawFd, key: Option<&CStr>, value: Option<&CStr>) -> Res<()> {
    const SET_FLAG: usize = 0;
    const SET_STRING: usize = 1;
    const CMD_CREATE: usize = 6;
    match (key, value) {
        (None, _) => plain(libc::SYS_fsconfig, [fd(raw), CMD_CREATE, 0, 0, 0, 0]),
        (Some(k), None) => refs!(libc::SYS_fsconfig, fd(raw), SET_FLAG, p(k), 0, 0),
        (Some(k), Some(v)) => refs!(libc::SYS_fsconfig, fd(raw), SET_STRING, p(k), p(v), 0),
    }
    .map(drop)
}

pub(crate) fn fsmount(raw: RawFd, attrs: u64) -> Res<RawFd> {
    plain(libc::SYS_fsmount, [fd(raw), 1, attrs as usize, 0, 0, 0]).map(|n| n as RawFd)
}
