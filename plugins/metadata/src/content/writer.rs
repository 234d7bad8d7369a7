//! A namespaced writer: a backend's writer, or one that is complete already because the bytes are there.
//!
//! ```text
//! taking over --write, truncate--> writing (bytes so far are copied)
//!      |                              |
//!      +---------- commit ------------+--> record of the blob, ingest gone, event
//! ```

use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use corten_core::content::{IngestStatus, Reader, Writer, WriterOptions};
use corten_core::protos::containerd::events::ContentCreate;
use corten_core::protos::containerd::services::content::v1::Info as Record;
use corten_core::protos::time;
use corten_core::{Digest, Error, Kind, Labels, Result, Scope};

use super::blob;
use crate::db::{Db, ensure_namespace};
use crate::keys::{self, key, save};
use crate::leases;
use crate::records::checked_labels;

/// Bytes copied at once from a blob that is taken over.
const CHUNK: usize = 1 << 20;

pub(super) struct Namespaced {
    db: Arc<Db>,
    scope: Scope,
    options: WriterOptions,
    backend: String,
    /// None while the blob is taken over.
    inner: Option<Box<dyn Writer>>,
    started: SystemTime,
}

/// How the backend's writer is opened: without the digest, because the blob may be there and still has to be brought.
pub(super) fn backend_options(backend: &str, total: u64) -> WriterOptions {
    WriterOptions {
        r#ref: backend.to_owned(),
        total,
        ..Default::default()
    }
}

// === impl Namespaced ===

impl Namespaced {
    pub(super) fn new(
        db: Arc<Db>,
        scope: Scope,
        options: WriterOptions,
        backend: String,
        inner: Option<Box<dyn Writer>>,
    ) -> Self {
        Self {
            db,
            scope,
            options,
            backend,
            inner,
            started: SystemTime::now(),
        }
    }

    /// The digest that is taken over.
    fn taken(&self) -> Result<&Digest> {
        self.options
            .expected
            .as_ref()
            .ok_or_else(|| Error::internal("shared writer without digest"))
    }

    /// Ends taking over: opens the backend's writer with the first `size` bytes of the blob in it.
    async fn unshare(&mut self, size: u64) -> Result<()> {
        let digest = self.taken()?.clone();
        let options = backend_options(&self.backend, self.options.total);
        let mut inner = self.db.content.writer(options).await?;
        if inner.status().offset > 0 {
            inner.truncate(0).await?;
        }
        if size > 0 {
            let mut reader = Reader::new(self.db.content.reader_at(&digest).await?);
            let mut left = size;
            while left > 0 {
                let want = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
                let (back, data) = tokio::task::spawn_blocking(move || {
                    let mut data = vec![0; want];
                    let n = std::io::Read::read(&mut reader, &mut data);
                    (
                        reader,
                        n.map(|n| {
                            data.truncate(n);
                            data
                        }),
                    )
                })
                .await
                .map_err(|_| Error::internal("blob reader panicked"))?;
                reader = back;
                let data = data?;
                if data.is_empty() {
                    return Err(Error::new(
                        Kind::Unknown,
                        format!("blob {digest} is too short"),
                    ));
                }
                left -= data.len() as u64;
                inner.write(data.into()).await?;
            }
        }
        self.inner = Some(inner);
        Ok(())
    }
}

#[async_trait]
impl Writer for Namespaced {
    async fn write(&mut self, data: Bytes) -> Result<()> {
        if self.inner.is_none() {
            if data.is_empty() {
                return Ok(());
            }
            self.unshare(self.options.total).await?;
        }
        match &mut self.inner {
            Some(inner) => inner.write(data).await,
            None => Ok(()),
        }
    }

    async fn truncate(&mut self, size: u64) -> Result<()> {
        match &mut self.inner {
            Some(inner) => inner.truncate(size).await,
            None => self.unshare(size).await,
        }
    }

    fn status(&self) -> IngestStatus {
        let name = self.options.r#ref.clone();
        match &self.inner {
            Some(inner) => IngestStatus {
                r#ref: name,
                ..inner.status()
            },
            None => IngestStatus {
                r#ref: name,
                offset: self.options.total,
                total: self.options.total,
                expected: self.options.expected.clone(),
                started_at: self.started,
                updated_at: self.started,
            },
        }
    }

    fn digest(&self) -> Digest {
        match (&self.inner, &self.options.expected) {
            (Some(inner), _) => inner.digest(),
            (None, Some(digest)) => digest.clone(),
            // A writer that takes over has a digest; nothing written is the honest answer otherwise.
            (None, None) => Digest::sha256(b""),
        }
    }

