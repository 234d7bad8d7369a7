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
//! Their limits are in [`crate::limits`].

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
