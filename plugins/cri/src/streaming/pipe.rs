//! What both wires are made of: a pipe between a stream of the wire and its user, a pump that carries the user's
//! bytes to the wire's writer, and a clock for connections on which nothing happens.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

/// Bytes held in each direction of a stream.
pub const BUFFER: usize = 64 * 1024;
/// Most bytes of one message or frame that is sent.
const PART: usize = 32 * 1024;

/// A stream of the wire as its user sees it.
#[derive(Debug)]
pub struct Pipe {
    pub io: DuplexStream,
    /// Ends when all that the user wrote, and the end of it, is on its way.
    pub drained: oneshot::Receiver<()>,
}

/// The wire's side of a pipe.
#[derive(Debug)]
pub(crate) struct Ends {
    /// Bytes for the user.
    pub(crate) input: WriteHalf<DuplexStream>,
    /// Bytes of the user, for [`pump`].
    pub(crate) output: ReadHalf<DuplexStream>,
    pub(crate) drained: oneshot::Sender<()>,
}

/// A pipe and its other ends.
pub(crate) fn pipe() -> (Pipe, Ends) {
    let (io, wire) = tokio::io::duplex(BUFFER);
    let (output, input) = tokio::io::split(wire);
    let (tell, drained) = oneshot::channel();
    (
        Pipe { io, drained },
        Ends {
            input,
            output,
            drained: tell,
        },
    )
}

/// Carries the user's bytes to the writer; `wrap` is told none at the end. Ends early with the writer.
pub(crate) async fn pump<M>(
    mut output: ReadHalf<DuplexStream>,
    drained: oneshot::Sender<()>,
    writer: mpsc::Sender<M>,
    wrap: impl Fn(Option<Bytes>) -> Option<M>,
) {
    loop {
        let mut part = BytesMut::with_capacity(PART);
        let more = matches!(output.read_buf(&mut part).await, Ok(n) if n > 0);
        let message = wrap(more.then(|| part.freeze()));
        if let Some(message) = message
            && writer.send(message).await.is_err()
        {
            return;
        }
        if !more {
            let _ = drained.send(());
            return;
        }
    }
}

/// When something last happened on a connection.
#[derive(Debug)]
pub(crate) struct Idle {
    last: Mutex<Instant>,
    limit: Duration,
}

impl Idle {
    pub(crate) fn new(limit: Duration) -> Self {
        Self {
            last: Mutex::new(Instant::now()),
            limit,
        }
    }

    /// Something happened.
    pub(crate) fn touch(&self) {
        *self.last.lock() = Instant::now();
    }

    /// Ends when nothing has happened for too long. Cancel-safe.
    pub(crate) async fn expired(&self) {
        loop {
            let end = *self.last.lock() + self.limit;
            if end <= Instant::now() {
                return;
            }
            sleep_until(end).await;
        }
    }
}