    async fn commit(
        &mut self,
        size: u64,
        expected: Option<Digest>,
        mut labels: Labels,
    ) -> Result<()> {
        checked_labels("info.Labels", &mut labels)?;
        let commit = Commit {
            db: self.db.clone(),
            scope: self.scope.clone(),
            r#ref: self.options.r#ref.clone(),
            media_type: self.options.media_type.clone(),
            labels,
        };
        let status = self.status();
        if size != 0 && size != status.offset {
            return Err(Error::precondition(format!(
                "{:?} failed size validation: {} != {size}",
                commit.r#ref, status.offset
            )));
        }
        let db = self.db.clone();
        match self.inner.take() {
            None => {
                let digest = self.taken()?.clone();
                if expected.is_some_and(|e| e != digest) {
                    let text = format!("{:?} unexpected digest", commit.r#ref);
                    return Err(Error::precondition(text));
                }
                db.whole(commit.record(status.offset, digest)).await
            }
            Some(inner) => {
                let digest = inner.digest();
                let (inner, done) = db
                    .whole(commit.bytes(inner, status.offset, expected))
                    .await?;
                match &done {
                    // A refused commit leaves the writer usable, as in containerd.
                    Err(e) if e.kind() != Kind::AlreadyExists => self.inner = Some(inner),
                    // The answer to the commit tells the digest.
                    _ => self.options.expected = Some(digest),
                }
                done
            }
        }
    }
}

/// The steps of a commit, which run as a whole whatever becomes of the caller.
struct Commit {
    db: Arc<Db>,
    scope: Scope,
    r#ref: String,
    media_type: String,
    labels: Labels,
}

// === impl Commit ===

impl Commit {
    /// Makes the ingest a blob, then records it. No sweep comes between the two.
    async fn bytes(
        self,
        mut inner: Box<dyn Writer>,
        size: u64,
        expected: Option<Digest>,
    ) -> Result<(Box<dyn Writer>, Result<()>)> {
        let db = self.db.clone();
        let sweep = db.content_sweep.read().await;
        let alone = db.lock_ingest(&self.scope, &self.r#ref).await;
        let digest = inner.digest();
        match inner.commit(size, expected, Labels::new()).await {
            Err(e) if e.kind() != Kind::AlreadyExists => return Ok((inner, Err(e))),
            _ => {}
        }
        let done = self.insert(size, digest).await;
        if done.is_err() {
            // The blob may be nobody's now.
            db.soil_content();
        }
        drop((alone, sweep));
        Ok((inner, done))
    }

    /// Records a blob whose bytes are there.
    async fn record(self, size: u64, digest: Digest) -> Result<()> {
        let db = self.db.clone();
        let _sweep = db.content_sweep.read().await;
        let _alone = db.lock_ingest(&self.scope, &self.r#ref).await;
        // The ingest kept the bytes, unless it expired or lost its lease meanwhile.
        db.content.info(&digest).await?;
        self.insert(size, digest).await
    }

    async fn insert(self, size: u64, digest: Digest) -> Result<()> {
        let now = Some(time::now());
        let stored =
            i64::try_from(size).map_err(|_| Error::invalid(format!("blob size {size}")))?;
        let record = Record {
            digest: digest.to_string(),
            size: stored,
            created_at: now,
            updated_at: now,
            labels: self.labels,
        };
        let (scope, r#ref, at) = (self.scope.clone(), self.r#ref, digest.clone());
        let new = self
            .db
            .write(move |txn| {
                ensure_namespace(txn, &scope.namespace)?;
                txn.delete(&key(keys::INGESTS, &[scope.namespace.as_str(), &r#ref]))?;
                leases::release(txn, &scope, leases::INGESTS, &r#ref)?;
                leases::hold(txn, &scope, leases::CONTENT, at.as_str())?;
                let key = blob(&scope.namespace, &at);
                let new = !txn.has(&key)?;
                if new {
                    save(txn, &key, &record)?;
                }
                Ok(new)
            })
            .await?;
        if !new {
            return Err(Error::already_exists(format!("content {digest}")));
        }
        let event = ContentCreate {
            digest: digest.to_string(),
            size: stored,
            media_type: self.media_type,
        };
        self.db
            .publish(&self.scope.namespace, "/content/create", &event)
            .await;
        Ok(())
    }
}
