//! The bytes of a blob off the wire: how many requests at a time, in which pieces, and what happens when one breaks.
//!
//! A blob comes as one response, or, when the configuration gives a chunk size and the registry knows ranges, as
//! chunks of which several are on their way at a time. A chunk is held in memory until its turn comes; from its request
//! until then it has one of the permits that all downloads share, so that never more than
//! `max_concurrent_downloads` chunks exist, whatever is pulled. Permits are taken in the order of the chunks: the one
//! that is wanted next always has one.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use corten_core::{Error, Kind, Result};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;

use crate::oci::Desc;
use crate::registry::{Body, Registry};

/// Failures in a row without a new byte before a download is given up.
const MAX_IDLE: u32 = 3;
/// How much is gathered before it is written.
const WRITE_SIZE: usize = 512 << 10;
/// After so long less is written as well: who watches the progress must see that there is some.
const MAX_SILENCE: Duration = Duration::from_secs(1);
/// Smaller chunks than this are not worth a request (containerd: core/remotes/docker/fetcher.go).
const MIN_CHUNK: u64 = 512;

/// How blobs are downloaded. Clones share the permits.
#[derive(Debug, Clone, Default)]
pub struct Downloads {
    /// Responses at a time, over all transfers; none: no limit.
    limit: Option<Arc<Semaphore>>,
    parallel: usize,
    /// Bytes of a chunk; 0: each blob is one response.
    chunk: u64,
}

/// A chunk on its way; its permit comes with its bytes.
type Chunk = oneshot::Receiver<Result<(Vec<Bytes>, Option<OwnedSemaphorePermit>)>>;

/// A part of a blob that is fetched on its own.
struct Part<'a> {
    registry: &'a Registry,
    desc: &'a Desc,
    span: Range<u64>,
    /// The size of the whole blob.
    total: u64,
}

// === impl Downloads ===

impl Downloads {
    /// `parallel` responses at a time (0: no limit), blobs above `chunk` bytes in chunks (0: none).
    pub fn new(parallel: usize, chunk: u64) -> Self {
        let permits = parallel.min(Semaphore::MAX_PERMITS);
        Self {
            limit: (parallel > 0).then(|| Arc::new(Semaphore::new(permits))),
            parallel,
            chunk,
        }
    }

    /// Sends the bytes `span` of blob `desc`, which ends with `span`, to `out`. An empty piece comes first: the turn of
    /// this blob has come, from now on silence is the registry's.
    ///
    /// # Errors
    /// The registry's; FailedPrecondition when it sends more than the blob has.
    pub(crate) async fn run(
        &self,
        registry: &Arc<Registry>,
        desc: &Desc,
        span: Range<u64>,
        out: mpsc::Sender<Bytes>,
    ) -> Result<()> {
        let permit = self.permit().await?;
        hand_on(&out, Bytes::new()).await?;
        let total = span.end;
        let chunked =
            self.parallel > 1 && self.chunk >= MIN_CHUNK && total - span.start > self.chunk;
        if !chunked {
            let part = Part {
                registry,
                desc,
                span,
                total,
            };
            return part.send(None, &out).await;
        }
        let first = span.start..span.start + self.chunk;
        let body = registry.fetch(desc, first.clone(), total).await?;
        if !body.partial {
            tracing::debug!(digest = desc.digest, "registry knows no ranges");
            let part = Part {
                registry,
                desc,
                span,
                total,
            };
            return part.send(Some(body), &out).await;
        }
        self.chunks(registry, desc, span, (body, permit), out).await
    }

    async fn permit(&self) -> Result<Option<OwnedSemaphorePermit>> {
        let Some(limit) = self.limit.clone() else {
            return Ok(None);
        };
        match limit.acquire_owned().await {
            Ok(permit) => Ok(Some(permit)),
            Err(_) => Err(Error::internal("download limiter closed")),
        }
    }

    async fn chunks(
        &self,
        registry: &Arc<Registry>,
        desc: &Desc,
        span: Range<u64>,
        first: (Body, Option<OwnedSemaphorePermit>),
        out: mpsc::Sender<Bytes>,
    ) -> Result<()> {
        // Dropped with this call, which stops them all.
        let mut tasks = JoinSet::new();
        let mut waiting: VecDeque<Chunk> = VecDeque::new();
        let (total, mut next) = (span.end, span.start);
        let mut spawn = |body, permit| {
            while tasks.try_join_next().is_some() {}
            let (registry, desc) = (registry.clone(), desc.clone());
            let span = next..total.min(next + self.chunk);
            next = span.end;
            let (tx, rx) = oneshot::channel();
            tasks.spawn(async move {
                let part = Part {
                    registry: &registry,
                    desc: &desc,
                    span,
                    total,
                };
                let done = part.whole(body).await;
                // Nobody waits when another chunk failed.
                let _ = tx.send(done.map(|data| (data, permit)));
            });
            (rx, next < total)
        };
        let (chunk, mut more) = spawn(Some(first.0), first.1);
        waiting.push_back(chunk);
        loop {
            let room = more && waiting.len() < self.parallel;
            let Some(front) = waiting.front_mut() else {
                return Ok(());
            };
            tokio::select! {
                biased;
                done = front => {
                    waiting.pop_front();
                    let done = done.unwrap_or_else(|_| Err(Error::internal("download panicked")));
                    let (data, permit) = done?;
                    for piece in data {
                        hand_on(&out, piece).await?;
                    }
                    drop(permit);
                    if waiting.is_empty() && more {
                        let chunk;
                        (chunk, more) = spawn(None, self.permit().await?);
                        waiting.push_back(chunk);
                    }
                }
                // Cancel-safe: a permit that was not taken stays where it is.
                permit = self.permit(), if room => {
                    let chunk;
                    (chunk, more) = spawn(None, permit?);
                    waiting.push_back(chunk);
                }
            }
        }
    }
}

