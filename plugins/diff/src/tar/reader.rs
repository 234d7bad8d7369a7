//! The archive as a sequence of entries.

use std::io::{self, BufRead, ErrorKind};

use super::header::{Format, Header};
use super::pax::Records;
use super::sparse::{self, Map, Pax};
use super::{BLOCK, invalid};

/// Longest extended header or long name (Go: maxSpecialFileSize).
const MAX_SPECIAL: u64 = 1 << 20;

/// What an entry makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EntryKind {
    File,
    Dir,
    Symlink,
    HardLink,
    /// Major and minor, as the archive has them.
    Char(i64, i64),
    Block(i64, i64),
    Fifo,
}

/// One entry, all its headers merged.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: EntryKind,
    pub(crate) mode: u32,
    pub(crate) uid: i64,
    pub(crate) gid: i64,
    /// Seconds and nanoseconds.
    pub(crate) mtime: (i64, u32),
    pub(crate) atime: Option<(i64, u32)>,
    pub(crate) xattrs: Vec<(String, Vec<u8>)>,
    /// Bytes of data in the archive.
    pub(crate) stored: u64,
    /// Where they belong, unless it is simply the whole file.
    pub(crate) sparse: Option<Map>,
}

/// Reads entries from a buffered stream.
pub(crate) struct Reader<R> {
    input: R,
    /// Data and padding of the current entry that were not read yet.
    data: u64,
    padding: u64,
}

impl<R: BufRead> Reader<R> {
    pub(crate) fn new(input: R) -> Self {
        Self {
            input,
            data: 0,
            padding: 0,
        }
    }

    /// The stream after the archive's end.
    pub(crate) fn into_inner(self) -> R {
        self.input
    }

    /// The next entry; None at the end of the archive.
    pub(crate) fn next(&mut self) -> io::Result<Option<Entry>> {
        let mut records = Records::default();
        let (mut long_path, mut long_link) = (None, None);
        loop {
            self.skip_rest()?;
            let Some(block) = self.header_block()? else {
                return Ok(None);
            };
            let header = Header::parse(&block)?;
            match header.kind() {
                b'x' => {
                    let data = self.special(&header)?;
                    records = Records::parse(&data)?;
                }
                // Global records say nothing that a layer needs (containerd ignores them too).
                b'g' => drop(self.special(&header)?),
                b'L' => long_path = Some(self.long_name(&header)?),
                b'K' => long_link = Some(self.long_name(&header)?),
                _ => {
                    let mut entry = self.entry(&block, &header, &records)?;
                    if records.get("path").is_none()
                        && let Some(path) = long_path
                    {
                        entry.path = path;
                    }
                    if records.get("linkpath").is_none()
                        && let Some(link) = long_link
                    {
                        entry.link = link;
                    }
                    // Old archives mark folders by a slash only.
                    if header.kind() == 0 && entry.path.ends_with(b"/") {
                        entry.kind = EntryKind::Dir;
                    }
                    return Ok(Some(entry));
                }
            }
        }
    }

    /// Some of the current entry's data; empty at its end. Follow with [`Reader::consume`].
    pub(crate) fn fill(&mut self) -> io::Result<&[u8]> {
        if self.data == 0 {
            return Ok(&[]);
        }
        let buffer = self.input.fill_buf()?;
        if buffer.is_empty() {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let n = usize::try_from(self.data)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        Ok(&buffer[..n])
    }

    /// Marks `n` bytes of the last [`Reader::fill`] as used.
    pub(crate) fn consume(&mut self, n: usize) {
        self.input.consume(n);
        self.data -= n as u64;
    }

    fn skip_rest(&mut self) -> io::Result<()> {
        let mut left = self.data + self.padding;
        (self.data, self.padding) = (0, 0);
        while left > 0 {
            let n = self.input.fill_buf()?.len();
            if n == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            let n = usize::try_from(left).unwrap_or(usize::MAX).min(n);
            self.input.consume(n);
            left -= n as u64;
        }
        Ok(())
    }

    /// None at a clean end of the stream, or after two zero blocks.
    fn header_block(&mut self) -> io::Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        if self.input.fill_buf()?.is_empty() {
            return Ok(None);
        }
        read_block(&mut self.input, &mut block)?;
        if block != [0; BLOCK] {
            return Ok(Some(block));
        }
        if self.input.fill_buf()?.is_empty() {
            return Ok(None);
        }
        read_block(&mut self.input, &mut block)?;
        if block != [0; BLOCK] {
            return Err(invalid("invalid tar header"));
        }
        Ok(None)
    }

