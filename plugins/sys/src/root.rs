//! A directory that path resolution cannot leave: whatever `..`, absolute paths and symbolic links a path holds,
//! they mean what they would mean to a process whose root this directory is (openat2, RESOLVE_IN_ROOT).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// openat2 answers EAGAIN when a rename elsewhere made `..` uncertain; so often we ask again.
const RETRIES: usize = 128;

/// An open directory used as root.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
}

impl Root {
    /// Opens `path`, which is trusted.
    ///
    /// # Errors
    /// The file system's.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            fd: rustix::fs::openat(CWD, path, flags, Mode::empty())?,
        })
    }

    /// Resolves the untrusted `path` and opens what is there with `flags`.
    ///
    /// # Errors
    /// The file system's.
    pub fn open_at(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        for _ in 0..RETRIES {
            let opened = rustix::fs::openat2(
                &self.fd,
                path,
                flags | OFlags::CLOEXEC,
                Mode::empty(),
                ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
            );
            match opened {
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return Ok(other?),
            }
        }
        Err(Errno::AGAIN.into())
    }

    /// Resolves the untrusted `path`, all links followed, to a directory (O_PATH).
    ///
    /// # Errors
    /// The file system's.
    pub fn dir(&self, path: &Path) -> io::Result<OwnedFd> {
        self.open_at(path, OFlags::PATH | OFlags::DIRECTORY)
    }

    /// Resolves the untrusted `path` to whatever it is (O_PATH).
    ///
    /// # Errors
    /// The file system's.
    pub fn resolve(&self, path: &Path) -> io::Result<OwnedFd> {
        self.open_at(path, OFlags::PATH)
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A path that names exactly what `fd` is open on, for calls that want a path.
pub fn magic_path(fd: &impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
}

/// Where `fd` is in the file system, as the kernel says it now.
///
/// # Errors
/// The file system's.
pub fn path_of(fd: &impl AsFd) -> io::Result<PathBuf> {
    std::fs::read_link(magic_path(fd))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn nothing_leads_out() {
        let dir = std::env::temp_dir().join(format!("corten-root-{}", std::process::id()));
        let inside = dir.join("root/a/b");
        std::fs::create_dir_all(&inside).unwrap();
        std::fs::create_dir_all(dir.join("outside")).unwrap();
        symlink("/", dir.join("root/abs")).unwrap();
        symlink("../../..", dir.join("root/a/up")).unwrap();
        let root = Root::open(&dir.join("root")).unwrap();
        let top = path_of(&root.dir(Path::new("")).unwrap()).unwrap();
        for hostile in [
            "/",
            "..",
            "../../outside/..",
            "abs",
            "a/up",
            "a/up/../..",
            "/abs/..",
        ] {
            let got = root.dir(Path::new(hostile)).map(|fd| path_of(&fd).unwrap());
            assert!(
                got.as_ref().is_err() || got.as_ref().unwrap() == &top,
                "{hostile}: {got:?}"
            );
        }
        assert_eq!(
            path_of(&root.dir(Path::new("abs/a/b")).unwrap()).unwrap(),
            top.join("a/b")
        );
        assert!(root.dir(Path::new("abs/outside")).is_err());
        std::fs::remove_dir_all(dir).unwrap();
    }
}
