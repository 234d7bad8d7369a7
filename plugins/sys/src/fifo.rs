//! Named pipes: the shim's log and containers' stdio.

use std::path::Path;

use corten_core::{Context, Result};
use rustix::fs::{CWD, FileType, Mode};
use tokio::net::unix::pipe;

/// Makes a FIFO with `mode`; one that exists already is fine, anything else of that name is an error.
///
/// # Errors
/// The file system's.
pub fn create(path: &Path, mode: u32) -> Result<()> {
    let made = rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(mode), 0);
    match made {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::EXIST) => {
            let found = rustix::fs::lstat(path)
                .map_err(std::io::Error::from)
                .with_context(|| format!("stat fifo {}", path.display()))?;
            if FileType::from_raw_mode(found.st_mode) == FileType::Fifo {
                return Ok(());
            }
            Err(corten_core::Error::already_exists(format!(
                "make fifo {}",
                path.display()
            )))
        }
        Err(e) => {
            Err(std::io::Error::from(e)).with_context(|| format!("make fifo {}", path.display()))
        }
    }
}

/// Opens the reading end without waiting for a writer. The end is held read-write, so that it never reports
/// end-of-file between two writers.
///
/// # Errors
/// The file system's; needs a tokio runtime.
pub fn open_reader(path: &Path) -> Result<pipe::Receiver> {
    pipe::OpenOptions::new()
        .read_write(true)
        .open_receiver(path)
        .with_context(|| format!("open fifo {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn a_fifo_is_read_before_and_after_its_writers() {
        let dir = std::env::temp_dir().join(format!("corten-fifo-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("log");
        create(&path, 0o600).unwrap();
        create(&path, 0o600).unwrap();
        let mut reader = open_reader(&path).unwrap();
        for word in [b"one", b"two"] {
            let path = path.clone();
            let write = tokio::task::spawn_blocking(move || std::fs::write(path, word));
            let mut got = [0; 3];
            reader.read_exact(&mut got).await.unwrap();
            write.await.unwrap().unwrap();
            assert_eq!(&got, word);
        }
        std::fs::write(dir.join("file"), "").unwrap();
        assert!(create(&dir.join("file"), 0o600).is_err());
        std::fs::remove_dir_all(dir).unwrap();
    }
}
