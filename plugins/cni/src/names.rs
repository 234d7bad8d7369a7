//! What names may look like that end up in environments, file names and in front of `exec`.

use corten_core::{Error, Result};

/// Longest name of a network interface (IFNAMSIZ without the NUL).
const MAX_INTERFACE: usize = 15;
/// Longest name of a network or container: three of them make a file name.
const MAX_NAME: usize = 200;

/// A container id or a network name: letters, digits, `_`, `.`, `-`, beginning with a letter or digit.
///
/// # Errors
/// InvalidArgument.
pub fn check(what: &str, name: &str) -> Result<()> {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let good = name.len() <= MAX_NAME
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(inner);
    if good {
        Ok(())
    } else {
        Err(Error::invalid(format!("{what} {name:?}")))
    }
}

/// An interface name that the kernel takes.
///
/// # Errors
/// InvalidArgument.
pub fn check_interface(name: &str) -> Result<()> {
    let bad = |c: char| c == '/' || c == ':' || c == '\0' || c.is_whitespace();
    if name.is_empty()
        || name.len() > MAX_INTERFACE
        || matches!(name, "." | "..")
        || name.contains(bad)
    {
        return Err(Error::invalid(format!("interface name {name:?}")));
    }
    Ok(())
}

/// A plugin's type: the name of a file, never a path (CVE-2021-20206).
///
/// # Errors
/// InvalidArgument.
pub fn check_type(name: &str) -> Result<()> {
    if name.is_empty() || matches!(name, "." | "..") || name.contains(['/', '\0']) {
        return Err(Error::invalid(format!("CNI plugin type {name:?}")));
    }
    Ok(())
}

/// A key or value of CNI_ARGS, which has no escape for its separators.
///
/// # Errors
/// InvalidArgument.
pub fn check_arg(text: &str) -> Result<()> {
    if text.contains([';', '=', '\0']) {
        return Err(Error::invalid(format!("CNI argument {text:?}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_place() {
        for good in ["a", "0", "cni-0", "k8s_pod.net"] {
            check("network", good).unwrap();
        }
        let long = "a".repeat(MAX_NAME + 1);
        for bad in ["", ".", "..", "-a", "../a", "a/b", "a b", "a\0", "ä", &long] {
            check("network", bad).unwrap_err();
        }
        for good in ["eth0", "a.b", "exactly15bytes0"] {
            check_interface(good).unwrap();
        }
        for bad in ["", ".", "..", "a/b", "a:b", "a b", "sixteen-bytes-00"] {
            check_interface(bad).unwrap_err();
        }
        for bad in ["", ".", "..", "../../bin/sh", "/bin/sh"] {
            check_type(bad).unwrap_err();
        }
        check_arg("kube-system").unwrap();
        check_arg("a;K8S_POD_NAME=b").unwrap_err();
    }
}
