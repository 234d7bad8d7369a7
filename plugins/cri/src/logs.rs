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
//! | what | limit |
//! |---|---|
//! | a line | `max_container_log_line_size`, 16,384 bytes; a longer one is cut; not positive: none |
//! | a file | `max_container_log_size`; then it is renamed to `<name>.1`; not positive: none |
//! | an attached client that takes nothing | 16 parts of 32 KiB, then 10 s; then it is left |

pub mod copier;
pub mod file;
pub mod lines;

pub use copier::Copier;
pub use file::LogFile;
pub use lines::Lines;
