//! Writes archives: POSIX headers, PAX records for what does not fit them.

use std::io::{self, Read, Write};

use super::{BLOCK, XATTR, invalid};

/// What a member is.
#[derive(Debug, Clone, Default)]
pub(crate) struct Member {
    /// Without leading slash; folders end with one.
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    /// The header's type letter.
    pub(crate) kind: u8,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
    /// Whole seconds.
    pub(crate) mtime: i64,
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: Vec<(String, Vec<u8>)>,
}

/// Writes members to a stream.
pub(crate) struct Writer<W> {
    output: W,
}

impl<W: Write> Writer<W> {
    pub(crate) fn new(output: W) -> Self {
        Self { output }
    }

    /// Writes the headers of `m`; a file's data must follow with [`Writer::data`].
    pub(crate) fn header(&mut self, m: &Member) -> io::Result<()> {
        let records = records(m);
        if !records.is_empty() {
            let mut block = [0; BLOCK];
            fill(
                &mut block,
                &Member {
                    path: b"PaxHeaders.0/x".to_vec(),
                    kind: b'x',
                    mode: 0o644,
                    size: records.len() as u64,
                    ..Default::default()
                },
            );
            self.output.write_all(&block)?;
            self.output.write_all(&records)?;
            self.pad(records.len() as u64)?;
        }
        let mut block = [0; BLOCK];
        fill(&mut block, m);
        self.output.write_all(&block)
    }

    /// Writes exactly `size` bytes of `input`.
    pub(crate) fn data(&mut self, mut input: impl Read, size: u64) -> io::Result<()> {
        let mut buffer = vec![0; 128 * 1024];
        let mut left = size;
        while left > 0 {
            let want = usize::try_from(left)
                .unwrap_or(usize::MAX)
                .min(buffer.len());
            let n = input.read(&mut buffer[..want])?;
            if n == 0 {
                return Err(invalid("short write copying file"));
            }
            self.output.write_all(&buffer[..n])?;
            left -= n as u64;
        }
        self.pad(size)
    }

    /// Ends the archive and returns the stream.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.output.write_all(&[0; 2 * BLOCK])?;
        Ok(self.output)
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let over = (size % BLOCK as u64) as usize;
        if over > 0 {
            self.output.write_all(&[0; BLOCK][over..])?;
        }
        Ok(())
    }
}

/// Largest numbers of the octal fields.
const MAX_ID: u32 = 0o7_777_777;
const MAX_LONG: u64 = 0o77_777_777_777;

/// The PAX records that `m` needs, in key order.
fn records(m: &Member) -> Vec<u8> {
    let mut out = Vec::new();
    let mut add = |key: &str, value: &[u8]| record(&mut out, key.as_bytes(), value);
    let mut xattrs: Vec<_> = m.xattrs.iter().collect();
    xattrs.sort();
    for (name, value) in xattrs {
        add(&format!("{XATTR}{name}"), value);
    }
    if m.gid > MAX_ID {
        add("gid", m.gid.to_string().as_bytes());
    }
    if m.link.len() > 100 {
        add("linkpath", &m.link);
    }
    if u64::try_from(m.mtime).is_ok_and(|t| t > MAX_LONG) || m.mtime < 0 {
        add("mtime", m.mtime.to_string().as_bytes());
    }
    if split(&m.path).is_none() {
        add("path", &m.path);
    }
    if m.size > MAX_LONG {
        add("size", m.size.to_string().as_bytes());
    }
    if m.uid > MAX_ID {
        add("uid", m.uid.to_string().as_bytes());
    }
    out
}

/// `<length> <key>=<value>\n`, the length counting itself.
fn record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + rest.to_string().len();
    length = rest + length.to_string().len();
    out.extend_from_slice(format!("{length} ").as_bytes());
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// Prefix and name for the header, when the path fits.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.len() <= 100 {
        return Some((b"", path));
    }
    // A slash with at most 100 bytes after it and 155 before; not the one that ends a folder's path.
    let end = path.len() - 1;
    let at = (path.len() - 101..end.min(156)).find(|i| path[*i] == b'/')?;
    Some((&path[..at], &path[at + 1..]))
}

