//! Owns reading files of the node whose names come in requests and folders: a FIFO or a device of that name must neither
//! hang nor flood the daemon.

use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

/// Longest profile, description or class file that is read.
pub const MAX_FILE: u64 = 10 << 20;

/// The bytes of a regular file of at most [`MAX_FILE`].
pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits();
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(flags.cast_signed())
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut text = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(io::Error::other(format!("longer than {MAX_FILE} bytes")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn only_regular_files_of_bounded_size_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let of = |length: u64| {
            std::fs::File::create(&path)
                .unwrap()
                .set_len(length)
                .unwrap();
            read(&path).map(|text| text.len() as u64)
        };
        assert_eq!(of(0).unwrap(), 0);
        assert_eq!(of(MAX_FILE - 1).unwrap(), MAX_FILE - 1);
        assert_eq!(of(MAX_FILE).unwrap(), MAX_FILE);
        assert!(
            of(MAX_FILE + 1)
                .unwrap_err()
                .to_string()
                .contains("longer than")
        );
        let fifo = dir.path().join("fifo");
        mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        for path in [&fifo, dir.path(), Path::new("/dev/zero")] {
            assert!(read(path).is_err(), "{}", path.display());
        }
    }
}
