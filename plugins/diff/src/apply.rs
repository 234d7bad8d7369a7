//! Applies an archive to a folder.
//!
//! Two ways to hide what a lower layer has. On a whole tree (bind mount) a whiteout deletes. In an overlay's upper
//! folder it becomes overlayfs' own mark: a 0:0 device for a name, an attribute for an opaque folder. Either way a
//! whiteout speaks of lower layers only: what this archive itself made stays.
//!
//! No name in an archive leads outside: a parent folder is resolved with the tree as root, and the last component is
//! then made, never followed. What is in the way is removed first, so nothing is ever opened through a link.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io::{self, BufRead, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use corten_sys::root::{Root, magic_path};
use corten_sys::{userns, xattr};
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use crate::dirs::{Dirs, Folder, clean, is_overlay_private};
use crate::tar::{Entry, EntryKind, Reader, invalid};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Other names with this prefix are AUFS' private ones.
const PRIVATE: &[u8] = b".wh..wh.";
const OPAQUE_XATTR: &str = "trusted.overlay.opaque";

/// Where an archive goes.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) root: PathBuf,
    /// The folder is an overlay's upper folder; these are the layers below it, topmost first.
    pub(crate) overlay: Option<Vec<PathBuf>>,
}

/// Applies the whole of `input` up to the archive's end.
pub(crate) fn apply<R: BufRead>(target: &Target, input: R) -> io::Result<R> {
    let root = Root::open(&target.root)?;
    let fresh = is_empty(&root)?;
    let parents = target
        .overlay
        .iter()
        .flatten()
        .map(|p| Root::open(p))
        .collect::<Result<_, _>>()?;
    let mut applier = Applier {
        dirs: Dirs::new(root, parents, !fresh),
        reader: Reader::new(input),
        overlay: target.overlay.is_some(),
        fresh,
        made: HashSet::new(),
        cleared: HashSet::new(),
        opaque: HashSet::new(),
        times: Vec::new(),
        in_userns: userns::running_in_user_ns(),
    };
    while let Some(entry) = applier.reader.next()? {
        applier.entry(&entry).map_err(|e| {
            io::Error::new(
                e.kind(),
                format!("{:?}: {e}", String::from_utf8_lossy(&entry.path)),
            )
        })?;
    }
    applier.finish_times()?;
    Ok(applier.reader.into_inner())
}

fn is_empty(root: &Root) -> io::Result<bool> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut dir = Dir::new(rustix::fs::openat(root, ".", flags, Mode::empty())?)?;
    while let Some(entry) = dir.read() {
        if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    Ok(true)
}

struct Applier<R> {
    dirs: Dirs,
    reader: Reader<R>,
    overlay: bool,
    /// The folder was empty: everything in it is from this archive, and nothing need be remembered.
    fresh: bool,
    /// Real paths made by this archive, and the folders above them.
    made: HashSet<PathBuf>,
    /// Real paths of folders in and below which nothing older is left.
    cleared: HashSet<PathBuf>,
    /// Folders marked opaque already.
    opaque: HashSet<PathBuf>,
    /// Folders whose times are set at the end, when nothing is made in them any more.
    times: Vec<(PathBuf, Timestamps)>,
    in_userns: bool,
}

