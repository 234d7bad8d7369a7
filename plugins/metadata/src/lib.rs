//! The metadata store: records of everything that must survive, leases, and the garbage collector.
//!
//! ```text
//! bolt, manager, local, scheduler    the plugins
//!   images containers namespaces sandboxes leases content snapshots    one noun each, over
//!     db       store + backends + events + locks
//!     keys, records    layout
//!       store    redb: one writer with group commit, readers without locks
//!   collect    mark in one mutation, then sweep the backends
//! ```

pub mod bolt;
pub mod local;
pub mod manager;
pub mod scheduler;

mod collect;
mod containers;
mod content;
mod db;
mod images;
mod keys;
mod leases;
mod namespaces;
mod records;
mod sandboxes;
mod snapshots;
mod store;

pub use bolt::open;
pub use db::Parts;

#[cfg(test)]
mod tests;
