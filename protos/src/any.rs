//! `google.protobuf.Any` as containerd writes it.
//!
//! containerd's type URLs are bare full names (`containerd.events.TaskExit`) for protobuf messages, and
//! `types.containerd.io/...` with JSON in the value for Go structs such as the OCI spec. Others write
//! `type.googleapis.com/<full name>`, so reading compares the last path segment only.

use std::fmt;

use prost::{Message, Name};

use crate::google::protobuf::Any;

/// The value is a `config.json`.
pub const OCI_SPEC: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
/// The value is a `process` object of a `config.json`: what exec runs.
pub const OCI_PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
/// The value is a `linux.resources` object: what an update changes.
pub const OCI_LINUX_RESOURCES: &str =
    "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";
/// The value is the features document of a runtime.
pub const OCI_FEATURES: &str =
    "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// Why an [`Any`] is not the message that was asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum UnpackError {
    /// It carries another type.
    Type { want: String, got: String },
    /// It carries the right type, but its bytes do not decode.
    Value {
        of: String,
        source: prost::DecodeError,
    },
}

/// Wraps a message under its bare full name.
pub fn pack<M: Message + Name>(message: &M) -> Any {
    Any {
        type_url: M::full_name(),
        value: message.encode_to_vec(),
    }
}

/// The message inside, if it is an `M`.
pub fn unpack<M: Message + Name + Default>(any: &Any) -> Result<M, UnpackError> {
    if !is::<M>(any) {
        return Err(mismatch(M::full_name(), any));
    }
    M::decode(any.value.as_slice()).map_err(|source| UnpackError::Value {
        of: M::full_name(),
        source,
    })
}

/// Whether `any` carries an `M`.
pub fn is<M: Name>(any: &Any) -> bool {
    name(&any.type_url) == M::full_name()
}

/// The last path segment of a type URL: a message's full name.
pub fn name(type_url: &str) -> &str {
    type_url.rsplit_once('/').map_or(type_url, |(_, name)| name)
}

/// Wraps a JSON document under one of the `OCI_*` URLs.
pub fn pack_json(type_url: &str, json: impl Into<Vec<u8>>) -> Any {
    Any {
        type_url: type_url.to_owned(),
        value: json.into(),
    }
}

/// The JSON document inside, byte for byte, if it is of this type.
pub fn unpack_json<'a>(any: &'a Any, type_url: &str) -> Result<&'a [u8], UnpackError> {
    // "Spec" or "Process" alone says little, so JSON types compare by their whole URL.
    if any.type_url == type_url {
        Ok(&any.value)
    } else {
        Err(mismatch(type_url.to_owned(), any))
    }
}

fn mismatch(want: String, any: &Any) -> UnpackError {
    UnpackError::Type {
        want,
        got: any.type_url.clone(),
    }
}

// === impl UnpackError ===

impl fmt::Display for UnpackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Type { want, got } => write!(f, "unpack {want}: the value is of type {got:?}"),
            Self::Value { of, .. } => write!(f, "unpack {of}"),
        }
    }
}

impl std::error::Error for UnpackError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Type { .. } => None,
            Self::Value { source, .. } => Some(source),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containerd::events::{TaskExit, TaskStart};
    use crate::containerd::runc;

    fn exit() -> TaskExit {
        TaskExit {
            container_id: "c".into(),
            id: "c".into(),
            pid: 7,
            exit_status: 137,
            ..Default::default()
        }
    }

    #[test]
    fn a_packed_message_has_a_bare_name_and_comes_back() {
        let any = pack(&exit());
        assert_eq!(any.type_url, "containerd.events.TaskExit");
        assert_eq!(unpack::<TaskExit>(&any), Ok(exit()));
        assert_eq!(
            pack(&runc::v1::Options::default()).type_url,
            "containerd.runc.v1.Options"
        );
    }

    #[test]
    fn a_prefix_of_the_url_does_not_matter() {
        let mut any = pack(&exit());
        any.type_url.insert_str(0, "type.googleapis.com/");
        assert_eq!(unpack::<TaskExit>(&any), Ok(exit()));
    }

    #[test]
    fn another_type_and_broken_bytes_are_told_apart() {
        let mut any = pack(&exit());
        let error = unpack::<TaskStart>(&any).unwrap_err();
        assert_eq!(
            error.to_string(),
            "unpack containerd.events.TaskStart: the value is of type \"containerd.events.TaskExit\""
        );
        any.value = vec![0xff];
        assert!(matches!(
            unpack::<TaskExit>(&any),
            Err(UnpackError::Value { .. })
        ));
    }

    #[test]
    fn json_stays_byte_for_byte() {
        let any = pack_json(OCI_SPEC, br#"{ "ociVersion":"1.2.0" }"#.as_slice());
        assert_eq!(
            unpack_json(&any, OCI_SPEC).unwrap(),
            br#"{ "ociVersion":"1.2.0" }"#
        );
        assert!(unpack_json(&any, OCI_PROCESS).is_err());
        assert!(unpack::<TaskExit>(&any).is_err());
    }
}
