//! Owns the child's steps on mounts and paths. Runs under the same rules as `child.rs`.
//!
//! Every path of the container is resolved from an O_PATH handle of its root with openat2(2), missing
//! parts are made one by one below a handle, mounts are attached to handles. No string is trusted twice.

use crate::child::Child;
use crate::plan::{Fd, FsOption, Make, Node, Op};
use crate::sys::{self, Errno, MountAttr, Res};
use crate::wire::{Message, Tag};
use std::ffi::CStr;
use std::os::fd::RawFd;

const PATH_MAX: usize = 4096;
/// Links to nothing that are followed by making what they name.
const LINKS_MAX: u32 = 10;
pub(crate) const IN_ROOT: u64 = sys::RESOLVE_IN_ROOT | sys::RESOLVE_NO_MAGICLINKS;
const PROC_MAGIC: i64 = 0x9fa0;
const DEVPTS_MAGIC: i64 = 0x1cd1;
const MOUNT_ATTR_RDONLY: u64 = 0x1;
const MOUNT_ATTR_NOSUID: u64 = 0x2;
const MOUNT_ATTR_NODEV: u64 = 0x4;
const MOUNT_ATTR_NOEXEC: u64 = 0x8;

/// A descriptor closed at the end of its scope.
pub(crate) struct Tmp(pub(crate) RawFd);

impl Drop for Tmp {
    fn drop(&mut self) {
        sys::close(self.0);
    }
}

/// A path cut into a buffer, since nothing may be allocated.
struct PathBuf {
    bytes: [u8; PATH_MAX + 1],
}

// === impl PathBuf ===

impl PathBuf {
    fn new() -> Self {
        Self {
            bytes: [0; PATH_MAX + 1],
        }
    }

    /// The bytes as a C string.
    fn set(&mut self, part: &[u8]) -> Res<&CStr> {
        if part.len() > PATH_MAX {
            return Err(Errno(libc::ENAMETOOLONG));
        }
        for (to, from) in self.bytes.iter_mut().zip(part) {
            *to = *from;
        }
        if let Some(end) = self.bytes.get_mut(part.len()) {
            *end = 0;
        }
        CStr::from_bytes_until_nul(&self.bytes).map_err(|_| Errno(libc::EINVAL))
    }

    /// Path that a link at `name` below `dir` leads to, followed by `tail`, as seen from the root.
    fn redirect(&mut self, parent: RawFd, dir: &[u8], name: &CStr, tail: &[u8]) -> Res<&CStr> {
        let mut link = [0u8; PATH_MAX];
        let len = sys::readlinkat(parent, name, &mut link)?;
        let link = link.get(..len).unwrap_or(&[]);
        let dir = if link.first() == Some(&b'/') {
            &[][..]
        } else {
            dir
        };
        let mut at = 0;
        for part in [dir, b"/", link, b"/", tail] {
            for byte in part {
                match self.bytes.get_mut(at) {
                    Some(place) if at < PATH_MAX => *place = *byte,
                    _ => return Err(Errno(libc::ENAMETOOLONG)),
                }
                at += 1;
            }
        }
        // Without a tail the last slash would make it a directory.
        if tail.is_empty() {
            at -= 1;
        }
        if let Some(end) = self.bytes.get_mut(at) {
            *end = 0;
        }
        CStr::from_bytes_until_nul(&self.bytes).map_err(|_| Errno(libc::EINVAL))
    }

    /// `/proc/self/fd/N`
    fn proc_fd(&mut self, fd: RawFd) -> Res<&CStr> {
        let mut text = *b"/proc/self/fd/0000000000";
        let (mut n, mut at) = (fd as u32, text.len());
        let mut digits = 0;
        while digits == 0 || n > 0 {
            at -= 1;
            if let Some(place) = text.get_mut(at) {
                *place = b'0' + (n % 10) as u8;
            }
            n /= 10;
            digits += 1;
        }
        let mut packed = [0u8; 24];
        let source = text.iter().take(14).chain(text.iter().skip(at));
        for (to, from) in packed.iter_mut().zip(source) {
            *to = *from;
        }
        let len = 14 + digits;
        self.set(packed.get(..len).unwrap_or(&[]))
    }
}

