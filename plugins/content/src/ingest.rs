//! One ingest on disk: its files and how they are read and written.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use corten_core::content::IngestStatus;
use corten_core::{Context, Digest, Error, Result};

/// The folder of one ingest.
#[derive(Debug, Clone)]
pub(crate) struct Ingest {
    dir: PathBuf,
}

impl Ingest {
    /// The ingest of `ref`; its folder's name is a hash, so that any text can be a ref.
    pub(crate) fn of(ingest_root: &Path, r#ref: &str) -> Self {
        Self {
            dir: ingest_root.join(Digest::sha256(r#ref.as_bytes()).hex()),
        }
    }

    /// The ingest in folder `dir`.
    pub(crate) fn at(dir: PathBuf) -> Self {
        Self { dir }
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Reads the status; NotFound when there is no ingest here, or only half of one.
    pub(crate) fn status(&self) -> Result<IngestStatus> {
        let data = fs::metadata(self.data())
            .map_err(|e| Error::from(e).context(format!("stat {}", self.data().display())))?;
        let started_at = self.time("startedat")?;
        let r#ref = fs::read_to_string(self.dir.join("ref")).context("read ingest ref")?;
        Ok(IngestStatus {
            r#ref,
            offset: data.len(),
            total: fs::read_to_string(self.dir.join("total"))
                .ok()
                .and_then(|t| t.trim().parse().ok())
                .unwrap_or(0),
            expected: None,
            started_at,
            updated_at: self.time("updatedat")?,
        })
    }

    /// Makes the folder; false when there was one.
    pub(crate) fn make_dir(&self) -> Result<bool> {
        use std::os::unix::fs::DirBuilderExt;
        match fs::DirBuilder::new().mode(0o755).create(&self.dir) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(e) => Err(e).with_context(|| format!("make ingest {}", self.dir.display())),
        }
    }

    /// Writes everything but the data.
    pub(crate) fn start(&self, r#ref: &str, total: u64, now: SystemTime) -> Result<()> {
        fs::write(self.dir.join("ref"), r#ref).context("write ingest ref")?;
        self.set_time("startedat", now)?;
        self.set_time("updatedat", now)?;
        let path = self.dir.join("total");
        if total > 0 {
            fs::write(path, total.to_string()).context("write ingest total")?;
        } else {
            // A broken ingest may have left one.
            let _ = fs::remove_file(path);
        }
        Ok(())
    }

    pub(crate) fn set_updated(&self, now: SystemTime) -> Result<()> {
        self.set_time("updatedat", now)
    }

    /// Removes all of it; NotFound when there is nothing.
    pub(crate) fn remove(&self) -> io::Result<()> {
        fs::remove_dir_all(&self.dir)
    }

    fn time(&self, name: &str) -> Result<SystemTime> {
        let text = fs::read_to_string(self.dir.join(name))
            .with_context(|| format!("could not read {name}"))?;
        let time: jiff::Timestamp = text.trim().parse().map_err(|e: jiff::Error| {
            Error::internal(format!("could not parse timestamp file {name}")).with_source(e)
        })?;
        Ok(time.into())
    }

    fn set_time(&self, name: &str, time: SystemTime) -> Result<()> {
        // Renamed into place: a reader sees the old time or the new one.
        let tmp = self.dir.join(format!("{name}.tmp"));
        fs::write(&tmp, format_time(time))
            .and_then(|()| fs::rename(&tmp, self.dir.join(name)))
            .with_context(|| format!("write {name}"))
    }
}

/// RFC 3339 in UTC with nanoseconds, as Go writes it.
pub(crate) fn format_time(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time)
        .map(|t| t.to_string())
        .unwrap_or_default()
}
