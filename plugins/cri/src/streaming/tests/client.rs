//! Clients: bytes on a socket, SPDY frames over it, and WebSocket messages.

use std::collections::HashMap;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use http::Request;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{self, Message};

use crate::streaming::spdy::frame::{Decoder, Encoder, Frame};
use crate::streaming::spdy::header::Headers;

const LONG: Duration = Duration::from_secs(10);

/// Host and path of a URL.
fn parts(url: &str) -> (&str, String) {
    let (host, path) = url
        .strip_prefix("http://")
        .unwrap()
        .split_once('/')
        .unwrap();
    (host, format!("/{path}"))
}

/// Sends a request head and reads the answer's.
pub(super) async fn request(url: &str, method: &str, headers: &str) -> (String, TcpStream) {
    let (host, path) = parts(url);
    let mut socket = TcpStream::connect(host).await.unwrap();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n");
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let byte = timeout(LONG, socket.read_u8()).await.unwrap().unwrap();
        answer.push(byte);
    }
    (String::from_utf8(answer).unwrap(), socket)
}

/// A SPDY client that keeps what each stream was sent.
pub(super) struct Spdy {
    pub(super) socket: TcpStream,
    encoder: Encoder,
    decoder: Decoder,
    next: u32,
    pub(super) got: HashMap<u32, Vec<u8>>,
    pub(super) ended: Vec<u32>,
    pub(super) reset: Vec<u32>,
    pub(super) replied: Vec<u32>,
    pub(super) pings: Vec<u32>,
    pub(super) gone_away: bool,
}

impl Spdy {
    pub(super) async fn connect(url: &str, protocol: &str) -> Self {
        let headers = format!(
            "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: {protocol}\r\n"
        );
        let (answer, socket) = request(url, "POST", &headers).await;
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        Self {
            socket,
            encoder: Encoder::default(),
            decoder: Decoder::new(),
            next: 1,
            got: HashMap::new(),
            ended: Vec::new(),
            reset: Vec::new(),
            replied: Vec::new(),
            pings: Vec::new(),
            gone_away: false,
        }
    }

    pub(super) async fn open(&mut self, headers: &[(&str, &str)]) -> u32 {
        let id = self.next;
        self.next += 2;
        let bytes = self.encoder.open(id, &Headers::new(headers));
        self.raw(&bytes).await;
        id
    }

    pub(super) async fn raw(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).await.unwrap();
    }

    pub(super) async fn data(&mut self, id: u32, bytes: &[u8], fin: bool) {
        let bytes = self.encoder.data(id, fin, bytes);
        self.raw(&bytes).await;
    }

    pub(super) async fn ping(&mut self, id: u32) {
        let bytes = self.encoder.ping(id);
        self.raw(&bytes).await;
    }

    pub(super) async fn reset(&mut self, id: u32) {
        let bytes = self
            .encoder
            .reset(id, crate::streaming::spdy::frame::Reset::Cancel);
        self.raw(&bytes).await;
    }

    /// Takes frames until `done`; false when the server hung up before.
    pub(super) async fn until(&mut self, done: impl Fn(&Self) -> bool) -> bool {
        while !done(self) {
            if let Some(frame) = self.decoder.next().unwrap() {
                self.note(frame);
                continue;
            }
            let read = self.socket.read_buf(&mut self.decoder.buffer);
            match timeout(LONG, read)
                .await
                .expect("the server says something")
            {
                Ok(0) | Err(_) => return done(self),
                Ok(_) => {}
            }
        }
        true
    }

    fn note(&mut self, frame: Frame) {
        match frame {
            Frame::SynReply { id, .. } => self.replied.push(id),
            Frame::Data { id, fin, bytes } => {
                self.got.entry(id).or_default().extend(bytes);
                if fin {
                    self.ended.push(id);
                }
            }
            Frame::Rst { id } => self.reset.push(id),
            Frame::Ping(id) => self.pings.push(id),
            Frame::GoAway => self.gone_away = true,
            _ => {}
        }
    }

    /// All that a stream was sent, at its end.
    pub(super) async fn all(&mut self, id: u32) -> String {
        assert!(
            self.until(|c| c.ended.contains(&id)).await,
            "stream {id} ends"
        );
        String::from_utf8(self.got.get(&id).cloned().unwrap_or_default()).unwrap()
    }
}

pub(super) type Ws = WebSocketStream<TcpStream>;

/// A WebSocket client; gives also the subprotocol that was agreed on.
pub(super) async fn websocket(
    url: &str,
    protocols: &str,
) -> Result<(Ws, String), Box<tungstenite::Error>> {
    let (host, path) = parts(url);
    let mut request = Request::builder()
        .uri(format!("ws://{host}{path}"))
        .header("Host", host)
        .header("Connection", "Upgrade")
        .header("Upgrade", "websocket")
        .header("Sec-WebSocket-Version", "13")
        .header(
            "Sec-WebSocket-Key",
            tungstenite::handshake::client::generate_key(),
        );
    if !protocols.is_empty() {
        request = request.header("Sec-WebSocket-Protocol", protocols);
    }
    let socket = TcpStream::connect(host).await.unwrap();
    let (ws, answer) = tokio_tungstenite::client_async(request.body(()).unwrap(), socket).await?;
    let agreed = answer.headers().get("Sec-WebSocket-Protocol");
    let agreed = agreed
        .map(|p| p.to_str().unwrap().to_owned())
        .unwrap_or_default();
    Ok((ws, agreed))
}

pub(super) async fn say(ws: &mut Ws, channel: u8, bytes: &[u8]) {
    let message = [&[channel], bytes].concat();
    ws.send(Message::binary(message)).await.unwrap();
}

/// The next message's channel and bytes; none at the goodbye.
pub(super) async fn next(ws: &mut Ws) -> Option<(u8, Vec<u8>)> {
    loop {
        match timeout(LONG, ws.next())
            .await
            .expect("the server says something")
        {
            Some(Ok(Message::Binary(b))) => return Some((b[0], b[1..].to_vec())),
            Some(Ok(Message::Text(t))) => {
                let b = t.as_bytes();
                return Some((b[0], b[1..].to_vec()));
            }
            Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
            Some(Ok(_)) => {}
        }
    }
}

/// Everything until the goodbye, by channel.
pub(super) async fn rest(ws: &mut Ws) -> HashMap<u8, Vec<u8>> {
    let mut all: HashMap<u8, Vec<u8>> = HashMap::new();
    while let Some((channel, bytes)) = next(ws).await {
        all.entry(channel).or_default().extend(bytes);
    }
    all
}
