//! `lo` of a pod, brought up without a plugin: one netlink message, sent by a thread that has entered the pod's
//! network namespace and ends there.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use corten_core::{Context, Error, Kind, Result};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// `statfs` type of namespace files.
const NSFS_MAGIC: i64 = 0x6e73_6673;
const RTM_NEWLINK: u16 = 16;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const IFF_UP: u32 = 1;
const IFLA_IFNAME: u16 = 3;

/// A network namespace's file, or none when there is no such file or it is not (or no longer) a namespace: a mount
/// point whose namespace went with a reboot is an empty plain file.
///
/// # Errors
/// Of opening it, but for NotFound.
pub fn open_namespace(path: &Path) -> Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(e) => {
            return Err(Error::from(std::io::Error::from(e))
                .context(format!("open network namespace {}", path.display())));
        }
    };
    let stat = rustix::fs::fstatfs(&fd).map_err(std::io::Error::from);
    let stat = stat.with_context(|| format!("look at {}", path.display()))?;
    #[allow(
        clippy::unnecessary_cast,
        reason = "the field's type differs between architectures"
    )]
    let magic = stat.f_type as i64;
    Ok((magic == NSFS_MAGIC).then_some(fd))
}

/// Sets `lo` of the namespace at `path` up; the kernel gives it its addresses. Blocks.
///
/// # Errors
/// FailedPrecondition when there is no such namespace; those of the kernel.
pub fn up(path: &Path) -> Result<()> {
    let namespace = open_namespace(path)?
        .ok_or_else(|| Error::precondition(format!("network namespace {}", path.display())))?;
    // A thread of its own: one that entered another namespace is never used for anything else.
    let work = std::thread::Builder::new()
        .name("cni-loopback".into())
        .spawn(move || enter_and_set_up(&namespace))
        .context("start a thread for loopback")?;
    let done = work
        .join()
        .unwrap_or_else(|_| Err(Error::internal("loopback thread panicked")));
    done.with_context(|| format!("bring lo up in {}", path.display()))
}

fn enter_and_set_up(namespace: &OwnedFd) -> Result<()> {
    let io = |e: rustix::io::Errno| Error::from(std::io::Error::from(e));
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).map_err(io)?;
    // No protocol is NETLINK_ROUTE.
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(io)?;
    rustix::net::send(&socket, &request(), SendFlags::empty()).map_err(io)?;
    let mut answer = [0u8; 4096];
    let (_, length) = rustix::net::recv(&socket, &mut answer, RecvFlags::empty()).map_err(io)?;
    read_ack(answer.get(..length).unwrap_or(&answer))
}

/// `nlmsghdr`, `ifinfomsg` and one attribute, all in the machine's byte order.
fn request() -> Vec<u8> {
    const LENGTH: u32 = 16 + 16 + 8;
    let mut m = Vec::with_capacity(LENGTH as usize);
    m.extend(LENGTH.to_ne_bytes());
    m.extend(RTM_NEWLINK.to_ne_bytes());
    m.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    m.extend(1u32.to_ne_bytes()); // sequence
    m.extend(0u32.to_ne_bytes()); // port: the kernel
    m.extend([0; 4]); // family, padding, type
    m.extend(0u32.to_ne_bytes()); // index: found by name
    m.extend(IFF_UP.to_ne_bytes()); // flags
    m.extend(IFF_UP.to_ne_bytes()); // which of them change
    m.extend(7u16.to_ne_bytes());
    m.extend(IFLA_IFNAME.to_ne_bytes());
    m.extend(b"lo\0\0"); // 3 bytes, padded to 4
    m
}

/// The kernel's answer: an error message whose number is 0 for success.
fn read_ack(answer: &[u8]) -> Result<()> {
    let word = |at: usize| {
        answer
            .get(at..at + 4)?
            .try_into()
            .ok()
            .map(i32::from_ne_bytes)
    };
    let kind = answer
        .get(4..6)
        .and_then(|b| b.try_into().ok())
        .map(u16::from_ne_bytes);
    match (kind, word(16)) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(n)) => Err(std::io::Error::from_raw_os_error(-n).into()),
        _ => Err(Error::new(Kind::Internal, "netlink gave no answer")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_namespace_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let plain = dir.path().join("plain");
        std::fs::write(&plain, "").unwrap();
        assert!(open_namespace(&plain).unwrap().is_none());
        assert!(
            open_namespace(&dir.path().join("absent"))
                .unwrap()
                .is_none()
        );
        assert!(
            open_namespace(Path::new("/proc/self/ns/net"))
                .unwrap()
                .is_some()
        );
        assert_eq!(up(&plain).unwrap_err().kind(), Kind::FailedPrecondition);
    }

    #[test]
    fn answers_are_judged() {
        assert_eq!(request().len(), 40);
        let answer = |kind: u16, n: i32| {
            let mut a = vec![36, 0, 0, 0];
            a.extend(kind.to_ne_bytes());
            a.extend([0; 10]);
            a.extend(n.to_ne_bytes());
            a
        };
        read_ack(&answer(NLMSG_ERROR, 0)).unwrap();
        let denied = read_ack(&answer(NLMSG_ERROR, -1)).unwrap_err();
        assert_eq!(denied.kind(), Kind::PermissionDenied);
        read_ack(&answer(3, 0)).unwrap_err();
        read_ack(&[]).unwrap_err();
    }
}
