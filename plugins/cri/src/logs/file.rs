//! The file of a log: opened by its name and never through a link, reopened after a rotation, bounded if asked for.
//!
//! A file that cannot be written costs lines, never the container: who reads its FIFO goes on.

use std::fs::{DirBuilder, File};
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use corten_core::{Context, Error, Result};
use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tracing::warn;

const MODE: Mode = Mode::from_raw_mode(0o640);

/// One log, written by both streams of a container. Everything blocks.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    /// 0: unbounded.
    max_size: u64,
    open: Mutex<Open>,
}

#[derive(Debug)]
struct Open {
    file: File,
    size: u64,
    /// Said once until it works again.
    failing: bool,
}

impl LogFile {
    /// Opens or makes it. A file that would grow beyond `max_size` is renamed to `<name>.1` first; 0 leaves that to
    /// the kubelet, which renames and asks to reopen.
    ///
    /// # Errors
    /// The file system's; InvalidArgument for what is no plain file.
    pub fn open(path: PathBuf, max_size: u64) -> Result<Self> {
        let open = open(&path)?;
        Ok(Self {
            path,
            max_size,
            open: Mutex::new(open),
        })
    }

    /// Opens it again by its name, between two writes. The old file gets nothing afterwards; on failure it stays.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn reopen(&self) -> Result<()> {
        let fresh = open(&self.path)?;
        *self.open.lock() = fresh;
        Ok(())
    }

    /// Writes whole lines; `false` when it could not.
    pub fn write(&self, text: &[u8]) -> bool {
        if text.is_empty() {
            return true;
        }
        let mut open = self.open.lock();
        let length = text.len() as u64;
        let written = (|| {
            if self.max_size > 0 && open.size > 0 && open.size + length > self.max_size {
                let mut old = self.path.clone().into_os_string();
                old.push(".1");
                std::fs::rename(&self.path, old)?;
                *open = self::open(&self.path)?;
            }
            open.file.write_all(text)?;
            Ok::<_, Error>(())
        })();
        match written {
            Ok(()) => {
                open.size += length;
                open.failing = false;
                true
            }
            Err(error) => {
                if !std::mem::replace(&mut open.failing, true) {
                    warn!(path = %self.path.display(), %error, "write a container's log");
                }
                false
            }
        }
    }
}

fn open(path: &std::path::Path) -> Result<Open> {
    let what = || format!("failed to create and open log file {}", path.display());
    // Non-blocking and checked: a FIFO in its place must not hold up anybody.
    let flags = OFlags::WRONLY
        | OFlags::APPEND
        | OFlags::CREATE
        | OFlags::CLOEXEC
        | OFlags::NOFOLLOW
        | OFlags::NONBLOCK
        | OFlags::NOCTTY;
    let open = || rustix::fs::open(path, flags, MODE);
    let file = match open() {
        Err(Errno::NOENT) => {
            // As containerd does for clients that do not make the pod's folder themselves.
            let dir = path.parent().unwrap_or(path);
            let made = DirBuilder::new().recursive(true).mode(0o755).create(dir);
            made.with_context(what)?;
            open()
        }
        opened => opened,
    };
    let file = file.map_err(std::io::Error::from).with_context(what)?;
    let file = File::from(file);
    let metadata = file.metadata().with_context(what)?;
    if !metadata.is_file() {
        return Err(Error::invalid("not a regular file").context(what()));
    }
    Ok(Open {
        file,
        size: metadata.len(),
        failing: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_reopened_bounded_and_never_followed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        let log = LogFile::open(path.clone(), 0).unwrap();
        log.write(b"one\n");
        std::fs::rename(&path, dir.path().join("old")).unwrap();
        log.write(b"two\n");
        log.reopen().unwrap();
        log.write(b"three\n");
        assert_eq!(read("old"), "one\ntwo\n");
        assert_eq!(read("0.log"), "three\n");

        let log = LogFile::open(path.clone(), 10).unwrap();
        log.write(b"123\n");
        assert_eq!(read("0.log"), "three\n123\n", "exactly the bound");
        log.write(b"4");
        assert_eq!(
            (read("0.log.1"), read("0.log")),
            ("three\n123\n".into(), "4".into())
        );

        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(dir.path().join("old"), &path).unwrap();
        assert!(log.reopen().is_err() && LogFile::open(path, 0).is_err());
        log.write(b"5");
        assert_eq!(read("old"), "one\ntwo\n");
        assert!(LogFile::open(dir.path().to_owned(), 0).is_err());
        let log = LogFile::open(dir.path().join("a/b/0.log"), 0).unwrap();
        log.write(b"6");
        assert_eq!(read("a/b/0.log"), "6");
    }
}
