//! A writer: appends and hashes, then makes the ingest a blob.
//!
//! Each call moves the open state to the blocking pool and back. When a caller's future is dropped in between, the
//! state goes with it: the ingest stays on disk, its lock is released, and the writer says that it is closed.

use std::fs::{self, File, FileTimes};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use corten_core::content::{IngestStatus, Writer};
use corten_core::{Context, Digest, Error, Labels, Result};
use corten_sys::blocking;

use crate::hasher::Hasher;
use crate::ingest::Ingest;
use crate::locks::RefLock;
use crate::store::Store;

/// Everything an open ingest holds.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) store: Store,
    pub(crate) ingest: Ingest,
    pub(crate) file: File,
    pub(crate) hasher: Hasher,
    pub(crate) status: IngestStatus,
    /// Last, so that it is released last.
    pub(crate) _lock: RefLock,
}

/// The writer that callers hold.
#[derive(Debug)]
pub(crate) struct LocalWriter {
    open: Option<Box<Open>>,
    /// As of the last finished call.
    status: IngestStatus,
    digest: Digest,
}

impl LocalWriter {
    pub(crate) fn new(mut open: Open) -> Self {
        let mut fault = None;
        if let Err(e) = open.file.seek(SeekFrom::Start(open.status.offset)) {
            fault = Some(e);
        }
        let status = open.status.clone();
        let digest = open.hasher.digest();
        if let Some(error) = fault {
            tracing::error!(%error, "seek in ingest data");
            return Self {
                open: None,
                status,
                digest,
            };
        }
        Self {
            open: Some(Box::new(open)),
            status,
            digest,
        }
    }

    /// Runs `f` on the state in the blocking pool.
    async fn with(
        &mut self,
        what: &'static str,
        f: impl FnOnce(&mut Open) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let mut open = self.take(what)?;
        let (open, done) = blocking(move || {
            let done = f(&mut open);
            Ok((open, done))
        })
        .await?;
        self.status.clone_from(&open.status);
        self.open = Some(open);
        done
    }

    fn take(&mut self, what: &str) -> Result<Box<Open>> {
        self.open
            .take()
            .ok_or_else(|| Error::precondition(format!("cannot {what} on closed writer")))
    }
}

#[async_trait]
impl Writer for LocalWriter {
    async fn write(&mut self, data: Bytes) -> Result<()> {
        self.with("write", move |open| {
            open.file.write_all(&data).context("write ingest data")?;
            open.hasher.update(&data);
            open.status.offset += data.len() as u64;
            open.status.updated_at = SystemTime::now();
            Ok(())
        })
        .await
    }

    async fn truncate(&mut self, size: u64) -> Result<()> {
        self.with("truncate", move |open| {
            if size > open.status.offset {
                return Err(Error::invalid(format!(
                    "truncate ingest of {} bytes to {size}",
                    open.status.offset
                )));
            }
            open.file.set_len(size).context("truncate ingest data")?;
            open.file
                .seek(SeekFrom::Start(size))
                .context("seek in ingest data")?;
            open.hasher
                .rehash(&open.ingest.data(), size)
                .context("hash ingest data")?;
            open.status.offset = size;
            open.status.updated_at = SystemTime::now();
            Ok(())
        })
        .await
    }

    fn status(&self) -> IngestStatus {
        self.status.clone()
    }

    fn digest(&self) -> Digest {
        self.open
            .as_ref()
            .map_or_else(|| self.digest.clone(), |o| o.hasher.digest())
    }

    /// The writer is closed afterwards, whatever the outcome; after a mismatch the ingest is still there.
    async fn commit(&mut self, size: u64, expected: Option<Digest>, _labels: Labels) -> Result<()> {
        let mut open = self.take("commit")?;
        self.digest = open.hasher.digest();
        let digest = blocking(move || open.commit(size, expected.as_ref())).await?;
        self.digest = digest;
        Ok(())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        // After a commit the folder is gone, and with it the need.
        let _ = self.ingest.set_updated(self.status.updated_at);
    }
}

impl Open {
    fn commit(&mut self, size: u64, expected: Option<&Digest>) -> Result<Digest> {
        let found = self
            .file
            .metadata()
            .context("stat on ingest file failed")?
            .len();
        if size > 0 && size != found {
            return Err(Error::precondition(format!(
                "unexpected commit size {found}, expected {size}"
            )));
        }
        if let Some(expected) = expected
            && expected.algorithm() != self.hasher.algorithm()
        {
            // The writer was opened without a digest: what was hashed is of no use.
            self.hasher = Hasher::for_digest(Some(expected));
            self.hasher
                .rehash(&self.ingest.data(), u64::MAX)
                .context("hash ingest data")?;
        }
        let digest = self.hasher.digest();
        if let Some(expected) = expected
            && *expected != digest
        {
            return Err(Error::precondition(format!(
                "unexpected commit digest {digest}, expected {expected}"
            )));
        }
        let target = self.store.blob(&digest);
        if target.exists() {
            self.remove_ingest();
            return Err(Error::already_exists(format!("content {digest}")));
        }
        self.publish(&target)?;
        self.remove_ingest();
        Ok(digest)
    }

    /// Durable first, then visible: the bytes are synced before the name, the name before success.
    fn publish(&self, target: &Path) -> Result<()> {
        let now = SystemTime::now();
        // Neither is worth failing for: the times are shown, the mode guards against accidents.
        let _ = self.file.set_permissions(fs::Permissions::from_mode(0o444));
        let _ = self
            .file
            .set_times(FileTimes::new().set_accessed(now).set_modified(now));
        self.file.sync_all().context("sync failed")?;
        let dir = target.parent().expect("a blob is below blobs/<algorithm>");
        if !dir.exists() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(dir)
                .with_context(|| format!("make {}", dir.display()))?;
            let blobs = dir.parent().expect("blobs/<algorithm> is below blobs");
            sync_dir(blobs)?;
        }
        fs::rename(self.ingest.data(), target)
            .with_context(|| format!("rename ingest to {}", target.display()))?;
        sync_dir(dir)
    }

    fn remove_ingest(&self) {
        if let Err(error) = self.ingest.remove() {
            tracing::error!(r#ref = self.status.r#ref, %error, "remove ingest directory");
        }
    }
}

fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir)
        .and_then(|d| d.sync_all())
        .with_context(|| format!("sync folder {}", dir.display()))
}
