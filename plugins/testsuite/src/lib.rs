//! Conformance suites: what every implementation of a contract must do, written once.
//!
//! Each suite takes a factory that opens an implementation in a given folder and runs every case in a folder of its own,
//! opening it a second time where a restart matters. A failed expectation panics with the case's name in the thread's
//! output. Cases that mount need root and say so when they are skipped.

#![expect(
    clippy::unwrap_used,
    reason = "a test library: a failed step is a failed test"
)]
#![expect(clippy::print_stderr, reason = "test output")]

pub mod content;
pub mod differ;
pub mod memory;
pub mod snapshotter;

/// Whether this process may mount; prints why not.
pub fn can_mount(suite: &str) -> bool {
    // Cheapest proof: mount a tmpfs somewhere private.
    let dir = tempfile::tempdir().unwrap();
    let tmpfs = corten_core::Mount {
        r#type: "tmpfs".into(),
        source: "tmpfs".into(),
        ..Default::default()
    };
    match corten_sys::mount::with_temp_mount(&[tmpfs], Some(dir.path()), |_| Ok(())) {
        Ok(()) => true,
        Err(e) => {
            eprintln!("{suite}: skipped, mounts are not permitted here (run as root): {e}");
            false
        }
    }
}
