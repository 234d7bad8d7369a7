//! OCI platforms: normal form, text form, and which image runs on which host (containerd: github.com/containerd/platforms).

use std::cmp::Ordering;

use corten_core::json::nullable;
use corten_core::protos::containerd::types::Platform as Proto;
use corten_core::{Error, Result};
use serde::{Deserialize, Serialize};

/// A platform as image documents write it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Platform {
    #[serde(deserialize_with = "nullable")]
    pub architecture: String,
    #[serde(deserialize_with = "nullable")]
    pub os: String,
    #[serde(
        rename = "os.version",
        deserialize_with = "nullable",
        skip_serializing_if = "String::is_empty"
    )]
    pub os_version: String,
    #[serde(
        rename = "os.features",
        deserialize_with = "nullable",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub os_features: Vec<String>,
    #[serde(
        deserialize_with = "nullable",
        skip_serializing_if = "String::is_empty"
    )]
    pub variant: String,
}

/// Which platforms are wanted, best first; an empty list wants all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Matcher {
    wanted: Vec<Platform>,
    os_only: bool,
}

// === impl Platform ===

impl Platform {
    /// The host's.
    pub fn host() -> Self {
        let h = corten_registry::Platform::host();
        Self {
            architecture: h.architecture,
            os: h.os,
            variant: h.variant,
            ..Self::default()
        }
    }

    /// Parses `linux/arm64/v8`, `linux`, `arm64`, and `linux(+feature)/amd64`.
    ///
    /// # Errors
    /// InvalidArgument.
    pub fn parse(text: &str) -> Result<Self> {
        let bad = || Error::invalid(format!("{text:?}: invalid platform"));
        let parts: Vec<&str> = text.split('/').collect();
        let (os, options) = match parts[0].split_once('(') {
            Some((os, rest)) => (os, rest.strip_suffix(')').ok_or_else(bad)?),
            None => (parts[0], ""),
        };
        let mut out = Self::host().normal();
        let plain = |s: &str| {
            !s.is_empty()
                && s.bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
        };
        if !plain(os) || parts[1..].iter().any(|p| !plain(p)) {
            return Err(bad());
        }
        for option in options.split('+').filter(|o| !o.is_empty()) {
            match option.as_bytes()[0] {
                b'0'..=b'9' => out.os_version = option.to_owned(),
                _ => out.os_features.push(option.to_owned()),
            }
        }
        match parts.as_slice() {
            [_] if KNOWN_OS.contains(&os.to_lowercase().as_str()) => {
                out.os = os.to_lowercase();
            }
            [_] => {
                out.architecture = os.to_owned();
                out.variant = String::new();
            }
            [_, arch] => {
                out.os = os.to_owned();
                (out.architecture, out.variant) = ((*arch).to_owned(), String::new());
            }
            [_, arch, variant] => {
                out.os = os.to_owned();
                (out.architecture, out.variant) = ((*arch).to_owned(), (*variant).to_owned());
            }
            _ => return Err(bad()),
        }
        Ok(out.normal())
    }

    /// The normal form: lower case, usual names, no default variants.
    #[must_use]
    pub fn normal(&self) -> Self {
        let mut os = self.os.to_lowercase();
        if os.is_empty() {
            os = "linux".into();
        } else if os == "macos" {
            os = "darwin".into();
        }
        let arch = self.architecture.to_lowercase();
        let (architecture, variant) = normal_arch(&arch, &self.variant.to_lowercase());
        let mut os_features = self.os_features.clone();
        os_features.sort();
        Self {
            architecture: architecture.into(),
            variant,
            os,
            os_version: self.os_version.clone(),
            os_features,
        }
    }

    fn fits(&self, image: &Self) -> bool {
        self.os == image.os
            && self.architecture == image.architecture
            && self.variant == image.variant
            && self.has_features_of(image)
    }

    fn has_features_of(&self, image: &Self) -> bool {
        image
            .os_features
            .iter()
            .all(|f| self.os_features.contains(f))
    }

    /// Whether an image config or index entry names no real platform (attestations).
    pub fn is_unknown(&self) -> bool {
        self.os == "unknown" || self.architecture == "unknown"
    }
}

impl From<&Proto> for Platform {
    fn from(p: &Proto) -> Self {
        Self {
            architecture: p.architecture.clone(),
            os: p.os.clone(),
            os_version: p.os_version.clone(),
            os_features: p.os_features.clone(),
            variant: p.variant.clone(),
        }
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}",
            if self.os.is_empty() {
                "unknown"
            } else {
                &self.os
            }
        )?;
        for part in [&self.architecture, &self.variant] {
            if !part.is_empty() {
                write!(f, "/{part}")?;
            }
        }
        Ok(())
    }
}

// === impl Matcher ===

impl Matcher {
    /// Every platform.
    pub fn all() -> Self {
        Self::default()
    }

