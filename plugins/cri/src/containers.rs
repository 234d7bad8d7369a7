//! Containers: from CreateContainer to RemoveContainer, what runs in them, and what becomes of them after a restart.
//!
//! ```text
//! create: name -> lease -> folders -> image volumes -> layer -> specification -> record -> status -> CREATED
//! start:  streams -> task create, start -> RUNNING -> its end is waited for
//! stop:   signal -> patience -> SIGKILL -> EXITED
//! remove: stop -> task, record, layer, folders, name
//! ```
//!
//! | file | what |
//! |---|---|
//! | [`create`], [`start`], [`stop`], [`remove`], [`list`], [`inspect`], [`update`], [`reopen`], [`exec`], [`checkpoint`] | the RPCs |
//! | [`streams`], [`attach`] | what streaming clients are joined with |
//! | [`process`] | processes added to a container |
//! | [`stdio`], [`fifos`] | the streams of processes |
//! | [`state`] | the status, in memory and on disk |
//! | [`exit`] | how containers end |
//! | [`record`], [`volumes`], [`signal`] | what is stored; what an image declares; how signals are named |
//! | [`recover`] | what a new daemon finds |
//!
//! # Limits
//! | what | limit |
//! |---|---|
//! | bytes that ExecSync keeps of each stream | 16 MiB ([`exec::MAX_OUTPUT`]); the rest is read and lost |
//! | bytes of both that it answers | 16 MiB - 64 ([`exec::MAX_ANSWER`]): a message that clients take |
//! | after its time-out, the end of a killed process | 5 s; the answer does not wait longer |
//! | streams held open after a process' end | `drain_exec_sync_io_timeout`; 0: as long as they are |
//! | items of one message of StreamContainers | 5,000 ([`list::BATCH`]) |
//! | a label from an image, key and value | 4,096 bytes; a longer one is left out |
//! | loading one container after a restart | 10 s, 32 at a time; then it is unknown |
//! | one try to be rid of an ended container | 20 s, then again after 1 s to 5 min |
//! | output held open after a container's end | 10 s |
//! | a connection into a pod | 10 s for each family |
//! | a client's last words after a pod's side of a forwarded port ended | 1 s |
//!
//! Those of logs are in the docs of [`crate::logs`].

mod attach;
pub mod checkpoint;
pub mod create;
pub mod exec;
mod exit;
mod fifos;
pub mod inspect;
pub mod list;
mod process;
mod record;
pub mod recover;
pub mod remove;
pub mod reopen;
mod signal;
pub mod start;
mod state;
mod stdio;
pub mod stop;
pub mod streams;
pub mod update;
mod volumes;

pub use recover::recover;
pub use streams::Streams;

/// A new id of something inside a container.
fn make_id() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}
