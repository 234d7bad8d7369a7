//! Owns `linux.netDevices`: interfaces of the host that move into the container's network, with their addresses.
//!
//! Spoken in route netlink, whose few messages are laid out here: the kernel answers each at once.

use crate::namespaces::{Kinds, NEWNET};
use crate::{Error, Result, Spec};
use corten_launch::net;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

const NEWLINK: u16 = 16;
const GETLINK: u16 = 18;
const NEWADDR: u16 = 20;
const GETADDR: u16 = 22;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const CREATE_NEW: u16 = 0x600;
const IFLA_IFNAME: u16 = 3;
const IFLA_NET_NS_FD: u16 = 28;
/// Attributes of an address that do not depend on where it is: address, local, broadcast, flags.
const ADDRESS: [u16; 4] = [1, 2, 4, 8];
const UP: u32 = 1;
const PERMANENT: u8 = 0x80;
const HEADER: usize = 16;

/// A request in the making; the length is put in last.
struct Request(Vec<u8>);

/// An answer: its type and what follows the header.
struct Answer {
    kind: u16,
    body: Vec<u8>,
}

/// Refuses what the kernel would, before anything is made.
pub(crate) fn check(spec: &Spec, kinds: Kinds) -> Result<()> {
    let devices = &spec.linux.net_devices;
    if devices.is_empty() {
        return Ok(());
    }
    if !kinds.has(NEWNET) {
        return Err(Error::invalid(
            "unable to move network devices without a private NET namespace",
        ));
    }
    let bad = |name: &str| {
        name.is_empty()
            || name.len() > 15
            || matches!(name, "." | "..")
            || name.contains(|c: char| c == '/' || c == ':' || c == '\0' || c.is_whitespace())
    };
    let mut seen: Vec<&str> = Vec::new();
    for (host, device) in devices {
        let name = if device.name.is_empty() {
            host
        } else {
            &device.name
        };
        if bad(host) || bad(name) {
            return Err(Error::invalid(format!(
                "invalid network device name {host:?}, {name:?}"
            )));
        }
        if seen.contains(&name.as_str()) {
            return Err(Error::invalid(format!(
                "two network devices get the name {name:?}"
            )));
        }
        seen.push(name);
    }
    Ok(())
}

/// Moves every device of the spec into the network namespace of process `pid`, which is not yet running its program.
/// A device that was moved stays there, whatever becomes of the next one.
pub fn attach(spec: &Spec, pid: i32) -> Result<()> {
    let devices = &spec.linux.net_devices;
    if devices.is_empty() {
        return Ok(());
    }
    let fail = |e: std::io::Error| Error::system("move network devices", e);
    let netns = File::open(format!("/proc/{pid}/ns/net")).map_err(fail)?;
    let outside = net::route_socket().map_err(fail)?;
    let inside = net::route_socket_in(netns.as_fd()).map_err(fail)?;
    for (host, device) in devices {
        let name = if device.name.is_empty() {
            host
        } else {
            &device.name
        };
        one(&outside, &inside, &netns, host, name)
            .map_err(|e| Error::system(format!("move network device {host:?} as {name:?}"), e))?;
    }
    Ok(())
}

fn one(
    outside: &OwnedFd,
    inside: &OwnedFd,
    netns: &File,
    host: &str,
    name: &str,
) -> Result<(), Errno> {
    let index = index_of(outside, host)?;
    let addresses = addresses(outside, index)?;
    let fd = std::os::fd::AsRawFd::as_raw_fd(netns);
    let change = Request::link(NEWLINK, ACK, index, 0)
        .attribute(IFLA_NET_NS_FD, &fd.to_ne_bytes())
        .attribute(IFLA_IFNAME, &zero_ended(name));
    call(outside, change)?;
    let index = index_of(inside, name)?;
    for address in addresses {
        let mut body = address;
        body.splice(4..8, index.to_ne_bytes());
        call(inside, Request::new(NEWADDR, ACK | CREATE_NEW, &body))?;
    }
    call(inside, Request::link(NEWLINK, ACK, index, UP)).map(drop)
}

fn index_of(socket: &OwnedFd, name: &str) -> Result<i32, Errno> {
    let request = Request::link(GETLINK, 0, 0, 0).attribute(IFLA_IFNAME, &zero_ended(name));
    let answers = call(socket, request)?;
    let link = answers.iter().find(|a| a.kind == NEWLINK);
    let index = link.and_then(|a| a.body.get(4..8)?.try_into().ok());
    index.map(i32::from_ne_bytes).ok_or(Errno::NODEV)
}