fn fill(block: &mut [u8; BLOCK], m: &Member) {
    let (prefix, name) = split(&m.path).unwrap_or_else(|| (b"", &m.path[..100]));
    put(&mut block[..100], name);
    octal(&mut block[100..108], u64::from(m.mode));
    octal(
        &mut block[108..116],
        u64::from(if m.uid > MAX_ID { 0 } else { m.uid }),
    );
    octal(
        &mut block[116..124],
        u64::from(if m.gid > MAX_ID { 0 } else { m.gid }),
    );
    octal(
        &mut block[124..136],
        if m.size > MAX_LONG { 0 } else { m.size },
    );
    octal(
        &mut block[136..148],
        u64::try_from(m.mtime)
            .ok()
            .filter(|t| *t <= MAX_LONG)
            .unwrap_or(0),
    );
    block[156] = m.kind;
    put(&mut block[157..257], &m.link[..m.link.len().min(100)]);
    put(&mut block[257..265], b"ustar\x0000");
    octal(&mut block[329..337], u64::from(m.device.0));
    octal(&mut block[337..345], u64::from(m.device.1));
    put(&mut block[345..500], prefix);
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|b| u64::from(*b)).sum();
    put(&mut block[148..156], format!("{sum:06o}\0 ").as_bytes());
}

fn put(field: &mut [u8], value: &[u8]) {
    field[..value.len()].copy_from_slice(value);
}

/// Zero-padded with a NUL at the end; the caller knows that it fits.
fn octal(field: &mut [u8], value: u64) {
    let width = field.len() - 1;
    put(field, format!("{value:0width$o}").as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tar::{EntryKind, Reader};

    #[test]
    fn what_is_written_is_read_back_by_us_and_by_others() {
        let members = [
            Member {
                path: b"a".to_vec(),
                kind: b'0',
                mode: 0o4755,
                uid: 4_000_000_000,
                size: 3,
                mtime: -5,
                ..Default::default()
            },
            Member {
                path: vec![b'n'; 300],
                kind: b'0',
                ..Default::default()
            },
            Member {
                path: [vec![b'p'; 120], b"/x/".to_vec()].concat(),
                kind: b'5',
                ..Default::default()
            },
            Member {
                path: b"l".to_vec(),
                kind: b'2',
                link: vec![b'k'; 200],
                xattrs: vec![("user.a".into(), vec![0, 255])],
                ..Default::default()
            },
            Member {
                path: b"d".to_vec(),
                kind: b'3',
                device: (1, 0o7_777_777),
                ..Default::default()
            },
        ];
        let mut w = Writer::new(Vec::new());
        for m in &members {
            w.header(m).unwrap();
            w.data(&b"abc"[..], m.size).unwrap();
        }
        let archive = w.finish().unwrap();
        let mut reader = Reader::new(&archive[..]);
        for m in &members {
            let e = reader.next().unwrap().unwrap();
            assert_eq!((&e.path, &e.link, e.mtime.0), (&m.path, &m.link, m.mtime));
            assert_eq!((e.uid, &e.xattrs), (i64::from(m.uid), &m.xattrs));
            if m.kind == b'3' {
                assert_eq!(e.kind, EntryKind::Char(1, 0o7_777_777));
            }
        }
        assert!(reader.next().unwrap().is_none());
        let mut theirs = tar::Archive::new(&archive[..]);
        let paths: Vec<_> = theirs
            .entries()
            .unwrap()
            .map(|e| e.unwrap().path_bytes().into_owned())
            .collect();
        assert_eq!(paths, members.map(|m| m.path));
    }

    #[test]
    fn record_lengths_count_themselves() {
        for n in [1, 80, 90, 91, 92, 93, 94, 95, 96, 97, 98, 99, 990, 995] {
            let mut out = Vec::new();
            record(&mut out, b"k", &vec![b'v'; n]);
            let text = String::from_utf8(out.clone()).unwrap();
            assert_eq!(
                text.split(' ').next().unwrap().parse::<usize>().unwrap(),
                out.len()
            );
        }
    }
}
