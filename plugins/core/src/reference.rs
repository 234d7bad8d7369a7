//! Image references as clients write them: `host[:port]/path[:tag][@digest]` (containerd: pkg/reference).

use crate::digest::Digest;
use crate::error::{Error, Kind, Result};

/// What is wrong with a reference that names no tag and no digest, where one is needed.
pub const OBJECT_REQUIRED: &str = "object required";

/// A parsed reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// `host/path`, without tag and digest.
    pub locator: String,
    /// Tag and/or digest as written: `latest`, `latest@sha256:…`, `@sha256:…`; empty = none.
    pub object: String,
}

impl Reference {
    /// Parses. The errors are containerd's, word for word.
    ///
    /// # Errors
    /// InvalidArgument: no host, no repository, a `..` element (containerd 2.4.2), a scheme, or an unusable form.
    pub fn parse(text: &str) -> Result<Self> {
        let refused = |why: String| Err(Error::new(Kind::InvalidArgument, why));
        let invalid = || refused("invalid reference".into());
        if text.contains("://") {
            return invalid();
        }
        let (host, rest) = text.split_once('/').unwrap_or((text, ""));
        if host.is_empty() {
            return refused("hostname required".into());
        }
        // What a URL would take for user info, or for a slash, is not a part of any name.
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-:[]".contains(c);
        if !host.chars().all(plain) || matches!(host, "." | "..") {
            return invalid();
        }
        let port = match host.rfind([':', ']']) {
            Some(i) if host.as_bytes()[i] == b':' => &host[i + 1..],
            _ => "",
        };
        if !port.bytes().all(|b| b.is_ascii_digit()) {
            // A tag without a host, mostly.
            return refused(format!(
                "parse \"dummy://{text}\": invalid port \":{port}\" after host"
            ));
        }
        if text
            .chars()
            .any(|c| c.is_whitespace() || c.is_control() || matches!(c, '?' | '#' | '%' | '\\'))
        {
            return invalid();
        }
        let split = rest.find(['@', ':']);
        let (path, object) = match split {
            Some(i) if rest.as_bytes()[i] == b':' => (&rest[..i], &rest[i + 1..]),
            Some(i) => (&rest[..i], &rest[i..]),
            None => (rest, ""),
        };
        if path.is_empty() && object.is_empty() {
            return refused(OBJECT_REQUIRED.into());
        }
        if path.is_empty() || path.starts_with('/') {
            return invalid();
        }
        if path.split('/').any(|p| p == "..") || object.split('/').any(|p| p == "..") {
            return invalid();
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
        for (bad, why) in [
            ("", "hostname required"),
            ("busybox", "object required"),
            (
                "busybox:1.36",
                "parse \"dummy://busybox:1.36\": invalid port \":1.36\" after host",
            ),
            ("/a", "hostname required"),
            ("h/", "object required"),
            ("h/../x", "invalid reference"),
            ("h/a/../../b:t", "invalid reference"),
            ("http://h/a", "invalid reference"),
            ("h/a b", "invalid reference"),
            ("../a:t", "invalid reference"),
            ("user:secret@h/a:t", "invalid reference"),
            ("h/a\\..\\..\\b:t", "invalid reference"),
            ("h\\x/a:t", "invalid reference"),
        ] {
            let e = Reference::parse(bad).unwrap_err();
            assert_eq!(e.to_string(), why, "{bad}");
        }
    }
}
