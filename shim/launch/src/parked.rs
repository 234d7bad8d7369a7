//! Owns the parent's half of a launch: clone, the status channel, the gate, and reaping.

use crate::Plan;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Where the child is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// Nothing new: poll [`Parked::status_fd`] for reading.
    Pending,
    /// Waits in `Op::Rendezvous(n)` for [`Parked::proceed`].
    Rendezvous(u32),
    /// Waits at its gate for [`Parked::open_gate`]: the OCI state "created".
    Ready,
    /// The exec happened: the OCI state "running".
    Running,
    /// The child has ended or is about to; reap it by its pidfd.
    Failed(Failure),
}

/// Why a launch failed, in a form a caller can branch on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub kind: Kind,
    /// Index of the step; `steps.len()` for the exec itself.
    pub op: usize,
    pub errno: i32,
    /// Complete message, worded as runc's clients expect it.
    pub text: String,
}

/// Class of a [`Failure`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A step failed: the container could not be set up.
    Setup,
    /// The executable is missing (exit status 127 by convention).
    NotFound,
    /// The executable may not be executed (exit status 126 by convention).
    NotExecutable,
    /// The child ended without a word, for instance by SIGKILL.
    Died,
}

/// A process that has not executed its program yet.
#[derive(Debug)]
pub struct Parked {
    pid: i32,
    pidfd: OwnedFd,
    channel: OwnedFd,
    console: Option<OwnedFd>,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Exit status, or 128 + signal.
    pub code: u32,
    pub signal: Option<i32>,
}

/// Clones the child of `plan` and lets it run to its first rendezvous or its gate. Does not block,
/// save for the moment a re-fork into a pid namespace needs. Call it from a single-threaded process.
pub fn spawn(plan: &Plan) -> io::Result<Parked> {
    let _ = plan;
    unimplemented!()
}

/// Collects the exit of a child whose pidfd is readable; `None` while it still runs.
pub fn reap(pidfd: BorrowedFd<'_>) -> io::Result<Option<Exit>> {
    let _ = pidfd;
    unimplemented!()
}

// === impl Parked ===

impl Parked {
    /// Pid as this process sees it.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Readable once the process has exited; valid for its whole life.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Readable whenever [`Parked::try_status`] has news. Register it once with the event loop.
    pub fn status_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }

    /// Takes the next news without blocking. `Running`, `Failed` are final and repeat.
    pub fn try_status(&mut self) -> io::Result<Status> {
        unimplemented!()
    }

    /// Blocks until there is news. For tests and one-shot commands.
    pub fn wait_status(&mut self) -> io::Result<Status> {
        unimplemented!()
    }

    /// Lets a child go on from `Status::Rendezvous`.
    pub fn proceed(&mut self) -> io::Result<()> {
        unimplemented!()
    }

    /// Lets a child exec from `Status::Ready`.
    pub fn open_gate(&mut self) -> io::Result<()> {
        self.proceed()
    }

    /// The pty master that came with the news, when the plan asked for a terminal:
    /// available from `Status::Ready` on (and already at a rendezvous after it was opened).
    pub fn take_console(&mut self) -> Option<OwnedFd> {
        self.console.take()
    }

    /// SIGKILL through the pidfd.
    pub fn kill(&self) -> io::Result<()> {
        unimplemented!()
    }

    /// Keeps only the identity, once `Running` or failed.
    pub fn into_pidfd(self) -> OwnedFd {
        self.pidfd
    }
}
