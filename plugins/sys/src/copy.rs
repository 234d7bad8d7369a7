//! Copies a tree with everything a root file system holds: owners, modes, times, xattrs, hard links, devices, holes.
//!
//! The source may hold anything an image can: links are copied, never followed. Data is shared where the file system
//! can (FICLONE, copy_file_range); holes stay holes.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, Uid,
};
use rustix::io::Errno;

use crate::root::magic_path;
use crate::xattr;

/// Copies the inside of `source` into the existing folder `target`, and the folder's own attributes onto it.
///
/// # Errors
/// The file system's. What was copied so far stays.
pub fn tree(source: &Path, target: &Path) -> io::Result<()> {
    let mut copy = Copy {
        target: open_dir(CWD, target)?,
        links: HashMap::new(),
    };
    let (from, to) = (open_dir(CWD, source)?, open_dir(CWD, target)?);
    copy.dir(&from, &to, Path::new(""))
}

struct Copy {
    target: OwnedFd,
    /// Files with more than one name: where the first of them went.
    links: HashMap<(u64, u64), PathBuf>,
}

fn open_dir(at: impl AsFd, path: impl rustix::path::Arg) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(at, path, flags, Mode::empty())?)
}

impl Copy {
    fn dir(&mut self, from: &OwnedFd, to: &OwnedFd, path: &Path) -> io::Result<()> {
        let stat = rustix::fs::fstat(from)?;
        let mut entries = Dir::read_from(from)?;
        while let Some(entry) = entries.read() {
            let entry = entry?;
            let name = entry.file_name();
            if !matches!(name.to_bytes(), b"." | b"..") {
                self.entry(
                    from,
                    to,
                    name,
                    &path.join(OsStr::from_bytes(name.to_bytes())),
                )?;
            }
        }
        // Last: making entries changes the times.
        attributes(&magic_path(from), &magic_path(to), &stat, true)
    }

    fn entry(&mut self, from: &OwnedFd, to: &OwnedFd, name: &CStr, path: &Path) -> io::Result<()> {
        let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            rustix::fs::mkdirat(to, name, Mode::RWXU)?;
            return self.dir(&open_dir(from, name)?, &open_dir(to, name)?, path);
        }
        if stat.st_nlink > 1 {
            let key = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.links.get(&key) {
                return Ok(rustix::fs::linkat(
                    &self.target,
                    first,
                    to,
                    name,
                    AtFlags::empty(),
                )?);
            }
            self.links.insert(key, path.to_owned());
        }
        match kind {
            FileType::RegularFile => regular(from, to, name, &stat)?,
            FileType::Symlink => {
                let link = rustix::fs::readlinkat(from, name, Vec::new())?;
                rustix::fs::symlinkat(&link, to, name)?;
            }
            FileType::Socket => return Ok(()),
            special => {
                let mode = Mode::from_raw_mode(stat.st_mode);
                rustix::fs::mknodat(to, name, special, mode, stat.st_rdev)?;
            }
        }
        let name = OsStr::from_bytes(name.to_bytes());
        let (from, to) = (magic_path(from).join(name), magic_path(to).join(name));
        attributes(&from, &to, &stat, kind != FileType::Symlink)
    }
}

/// Owner before mode (chown clears set-id bits), xattrs after the owner (chown clears capabilities), times last.
/// The paths' last components are not links unless they may be (`chmod` false).
fn attributes(from: &Path, to: &Path, stat: &Stat, chmod: bool) -> io::Result<()> {
    // Directories come as /proc/self/fd/N, a magic link that must be followed; entries below one must not be.
    let is_fd = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    let follow = if is_fd {
        AtFlags::empty()
    } else {
        AtFlags::SYMLINK_NOFOLLOW
    };
    let owner = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::chownat(CWD, to, Some(owner.0), Some(owner.1), follow)?;
    // A trailing dot makes the l-variants act on the directory itself.
    let inside = |p: &Path| if is_fd { p.join(".") } else { p.to_owned() };
    for name in xattr::list(&inside(from))? {
        let Some(value) = xattr::get(&inside(from), &name)? else {
            continue;
        };
        if let Err(e) = xattr::set(&inside(to), &name, &value) {
            // Some security attributes are the kernel's own, and a file system may know fewer name spaces.
            tracing::debug!(name = %name.to_string_lossy(), error = %e, "copy xattr");
        }
    }
    if chmod {
        rustix::fs::chmod(to, Mode::from_raw_mode(stat.st_mode))?;
    }
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: stat.st_atime,
            tv_nsec: stat.st_atime_nsec as _,
        },
        last_modification: Timespec {
            tv_sec: stat.st_mtime,
            tv_nsec: stat.st_mtime_nsec as _,
        },
    };
    Ok(rustix::fs::utimensat(CWD, to, &times, follow)?)
}

