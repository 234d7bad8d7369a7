//! A layer's stream a little ahead of who makes its files: read, inflated and hashed on a thread of its own.

use std::io::{self, BufRead, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use corten_core::Digest;
use sha2::{Digest as _, Sha256};

use crate::stream::{CHUNK, Cancelled, Layer};

/// Chunks that wait for who reads them; with so many the thread waits.
const AHEAD: usize = 4;

/// The stream. Dropping it ends its thread, at the next chunk.
pub(crate) struct Ahead {
    full: Receiver<Vec<u8>>,
    /// Used chunks go back: fresh memory would cost more than what is put into it.
    used: SyncSender<Vec<u8>>,
    chunk: Vec<u8>,
    start: usize,
    thread: Option<JoinHandle<io::Result<(Digest, u64)>>>,
    outcome: Option<(Digest, u64)>,
}

impl Ahead {
    pub(crate) fn new(input: impl Read + Send + 'static, cancelled: Cancelled) -> io::Result<Self> {
        let (sender, full) = sync_channel(AHEAD);
        // Room for every chunk there is.
        let (used, empty) = sync_channel(AHEAD + 2);
        let work = move || read(input, &cancelled, &sender, &empty);
        let thread = thread::Builder::new().name("inflate".into()).spawn(work)?;
        Ok(Self {
            full,
            used,
            chunk: Vec::new(),
            start: 0,
            thread: Some(thread),
            outcome: None,
        })
    }
}

/// Reads to the end; the digest and the length of all.
fn read(
    mut input: impl Read,
    cancelled: &Cancelled,
    full: &SyncSender<Vec<u8>>,
    empty: &Receiver<Vec<u8>>,
) -> io::Result<(Digest, u64)> {
    let (mut hash, mut count) = (Sha256::new(), 0);
    loop {
        cancelled.check()?;
        let mut chunk = empty
            .try_recv()
            .unwrap_or_else(|_| Vec::with_capacity(CHUNK));
        chunk.clear();
        (&mut input).take(CHUNK as u64).read_to_end(&mut chunk)?;
        if chunk.is_empty() {
            return Ok((Digest::from_sha256(hash.finalize().as_slice()), count));
        }
        hash.update(&chunk);
        count += chunk.len() as u64;
        if full.send(chunk).is_err() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
    }
}

impl BufRead for Ahead {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.start == self.chunk.len() {
            self.start = 0;
            // Full or gone: then this chunk is one too many.
            let _ = self.used.try_send(std::mem::take(&mut self.chunk));
            if let Ok(chunk) = self.full.recv() {
                self.chunk = chunk;
            } else if let Some(thread) = self.thread.take() {
                let outcome = thread.join();
                let outcome =
                    outcome.unwrap_or_else(|_| Err(io::Error::other("inflating panicked")));
                self.outcome = Some(outcome?);
            }
        }
        Ok(&self.chunk[self.start..])
    }

    fn consume(&mut self, n: usize) {
        self.start += n;
    }
}

impl Read for Ahead {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let some = self.fill_buf()?;
        let n = some.len().min(out.len());
        out[..n].copy_from_slice(&some[..n]);
        self.consume(n);
        Ok(n)
    }
}

impl Layer for Ahead {
    fn finish(mut self) -> io::Result<(Digest, u64)> {
        loop {
            let n = self.fill_buf()?.len();
            if n == 0 {
                // It failed before, and that was told then.
                return self.outcome.ok_or_else(|| io::Error::other("stream ended"));
            }
            self.consume(n);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data() -> Vec<u8> {
        (0..CHUNK * 9 + 17).map(|n| (n / 7) as u8).collect()
    }

    #[test]
    fn it_gives_the_bytes_and_the_digest() {
        let want = data();
        let mut stream = Ahead::new(io::Cursor::new(want.clone()), Cancelled::default()).unwrap();
        let mut got = vec![0; CHUNK + 1];
        stream.read_exact(&mut got).unwrap();
        assert_eq!(got, want[..CHUNK + 1]);
        let digest = Digest::sha256(&want);
        assert_eq!(stream.finish().unwrap(), (digest, want.len() as u64));
        let empty = Ahead::new(io::empty(), Cancelled::default()).unwrap();
        assert_eq!(empty.finish().unwrap().1, 0);
    }

    #[test]
    fn failures_are_told_once_all_before_them_was_read() {
        struct Broken(usize);
        impl Read for Broken {
            fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
                if self.0 == 0 {
                    return Err(io::Error::other("broken"));
                }
                let n = self.0.min(out.len());
                self.0 -= n;
                Ok(n)
            }
        }
        let mut stream = Ahead::new(Broken(2 * CHUNK), Cancelled::default()).unwrap();
        let mut all = Vec::new();
        let e = stream.read_to_end(&mut all).unwrap_err();
        assert_eq!((all.len(), e.to_string().as_str()), (2 * CHUNK, "broken"));
        assert!(stream.finish().is_err());
    }

    #[test]
    fn cancelled_or_dropped_it_ends() {
        let cancelled = Cancelled::default();
        drop(cancelled.guard());
        let stream = Ahead::new(io::repeat(1), cancelled).unwrap();
        assert!(stream.finish().is_err());
        drop(Ahead::new(io::repeat(1), Cancelled::default()).unwrap());
    }
}
