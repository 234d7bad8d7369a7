//! Names of images as people write them, made whole: `busybox` is `docker.io/library/busybox:latest`.
//!
//! The grammar and the words of its errors are the distribution project's, which every client of registries shares.

use corten_core::{Digest, Error, Kind, Result};

const DEFAULT_DOMAIN: &str = "docker.io";
const LEGACY_DOMAIN: &str = "index.docker.io";
const OFFICIAL: &str = "library";
const DEFAULT_TAG: &str = "latest";
/// Longest `domain/path`.
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

/// A whole name: repository with tag, or with digest, or with both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// `domain/path`.
    pub repository: String,
    pub tag: Option<String>,
    pub digest: Option<Digest>,
}

// === impl Named ===

impl Named {
    /// Makes `text` whole; nothing is added where there is no tag.
    ///
    /// # Errors
    /// InvalidArgument.
    pub fn normalized(text: &str) -> Result<Self> {
        if text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(invalid(format!(
                "invalid repository name ({text}), cannot specify 64-byte hexadecimal strings"
            )));
        }
        let (domain, remainder) = split_domain(text);
        let remote = remainder.split([':', '@']).next().unwrap_or_default();
        if remote.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(invalid(format!(
                "invalid reference format: repository name ({remote}) must be lowercase"
            )));
        }
        parse(&domain, &remainder)
    }

    /// What a pull of `text` is of: `latest` where nothing else is said, the digest alone where there are both.
    ///
    /// # Errors
    /// InvalidArgument.
    pub fn pulled(text: &str) -> Result<Self> {
        let mut named = Self::normalized(text)?;
        match (&named.tag, &named.digest) {
            (None, None) => named.tag = Some(DEFAULT_TAG.into()),
            (Some(_), Some(_)) => named.tag = None,
            _ => {}
        }
        Ok(named)
    }

    /// `domain/path@digest`.
    pub fn at(&self, digest: &str) -> String {
        format!("{}@{digest}", self.repository)
    }
}

impl std::fmt::Display for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// Splits stored names into those with a digest and those with a tag only, each made whole. Others (ids) are neither.
pub fn tags_and_digests<'a>(
    names: impl IntoIterator<Item = &'a str>,
) -> (Vec<String>, Vec<String>) {
    let (mut tags, mut digests) = (Vec::new(), Vec::new());
    for name in names {
        if Digest::parse(name).is_ok() {
            continue;
        }
        match Named::normalized(name) {
            Ok(named) if named.digest.is_some() => digests.push(named.to_string()),
            Ok(named) if named.tag.is_some() => tags.push(named.to_string()),
            _ => {}
        }
    }
    (tags, digests)
}

/// Where a stored name stands among the names of its image: the more it says, the earlier.
pub fn rank(name: &str) -> u8 {
    if Digest::parse(name).is_ok() {
        return 4;
    }
    match Named::normalized(name) {
        Ok(n) => match (n.tag.is_some(), n.digest.is_some()) {
            (true, true) => 0,
            (true, false) => 1,
            (false, true) => 2,
            (false, false) => 3,
        },
        Err(_) => 5,
    }
}

fn split_domain(text: &str) -> (String, String) {
    let looks_like_host = |s: &str| {
        s.contains(['.', ':']) || s == "localhost" || s.bytes().any(|b| b.is_ascii_uppercase())
    };
    let (domain, remainder) = match text.split_once('/') {
        Some((first, rest)) if looks_like_host(first) => (first, rest.to_owned()),
        _ => (DEFAULT_DOMAIN, text.to_owned()),
    };
    let domain = match domain {
        LEGACY_DOMAIN => DEFAULT_DOMAIN,
        other => other,
    };
    if domain == DEFAULT_DOMAIN && !remainder.contains('/') {
        return (domain.into(), format!("{OFFICIAL}/{remainder}"));
    }
    (domain.into(), remainder)
}

