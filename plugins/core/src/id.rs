//! Identifiers and the namespace (containerd: pkg/identifiers, pkg/namespaces).

use std::fmt;

use crate::error::{Error, Kind, Result};

/// Longest identifier, in bytes.
pub const MAX_LENGTH: usize = 76;

/// Checks `^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$`, at most 76 bytes: ids of namespaces, containers, tasks,
/// execs, sandboxes and topic parts.
///
/// # Errors
/// InvalidArgument, in containerd's words.
pub fn validate(id: &str) -> Result<()> {
    if id.is_empty() {
        return Err(Error::invalid("identifier must not be empty"));
    }
    if id.len() > MAX_LENGTH {
        return Err(Error::invalid(format!(
            "identifier {id:?} greater than maximum length ({MAX_LENGTH} characters)"
        )));
    }
    let mut separated = true;
    for b in id.bytes() {
        separated = match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => false,
            b'.' | b'_' | b'-' if !separated => true,
            _ => return Err(mismatch(id)),
        };
    }
    if separated { Err(mismatch(id)) } else { Ok(()) }
}

fn mismatch(id: &str) -> Error {
    Error::invalid(format!(
        "identifier {id:?} must match ^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$"
    ))
}

/// A valid namespace name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Namespace(String);

impl Namespace {
    /// Parses a name.
    ///
    /// # Errors
    /// FailedPrecondition when empty (containerd: "namespace is required"), InvalidArgument when malformed.
    pub fn new(name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        if name.is_empty() {
            return Err(Error::new(
                Kind::FailedPrecondition,
                "namespace is required: failed precondition",
            ));
        }
        validate(&name).map_err(|e| e.context("namespace validation"))?;
        Ok(Self(name))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for Namespace {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_follow_the_pattern() {
        for good in ["a", "default", "k8s.io", "a-b_c.d", &"x".repeat(76)] {
            validate(good).unwrap();
        }
        for bad in ["", ".a", "a.", "a..b", "a/b", "a b", "ä", &"x".repeat(77)] {
            assert_eq!(
                validate(bad).unwrap_err().kind(),
                Kind::InvalidArgument,
                "{bad}"
            );
        }
    }
}
