//! Owns the life of a process as containerd sees it.
//!
//! ```text
//!            start              exit
//!  Created --------> Running ---------> Stopped --delete--> Deleted
//!   |  |              |   ^                ^ ^                 ^
//!   |  |        pause v   | resume         | |                 |
//!   |  |             Paused ---------------+ |                 |
//!   |  +---- exit (killed, or a failed start)+                 |
//!   +-------------------------- delete ------------------------+
//! ```
//! Only init can be paused; an exec is shown as paused while its container is. Illegal moves carry containerd's text
//! and its class: a plain error (Unknown), but NotFound for what is already deleted.

use corten_protos::containerd::v1::types::Status;

use crate::error::{Error, Result};

/// Where a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Created,
    Running,
    Paused,
    Stopped,
    Deleted,
}

/// What moves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Move {
    Start,
    Pause,
    Resume,
    Exit,
    Delete,
}

/// What needs a state without changing it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// Add an exec to the container.
    Exec,
    Update,
    /// Save the container to a folder.
    Checkpoint,
}

// === impl State ===

impl State {
    /// The state after a move, or containerd's refusal.
    pub(crate) fn transition(self, by: Move) -> Result<Self> {
        use State::{Created, Deleted, Paused, Running, Stopped};
        Ok(match (self, by) {
            (Created, Move::Start) | (Paused, Move::Resume) => Running,
            (Running, Move::Pause) => Paused,
            (Created | Running | Paused, Move::Exit) => Stopped,
            (Created | Stopped, Move::Delete) => Deleted,
            (Deleted, Move::Delete) => {
                return Err(Error::not_found("cannot delete a deleted process"));
            }
            (state, by) => return Err(Error::unknown(state.refusal(by))),
        })
    }

    /// Fails where containerd refuses.
    pub(crate) fn allow(self, need: Need) -> Result<()> {
        match (self, need) {
            (Self::Created, Need::Checkpoint) => {
                Err(Error::unknown("cannot checkpoint a task in created state"))
            }
            (Self::Created | Self::Running, _)
            | (Self::Paused, Need::Update | Need::Checkpoint) => Ok(()),
            (Self::Stopped, Need::Checkpoint) => {
                Err(Error::unknown("cannot checkpoint a stopped container"))
            }
            (Self::Deleted, Need::Checkpoint) => {
                Err(Error::unknown("cannot checkpoint a deleted process"))
            }
            (state, Need::Exec) => Err(Error::unknown(format!(
                "cannot exec in a {} state",
                state.name()
            ))),
            (Self::Deleted, Need::Update) => Err(Error::unknown("cannot update a deleted process")),
            (state, Need::Update) => Err(Error::unknown(format!(
                "cannot update a {} container",
                state.name()
            ))),
        }
    }

    pub(crate) fn is_alive(self) -> bool {
        matches!(self, Self::Created | Self::Running | Self::Paused)
    }

    pub(crate) fn status(self) -> Status {
        match self {
            Self::Created => Status::Created,
            Self::Running => Status::Running,
            Self::Paused => Status::Paused,
            Self::Stopped | Self::Deleted => Status::Stopped,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Deleted => "deleted",
        }
    }

    /// containerd 2.4 process/init_state.go: the noun depends on state and verb.
    fn refusal(self, by: Move) -> String {
        let verb = match by {
            Move::Start => "start",
            Move::Pause => "pause",
            Move::Resume => "resume",
            Move::Exit => "exit",
            Move::Delete => "delete",
        };
        let name = self.name();
        match (self, by) {
            (Self::Created, Move::Pause | Move::Resume) => {
                format!("cannot {verb} task in created state")
            }
            (Self::Paused, Move::Pause) | (Self::Stopped, Move::Pause | Move::Resume) => {
                format!("cannot {verb} a {name} container")
            }
            _ => format!("cannot {verb} a {name} process"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use State::{Created, Deleted, Paused, Running, Stopped};

    #[test]
    fn every_move_from_every_state() {
        // Columns: start, pause, resume, exit, delete. A text is a refusal.
        let check = |from: State, wants: [Result<State, &str>; 5]| {
            let moves = [
                Move::Start,
                Move::Pause,
                Move::Resume,
                Move::Exit,
                Move::Delete,
            ];
            for (by, want) in moves.into_iter().zip(wants) {
                let got = from.transition(by).map_err(|e| e.to_string());
                assert_eq!(got, want.map_err(str::to_owned), "{from:?} {by:?}");
            }
        };
        check(
            Created,
            [
                Ok(Running),
                Err("cannot pause task in created state"),
                Err("cannot resume task in created state"),
                Ok(Stopped),
                Ok(Deleted),
            ],
        );
        check(
            Running,
            [
                Err("cannot start a running process"),
                Ok(Paused),
                Err("cannot resume a running process"),
                Ok(Stopped),
                Err("cannot delete a running process"),
            ],
        );
        check(
            Paused,
            [
                Err("cannot start a paused process"),
                Err("cannot pause a paused container"),
                Ok(Running),
                Ok(Stopped),
                Err("cannot delete a paused process"),
            ],
        );
        check(
            Stopped,
            [
                Err("cannot start a stopped process"),
                Err("cannot pause a stopped container"),
                Err("cannot resume a stopped container"),
                Err("cannot exit a stopped process"),
                Ok(Deleted),
            ],
        );
        check(
            Deleted,
            [
                Err("cannot start a deleted process"),
                Err("cannot pause a deleted process"),
                Err("cannot resume a deleted process"),
                Err("cannot exit a deleted process"),
                Err("cannot delete a deleted process: not found"),
            ],
        );
    }

    #[test]
    fn exec_needs_a_live_container_that_is_not_paused() {
        assert!(Created.allow(Need::Exec).is_ok() && Running.allow(Need::Exec).is_ok());
        for (state, text) in [
            (Paused, "cannot exec in a paused state"),
            (Stopped, "cannot exec in a stopped state"),
            (Deleted, "cannot exec in a deleted state"),
        ] {
            assert_eq!(state.allow(Need::Exec).unwrap_err().to_string(), text);
        }
        assert!(Paused.allow(Need::Update).is_ok() && Stopped.allow(Need::Update).is_err());
        assert!(Running.allow(Need::Checkpoint).is_ok() && Paused.allow(Need::Checkpoint).is_ok());
        for (state, text) in [
            (Created, "cannot checkpoint a task in created state"),
            (Stopped, "cannot checkpoint a stopped container"),
            (Deleted, "cannot checkpoint a deleted process"),
        ] {
            let refused = state.allow(Need::Checkpoint).unwrap_err();
            assert_eq!(refused.to_string(), text);
        }
    }
}
