//! Image references as clients write them: `host[:port]/path[:tag][@digest]` (containerd: pkg/reference).

use crate::digest::Digest;
use crate::error::{Error, Result};

/// A parsed reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// `host/path`, without tag and digest.
    pub locator: String,
    /// Tag and/or digest as written: `latest`, `latest@sha256:…`, `@sha256:…`; empty = none.
    pub object: String,
}

impl Reference {
    /// Parses.
    ///
    /// # Errors
    /// InvalidArgument: no host, a `..` element (containerd 2.4.2), a scheme, or an unusable form.
    pub fn parse(text: &str) -> Result<Self> {
        let invalid = |why: &str| Err(Error::invalid(format!("reference {text:?}: {why}")));
        if text.contains("://") {
            return invalid("invalid reference");
        }
        let Some((host, rest)) = text.split_once('/') else {
            return invalid("hostname required");
        };
        if host.is_empty() {
            return invalid("hostname required");
        }
        // What a URL would take for user info, or for a slash, is not a part of any name.
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-:[]".contains(c);
        if !host.chars().all(plain) || matches!(host, "." | "..") {
            return invalid("invalid reference");
        }
        if text
            .chars()
            .any(|c| c.is_whitespace() || c.is_control() || matches!(c, '?' | '#' | '%' | '\\'))
        {
            return invalid("invalid reference");
        }
        let split = rest.find(['@', ':']);
        let (path, object) = match split {
            Some(i) if rest.as_bytes()[i] == b':' => (&rest[..i], &rest[i + 1..]),
            Some(i) => (&rest[..i], &rest[i..]),
            None => (rest, ""),
        };
        if path.is_empty() || path.starts_with('/') {
            return invalid("invalid reference");
        }
        if path.split('/').any(|p| p == "..") || object.split('/').any(|p| p == "..") {
            return invalid("path must not contain \"..\"");
        }
        Ok(Self {
            locator: format!("{host}/{path}"),
            object: object.to_owned(),
        })
    }

    /// The registry host with its port.
    pub fn host(&self) -> &str {
        self.locator.split('/').next().unwrap_or_default()
    }

    /// The repository within the registry.
    pub fn repository(&self) -> &str {
        self.locator.split_once('/').map_or("", |p| p.1)
    }

    /// The tag, if one was written.
    pub fn tag(&self) -> Option<&str> {
        let tag = self.object.split('@').next().unwrap_or_default();
        (!tag.is_empty()).then_some(tag)
    }

    /// The digest, if one was written; `None` also for a malformed one.
    pub fn digest(&self) -> Option<Digest> {
        Digest::parse(self.object.split_once('@')?.1).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_references() {
        let r = Reference::parse("localhost:5000/library/busybox:1.36").unwrap();
        assert_eq!(r.host(), "localhost:5000");
        assert_eq!(r.repository(), "library/busybox");
        assert_eq!(r.tag(), Some("1.36"));
        let d = Digest::sha256(b"x");
        let r = Reference::parse(&format!("docker.io/library/a:b@{d}")).unwrap();
        assert_eq!((r.tag(), r.digest()), (Some("b"), Some(d.clone())));
        let r = Reference::parse(&format!("docker.io/library/a@{d}")).unwrap();
        assert_eq!((r.tag(), r.digest()), (None, Some(d)));
    }

    #[test]
    fn bad_references() {
        for bad in [
            "",
            "busybox",
            "/a",
            "h/",
            "h/../x",
            "h/a/../../b:t",
            "http://h/a",
            "h/a b",
            "../a:t",
            "user:secret@h/a:t",
            "h/a\\..\\..\\b:t",
            "h\\x/a:t",
        ] {
            assert!(Reference::parse(bad).is_err(), "{bad}");
        }
    }
}
