//! The plugin system: what a plugin is, how it declares itself, and how a set of them is started in order.
//!
//! containerd's semantics (type URI, id, requires, config table, skip or error status, exports, capabilities),
//! with Rust's types: a [`Kind`] ties a type URI to `dyn Trait`, so that looking a plugin up needs no cast at the
//! call site, and asking for a kind that was not declared in `requires` is an error in every test that boots.
//!
//! This crate knows nothing of containers. Registration is an explicit list made by the daemon; there is no
//! global registry and no linker magic.
//!
//! ```text
//! Registration --Graph::order--> [Registration] --boot--> Record { Ok | Skipped(reason) | Failed(error) }
//! ```

mod boot;
mod config;
mod context;
mod graph;
mod registration;

pub use boot::{BootError, BootOptions, Plugins, Record, Status};
pub use config::{Decoded, Fault, decode};
pub use context::{ById, Context, LookupError, Meta, Properties};
pub use graph::{GraphError, order};
pub use registration::{BoxError, InitError, Kind, Platform, Registration, skip};
