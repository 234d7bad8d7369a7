//! A content store in memory, for suites that need one beside what they test. One namespace, labels, no leases.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use corten_core::content::{Content, Info, IngestStatus, ReadAt, Writer, WriterOptions};
use corten_core::filter::Filter;
use corten_core::{Digest, Error, Labels, Namespace, Result, Scope, labels};
use parking_lot::Mutex;

type Blobs = Arc<Mutex<HashMap<Digest, (Info, Bytes)>>>;

/// The store.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    blobs: Blobs,
}

impl Memory {
    /// Stores a blob.
    pub fn put(&self, data: impl Into<Bytes>) -> Digest {
        let data = data.into();
        let digest = Digest::sha256(&data);
        insert(&self.blobs, digest.clone(), data, Labels::new());
        digest
    }

    /// The bytes of a blob.
    pub fn get(&self, digest: &Digest) -> Option<Bytes> {
        self.blobs.lock().get(digest).map(|b| b.1.clone())
    }
}

fn insert(blobs: &Blobs, digest: Digest, data: Bytes, labels: Labels) {
    let now = SystemTime::now();
    let size = data.len() as u64;
    let info = Info {
        digest: digest.clone(),
        size,
        created_at: now,
        updated_at: now,
        labels,
    };
    blobs.lock().insert(digest, (info, data));
}

struct Blob(Bytes);

impl ReadAt for Blob {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
        let start = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(self.0.len());
        let n = buf.len().min(self.0.len() - start);
        buf[..n].copy_from_slice(&self.0[start..start + n]);
        Ok(n)
    }
}

struct Ingest {
    blobs: Blobs,
    status: IngestStatus,
    data: Vec<u8>,
}

#[async_trait]
impl Writer for Ingest {
    async fn write(&mut self, data: Bytes) -> Result<()> {
        self.data.extend_from_slice(&data);
        self.status.offset = self.data.len() as u64;
        Ok(())
    }
    async fn truncate(&mut self, size: u64) -> Result<()> {
        self.data
            .truncate(usize::try_from(size).unwrap_or(usize::MAX));
        self.status.offset = self.data.len() as u64;
        Ok(())
    }
    fn status(&self) -> IngestStatus {
        self.status.clone()
    }
    fn digest(&self) -> Digest {
        Digest::sha256(&self.data)
    }
    async fn commit(&mut self, size: u64, expected: Option<Digest>, labels: Labels) -> Result<()> {
        let digest = self.digest();
        if expected.is_some_and(|e| e != digest) || (size > 0 && size != self.data.len() as u64) {
            return Err(Error::precondition("unexpected commit"));
        }
        if self.blobs.lock().contains_key(&digest) {
            return Err(Error::already_exists(format!("content {digest}")));
        }
        insert(
            &self.blobs,
            digest,
            std::mem::take(&mut self.data).into(),
            labels,
        );
        Ok(())
    }
}

#[async_trait]
impl Content for Memory {
    async fn info(&self, _: &Namespace, digest: &Digest) -> Result<Info> {
        let found = self.blobs.lock().get(digest).map(|b| b.0.clone());
        found.ok_or_else(|| Error::not_found(format!("content {digest}")))
    }
    async fn update(&self, _: &Namespace, info: Info, paths: &[String]) -> Result<Info> {
        let mut blobs = self.blobs.lock();
        let Some((found, _)) = blobs.get_mut(&info.digest) else {
            return Err(Error::not_found(format!("content {}", info.digest)));
        };
        found.labels = labels::masked(&found.labels, &info.labels, paths)
            .ok_or_else(|| Error::invalid("field mask"))?;
        Ok(found.clone())
    }
    async fn list(&self, _: &Namespace, _: &Filter) -> Result<Vec<Info>> {
        Ok(self.blobs.lock().values().map(|b| b.0.clone()).collect())
    }
    async fn delete(&self, _: &Scope, digest: &Digest) -> Result<()> {
        let gone = self.blobs.lock().remove(digest);
        gone.map(drop)
            .ok_or_else(|| Error::not_found(format!("content {digest}")))
    }
    async fn reader_at(&self, _: &Namespace, digest: &Digest) -> Result<Arc<dyn ReadAt>> {
        let data = self
            .get(digest)
            .ok_or_else(|| Error::not_found(format!("content {digest}")))?;
        Ok(Arc::new(Blob(data)))
    }
    async fn writer(&self, _: &Scope, options: WriterOptions) -> Result<Box<dyn Writer>> {
        let now = SystemTime::now();
        let status = IngestStatus {
            r#ref: options.r#ref,
            offset: 0,
            total: options.total,
            expected: options.expected,
            started_at: now,
            updated_at: now,
        };
        Ok(Box::new(Ingest {
            blobs: self.blobs.clone(),
            status,
            data: Vec::new(),
        }))
    }
    async fn status(&self, _: &Namespace, r#ref: &str) -> Result<IngestStatus> {
        Err(Error::not_found(format!("ingest {}", r#ref)))
    }
    async fn list_statuses(&self, _: &Namespace, _: &Filter) -> Result<Vec<IngestStatus>> {
        Ok(Vec::new())
    }
    async fn abort(&self, _: &Scope, _: &str) -> Result<()> {
        Ok(())
    }
}
