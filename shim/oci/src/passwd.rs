//! Owns the look-up of a user's home in the container's /etc/passwd.
//!
//! The file is the image's: opened inside the root only, regular only, at most 10 MiB, never waited for.

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};

const LIMIT: u64 = 10 << 20;

/// Opens something in a root without leaving it.
pub(crate) fn open_in(root: impl AsFd, path: &str, flags: OFlags) -> std::io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    Ok(openat2(
        root,
        path,
        flags | OFlags::CLOEXEC,
        Mode::empty(),
        resolve,
    )?)
}

/// Home directory of a uid; `/` when there is none.
pub(crate) fn home(root: impl AsFd, uid: u32) -> String {
    find(root, uid)
        .filter(|h| !h.is_empty())
        .unwrap_or_else(|| "/".into())
}

fn find(root: impl AsFd, uid: u32) -> Option<String> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd = open_in(root, "etc/passwd", flags).ok()?;
    let st = fstat(&fd).ok()?;
    if FileType::from_raw_mode(st.st_mode) != FileType::RegularFile || st.st_size as u64 > LIMIT {
        return None;
    }
    let mut lines = BufReader::with_capacity(2048, File::from(fd).take(LIMIT));
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line).ok()? > 0 {
        let text = String::from_utf8_lossy(&line);
        let mut fields = text.trim_end().split(':');
        // name, password, uid, gid, comment, home: only whole fields of digits are ids.
        if fields.nth(2).and_then(|f| f.parse::<u32>().ok()) == Some(uid) {
            let home = fields.nth(2)?;
            return (!home.contains('\0')).then(|| home.to_owned());
        }
        line.clear();
    }
    None
}
