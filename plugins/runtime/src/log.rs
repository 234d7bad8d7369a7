//! A shim's log: the `log` FIFO of its bundle, copied line by line into the daemon's own log.
//!
//! The reading end is held read-write, so that the shim never meets a FIFO without reader while the daemon runs, and
//! no end of file is seen between two writers. A shim must not block on it either: it is read even when debug lines
//! are thrown away.

use corten_core::Result;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tracing::{debug, info, warn};

use crate::bundle::Bundle;

/// Longest line kept in one piece, in bytes.
const LINE: usize = 16 << 10;

/// Makes and opens the FIFO.
pub(crate) fn open(bundle: &Bundle) -> Result<pipe::Receiver> {
    let path = bundle.path.join("log");
    corten_sys::fifo::create(&path, 0o700).map_err(|e| e.context("open shim log pipe"))?;
    corten_sys::fifo::open_reader(&path).map_err(|e| e.context("open shim log pipe"))
}

/// Copies until the shim's connection ended and what it wrote before is read.
pub(crate) async fn copy(mut log: pipe::Receiver, id: String, mut ended: watch::Receiver<bool>) {
    let mut pending = Vec::new();
    let mut chunk = vec![0; 4 << 10];
    loop {
        let read = tokio::select! {
            read = log.read(&mut chunk) => read,
            _ = ended.wait_for(|e| *e) => log.try_read(&mut chunk),
        };
        match read {
            Ok(0) | Err(_) => break,
            Ok(n) => pending.extend_from_slice(&chunk[..n]),
        }
        while let Some(end) = pending.iter().position(|b| *b == b'\n') {
            emit(&id, &pending[..end]);
            pending.drain(..=end);
        }
        if pending.len() > LINE {
            emit(&id, &pending);
            pending.clear();
        }
    }
    emit(&id, &pending);
}

fn emit(id: &str, line: &[u8]) {
    let line = String::from_utf8_lossy(line);
    let line = line.trim_end();
    if line.is_empty() {
        return;
    }
    let says = |level: &str| {
        line.contains(&format!("level={level}")) || line.contains(&format!("\"level\":\"{level}\""))
    };
    if says("debug") || says("trace") {
        debug!(container.id = id, line, "shim");
    } else if says("warning") || says("error") || says("fatal") || says("panic") {
        warn!(container.id = id, line, "shim");
    } else {
        info!(container.id = id, line, "shim");
    }
}
