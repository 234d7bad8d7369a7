//! Content digests: `<algorithm>:<hex>` (image-spec, Descriptor).

use std::fmt;
use std::str::FromStr;

use sha2::Digest as _;

use crate::error::{Error, Kind, Result};

/// A valid digest of sha256, sha384 or sha512.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(String);

impl Digest {
    /// Parses and checks `<algorithm>:<lower-case hex>`.
    ///
    /// # Errors
    /// InvalidArgument for anything else; never panics on any text.
    pub fn parse(text: &str) -> Result<Self> {
        match Self::wrong(text) {
            None => Ok(Self(text.to_owned())),
            Some(why) => Err(Error::new(
                Kind::InvalidArgument,
                format!("digest {text:?}: {why}: invalid argument"),
            )),
        }
    }

    /// What is wrong with `text`, in the words of Go's clients; `None` when it is a digest.
    pub fn wrong(text: &str) -> Option<&'static str> {
        let Some((algorithm, hex)) = text.split_once(':') else {
            return Some("invalid checksum digest format");
        };
        let length = match algorithm {
            "sha256" => 64,
            "sha384" => 96,
            "sha512" => 128,
            _ => return Some("unsupported digest algorithm"),
        };
        if hex.len() != length {
            return Some("invalid checksum digest length");
        }
        (!hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
            .then_some("invalid checksum digest format")
    }

    /// The sha256 digest of `data`.
    pub fn sha256(data: &[u8]) -> Self {
        Self::from_sha256(sha2::Sha256::digest(data).as_slice())
    }

    /// From the 32 bytes that a sha256 hasher gave.
    pub fn from_sha256(bytes: &[u8]) -> Self {
        Self(format!("sha256:{}", hex(bytes)))
    }

    /// From the 64 bytes that a sha512 hasher gave.
    pub fn from_sha512(bytes: &[u8]) -> Self {
        Self(format!("sha512:{}", hex(bytes)))
    }

    /// The whole text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part before the colon.
    pub fn algorithm(&self) -> &str {
        self.0.split_once(':').map_or("", |p| p.0)
    }

    /// The part after the colon.
    pub fn hex(&self) -> &str {
        self.0.split_once(':').map_or("", |p| p.1)
    }
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut out = String::with_capacity(bytes.len() * 2);
    for b in bytes {
        out.push(DIGITS[usize::from(b >> 4)].into());
        out.push(DIGITS[usize::from(b & 15)].into());
    }
    out
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Digest {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        Self::parse(s)
    }
}

/// The chain ids of a list of diff ids, one for each prefix (image-spec, Layer ChainID).
pub fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut out: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for id in diff_ids {
        let next = match out.last() {
            None => id.clone(),
            Some(parent) => Digest::sha256(format!("{parent} {id}").as_bytes()),
        };
        out.push(next);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_well_formed_digests_parse() {
        let good = Digest::sha256(b"");
        assert_eq!(
            good.as_str(),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        assert_eq!(Digest::parse(good.as_str()).unwrap(), good);
        for bad in [
            "",
            ":",
            "sha256:",
            "sha256:ab",
            "md5:00",
            "sha256",
            "sha256:../../etc",
        ] {
            assert!(Digest::parse(bad).is_err(), "{bad}");
        }
        assert!(Digest::parse(&good.as_str().to_uppercase()).is_err());
    }

    #[test]
    fn chain_ids_follow_the_image_spec() {
        let a = Digest::sha256(b"a");
        let b = Digest::sha256(b"b");
        let chain = chain_ids(&[a.clone(), b.clone()]);
        assert_eq!(chain[0], a);
        assert_eq!(chain[1], Digest::sha256(format!("{a} {b}").as_bytes()));
    }
}