/// The permanent global addresses of an interface, as bodies of NEWADDR.
fn addresses(socket: &OwnedFd, index: i32) -> Result<Vec<Vec<u8>>, Errno> {
    let answers = call(socket, Request::new(GETADDR, DUMP, &[0; 8]))?;
    let mut list = Vec::new();
    for answer in answers.iter().filter(|a| a.kind == NEWADDR) {
        let Some(&[family, prefix, flags, 0, i0, i1, i2, i3]) = answer.body.first_chunk() else {
            continue;
        };
        if i32::from_ne_bytes([i0, i1, i2, i3]) != index || flags & PERMANENT == 0 {
            continue;
        }
        let mut body = vec![family, prefix, flags, 0, 0, 0, 0, 0];
        for (kind, value) in attributes(answer.body.get(8..).unwrap_or(&[])) {
            if ADDRESS.contains(&kind) {
                push_attribute(&mut body, kind, value);
            }
        }
        list.push(body);
    }
    Ok(list)
}

/// Sends a request and collects what answers it, up to its acknowledgement, its end or its single answer.
fn call(socket: &OwnedFd, request: Request) -> Result<Vec<Answer>, Errno> {
    let (request, single) = request.finish();
    send(socket, &request, SendFlags::empty())?;
    let mut answers = Vec::new();
    let mut buffer = vec![0u8; 32 << 10];
    loop {
        let (n, _) = recv(socket, buffer.as_mut_slice(), RecvFlags::empty())?;
        let mut rest = buffer.get(..n).unwrap_or(&[]);
        while let Some((kind, body, next)) = message(rest) {
            rest = next;
            match kind {
                DONE => return Ok(answers),
                ERROR => {
                    let code = body.first_chunk().map_or(0, |c| i32::from_ne_bytes(*c));
                    return match code {
                        0 => Ok(answers),
                        code => Err(Errno::from_raw_os_error(-code)),
                    };
                }
                _ => {}
            }
            answers.push(Answer {
                kind,
                body: body.to_vec(),
            });
        }
        if single && !answers.is_empty() {
            return Ok(answers);
        }
    }
}

fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let len = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let body = bytes.get(HEADER..len)?;
    Some((
        kind,
        body,
        bytes.get(len.next_multiple_of(4)..).unwrap_or(&[]),
    ))
}

fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?);
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

fn push_attribute(to: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let len = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    to.extend_from_slice(&len.to_ne_bytes());
    to.extend_from_slice(&kind.to_ne_bytes());
    to.extend_from_slice(value);
    to.resize(to.len().next_multiple_of(4), 0);
}

fn zero_ended(name: &str) -> Vec<u8> {
    [name.as_bytes(), b"\0"].concat()
}

// === impl Request ===

impl Request {
    fn new(kind: u16, flags: u16, body: &[u8]) -> Self {
        const REQUEST: u16 = 1;
        let mut bytes = vec![0; HEADER];
        bytes.splice(4..6, kind.to_ne_bytes());
        bytes.splice(6..8, (flags | REQUEST).to_ne_bytes());
        bytes.extend_from_slice(body);
        Self(bytes)
    }

    /// A request about an interface, by number, or by an attribute to come. `on` are flags to set.
    fn link(kind: u16, flags: u16, index: i32, on: u32) -> Self {
        let mut body = vec![0; 4];
        body.extend_from_slice(&index.to_ne_bytes());
        body.extend_from_slice(&on.to_ne_bytes());
        body.extend_from_slice(&on.to_ne_bytes());
        Self::new(kind, flags, &body)
    }

    fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        push_attribute(&mut self.0, kind, value);
        self
    }

    /// The bytes, and whether a single message answers them.
    fn finish(mut self) -> (Vec<u8>, bool) {
        let len = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0.splice(0..4, len.to_ne_bytes());
        let flags = self.0.get(6..8).and_then(|f| f.try_into().ok());
        let flags = flags.map_or(0, u16::from_ne_bytes);
        (self.0, flags & (ACK | DUMP) == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_attributes() {
        let (bytes, single) = Request::link(GETLINK, 0, 7, 0)
            .attribute(IFLA_IFNAME, &zero_ended("eth0"))
            .finish();
        assert!(single && bytes.len() == 16 + 16 + 12);
        let (kind, body, rest) = message(&bytes).expect("whole");
        assert_eq!((kind, body.len(), rest.len()), (GETLINK, 28, 0));
        let list: Vec<_> = attributes(body.get(16..).expect("some")).collect();
        assert_eq!(list, [(IFLA_IFNAME, &b"eth0\0"[..])]);
        assert!(message(&bytes[..20]).is_none() && attributes(&[1, 0, 0, 0]).next().is_none());
        // Loopback is everywhere.
        let socket = net::route_socket().expect("socket");
        assert_eq!(index_of(&socket, "lo"), Ok(1));
        assert_eq!(index_of(&socket, "no-such-dev"), Err(Errno::NODEV));
    }
}
