//! corten-protos: everything that crosses a process boundary. Encode and decode only; no policy, no I/O.
//!
//! `proto/` holds the wire contract in our own words: names, numbers and types are facts of the protocols, the comments are
//! ours. One file is one proto package and becomes one module of the same path: `containerd.services.images.v1` is
//! [`containerd::services::images::v1`], CRI is [`runtime::v1`]. `tests/upstream.rs` compares the descriptors with those that
//! the pinned Go modules carry and fails on any drift.
//!
//! # Choices
//! - **prost messages on both wires.** gRPC is tonic, whose codec is prost. The ttrpc crate's own generators emit rust-protobuf
//!   messages, or prost of a version that cannot be linked beside tonic's; either would mean a second set of types and
//!   conversions of every request between daemon and shim. So the stubs for ttrpc are printed by `build/ttrpc.rs` over the same
//!   messages, and rust-protobuf remains an inner matter of the ttrpc crate, for its own envelope.
//! - **The ttrpc crate** carries frames on both ends of a shim's socket. The shim uses feature `ttrpc` only: no tonic, no hyper.
//! - **The containerd-client crate** is a client without a server side and of an older API. It serves as an independent client
//!   in our integration tests, and nowhere else.
//! - **google.protobuf is compiled here**, not taken from prost-types, so that `Any`, `Timestamp` and `Empty` are ours to extend
//!   ([`any`], [`time`]) and `Empty` is a type, not `()`.
//! - **Maps are `BTreeMap`s**: equal records encode to equal bytes. Blob chunks are `Bytes`.

#[allow(
    missing_docs,
    unreachable_pub,
    missing_debug_implementations,
    elided_lifetimes_in_paths,
    deprecated,
    clippy::all,
    clippy::pedantic,
    clippy::or_fun_call,
    clippy::needless_pass_by_value,
    clippy::semicolon_if_nothing_returned,
    clippy::large_futures
)]
#[rustfmt::skip]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/modules.rs"));
}
pub use generated::*;

pub mod any;
mod redact;
pub mod time;
#[cfg(feature = "ttrpc")]
pub mod ttrpc;

/// The compiled contract: a `google.protobuf.FileDescriptorSet`.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

#[cfg(feature = "serde")]
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Bytes as Go's encoding/json has them: base64.
#[cfg(feature = "serde")]
mod go_bytes {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&STANDARD.encode(bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u8>, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(d)?;
        STANDARD.decode(text.as_bytes()).map_err(de::Error::custom)
    }
}
