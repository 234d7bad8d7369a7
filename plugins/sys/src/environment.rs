//! Variables of this process, set for it and for everything it starts.

#![expect(
    unsafe_code,
    reason = "the environment has no lock: its safety is that nobody else is there"
)]

use std::ffi::OsStr;

use corten_core::{Context, Error, Result};

/// Sets a variable. Only while the process has one thread: others may be reading the environment.
///
/// # Errors
/// FailedPrecondition when there are more threads; the kernel's, when they cannot be counted.
#[expect(
    clippy::disallowed_methods,
    reason = "for what this process starts; plugins get values"
)]
pub fn set(name: &str, value: &OsStr) -> Result<()> {
    let threads = std::fs::read_dir("/proc/self/task").context("count threads")?;
    if threads.count() != 1 {
        return Err(Error::precondition(format!(
            "set {name}: the process has threads already"
        )));
    }
    // SAFETY: this thread is the only one, as was just counted, and it starts no other before it returns from here, so
    // nobody reads or writes the environment meanwhile.
    unsafe { std::env::set_var(name, value) };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_threads_is_left_alone() {
        // The test harness has threads.
        let worker = std::thread::spawn(|| set("CORTEN_TEST", OsStr::new("x")));
        let e = worker.join().unwrap().unwrap_err();
        assert_eq!(e.kind(), corten_core::Kind::FailedPrecondition);
        assert!(std::env::var_os("CORTEN_TEST").is_none());
    }
}
