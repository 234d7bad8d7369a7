//! Channels over WebSocket, `*.channel.k8s.io`: a message is the channel's number and its bytes, or for
//! `base64.*` the number as a digit and base64. Since v5 a client ends one channel with the message 255 and its
//! number. And a plain stream of bytes in binary messages, through which SPDY is tunnelled.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Bytes, BytesMut};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, DuplexStream, WriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tracing::debug;

use super::pipe::{BUFFER, Idle, Pipe, pipe, pump};
use super::spdy::session::Direction;

/// Largest message.
pub const MAX_MESSAGE: usize = 1024 * 1024;

/// Messages that wait for the writer; who makes more waits.
const QUEUE: usize = 32;
/// How long the last messages and the client's goodbye may take.
const LINGER: Duration = Duration::from_secs(5);
/// The channel that ends another.
const CLOSE: u8 = 255;

/// How a subprotocol writes its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Codec {
    pub(crate) base64: bool,
    /// The client may end a channel.
    pub(crate) close: bool,
}

/// A connection with its channels.
#[derive(Debug)]
pub(crate) struct Channels {
    /// By number; none where nothing goes either way.
    pub(crate) pipes: Vec<Option<Pipe>>,
    writer: mpsc::Sender<Message>,
    closed: watch::Receiver<bool>,
    codec: Codec,
    tasks: JoinSet<()>,
}

type Inputs = Vec<Option<WriteHalf<DuplexStream>>>;

// === impl Codec ===

impl Codec {
    fn encode(self, channel: u8, bytes: &[u8]) -> Message {
        if self.base64 {
            let mut text = char::from(b'0'.saturating_add(channel)).to_string();
            BASE64.encode_string(bytes, &mut text);
            return Message::text(text);
        }
        let mut message = BytesMut::with_capacity(bytes.len() + 1);
        message.extend_from_slice(&[channel]);
        message.extend_from_slice(bytes);
        Message::binary(message.freeze())
    }

    /// The channel and its bytes; none for what is to be ignored.
    fn decode(self, message: &Bytes) -> Option<(usize, Bytes)> {
        let number = *message.first()?;
        let bytes = message.slice(1..);
        if !self.base64 {
            return Some((usize::from(number), bytes));
        }
        let decoded = BASE64.decode(&bytes).ok()?;
        Some((usize::from(number.checked_sub(b'0')?), decoded.into()))
    }
}

// === impl Channels ===

impl Channels {
    /// Serves the channels that have a direction.
    pub(crate) fn start<T>(
        socket: WebSocketStream<T>,
        directions: &[Option<Direction>],
        codec: Codec,
        idle: Duration,
    ) -> Self
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (to, from) = socket.split();
        let (writer, out) = mpsc::channel(QUEUE);
        let (close, closed) = watch::channel(false);
        let close = Arc::new(close);
        let idle = Arc::new(Idle::new(idle));
        let mut tasks = JoinSet::new();
        let (mut pipes, mut inputs) = (Vec::new(), Inputs::new());
        for (number, direction) in (0u8..).zip(directions) {
            let Some(direction) = direction else {
                pipes.push(None);
                inputs.push(None);
                continue;
            };
            let (pipe, ends) = pipe();
            let wrap = move |bytes: Option<Bytes>| Some(codec.encode(number, &bytes?));
            tasks.spawn(pump(ends.output, ends.drained, writer.clone(), wrap));
            pipes.push(Some(pipe));
            inputs.push((*direction != Direction::Out).then_some(ends.input));
        }
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
        tasks.spawn(async move {
            read(from, inputs, codec, &idle).await;
            close.send_replace(true);
        });
        Self {
            pipes,
            writer,
            closed,
            codec,
            tasks,
        }
    }

    /// A message without bytes: clients wait for one to know that the server is there.
    pub(crate) async fn greet(&self, channel: u8) {
        let _ = self.writer.send(self.codec.encode(channel, &[])).await;
    }

    /// Ends when the connection has.
    pub(crate) fn closed(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut closed = self.closed.clone();
        async move {
            let _ = closed.wait_for(|c| *c).await;
        }
    }

    /// Says goodbye and waits a little for the client's.
    pub(crate) async fn finish(mut self) {
        let closed = self.closed();
        let goodbye = async {
            if self.writer.send(goodbye()).await.is_ok() {
                closed.await;
            }
        };
        let _ = timeout(LINGER, goodbye).await;
        self.tasks.shutdown().await;
    }
}

