//! The contract between Corten's plugins: one file per noun, each a trait, its types and its rules.
//!
//! Nothing here does I/O. Who implements a trait depends on this crate and never on another implementation; who
//! uses one finds it by its [`kinds`] entry. Records (images, containers, leases, sandboxes) are the API's
//! protobuf messages themselves: what is stored is what is served.
//!
//! Calls that are namespaced take a [`Scope`] first: the namespace and, when the client sent one, the lease that
//! holds what the call creates.

pub mod compression;
pub mod containers;
pub mod content;
pub mod diff;
pub mod digest;
pub mod duration;
pub mod error;
pub mod events;
pub mod filter;
pub mod gc;
pub mod id;
pub mod images;
pub mod json;
pub mod keylock;
pub mod kinds;
pub mod labels;
pub mod leases;
pub mod metadata;
pub mod metrics;
pub mod mounts;
pub mod namespaces;
pub mod nri;
pub mod reference;
pub mod rollback;
pub mod runtime;
pub mod sandbox;
pub mod scope;
pub mod service;
pub mod size;
pub mod snapshots;
pub mod spans;
pub mod status;
pub mod streaming;
pub mod tasks_set;
pub mod transfer;
pub mod verify;
pub mod warnings;

pub use digest::Digest;
pub use error::{Context, Error, Kind, Result};
pub use id::Namespace;
pub use labels::Labels;
pub use scope::Scope;

pub use corten_protos as protos;
pub use corten_protos::containerd::types::{Descriptor, Mount};
pub use corten_protos::google::protobuf::{Any, Timestamp};
