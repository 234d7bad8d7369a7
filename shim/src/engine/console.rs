//! Owns the socket on which an OCI runtime hands over the pty of a process (`--console-socket`).

use std::cell::Cell;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};

use crate::error::{Context, Error, Result};

thread_local! {
    static NEXT: Cell<u32> = const { Cell::new(0) };
}

/// A listening socket in a directory of its own, which goes with it. Bundle paths may be longer than a socket's name.
#[derive(Debug)]
pub(super) struct ConsoleSocket {
    dir: PathBuf,
    listener: UnixListener,
}

// === impl ConsoleSocket ===

impl ConsoleSocket {
    pub(super) fn new() -> Result<Self> {
        const WHAT: &str = "failed to create OCI runtime console socket";
        let number = NEXT.replace(NEXT.get().wrapping_add(1));
        let name = format!("corten-pty-{}-{number}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        // Fails when somebody else made it.
        let made = std::fs::DirBuilder::new().mode(0o700).create(&dir);
        made.context(WHAT)?;
        match UnixListener::bind(dir.join("s")) {
            Ok(listener) => Ok(Self { dir, listener }),
            Err(e) => {
                let _ = std::fs::remove_dir(&dir);
                Err(e).context(WHAT)
            }
        }
    }

    pub(super) fn path(&self) -> String {
        self.dir.join("s").to_string_lossy().into_owned()
    }

    /// The pty's master, from the first who connects.
    pub(super) async fn receive(&self) -> Result<OwnedFd> {
        const WHAT: &str = "failed to retrieve console master";
        let (stream, _) = self.listener.accept().await.context(WHAT)?;
        loop {
            stream.readable().await.context(WHAT)?;
            match stream.try_io(Interest::READABLE, || take(&stream)) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Ok(Some(master)) => return Ok(master),
                Ok(None) => return Err(Error::unknown(format!("{WHAT}: none was sent"))),
                Err(e) => return Err(e).context(WHAT),
            }
        }
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.dir.join("s"));
        let _ = std::fs::remove_dir(&self.dir);
    }
}

fn take(stream: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut name = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let mut bytes = [io::IoSliceMut::new(&mut name)];
    recvmsg(stream.as_fd(), &mut bytes, &mut control, flags)?;
    let mut master = None;
    for item in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = item {
            master = fds.last();
        }
    }
    Ok(master)
}
