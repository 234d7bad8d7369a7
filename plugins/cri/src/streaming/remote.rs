//! Exec and attach, whatever the wire: the streams are given to the runtime, and its answer goes out last.

use std::collections::HashSet;
use std::time::Duration;

use corten_protos::runtime::v1::{AttachRequest, ExecRequest};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, timeout_at};
use tracing::debug;

use super::pipe::Pipe;
use super::runtime::{Resize, Runtime, Size, Streams};
use super::spdy::header::Headers;
use super::spdy::session::{Accept, Direction, Session};
use super::status::Status;
use super::websocket::{Channels, Codec};

/// Most bytes of a terminal size.
pub const MAX_RESIZE: usize = 4096;

/// What is to be done.
#[derive(Debug)]
pub(crate) enum Job {
    Exec(ExecRequest),
    Attach(AttachRequest),
}

/// A remote command protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Protocol(pub(crate) u8);

/// The streams of a client, on either wire.
#[derive(Debug, Default)]
struct Wiring {
    stdin: Option<Pipe>,
    stdout: Option<Pipe>,
    stderr: Option<Pipe>,
    resize: Option<Pipe>,
    error: Option<Pipe>,
}

impl Protocol {
    /// Sizes of terminals came with v3.
    fn resizes(self) -> bool {
        self.0 >= 3
    }

    /// The status became JSON with v4.
    fn json(self) -> bool {
        self.0 >= 4
    }
}

impl Job {
    /// stdin, stdout, stderr, tty
    fn wants(&self) -> [bool; 4] {
        match self {
            Self::Exec(r) => [r.stdin, r.stdout, r.stderr && !r.tty, r.tty],
            Self::Attach(r) => [r.stdin, r.stdout, r.stderr && !r.tty, r.tty],
        }
    }

    async fn run(&self, runtime: &dyn Runtime, streams: Streams) -> Status {
        match self {
            Self::Exec(request) => match runtime.exec(request, streams).await {
                Ok(code) => Status::exited(&request.cmd, code),
                Err(e) => Status::failed("executing command in", &e),
            },
            Self::Attach(request) => match runtime.attach(request, streams).await {
                Ok(()) => Status::success(),
                Err(e) => Status::failed("attaching to", &e),
            },
        }
    }
}

// === The wires ===

/// Serves a job over SPDY: each stream says in a header which it is.
pub(crate) async fn serve_spdy<T>(
    io: T,
    protocol: Protocol,
    job: Job,
    runtime: &dyn Runtime,
    (idle, creation): (Duration, Duration),
) where
    T: AsyncRead + AsyncWrite + Send + 'static,
{
    let [stdin, stdout, stderr, tty] = job.wants();
    let resize = tty && protocol.resizes();
    let wanted = [
        ("stdin", stdin),
        ("stdout", stdout),
        ("stderr", stderr),
        ("resize", resize),
    ];
    let mut missing: HashSet<&str> = wanted
        .iter()
        .filter(|(_, want)| *want)
        .map(|(n, _)| *n)
        .collect();
    missing.insert("error");
    let mut count = missing.len();
    let accept: Accept = Box::new(move |headers: &Headers| {
        let kind = headers.get("streamType")?;
        // Twice the same, or one that was not asked for.
        missing.remove(kind).then_some(match kind {
            "stdin" | "resize" => Direction::In,
            _ => Direction::Out,
        })
    });
    let mut session = Session::start(io, idle, accept);
    let mut wiring = Wiring::default();
    let end = Instant::now() + creation;
    while count > 0 {
        let Ok(Some(stream)) = timeout_at(end, session.incoming.recv()).await else {
            debug!("timed out waiting for client to create streams");
            return session.finish().await;
        };
        let slot = match stream.headers.get("streamType") {
            Some("stdin") => &mut wiring.stdin,
            Some("stdout") => &mut wiring.stdout,
            Some("stderr") => &mut wiring.stderr,
            Some("resize") => &mut wiring.resize,
            _ => &mut wiring.error,
        };
        *slot = Some(stream.pipe);
        count -= 1;
    }
    let closed = session.closed();
    tokio::select! {
        () = serve(wiring, protocol, &job, runtime) => session.finish().await,
        () = closed => {}
    }
}