fn parse(domain: &str, remainder: &str) -> Result<Named> {
    let format = || invalid("invalid reference format".into());
    let (rest, digest) = match remainder.split_once('@') {
        Some((rest, digest)) => (rest, Some(Digest::parse(digest).map_err(|_| format())?)),
        None => (remainder, None),
    };
    let (path, tag) = match rest.split_once(':') {
        Some((path, tag)) if is_tag(tag) => (path, Some(tag.to_owned())),
        Some(_) => return Err(format()),
        None => (rest, None),
    };
    if !is_domain(domain) || !path.split('/').all(is_component) {
        return Err(format());
    }
    let repository = format!("{domain}/{path}");
    if repository.len() > MAX_NAME {
        return Err(invalid(format!(
            "repository name must not be more than {MAX_NAME} characters"
        )));
    }
    Ok(Named {
        repository,
        tag,
        digest,
    })
}

fn is_domain(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|t| t.split_once(']')) {
        Some((v6, rest)) => {
            let known = |b: u8| b.is_ascii_hexdigit() || b == b':';
            if v6.is_empty() || !v6.bytes().all(known) {
                return false;
            }
            return match rest.strip_prefix(':') {
                Some(port) => is_port(port),
                None => rest.is_empty(),
            };
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let part = |p: &str| {
        let bytes = p.as_bytes();
        let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
        edge(bytes.first())
            && edge(bytes.last())
            && bytes
                .iter()
                .all(|b| b.is_ascii_alphanumeric() || *b == b'-')
    };
    host.split('.').all(part) && port.is_none_or(is_port)
}

fn is_port(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

// Runs of [a-z0-9] with `.`, `_`, `__` or dashes between them.
fn is_component(text: &str) -> bool {
    let plain = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    if !bytes.first().is_some_and(plain) || !bytes.last().is_some_and(plain) {
        return false;
    }
    bytes.split(plain).all(|separator| {
        matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-')
    })
}

fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    text.len() <= MAX_TAG
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'))
}

fn invalid(text: String) -> Error {
    Error::new(Kind::InvalidArgument, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_made_whole() {
        let d = Digest::sha256(b"x");
        for (text, want) in [
            ("busybox", "docker.io/library/busybox:latest".to_owned()),
            ("a/b", "docker.io/a/b:latest".to_owned()),
            ("index.docker.io/b:1", "docker.io/library/b:1".to_owned()),
            ("localhost/b", "localhost/b:latest".to_owned()),
            (
                "h:5000/a/b__c-d.e:T.1-x",
                "h:5000/a/b__c-d.e:T.1-x".to_owned(),
            ),
            ("[::1]:5000/a", "[::1]:5000/a:latest".to_owned()),
            (&format!("a@{d}"), format!("docker.io/library/a@{d}")),
            (&format!("a:b@{d}"), format!("docker.io/library/a@{d}")),
        ] {
            assert_eq!(Named::pulled(text).unwrap().to_string(), want, "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let long = format!("h.io/{}", "a".repeat(251));
        assert!(Named::pulled(&long[..255]).is_ok());
        for (bad, why) in [
            ("", "invalid reference format"),
            (
                "Busybox",
                "invalid reference format: repository name (library/Busybox) must be lowercase",
            ),
            ("a b", "invalid reference format"),
            ("a//b", "invalid reference format"),
            ("a/../b", "invalid reference format"),
            ("a_.b", "invalid reference format"),
            ("a:", "invalid reference format"),
            ("a@sha256:00", "invalid reference format"),
            ("http://h/a", "invalid reference format"),
            ("-h.io/a", "invalid reference format"),
            (&"a".repeat(64), "invalid repository name"),
            (
                &long,
                "repository name must not be more than 255 characters",
            ),
        ] {
            let e = Named::pulled(bad).unwrap_err();
            assert!(e.to_string().starts_with(why), "{bad}: {e}");
            assert_eq!(e.kind(), Kind::InvalidArgument);
        }
        let tag = |n: usize| format!("a:{}", "t".repeat(n));
        assert!(Named::pulled(&tag(128)).is_ok() && Named::pulled(&tag(129)).is_err());
    }

    #[test]
    fn stored_names_are_sorted_out() {
        let d = Digest::sha256(b"x");
        let (at, id) = (format!("h.io/a@{d}"), d.to_string());
        let (tags, digests) = tags_and_digests(["h.io/a:1", at.as_str(), id.as_str(), "A B"]);
        assert_eq!((tags, digests), (vec!["h.io/a:1".into()], vec![at.clone()]));
        assert!(rank("h.io/a:1") < rank(&at) && rank(&at) < rank(&id));
    }
}