// === impl Child ===

impl Child<'_> {
    pub(crate) fn fs_step(&mut self, op: &Op) -> Res<()> {
        match op {
            Op::JoinCgroup(fd) => sys::write(self.fd(*fd), b"0").map(drop),
            Op::WriteProc { path, data } => write_proc(path, data),
            Op::Propagation { path, flags } => sys::mount(c"", path, c"", *flags, c""),
            Op::HolderPropagation { path, flags } => holder_propagation(path, *flags),
            Op::CloneTree {
                path,
                recursive,
                out,
            } => {
                let fd = sys::open_tree(libc::AT_FDCWD, path, *recursive)?;
                self.set(*out, fd)
            }
            Op::CloneFd { fd, recursive, out } => {
                let fd = sys::open_tree(self.fd(*fd), c"", *recursive)?;
                self.set(*out, fd)
            }
            Op::FsMount {
                fstype,
                options,
                attrs,
                out,
            } => {
                let fd = new_mount(fstype, options, *attrs)?;
                self.set(*out, fd)
            }
            Op::SetAttr {
                fd,
                set,
                clear,
                propagation,
                recursive,
            } => {
                let attr = MountAttr {
                    set: *set,
                    clear: *clear,
                    propagation: *propagation,
                    ..MountAttr::default()
                };
                sys::mount_setattr(self.fd(*fd), *recursive, &attr)
            }
            Op::Attach { mount, to } => sys::move_mount(self.fd(*mount), self.fd(*to), c""),
            Op::AttachAt { mount, path } => sys::move_mount(self.fd(*mount), libc::AT_FDCWD, path),
            Op::MountOn {
                fstype,
                source,
                to,
                flags,
                data,
            } => {
                let mut path = PathBuf::new();
                sys::mount(source, path.proc_fd(self.fd(*to))?, fstype, *flags, data)
            }
            Op::Resolve {
                root,
                path,
                make,
                real,
                out,
            } => {
                let fd = self.resolve(self.fd(*root), path, *make, *real)?;
                self.set(*out, fd)
            }
            Op::Close(slot) => {
                if let Some(place) = self.slots.get_mut(usize::from(*slot)) {
                    sys::close(*place);
                    *place = -1;
                }
                Ok(())
            }
            Op::VerifyDevice { fd, major, minor } => verify_device(self.fd(*fd), *major, *minor),
            Op::Mask {
                root,
                path,
                null,
                tmpfs,
            } => self.mask(*root, path, *null, *tmpfs),
            Op::ReadonlyPath { root, path } => readonly_path(self.fd(*root), path),
            Op::Mknod { root, node } => mknod(self.fd(*root), node),
            Op::Symlink { root, target, path } => symlink(self.fd(*root), target, path),
            Op::OpenPty { .. } => self.open_pty(op),
            Op::OwnNull { root, targets } => own_null(self.fd(*root), *targets),
            Op::PivotRoot { root } => pivot(self.fd(*root)),
            Op::MoveRoot { root } => {
                let root = self.fd(*root);
                sys::fchdir(root)?;
                sys::move_mount(root, libc::AT_FDCWD, c"/")?;
                sys::chroot(c".")?;
                sys::chdir(c"/")
            }
            Op::CopyUp { from, to } => crate::copy::tree(self.fd(*from), self.fd(*to)),
            Op::Hide { path } => hide(path),
            Op::Label { fd, value } => {
                let mut path = PathBuf::new();
                match sys::setxattr(path.proc_fd(self.fd(*fd))?, c"security.selinux", value) {
                    Err(Errno(libc::EOPNOTSUPP)) => Ok(()),
                    r => r,
                }
            }
            Op::Chroot { root } => {
                sys::fchdir(self.fd(*root))?;
                sys::chroot(c".")?;
                sys::chdir(c"/")
            }
            _ => Err(Errno(libc::ENOSYS)),
        }
    }

    fn resolve(&self, root: RawFd, path: &CStr, make: Make, real: bool) -> Res<RawFd> {
        let flags = if real {
            IN_ROOT | sys::RESOLVE_NO_SYMLINKS
        } else {
            IN_ROOT
        };
        let found = sys::openat2(root, path, libc::O_PATH, 0, flags);
        if !matches!(found, Err(Errno(libc::ENOENT))) {
            return found;
        }
        let directory = match make {
            Make::Nothing => return found,
            Make::Dir => true,
            Make::File => false,
            Make::Like(fd) => is_dir(self.fd(fd))?,
        };
        if directory {
            make_dirs(root, path.to_bytes())
        } else {
            make_file(root, path)
        }
    }

    fn mask(&mut self, root: Fd, path: &CStr, null: Fd, tmpfs: u8) -> Res<()> {
        let target = match sys::openat2(self.fd(root), path, libc::O_PATH, 0, IN_ROOT) {
            Ok(fd) => Tmp(fd),
            Err(Errno(libc::ENOENT | libc::ENOTDIR)) => return Ok(()),
            Err(e) => return Err(e),
        };
        if !is_dir(target.0)? {
            let null = self.fd(null);
            verify_device(null, 1, 3)?;
            let copy = Tmp(sys::open_tree(null, c"", false)?);
            return sys::move_mount(copy.0, target.0, c"");
        }
        let first = self.fd(Fd::Slot(tmpfs));
        if first >= 0 {
            let copy = Tmp(sys::open_tree(first, c"", false)?);
            return sys::move_mount(copy.0, target.0, c"");
        }
        let fd = empty_tmpfs()?;
        self.set(tmpfs, fd)?;
        sys::move_mount(self.fd(Fd::Slot(tmpfs)), target.0, c"")
    }

    fn open_pty(&mut self, op: &Op) -> Res<()> {
        let Op::OpenPty {
            root,
            path,
            rows,
            cols,
            uid,
            out,
        } = op
        else {
            return Err(Errno(libc::EINVAL));
        };
        let flags = libc::O_RDWR | libc::O_NOCTTY;
        let master = Tmp(sys::openat2(self.fd(*root), path, flags, 0, IN_ROOT)?);
        // An image may have put anything at this name: only the multiplexer of a devpts will do.
        if sys::fs_magic(master.0)? != DEVPTS_MAGIC {
            return Err(Errno(libc::ENODEV));
        }
        verify_device(master.0, 5, 2)?;
        sys::unlock_pty(master.0)?;
        let slave = sys::ioctl_int(
            master.0,
            libc::TIOCGPTPEER,
            (libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC) as usize,
        )? as RawFd;
        self.set(*out, slave)?;
        let slave = self.fd(Fd::Slot(*out));
        if *rows > 0 && *cols > 0 {
            sys::window_size(slave, *rows, *cols)?;
        }
        match sys::chown(slave, *uid, u32::MAX) {
            // An id outside the user namespace's maps, or a read-only devpts.
            Ok(()) | Err(Errno(libc::EINVAL | libc::EPERM | libc::EROFS)) => {}
            Err(e) => return Err(e),
        }
        let message = Message {
            tag: Tag::Console,
            at: 0,
            errno: 0,
            detail: 0,
        };
        sys::send_fd(self.channel, &message.encode(), master.0)
    }

    pub(crate) fn chdir(&mut self, at: usize, path: &CStr, make: bool) -> Res<()> {
        match sys::chdir(path) {
            Err(Errno(libc::ENOENT)) if make => {
                let root = Tmp(sys::open(c"/", libc::O_PATH | libc::O_DIRECTORY)?);
                drop(Tmp(make_dirs(root.0, path.to_bytes())?));
                sys::chdir(path)
            }
            Err(Errno(libc::EACCES)) => {
                self.pending_cwd = Some(at);
                Ok(())
            }
            r => r,
        }
    }
}

