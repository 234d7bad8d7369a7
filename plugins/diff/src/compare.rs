//! Writes what one tree has over another as a layer: added and changed entries, whiteouts for those that are gone.
//!
//! Both trees are mounted views. When the upper one is an overlay right over the lower one, its upper folder says where
//! anything can differ at all, and only there is looked.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use corten_sys::root::{Root, magic_path};
use corten_sys::xattr;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::stream::Cancelled;
use crate::tar::{Member, Writer};

const CAPABILITY: &str = "security.capability";

/// What to compare.
#[derive(Debug)]
pub(crate) struct Trees<'a> {
    pub(crate) lower: &'a Path,
    pub(crate) upper: &'a Path,
    /// The upper folder of the overlay mounted at `upper`, when that overlay is `lower` with one more layer.
    pub(crate) changes: Option<&'a Path>,
    /// Upper bound of modification times.
    pub(crate) not_after: Option<i64>,
}

/// Writes the difference to `output` and returns it.
pub(crate) fn write_diff<W: Write>(
    trees: &Trees<'_>,
    output: W,
    cancelled: &Cancelled,
) -> io::Result<W> {
    let mut walk = Walk {
        root: Root::open(trees.upper)?,
        tar: Writer::new(output),
        not_after: trees.not_after,
        added: HashSet::new(),
        first: HashMap::new(),
        unchanged: HashMap::new(),
        cancelled,
    };
    let lower = open_dir(CWD, trees.lower)?;
    let upper = open_dir(CWD, trees.upper)?;
    let changes = trees.changes.map(|p| open_dir(CWD, p)).transpose()?;
    walk.dir(Some(&lower), &upper, changes.as_ref(), b"")?;
    walk.tar.finish()
}

struct Walk<'a, W> {
    root: Root,
    tar: Writer<W>,
    not_after: Option<i64>,
    /// Folders written.
    added: HashSet<Vec<u8>>,
    /// Files with several names: the name they were written under.
    first: HashMap<(u64, u64), Vec<u8>>,
    /// The same for names that did not change, in case that another name of the file did.
    unchanged: HashMap<(u64, u64), Vec<Vec<u8>>>,
    cancelled: &'a Cancelled,
}

