//! Owns paths as text: how containerd (Go's path package) compares and joins them. Nothing here asks a file system.

use std::path::Path;

/// The shortest text of the same path: no `.`, no `//`, `..` resolved by name, no slash at the end. Empty is `.`.
pub(super) fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|&last| last != "..") => {
                parts.pop();
            }
            // Above the root is the root.
            ".." if rooted => {}
            part => parts.push(part),
        }
    }
    let joined = parts.join("/");
    match (rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".into(),
        (false, false) => joined,
    }
}

/// `parent` and `name` as one clean path.
pub(super) fn join(parent: &str, name: &str) -> String {
    match parent {
        "" => clean(name),
        parent => clean(&format!("{parent}/{name}")),
    }
}

/// How deep a destination is: mounts are made in this order.
pub(super) fn depth(path: &str) -> usize {
    clean(path).matches('/').count()
}

/// A path of the host as text of a document.
pub(super) fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_as_go_does() {
        for (path, want) in [
            ("", "."),
            ("/", "/"),
            ("//a//b/", "/a/b"),
            ("/a/../../b", "/b"),
            ("a/../..", ".."),
            ("../a/./b/..", "../a"),
            ("/.", "/"),
        ] {
            assert_eq!(clean(path), want, "{path:?}");
        }
        assert_eq!(join("/kubepods/", "x"), "/kubepods/x");
        assert_eq!(join("", "x"), "x");
        assert_eq!((depth("/a"), depth("/a/b/")), (1, 2));
    }
}
