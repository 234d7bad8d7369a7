//! The streams of a container's first process: who writes its log.
//!
//! Our own shim does, and goes on while the daemon is away. For any other shim the daemon does, from FIFOs.

use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;

use corten_core::Result;
use corten_core::runtime::Stdio;

use super::fifos::{Fifos, Wanted, folder};
use crate::cri::Cri;
use crate::logs::copier::Ends;
use crate::logs::{Copier, LogFile};
use crate::store::Container;

/// The runtime whose shim writes logs.
const CORTEN: &str = "io.containerd.corten.v2";
/// The scheme of logs that it writes.
const SCHEME: &str = "cri-log://";

/// Streams that were prepared for a task which is to be created.
pub(super) struct Prepared {
    pub(super) stdio: Stdio,
    /// What the daemon is to copy, once the task is created.
    ours: Option<(Ends, Option<Arc<LogFile>>)>,
}

/// Whether a task's shim writes the log.
pub(super) fn is_shims(stdio: &Stdio) -> bool {
    stdio.stdout.starts_with(SCHEME)
}

impl Cri {
    /// Prepares the streams of a container.
    ///
    /// # Errors
    /// The file system's, of FIFOs and log.
    pub(super) async fn prepare_streams(
        &self,
        container: &Container,
        runtime_type: &str,
    ) -> Result<Prepared> {
        let (log_path, tty, stdin) = {
            let metadata = container.metadata.read();
            let config = &metadata.config;
            (metadata.log_path.clone(), config.tty, config.stdin)
        };
        let shims = runtime_type == CORTEN;
        let wanted = Wanted {
            tty,
            stdin,
            stdout: !shims,
            stderr: !shims,
        };
        let dir = folder(&self.container_state(&container.id));
        let fifos = Fifos::make(&dir, &container.id, wanted)?.keep();
        let mut stdio = fifos.stdio();
        if shims {
            stdio.stdout = log_uri(
                &log_path,
                self.runtime.max_container_log_line_size,
                self.max_log_size(),
            );
            return Ok(Prepared { stdio, ours: None });
        }
        let ends = fifos.open()?;
        let log = self.open_log(&log_path).await?;
        Ok(Prepared {
            stdio,
            ours: Some((ends, log)),
        })
    }

    /// Goes on copying the output of a task of an earlier daemon.
    ///
    /// # Errors
    /// The file system's, of FIFOs and log.
    pub(super) async fn resume_streams(&self, container: &Container, stdio: &Stdio) -> Result<()> {
        if is_shims(stdio) {
            return Ok(());
        }
        let log_path = container.metadata.read().log_path.clone();
        let log = self.open_log(&log_path).await?;
        let ends = Fifos::of(stdio).open()?;
        self.copy_streams(container, ends, log);
        Ok(())
    }

    /// Copies what was prepared: the task is created now.
    pub(super) fn start_streams(&self, container: &Container, prepared: Prepared) {
        if let Some((ends, log)) = prepared.ours {
            self.copy_streams(container, ends, log);
        }
    }

    fn copy_streams(&self, container: &Container, ends: Ends, log: Option<Arc<LogFile>>) {
        let max_line = self.runtime.max_container_log_line_size;
        let log = log.map(|file| (file, self.metrics.logs.clone()));
        let copier = Copier::start(&self.background, ends, log, max_line);
        *container.io.write() = Some(Arc::new(copier));
    }

    async fn open_log(&self, path: &str) -> Result<Option<Arc<LogFile>>> {
        if path.is_empty() {
            return Ok(None);
        }
        let (path, max_size) = (Path::new(path).to_owned(), self.max_log_size());
        let log = corten_sys::blocking(move || LogFile::open(path, max_size)).await?;
        Ok(Some(Arc::new(log)))
    }

    fn max_log_size(&self) -> u64 {
        u64::try_from(self.runtime.max_container_log_size).unwrap_or(0)
    }
}

/// A log for our shim. An empty path keeps none, but can be attached to.
fn log_uri(path: &str, max_line: i64, max_size: u64) -> String {
    let mut uri = String::from(SCHEME);
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' | b'~' => {
                uri.push(byte.into());
            }
            // Writing to a string cannot fail.
            _ => drop(write!(uri, "%{byte:02X}")),
        }
    }
    let max_line = if max_line > 0 { max_line } else { -1 };
    let _ = write!(uri, "?max-line={max_line}&max-size={max_size}");
    uri
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_named_as_our_shim_reads_it() {
        let check = |path, line, size, want: &str| assert_eq!(log_uri(path, line, size), want);
        check(
            "/var/log/pods/a_b/0.log",
            16384,
            0,
            "cri-log:///var/log/pods/a_b/0.log?max-line=16384&max-size=0",
        );
        check("", -1, 9, "cri-log://?max-line=-1&max-size=9");
        check(
            "/a b?%&",
            0,
            0,
            "cri-log:///a%20b%3F%25%26?max-line=-1&max-size=0",
        );
        check("/ä", 1, 0, "cri-log:///%C3%A4?max-line=1&max-size=0");
    }
}
