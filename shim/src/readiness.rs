//! Owns putting descriptors into the event loop.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Watches an owned descriptor.
///
/// tokio deprecates the safe constructor because a `T` could change its descriptor behind the loop's back, and offers
/// an unsafe one instead. An `OwnedFd` cannot: it is open, and the same, until it is dropped.
#[allow(deprecated)]
pub(crate) fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, interest)
}
