//! Owns the way to a network namespace other than this process's own: a route socket opened inside it.

use crate::sys;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// A route netlink socket that acts on the network namespace behind `netns`.
///
/// This process, being one thread, steps into the namespace for the length of one socket(2). Should the way back be
/// barred it ends: everything it did from there on would happen in the container's network.
pub fn route_socket_in(netns: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let to_io = |e: sys::Errno| io::Error::from_raw_os_error(e.0);
    let own = std::fs::File::open("/proc/self/ns/net")?;
    sys::setns(netns.as_raw_fd(), libc::CLONE_NEWNET as u32).map_err(to_io)?;
    let socket = route_socket();
    if sys::setns(own.as_raw_fd(), libc::CLONE_NEWNET as u32).is_err() {
        std::process::abort();
    }
    socket
}

/// The same in this process's own network namespace.
pub fn route_socket() -> io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::NETLINK,
        rustix::net::SocketType::RAW,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    Ok(socket)
}