    fn set_data(&mut self, size: u64) {
        self.data = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
    }

    fn special(&mut self, header: &Header<'_>) -> io::Result<Vec<u8>> {
        let size = u64::try_from(header.size()?).map_err(|_| invalid("negative size"))?;
        if size > MAX_SPECIAL {
            return Err(invalid(format!("extended header of {size} bytes")));
        }
        self.set_data(size);
        let mut out = Vec::new();
        loop {
            let some = self.fill()?;
            if some.is_empty() {
                return Ok(out);
            }
            out.extend_from_slice(some);
            let n = some.len();
            self.consume(n);
        }
    }

    fn long_name(&mut self, header: &Header<'_>) -> io::Result<Vec<u8>> {
        let data = self.special(header)?;
        Ok(super::header::text(&data).to_vec())
    }

    fn entry(
        &mut self,
        block: &[u8; BLOCK],
        header: &Header<'_>,
        records: &Records,
    ) -> io::Result<Entry> {
        let (major, minor) = match header.kind() {
            b'3' | b'4' => header.device()?,
            _ => (0, 0),
        };
        let kind = match header.kind() {
            0 | b'0' | b'7' | b'S' => EntryKind::File,
            b'1' => EntryKind::HardLink,
            b'2' => EntryKind::Symlink,
            b'3' => EntryKind::Char(major, minor),
            b'4' => EntryKind::Block(major, minor),
            b'5' => EntryKind::Dir,
            b'6' => EntryKind::Fifo,
            other => return Err(invalid(format!("unhandled tar header type {other}"))),
        };
        let size = match records.number("size")? {
            Some(size) => size,
            None => header.size()?,
        };
        let size = u64::try_from(size).map_err(|_| invalid("negative size"))?;
        // Whatever these say of their size, no data follows them.
        let stored = if kind == EntryKind::File { size } else { 0 };
        let path = records
            .get("GNU.sparse.name")
            .or_else(|| records.get("path"));
        let mut entry = Entry {
            path: path.map_or_else(|| header.name(), <[u8]>::to_vec),
            link: records
                .get("linkpath")
                .map_or_else(|| header.link(), <[u8]>::to_vec),
            kind,
            mode: (header.mode()? & 0o7777) as u32,
            uid: records.number("uid")?.map_or_else(|| header.uid(), Ok)?,
            gid: records.number("gid")?.map_or_else(|| header.gid(), Ok)?,
            mtime: records
                .time("mtime")?
                .map_or_else(|| header.mtime().map(|s| (s, 0)), Ok)?,
            atime: records.time("atime")?,
            xattrs: records.xattrs(),
            stored,
            sparse: None,
        };
        if entry.kind == EntryKind::File {
            self.sparse(block, header, records, &mut entry)?;
        } else {
            self.set_data(0);
        }
        Ok(entry)
    }

    fn sparse(
        &mut self,
        block: &[u8; BLOCK],
        header: &Header<'_>,
        records: &Records,
        entry: &mut Entry,
    ) -> io::Result<()> {
        if header.kind() == b'S' && header.format == Format::Gnu {
            entry.sparse = Some(sparse::old_gnu(block, &mut self.input)?);
            self.set_data(entry.stored);
        } else {
            self.set_data(entry.stored);
            match sparse::pax(records)? {
                Pax::None => {}
                Pax::Known(map) => entry.sparse = Some(map),
                Pax::InData { size } => {
                    let (map, took) = sparse::in_data(&mut self.input, entry.stored, size)?;
                    self.data -= took;
                    entry.stored -= took;
                    entry.sparse = Some(map);
                }
            }
        }
        entry
            .sparse
            .as_ref()
            .map_or(Ok(()), |map| map.check(entry.stored))
    }
}

