//! Fixtures of the behaviour tests: the daemon under test, ctr, processes, images, registries and
//! the leak check.
//!
//! The same tests run against Corten and against stock containerd (`CORTEN_UNDER_TEST`), so the
//! tests themselves are proven. A fixture that cannot do its work panics with what it tried: the
//! test that asked for it fails, and every fixture cleans up when dropped, also then.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "all of this is test code: a panic is a failed test"
)]

pub mod case;
pub mod cgroup;
pub mod commands;
pub mod consistency;
pub mod ctr;
pub mod daemon;
pub mod images;
pub mod leaks;
pub mod peers;
pub mod process;
pub mod registry;
pub mod runner;
pub mod tarball;
pub mod terminal;
