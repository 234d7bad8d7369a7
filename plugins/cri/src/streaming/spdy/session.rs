//! The streams of one connection, seen from the server.
//!
//! One task reads and hands bytes to the streams' pipes, one writes what the pipes' pumps and the reader give it.
//! The connection is closed when the reader sees its end, when it idles, or when the peer breaks the protocol; then
//! all pipes break.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, WriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;
use tracing::debug;

use super::frame::{Decoder, Encoder, Frame, Reset};
use super::header::{Headers, Malformed};
use crate::streaming::pipe::{Idle, Pipe, pipe, pump};

/// Most streams of a connection at a time.
pub const MAX_STREAMS: usize = 1000;

/// Frames that wait for the writer; who makes more waits.
const QUEUE: usize = 32;
/// How long the last frames may take, and how long the client may then take to hang up.
const LINGER: Duration = Duration::from_secs(5);

/// Which way a stream's bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the client.
    In,
    /// To the client; what the client sends is dropped.
    Out,
    Both,
}

/// Says which streams are taken, by their headers; none refuses.
pub(crate) type Accept = Box<dyn FnMut(&Headers) -> Option<Direction> + Send + Sync>;

/// A stream that the client made.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) id: u32,
    pub(crate) headers: Headers,
    pub(crate) pipe: Pipe,
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) incoming: mpsc::Receiver<Incoming>,
    pub(crate) control: Control,
    closed: watch::Receiver<bool>,
    /// Reader, writer and clock; aborted with the session.
    tasks: JoinSet<()>,
}

/// Ends single streams.
#[derive(Debug, Clone)]
pub(crate) struct Control {
    writer: mpsc::Sender<Out>,
    streams: Streams,
}

#[derive(Debug)]
enum Out {
    Reply(u32),
    Data(u32, Bytes),
    Fin(u32),
    Reset(u32, Reset),
    Ping(u32),
    GoAway {
        last: u32,
        well: bool,
    },
    /// Nothing comes after it.
    End,
}

type Streams = Arc<Mutex<HashMap<u32, Entry>>>;

#[derive(Debug)]
struct Entry {
    /// None: the client has ended its direction, the user wants no more, or the reader is writing to it just now.
    input: Option<WriteHalf<DuplexStream>>,
    pump: AbortHandle,
}

struct Reader {
    decoder: Decoder,
    accept: Accept,
    incoming: mpsc::Sender<Incoming>,
    control: Control,
    pumps: JoinSet<()>,
    last: u32,
}

// === impl Session ===

impl Session {
    /// Serves the streams of `io` that `accept` takes.
    pub(crate) fn start<T>(io: T, idle: Duration, accept: Accept) -> Self
    where
        T: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (mut from, to) = tokio::io::split(io);
        let (writer, out) = mpsc::channel(QUEUE);
        let (offer, incoming) = mpsc::channel(QUEUE);
        let (close, closed) = watch::channel(false);
        let close = Arc::new(close);
        let idle = Arc::new(Idle::new(idle));
        let control = Control {
            writer,
            streams: Streams::default(),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn({
            let (close, idle) = (close.clone(), idle.clone());
            async move {
                idle.expired().await;
                close.send_replace(true);
            }
        });
        tasks.spawn({
            let (close, idle) = (close.clone(), idle.clone());
            async move {
                if write(to, out, &idle).await.is_err() {
                    close.send_replace(true);
                }
            }
        });
        let mut reader = Reader {
            decoder: Decoder::new(),
            accept,
            incoming: offer,
            control: control.clone(),
            pumps: JoinSet::new(),
            last: 0,
        };
        tasks.spawn(async move {
            if let Err(Malformed(why)) = reader.run(&mut from, &idle).await {
                debug!(why, "a streaming client broke SPDY");
                let away = Out::GoAway {
                    last: reader.last,
                    well: false,
                };
                let _ = reader.control.writer.try_send(away);
            }
            // Breaks the pipes: neither direction will move again.
            reader.control.streams.lock().clear();
            reader.pumps.abort_all();
            close.send_replace(true);
        });
        Self {
            incoming,
            control,
            closed,
            tasks,
        }
    }

    /// Ends when the connection has.
    pub(crate) fn closed(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut closed = self.closed.clone();
        async move {
            let _ = closed.wait_for(|c| *c).await;
        }
    }

    /// Says goodbye, lets the last frames out and waits a little for the client to hang up: closing with bytes of
    /// the client unread would take away what it has not yet read of ours.
    pub(crate) async fn finish(mut self) {
        let last = self
            .control
            .streams
            .lock()
            .keys()
            .copied()
            .max()
            .unwrap_or(0);
        let closed = self.closed();
        let goodbye = async {
            for out in [Out::GoAway { last, well: true }, Out::End] {
                if self.control.writer.send(out).await.is_err() {
                    return;
                }
            }
            closed.await;
        };
        let _ = timeout(LINGER, goodbye).await;
        self.tasks.shutdown().await;
    }
}

impl Control {
    /// Ends both directions of a stream at once and tells the client.
    pub(crate) async fn reset(&self, id: u32) {
        self.forget(id);
        let _ = self.writer.send(Out::Reset(id, Reset::Cancel)).await;
    }

