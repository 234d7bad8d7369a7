//! The output of containers whose shim writes no log of its own: to a file in the CRI's format, and to whoever is
//! attached.
//!
//! Our own shim does this itself (`cri-log://`), so that it goes on while the daemon is away. For others, such as
//! runc's, the daemon reads the FIFOs: [`copier`] copies, [`lines`] cuts lines, [`file`](mod@file) writes and is
//! reopened. What is in a FIFO survives the daemon; a container that fills one waits for the next daemon.
//!
//! ```text
//! 2026-11-21T15:04:05.999999999Z stdout F a whole line
//! 2026-11-21T15:04:06Z stderr P a part of a long line
//! ```
//!
//! The limits are in [`crate::limits`].

pub mod copier;
pub mod file;
pub mod lines;

pub use copier::Copier;
pub use file::LogFile;
pub use lines::Lines;
