//! Owns reading and writing of control files.

use crate::{Error, Result};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// Writes one value; the error names file and value.
pub(crate) fn write(dir: &Path, name: &str, value: impl AsRef<str>) -> Result<()> {
    let value = value.as_ref();
    raw(dir, name, value).map_err(|e| {
        Error::system(
            format!("failed to write {value:?} to {}", dir.join(name).display()),
            e,
        )
    })
}

/// The same with the plain error, for callers that look at it.
pub(crate) fn raw(dir: &Path, name: &str, value: &str) -> io::Result<()> {
    use std::io::Write as _;
    let mut file = std::fs::File::options().write(true).open(dir.join(name))?;
    file.write_all(value.as_bytes())
}

/// A control file kept open for several values, each one write(2).
#[derive(Debug)]
pub(crate) struct Writer {
    file: std::fs::File,
    path: PathBuf,
}

// === impl Writer ===

impl Writer {
    pub(crate) fn open(dir: &Path, name: &str) -> Result<Self> {
        let path = dir.join(name);
        let file = std::fs::File::options().write(true).open(&path);
        let file = file.map_err(|e| Error::system(format!("open {}", path.display()), e))?;
        Ok(Self { file, path })
    }

    pub(crate) fn write(&self, value: &str) -> Result<()> {
        use std::io::Write as _;
        (&self.file).write_all(value.as_bytes()).map_err(|e| {
            Error::system(
                format!("failed to write {value:?} to {}", self.path.display()),
                e,
            )
        })
    }
}

/// Text of a file without the final newline; `None` when it does not exist or cannot be read.
pub(crate) fn text(dir: &Path, name: &str) -> Option<String> {
    let mut text = std::fs::read_to_string(dir.join(name)).ok()?;
    text.truncate(text.trim_end().len());
    Some(text)
}

/// One number; `max` and absence give `None`.
pub(crate) fn number(dir: &Path, name: &str) -> Option<u64> {
    text(dir, name)?.parse().ok()
}

/// `key value` lines.
pub(crate) fn keyed(dir: &Path, name: &str) -> BTreeMap<String, u64> {
    let mut map = BTreeMap::new();
    for line in text(dir, name).unwrap_or_default().lines() {
        if let Some((key, value)) = line.split_once(' ')
            && let Ok(value) = value.trim().parse()
        {
            map.insert(key.to_owned(), value);
        }
    }
    map
}
