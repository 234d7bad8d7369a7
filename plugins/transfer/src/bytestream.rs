//! Bytes over a stream of messages: Data frames of at most 32 KiB against a window that the reader opens.
//!
//! The end of the bytes is the close of the stream. The window counts whole frames, whatever part of one has been
//! taken so far (containerd 2.3.5).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use corten_core::protos::any;
use corten_core::protos::containerd::types::transfer::{Data, WindowUpdate};
use corten_core::streaming::Stream;
use corten_core::tasks_set::TaskSet;
use corten_core::{Error, Kind, Result};
use tokio::sync::{Semaphore, mpsc};

/// Largest frame.
const FRAME: usize = 32 << 10;
/// What the reader lets be on its way.
const WINDOW: i64 = 64 << 10;
/// What archives are made of.
const TAR_BLOCK: u64 = 512;
/// How long a reader may take to say that it has all.
const LAST_WORD: Duration = Duration::from_secs(5);
/// Most bytes that a peer may have granted at a time; more is ignored.
const MAX_CREDIT: usize = 1 << 30;

/// Receives bytes.
pub(crate) struct ByteReader {
    stream: Arc<dyn Stream>,
    window: i64,
}

/// Sends bytes.
pub(crate) struct ByteWriter {
    stream: Arc<dyn Stream>,
    credit: Arc<Semaphore>,
    sent: AtomicU64,
    // Reads the peer's window updates; ends with the writer.
    _updates: TaskSet,
}

impl std::fmt::Debug for ByteReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ByteReader(window {})", self.window)
    }
}

impl std::fmt::Debug for ByteWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ByteWriter(credit {})", self.credit.available_permits())
    }
}

impl ByteReader {
    pub(crate) fn new(stream: Arc<dyn Stream>) -> Self {
        Self { stream, window: 0 }
    }

    /// The next frame; `None` at the end.
    ///
    /// # Errors
    /// The stream's; InvalidArgument for a message that is no frame.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            if self.window < WINDOW {
                let message = WindowUpdate {
                    update: i32::try_from(WINDOW).unwrap_or(i32::MAX),
                };
                // A peer that has sent all may be gone already. What it sent still counts, and recv tells the rest.
                if let Err(error) = self.stream.send(any::pack(&message)).await {
                    tracing::debug!(%error, "window update not sent");
                }
                self.window += WINDOW;
            }
            let Some(message) = self.stream.recv().await? else {
                return Ok(None);
            };
            if !any::is::<Data>(&message) {
                tracing::warn!(
                    type_url = message.type_url,
                    "ignoring unknown stream object"
                );
                continue;
            }
            let data = any::unpack::<Data>(&message)
                .map_err(|e| Error::invalid(format!("unmarshal received object: {e}")))?
                .data;
            self.window -= i64::try_from(data.len()).unwrap_or(i64::MAX);
            if !data.is_empty() {
                return Ok(Some(data));
            }
        }
    }

    /// Ends the exchange.
    pub(crate) async fn close(&self) {
        self.stream.close().await;
    }
}

impl ByteWriter {
    pub(crate) fn new(stream: Arc<dyn Stream>) -> Self {
        let credit = Arc::new(Semaphore::new(0));
        let updates = TaskSet::new();
        let (peer, grant) = (stream.clone(), credit.clone());
        updates.spawn("transfer window", async move {
            while let Ok(Some(message)) = peer.recv().await {
                let Ok(update) = any::unpack::<WindowUpdate>(&message) else {
                    tracing::warn!(type_url = message.type_url, "unexpected stream object");
                    continue;
                };
                let room = MAX_CREDIT.saturating_sub(grant.available_permits());
                grant.add_permits(usize::try_from(update.update).unwrap_or(0).min(room));
            }
            // Whoever waits for room would wait for ever.
            grant.close();
        });
        Self {
            stream,
            credit,
            sent: AtomicU64::new(0),
            _updates: updates,
        }
    }

