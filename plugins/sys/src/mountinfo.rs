//! The mounts of this process's mount namespace, from `/proc/self/mountinfo`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use corten_core::{Context, Result};

/// One line of mountinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountPoint {
    pub id: u64,
    pub parent: u64,
    pub path: PathBuf,
    pub kind: String,
    pub source: String,
    pub options: String,
    /// Propagation: `shared:N`, `master:N`, ... separated by spaces.
    pub optional: String,
    pub super_options: String,
}

/// All mounts, in the kernel's order: later ones may cover earlier ones.
///
/// # Errors
/// procfs is not readable.
pub fn all() -> Result<Vec<MountPoint>> {
    let text = std::fs::read("/proc/self/mountinfo").context("read mountinfo")?;
    Ok(text.split(|b| *b == b'\n').filter_map(parse).collect())
}

/// The mounts at or below `dir`.
///
/// # Errors
/// See [`all`].
pub fn below(dir: &Path) -> Result<Vec<MountPoint>> {
    let mut mounts = all()?;
    mounts.retain(|m| m.path.starts_with(dir));
    Ok(mounts)
}

fn parse(line: &[u8]) -> Option<MountPoint> {
    // 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
    let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
    let dash = fields.iter().position(|f| *f == b"-")?;
    let text = |f: &[u8]| String::from_utf8_lossy(&unescape(f)).into_owned();
    let number = |f: &[u8]| std::str::from_utf8(f).ok()?.parse().ok();
    Some(MountPoint {
        id: number(fields.first()?)?,
        parent: number(fields.get(1)?)?,
        path: OsString::from_vec(unescape(fields.get(4)?)).into(),
        options: text(fields.get(5)?),
        optional: text(&fields.get(6..dash)?.join(&b' ')),
        kind: text(fields.get(dash + 1)?),
        source: text(fields.get(dash + 2)?),
        super_options: fields.get(dash + 3).map(|f| text(f)).unwrap_or_default(),
    })
}

/// Undoes the kernel's octal escapes (`\040` is a space).
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&b, tail)) = rest.split_first() {
        if let (
            b'\\',
            [
                a @ b'0'..=b'3',
                c @ b'0'..=b'7',
                d @ b'0'..=b'7',
                after @ ..,
            ],
        ) = (b, tail)
        {
            out.push((a - b'0') << 6 | (c - b'0') << 3 | (d - b'0'));
            rest = after;
        } else {
            out.push(b);
            rest = tail;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_escapes_and_optional_fields_parses() {
        let line =
            br"36 35 98:0 /x /mnt\0402\134a rw,noatime master:1 shared:2 - ext3 /dev/root rw";
        let m = parse(line).unwrap();
        assert_eq!(m.path, Path::new(r"/mnt 2\a"));
        assert_eq!(
            (m.id, m.kind.as_str(), m.super_options.as_str()),
            (36, "ext3", "rw")
        );
        assert_eq!(m.optional, "master:1 shared:2");
        assert!(parse(b"").is_none() && parse(b"1 2 3").is_none());
        assert!(all().unwrap().iter().any(|m| m.path == Path::new("/proc")));
    }
}
