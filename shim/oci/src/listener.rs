//! Owns the hand-over of a seccomp listener to its agent: one connection, one message, the descriptor beside it.

use crate::hooks::State;
use crate::{Error, Result, Spec};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, sendmsg, socket_with,
};
use serde::Serialize;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;

/// The specification's container process state.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ProcessState<'a> {
    oci_version: &'a str,
    fds: [&'a str; 1],
    pid: i32,
    #[serde(skip_serializing_if = "str::is_empty")]
    metadata: &'a str,
    state: &'a State<'a>,
}

/// Who is to get a listener, and what is said of the process it belongs to.
#[derive(Debug, Clone)]
pub struct Agent {
    path: String,
    message: Vec<u8>,
}

// === impl Agent ===

impl Agent {
    /// The agent of a container's processes, told of process `pid`; `None` when no filter of theirs notifies.
    pub fn of(spec: &Spec, pid: i32, state: &State<'_>) -> Result<Option<Self>> {
        let profile = spec.linux.seccomp.as_ref();
        let Some(profile) = profile.filter(|p| !p.listener_path.is_empty()) else {
            return Ok(None);
        };
        let message = serde_json::to_vec(&ProcessState {
            oci_version: &spec.oci_version,
            fds: ["seccompFd"],
            pid,
            metadata: &profile.listener_metadata,
            state,
        })
        .map_err(|e| Error::invalid(format!("seccomp listener: state: {e}")))?;
        let path = profile.listener_path.clone();
        Ok(Some(Self { path, message }))
    }

    /// Gives the listener away. Never waits: an agent that does not take the message at once fails the start.
    pub fn hand_over(&self, listener: BorrowedFd<'_>) -> Result<()> {
        let fail = |e: rustix::io::Errno| {
            Error::system(
                format!("send the seccomp listener to agent {}", self.path),
                e,
            )
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(fail)?;
        let address = SocketAddrUnix::new(self.path.as_str()).map_err(fail)?;
        connect(&socket, &address).map_err(fail)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = [listener];
        if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
            return Err(fail(rustix::io::Errno::NOBUFS));
        }
        let bytes = [IoSlice::new(&self.message)];
        let sent = sendmsg(&socket, &bytes, &mut control, SendFlags::NOSIGNAL).map_err(fail)?;
        if sent < self.message.len() {
            return Err(fail(rustix::io::Errno::AGAIN));
        }
        Ok(())
    }
}
