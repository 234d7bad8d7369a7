//! The layout of the store: one ordered map, its keys and how records are read and written.
//!
//! A key is a tag byte (the kind of record) and components that each end in a zero byte; the bytes 0 and 1 inside a
//! component are written `01 01` and `01 02`. So a key of fewer components is the prefix of exactly the records below
//! it, and order is by component.
//!
//! ```text
//! N ns                          namespaces.v1.Namespace
//! I ns name                     images.v1.Image
//! C ns id                       containers.v1.Container
//! X ns id                       types.Sandbox
//! L ns lease                    leases.v1.Lease
//! R ns lease type resource      (empty)
//! B ns digest                   content.v1.Info
//! G ns ref                      Ingest
//! S ns snapshotter key          Snapshot
//! K ns snapshotter parent key   (empty): the children of a snapshot
//! Q                             the last number given to a backend key, 8 bytes
//! ```

use corten_core::{Context as _, Error, Result};
use prost::Message;

use crate::store::{Read, Txn};

pub(crate) const NAMESPACES: u8 = b'N';
pub(crate) const IMAGES: u8 = b'I';
pub(crate) const CONTAINERS: u8 = b'C';
pub(crate) const SANDBOXES: u8 = b'X';
pub(crate) const LEASES: u8 = b'L';
pub(crate) const LEASED: u8 = b'R';
pub(crate) const BLOBS: u8 = b'B';
pub(crate) const INGESTS: u8 = b'G';
pub(crate) const SNAPSHOTS: u8 = b'S';
pub(crate) const CHILDREN: u8 = b'K';
const SEQUENCE: &[u8] = b"Q";
/// Before a byte that has a meaning of its own.
const ESCAPE: u8 = 1;

/// The key of a record, or the prefix of all that have these first components.
pub(crate) fn key(tag: u8, parts: &[&str]) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + parts.iter().map(|p| p.len() + 1).sum::<usize>());
    out.push(tag);
    for part in parts {
        for byte in part.bytes() {
            if byte > ESCAPE {
                out.push(byte);
            } else {
                out.extend([ESCAPE, byte + 1]);
            }
        }
        out.push(0);
    }
    out
}

/// The components of a key.
pub(crate) fn parts(key: &[u8]) -> Result<Vec<String>> {
    let mut out = Vec::new();
    let mut part = Vec::new();
    let mut bytes = key.iter().skip(1).copied();
    while let Some(byte) = bytes.next() {
        match byte {
            0 => {
                let text = String::from_utf8(std::mem::take(&mut part))
                    .map_err(|_| Error::internal("metadata key is not text"))?;
                out.push(text);
            }
            ESCAPE => part.push(bytes.next().unwrap_or_default().saturating_sub(1)),
            _ => part.push(byte),
        }
    }
    Ok(out)
}

/// The last component of a key: the record's own name.
pub(crate) fn last(key: &[u8]) -> Result<String> {
    parts(key)?
        .pop()
        .ok_or_else(|| Error::internal("metadata key without components"))
}

/// Reads one record.
pub(crate) fn load<M: Message + Default>(from: &dyn Read, key: &[u8]) -> Result<Option<M>> {
    from.get(key)?.map(|bytes| decode(key, &bytes)).transpose()
}

fn decode<M: Message + Default>(key: &[u8], bytes: &[u8]) -> Result<M> {
    M::decode(bytes).map_err(|e| {
        Error::internal(format!(
            "decode metadata record {:?}",
            String::from_utf8_lossy(key)
        ))
        .with_source(e)
    })
}

/// Writes one record.
pub(crate) fn save(to: &mut Txn<'_>, key: &[u8], record: &impl Message) -> Result<()> {
    to.put(key, &record.encode_to_vec())
}

/// Visits the records below `prefix` in key order.
pub(crate) fn each<M: Message + Default>(
    from: &dyn Read,
    prefix: &[u8],
    visit: &mut dyn FnMut(&[u8], M) -> Result<()>,
) -> Result<()> {
    from.scan(prefix, &mut |key, bytes| {
        visit(key, decode(key, bytes)?)?;
        Ok(true)
    })
}

/// All records below `prefix` that `keep` accepts.
pub(crate) fn list<M: Message + Default>(
    from: &dyn Read,
    prefix: &[u8],
    keep: impl Fn(&M) -> bool,
) -> Result<Vec<M>> {
    let mut out = Vec::new();
    each(from, prefix, &mut |_, record: M| {
        if keep(&record) {
            out.push(record);
        }
        Ok(())
    })?;
    Ok(out)
}

/// Whether there is any record below `prefix`.
pub(crate) fn any(from: &dyn Read, prefix: &[u8]) -> Result<bool> {
    let mut found = false;
    from.scan(prefix, &mut |_, _| {
        found = true;
        Ok(false)
    })?;
    Ok(found)
}

/// A key for a backend, never given before: `<ns>/<number>/<key>`.
pub(crate) fn backend_key(txn: &mut Txn<'_>, ns: &str, key: &str) -> Result<String> {
    let last = match txn.get(SEQUENCE)? {
        None => 0,
        Some(bytes) => u64::from_be_bytes(
            bytes
                .try_into()
                .map_err(|_| Error::internal("metadata sequence is damaged"))?,
        ),
    };
    txn.put(SEQUENCE, &(last + 1).to_be_bytes())
        .context("number a backend key")?;
    Ok(format!("{ns}/{}/{key}", last + 1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn keys_give_their_parts_back_and_prefixes_hold_exactly_what_is_below(
            a in "[a-c\0\x01/]{0,4}", b in "[a-c\0\x01]{0,4}", c in "[a-c\0\x01]{0,4}",
        ) {
            let whole = key(IMAGES, &[&a, &b]);
            prop_assert_eq!(parts(&whole).unwrap(), vec![a.clone(), b.clone()]);
            prop_assert_eq!(whole.starts_with(&key(IMAGES, &[&c])), a == c);
            prop_assert_eq!(key(IMAGES, &[&a]) < key(IMAGES, &[&b]), a < b);
        }
    }
}