/// Reads one whole block.
pub(super) fn read_block(input: &mut impl BufRead, block: &mut [u8; BLOCK]) -> io::Result<()> {
    io::Read::read_exact(input, block)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(archive: &[u8]) -> io::Result<Vec<(Entry, Vec<u8>)>> {
        let mut reader = Reader::new(archive);
        let mut out = Vec::new();
        while let Some(entry) = reader.next()? {
            let mut data = Vec::new();
            loop {
                let some = reader.fill()?;
                if some.is_empty() {
                    break;
                }
                data.extend_from_slice(some);
                let n = some.len();
                reader.consume(n);
            }
            out.push((entry, data));
        }
        Ok(out)
    }

    #[test]
    fn archives_of_another_writer_are_read() {
        let long = format!("{}/file", "d".repeat(180));
        let mut b = tar::Builder::new(Vec::new());
        let mut h = tar::Header::new_gnu();
        h.set_size(5);
        h.set_mode(0o4755);
        h.set_uid(4_000_000_000);
        h.set_mtime(77);
        b.append_data(&mut h, &long, &b"hello"[..]).unwrap();
        b.append_pax_extensions([("mtime", &b"5.25"[..]), ("SCHILY.xattr.user.k", b"v\0w")])
            .unwrap();
        let mut h = tar::Header::new_ustar();
        h.set_size(0);
        h.set_entry_type(tar::EntryType::Symlink);
        b.append_link(&mut h, "link", "/target").unwrap();
        let got = all(&b.into_inner().unwrap()).unwrap();
        assert_eq!(got[0].0.path, long.as_bytes());
        assert_eq!(
            (got[0].0.mode, got[0].0.uid, got[0].0.mtime),
            (0o4755, 4_000_000_000, (77, 0))
        );
        assert_eq!(got[0].1, b"hello");
        assert_eq!(got[1].0.link, b"/target");
        assert_eq!(got[1].0.mtime, (5, 250_000_000));
        assert_eq!(got[1].0.xattrs, [("user.k".to_owned(), b"v\0w".to_vec())]);
    }

    #[test]
    fn pax_size_rules_over_the_header() {
        // A parser that believes the header would see the second block as an entry.
        let mut b = tar::Builder::new(Vec::new());
        b.append_pax_extensions([("size", &b"1024"[..])]).unwrap();
        let mut archive = b.into_inner().unwrap();
        archive.truncate(1024);
        let mut h = tar::Header::new_ustar();
        h.set_path("f").unwrap();
        h.set_size(0);
        h.set_cksum();
        archive.extend_from_slice(h.as_bytes());
        archive.extend_from_slice(&[b'x'; 1024]);
        archive.extend_from_slice(&[0; 1024]);
        let got = all(&archive).unwrap();
        assert_eq!((got.len(), got[0].1.len()), (1, 1024));
    }

    #[test]
    fn cut_and_damaged_archives_are_errors() {
        let mut b = tar::Builder::new(Vec::new());
        let mut h = tar::Header::new_gnu();
        h.set_size(600);
        b.append_data(&mut h, "f", &[1; 600][..]).unwrap();
        let archive = b.into_inner().unwrap();
        assert!(all(&archive[..700]).is_err());
        assert!(all(&archive[..100]).is_err());
        let mut damaged = archive.clone();
        damaged[0] ^= 1;
        assert!(all(&damaged).is_err());
        assert_eq!(all(&archive[..512 + 1024]).unwrap().len(), 1);
        assert!(all(&[]).unwrap().is_empty());
    }
}
