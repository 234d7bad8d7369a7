//! Files that must not change any more: fs-verity and the immutable flag.

#![expect(
    unsafe_code,
    reason = "the ioctl that enables fs-verity has no safe wrapper"
)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use rustix::fs::IFlags;

/// `_IOW('f', 133, struct fsverity_enable_arg)`.
const FS_IOC_ENABLE_VERITY: libc::c_ulong = 0x4080_6685;
/// FS_VERITY_HASH_ALG_SHA256.
const SHA256: u32 = 1;
const BLOCK: u32 = 4096;

/// `struct fsverity_enable_arg`.
#[repr(C)]
struct EnableArg {
    version: u32,
    hash_algorithm: u32,
    block_size: u32,
    salt_size: u32,
    salt_ptr: u64,
    sig_size: u32,
    reserved1: u32,
    sig_ptr: u64,
    reserved2: [u64; 11],
}

/// Turns fs-verity on for `path`; already on is fine. Nobody may have it open for writing.
///
/// # Errors
/// Unsupported and others of the file system's.
pub fn enable_verity(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    let arg = EnableArg {
        version: 1,
        hash_algorithm: SHA256,
        block_size: BLOCK,
        salt_size: 0,
        salt_ptr: 0,
        sig_size: 0,
        reserved1: 0,
        sig_ptr: 0,
        reserved2: [0; 11],
    };
    // SAFETY: `arg` has the layout of struct fsverity_enable_arg, names no salt and no signature, and lives through
    // the call, which only reads it.
    let done = unsafe {
        libc::ioctl(
            file.as_raw_fd(),
            FS_IOC_ENABLE_VERITY as _,
            std::ptr::from_ref(&arg),
        )
    };
    if done == 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        e if e.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        e => Err(e),
    }
}

/// Whether fs-verity is on for `path`.
///
/// # Errors
/// The file system's.
pub fn has_verity(path: &Path) -> io::Result<bool> {
    let flags = rustix::fs::ioctl_getflags(File::open(path)?)?;
    Ok(flags.contains(IFlags::from_bits_retain(0x0010_0000)))
}

/// Whether the file system of `dir` can do fs-verity: tried out on a file that is removed again.
pub fn verity_works(dir: &Path) -> bool {
    let probe = dir.join(format!(".verity-{}", std::process::id()));
    let works = std::fs::write(&probe, b"probe")
        .and_then(|()| enable_verity(&probe))
        .and_then(|()| has_verity(&probe));
    // Absent when it could not be made; the answer is no then.
    let _ = std::fs::remove_file(&probe);
    works.unwrap_or(false)
}

/// Sets or clears the immutable flag.
///
/// # Errors
/// The file system's.
pub fn set_immutable(path: &Path, on: bool) -> io::Result<()> {
    let file = File::open(path)?;
    let old = rustix::fs::ioctl_getflags(&file)?;
    let mut new = old;
    new.set(IFlags::IMMUTABLE, on);
    if new != old {
        rustix::fs::ioctl_setflags(&file, new)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_immutable_file_stays_until_it_is_not() {
        assert_eq!(size_of::<EnableArg>(), 128);
        let path = std::env::temp_dir().join(format!("corten-seal-{}", std::process::id()));
        std::fs::write(&path, "x").unwrap();
        if let Err(e) = set_immutable(&path, true) {
            eprintln!("skipped: no immutable flag here: {e}");
        } else {
            assert!(std::fs::remove_file(&path).is_err());
            set_immutable(&path, false).unwrap();
        }
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn verity_protects_or_says_that_it_does_not() {
        if !verity_works(&std::env::temp_dir()) {
            eprintln!("skipped: no fs-verity here");
        }
    }
}
