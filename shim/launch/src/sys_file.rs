//! Owns the system calls that copy files, under the same rules as `sys.rs`.

use super::{Res, call, fd, p, plain, pm};
use std::ffi::CStr;
use std::os::fd::RawFd;

/// Fills `buf` with directory entries; 0 at the end.
pub(crate) fn getdents(dir: RawFd, buf: &mut [u8]) -> Res<usize> {
    refs!(libc::SYS_getdents64, fd(dir), pm(buf), buf.len())
}

/// Moves up to `len` bytes from the position of one file to another; 0 at the end.
pub(crate) fn sendfile(to: RawFd, from: RawFd, len: usize) -> Res<usize> {
    plain(libc::SYS_sendfile, [fd(to), fd(from), 0, len, 0, 0])
}

pub(crate) fn fchmod(raw: RawFd, mode: u32) -> Res<()> {
    plain(libc::SYS_fchmod, [fd(raw), mode as usize, 0, 0, 0, 0]).map(drop)
}

/// Owner of `name` in `dir` itself, be it a link.
pub(crate) fn lchownat(dir: RawFd, name: &CStr, uid: u32, gid: u32) -> Res<()> {
    let flags = libc::AT_SYMLINK_NOFOLLOW as usize;
    refs!(
        libc::SYS_fchownat,
        fd(dir),
        p(name),
        uid as usize,
        gid as usize,
        flags
    )
    .map(drop)
}

/// Follows links, so that a descriptor's name below /proc does.
pub(crate) fn setxattr(path: &CStr, name: &CStr, value: &[u8]) -> Res<()> {
    refs!(
        libc::SYS_setxattr,
        p(path),
        p(name),
        p(value),
        value.len(),
        0
    )
    .map(drop)
}
