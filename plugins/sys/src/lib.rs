//! System calls that the daemon needs and its other crates may not make themselves: mounts, FIFOs, xattrs, safe path
//! resolution, tree walks. The daemon's only `unsafe` is in [`environment`], [`idmap`], [`loopdev`], [`netns`], [`payload`] and [`seal`],
//! where no safe wrapper exists.
//!
//! Everything here blocks. Async callers go through [`blocking`].

pub mod cgroups;
pub mod copy;
pub mod environment;
pub mod fifo;
pub mod idmap;
pub mod image;
pub mod loopdev;
pub mod mount;
pub mod mountinfo;
pub mod netns;
pub mod options;
pub mod overlay;
pub mod payload;
pub mod root;
pub mod seal;
pub mod tree;
pub mod userns;
pub mod xattr;

pub use root::Root;

use corten_core::{Error, Result};

/// Runs `f` on the blocking pool; a panic in it becomes an Internal error and stays there.
///
/// The work is not cancelled when the caller's future is dropped: it runs to its end and its result is dropped.
///
/// # Errors
/// Those of `f`; Internal when it panicked or the runtime is going down.
pub async fn blocking<T, F>(f: F) -> Result<T>
where
    F: FnOnce() -> Result<T> + Send + 'static,
    T: Send + 'static,
{
    match tokio::task::spawn_blocking(f).await {
        Ok(result) => result,
        Err(e) if e.is_panic() => {
            let panic = e.into_panic();
            let text = panic
                .downcast_ref::<&str>()
                .map(|s| (*s).to_owned())
                .or_else(|| panic.downcast_ref::<String>().cloned())
                .unwrap_or_default();
            Err(Error::internal(format!("blocking work panicked: {text}")))
        }
        Err(_) => Err(Error::new(
            corten_core::Kind::Canceled,
            "the daemon is stopping",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_becomes_an_error() {
        let e = blocking::<(), _>(|| panic!("boom")).await.unwrap_err();
        assert_eq!(e.kind(), corten_core::Kind::Internal);
        assert!(e.to_string().contains("boom"), "{e}");
    }
}
