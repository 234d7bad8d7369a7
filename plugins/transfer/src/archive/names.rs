//! Image names as Docker writes them in `manifest.json`: short ones mean Docker Hub, no tag means latest.

use corten_core::reference::Reference;
use corten_core::{Error, Result};

const HUB: &str = "docker.io";

/// `busybox` -> `docker.io/library/busybox:latest`; a digest takes the place of a tag.
///
/// # Errors
/// InvalidArgument for what is no name.
pub(super) fn normalize(name: &str) -> Result<String> {
    let bad = |why: &str| Error::invalid(format!("normalize image ref {name:?}: {why}"));
    let (head, digest) = match name.split_once('@') {
        Some((head, digest)) => (head, Some(digest)),
        None => (name, None),
    };
    let (host, rest) = match head.split_once('/') {
        Some((h, rest)) if h.contains(['.', ':']) || h == "localhost" => (h, rest.to_owned()),
        _ => (HUB, head.to_owned()),
    };
    let host = if host == "index.docker.io" { HUB } else { host };
    let rest = if host == HUB && !rest.contains('/') {
        format!("library/{rest}")
    } else {
        rest
    };
    let (path, tag) = match rest.rsplit_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (rest.as_str(), None),
    };
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-/".contains(&b);
    if path.is_empty() || path.ends_with('/') || !path.bytes().all(plain) {
        return Err(bad("invalid reference format"));
    }
    if tag.is_some_and(|t| {
        t.is_empty()
            || !t
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    }) {
        return Err(bad("invalid reference format"));
    }
    let out = match (digest, tag) {
        (Some(digest), _) => format!("{host}/{path}@{}", corten_core::Digest::parse(digest)?),
        (None, tag) => format!("{host}/{path}:{}", tag.unwrap_or("latest")),
    };
    Reference::parse(&out)?;
    Ok(out)
}

/// The short form of a name: `docker.io/library/busybox:1` -> `busybox:1`.
pub(super) fn familiar(name: &str) -> String {
    let short = name
        .strip_prefix("docker.io/library/")
        .or_else(|| name.strip_prefix("docker.io/"))
        .unwrap_or(name);
    let last = short.rsplit('/').next().unwrap_or_default();
    if last.contains([':', '@']) {
        short.to_owned()
    } else {
        format!("{short}:latest")
    }
}

/// The tag of a full name, for `org.opencontainers.image.ref.name`; the whole name when it has none.
pub(super) fn oci_name(name: &str) -> String {
    match Reference::parse(name) {
        Ok(r) if !r.object.is_empty() && !r.object.starts_with('@') => r.object,
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let d = corten_core::Digest::sha256(b"");
        for (short, full) in [
            ("busybox", "docker.io/library/busybox:latest".to_owned()),
            ("a/b:1", "docker.io/a/b:1".into()),
            ("localhost/x:1", "localhost/x:1".into()),
            ("h:5000/x", "h:5000/x:latest".into()),
            ("q.io/a/b:v", "q.io/a/b:v".into()),
            (&format!("x:1@{d}"), format!("docker.io/library/x@{d}")),
        ] {
            assert_eq!(normalize(short).unwrap(), full, "{short}");
        }
        for bad in ["", "A", "x:", "x y", "x@sha256:1", "h.io/"] {
            assert!(normalize(bad).is_err(), "{bad}");
        }
        assert_eq!(familiar("docker.io/library/busybox:1"), "busybox:1");
        assert_eq!(familiar("docker.io/a/b:1"), "a/b:1");
        assert_eq!(familiar("q.io/a/b"), "q.io/a/b:latest");
        assert_eq!(oci_name("docker.io/library/busybox:1"), "1");
        assert_eq!(oci_name("import-x"), "import-x");
    }
}
