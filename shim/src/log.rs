//! Owns the log: one logfmt line per fact on stderr, which is the bundle's `log` fifo.
//!
//! The fifo is open for reading and writing and never blocks, so a daemon that went away costs lines, not the shim.

use std::fmt;

use corten_protos::time;

/// Writes one line; what does not fit into the pipe is dropped.
pub(crate) fn line(level: &str, message: fmt::Arguments<'_>) {
    let text = format!(
        "time={:?} level={level} msg={:?} runtime=io.containerd.corten.v2\n",
        time::rfc3339(&time::now()),
        message.to_string(),
    );
    // The only place to report a failed write would be this very log.
    let _ = rustix::io::write(rustix::stdio::stderr(), text.as_bytes());
}

macro_rules! info {
    ($($arg:tt)*) => { crate::log::line("info", format_args!($($arg)*)) };
}
macro_rules! warning {
    ($($arg:tt)*) => { crate::log::line("warning", format_args!($($arg)*)) };
}
macro_rules! failure {
    ($($arg:tt)*) => { crate::log::line("error", format_args!($($arg)*)) };
}
pub(crate) use {failure, info, warning};