// === impl Part ===

impl Part<'_> {
    // All of it, in memory.
    async fn whole(&self, first: Option<Body>) -> Result<Vec<Bytes>> {
        let (tx, mut rx) = mpsc::channel::<Bytes>(4);
        let gather = async {
            let mut out = Vec::new();
            while let Some(data) = rx.recv().await {
                out.push(data);
            }
            Ok(out)
        };
        let read = async {
            let tx = tx;
            self.send(first, &tx).await
        };
        tokio::try_join!(read, gather).map(|(_, data)| data)
    }

    // Sends the bytes, opening the blob again where a connection broke; `first` is an answer that is there already.
    async fn send(&self, mut first: Option<Body>, tx: &mpsc::Sender<Bytes>) -> Result<()> {
        let end = self.span.end;
        let mut offset = self.span.start;
        let mut idle = 0;
        loop {
            let before = offset;
            let body = match first.take() {
                Some(body) => body,
                None => {
                    let rest = offset..end;
                    self.registry.fetch(self.desc, rest, self.total).await?
                }
            };
            let error = match self.pump(body, &mut offset, tx).await {
                Ok(()) if offset == end => return Ok(()),
                Ok(()) => Error::new(Kind::Unknown, "unexpected EOF"),
                // All came, and only the end of the response did not: to ask for what is behind it would be an error.
                Err(e) if e.kind() == Kind::Unavailable && offset == end => return Ok(()),
                Err(e) if e.kind() == Kind::Unavailable => e,
                Err(e) => return Err(e),
            };
            idle = if offset == before { idle + 1 } else { 0 };
            if idle > MAX_IDLE {
                return Err(error.reclassify(Kind::Unknown));
            }
            tracing::debug!(%error, offset, digest = self.desc.digest, "download broke, going on");
            tokio::time::sleep(Duration::from_millis(100 << idle)).await;
        }
    }

    // Unavailable: the connection broke and `offset` says how far it came.
    async fn pump(&self, mut body: Body, offset: &mut u64, tx: &mpsc::Sender<Bytes>) -> Result<()> {
        let mut gathered = BytesMut::new();
        let mut flushed_at = Instant::now();
        let mut skip = body.skip;
        let broken = loop {
            let mut chunk = match body.response.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break None,
                Err(e) => break Some(Error::new(Kind::Unavailable, format!("read blob: {e}"))),
            };
            let drop_now = skip.min(chunk.len() as u64);
            skip -= drop_now;
            let _ = chunk.split_to(usize::try_from(drop_now).unwrap_or(chunk.len()));
            let room = self.span.end - *offset - gathered.len() as u64;
            let full = chunk.len() as u64 > room;
            if full {
                if self.span.end == self.total {
                    return Err(Error::precondition(format!(
                        "read past expected size {}",
                        self.total
                    )));
                }
                // A registry that gives the rest of the blob for a part of it.
                chunk.truncate(usize::try_from(room).unwrap_or(chunk.len()));
            }
            gathered.extend_from_slice(&chunk);
            if full {
                break None;
            }
            if gathered.len() >= WRITE_SIZE || flushed_at.elapsed() >= MAX_SILENCE {
                flush(&mut gathered, offset, tx).await?;
                flushed_at = Instant::now();
            }
        };
        flush(&mut gathered, offset, tx).await?;
        broken.map_or(Ok(()), Err)
    }
}

async fn flush(gathered: &mut BytesMut, offset: &mut u64, tx: &mpsc::Sender<Bytes>) -> Result<()> {
    if gathered.is_empty() {
        return Ok(());
    }
    let data = gathered.split().freeze();
    let length = data.len() as u64;
    hand_on(tx, data).await?;
    *offset += length;
    Ok(())
}

async fn hand_on(tx: &mpsc::Sender<Bytes>, data: Bytes) -> Result<()> {
    tx.send(data)
        .await
        .map_err(|_| Error::new(Kind::Canceled, "writer is gone"))
}

#[cfg(test)]
mod tests;