fn regular(from: &OwnedFd, to: &OwnedFd, name: &CStr, stat: &Stat) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let source = rustix::fs::openat(from, name, flags, Mode::empty())?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let target = rustix::fs::openat(to, name, flags, Mode::RUSR | Mode::WUSR)?;
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    if size == 0 || rustix::fs::ioctl_ficlone(&target, &source).is_ok() {
        return Ok(());
    }
    rustix::fs::ftruncate(&target, size)?;
    let mut at = 0;
    while at < size {
        let data = match rustix::fs::seek(&source, SeekFrom::Data(at)) {
            Ok(data) => data,
            // Only a hole is left.
            Err(Errno::NXIO) => return Ok(()),
            Err(_) => at,
        };
        let hole = rustix::fs::seek(&source, SeekFrom::Hole(data))
            .unwrap_or(size)
            .min(size);
        range(&source, &target, data, hole)?;
        at = hole.max(data + 1);
    }
    Ok(())
}

fn range(source: &OwnedFd, target: &OwnedFd, start: u64, end: u64) -> io::Result<()> {
    let (mut read, mut write) = (start, start);
    while read < end {
        let want = usize::try_from(end - read).unwrap_or(usize::MAX);
        let copied =
            rustix::fs::copy_file_range(source, Some(&mut read), target, Some(&mut write), want);
        match copied {
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL) => {
                return by_hand(source, target, read, end);
            }
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

fn by_hand(source: &OwnedFd, target: &OwnedFd, start: u64, end: u64) -> io::Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    let mut at = start;
    while at < end {
        let want = buffer
            .len()
            .min(usize::try_from(end - at).unwrap_or(usize::MAX));
        let n = rustix::io::pread(source, &mut buffer[..want], at)?;
        if n == 0 {
            return Ok(());
        }
        let mut done = 0;
        while done < n {
            done += rustix::io::pwrite(target, &buffer[done..n], at + done as u64)?;
        }
        at += n as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    #[test]
    fn links_holes_modes_times_and_devices_survive() {
        let base = std::env::temp_dir().join(format!("corten-copy-{}", std::process::id()));
        let (a, b) = (base.join("a"), base.join("b"));
        std::fs::create_dir_all(a.join("d")).unwrap();
        std::fs::create_dir_all(&b).unwrap();
        std::fs::set_permissions(&a, PermissionsExt::from_mode(0o711)).unwrap();
        std::fs::write(a.join("f"), "data").unwrap();
        std::fs::hard_link(a.join("f"), a.join("d/g")).unwrap();
        symlink("/etc/shadow", a.join("link")).unwrap();
        std::fs::set_permissions(a.join("f"), PermissionsExt::from_mode(0o4755)).unwrap();
        let holes = std::fs::File::create(a.join("holes")).unwrap();
        holes.set_len(64 << 20).unwrap();
        std::os::unix::fs::FileExt::write_at(&holes, b"x", 32 << 20).unwrap();
        let root = rustix::process::geteuid().is_root();
        if root {
            let mode = Mode::from_raw_mode(0o620);
            rustix::fs::mknodat(CWD, a.join("null"), FileType::CharacterDevice, mode, 0x103)
                .unwrap();
            std::os::unix::fs::lchown(a.join("link"), Some(7), Some(8)).unwrap();
        }
        xattr::set(&a.join("d"), "user.x", b"y").unwrap();
        tree(&a, &b).unwrap();
        let m = |p: &str| std::fs::symlink_metadata(b.join(p)).unwrap();
        assert_eq!(m("").mode() & 0o7777, 0o711);
        assert_eq!(m("f").ino(), m("d/g").ino());
        assert_eq!(m("f").mode() & 0o7777, 0o4755);
        let original = std::fs::metadata(a.join("f")).unwrap();
        assert_eq!(
            (m("f").mtime(), m("f").mtime_nsec()),
            (original.mtime(), original.mtime_nsec())
        );
        assert_eq!(m("holes").len(), 64 << 20);
        assert!(m("holes").blocks() * 512 < 1 << 20);
        assert_eq!(
            std::fs::read_link(b.join("link")).unwrap(),
            Path::new("/etc/shadow")
        );
        assert_eq!(xattr::get(&b.join("d"), "user.x").unwrap().unwrap(), b"y");
        if root {
            assert_eq!(m("null").rdev(), 0x103);
            assert_eq!((m("link").uid(), m("link").gid()), (7, 8));
        }
        std::fs::remove_dir_all(base).unwrap();
    }
}
