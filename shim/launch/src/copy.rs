//! Owns the copy of a directory into a fresh file system (mount option `tmpcopyup`). Runs under the same rules as
//! `child.rs`.
//!
//! Content, owners and modes are copied; times, extended attributes and hard links are not, as with runc. Every name is
//! one component below a handle and never followed, so that an image cannot lead it out.

use crate::fs::Tmp;
use crate::sys::{self, Errno, Res};
use std::ffi::CStr;
use std::os::fd::RawFd;

/// Levels of directories; each costs two descriptors and a piece of stack.
const DEPTH: u32 = 100;
const DIRECTORY: i32 = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW;

/// Copies everything in the directory behind `from` into the one behind `to`, and its own owner and mode.
pub(crate) fn tree(from: RawFd, to: RawFd) -> Res<()> {
    let from = Tmp(sys::openat(from, c".", DIRECTORY)?);
    let to = Tmp(sys::openat(to, c".", DIRECTORY)?);
    directory(from.0, to.0, DEPTH)
}

fn directory(from: RawFd, to: RawFd, depth: u32) -> Res<()> {
    /// d_ino, d_off, d_reclen, d_type; then the name.
    const HEADER: usize = 19;
    if depth == 0 {
        return Err(Errno(libc::ELOOP));
    }
    let mut buf = [0u8; 1024];
    loop {
        let n = sys::getdents(from, &mut buf)?;
        if n == 0 {
            break;
        }
        let mut at = 0;
        while let Some([low, high]) = buf.get(at + 16..at + 18) {
            let len = usize::from(u16::from_ne_bytes([*low, *high]));
            let name = buf.get(at + HEADER..(at + len).min(n)).unwrap_or(&[]);
            let name = CStr::from_bytes_until_nul(name).map_err(|_| Errno(libc::EIO))?;
            if !matches!(name.to_bytes(), b"." | b"..") {
                entry(from, to, name, depth)?;
            }
            at += len.max(1);
            if at >= n {
                break;
            }
        }
    }
    own(from, to)
}

/// Owner, then mode, for changing the owner clears set-id bits.
fn own(from: RawFd, to: RawFd) -> Res<()> {
    let st = sys::stat(from, c"", 0)?;
    sys::chown(to, st.st_uid, st.st_gid)?;
    sys::fchmod(to, st.st_mode & 0o7777)
}

fn entry(from: RawFd, to: RawFd, name: &CStr, depth: u32) -> Res<()> {
    let st = sys::stat(from, name, libc::AT_SYMLINK_NOFOLLOW)?;
    match st.st_mode & libc::S_IFMT {
        libc::S_IFDIR => {
            sys::mkdirat(to, name, 0o700)?;
            let from = Tmp(sys::openat(from, name, DIRECTORY)?);
            let to = Tmp(sys::openat(to, name, DIRECTORY)?);
            directory(from.0, to.0, depth - 1)
        }
        libc::S_IFREG => file(from, to, name),
        libc::S_IFLNK => {
            link(from, to, name)?;
            sys::lchownat(to, name, st.st_uid, st.st_gid)
        }
        // The umask is 0 here, so the mode is exact, and nobody else sees the copy yet.
        _ => {
            sys::mknodat(to, name, st.st_mode, st.st_rdev)?;
            sys::lchownat(to, name, st.st_uid, st.st_gid)
        }
    }
}

fn file(from: RawFd, to: RawFd, name: &CStr) -> Res<()> {
    let flags = libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    let source = Tmp(sys::openat(from, name, flags)?);
    let flags = libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY | libc::O_NOFOLLOW;
    let copy = Tmp(sys::openat2(
        to,
        name,
        flags,
        0o600,
        sys::RESOLVE_NO_SYMLINKS,
    )?);
    while sys::sendfile(copy.0, source.0, 1 << 30)? > 0 {}
    own(source.0, copy.0)
}

fn link(from: RawFd, to: RawFd, name: &CStr) -> Res<()> {
    let mut target = [0u8; 4097];
    let room = target.get_mut(..4096).unwrap_or(&mut []);
    sys::readlinkat(from, name, room)?;
    let target = CStr::from_bytes_until_nul(&target).map_err(|_| Errno(libc::ENAMETOOLONG))?;
    sys::symlinkat(target, to, name)
}
