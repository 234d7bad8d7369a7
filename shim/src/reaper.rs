//! Owns child processes: each is followed by its own pidfd; strays that the kernel gave to us as subreaper are swept.
//!
//! No `waitpid(-1)` anywhere: a status is collected only by whoever holds the pidfd, or for a pid nobody follows.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use corten_launch::Exit;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, WaitOptions, pidfd_open, waitid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};

use crate::log;
use crate::readiness::watch;

/// A child's identity: valid for its whole life, whatever becomes of the number.
#[derive(Debug, Clone)]
pub(crate) struct Pidfd {
    pid: i32,
    fd: Rc<AsyncFd<OwnedFd>>,
}

/// The set of followed children.
#[derive(Debug, Default)]
pub(crate) struct Reaper {
    followed: RefCell<BTreeSet<i32>>,
    /// While somebody is about to adopt a stray, none is swept.
    holds: Cell<usize>,
}

/// Keeps every exited stray as it is.
#[derive(Debug)]
pub(crate) struct Hold<'a>(&'a Reaper);

// === impl Pidfd ===

impl Pidfd {
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.get_ref().as_fd()
    }

    /// Sends a signal of any number. ESRCH once the process is gone.
    pub(crate) fn signal(&self, signal: i32) -> io::Result<()> {
        corten_launch::signal(self.as_fd(), signal)
    }
}

// === impl Reaper ===

impl Reaper {
    /// Takes responsibility for a child. Must follow its creation without an await in between.
    pub(crate) fn follow(&self, pid: i32, fd: BorrowedFd<'_>) -> io::Result<Pidfd> {
        let fd = rustix::io::fcntl_dupfd_cloexec(fd, 3)?;
        let fd = watch(fd, Interest::READABLE)?;
        self.followed.borrow_mut().insert(pid);
        Ok(Pidfd {
            pid,
            fd: Rc::new(fd),
        })
    }

    /// Until this is dropped no stray is swept.
    pub(crate) fn hold(&self) -> Hold<'_> {
        self.holds.set(self.holds.get() + 1);
        Hold(self)
    }

    /// Takes responsibility for a stray: a process that somebody else made and left to us. It may have exited already,
    /// under a hold.
    pub(crate) fn adopt(&self, pid: i32) -> io::Result<Pidfd> {
        let number = Some(pid).filter(|pid| *pid > 0).and_then(Pid::from_raw);
        let number = number.ok_or(rustix::io::Errno::SRCH)?;
        let fd = pidfd_open(number, PidfdFlags::empty())?;
        // Fails for a process that is not our child, which could never be waited for.
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        waitid(WaitId::PidFd(fd.as_fd()), look)?;
        self.follow(pid, fd.as_fd())
    }

    /// Leaves a child to the sweep.
    pub(crate) fn forget(&self, pid: i32) {
        self.followed.borrow_mut().remove(&pid);
    }

    /// Waits for the child's end and collects it. Cancel-safe: a status is taken only as the last act.
    pub(crate) async fn exit(&self, child: &Pidfd) -> io::Result<Exit> {
        let outcome = loop {
            match corten_launch::reap(child.as_fd()) {
                Ok(Some(exit)) => break Ok(exit),
                Ok(None) => child.fd.readable().await?.clear_ready(),
                Err(e) => break Err(e),
            }
        };
        self.followed.borrow_mut().remove(&child.pid);
        // It may have hidden strays behind it; see `sweep`.
        self.sweep();
        outcome
    }

    /// Sweeps at each SIGCHLD, for ever.
    pub(crate) async fn sweep_strays(&self) {
        let mut children = match signal(SignalKind::child()) {
            Ok(children) => children,
            Err(e) => {
                log::warning!("listen for SIGCHLD: {e}; orphans will stay zombies");
                return;
            }
        };
        while children.recv().await.is_some() {
            self.sweep();
        }
    }

    /// Collects exited children nobody follows. Stops at a followed one, which the kernel reports first: its own
    /// watcher is about to collect it and then sweeps on.
    fn sweep(&self) {
        if self.holds.get() > 0 {
            return;
        }
        while let Ok(Some(pid)) = corten_launch::peek_child() {
            if self.followed.borrow().contains(&pid) {
                return;
            }
            let stray = Pid::from_raw(pid);
            if !matches!(
                rustix::process::waitpid(stray, WaitOptions::NOHANG),
                Ok(Some(_))
            ) {
                return;
            }
        }
    }
}

// === impl Hold ===

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.0.holds.set(self.0.holds.get() - 1);
        self.0.sweep();
    }
}