    /// Sends all of `data`, as fast as the reader lets it.
    ///
    /// # Errors
    /// Canceled when the reader is gone; the stream's.
    pub(crate) async fn write(&self, mut data: Bytes) -> Result<()> {
        while !data.is_empty() {
            let gone = || Error::new(Kind::Canceled, "stream reader is gone");
            let first = self.credit.acquire().await.map_err(|_| gone())?;
            first.forget();
            let want = data.len().min(FRAME);
            let more = (want - 1).min(self.credit.available_permits());
            // Only this task takes credit, so what was there is still there.
            let more = match self
                .credit
                .try_acquire_many(u32::try_from(more).unwrap_or(0))
            {
                Ok(permits) => {
                    permits.forget();
                    more
                }
                Err(_) => 0,
            };
            let frame = Data {
                data: data.split_to(more + 1),
            };
            let len = frame.data.len() as u64;
            self.stream.send(any::pack(&frame)).await?;
            self.sent.fetch_add(len, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Ends an archive, and waits until the reader has put all of it away. containerd's client ends
    /// its program when the transfer is answered, whether or not its other thread has written what
    /// came over the stream, which leaves its user with half an archive. That thread opens the
    /// window again once it has taken the byte that follows a whole window: zeros, of which any
    /// number may end an archive, take it there.
    ///
    /// # Errors
    /// As of [`Self::write`]; a reader that says nothing is not waited for any longer.
    pub(crate) async fn finish_archive(&self) -> Result<()> {
        let window = WINDOW.unsigned_abs();
        let sent = self.sent.load(Ordering::Relaxed);
        let rest = sent.next_multiple_of(window) - sent;
        for zeros in [rest, TAR_BLOCK] {
            self.write(vec![0; usize::try_from(zeros).unwrap_or(0)].into())
                .await?;
        }
        let taken = self.credit.acquire_many(WINDOW as u32);
        if tokio::time::timeout(LAST_WORD, taken).await.is_err() {
            tracing::debug!("the reader of an archive does not say that it has all");
        }
        Ok(())
    }

    /// Marks the end of the bytes.
    pub(crate) async fn close(&self) {
        self.stream.close().await;
    }
}

/// The blocking end of a bounded channel of chunks, for decoders that are not async.
#[derive(Debug)]
pub(crate) struct BlockingReader {
    rx: mpsc::Receiver<Result<Bytes>>,
    current: Bytes,
}

impl BlockingReader {
    /// The reader and where to send chunks. The channel holds 8; when full, the sender waits.
    pub(crate) fn new() -> (mpsc::Sender<Result<Bytes>>, Self) {
        let (tx, rx) = mpsc::channel(8);
        (
            tx,
            Self {
                rx,
                current: Bytes::new(),
            },
        )
    }
}

impl std::io::Read for BlockingReader {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        while self.current.is_empty() {
            match self.rx.blocking_recv() {
                None => return Ok(0),
                Some(Ok(chunk)) => self.current = chunk,
                Some(Err(e)) => return Err(std::io::Error::other(e)),
            }
        }
        let n = buf.len().min(self.current.len());
        buf[..n].copy_from_slice(&self.current.split_to(n));
        Ok(n)
    }
}

/// The blocking start of a bounded channel of chunks.
#[derive(Debug)]
pub(crate) struct BlockingWriter {
    tx: mpsc::Sender<Bytes>,
    gathered: bytes::BytesMut,
}

impl BlockingWriter {
    /// The writer and where its chunks come out. The channel holds 8; when full, the writer waits.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Bytes>) {
        let (tx, rx) = mpsc::channel(8);
        (
            Self {
                tx,
                gathered: bytes::BytesMut::new(),
            },
            rx,
        )
    }
}

impl std::io::Write for BlockingWriter {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.gathered.extend_from_slice(buf);
        if self.gathered.len() >= FRAME {
            self.flush()?;
        }
        Ok(buf.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        let chunk = self.gathered.split().freeze();
        let gone = |_| std::io::Error::new(std::io::ErrorKind::BrokenPipe, "stream reader is gone");
        self.tx.blocking_send(chunk).map_err(gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::streaming::pipe::pipe;

    #[tokio::test]
    async fn bytes_arrive_whole_and_within_the_window() {
        let (ours, theirs) = pipe();
        let data: Bytes = (0..300_000u32).map(|i| i as u8).collect::<Vec<_>>().into();
        let sent = data.clone();
        let writing = tokio::spawn(async move {
            let w = ByteWriter::new(ours);
            w.write(sent).await.unwrap();
            w.close().await;
        });
        let mut r = ByteReader::new(theirs);
        let mut got = Vec::new();
        while let Some(chunk) = r.next().await.unwrap() {
            assert!(chunk.len() <= FRAME);
            got.extend_from_slice(&chunk);
        }
        writing.await.unwrap();
        assert_eq!(got, data);
    }

    #[tokio::test]
    async fn an_archive_ends_when_its_reader_has_it() {
        for len in [0, 1, 65_535, 65_536, 65_537, 200_000] {
            let (ours, theirs) = pipe();
            let writing = tokio::spawn(async move {
                let w = ByteWriter::new(ours);
                w.write(vec![1; len].into()).await.unwrap();
                w.finish_archive().await.unwrap();
            });
            let mut r = ByteReader::new(theirs);
            let mut got = 0;
            while got < len.next_multiple_of(65_536) + 512 {
                assert!(!writing.is_finished(), "at {got} of {len}");
                got += r.next().await.unwrap().unwrap().len();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert!(!writing.is_finished(), "{len}");
            // Asking for more is what tells that all was taken.
            let more = tokio::spawn(async move { r.next().await });
            writing.await.unwrap();
            more.abort();
        }
    }

    #[tokio::test]
    async fn a_reader_that_leaves_ends_the_writer() {
        let (ours, theirs) = pipe();
        let w = ByteWriter::new(ours);
        theirs
            .send(any::pack(&WindowUpdate { update: 4 }))
            .await
            .unwrap();
        let writing = tokio::spawn(async move { w.write(Bytes::from_static(b"0123456789")).await });
        let first = any::unpack::<Data>(&theirs.recv().await.unwrap().unwrap()).unwrap();
        assert_eq!(&first.data[..], b"0123");
        theirs.close().await;
        assert!(writing.await.unwrap().is_err());
    }

    #[tokio::test]
    async fn hostile_window_updates_do_no_harm() {
        let (ours, theirs) = pipe();
        let w = ByteWriter::new(ours);
        for update in [i32::MIN, -1, 0, i32::MAX, i32::MAX] {
            theirs
                .send(any::pack(&WindowUpdate { update }))
                .await
                .unwrap();
        }
        let writing = tokio::spawn(async move { w.write(Bytes::from_static(b"ok")).await });
        theirs.recv().await.unwrap().unwrap();
        writing.await.unwrap().unwrap();
    }
}
