//! Owns the async side of a launch: a child of the engine that is being set up, and the news of it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use corten_launch::{Failure, Parked, Plan, Status};
use corten_oci::Agent;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::error::{Error, Result};
use crate::readiness::watch;
use crate::reaper::{Pidfd, Reaper};

/// A process between clone and exec.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) pidfd: Pidfd,
    parked: Parked,
    news: AsyncFd<OwnedFd>,
    /// Who gets the listener of its filter.
    agent: Option<Agent>,
}

// === impl Child ===

impl Child {
    /// Clones the plan's child; it runs to its first stop. Drop the plan afterwards: it owns the child's descriptors.
    pub(crate) fn spawn(reaper: &Reaper, plan: &Plan) -> io::Result<Self> {
        let parked = corten_launch::spawn(plan)?;
        let watched = reaper
            .follow(parked.pid(), parked.pidfd())
            .and_then(|pidfd| {
                let news = rustix::io::fcntl_dupfd_cloexec(parked.status_fd(), 3)?;
                Ok((pidfd, watch(news, Interest::READABLE)?))
            });
        match watched {
            Ok((pidfd, news)) => Ok(Self {
                pidfd,
                parked,
                news,
                agent: None,
            }),
            Err(e) => {
                // Nobody could follow it; the sweep collects what is left.
                let _ = parked.kill();
                reaper.forget(parked.pid());
                Err(e)
            }
        }
    }

    /// Names who gets the listener of its filter. Must follow its creation without an await in between.
    pub(crate) fn inform(&mut self, agent: Option<Agent>) {
        self.agent = agent;
    }

    /// The next stop of the child: anything but `Pending` and `Listener`.
    pub(crate) async fn settle(&mut self) -> io::Result<Status> {
        loop {
            match self.parked.try_status()? {
                Status::Listener => self.hand_over()?,
                Status::Pending => self.news.readable().await?.clear_ready(),
                status => return Ok(status),
            }
        }
    }

    /// Waits until the child stands at its gate, with everything before it done.
    pub(crate) async fn at_gate(&mut self) -> Result<()> {
        match self.settle().await? {
            Status::Ready => Ok(()),
            Status::Failed(failure) => Err(failed(failure)),
            other => Err(Error::unknown(format!("unexpected news {other:?}"))),
        }
    }

    fn hand_over(&mut self) -> io::Result<()> {
        let given = match (self.agent.as_ref(), self.parked.take_listener()) {
            (Some(agent), Some(listener)) => agent.hand_over(listener.as_fd()),
            _ => return Err(io::Error::other("a seccomp listener that nobody expects")),
        };
        given.map_err(io::Error::other)?;
        self.parked.proceed()
    }

    /// Lets it go on from a rendezvous.
    pub(crate) fn proceed(&mut self) -> io::Result<()> {
        self.parked.proceed()
    }

    /// Opens the gate and waits until the program runs.
    pub(crate) async fn go(&mut self) -> Result<()> {
        self.parked.open_gate()?;
        match self.settle().await? {
            Status::Running => Ok(()),
            Status::Failed(failure) => Err(failed(failure)),
            other => Err(Error::unknown(format!("unexpected news {other:?}"))),
        }
    }

    /// What the engine has to say of steps it had to soften.
    pub(crate) fn take_warnings(&mut self) -> Vec<String> {
        self.parked.take_warnings()
    }

    /// The pty's master, once.
    pub(crate) fn take_console(&mut self) -> Option<OwnedFd> {
        self.parked.take_console()
    }

    /// Kills and collects it, whatever it is doing.
    pub(crate) async fn destroy(&self, reaper: &Reaper) {
        // Both fail only when it is gone already.
        let _ = self.parked.kill();
        let _ = reaper.exit(&self.pidfd).await;
    }
}

/// The engine's text is complete; clients look for its words, not for a code.
pub(crate) fn failed(failure: Failure) -> Error {
    Error::unknown(failure.text)
}