    /// Exactly these, best first; an empty list means all.
    pub fn ordered<'a>(wanted: impl IntoIterator<Item = &'a Platform>) -> Self {
        Self {
            wanted: wanted.into_iter().map(Platform::normal).collect(),
            os_only: false,
        }
    }

    /// What a host of platform `p` can run: `p` itself, then its older variants.
    pub fn only(p: &Platform) -> Self {
        Self {
            wanted: runnable(&p.normal()),
            os_only: false,
        }
    }

    /// Any architecture of `p`'s operating system.
    pub fn only_os(p: &Platform) -> Self {
        Self {
            wanted: vec![p.normal()],
            os_only: true,
        }
    }

    /// Whether `image` is wanted.
    pub fn matches(&self, image: &Platform) -> bool {
        let image = image.normal();
        if self.os_only {
            return self
                .wanted
                .iter()
                .any(|w| w.os == image.os && w.has_features_of(&image));
        }
        self.wanted.is_empty() || self.wanted.iter().any(|w| w.fits(&image))
    }

    /// Orders entries of an index: the better match first, entries without platform last.
    pub fn compare(&self, a: Option<&Platform>, b: Option<&Platform>) -> Ordering {
        let (Some(a), Some(b)) = (a, b) else {
            return a.is_none().cmp(&b.is_none());
        };
        self.rank(a).cmp(&self.rank(b))
    }

    fn rank(&self, p: &Platform) -> (usize, std::cmp::Reverse<usize>) {
        let p = p.normal();
        let at = self
            .wanted
            .iter()
            .position(|w| w.fits(&p))
            .unwrap_or(self.wanted.len());
        (at, std::cmp::Reverse(p.os_features.len()))
    }
}

const KNOWN_OS: [&str; 6] = [
    "linux", "windows", "darwin", "freebsd", "android", "solaris",
];

fn normal_arch<'a>(arch: &'a str, variant: &str) -> (&'a str, String) {
    match (arch, variant) {
        ("i386", _) => ("386", String::new()),
        ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", String::new()),
        ("x86_64" | "x86-64" | "amd64", v) => ("amd64", v.into()),
        ("aarch64" | "arm64", "8" | "v8" | "v8.0") => ("arm64", String::new()),
        ("aarch64" | "arm64", "9" | "9.0" | "v9.0") => ("arm64", "v9".into()),
        ("aarch64" | "arm64", v) => ("arm64", v.into()),
        ("armhf", _) => ("arm", "v7".into()),
        ("armel", _) => ("arm", "v6".into()),
        ("arm", "" | "7") => ("arm", "v7".into()),
        ("arm", v @ ("5" | "6" | "8")) => ("arm", format!("v{v}")),
        (a, v) => (a, v.into()),
    }
}

/// `p` and what else runs on it, best first. `p` is in normal form.
fn runnable(p: &Platform) -> Vec<Platform> {
    let with = |architecture: &str, variant: String| {
        Platform {
            architecture: architecture.into(),
            variant,
            ..p.clone()
        }
        .normal()
    };
    let number = |v: &str| v.strip_prefix('v').and_then(|n| n.parse::<u32>().ok());
    let mut out = Vec::new();
    match p.architecture.as_str() {
        "amd64" => {
            out.push(p.clone());
            let top = number(&p.variant).unwrap_or(1).min(16);
            out.extend((1..top).rev().map(|v| with("amd64", format!("v{v}"))));
            out.push(with("386", String::new()));
        }
        "arm" => {
            out.push(p.clone());
            let top = number(&p.variant).unwrap_or(5).min(16);
            out.extend((5..top).rev().map(|v| with("arm", format!("v{v}"))));
        }
        "arm64" => {
            let variant = if p.variant.is_empty() {
                "v8"
            } else {
                &p.variant
            };
            let (major, minor) = match variant.split_once('.') {
                Some((m, n)) => (number(m), n.parse::<u32>().ok()),
                None => (number(variant), Some(0)),
            };
            // An ARMv9.N core runs v9.N and below, and ARMv8.(N+5) and below.
            let tops = match (major, minor) {
                (Some(9), Some(n)) if n <= 7 => vec![(9, n), (8, (n + 5).min(9))],
                (Some(8), Some(n)) if n <= 9 => vec![(8, n)],
                _ => return vec![p.clone()],
            };
            for (major, top) in tops {
                out.extend((0..=top).rev().map(|n| match n {
                    0 => with("arm64", format!("v{major}")),
                    n => with("arm64", format!("v{major}.{n}")),
                }));
            }
            out.extend((5..=8).rev().map(|v| with("arm", format!("v{v}"))));
        }
        _ => out.push(p.clone()),
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p(text: &str) -> Platform {
        Platform::parse(text).unwrap()
    }

    #[test]
    fn parse_and_print() {
        for (text, shown) in [
            ("linux/amd64", "linux/amd64"),
            ("linux/x86_64", "linux/amd64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("Linux/armhf", "linux/arm/v7"),
            ("linux(+erofs)/amd64", "linux/amd64"),
        ] {
            assert_eq!(p(text).to_string(), shown, "{text}");
        }
        assert_eq!(p("linux(+erofs)/amd64").os_features, ["erofs"]);
        for bad in ["", "a/b/c/d", "linux(", "li nux/amd64", "linux/"] {
            assert!(Platform::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn matching() {
        let amd = Matcher::only(&p("linux/amd64"));
        assert!(amd.matches(&p("linux/amd64")) && amd.matches(&p("linux/386")));
        assert!(!amd.matches(&p("linux/arm64")) && !amd.matches(&p("linux(+erofs)/amd64")));
        let arm = Matcher::only(&p("linux/arm64"));
        assert!(arm.matches(&p("linux/arm64/v8")) && arm.matches(&p("linux/arm/v6")));
        assert!(Matcher::only_os(&p("linux/amd64")).matches(&p("linux/s390x")));
        assert!(!Matcher::only_os(&p("linux/amd64")).matches(&p("windows/amd64")));
        assert!(Matcher::all().matches(&p("windows/amd64")));
        let strict = Matcher::ordered(&[p("linux/amd64")]);
        assert!(!strict.matches(&p("linux/386")));
        assert_eq!(
            amd.compare(Some(&p("linux/amd64")), Some(&p("linux/386"))),
            Ordering::Less
        );
        assert_eq!(amd.compare(None, Some(&p("linux/386"))), Ordering::Greater);
    }
}
