//! Content: immutable blobs by digest, and the ingests that become them.
//!
//! Two traits. A [`Backend`] holds bytes and knows no namespaces (the local store, a proxy). [`Content`] is what
//! everyone else uses: the metadata plugin puts namespaces, labels, leases and sharing over a backend.
//!
//! Life of a blob: `writer(ref)` opens or resumes the ingest `ref` (exclusively: a second writer gets Unavailable),
//! `write` appends, `commit` checks size and digest, makes it durable and visible. A writer that is dropped leaves
//! its ingest for a later resume; `abort` removes it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;

use crate::digest::Digest;
use crate::error::Result;
use crate::id::Namespace;
use crate::labels::Labels;
use crate::scope::Scope;
use crate::{Descriptor, filter};

/// What is known of one blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    pub created_at: SystemTime,
    pub updated_at: SystemTime,
    pub labels: Labels,
}

/// What is known of one ingest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IngestStatus {
    pub r#ref: String,
    /// Bytes written so far.
    pub offset: u64,
    /// Expected bytes; 0 when unknown.
    pub total: u64,
    pub expected: Option<Digest>,
    pub started_at: SystemTime,
    pub updated_at: SystemTime,
}

/// Random access to a blob. Blocking: call it from `sys::blocking` or a thread of one's own.
pub trait ReadAt: Send + Sync {
    /// Bytes.
    fn size(&self) -> u64;
    /// Reads at most `buf.len()` bytes at `offset`; 0 at the end.
    ///
    /// # Errors
    /// The store's I/O errors.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize>;
    /// The blob as a file of its own, when it is one (sendfile, mmap, stdin of a helper).
    fn file(&self) -> Option<&std::fs::File> {
        None
    }
}

/// Sequential [`std::io::Read`] over a [`ReadAt`].
pub struct Reader {
    inner: Arc<dyn ReadAt>,
    offset: u64,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reader({}/{})", self.offset, self.inner.size())
    }
}

impl Reader {
    /// Reads from the start.
    pub fn new(inner: Arc<dyn ReadAt>) -> Self {
        Self { inner, offset: 0 }
    }
}

impl std::io::Read for Reader {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read_at(buf, self.offset)?;
        self.offset += n as u64;
        Ok(n)
    }
}

/// What a writer is opened for.
#[derive(Debug, Clone, Default)]
pub struct WriterOptions {
    /// Name of the ingest; required.
    pub r#ref: String,
    /// Expected bytes; 0 when unknown.
    pub total: u64,
    pub expected: Option<Digest>,
    /// Media type for the ContentCreate event, when known (containerd 2.4: events/content.proto mediaType).
    pub media_type: String,
}

impl WriterOptions {
    /// An ingest for the blob that `descriptor` names.
    ///
    /// # Errors
    /// InvalidArgument when the descriptor's digest or size is malformed.
    pub fn of(r#ref: impl Into<String>, descriptor: &Descriptor) -> Result<Self> {
        Ok(Self {
            r#ref: r#ref.into(),
            total: u64::try_from(descriptor.size).map_err(|_| {
                crate::Error::invalid(format!("descriptor size {}", descriptor.size))
            })?,
            expected: Some(Digest::parse(&descriptor.digest)?),
            media_type: descriptor.media_type.clone(),
        })
    }
}

/// An open ingest.
#[async_trait]
pub trait Writer: Send {
    /// Appends.
    async fn write(&mut self, data: Bytes) -> Result<()>;
    /// Goes back to `size` bytes (0 restarts the ingest).
    async fn truncate(&mut self, size: u64) -> Result<()>;
    /// Offset, total, times.
    fn status(&self) -> IngestStatus;
    /// The digest of what was written so far, in the expected digest's algorithm (sha256 when none).
    fn digest(&self) -> Digest;
    /// Makes the ingest a blob. `size` 0 and `expected` None mean unchecked. FailedPrecondition on a mismatch,
    /// AlreadyExists when the blob is there (the ingest is then gone, and the blob leased).
    async fn commit(&mut self, size: u64, expected: Option<Digest>, labels: Labels) -> Result<()>;
}

