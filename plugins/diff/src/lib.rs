//! Plugins `io.containerd.differ.v1.walking` and `erofs`: layers applied to snapshots, and snapshots compared into
//! layers.
//!
//! - [`stream`]: a layer blob as one stream: read, inflated, hashed, counted; and the way back.
//! - [`ahead`]: the same of a large blob, on a thread beside the one that makes the files.
//! - [`tar`]: the archive format.
//! - [`apply`]: an archive onto a folder that it can never leave.
//! - [`compare`]: two trees into an archive.
//! - [`processors`]: programs that make layers of other media types.
//! - [`walking`]: the differ that puts them together.
//! - [`erofs`]: layers made into images.

mod ahead;
mod apply;
mod compare;
mod dirs;
pub mod erofs;
mod media;
mod processors;
mod stream;
mod tar;
mod walking;

pub use processors::{Processor, Processors};
pub use walking::{Walking, registration};