fn goodbye() -> Message {
    Message::Close(Some(CloseFrame {
        code: CloseCode::Normal,
        reason: "".into(),
    }))
}

/// A server's end of a connection that was upgraded.
pub(crate) async fn accept<T>(io: T) -> WebSocketStream<T>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let config = WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE));
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}

/// A message's bytes; none for pings and the like, which the library answers. An error is the end.
fn payload(message: Message) -> Result<Option<Bytes>, ()> {
    match message {
        Message::Binary(bytes) => Ok(Some(bytes)),
        Message::Text(text) => Ok(Some(text.into())),
        Message::Close(_) => Err(()),
        Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => Ok(None),
    }
}

async fn read<T>(
    mut from: SplitStream<WebSocketStream<T>>,
    mut inputs: Inputs,
    codec: Codec,
    idle: &Idle,
) where
    T: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(message) = from.next().await {
        let message = match message {
            Ok(message) => message,
            Err(error) => return debug!(%error, "a streaming client's WebSocket"),
        };
        let Ok(bytes) = payload(message) else { return };
        let Some(bytes) = bytes else { continue };
        idle.touch();
        if codec.close && bytes.first() == Some(&CLOSE) {
            let Some(slot) = bytes.get(1).and_then(|n| inputs.get_mut(usize::from(*n))) else {
                return debug!("a streaming client ended a channel that is none");
            };
            if let Some(mut input) = slot.take() {
                let _ = input.shutdown().await;
            }
            continue;
        }
        let Some((channel, bytes)) = codec.decode(&bytes) else {
            continue;
        };
        let Some(slot) = inputs.get_mut(channel) else {
            continue;
        };
        if let Some(input) = slot
            && input.write_all(&bytes).await.is_err()
        {
            // Its user wants no more.
            *slot = None;
        }
    }
}

async fn write<T>(
    mut to: SplitSink<WebSocketStream<T>, Message>,
    mut out: mpsc::Receiver<Message>,
    idle: &Idle,
) -> Result<(), tokio_tungstenite::tungstenite::Error>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(message) = out.recv().await {
        let last = message.is_close();
        to.feed(message).await?;
        if last || out.is_empty() {
            to.flush().await?;
        }
        idle.touch();
        if last {
            break;
        }
    }
    Ok(())
}

/// The connection as a stream of bytes, each direction cut into messages as it comes. The tasks go on until both
/// ends are closed or the set is dropped.
pub(crate) fn tunnel<T>(socket: WebSocketStream<T>) -> (DuplexStream, JoinSet<()>)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (near, far) = tokio::io::duplex(BUFFER);
    let (output, mut input) = tokio::io::split(far);
    let (mut to, mut from) = socket.split();
    let (writer, mut out) = mpsc::channel(QUEUE);
    let (drained, _) = tokio::sync::oneshot::channel();
    let mut tasks = JoinSet::new();
    let wrap = |bytes: Option<Bytes>| Some(bytes.map_or_else(goodbye, Message::binary));
    tasks.spawn(pump(output, drained, writer, wrap));
    tasks.spawn(async move {
        while let Some(message) = out.recv().await {
            if to.send(message).await.is_err() {
                return;
            }
        }
    });
    tasks.spawn(async move {
        while let Some(Ok(message)) = from.next().await {
            let Ok(bytes) = payload(message) else { break };
            if input.write_all(&bytes.unwrap_or_default()).await.is_err() {
                break;
            }
        }
        let _ = input.shutdown().await;
    });
    (near, tasks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_carry_their_channel() {
        let raw = Codec {
            base64: false,
            close: false,
        };
        let text = Codec {
            base64: true,
            close: false,
        };
        let bytes = |m: Message| payload(m).unwrap().unwrap();
        assert_eq!(bytes(raw.encode(1, b"\n")), b"\x01\n"[..]);
        assert_eq!(bytes(text.encode(1, b"\n")), b"1Cg=="[..]);
        assert_eq!(
            raw.decode(&Bytes::from_static(b"\x00a")),
            Some((0, Bytes::from_static(b"a")))
        );
        assert_eq!(
            text.decode(&Bytes::from_static(b"0Zm9vCg==")),
            Some((0, Bytes::from_static(b"foo\n")))
        );
        assert_eq!(text.decode(&Bytes::from_static(b"0%%")), None);
        assert_eq!(text.decode(&Bytes::from_static(b"!Cg==")), None);
        assert_eq!(raw.decode(&Bytes::new()), None);
    }
}
