//! A layer as a stream: inflated by what its first bytes say, hashed and counted as it passes; and written the same
//! way.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use corten_core::Digest;
use corten_core::compression::Compression;
use flate2::bufread::MultiGzDecoder;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

/// Bytes that are read, inflated and hashed in one go.
pub(crate) const CHUNK: usize = 128 * 1024;

/// Set when nobody waits for the result any more.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cancelled(Arc<AtomicBool>);

impl Cancelled {
    /// Sets it when the guard is dropped.
    pub(crate) fn guard(&self) -> CancelGuard {
        CancelGuard(self.clone())
    }

    pub(crate) fn check(&self) -> io::Result<()> {
        if self.0.load(Ordering::Relaxed) {
            // Not ErrorKind::Interrupted: std's loops would try again.
            return Err(io::Error::other("context canceled"));
        }
        Ok(())
    }
}

/// See [`Cancelled::guard`].
#[derive(Debug)]
pub(crate) struct CancelGuard(Cancelled);

impl Drop for CancelGuard {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

/// The uncompressed bytes of a blob.
pub(crate) fn inflate<'a>(blob: impl Read + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
    let mut blob = BufReader::with_capacity(CHUNK, blob);
    // One read gives at least the magic, unless the blob is shorter.
    let head = blob.fill_buf()?;
    Ok(match Compression::of(head) {
        Compression::Gzip => Box::new(MultiGzDecoder::new(blob)),
        Compression::Zstd => Box::new(zstd::Decoder::with_buffer(blob)?),
        Compression::None => Box::new(blob),
    })
}

/// A buffered stream that hashes and counts everything it hands out.
pub(crate) trait Layer: BufRead {
    /// Reads what is left; then the digest and the length of all.
    fn finish(self) -> io::Result<(Digest, u64)>;
}

/// One that does so as it is read.
pub(crate) struct Hashed<R> {
    input: R,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    hash: Sha256,
    count: u64,
    cancelled: Cancelled,
}

impl<R: Read> Hashed<R> {
    pub(crate) fn new(input: R, cancelled: Cancelled) -> Self {
        Self {
            input,
            buffer: vec![0; CHUNK].into_boxed_slice(),
            start: 0,
            end: 0,
            hash: Sha256::new(),
            count: 0,
            cancelled,
        }
    }
}

impl<R: Read> Layer for Hashed<R> {
    fn finish(mut self) -> io::Result<(Digest, u64)> {
        loop {
            let n = self.fill_buf()?.len();
            if n == 0 {
                return Ok((
                    Digest::from_sha256(self.hash.finalize().as_slice()),
                    self.count,
                ));
            }
            self.consume(n);
        }
    }
}

impl<R: Read> BufRead for Hashed<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.start == self.end {
            self.cancelled.check()?;
            (self.start, self.end) = (0, 0);
            // Inflaters give little at a time; a full buffer is hashed and written in fewer steps.
            while self.end < self.buffer.len() {
                match self.input.read(&mut self.buffer[self.end..]) {
                    Ok(0) => break,
                    Ok(n) => self.end += n,
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    Err(e) => return Err(e),
                }
            }
            self.hash.update(&self.buffer[..self.end]);
            self.count += self.end as u64;
        }
        Ok(&self.buffer[self.start..self.end])
    }

    fn consume(&mut self, n: usize) {
        self.start += n;
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let some = self.fill_buf()?;
        let n = some.len().min(out.len());
        out[..n].copy_from_slice(&some[..n]);
        self.consume(n);
        Ok(n)
    }
}

// === the way back ===

/// Collects bytes into chunks for a task that stores them. When that task is gone, writes fail.
pub(crate) struct ChunkSender {
    buffer: Vec<u8>,
    sender: mpsc::Sender<Bytes>,
}

impl ChunkSender {
    /// The channel holds 4 chunks; when full, the producer waits.
    pub(crate) fn pair() -> (Self, mpsc::Receiver<Bytes>) {
        let (sender, receiver) = mpsc::channel(4);
        (
            Self {
                buffer: Vec::with_capacity(CHUNK),
                sender,
            },
            receiver,
        )
    }

    fn send(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK));
        self.sender
            .blocking_send(chunk.into())
            .map_err(|_| ErrorKind::BrokenPipe.into())
    }
}

impl Write for ChunkSender {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let n = data.len().min(CHUNK - self.buffer.len());
        self.buffer.extend_from_slice(&data[..n]);
        if self.buffer.len() == CHUNK {
            self.send()?;
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}

/// Compresses what is written, and hashes it before.
pub(crate) struct Deflate {
    hash: Sha256,
    inner: Inner,
}

enum Inner {
    None(ChunkSender),
    Gzip(flate2::write::GzEncoder<ChunkSender>),
    Zstd(zstd::Encoder<'static, ChunkSender>),
}

impl Deflate {
    pub(crate) fn new(output: ChunkSender, compression: Compression) -> io::Result<Self> {
        let inner = match compression {
            Compression::None => Inner::None(output),
            Compression::Gzip => Inner::Gzip(flate2::write::GzEncoder::new(
                output,
                flate2::Compression::default(),
            )),
            Compression::Zstd => Inner::Zstd(zstd::Encoder::new(output, 3)?),
        };
        Ok(Self {
            hash: Sha256::new(),
            inner,
        })
    }

    /// Ends the compressed stream; the digest of the uncompressed one.
    pub(crate) fn finish(self) -> io::Result<Digest> {
        let mut output = match self.inner {
            Inner::None(output) => output,
            Inner::Gzip(encoder) => encoder.finish()?,
            Inner::Zstd(encoder) => encoder.finish()?,
        };
        output.flush()?;
        Ok(Digest::from_sha256(self.hash.finalize().as_slice()))
    }
}

impl Write for Deflate {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let n = match &mut self.inner {
            Inner::None(w) => w.write(data)?,
            Inner::Gzip(w) => w.write(data)?,
            Inner::Zstd(w) => w.write(data)?,
        };
        self.hash.update(&data[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through(blob: &[u8]) -> io::Result<(Digest, u64)> {
        Hashed::new(inflate(blob)?, Cancelled::default()).finish()
    }

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        e.write_all(data).unwrap();
        e.finish().unwrap()
    }

    #[test]
    fn every_compression_and_several_members_give_the_same_digest() {
        let data: Vec<u8> = (0..500_000u32).flat_map(u32::to_le_bytes).collect();
        let want = (Digest::sha256(&data), data.len() as u64);
        let two = [gzip(&data[..1000]), gzip(&data[1000..])].concat();
        let zstd = zstd::encode_all(&data[..], 1).unwrap();
        let frames = [
            zstd::encode_all(&data[..9], 1).unwrap(),
            zstd::encode_all(&data[9..], 1).unwrap(),
        ]
        .concat();
        for blob in [data.clone(), gzip(&data), two, zstd, frames] {
            assert_eq!(through(&blob).unwrap(), want);
        }
        let mut cut = gzip(&data);
        cut.truncate(cut.len() / 2);
        assert!(through(&cut).is_err());
        assert!(through(&[gzip(b"x"), b"garbage".to_vec()].concat()).is_err());
        assert_eq!(through(b"").unwrap().1, 0);
    }

    #[test]
    fn a_cancelled_stream_ends() {
        let cancelled = Cancelled::default();
        drop(cancelled.guard());
        assert!(Hashed::new(io::repeat(1), cancelled).finish().is_err());
    }
}
