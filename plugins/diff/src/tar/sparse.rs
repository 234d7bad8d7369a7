//! Sparse files in their four encodings: old GNU headers, and PAX 0.0, 0.1 and 1.0.

use std::io::{self, BufRead};

use super::header::number;
use super::pax::{Records, ascii};
use super::reader::read_block;
use super::{BLOCK, invalid};

/// More pieces than that no real file has.
const MAX_FRAGMENTS: usize = 1 << 20;

/// A piece of data in a file of holes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fragment {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// The map of a file: its pieces in order, and how long it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Map {
    pub(crate) fragments: Vec<Fragment>,
    pub(crate) size: u64,
}

impl Map {
    /// Pieces in order, within the file, and together as long as the data in the archive.
    pub(super) fn check(&self, stored: u64) -> io::Result<()> {
        let mut end = 0;
        let mut total = 0u64;
        for f in &self.fragments {
            let next = f.offset.checked_add(f.length).filter(|n| *n <= self.size);
            match next {
                Some(next) if f.offset >= end => end = next,
                _ => return Err(invalid("invalid sparse map")),
            }
            total += f.length;
        }
        if total != stored {
            Err(invalid("sparse map does not match the data"))
        } else {
            Ok(())
        }
    }
}

/// The map in an old GNU header and the extension blocks after it.
pub(super) fn old_gnu(block: &[u8; BLOCK], input: &mut impl BufRead) -> io::Result<Map> {
    let size = unsigned(&block[483..495])?;
    let mut fragments = Vec::new();
    pairs(&block[386..482], &mut fragments)?;
    let mut more = block[482] != 0;
    while more {
        let mut extension = [0; BLOCK];
        read_block(input, &mut extension)?;
        pairs(&extension[..504], &mut fragments)?;
        more = extension[504] != 0;
    }
    Ok(Map { fragments, size })
}

fn pairs(field: &[u8], out: &mut Vec<Fragment>) -> io::Result<()> {
    for pair in field.chunks_exact(24) {
        if pair[0] == 0 {
            return Ok(());
        }
        push(
            out,
            Fragment {
                offset: unsigned(&pair[..12])?,
                length: unsigned(&pair[12..])?,
            },
        )?;
    }
    Ok(())
}

fn push(out: &mut Vec<Fragment>, f: Fragment) -> io::Result<()> {
    if out.len() >= MAX_FRAGMENTS {
        return Err(invalid("sparse file with too many pieces"));
    }
    out.push(f);
    Ok(())
}

fn unsigned(field: &[u8]) -> io::Result<u64> {
    u64::try_from(number(field)?).map_err(|_| invalid("negative number in sparse map"))
}

/// What the PAX records say of a sparse file.
pub(super) enum Pax {
    None,
    Known(Map),
    /// Format 1.0: the map is in front of the data.
    InData {
        size: u64,
    },
}

pub(super) fn pax(records: &Records) -> io::Result<Pax> {
    let size = |key| -> io::Result<u64> {
        u64::try_from(records.number(key)?.unwrap_or(-1))
            .map_err(|_| invalid("invalid sparse size"))
    };
    let major = records.number("GNU.sparse.major")?;
    if major == Some(1) && records.number("GNU.sparse.minor")? == Some(0) {
        return Ok(Pax::InData {
            size: size("GNU.sparse.realsize")?,
        });
    }
    let fragments = if let Some(map) = records.get("GNU.sparse.map") {
        let numbers: Option<Vec<u64>> = map.split(|b| *b == b',').map(ascii).collect();
        let numbers = numbers.ok_or_else(|| invalid("invalid sparse map"))?;
        if numbers.len() % 2 != 0 {
            return Err(invalid("invalid sparse map"));
        }
        numbers
            .chunks_exact(2)
            .map(|p| Fragment {
                offset: p[0],
                length: p[1],
            })
            .collect()
    } else if records.sparse.is_empty() {
        return Ok(Pax::None);
    } else {
        records.sparse.clone()
    };
    Ok(Pax::Known(Map {
        fragments,
        size: size("GNU.sparse.size")?,
    }))
}

/// Reads the map in front of the data; also returns the bytes it took, of the `stored` there are.
pub(super) fn in_data(input: &mut impl BufRead, stored: u64, size: u64) -> io::Result<(Map, u64)> {
    let mut numbers = Numbers {
        block: [0; BLOCK],
        at: BLOCK,
        read: 0,
        stored,
    };
    let count = numbers.next(input)?;
    let mut fragments = Vec::new();
    for _ in 0..count {
        let offset = numbers.next(input)?;
        push(
            &mut fragments,
            Fragment {
                offset,
                length: numbers.next(input)?,
            },
        )?;
    }
    Ok((Map { fragments, size }, numbers.read))
}

/// Decimal numbers, a line each, in whole blocks.
struct Numbers {
    block: [u8; BLOCK],
    at: usize,
    read: u64,
    stored: u64,
}

impl Numbers {
    fn next(&mut self, input: &mut impl BufRead) -> io::Result<u64> {
        let mut digits = Vec::new();
        loop {
            if self.at == BLOCK {
                if self.read + BLOCK as u64 > self.stored {
                    return Err(invalid("sparse map is longer than the data"));
                }
                read_block(input, &mut self.block)?;
                self.read += BLOCK as u64;
                self.at = 0;
            }
            let b = self.block[self.at];
            self.at += 1;
            match b {
                b'\n' => return ascii(&digits).ok_or_else(|| invalid("invalid sparse map")),
                b'0'..=b'9' if digits.len() < 20 => digits.push(b),
                _ => return Err(invalid("invalid sparse map")),
            }
        }
    }
}
