//! The folders of the tree being made: opened through links as a chroot would see them, never outside of it, made when
//! missing, and kept open while they are likely to be needed again.

use std::collections::{HashMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use corten_sys::root::{Root, magic_path, path_of};
use corten_sys::xattr;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

/// Folders kept open.
const CACHE: usize = 64;
/// Links followed for one path, as in the kernel.
const MAX_LINKS: usize = 40;

/// An open folder.
#[derive(Debug)]
pub(crate) struct Folder {
    fd: OwnedFd,
    /// Where it really is, when the applier wants to know.
    pub(crate) real: PathBuf,
}

impl AsFd for Folder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The tree's folders.
#[derive(Debug)]
pub(crate) struct Dirs {
    root: Root,
    /// Layers below, topmost first: missing folders look as they do there.
    parents: Vec<Root>,
    open: HashMap<PathBuf, Rc<Folder>>,
    /// Whether [`Folder::real`] is filled.
    names: bool,
}

impl Dirs {
    pub(crate) fn new(root: Root, parents: Vec<Root>, names: bool) -> Self {
        Self {
            root,
            parents,
            open: HashMap::new(),
            names,
        }
    }

    /// Opens the folder `path` (clean, relative), making what is missing.
    pub(crate) fn make(&mut self, path: &Path) -> io::Result<Rc<Folder>> {
        if let Some(found) = self.open.get(path) {
            return Ok(found.clone());
        }
        let fd = match self.root.dir(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => self.make_missing(path)?,
            other => other?,
        };
        self.keep(path, fd)
    }

    /// Opens the folder `path` if it is there.
    pub(crate) fn find(&mut self, path: &Path) -> io::Result<Rc<Folder>> {
        if let Some(found) = self.open.get(path) {
            return Ok(found.clone());
        }
        let fd = self.root.dir(path)?;
        self.keep(path, fd)
    }

    /// Something that may have been on the way to an open folder is gone.
    pub(crate) fn forget(&mut self) {
        self.open.clear();
    }

    fn keep(&mut self, path: &Path, fd: OwnedFd) -> io::Result<Rc<Folder>> {
        let real = if self.names {
            path_of(&fd)?
        } else {
            PathBuf::new()
        };
        let folder = Rc::new(Folder { fd, real });
        if self.open.len() >= CACHE {
            self.open.clear();
        }
        self.open.insert(path.to_owned(), folder.clone());
        Ok(folder)
    }

    /// Walks by hand, each step without following links, and makes what is missing, also behind dangling links.
    fn make_missing(&self, path: &Path) -> io::Result<OwnedFd> {
        let mut todo: VecDeque<OsString> = components(path).collect();
        let mut at: Vec<(OsString, OwnedFd)> = Vec::new();
        let mut links = 0;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        while let Some(name) = todo.pop_front() {
            if name == ".." {
                at.pop();
                continue;
            }
            let here = at
                .last()
                .map_or_else(|| self.root.as_fd(), |(_, fd)| fd.as_fd());
            match rustix::fs::openat(here, &name, flags, Mode::empty()) {
                Ok(fd) => at.push((name, fd)),
                Err(Errno::NOENT) => {
                    rustix::fs::mkdirat(here, &name, Mode::from_raw_mode(0o755))?;
                    let fd = rustix::fs::openat(here, &name, flags, Mode::empty())?;
                    at.push((name, fd));
                    self.look_like_parents(&at)?;
                }
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    let link = match rustix::fs::readlinkat(here, &name, Vec::new()) {
                        Ok(link) => PathBuf::from(OsStr::from_bytes(link.to_bytes())),
                        // A file, not a link.
                        Err(Errno::INVAL) => return Err(Errno::NOTDIR.into()),
                        Err(e) => return Err(e.into()),
                    };
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::LOOP.into());
                    }
                    if link.is_absolute() {
                        at.clear();
                    }
                    for (i, name) in components(&link).enumerate() {
                        todo.insert(i, name);
                    }
                }
                Err(e) => return Err(e.into()),
            }
        }
        match at.pop() {
            Some((_, fd)) => Ok(fd),
            None => self.root.dir(Path::new("")),
        }
    }

    /// Gives the folder just made what the same folder has in the layers below.
    fn look_like_parents(&self, at: &[(OsString, OwnedFd)]) -> io::Result<()> {
        let Some((_, made)) = at.last() else {
            return Ok(());
        };
        let made = magic_path(made);
        let path: PathBuf = at.iter().map(|(name, _)| name).collect();
        for parent in &self.parents {
            let found = match parent.resolve(&path) {
                Ok(found) => found,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                // A file is in the way there: it was replaced, its attributes say nothing.
                Err(e) if e.raw_os_error() == Some(Errno::NOTDIR.raw_os_error()) => break,
                Err(e) => return Err(e),
            };
            let stat = rustix::fs::fstat(&found)?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                break;
            }
            return look_like(&made, &magic_path(&found), &stat);
        }
        // The umask must not narrow it.
        Ok(rustix::fs::chmod(&made, Mode::from_raw_mode(0o755))?)
    }
}

fn look_like(made: &Path, model: &Path, stat: &rustix::fs::Stat) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::chownat(
        rustix::fs::CWD,
        made,
        Some(uid),
        Some(gid),
        AtFlags::empty(),
    )?;
    // The trailing dot: act on the folder, not on the link in /proc.
    let (inside, model) = (made.join("."), model.join("."));
    for name in xattr::list(&model)? {
        if is_overlay_private(&name.to_string_lossy()) {
            continue;
        }
        if let Some(value) = xattr::get(&model, &name)? {
            // Labels that only the kernel may set are no reason to fail.
            let _ = xattr::set(&inside, &name, &value);
        }
    }
    rustix::fs::chmod(made, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
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
    Ok(rustix::fs::utimensat(
        rustix::fs::CWD,
        made,
        &times,
        AtFlags::empty(),
    )?)
}

/// Attributes by which overlayfs itself finds its way: an image must not set them.
pub(crate) fn is_overlay_private(name: &str) -> bool {
    ["trusted.overlay.", "user.overlay."]
        .iter()
        // Escaped ones belong to an overlay inside of the container.
        .any(|p| {
            name.strip_prefix(p)
                .is_some_and(|rest| !rest.starts_with("overlay."))
        })
}

fn components(path: &Path) -> impl Iterator<Item = OsString> {
    path.as_os_str()
        .as_bytes()
        .split(|b| *b == b'/')
        .filter(|c| !c.is_empty() && *c != b".")
        .map(|c| OsStr::from_bytes(c).to_owned())
        .collect::<Vec<_>>()
        .into_iter()
}

/// The path without `.`, empty and `..` components, as if the root were its start.
pub(crate) fn clean(path: &[u8]) -> PathBuf {
    let mut out = PathBuf::new();
    for c in components(Path::new(OsStr::from_bytes(path))) {
        if c == ".." {
            out.pop();
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_without_leaving() {
        for (raw, want) in [
            ("./a//b/./c/", "a/b/c"),
            ("/etc/passwd", "etc/passwd"),
            ("../../x", "x"),
            ("a/../../b", "b"),
            ("..", ""),
            ("", ""),
        ] {
            assert_eq!(clean(raw.as_bytes()), Path::new(want), "{raw}");
        }
    }

    #[test]
    fn only_overlays_own_attributes_are_private() {
        assert!(is_overlay_private("trusted.overlay.redirect"));
        assert!(is_overlay_private("user.overlay.opaque"));
        assert!(!is_overlay_private("trusted.overlay.overlay.opaque"));
        assert!(!is_overlay_private("user.overlayish"));
    }
}