impl<W: Write> Walk<'_, W> {
    /// Compares what is in two folders; `changes` is the raw folder of the overlay's upper layer.
    fn dir(
        &mut self,
        lower: Option<&OwnedFd>,
        upper: &OwnedFd,
        changes: Option<&OwnedFd>,
        path: &[u8],
    ) -> io::Result<()> {
        self.cancelled.check()?;
        let names = match changes {
            Some(changes) => list(changes)?,
            None => {
                let mut names = list(upper)?;
                if let Some(lower) = lower {
                    names.extend(list(lower)?);
                }
                names
            }
        };
        for name in names {
            let os = OsStr::from_bytes(&name);
            let path = if path.is_empty() {
                name.clone()
            } else {
                [path, b"/", &name].concat()
            };
            let old = lower.map(|l| stat(l, os)).transpose()?.flatten();
            let Some(new) = stat(upper, os)? else {
                if old.is_some() {
                    self.whiteout(&path)?;
                }
                continue;
            };
            let changed = match &old {
                Some(old) => !self.same(lower.zip(Some(upper)), os, old, &new)?,
                None => true,
            };
            self.write(upper, os, &path, &new, changed)?;
            if !is_dir(&new) {
                continue;
            }
            let below = match (lower, &old) {
                (Some(lower), Some(old)) if is_dir(old) => Some(open_dir(lower, os)?),
                _ => None,
            };
            let raw = changes.map(|c| raw_child(c, os)).transpose()?.flatten();
            self.dir(below.as_ref(), &open_dir(upper, os)?, raw.as_ref(), &path)?;
        }
        Ok(())
    }

    fn whiteout(&mut self, path: &[u8]) -> io::Result<()> {
        let at = path.iter().rposition(|b| *b == b'/').map_or(0, |i| i + 1);
        let mark = [&path[..at], b".wh.", &path[at..]].concat();
        self.parents(&mark)?;
        self.tar.header(&Member {
            path: mark,
            kind: b'0',
            ..Default::default()
        })
    }

    fn write(
        &mut self,
        folder: &OwnedFd,
        name: &OsStr,
        path: &[u8],
        stat: &Stat,
        changed: bool,
    ) -> io::Result<()> {
        let Some(mut member) = self.member(folder, name, path, stat)? else {
            return Ok(());
        };
        let key = (stat.st_dev, stat.st_ino);
        let mut others = Vec::new();
        if !is_dir(stat) && stat.st_nlink > 1 {
            if let Some(first) = self.first.get(&key) {
                // Linked even when unchanged: the file under its first name is a new one.
                member.kind = b'1';
                member.link.clone_from(first);
                member.size = 0;
            } else if !changed {
                self.unchanged.entry(key).or_default().push(path.to_owned());
                return Ok(());
            } else {
                self.first.insert(key, path.to_owned());
                others = self.unchanged.remove(&key).unwrap_or_default();
            }
        } else if !changed {
            return Ok(());
        }
        self.parents(path)?;
        if is_dir(stat) && !self.added.insert(path.to_owned()) {
            return Ok(());
        }
        self.tar.header(&member)?;
        if member.kind == b'0' && member.size > 0 {
            self.tar.data(open_file(folder, name)?, member.size)?;
        }
        for other in others {
            self.parents(&other)?;
            let link = Member {
                path: other,
                link: path.to_owned(),
                kind: b'1',
                size: 0,
                ..member.clone()
            };
            self.tar.header(&link)?;
        }
        Ok(())
    }

    /// Writes the folders above `path` that were not written yet.
    fn parents(&mut self, path: &[u8]) -> io::Result<()> {
        for (i, _) in path.iter().enumerate().filter(|(_, b)| **b == b'/') {
            let parent = &path[..i];
            if !self.added.insert(parent.to_owned()) {
                continue;
            }
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            let fd = self
                .root
                .open_at(Path::new(OsStr::from_bytes(parent)), flags)?;
            let stat = rustix::fs::fstat(&fd)?;
            if let Some(member) = self.member(&fd, OsStr::new("."), parent, &stat)? {
                self.tar.header(&member)?;
            }
        }
        Ok(())
    }

    /// The headers of an entry; None for a socket, which archives cannot hold.
    fn member(
        &self,
        folder: &OwnedFd,
        name: &OsStr,
        path: &[u8],
        stat: &Stat,
    ) -> io::Result<Option<Member>> {
        let mut m = Member {
            path: path.to_owned(),
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: self
                .not_after
                .map_or(stat.st_mtime, |max| max.min(stat.st_mtime)),
            xattrs: xattrs(folder, name)?,
            ..Default::default()
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                m.kind = b'0';
                m.size = u64::try_from(stat.st_size).unwrap_or(0);
            }
            FileType::Directory => {
                m.kind = b'5';
                m.path.push(b'/');
            }
            FileType::Symlink => {
                m.kind = b'2';
                m.link = rustix::fs::readlinkat(folder, name, Vec::new())?.into_bytes();
            }
            FileType::Fifo => m.kind = b'6',
            FileType::Socket => return Ok(None),
            kind => {
                m.kind = if kind == FileType::BlockDevice {
                    b'4'
                } else {
                    b'3'
                };
                m.device = (
                    rustix::fs::major(stat.st_rdev),
                    rustix::fs::minor(stat.st_rdev),
                );
            }
        }
        Ok(Some(m))
    }

    /// Whether nothing changed. Times that may have lost their nanoseconds on the way through an archive prove
    /// nothing: then the contents decide.
    fn same(
        &self,
        folders: Option<(&OwnedFd, &OwnedFd)>,
        name: &OsStr,
        old: &Stat,
        new: &Stat,
    ) -> io::Result<bool> {
        let Some((lower, upper)) = folders else {
            return Ok(false);
        };
        if (old.st_dev, old.st_ino) == (new.st_dev, new.st_ino) {
            return Ok(true);
        }
        let facts = |s: &Stat| (s.st_mode, s.st_uid, s.st_gid, s.st_rdev);
        if facts(old) != facts(new) || xattrs(lower, name)? != xattrs(upper, name)? {
            return Ok(false);
        }
        if is_dir(new) {
            return Ok(true);
        }
        if old.st_size != new.st_size || old.st_mtime != new.st_mtime {
            return Ok(false);
        }
        if (old.st_mtime_nsec, new.st_mtime_nsec) != (0, 0) {
            return Ok(old.st_mtime_nsec == new.st_mtime_nsec);
        }
        match FileType::from_raw_mode(new.st_mode) {
            FileType::Symlink => {
                let link = |f| rustix::fs::readlinkat(f, name, Vec::new());
                Ok(link(lower)? == link(upper)?)
            }
            FileType::RegularFile => {
                self.cancelled.check()?;
                same_content(open_file(lower, name)?, open_file(upper, name)?)
            }
            _ => Ok(true),
        }
    }
}

fn same_content(mut a: File, mut b: File) -> io::Result<bool> {
    let (mut x, mut y) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    loop {
        let n = read_full(&mut a, &mut x)?;
        let m = read_full(&mut b, &mut y)?;
        if x[..n] != y[..m] {
            return Ok(false);
        }
        if n == 0 {
            return Ok(true);
        }
    }
}

fn read_full(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read(&mut buffer[done..])? {
            0 => break,
            n => done += n,
        }
    }
    Ok(done)
}

/// The attributes that belong to an image: capabilities, and what users put there.
fn xattrs(folder: &OwnedFd, name: &OsStr) -> io::Result<Vec<(String, Vec<u8>)>> {
    let path = magic_path(folder).join(name);
    let mut out = Vec::new();
    for name in xattr::list(&path)? {
        let Some(name) = name.to_str() else { continue };
        if name != CAPABILITY
            && (!name.starts_with("user.") || crate::dirs::is_overlay_private(name))
        {
            continue;
        }
        if let Some(value) = xattr::get(&path, name)? {
            out.push((name.to_owned(), value));
        }
    }
    out.sort();
    Ok(out)
}