impl<R: BufRead> Applier<R> {
    fn entry(&mut self, entry: &Entry) -> io::Result<()> {
        let path = clean(&entry.path);
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            // The root itself: it is the snapshot's, not the layer's.
            return Ok(());
        };
        let bytes = name.as_bytes();
        if bytes == OPAQUE {
            return self.make_opaque(parent);
        }
        if bytes.starts_with(PRIVATE) {
            return Ok(());
        }
        let folder = self.dirs.make(parent)?;
        if let Some(hidden) = bytes.strip_prefix(WHITEOUT) {
            if matches!(hidden, b"" | b"." | b"..") {
                return Err(invalid("invalid whiteout name"));
            }
            return self.hide(&folder, OsStr::from_bytes(hidden), entry);
        }
        let owner = owner(entry)?;
        if matches!(entry.kind, EntryKind::Char(..) | EntryKind::Block(..)) && self.in_userns {
            tracing::warn!(path = %path.display(), "device ignored in a user namespace");
            return Ok(());
        }
        self.make(entry, &path, &folder, name, owner)?;
        self.remember(&folder, name);
        Ok(())
    }

    fn make(
        &mut self,
        entry: &Entry,
        path: &Path,
        folder: &Rc<Folder>,
        name: &OsStr,
        owner: (Uid, Gid),
    ) -> io::Result<()> {
        match &entry.kind {
            EntryKind::File => {
                let file = self.create(folder, name)?;
                self.write(entry, &file)?;
                attributes(entry, &file, owner)
            }
            EntryKind::Dir => {
                let dir = self.make_dir(folder, name)?;
                attributes(entry, &dir, owner)?;
                self.times.push((path.to_owned(), times(entry)));
                Ok(())
            }
            EntryKind::Symlink => {
                let link = OsStr::from_bytes(&entry.link);
                self.replace(folder, name, |f| rustix::fs::symlinkat(link, f, name))?;
                rustix::fs::chownat(
                    folder,
                    name,
                    Some(owner.0),
                    Some(owner.1),
                    AtFlags::SYMLINK_NOFOLLOW,
                )?;
                set_xattrs(entry, &magic_path(folder).join(name), false)?;
                Ok(rustix::fs::utimensat(
                    folder,
                    name,
                    &times(entry),
                    AtFlags::SYMLINK_NOFOLLOW,
                )?)
            }
            EntryKind::HardLink => {
                let target = clean(&entry.link);
                let (Some(parent), Some(file)) = (target.parent(), target.file_name()) else {
                    return Err(invalid("hard link to the root"));
                };
                let from = self.dirs.find(parent)?;
                self.replace(folder, name, |f| {
                    rustix::fs::linkat(&from, file, f, name, AtFlags::empty())
                })?;
                special_attributes(entry, folder, name, owner)
            }
            EntryKind::Char(major, minor) => self.node(
                entry,
                folder,
                name,
                FileType::CharacterDevice,
                (*major, *minor),
                owner,
            ),
            EntryKind::Block(major, minor) => self.node(
                entry,
                folder,
                name,
                FileType::BlockDevice,
                (*major, *minor),
                owner,
            ),
            EntryKind::Fifo => self.node(entry, folder, name, FileType::Fifo, (0, 0), owner),
        }
    }

    fn node(
        &mut self,
        entry: &Entry,
        folder: &Rc<Folder>,
        name: &OsStr,
        kind: FileType,
        (major, minor): (i64, i64),
        owner: (Uid, Gid),
    ) -> io::Result<()> {
        // containerd 2.4: out of range is an error, never a truncated number.
        let number = |n: i64| u32::try_from(n).map_err(|_| invalid(format!("device number {n}")));
        let device = rustix::fs::makedev(number(major)?, number(minor)?);
        let mode = Mode::from_raw_mode(entry.mode);
        self.replace(folder, name, |f| {
            rustix::fs::mknodat(f, name, kind, mode, device)
        })?;
        special_attributes(entry, folder, name, owner)
    }

    /// Calls `make`, and again after removing what is in its way.
    fn replace<T>(
        &mut self,
        folder: &Rc<Folder>,
        name: &OsStr,
        make: impl Fn(&Folder) -> rustix::io::Result<T>,
    ) -> io::Result<T> {
        match make(folder) {
            Err(Errno::EXIST) => {
                self.remove(folder, name)?;
                Ok(make(folder)?)
            }
            other => Ok(other?),
        }
    }

    fn create(&mut self, folder: &Rc<Folder>, name: &OsStr) -> io::Result<OwnedFd> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        self.replace(folder, name, |f| rustix::fs::openat(f, name, flags, mode))
    }

    /// A folder that exists is kept, with what is in it.
    fn make_dir(&mut self, folder: &Rc<Folder>, name: &OsStr) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::mkdirat(folder, name, Mode::RWXU) {
            Ok(()) => {
                if !self.fresh {
                    self.cleared.insert(folder.real.join(name));
                }
            }
            Err(Errno::EXIST) => {
                let stat = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                    let hidden = self.overlay && is_whiteout(&stat);
                    self.remove(folder, name)?;
                    rustix::fs::mkdirat(folder, name, Mode::RWXU)?;
                    let dir = rustix::fs::openat(folder, name, flags, Mode::empty())?;
                    if hidden {
                        // The folder below was deleted by this layer: the new one must not merge with it.
                        rustix::fs::fsetxattr(&dir, OPAQUE_XATTR, b"y", XattrFlags::empty())?;
                    }
                    return Ok(dir);
                }
            }
            Err(e) => return Err(e.into()),
        }
        Ok(rustix::fs::openat(folder, name, flags, Mode::empty())?)
    }

    fn write(&mut self, entry: &Entry, file: &OwnedFd) -> io::Result<()> {
        let Some(map) = &entry.sparse else {
            return self.write_range(file, entry.stored, None);
        };
        if map.size > i64::MAX as u64 {
            return Err(invalid("sparse file too long"));
        }
        rustix::fs::ftruncate(file, map.size)?;
        for f in &map.fragments {
            self.write_range(file, f.length, Some(f.offset))?;
        }
        Ok(())
    }

    /// Writes the next `length` bytes of data, straight from the stream's buffer.
    fn write_range(&mut self, file: &OwnedFd, length: u64, at: Option<u64>) -> io::Result<()> {
        let mut done = 0;
        while done < length {
            let some = self.reader.fill()?;
            if some.is_empty() {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            let want = usize::try_from(length - done)
                .unwrap_or(usize::MAX)
                .min(some.len());
            let n = match at {
                None => rustix::io::write(file, &some[..want]),
                Some(at) => rustix::io::pwrite(file, &some[..want], at + done),
            };
            match n {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => {
                    self.reader.consume(n);
                    done += n as u64;
                }
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    fn finish_times(&mut self) -> io::Result<()> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        for (path, times) in std::mem::take(&mut self.times) {
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
                continue;
            };
            // A later entry may have taken its place.
            let Ok(folder) = self.dirs.find(parent) else {
                continue;
            };
            if let Ok(dir) = rustix::fs::openat(&folder, name, flags, Mode::empty()) {
                rustix::fs::utimensat(CWD, magic_path(&dir), &times, AtFlags::empty())?;
            }
        }
        Ok(())
    }

    // === whiteouts ===

    /// Hides what lower layers have under `name`.
    fn hide(&mut self, folder: &Rc<Folder>, name: &OsStr, entry: &Entry) -> io::Result<()> {
        let mut found = stat(folder, name)?;
        if found.is_some() && !self.fresh && !self.is_made(folder, name) {
            self.remove(folder, name)?;
            found = None;
        }
        let is_dir =
            found.is_some_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Directory);
        if is_dir && !self.fresh {
            self.clear(&folder.real.join(name))?;
        }
        if !self.overlay {
            return Ok(());
        }
        if is_dir {
            let path = magic_path(folder).join(name);
            return xattr::set(&path, OPAQUE_XATTR, b"y");
        }
        if found.is_some() {
            // A file of this layer covers what is below as well as a mark would.
            return Ok(());
        }
        let (uid, gid) = owner(entry)?;
        rustix::fs::mknodat(folder, name, FileType::CharacterDevice, Mode::empty(), 0)?;
        rustix::fs::chownat(
            folder,
            name,
            Some(uid),
            Some(gid),
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
        self.remember(folder, name);
        Ok(())
    }

    /// Hides what lower layers have in the folder `path`.
    fn make_opaque(&mut self, path: &Path) -> io::Result<()> {
        if !self.opaque.insert(path.to_owned()) {
            return Ok(());
        }
        let folder = self.dirs.make(path)?;
        if !self.fresh {
            self.clear(&folder.real)?;
        }
        if self.overlay {
            xattr::set(&magic_path(&folder).join("."), OPAQUE_XATTR, b"y")?;
        }
        Ok(())
    }

    fn is_made(&self, folder: &Folder, name: &OsStr) -> bool {
        self.made.contains(&folder.real.join(name))
    }

    fn remember(&mut self, folder: &Folder, name: &OsStr) {
        if self.fresh {
            return;
        }
        let path = folder.real.join(name);
        let mut at = Some(path.as_path());
        while let Some(p) = at {
            if !self.made.insert(p.to_owned()) {
                return;
            }
            at = p.parent();
        }
    }

    /// Removes everything below `dir`, a real path, that this archive did not make. What was cleared before is not
    /// walked again, so that many marks cost no more than one.
    fn clear(&mut self, dir: &Path) -> io::Result<()> {
        if dir.ancestors().any(|a| self.cleared.contains(a)) {
            return Ok(());
        }
        let mut todo = vec![dir.to_owned()];
        while let Some(at) = todo.pop() {
            for entry in std::fs::read_dir(&at)? {
                let entry = entry?;
                let path = entry.path();
                if !self.made.contains(&path) {
                    corten_sys::tree::remove(&path)?;
                } else if entry.file_type()?.is_dir() && !self.cleared.contains(&path) {
                    todo.push(path);
                }
            }
        }
        self.cleared.insert(dir.to_owned());
        self.dirs.forget();
        Ok(())
    }

    fn remove(&mut self, folder: &Folder, name: &OsStr) -> io::Result<()> {
        match stat(folder, name)?.map(|s| FileType::from_raw_mode(s.st_mode)) {
            None => return Ok(()),
            // Open folders may have been reached through it.
            Some(FileType::Directory | FileType::Symlink) => self.dirs.forget(),
            Some(_) => {}
        }
        corten_sys::tree::remove(&magic_path(folder).join(name))
    }
}

fn stat(folder: &Folder, name: &OsStr) -> io::Result<Option<rustix::fs::Stat>> {
    match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// overlayfs' mark of a deleted name.
pub(crate) fn is_whiteout(stat: &rustix::fs::Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Ids that are no ids are errors: chown would take -1 for "leave it", and it would stay root's.
fn owner(entry: &Entry) -> io::Result<(Uid, Gid)> {
    let id = |n: i64| {
        u32::try_from(n)
            .ok()
            .filter(|n| *n != u32::MAX)
            .ok_or_else(|| invalid(format!("owner id {n} out of range")))
    };
    Ok((Uid::from_raw(id(entry.uid)?), Gid::from_raw(id(entry.gid)?)))
}

/// Times before the epoch become it (containerd: boundTime); access is not before modification.
fn times(entry: &Entry) -> Timestamps {
    let bound = |(s, n): (i64, u32)| {
        if (0..1 << 62).contains(&s) {
            (s, n)
        } else {
            (0, 0)
        }
    };
    let modified = bound(entry.mtime);
    let accessed = entry.atime.map_or(modified, |a| bound(a).max(modified));
    let spec = |(s, n): (i64, u32)| Timespec {
        tv_sec: s,
        tv_nsec: i64::from(n),
    };
    Timestamps {
        last_access: spec(accessed),
        last_modification: spec(modified),
    }
}

/// Owner, then attributes (a new owner drops capabilities), then mode (and set-id bits), then times.
fn attributes(entry: &Entry, fd: &OwnedFd, (uid, gid): (Uid, Gid)) -> io::Result<()> {
    rustix::fs::fchown(fd, Some(uid), Some(gid))?;
    if !entry.xattrs.is_empty() {
        set_xattrs(entry, &magic_path(fd), true)?;
    }
    rustix::fs::fchmod(fd, Mode::from_raw_mode(entry.mode))?;
    Ok(rustix::fs::futimens(fd, &times(entry))?)
}

/// The same for what cannot be opened: devices, FIFOs, and whatever a hard link names.
fn special_attributes(
    entry: &Entry,
    folder: &Folder,
    name: &OsStr,
    (uid, gid): (Uid, Gid),
) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(folder, name, flags, Mode::empty())?;
    let found = rustix::fs::fstat(&fd)?;
    let kind = FileType::from_raw_mode(found.st_mode);
    let path = magic_path(&fd);
    // A needless chown of a hard link's file would drop its capabilities.
    if (found.st_uid, found.st_gid) != (uid.as_raw(), gid.as_raw()) {
        rustix::fs::chownat(&fd, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
    }
    set_xattrs(
        entry,
        &magic_path(folder).join(name),
        kind == FileType::RegularFile,
    )?;
    if kind != FileType::Symlink {
        rustix::fs::chmod(&path, Mode::from_raw_mode(entry.mode))?;
    }
    Ok(rustix::fs::utimensat(
        folder,
        name,
        &times(entry),
        AtFlags::SYMLINK_NOFOLLOW,
    )?)
}

/// `takes_user`: the kernel lets regular files and folders alone have `user.*`.
fn set_xattrs(entry: &Entry, path: &Path, takes_user: bool) -> io::Result<()> {
    for (name, value) in &entry.xattrs {
        if is_overlay_private(name) {
            tracing::warn!(name, "ignored xattr of overlayfs in archive");
            continue;
        }
        // An open file's /proc name must be followed; a name in a folder must not be.
        let done = if path.parent() == Some(Path::new("/proc/self/fd")) {
            rustix::fs::setxattr(path, name.as_str(), value, XattrFlags::empty())
                .map_err(Into::into)
        } else {
            xattr::set(path, name, value)
        };
        if let Err(e) = done {
            let errno = Errno::from_io_error(&e);
            let unfit = errno == Some(Errno::PERM) && name.starts_with("user.") && !takes_user;
            if !unfit && errno != Some(Errno::NOTSUP) {
                return Err(io::Error::new(e.kind(), format!("set xattr {name:?}: {e}")));
            }
            tracing::warn!(name, error = %e, "ignored xattr in archive");
        }
    }
    Ok(())
}

/// For callers that sync what was applied.
pub(crate) fn sync(root: &Path) -> io::Result<()> {
    let dir = std::fs::File::open(root)?;
    Ok(rustix::fs::syncfs(dir.as_fd())?)
}

#[cfg(test)]
mod tests;
