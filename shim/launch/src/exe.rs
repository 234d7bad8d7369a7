//! Owns a view of a program's file that no container can write (CVE-2019-5736).
//!
//! A container whose entrypoint leads back to `/proc/self/exe` executes the file the shim runs from.
//! Started through this descriptor, that file is on a read-only overlay of its own (page cache still
//! shared with the original), or, where the host has no overlay, in a sealed memory file.

use crate::sys::{self, Errno};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const MOUNT_ATTR_RDONLY: u64 = 0x1;
const MOUNT_ATTR_NODEV: u64 = 0x4;

/// Descriptor to execute as `/proc/self/fd/N` in place of `program`. An empty folder is made and
/// removed again in `scratch`, which should not be on the program's own path.
pub fn sealed(program: &Path, scratch: &Path) -> io::Result<OwnedFd> {
    let empty = scratch.join(format!(".seal-{}", std::process::id()));
    std::fs::create_dir(&empty)?;
    let fd = overlay(program, &empty);
    let _ = std::fs::remove_dir(&empty);
    fd.or_else(|_| memory(program))
}

/// Two lower layers make an overlay without an upper one; the second is empty.
fn overlay(program: &Path, empty: &Path) -> io::Result<OwnedFd> {
    let wrong = || io::Error::from(io::ErrorKind::InvalidInput);
    let dir = program.parent().ok_or_else(wrong)?.as_os_str().as_bytes();
    let name = program.file_name().ok_or_else(wrong)?.as_bytes();
    let empty = empty.as_os_str().as_bytes();
    let lower = [dir, b":", empty].concat();
    // These separate and escape layers.
    if lower.len() > 255 || [dir, empty].concat().iter().any(|b| b":,\\".contains(b)) {
        return Err(wrong());
    }
    let fs = own(sys::fsopen(c"overlay"))?;
    let set = sys::fsconfig(fs.as_raw_fd(), Some(c"lowerdir"), Some(&crate::cstr(lower)));
    set.map_err(to_io)?;
    sys::fsconfig(fs.as_raw_fd(), None, None).map_err(to_io)?;
    let mount = own(sys::fsmount(
        fs.as_raw_fd(),
        MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV,
    ))?;
    own(sys::openat(
        mount.as_raw_fd(),
        &crate::cstr(name),
        libc::O_PATH,
    ))
}

fn memory(program: &Path) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut copy = File::from(memfd_create("sealed", flags)?);
    io::copy(&mut File::open(program)?, &mut copy)?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    fcntl_add_seals(&copy, seals)?;
    Ok(copy.into())
}

fn to_io(e: Errno) -> io::Error {
    io::Error::from_raw_os_error(e.0)
}

/// Takes a descriptor a system call has just returned.
fn own(raw: sys::Res<i32>) -> io::Result<OwnedFd> {
    let raw = raw.map_err(to_io)?;
    // SAFETY: the kernel returned this descriptor just now and nobody else holds it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_and_cannot_be_written() {
        let scratch = tempfile::tempdir().expect("temp dir");
        let program = Path::new("/bin/true").canonicalize().expect("a program");
        for fd in [sealed(&program, scratch.path()), memory(&program)] {
            let fd = match fd {
                Ok(fd) => fd,
                Err(e) => {
                    println!("skipped: {e} (needs root)");
                    continue;
                }
            };
            let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
            let run = std::process::Command::new(&path).status();
            assert!(run.expect("executable").success());
            let write = File::options().append(true).open(&path);
            let write = write.and_then(|mut f| std::io::Write::write(&mut f, b"x"));
            assert!(write.is_err(), "{path} can be written");
        }
        assert_eq!(
            std::fs::read_dir(scratch.path()).expect("readable").count(),
            0
        );
    }
}
