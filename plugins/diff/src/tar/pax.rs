//! PAX extended headers: `<length> <key>=<value>\n`, strictly.

use std::collections::BTreeMap;
use std::io;

use super::sparse::Fragment;
use super::{XATTR, invalid};

/// The records of one extended header.
#[derive(Debug, Default)]
pub(super) struct Records {
    /// Last value of each key; an empty one is as good as none.
    values: BTreeMap<String, Vec<u8>>,
    /// Pairs of the sparse format 0.0, whose keys repeat.
    pub(super) sparse: Vec<Fragment>,
}

impl Records {
    pub(super) fn parse(mut data: &[u8]) -> io::Result<Self> {
        let bad = || invalid("invalid PAX record");
        let mut out = Self::default();
        let mut offset = None;
        while !data.is_empty() {
            let space = data
                .iter()
                .take(21)
                .position(|b| *b == b' ')
                .ok_or_else(bad)?;
            let length: usize = ascii(&data[..space]).ok_or_else(bad)?;
            if length <= space + 1 || length > data.len() || data[length - 1] != b'\n' {
                return Err(bad());
            }
            let record = &data[space + 1..length - 1];
            data = &data[length..];
            let equals = record.iter().position(|b| *b == b'=').ok_or_else(bad)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            let key = std::str::from_utf8(key).map_err(|_| bad())?;
            let is_text = matches!(key, "path" | "linkpath" | "uname" | "gname");
            if key.is_empty() || key.contains('\0') || (is_text && value.contains(&0)) {
                return Err(bad());
            }
            match key {
                "GNU.sparse.offset" => offset = Some(ascii(value).ok_or_else(bad)?),
                "GNU.sparse.numbytes" => {
                    let offset = offset.take().ok_or_else(bad)?;
                    out.sparse.push(Fragment {
                        offset,
                        length: ascii(value).ok_or_else(bad)?,
                    });
                }
                _ => {
                    out.values.insert(key.to_owned(), value.to_owned());
                }
            }
        }
        Ok(out)
    }

    pub(super) fn get(&self, key: &str) -> Option<&[u8]> {
        self.values
            .get(key)
            .map(Vec::as_slice)
            .filter(|v| !v.is_empty())
    }

    pub(super) fn number(&self, key: &str) -> io::Result<Option<i64>> {
        let parse = |v: &[u8]| ascii(v).ok_or_else(|| invalid(format!("invalid PAX {key}")));
        self.get(key).map(parse).transpose()
    }

    /// Seconds and nanoseconds.
    pub(super) fn time(&self, key: &str) -> io::Result<Option<(i64, u32)>> {
        let parse = |v: &[u8]| time(v).ok_or_else(|| invalid(format!("invalid PAX {key}")));
        self.get(key).map(parse).transpose()
    }

    /// Extended attributes, in key order.
    pub(super) fn xattrs(&self) -> Vec<(String, Vec<u8>)> {
        self.values
            .range(XATTR.to_owned()..)
            .map_while(|(k, v)| Some((k.strip_prefix(XATTR)?.to_owned(), v.clone())))
            .filter(|(k, _)| !k.is_empty())
            .collect()
    }
}

/// A whole ASCII number; no sign but `-`.
pub(super) fn ascii<T: std::str::FromStr>(digits: &[u8]) -> Option<T> {
    if digits.first() == Some(&b'+') {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn time(value: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let seconds: i64 = ascii(whole.as_bytes())?;
    let nanos: u32 = format!("{:0<9.9}", fraction).parse().ok()?;
    if whole.starts_with('-') && nanos > 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos));
    }
    Some((seconds, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_parse_strictly_and_the_last_one_wins() {
        let r = Records::parse(b"9 path=a\n9 path=b\n25 SCHILY.xattr.user.x=y\n").unwrap();
        assert_eq!(r.get("path").unwrap(), b"b");
        assert_eq!(r.xattrs(), [("user.x".to_owned(), b"y".to_vec())]);
        for bad in [
            &b"9 path=a"[..],
            b"99 path=a\n",
            b"0 path=a\n",
            b"8 path=\0\n",
            b"9 path=\0\n",
            b"5 =a\n",
            b"9 patha\n\n",
            b"-9 path=a\n",
            b"18446744073709551616 a=b\n",
            b"23 GNU.sparse.numbytes=1\n",
        ] {
            assert!(
                Records::parse(bad).is_err(),
                "{:?}",
                String::from_utf8_lossy(bad)
            );
        }
    }

    #[test]
    fn times_have_nanoseconds_and_signs() {
        assert_eq!(
            time(b"1350244992.023960108"),
            Some((1_350_244_992, 23_960_108))
        );
        assert_eq!(time(b"12.5"), Some((12, 500_000_000)));
        assert_eq!(time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time(b"7."), Some((7, 0)));
        assert_eq!(time(b"1.0000000009"), Some((1, 0)));
        assert!(time(b"x").is_none() && time(b"1.2x").is_none() && time(b"").is_none());
    }
}