fn is_dir(fd: RawFd) -> Res<bool> {
    let st = sys::stat(fd, c"", 0)?;
    Ok(st.st_mode & libc::S_IFMT == libc::S_IFDIR)
}

fn verify_device(fd: RawFd, major: u32, minor: u32) -> Res<()> {
    let st = sys::stat(fd, c"", 0)?;
    let device = libc::makedev(major, minor);
    if st.st_mode & libc::S_IFMT == libc::S_IFCHR && st.st_rdev == device {
        Ok(())
    } else {
        Err(Errno(libc::ENODEV))
    }
}

fn own_null(root: RawFd, targets: u8) -> Res<()> {
    let open = |flags| sys::openat2(root, c"/dev/null", flags, 0, IN_ROOT).map(Tmp);
    let known = open(libc::O_PATH).and_then(|fd| verify_device(fd.0, 1, 3));
    let Ok(null) = known.and_then(|()| open(libc::O_RDWR | libc::O_NOCTTY)) else {
        return Ok(());
    };
    (0..3)
        .filter(|n| targets & 1 << n != 0)
        .try_for_each(|n| sys::dup2(null.0, n))
}

/// Opens the directory at `path` in `root`, making what is missing.
fn make_dirs(root: RawFd, path: &[u8]) -> Res<RawFd> {
    make_dirs_within(root, path, LINKS_MAX)
}

