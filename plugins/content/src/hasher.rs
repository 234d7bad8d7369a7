//! Streaming digests of the algorithms that OCI registers.

use std::io::{self, Read};
use std::path::Path;

use corten_core::Digest;
use corten_core::digest::hex;
use sha2::Digest as _;
use sha2::{Sha256, Sha384, Sha512};

/// A running hash.
#[derive(Debug, Clone)]
pub(crate) enum Hasher {
    Sha256(Sha256),
    Sha384(Sha384),
    Sha512(Sha512),
}

impl Hasher {
    /// The hash that can check `expected`; sha256 when nothing is expected.
    pub(crate) fn for_digest(expected: Option<&Digest>) -> Self {
        match expected.map(Digest::algorithm) {
            Some("sha512") => Self::Sha512(Sha512::new()),
            Some("sha384") => Self::Sha384(Sha384::new()),
            _ => Self::Sha256(Sha256::new()),
        }
    }

    pub(crate) fn algorithm(&self) -> &'static str {
        match self {
            Self::Sha256(_) => "sha256",
            Self::Sha384(_) => "sha384",
            Self::Sha512(_) => "sha512",
        }
    }

    pub(crate) fn update(&mut self, data: &[u8]) {
        match self {
            Self::Sha256(h) => h.update(data),
            Self::Sha384(h) => h.update(data),
            Self::Sha512(h) => h.update(data),
        }
    }

    /// The digest of everything so far.
    pub(crate) fn digest(&self) -> Digest {
        match self {
            Self::Sha256(h) => Digest::from_sha256(h.clone().finalize().as_slice()),
            Self::Sha512(h) => Digest::from_sha512(h.clone().finalize().as_slice()),
            Self::Sha384(h) => {
                Digest::parse(&format!("sha384:{}", hex(h.clone().finalize().as_slice())))
                    .expect("sha384 gives 48 bytes, which are 96 hex digits")
            }
        }
    }

    /// Restarts and hashes the first `limit` bytes of a file; returns how many there were.
    pub(crate) fn rehash(&mut self, path: &Path, limit: u64) -> io::Result<u64> {
        *self = match self {
            Self::Sha256(_) => Self::Sha256(Sha256::new()),
            Self::Sha384(_) => Self::Sha384(Sha384::new()),
            Self::Sha512(_) => Self::Sha512(Sha512::new()),
        };
        let mut file = std::fs::File::open(path)?.take(limit);
        let mut buffer = vec![0; 256 * 1024];
        let mut total = 0;
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(total),
                n => {
                    self.update(&buffer[..n]);
                    total += n as u64;
                }
            }
        }
    }
}