/// Serves a job over WebSocket: the channels' numbers say which they are.
pub(crate) async fn serve_channels<T>(
    socket: tokio_tungstenite::WebSocketStream<T>,
    protocol: Protocol,
    codec: Codec,
    job: Job,
    runtime: &dyn Runtime,
    idle: Duration,
) where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let [stdin, stdout, stderr, _] = job.wants();
    let directions = [
        stdin.then_some(Direction::In),
        stdout.then_some(Direction::Out),
        stderr.then_some(Direction::Out),
        Some(Direction::Out),
        Some(Direction::In),
    ];
    let mut channels = Channels::start(socket, &directions, codec, idle);
    channels
        .greet(if stdout {
            1
        } else if stderr {
            2
        } else {
            3
        })
        .await;
    let mut pipes = std::mem::take(&mut channels.pipes).into_iter();
    let mut next = || pipes.next().flatten();
    let wiring = Wiring {
        stdin: next(),
        stdout: next(),
        stderr: next(),
        error: next(),
        resize: next(),
    };
    let closed = channels.closed();
    tokio::select! {
        () = serve(wiring, protocol, &job, runtime) => channels.finish().await,
        () = closed => {}
    }
}

// === What they have in common ===

async fn serve(wiring: Wiring, protocol: Protocol, job: &Job, runtime: &dyn Runtime) {
    let mut drained = Vec::new();
    let mut open = |pipe: Option<Pipe>| {
        pipe.map(|p| {
            drained.push(p.drained);
            p.io
        })
    };
    let (stdout, stderr) = (open(wiring.stdout), open(wiring.stderr));
    let (sizes, resize) = watch::channel(None);
    let streams = Streams {
        stdin: wiring.stdin.map(|p| Box::new(p.io) as _),
        stdout: stdout.map(|io| Box::new(io) as _),
        stderr: stderr.map(|io| Box::new(io) as _),
        resize: if wiring.resize.is_some() {
            Resize::new(resize)
        } else {
            Resize::default()
        },
    };
    let status = {
        let run = job.run(runtime, streams);
        let sizes = async {
            if let Some(pipe) = wiring.resize {
                read_sizes(pipe.io, &sizes).await;
            }
            drop(sizes);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            status = run => status,
            () = sizes => return,
        }
    };
    // The client may take the status for the end of everything.
    for d in drained {
        let _ = d.await;
    }
    if let Some(error) = wiring.error {
        say(error, &status.bytes(protocol.json())).await;
    }
}

async fn say(mut pipe: Pipe, bytes: &[u8]) {
    let _ = pipe.io.write_all(bytes).await;
    let _ = pipe.io.shutdown().await;
    let drained: oneshot::Receiver<()> = pipe.drained;
    let _ = drained.await;
}

/// JSON objects, one after the other, until the end, or until one that is none.
async fn read_sizes(mut from: impl AsyncRead + Unpin, sizes: &watch::Sender<Option<Size>>) {
    let mut buffer = Vec::new();
    loop {
        let mut part = [0u8; 512];
        let room = part.len().min(MAX_RESIZE - buffer.len());
        match from.read(part.get_mut(..room).unwrap_or_default()).await {
            Ok(n) if n > 0 => buffer.extend(part.get(..n).unwrap_or_default()),
            _ => return,
        }
        let mut objects = serde_json::Deserializer::from_slice(&buffer).into_iter::<Size>();
        let mut used = 0;
        loop {
            match objects.next() {
                Some(Ok(size)) => {
                    used = objects.byte_offset();
                    sizes.send_replace(Some(size));
                }
                Some(Err(e)) if !e.is_eof() => return debug!("a terminal size is no JSON"),
                Some(Err(_)) | None => break,
            }
        }
        buffer.drain(..used);
        if buffer.len() >= MAX_RESIZE {
            return debug!("a terminal size is too long");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn sizes_are_read_in_any_pieces_and_bounded() {
        let read = async |bytes: Vec<u8>| {
            let (tell, seen) = watch::channel(None);
            read_sizes(bytes.as_slice(), &tell).await;
            *seen.borrow()
        };
        let size = |width, height| Some(Size { width, height });
        assert_eq!(
            read(b"{\"Width\":80,\"Height\":24}\n{\"Width\":81,".to_vec()).await,
            size(80, 24)
        );
        assert_eq!(
            read(b"{\"width\":1,\"height\":2}{\"Width\":3,\"Height\":4} x".to_vec()).await,
            size(3, 4)
        );
        assert_eq!(read(b"[]".to_vec()).await, None);
        let padded =
            |n: usize| format!("{}{{\"Width\":1,\"Height\":1}}", " ".repeat(n)).into_bytes();
        assert_eq!(read(padded(MAX_RESIZE - 23)).await, size(1, 1));
        assert_eq!(read(padded(MAX_RESIZE - 22)).await, size(1, 1));
        assert_eq!(read(padded(MAX_RESIZE - 21)).await, None);
        let many: Vec<u8> = (0..5000u16)
            .flat_map(|n| format!("{{\"Width\":{n},\"Height\":1}}").into_bytes())
            .collect();
        assert_eq!(read(many).await, size(4999, 1));
    }
}
