//! containerd.services.content.v1.Content of another process as a content back end.
//!
//! A writer is one Write call: each step is a message and its answer. Dropping it closes the call; the other side
//! frees the ingest when it notices, so a writer for the same ingest is opened only after that. Reading is blocking
//! by contract and goes through a task of the async runtime, a window at a time.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use corten_core::content::{Backend, Info, IngestStatus, ReadAt, Writer, WriterOptions};
use corten_core::{Digest, Error, Kind, Labels, Result};
use corten_protos::containerd::services::content::v1::content_client::ContentClient;
use corten_protos::containerd::services::content::v1::{
    AbortRequest, DeleteContentRequest, Info as InfoMessage, InfoRequest, ListContentRequest,
    ListStatusesRequest, ReadContentRequest, Status as StatusMessage, StatusRequest, WriteAction,
    WriteContentRequest, WriteContentResponse,
};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::channel::{MAX_MESSAGE, Remote, request};
use crate::snapshotter::time_of;

/// Bytes of one message of a write, well below the limit of a message.
const CHUNK: usize = 1 << 20;
/// Bytes fetched at least when a blob is read.
const WINDOW: usize = 1 << 20;

/// A content store elsewhere. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Proxy {
    remote: Remote,
    client: Arc<OnceLock<ContentClient<Channel>>>,
    /// Ingests whose dropped writers the other side may not have freed yet; the sender goes when it has.
    closing: Arc<Mutex<HashMap<String, watch::Receiver<()>>>>,
}

/// A blob elsewhere.
struct Blob {
    store: Proxy,
    digest: Digest,
    size: u64,
    runtime: Handle,
    /// The last window and where it begins.
    window: Mutex<(u64, Bytes)>,
}

/// An open Write call.
struct Ingest {
    store: Proxy,
    /// Dropped to close our side of the call.
    requests: Option<mpsc::Sender<WriteContentRequest>>,
    answers: Option<Streaming<WriteContentResponse>>,
    status: IngestStatus,
    digest: Digest,
}

// === impl Proxy ===

impl Proxy {
    pub(crate) fn new(remote: Remote) -> Self {
        Self {
            remote,
            client: Arc::default(),
            closing: Arc::default(),
        }
    }