fn make_dirs_within(root: RawFd, path: &[u8], links: u32) -> Res<RawFd> {
    let mut buf = PathBuf::new();
    let flags = libc::O_PATH | libc::O_DIRECTORY;
    let mut parent = Tmp(sys::openat2(root, c".", flags, 0, IN_ROOT)?);
    let mut end = 0;
    while end < path.len() {
        let rest = path.get(end..).unwrap_or(&[]);
        let skip = rest.iter().take_while(|b| **b == b'/').count();
        let len = rest.iter().skip(skip).take_while(|b| **b != b'/').count();
        let name = rest.get(skip..skip + len).unwrap_or(&[]);
        let dir = path.get(..end).unwrap_or(&[]);
        end += skip + len;
        if name.is_empty() {
            break;
        }
        // Each prefix is looked up from the root: links inside it stay inside it.
        let prefix = path.get(..end).unwrap_or(&[]);
        parent = match sys::openat2(root, buf.set(prefix)?, flags, 0, IN_ROOT) {
            Ok(fd) => Tmp(fd),
            Err(Errno(libc::ENOENT)) => {
                let name = buf.set(name)?;
                match sys::mkdirat(parent.0, name, 0o755) {
                    Ok(()) | Err(Errno(libc::EEXIST)) => {}
                    Err(e) => return Err(e),
                }
                let only = IN_ROOT | sys::RESOLVE_NO_SYMLINKS | sys::RESOLVE_NO_XDEV;
                match sys::openat2(parent.0, name, flags, 0, only) {
                    // A link to nothing: what it names is made instead.
                    Err(Errno(libc::ELOOP)) if links > 0 => {
                        let mut aim = PathBuf::new();
                        let tail = path.get(end..).unwrap_or(&[]);
                        let aim = aim.redirect(parent.0, dir, name, tail)?;
                        return make_dirs_within(root, aim.to_bytes(), links - 1);
                    }
                    fd => Tmp(fd?),
                }
            }
            Err(e) => return Err(e),
        };
    }
    let fd = parent.0;
    std::mem::forget(parent);
    Ok(fd)
}

/// Handle of the directory that holds `path`, made when missing, and the last name.
fn parent_of(root: RawFd, path: &[u8]) -> Res<(Tmp, &[u8])> {
    let cut = path.iter().rposition(|b| *b == b'/').map_or(0, |n| n + 1);
    let (dir, name) = path.split_at_checked(cut).unwrap_or((path, &[]));
    if name.is_empty() {
        return Err(Errno(libc::EINVAL));
    }
    Ok((Tmp(make_dirs(root, dir)?), name))
}

