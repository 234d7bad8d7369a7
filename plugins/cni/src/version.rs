//! Versions of the CNI specification.

use std::fmt;
use std::str::FromStr;

use corten_core::{Error, Result};

/// A version of the specification. Ordered as numbers, so 0.10.0 would be after 0.9.0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(u16, u16, u16);

impl Version {
    pub const V0_1_0: Self = Self(0, 1, 0);
    pub const V0_2_0: Self = Self(0, 2, 0);
    pub const V0_3_0: Self = Self(0, 3, 0);
    pub const V0_3_1: Self = Self(0, 3, 1);
    pub const V0_4_0: Self = Self(0, 4, 0);
    pub const V1_0_0: Self = Self(1, 0, 0);
    /// The newest that this crate speaks.
    pub const V1_1_0: Self = Self(1, 1, 0);

    /// All that this crate speaks, oldest first.
    pub const KNOWN: [Self; 7] = [
        Self::V0_1_0,
        Self::V0_2_0,
        Self::V0_3_0,
        Self::V0_3_1,
        Self::V0_4_0,
        Self::V1_0_0,
        Self::V1_1_0,
    ];

    /// Whether this crate speaks it.
    pub fn is_known(self) -> bool {
        Self::KNOWN.contains(&self)
    }

    /// CHECK exists, and DEL is told the result of ADD.
    pub fn has_check(self) -> bool {
        self >= Self::V0_4_0
    }

    /// STATUS and GC exist.
    pub fn has_status(self) -> bool {
        self >= Self::V1_1_0
    }
}

impl FromStr for Version {
    type Err = Error;

    /// The empty text is 0.1.0, which had no version field; missing parts are 0.
    fn from_str(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Ok(Self::V0_1_0);
        }
        let mut parts = [0u16; 3];
        let mut given = text.split('.');
        for part in &mut parts {
            let Some(text) = given.next() else { break };
            *part = text.parse().map_err(|_| bad(text))?;
        }
        if given.next().is_some() {
            return Err(bad(text));
        }
        Ok(Self(parts[0], parts[1], parts[2]))
    }
}

fn bad(text: &str) -> Error {
    Error::invalid(format!("CNI version {text:?}"))
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        let parse = |t: &str| t.parse::<Version>();
        assert_eq!(parse("").unwrap(), Version::V0_1_0);
        assert_eq!(parse("1.0").unwrap(), Version::V1_0_0);
        assert!(parse("0.10.0").unwrap() > Version::V0_4_0);
        assert!(!parse("9.9.9").unwrap().is_known());
        for text in ["x", "1.x", "1.0.0.0", "-1.0.0", "1.0.0-rc1", "99999.0.0"] {
            assert!(parse(text).is_err(), "{text}");
        }
        for v in Version::KNOWN {
            assert_eq!(parse(&v.to_string()).unwrap(), v);
        }
    }
}