/// Bytes by digest, without namespaces.
#[async_trait]
pub trait Backend: Send + Sync {
    /// NotFound when absent. Labels are empty unless the backend keeps its own.
    async fn info(&self, digest: &Digest) -> Result<Info>;
    /// Every blob.
    async fn list(&self) -> Result<Vec<Info>>;
    /// NotFound when absent.
    async fn delete(&self, digest: &Digest) -> Result<()>;
    /// NotFound when absent.
    async fn reader_at(&self, digest: &Digest) -> Result<Arc<dyn ReadAt>>;
    /// Opens or resumes; Unavailable while another writer holds the ref, AlreadyExists when `expected` is there.
    async fn writer(&self, options: WriterOptions) -> Result<Box<dyn Writer>>;
    /// NotFound when absent.
    async fn status(&self, r#ref: &str) -> Result<IngestStatus>;
    /// Every ingest.
    async fn list_statuses(&self) -> Result<Vec<IngestStatus>>;
    /// NotFound when absent.
    async fn abort(&self, r#ref: &str) -> Result<()>;
}

/// The namespaced store that services and plugins use.
#[async_trait]
pub trait Content: Send + Sync {
    async fn info(&self, ns: &Namespace, digest: &Digest) -> Result<Info>;
    /// Replaces labels under the mask (`labels`, `labels.<key>`; empty = all).
    async fn update(&self, ns: &Namespace, info: Info, paths: &[String]) -> Result<Info>;
    async fn list(&self, ns: &Namespace, filter: &filter::Filter) -> Result<Vec<Info>>;
    /// NotFound when absent; the bytes go with the next garbage collection.
    async fn delete(&self, scope: &Scope, digest: &Digest) -> Result<()>;
    async fn reader_at(&self, ns: &Namespace, digest: &Digest) -> Result<Arc<dyn ReadAt>>;
    /// Opens or resumes. When `expected` exists in this namespace: AlreadyExists, and the blob joins the scope's
    /// lease. When it exists in the backend only and sharing allows: a writer that is already complete.
    async fn writer(&self, scope: &Scope, options: WriterOptions) -> Result<Box<dyn Writer>>;
    async fn status(&self, ns: &Namespace, r#ref: &str) -> Result<IngestStatus>;
    async fn list_statuses(
        &self,
        ns: &Namespace,
        filter: &filter::Filter,
    ) -> Result<Vec<IngestStatus>>;
    async fn abort(&self, scope: &Scope, r#ref: &str) -> Result<()>;
}

/// Reads a whole small blob, refusing more than `limit` bytes.
///
/// # Errors
/// NotFound; ResourceExhausted over the limit; the store's I/O errors.
pub async fn read_blob(
    store: &dyn Content,
    ns: &Namespace,
    digest: &Digest,
    limit: u64,
) -> Result<Vec<u8>> {
    let reader = store.reader_at(ns, digest).await?;
    if reader.size() > limit {
        return Err(crate::Error::new(
            crate::Kind::ResourceExhausted,
            format!(
                "blob {digest} of {} bytes is larger than {limit}",
                reader.size()
            ),
        ));
    }
    let read = tokio::task::spawn_blocking(move || {
        let mut out = Vec::new();
        std::io::Read::read_to_end(&mut Reader::new(reader), &mut out).map(|_| out)
    });
    match read.await {
        Ok(out) => Ok(out?),
        Err(_) => Err(crate::Error::internal("blob reader panicked")),
    }
}

/// Opens the ingest that `options` names; waits while another client writes it (containerd: content.OpenWriter).
///
/// # Errors
/// AlreadyExists when the expected blob is there; the store's. Never Unavailable because of another writer.
pub async fn open_writer(
    store: &dyn Content,
    scope: &Scope,
    options: WriterOptions,
) -> Result<Box<dyn Writer>> {
    let mut wait = Duration::from_millis(16);
    loop {
        match store.writer(scope, options.clone()).await {
            Err(e) if e.kind() == crate::Kind::Unavailable => {
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(Duration::from_secs(2));
            }
            other => return other,
        }
    }
}

/// Writes a whole small blob; an existing one is not an error.
///
/// # Errors
/// The store's; FailedPrecondition when `data` does not match `descriptor`.
pub async fn write_blob(
    store: &dyn Content,
    scope: &Scope,
    r#ref: &str,
    descriptor: &Descriptor,
    data: Bytes,
    labels: Labels,
) -> Result<()> {
    let options = WriterOptions::of(r#ref, descriptor)?;
    let (total, expected) = (options.total, options.expected.clone());
    let done = async {
        let mut writer = open_writer(store, scope, options).await?;
        let offset = writer.status().offset;
        if offset != 0 && offset != total {
            writer.truncate(0).await?;
        }
        if writer.status().offset != total {
            writer.write(data).await?;
        }
        writer.commit(total, expected, labels).await
    };
    match done.await {
        Err(e) if e.kind() == crate::Kind::AlreadyExists => Ok(()),
        other => other,
    }
}