    /// What the client still sends on a stream is dropped.
    pub(crate) fn forget(&self, id: u32) {
        if let Some(entry) = self.streams.lock().remove(&id) {
            entry.pump.abort();
        }
    }
}

async fn write<T: AsyncWrite>(
    mut to: WriteHalf<T>,
    mut out: mpsc::Receiver<Out>,
    idle: &Idle,
) -> std::io::Result<()> {
    let mut encoder = Encoder::default();
    while let Some(next) = out.recv().await {
        let bytes = match next {
            Out::Reply(id) => encoder.reply(id),
            Out::Data(id, bytes) => encoder.data(id, false, &bytes),
            Out::Fin(id) => encoder.data(id, true, &[]),
            Out::Reset(id, why) => encoder.reset(id, why),
            Out::Ping(id) => encoder.ping(id),
            Out::GoAway { last, well } => encoder.go_away(last, well),
            Out::End => break,
        };
        to.write_all(&bytes).await?;
        if out.is_empty() {
            to.flush().await?;
        }
        idle.touch();
    }
    to.shutdown().await
}

// === impl Reader ===

impl Reader {
    /// Until the end of the connection; an error of the socket is one.
    async fn run(
        &mut self,
        from: &mut (impl AsyncRead + Unpin),
        idle: &Idle,
    ) -> Result<(), Malformed> {
        loop {
            while let Some(frame) = self.decoder.next()? {
                self.take(frame).await;
            }
            self.decoder.buffer.reserve(16 * 1024);
            match from.read_buf(&mut self.decoder.buffer).await {
                Ok(n) if n > 0 => idle.touch(),
                _ => return Ok(()),
            }
        }
    }

    async fn take(&mut self, frame: Frame) {
        match frame {
            Frame::SynStream { id, fin, headers } => self.open(id, fin, headers).await,
            Frame::Data { id, fin, bytes } => {
                self.data(id, &bytes).await;
                if fin {
                    self.end(id).await;
                }
            }
            Frame::Headers { id, fin: true } | Frame::SynReply { id, fin: true } => {
                self.end(id).await;
            }
            Frame::Rst { id } => self.control.forget(id),
            // Even numbers are ours, and we never ask. One that does not fit into the queue is not answered.
            Frame::Ping(id) if id % 2 == 1 => {
                let _ = self.control.writer.try_send(Out::Ping(id));
            }
            // The client makes no more streams; those that there are go on until it hangs up.
            Frame::GoAway | Frame::Other => {}
            Frame::Ping(_) | Frame::Headers { .. } | Frame::SynReply { .. } => {}
        }
    }

    async fn open(&mut self, id: u32, fin: bool, headers: Headers) {
        let refuse = if id.is_multiple_of(2) || id <= self.last {
            Some(Reset::Protocol)
        } else if self.control.streams.lock().len() >= MAX_STREAMS {
            Some(Reset::Refused)
        } else {
            None
        };
        self.last = self.last.max(id);
        let direction = match refuse {
            None => (self.accept)(&headers).ok_or(Reset::Refused),
            Some(why) => Err(why),
        };
        let direction = match direction {
            Ok(direction) => direction,
            Err(why) => return self.send(Out::Reset(id, why)).await,
        };
        let (pipe, ends) = pipe();
        let writer = self.control.writer.clone();
        let wrap = move |bytes: Option<Bytes>| {
            Some(bytes.map_or(Out::Fin(id), |bytes| Out::Data(id, bytes)))
        };
        // Before anything of the stream: clients wait for it.
        self.send(Out::Reply(id)).await;
        while self.pumps.try_join_next().is_some() {}
        let pump = self
            .pumps
            .spawn(pump(ends.output, ends.drained, writer, wrap));
        let entry = Entry {
            input: Some(ends.input),
            pump,
        };
        self.control.streams.lock().insert(id, entry);
        if fin || direction == Direction::Out {
            self.end(id).await;
        }
        // Bounded; a server that has what it wants refuses the rest, and one that forwards ports takes them all.
        let _ = self.incoming.send(Incoming { id, headers, pipe }).await;
    }

    async fn data(&mut self, id: u32, bytes: &[u8]) {
        let streams = &self.control.streams;
        let Some(mut input) = streams.lock().get_mut(&id).and_then(|e| e.input.take()) else {
            return;
        };
        // Broken: the user wants no more.
        if input.write_all(bytes).await.is_ok()
            && let Some(entry) = streams.lock().get_mut(&id)
        {
            entry.input = Some(input);
        }
    }

    async fn end(&mut self, id: u32) {
        let input = self
            .control
            .streams
            .lock()
            .get_mut(&id)
            .and_then(|e| e.input.take());
        if let Some(mut input) = input {
            let _ = input.shutdown().await;
        }
        // Both directions are over.
        self.control
            .streams
            .lock()
            .retain(|_, e| e.input.is_some() || !e.pump.is_finished());
    }

    async fn send(&self, out: Out) {
        let _ = self.control.writer.send(out).await;
    }
}