/// Makes an empty file, and returns an O_PATH handle of it.
fn make_file(root: RawFd, path: &CStr) -> Res<RawFd> {
    make_file_within(root, path.to_bytes(), LINKS_MAX)
}

fn make_file_within(root: RawFd, path: &[u8], links: u32) -> Res<RawFd> {
    let (parent, name) = parent_of(root, path)?;
    let dir = path.get(..path.len() - name.len()).unwrap_or(&[]);
    let mut buf = PathBuf::new();
    let name = buf.set(name)?;
    let only = IN_ROOT | sys::RESOLVE_NO_SYMLINKS;
    let flags = libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY | libc::O_NOFOLLOW;
    match sys::openat2(parent.0, name, flags, 0o755, only) {
        Ok(fd) => sys::close(fd),
        Err(Errno(libc::EEXIST)) => {}
        Err(e) => return Err(e),
    }
    match sys::openat2(parent.0, name, libc::O_PATH, 0, only) {
        // A link to nothing, such as /etc/resolv.conf in many images: the file it names is made.
        Err(Errno(libc::ELOOP)) if links > 0 => {
            let mut aim = PathBuf::new();
            let aim = aim.redirect(parent.0, dir, name, &[])?;
            make_file_within(root, aim.to_bytes(), links - 1)
        }
        fd => fd,
    }
}

fn mknod(root: RawFd, node: &Node) -> Res<()> {
    let (parent, name) = parent_of(root, node.path.to_bytes())?;
    let mut buf = PathBuf::new();
    let name = buf.set(name)?;
    let only = IN_ROOT | sys::RESOLVE_NO_SYMLINKS;
    match sys::mknodat(
        parent.0,
        name,
        node.mode,
        libc::makedev(node.major, node.minor),
    ) {
        Err(Errno(libc::EEXIST)) => {
            let fd = Tmp(sys::openat2(parent.0, name, libc::O_PATH, 0, only)?);
            let st = sys::stat(fd.0, c"", 0)?;
            let same = st.st_mode & libc::S_IFMT == node.mode & libc::S_IFMT
                && (st.st_rdev == libc::makedev(node.major, node.minor)
                    || node.mode & libc::S_IFMT == libc::S_IFIFO);
            // runc keeps an equal node the image brought, with the image's owner and mode.
            if same {
                Ok(())
            } else {
                Err(Errno(libc::EEXIST))
            }
        }
        Err(e) => Err(e),
        // The umask is 0 here, so the mode is exact.
        Ok(()) if node.uid == 0 && node.gid == 0 => Ok(()),
        Ok(()) => {
            let fd = Tmp(sys::openat2(parent.0, name, libc::O_PATH, 0, only)?);
            sys::chown(fd.0, node.uid, node.gid)?;
            // chown(2) clears set-id bits. By the handle: somebody may have put a link in the name's place.
            let mut link = PathBuf::new();
            sys::chmodat(libc::AT_FDCWD, link.proc_fd(fd.0)?, node.mode & 0o7777)
        }
    }
}

fn symlink(root: RawFd, target: &CStr, path: &CStr) -> Res<()> {
    let (parent, name) = parent_of(root, path.to_bytes())?;
    let mut buf = PathBuf::new();
    match sys::symlinkat(target, parent.0, buf.set(name)?) {
        Err(Errno(libc::EEXIST)) => Ok(()),
        r => r,
    }
}

fn readonly_path(root: RawFd, path: &CStr) -> Res<()> {
    let target = match sys::openat2(root, path, libc::O_PATH, 0, IN_ROOT) {
        Ok(fd) => Tmp(fd),
        Err(Errno(libc::ENOENT | libc::ENOTDIR)) => return Ok(()),
        Err(e) => return Err(e),
    };
    let copy = Tmp(sys::open_tree(target.0, c"", true)?);
    let attr = MountAttr {
        set: MOUNT_ATTR_RDONLY,
        ..MountAttr::default()
    };
    sys::mount_setattr(copy.0, true, &attr)?;
    sys::move_mount(copy.0, target.0, c"")
}

