//! The tar format, read and written by ourselves: parsers that differ in PAX and size rules are how archives smuggle.
//!
//! The rules are those of Go's archive/tar, so that a layer means here what it means to containerd. Everything that an
//! archive says about itself is bounded before memory is given to it.

mod header;
mod pax;
mod reader;
mod sparse;
mod writer;

pub(crate) use reader::{Entry, EntryKind, Reader};
pub(crate) use writer::{Member, Writer};

/// Bytes of a record.
pub(crate) const BLOCK: usize = 512;

/// Prefix of the PAX records that carry extended attributes.
pub(crate) const XATTR: &str = "SCHILY.xattr.";

/// An archive that breaks the format.
pub(crate) fn invalid(what: impl std::fmt::Display) -> std::io::Error {
    std::io::Error::new(
        std::io::ErrorKind::InvalidData,
        format!("archive/tar: {what}"),
    )
}
