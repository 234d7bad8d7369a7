//! Whole directory trees: how much they take, and their removal.

use std::collections::HashSet;
use std::ffi::CStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

/// Bytes of a block in `st_blocks`.
const BLOCK: i64 = 512;

/// What a tree takes on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    pub inodes: i64,
    /// Bytes of allocated blocks.
    pub bytes: i64,
}

/// Counts a tree, each inode once. Entries that vanish meanwhile are not counted.
///
/// # Errors
/// The file system's.
pub fn usage(path: &Path) -> io::Result<Usage> {
    let mut total = Usage::default();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&top)?;
    total.inodes += 1;
    total.bytes += blocks(&stat);
    // One open directory for each level of depth.
    let mut stack = vec![Dir::new(top)?];
    let mut seen = HashSet::new();
    while let Some(dir) = stack.last_mut() {
        let Some(entry) = dir.read() else {
            stack.pop();
            continue;
        };
        let entry = entry?;
        if is_dots(entry.file_name()) {
            continue;
        }
        let fd = dir.fd()?;
        let stat = match rustix::fs::statat(fd, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => continue,
            Err(e) => return Err(e.into()),
        };
        let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if !is_dir && stat.st_nlink > 1 && !seen.insert((stat.st_dev, stat.st_ino)) {
            continue;
        }
        total.inodes += 1;
        total.bytes += blocks(&stat);
        if is_dir {
            match rustix::fs::openat(fd, entry.file_name(), flags, Mode::empty()) {
                Ok(child) => stack.push(Dir::new(child)?),
                Err(Errno::NOENT) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
    Ok(total)
}

fn blocks(stat: &rustix::fs::Stat) -> i64 {
    stat.st_blocks.saturating_mul(BLOCK)
}

fn is_dots(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

/// Removes `path` and all below it, never following a link; absent is fine. Memory and open files stay bounded
/// whatever the depth: too deep a directory is first moved up to the top.
///
/// # Errors
/// The file system's.
pub fn remove(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
        Ok(m) if !m.is_dir() => return absent_ok(std::fs::remove_file(path)),
        Ok(_) => {}
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
    let mut moved = 0;
    while empty(&top, &top, 0, &mut moved)? {}
    absent_ok(std::fs::remove_dir(path))
}

/// Directories deeper than this are moved to the top instead of being descended into.
const MAX_DEPTH: usize = 128;

/// Empties `dir`; true when something was moved to the top, which then wants another pass.
fn empty(top: &OwnedFd, dir: &OwnedFd, depth: usize, moved: &mut u64) -> io::Result<bool> {
    let mut again = false;
    let mut entries = Dir::read_from(dir)?;
    while let Some(entry) = entries.read() {
        let entry = entry?;
        let name = entry.file_name();
        if is_dots(name) {
            continue;
        }
        if entry.file_type() != FileType::Directory {
            match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => continue,
                // The type was unknown, or it is a directory after all.
                Err(Errno::ISDIR | Errno::PERM) => {}
                Err(e) => return Err(e.into()),
            }
        }
        match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => continue,
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(e) => return Err(e.into()),
        }
        if depth >= MAX_DEPTH {
            *moved += 1;
            let aside = format!(".corten-deep-{moved}");
            rustix::fs::renameat(dir, name, top, aside.as_str())?;
            again = true;
            continue;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(dir, name, flags, Mode::empty()) {
            Ok(child) => again |= empty(top, &child, depth + 1, moved)?,
            Err(Errno::NOENT) => continue,
            Err(e) => return Err(e.into()),
        }
        match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(again)
}

fn absent_ok(r: io::Result<()>) -> io::Result<()> {
    match r {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn usage_counts_hard_links_once_and_removal_spares_link_targets() {
        let dir = std::env::temp_dir().join(format!("corten-tree-{}", std::process::id()));
        let tree = dir.join("tree");
        std::fs::create_dir_all(tree.join("sub")).unwrap();
        std::fs::write(dir.join("precious"), "x").unwrap();
        std::fs::write(tree.join("a"), vec![1; 8192]).unwrap();
        std::fs::hard_link(tree.join("a"), tree.join("sub/b")).unwrap();
        symlink(&dir, tree.join("sub/link")).unwrap();
        let got = usage(&tree).unwrap();
        assert_eq!(got.inodes, 4);
        assert!(got.bytes >= 8192 && got.bytes < 8192 + 4 * 8192, "{got:?}");
        remove(&tree).unwrap();
        remove(&tree).unwrap();
        assert!(!tree.exists() && dir.join("precious").exists());
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_very_deep_tree_is_removed() {
        let dir = std::env::temp_dir().join(format!("corten-deep-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let mut at = rustix::fs::openat(CWD, &dir, OFlags::PATH, Mode::empty()).unwrap();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, "d", OFlags::PATH, Mode::empty()).unwrap();
        }
        remove(&dir).unwrap();
        assert!(!dir.exists());
    }
}