    fn client(&self) -> ContentClient<Channel> {
        let make = || {
            ContentClient::new(self.remote.channel())
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE)
        };
        self.client.get_or_init(make).clone()
    }

    /// `wanted` bytes of a blob from `offset`, fewer at its end.
    async fn fetch(self, digest: Digest, offset: u64, wanted: usize) -> Result<Bytes> {
        let r = ReadContentRequest {
            digest: digest.to_string(),
            offset: signed(offset),
            size: signed(wanted as u64),
        };
        let answer = self.client().read(request(r)).await;
        let mut parts = answer.map_err(|s| self.remote.failed(s))?.into_inner();
        let mut data = BytesMut::new();
        while data.len() < wanted {
            let part = parts.message().await;
            let Some(part) = part.map_err(|s| self.remote.failed(s))? else {
                break;
            };
            data.extend_from_slice(&part.data);
        }
        Ok(data.freeze())
    }

    fn info_of(&self, m: InfoMessage) -> Result<Info> {
        Ok(Info {
            digest: Digest::parse(&m.digest)?,
            size: u64::try_from(m.size).map_err(|_| self.remote.incomplete("a size"))?,
            created_at: time_of(m.created_at),
            updated_at: time_of(m.updated_at),
            labels: m.labels,
        })
    }

    fn status_of(m: StatusMessage) -> IngestStatus {
        IngestStatus {
            r#ref: m.r#ref,
            offset: u64::try_from(m.offset).unwrap_or_default(),
            total: u64::try_from(m.total).unwrap_or_default(),
            expected: Digest::parse(&m.expected).ok(),
            started_at: time_of(m.started_at),
            updated_at: time_of(m.updated_at),
        }
    }

    /// Waits until the other side heard that the last writer of `ref` is gone.
    async fn closed(&self, r#ref: &str) {
        let closing = self.closing.lock().get(r#ref).cloned();
        if let Some(mut closing) = closing {
            // Nothing is ever sent: it ends with its sender.
            let _ = closing.changed().await;
            let mut all = self.closing.lock();
            if all.get(r#ref).is_some_and(|c| c.same_channel(&closing)) {
                all.remove(r#ref);
            }
        }
    }
}

#[async_trait]
impl Backend for Proxy {
    async fn info(&self, digest: &Digest) -> Result<Info> {
        let r = InfoRequest {
            digest: digest.to_string(),
        };
        let answer = self.client().info(request(r)).await;
        let answer = answer.map_err(|s| self.remote.failed(s))?.into_inner();
        let info = answer.info.ok_or_else(|| self.remote.incomplete("info"))?;
        self.info_of(info)
    }

    async fn list(&self) -> Result<Vec<Info>> {
        let r = ListContentRequest::default();
        let answer = self.client().list(request(r)).await;
        let mut batches = answer.map_err(|s| self.remote.failed(s))?.into_inner();
        let mut all = Vec::new();
        while let Some(batch) = batches.message().await.map_err(|s| self.remote.failed(s))? {
            for info in batch.info {
                all.push(self.info_of(info)?);
            }
        }
        Ok(all)
    }

    async fn delete(&self, digest: &Digest) -> Result<()> {
        let r = DeleteContentRequest {
            digest: digest.to_string(),
        };
        let answer = self.client().delete(request(r)).await;
        answer.map(drop).map_err(|s| self.remote.failed(s))
    }

    async fn reader_at(&self, digest: &Digest) -> Result<Arc<dyn ReadAt>> {
        let size = self.info(digest).await?.size;
        Ok(Arc::new(Blob {
            store: self.clone(),
            digest: digest.clone(),
            size,
            runtime: Handle::current(),
            window: Mutex::new((0, Bytes::new())),
        }))
    }

    async fn writer(&self, o: WriterOptions) -> Result<Box<dyn Writer>> {
        self.closed(&o.r#ref).await;
        // One message at a time: each is answered before the next.
        let (requests, queue) = mpsc::channel(1);
        let first = WriteContentRequest {
            action: WriteAction::Stat.into(),
            r#ref: o.r#ref.clone(),
            total: signed(o.total),
            expected: o
                .expected
                .as_ref()
                .map(Digest::to_string)
                .unwrap_or_default(),
            ..Default::default()
        };
        // The queue is empty, so this does not wait; the server answers only after the first message.
        let _ = requests.try_send(first);
        let answer = self
            .client()
            .write(request(ReceiverStream::new(queue)))
            .await;
        let answers = answer.map_err(|s| self.remote.failed(s))?.into_inner();
        let mut ingest = Ingest {
            store: self.clone(),
            requests: Some(requests),
            answers: Some(answers),
            status: IngestStatus {
                r#ref: o.r#ref,
                offset: 0,
                total: o.total,
                expected: o.expected,
                started_at: std::time::SystemTime::UNIX_EPOCH,
                updated_at: std::time::SystemTime::UNIX_EPOCH,
            },
            digest: Digest::sha256(b""),
        };
        let stat = ingest.answer().await?;
        ingest.status.started_at = time_of(stat.started_at);
        ingest.status.updated_at = time_of(stat.updated_at);
        Ok(Box::new(ingest))
    }

    async fn status(&self, r#ref: &str) -> Result<IngestStatus> {
        let r = StatusRequest {
            r#ref: r#ref.to_owned(),
        };
        let answer = self.client().status(request(r)).await;
        let answer = answer.map_err(|s| self.remote.failed(s))?.into_inner();
        let status = answer.status.map(Self::status_of);
        status.ok_or_else(|| self.remote.incomplete("a status"))
    }

    async fn list_statuses(&self) -> Result<Vec<IngestStatus>> {
        let r = ListStatusesRequest::default();
        let answer = self.client().list_statuses(request(r)).await;
        let answer = answer.map_err(|s| self.remote.failed(s))?.into_inner();
        Ok(answer.statuses.into_iter().map(Self::status_of).collect())
    }

    async fn abort(&self, r#ref: &str) -> Result<()> {
        self.closed(r#ref).await;
        let r = AbortRequest {
            r#ref: r#ref.to_owned(),
        };
        let answer = self.client().abort(request(r)).await;
        answer.map(drop).map_err(|s| self.remote.failed(s))
    }
}

// === impl Blob ===

impl ReadAt for Blob {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
        if offset >= self.size || buf.is_empty() {
            return Ok(0);
        }
        let mut window = self.window.lock();
        let inside = |w: &(u64, Bytes)| {
            let skip = usize::try_from(offset.checked_sub(w.0)?).ok()?;
            w.1.get(skip..)
                .filter(|rest| !rest.is_empty())
                .map(|_| skip)
        };
        if inside(&window).is_none() {
            let fetch =
                self.store
                    .clone()
                    .fetch(self.digest.clone(), offset, buf.len().max(WINDOW));
            // Not block_on: that would panic in a caller that is itself async, where this merely is slow.
            let (done, fetched) = std::sync::mpsc::sync_channel(1);
            self.runtime.spawn(async move {
                let _ = done.send(fetch.await);
            });
            let data = fetched
                .recv()
                .map_err(|_| std::io::Error::other("the daemon is stopping"))?;
            *window = (offset, data.map_err(std::io::Error::other)?);
        }
        let Some(skip) = inside(&window) else {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        };
        let rest = &window.1[skip..];
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }
}

// === impl Ingest ===

impl Ingest {
    /// One message and its answer.
    async fn exchange(&mut self, message: WriteContentRequest) -> Result<WriteContentResponse> {
        let Some(requests) = &self.requests else {
            return Err(closed());
        };
        // A call that ended does not take messages; how it ended is in its answers.
        let _ = requests.send(message).await;
        self.answer().await
    }

    async fn answer(&mut self) -> Result<WriteContentResponse> {
        let Some(answers) = &mut self.answers else {
            return Err(closed());
        };
        let answer = match answers.message().await {
            Ok(Some(answer)) => answer,
            Ok(None) => {
                self.requests = None;
                return Err(closed());
            }
            Err(status) => {
                self.requests = None;
                return Err(self.store.remote.failed(status));
            }
        };
        self.status.offset = u64::try_from(answer.offset).unwrap_or_default();
        if let Ok(digest) = Digest::parse(&answer.digest) {
            self.digest = digest;
        }
        Ok(answer)
    }
}

#[async_trait]
impl Writer for Ingest {
    async fn write(&mut self, mut data: Bytes) -> Result<()> {
        while !data.is_empty() {
            let chunk = data.split_to(data.len().min(CHUNK));
            let after = self.status.offset + chunk.len() as u64;
            let message = WriteContentRequest {
                action: WriteAction::Write.into(),
                offset: signed(self.status.offset),
                data: chunk,
                ..Default::default()
            };
            self.exchange(message).await?;
            if self.status.offset != after {
                return Err(Error::new(
                    Kind::Unknown,
                    format!("offset {} after a write up to {after}", self.status.offset),
                ));
            }
            self.status.updated_at = std::time::SystemTime::now();
        }
        Ok(())
    }

    async fn truncate(&mut self, size: u64) -> Result<()> {
        if size == self.status.offset {
            return Ok(());
        }
        if size != 0 {
            return Err(Error::not_implemented(format!(
                "truncate ingest {:?} of a proxy to {size} bytes",
                self.status.r#ref
            )));
        }
        // A write without data at the start makes the other side start over.
        let message = WriteContentRequest {
            action: WriteAction::Write.into(),
            ..Default::default()
        };
        self.exchange(message).await.map(drop)
    }

    fn status(&self) -> IngestStatus {
        self.status.clone()
    }

    fn digest(&self) -> Digest {
        self.digest.clone()
    }

    async fn commit(&mut self, size: u64, expected: Option<Digest>, labels: Labels) -> Result<()> {
        let message = WriteContentRequest {
            action: WriteAction::Commit.into(),
            total: signed(size),
            expected: expected.map(|d| d.to_string()).unwrap_or_default(),
            offset: signed(self.status.offset),
            labels,
            ..Default::default()
        };
        let done = self.exchange(message).await.map(drop);
        self.requests = None;
        done
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        let Some(mut answers) = self.answers.take() else {
            return;
        };
        drop(self.requests.take());
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        let (ended, closing) = watch::channel(());
        let name = self.status.r#ref.clone();
        {
            let mut all = self.store.closing.lock();
            // Those that nobody waited for.
            all.retain(|_, c| c.has_changed().is_ok());
            all.insert(name, closing);
        }
        runtime.spawn(async move {
            while let Ok(Some(_)) = answers.message().await {}
            drop(ended);
        });
    }
}

fn closed() -> Error {
    Error::precondition("the writer is closed")
}

fn signed(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}
