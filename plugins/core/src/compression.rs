//! How a blob is compressed, which its first bytes say: media types lie.

/// The compressions that layers and archives come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// The compression of what begins with `head`; four bytes are enough.
    pub fn of(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, 0x08, ..] => Self::Gzip,
            // A frame, or a skippable frame before it: zstd:chunked starts with one.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes() {
        for (head, want) in [
            (&[0x1f, 0x8b, 8, 0][..], Compression::Gzip),
            (&[0x28, 0xb5, 0x2f, 0xfd], Compression::Zstd),
            (&[0x53, 0x2a, 0x4d, 0x18, 1], Compression::Zstd),
            (&[0x1f, 0x8b], Compression::None),
            (b"oci-layout", Compression::None),
            (b"", Compression::None),
        ] {
            assert_eq!(Compression::of(head), want, "{head:?}");
        }
    }
}
