//! One 512-byte header and its number formats.

use std::io;

use super::{BLOCK, invalid};

/// Which fields beyond V7's a header has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    V7,
    /// POSIX, with and without PAX records.
    Ustar,
    Star,
    Gnu,
}

/// A header whose checksum is right.
pub(super) struct Header<'a> {
    block: &'a [u8; BLOCK],
    pub(super) format: Format,
}

impl<'a> Header<'a> {
    pub(super) fn parse(block: &'a [u8; BLOCK]) -> io::Result<Self> {
        let want = number(&block[148..156])?;
        let (mut unsigned, mut signed) = (0i64, 0i64);
        for (i, b) in block.iter().enumerate() {
            let b = if (148..156).contains(&i) { b' ' } else { *b };
            unsigned += i64::from(b);
            signed += i64::from(b.cast_signed());
        }
        if want != unsigned && want != signed {
            return Err(invalid("invalid tar header"));
        }
        let format = match (&block[257..263], &block[263..265]) {
            (b"ustar\0", _) if &block[508..512] == b"tar\0" => Format::Star,
            (b"ustar\0", _) => Format::Ustar,
            (b"ustar ", b" \0") => Format::Gnu,
            _ => Format::V7,
        };
        Ok(Self { block, format })
    }

    pub(super) fn kind(&self) -> u8 {
        self.block[156]
    }

    pub(super) fn name(&self) -> Vec<u8> {
        let name = text(&self.block[..100]);
        let prefix = match self.format {
            Format::Ustar => text(&self.block[345..500]),
            Format::Star => text(&self.block[345..476]),
            Format::V7 | Format::Gnu => b"",
        };
        if prefix.is_empty() {
            return name.to_vec();
        }
        [prefix, b"/", name].concat()
    }

    pub(super) fn link(&self) -> Vec<u8> {
        text(&self.block[157..257]).to_vec()
    }

    pub(super) fn mode(&self) -> io::Result<i64> {
        number(&self.block[100..108])
    }

    pub(super) fn uid(&self) -> io::Result<i64> {
        number(&self.block[108..116])
    }

    pub(super) fn gid(&self) -> io::Result<i64> {
        number(&self.block[116..124])
    }

    pub(super) fn size(&self) -> io::Result<i64> {
        number(&self.block[124..136])
    }

    pub(super) fn mtime(&self) -> io::Result<i64> {
        number(&self.block[136..148])
    }

    /// Major and minor.
    pub(super) fn device(&self) -> io::Result<(i64, i64)> {
        if self.format == Format::V7 {
            return Ok((0, 0));
        }
        Ok((
            number(&self.block[329..337])?,
            number(&self.block[337..345])?,
        ))
    }
}

/// Up to the first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    field.split(|b| *b == 0).next().unwrap_or_default()
}

/// Octal digits, or base 256 when the top bit is set.
pub(super) fn number(field: &[u8]) -> io::Result<i64> {
    let bad = || invalid("invalid number in tar header");
    let Some((&first, rest)) = field.split_first() else {
        return Ok(0);
    };
    if first & 0x80 != 0 {
        let negative = first & 0x40 != 0;
        let mut value: i64 = if negative {
            i64::from(first | 0x80) - 256
        } else {
            i64::from(first & 0x7f)
        };
        for b in rest {
            value = value.checked_mul(256).ok_or_else(bad)? | i64::from(*b);
        }
        return Ok(value);
    }
    let digits = text(field);
    let digits = digits.trim_ascii();
    if digits.len() > 21 || !digits.iter().all(|b| matches!(b, b'0'..=b'7')) {
        return Err(bad());
    }
    digits.iter().try_fold(0i64, |v, d| {
        v.checked_mul(8)
            .map(|v| v + i64::from(d - b'0'))
            .ok_or_else(bad)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        assert_eq!(number(b"0000644\0").unwrap(), 0o644);
        assert_eq!(number(b"   17 \0\0").unwrap(), 0o17);
        assert_eq!(number(b"\0\0\0\0").unwrap(), 0);
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 1, 0]).unwrap(), 256);
        assert_eq!(number(&[0xff; 8]).unwrap(), -1);
        assert!(number(b"00x0644\0").is_err() && number(b"-1\0").is_err());
        assert!(
            number(&[
                0x80, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff
            ])
            .is_err()
        );
    }
}
