//! Extended attributes of a path without following its last component.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{self, XattrFlags};
use rustix::io::Errno;

/// Longest value the kernel accepts (XATTR_SIZE_MAX).
const MAX_VALUE: usize = 64 * 1024;

/// The value of `name`; None when there is none or the file system knows no attributes.
///
/// # Errors
/// The file system's.
pub fn get(path: &Path, name: impl AsRef<OsStr>) -> io::Result<Option<Vec<u8>>> {
    let mut value = vec![0; 256];
    loop {
        match fs::lgetxattr(path, name.as_ref(), &mut value[..]) {
            Ok(n) => {
                value.truncate(n);
                return Ok(Some(value));
            }
            Err(Errno::RANGE) if value.len() < MAX_VALUE => value.resize(MAX_VALUE, 0),
            Err(Errno::NODATA | Errno::NOTSUP) => return Ok(None),
            Err(e) => return Err(e.into()),
        }
    }
}

/// The names of all attributes; none when the file system knows no attributes.
///
/// # Errors
/// The file system's.
pub fn list(path: &Path) -> io::Result<Vec<OsString>> {
    let mut names = vec![0; 1024];
    loop {
        match fs::llistxattr(path, &mut names[..]) {
            Ok(n) => {
                names.truncate(n);
                break;
            }
            Err(Errno::RANGE) if names.len() < MAX_VALUE => names.resize(MAX_VALUE, 0),
            Err(Errno::NOTSUP) => return Ok(Vec::new()),
            Err(e) => return Err(e.into()),
        }
    }
    Ok(names
        .split(|b| *b == 0)
        .filter(|n| !n.is_empty())
        .map(|n| OsStr::from_bytes(n).to_owned())
        .collect())
}

/// Sets one.
///
/// # Errors
/// The file system's.
pub fn set(path: &Path, name: impl AsRef<OsStr>, value: &[u8]) -> io::Result<()> {
    Ok(fs::lsetxattr(
        path,
        name.as_ref(),
        value,
        XattrFlags::empty(),
    )?)
}