/// Read-only tmpfs with room for nothing. Some 5.4 kernels want a second inode.
fn empty_tmpfs() -> Res<RawFd> {
    let attrs = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;
    let mut last = Errno(libc::EINVAL);
    for inodes in [c"1", c"2"] {
        let fs = Tmp(sys::fsopen(c"tmpfs")?);
        sys::fsconfig(fs.0, Some(c"source"), Some(c"tmpfs"))?;
        sys::fsconfig(fs.0, Some(c"nr_blocks"), Some(c"1"))?;
        sys::fsconfig(fs.0, Some(c"nr_inodes"), Some(inodes))?;
        sys::fsconfig(fs.0, Some(c"mode"), Some(c"755"))?;
        match sys::fsconfig(fs.0, None, None) {
            Ok(()) => return sys::fsmount(fs.0, attrs),
            Err(e) => last = e,
        }
    }
    Err(last)
}

fn new_mount(fstype: &CStr, options: &[FsOption], attrs: u64) -> Res<RawFd> {
    let fs = Tmp(sys::fsopen(fstype)?);
    for option in options {
        sys::fsconfig(fs.0, Some(&option.key), option.value.as_deref())?;
    }
    sys::fsconfig(fs.0, None, None)?;
    sys::fsmount(fs.0, attrs)
}

fn write_proc(path: &CStr, data: &[u8]) -> Res<()> {
    let fd = Tmp(sys::open(path, libc::O_WRONLY)?);
    if sys::fs_magic(fd.0)? != PROC_MAGIC {
        return Err(Errno(libc::EXDEV));
    }
    sys::write(fd.0, data).map(drop)
}

/// Walks up from `path` until a mount takes the change: only a mount's root does.
fn holder_propagation(path: &CStr, flags: u64) -> Res<()> {
    let mut buf = PathBuf::new();
    let mut bytes = path.to_bytes();
    loop {
        let at = if bytes.is_empty() {
            c"/"
        } else {
            buf.set(bytes)?
        };
        match sys::mount(c"", at, c"", flags, c"") {
            Err(Errno(libc::EINVAL)) if bytes.len() > 1 => {
                let cut = bytes.iter().rposition(|b| *b == b'/').unwrap_or(0);
                bytes = bytes.get(..cut).unwrap_or(&[]);
            }
            r => return r,
        }
    }
}

/// Takes a mount of the host away, or covers it where it is locked. Nobody else's mounts change.
fn hide(path: &CStr) -> Res<()> {
    let bytes = path.to_bytes();
    let cut = bytes.iter().rposition(|b| *b == b'/').unwrap_or(0);
    let mut buf = PathBuf::new();
    let holder = match bytes.get(..cut) {
        None | Some([]) => c"/",
        Some(dir) => buf.set(dir)?,
    };
    holder_propagation(holder, libc::MS_SLAVE)?;
    match sys::umount_detach(path) {
        // It went with another one.
        Err(Errno(libc::ENOENT)) => Ok(()),
        Err(Errno(libc::EINVAL | libc::EPERM)) => {
            sys::mount(c"tmpfs", path, c"tmpfs", libc::MS_RDONLY, c"nr_inodes=2")
        }
        r => r,
    }
}

fn pivot(root: RawFd) -> Res<()> {
    let old = Tmp(sys::open(c"/", libc::O_PATH | libc::O_DIRECTORY)?);
    sys::fchdir(root)?;
    sys::pivot_root(c".", c".")?;
    // The old root now lies on top of the new one: step into it, cut it off, and leave.
    sys::fchdir(old.0)?;
    sys::mount(c"", c".", c"", libc::MS_SLAVE | libc::MS_REC, c"")?;
    sys::umount_detach(c".")?;
    sys::chdir(c"/")
}
