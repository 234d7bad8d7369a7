//! Snapshotters that live in the daemon: [`overlayfs`], [`native`] and [`erofs`].
//!
//! All keep their records in a database of their own ([`records`]) and their trees in `<root>/snapshots/<id>`
//! ([`trees`]). A tree is complete on disk before its record is committed, and its record is gone before the tree is
//! deleted; whatever a crash leaves between the two has no record and is swept at the next start or clean-up.
//!
//! ```text
//! <root>/metadata.db            records: key -> id, kind, parent, labels, times, usage
//! <root>/snapshots/<id>/        a tree with a record
//!                 new-…         being made
//!                 rm-…          being deleted
//! ```

mod base;
pub mod erofs;
pub mod native;
pub mod overlayfs;
mod records;
mod trees;