/// The raw folder `name` of an upper layer, when it merges with the one below and so tells where changes are.
fn raw_child(folder: &OwnedFd, name: &OsStr) -> io::Result<Option<OwnedFd>> {
    let Some(found) = stat(folder, name)? else {
        return Ok(None);
    };
    if !is_dir(&found) {
        return Ok(None);
    }
    let path = magic_path(folder).join(name);
    for private in ["opaque", "redirect"] {
        for space in ["trusted", "user"] {
            if xattr::get(&path, format!("{space}.overlay.{private}"))?.is_some() {
                return Ok(None);
            }
        }
    }
    open_dir(folder, name).map(Some)
}

fn list(folder: &OwnedFd) -> io::Result<BTreeSet<Vec<u8>>> {
    let mut out = BTreeSet::new();
    let mut dir = Dir::read_from(folder)?;
    while let Some(entry) = dir.read() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            out.insert(name.to_owned());
        }
    }
    Ok(out)
}

fn stat(folder: &OwnedFd, name: &OsStr) -> io::Result<Option<Stat>> {
    match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

fn is_dir(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

fn open_dir(at: impl AsFd, path: impl rustix::path::Arg) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(at, path, flags, Mode::empty())?)
}

fn open_file(folder: &OwnedFd, name: &OsStr) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::openat(
        folder,
        name,
        flags,
        Mode::empty(),
    )?))
}

/// The overlay layers of a recipe: upper folder if any, and the lower ones, topmost first.
pub(crate) fn overlay_layers(
    mount: &corten_core::Mount,
) -> Option<(Option<PathBuf>, Vec<PathBuf>)> {
    if mount.r#type != "overlay" {
        return None;
    }
    let find = |key: &str| mount.options.iter().find_map(|o| o.strip_prefix(key));
    // An unpacker that rebases later names only the upper folder.
    let lower = find("lowerdir=").unwrap_or_default();
    // Escaped separators are rare enough to go the general way.
    if lower.contains('\\') {
        return None;
    }
    let lower = lower
        .split(':')
        .filter(|p| !p.is_empty())
        .map(PathBuf::from)
        .collect();
    Some((find("upperdir=").map(PathBuf::from), lower))
}

/// The upper folder of `upper` when it is exactly one layer over `lower`.
pub(crate) fn changes_of(
    lower: &[corten_core::Mount],
    upper: &[corten_core::Mount],
) -> Option<PathBuf> {
    let ([lower], [upper]) = (lower, upper) else {
        return None;
    };
    let (Some(changes), below) = overlay_layers(upper)? else {
        return None;
    };
    let same = match lower.r#type.as_str() {
        "bind" => below == [PathBuf::from(&lower.source)],
        _ => overlay_layers(lower)? == (None, below),
    };
    // A metacopy has its data below, which the marks in the upper folder do not tell.
    let plain = !upper.options.iter().any(|o| o.starts_with("metacopy=on"));
    (same && plain).then_some(changes)
}

/// The same for recipes that name images: when both stack the same ones, only the upper folder differs. `active` is the
/// upper recipe as it was activated.
pub(crate) fn changes_over_images(
    lower: &[corten_core::Mount],
    upper: &[corten_core::Mount],
    active: &[corten_core::Mount],
) -> Option<PathBuf> {
    let images = |mounts: &[corten_core::Mount]| {
        let all = mounts.iter().filter(|m| m.r#type == "erofs");
        all.map(|m| m.source.clone()).collect::<Vec<_>>()
    };
    let [.., top] = lower else { return None };
    let writable = top.options.iter().any(|o| o.starts_with("upperdir="));
    let known = matches!(
        top.r#type.as_str(),
        "erofs" | "format/bind" | "format/mkdir/overlay"
    );
    let below = images(lower);
    if writable || !known || below.is_empty() || below != images(upper) {
        return None;
    }
    let [active] = active else { return None };
    overlay_layers(active)?.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use corten_core::Mount;

    #[test]
    fn the_upper_folder_counts_only_right_above_the_lower_tree() {
        let overlay = |options: &[&str]| {
            vec![Mount {
                r#type: "overlay".into(),
                options: options.iter().map(|o| (*o).to_owned()).collect(),
                ..Default::default()
            }]
        };
        let bind = vec![Mount {
            r#type: "bind".into(),
            source: "/1".into(),
            ..Default::default()
        }];
        let upper = overlay(&["workdir=/w", "upperdir=/u", "lowerdir=/2:/1"]);
        assert_eq!(
            changes_of(&overlay(&["lowerdir=/2:/1"]), &upper).unwrap(),
            Path::new("/u")
        );
        assert!(changes_of(&overlay(&["lowerdir=/1"]), &upper).is_none());
        assert!(changes_of(&bind, &upper).is_none());
        assert!(changes_of(&bind, &overlay(&["upperdir=/u", "lowerdir=/1"])).is_some());
        assert!(changes_of(&[], &upper).is_none());
    }
}
