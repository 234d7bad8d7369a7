//! Owns what init and execs have in common: identity, state, stdio, exit.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;

use tokio::sync::{Mutex, watch};

use super::launch::Child;
use super::state::{Move, State};
use crate::bundle::Exit;
use crate::error::{Error, Result};
use crate::io::{Io, Stdio};
use crate::reaper::Pidfd;

/// SIGKILL, the one signal a frozen process does not get either.
pub(crate) const SIGKILL: i32 = 9;

/// One process of a container.
#[derive(Debug)]
pub(crate) struct Process {
    /// Empty for init.
    pub(crate) exec_id: String,
    pub(crate) stdio: Stdio,
    pub(crate) state: Cell<State>,
    /// Set once the process exists.
    pub(crate) pidfd: OnceCell<Pidfd>,
    pub(crate) io: RefCell<Option<Rc<Io>>>,
    /// CloseIO came before there was a stream to close.
    pub(crate) stdin_closed: Cell<bool>,
    /// An init between Create and Start.
    pub(crate) child: RefCell<Option<Child>>,
    /// What an exec is to run, until it is started.
    pub(crate) spec: RefCell<Option<corten_oci::Process>>,
    /// Held by whoever moves the process on, until the event that tells of it is queued: the order of events is the
    /// order of this lock.
    pub(crate) order: Mutex<()>,
    exit: watch::Sender<Option<Exit>>,
}

// === impl Process ===

impl Process {
    pub(crate) fn new(exec_id: String, stdio: Stdio) -> Self {
        Self {
            exec_id,
            stdio,
            state: Cell::new(State::Created),
            pidfd: OnceCell::new(),
            io: RefCell::default(),
            stdin_closed: Cell::default(),
            child: RefCell::default(),
            spec: RefCell::default(),
            order: Mutex::default(),
            exit: watch::Sender::default(),
        }
    }

    /// 0 while there is no process.
    pub(crate) fn pid(&self) -> u32 {
        self.pidfd
            .get()
            .map_or(0, |fd| u32::try_from(fd.pid()).unwrap_or(0))
    }

    /// Moves the state, or leaves it and says why not.
    pub(crate) fn advance(&self, by: Move) -> Result<()> {
        self.state.set(self.state.get().transition(by)?);
        Ok(())
    }

    /// Records the end and wakes every Wait.
    pub(crate) fn set_exit(&self, exit: Exit) {
        // A failed start of an exec that was deleted meanwhile keeps its state.
        let _ = self.advance(Move::Exit);
        self.exit.send_replace(Some(exit));
    }

    pub(crate) fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Waits for the end. Cancel-safe.
    pub(crate) async fn wait(&self) -> Result<Exit> {
        let mut exit = self.exit.subscribe();
        let exit = exit
            .wait_for(Option::is_some)
            .await
            .map_err(|_| Error::unavailable("the shim is going away"))?;
        exit.ok_or_else(|| Error::unavailable("the shim is going away"))
    }

    pub(crate) fn signal(&self, signal: i32) -> Result<()> {
        let Some(pidfd) = self.pidfd.get() else {
            return Err(Error::precondition("process not created"));
        };
        if !self.state.get().is_alive() {
            return Err(finished());
        }
        pidfd
            .signal(signal)
            .map_err(|e| match rustix::io::Errno::from_io_error(&e) {
                Some(rustix::io::Errno::SRCH) => finished(),
                _ => Error::from(e).context("unknown error after kill"),
            })
    }
}

/// containerd's answer to a signal that comes too late.
pub(crate) fn finished() -> Error {
    Error::not_found("process already finished")
}
