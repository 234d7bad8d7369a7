//! Transfers: images from and to registries, archives and the image store, and the streams that clients use with it.
//!
//! ```text
//! local (plugin: which ends, lease, progress), end, targets
//!   +- verifier (plugin: may refuse an image before it is pulled)
//!   +- pull ---- fetch ---- download -- registry (hosts, tls, auth, request, push)
//!   |    +------ unpack --- snapshots, differs
//!   +- push
//!   +- import/export ------ archive, bytestream
//! ```
//! The registry client is ours because containerd's rules for hosts.toml, mirrors and credentials are its own.
//! What strangers wrote (documents, archives, registry answers) is bounded in size, depth and count everywhere.

pub mod archive;
mod bytestream;
mod credentials;
mod download;
mod end;
#[cfg(test)]
mod fakes;
mod fetch;
mod import;
pub mod local;
pub mod oci;
pub mod platform;
mod progress;
mod pull;
mod push;
pub mod registry;
mod store;
pub mod streaming;
mod targets;
pub mod unpack;
pub mod verifier;

pub use download::Downloads;
pub use fetch::Fetcher;
pub use progress::Tracker;
