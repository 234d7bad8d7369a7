//! Plugin `io.containerd.differ.v1.walking`: layers applied to snapshots, and snapshots compared into layers.
//!
//! - [`stream`]: a layer blob as one stream: read, inflated, hashed, counted; and the way back.
//! - [`tar`]: the archive format.
//! - [`apply`]: an archive onto a folder that it can never leave.
//! - [`compare`]: two trees into an archive.
//! - [`walking`]: the differ that puts them together.

mod apply;
mod compare;
mod dirs;
mod media;
mod stream;
mod tar;
mod walking;

pub use walking::{Walking, registration};
