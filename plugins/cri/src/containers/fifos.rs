//! The FIFOs of a process, below its container's folder in the state directory.
//!
//! Our ends are opened before the shim opens its own, without waiting for it, and read only after it has: a FIFO that
//! nobody has opened for writing looks like its end. The end for input is held read-write, so that it can be there
//! first as well; giving it up is the end of input.

use std::path::{Path, PathBuf};

use corten_core::runtime::Stdio;
use corten_core::{Context, Result};
use tokio::net::unix::pipe;

use crate::logs::copier::Ends;

/// Which streams a process is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) tty: bool,
    pub(super) stdin: bool,
    pub(super) stdout: bool,
    pub(super) stderr: bool,
}

/// FIFOs by their paths. Removed with this value unless they are kept.
#[derive(Debug)]
pub(super) struct Fifos {
    stdin: Option<PathBuf>,
    stdout: Option<PathBuf>,
    stderr: Option<PathBuf>,
    tty: bool,
    kept: bool,
}

/// Where they are, for a container's folder in the state directory.
pub(super) fn folder(volatile: &Path) -> PathBuf {
    volatile.join("io")
}

impl Fifos {
    /// Makes those that are wanted: `<dir>/<name>-stdin` and so on. Those that are there already are used. Quick: no
    /// disk is involved.
    ///
    /// # Errors
    /// The file system's.
    pub(super) fn make(dir: &Path, name: &str, wanted: Wanted) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        let mut made = Self {
            stdin: None,
            stdout: None,
            stderr: None,
            tty: wanted.tty,
            kept: false,
        };
        let slots = [
            (wanted.stdin, "stdin", &mut made.stdin),
            (wanted.stdout, "stdout", &mut made.stdout),
            (wanted.stderr && !wanted.tty, "stderr", &mut made.stderr),
        ];
        let mut failed = None;
        for (want, stream, slot) in slots {
            let path = dir.join(format!("{name}-{stream}"));
            if !want || failed.is_some() {
                continue;
            }
            match corten_sys::fifo::create(&path, 0o700) {
                Ok(()) => *slot = Some(path),
                Err(e) => failed = Some(e),
            }
        }
        match failed {
            Some(e) => Err(e),
            None => Ok(made),
        }
    }

    /// Those that a task of an earlier daemon has.
    pub(super) fn of(stdio: &Stdio) -> Self {
        let path = |uri: &str| {
            let path = uri.strip_prefix("fifo://").unwrap_or(uri);
            path.starts_with('/').then(|| PathBuf::from(path))
        };
        Self {
            stdin: path(&stdio.stdin),
            stdout: path(&stdio.stdout),
            stderr: path(&stdio.stderr).filter(|_| !stdio.terminal),
            tty: stdio.terminal,
            kept: true,
        }
    }

    /// They stay when this value goes: as long as the container's folder.
    #[must_use]
    pub(super) fn keep(mut self) -> Self {
        self.kept = true;
        self
    }

    /// Opens our ends. Needs a tokio runtime.
    ///
    /// # Errors
    /// The file system's.
    pub(super) fn open(&self) -> Result<Ends> {
        let what = |path: &Path| format!("open fifo {}", path.display());
        let read = |path: &Option<PathBuf>| match path {
            None => Ok(None),
            Some(path) => pipe::OpenOptions::new()
                .open_receiver(path)
                .with_context(|| what(path))
                .map(Some),
        };
        let stdin = match &self.stdin {
            None => None,
            Some(path) => Some(
                pipe::OpenOptions::new()
                    .read_write(true)
                    .open_sender(path)
                    .with_context(|| what(path))?,
            ),
        };
        Ok(Ends {
            stdin,
            stdout: read(&self.stdout)?,
            stderr: read(&self.stderr)?,
        })
    }

    /// As a task is told of them.
    pub(super) fn stdio(&self) -> Stdio {
        let text = |path: &Option<PathBuf>| {
            path.as_ref()
                .map(|p| p.to_string_lossy().into_owned())
                .unwrap_or_default()
        };
        Stdio {
            stdin: text(&self.stdin),
            stdout: text(&self.stdout),
            stderr: text(&self.stderr),
            terminal: self.tty,
        }
    }
}

impl Drop for Fifos {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        for path in [&self.stdin, &self.stdout, &self.stderr]
            .into_iter()
            .flatten()
        {
            if let Err(error) = std::fs::remove_file(path) {
                tracing::debug!(path = %path.display(), %error, "remove a fifo");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn they_are_made_opened_first_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let io = folder(dir.path());
        let wanted = Wanted {
            tty: false,
            stdin: true,
            stdout: true,
            stderr: false,
        };
        let fifos = Fifos::make(&io, "x", wanted).unwrap();
        let ends = fifos.open().unwrap();
        assert!(ends.stdin.is_some() && ends.stdout.is_some() && ends.stderr.is_none());
        assert_eq!(fifos.stdio().stdout, io.join("x-stdout").to_string_lossy());
        assert_eq!(fifos.stdio().stderr, "");
        assert_eq!(Fifos::of(&fifos.stdio()).stdio(), fifos.stdio());
        drop(fifos);
        assert_eq!(std::fs::read_dir(&io).unwrap().count(), 0);
        let tty = Wanted {
            tty: true,
            stderr: true,
            ..wanted
        };
        let fifos = Fifos::make(&io, "y", tty).unwrap().keep();
        assert!(fifos.stdio().terminal && fifos.stdio().stderr.is_empty());
        drop(fifos);
        assert_eq!(std::fs::read_dir(&io).unwrap().count(), 2);
    }
}
