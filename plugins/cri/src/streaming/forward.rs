//! Port-forward, whatever the wire: pairs of a data and an error stream, each pair a connection into the pod.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use super::pipe::Pipe;
use super::runtime::Runtime;
use super::spdy::header::Headers;
use super::spdy::session::{Accept, Control, Direction, Incoming, Session};
use super::websocket::{Channels, Codec};

/// The two streams of a connection, as far as they are there.
#[derive(Debug)]
struct Pair {
    data: Option<Incoming>,
    error: Option<Incoming>,
    /// When waiting for the other ends.
    until: Instant,
}

/// Forwards what a client asks for over SPDY, until it hangs up.
pub(crate) async fn serve_spdy<T>(
    io: T,
    sandbox: String,
    runtime: Arc<dyn Runtime>,
    (idle, creation): (Duration, Duration),
) where
    T: AsyncRead + AsyncWrite + Send + 'static,
{
    let accept: Accept = Box::new(|headers: &Headers| {
        port(headers)?;
        match headers.get("streamType")? {
            "data" => Some(Direction::Both),
            "error" => Some(Direction::Out),
            _ => None,
        }
    });
    let mut session = Session::start(io, idle, accept);
    let closed = session.closed();
    tokio::pin!(closed);
    let mut waiting: HashMap<String, Pair> = HashMap::new();
    let mut workers = JoinSet::new();
    loop {
        let first = waiting.values().map(|p| p.until).min();
        let expire = async {
            match first {
                Some(until) => sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            stream = session.incoming.recv() => {
                let Some(stream) = stream else { break };
                if let Some((data, error)) = join(&mut waiting, stream, &session.control, creation) {
                    let work = carry(data, error, session.control.clone(), sandbox.clone(), runtime.clone());
                    workers.spawn(work);
                }
            }
            () = expire => {
                let now = Instant::now();
                for (id, pair) in waiting.extract_if(|_, p| p.until <= now) {
                    debug!(request = id, "timed out waiting for streams");
                    workers.spawn(abandon(pair, session.control.clone()));
                }
            }
            Some(_) = workers.join_next() => {}
            () = &mut closed => break,
        }
    }
}

fn port(headers: &Headers) -> Option<u16> {
    headers.get("port")?.parse().ok().filter(|p| *p > 0)
}

/// Puts a stream to its other; gives the pair when it is whole. A second of the same kind is reset.
fn join(
    waiting: &mut HashMap<String, Pair>,
    stream: Incoming,
    control: &Control,
    creation: Duration,
) -> Option<(Incoming, Incoming)> {
    let data = stream.headers.get("streamType") == Some("data");
    // Clients of before 1.2 send no id; their data stream comes next after its error stream.
    let id = match stream.headers.get("requestID") {
        Some(id) if !id.is_empty() => id.to_owned(),
        _ if data => stream.id.wrapping_sub(2).to_string(),
        _ => stream.id.to_string(),
    };
    let pair = waiting.entry(id.clone()).or_insert_with(|| Pair {
        data: None,
        error: None,
        until: Instant::now() + creation,
    });
    let slot = if data {
        &mut pair.data
    } else {
        &mut pair.error
    };
    if slot.is_some() {
        control.forget(stream.id);
        return None;
    }
    *slot = Some(stream);
    if pair.data.is_none() || pair.error.is_none() {
        return None;
    }
    let pair = waiting.remove(&id)?;
    pair.data.zip(pair.error)
}

async fn carry(
    data: Incoming,
    error: Incoming,
    control: Control,
    sandbox: String,
    runtime: Arc<dyn Runtime>,
) {
    let port = port(&data.headers).unwrap_or(0);
    let well = forward(data.pipe, error.pipe, &sandbox, port, runtime.as_ref()).await;
    for id in [data.id, error.id] {
        if well {
            control.forget(id);
        } else {
            control.reset(id).await;
        }
    }
}

/// One connection; false when it failed, which the client has then been told.
async fn forward(
    data: Pipe,
    mut error: Pipe,
    sandbox: &str,
    port: u16,
    runtime: &dyn Runtime,
) -> bool {
    let done = runtime.port_forward(sandbox, port, Box::new(data.io)).await;
    let _ = data.drained.await;
    if let Err(e) = &done {
        let text = format!("error forwarding port {port} to pod {sandbox}, uid : {e}");
        let _ = error.io.write_all(text.as_bytes()).await;
    }
    let _ = error.io.shutdown().await;
    let _ = error.drained.await;
    done.is_ok()
}

async fn abandon(pair: Pair, control: Control) {
    if let Some(mut error) = pair.error {
        let _ = error
            .pipe
            .io
            .write_all(b"timed out waiting for streams")
            .await;
        let _ = error.pipe.io.shutdown().await;
        let _ = error.pipe.drained.await;
        control.forget(error.id);
    }
    if let Some(data) = pair.data {
        control.reset(data.id).await;
    }
}

/// Forwards the ports of the request over WebSocket: two channels for each, which begin with the port's number in
/// little endian.
pub(crate) async fn serve_channels<T>(
    socket: tokio_tungstenite::WebSocketStream<T>,
    codec: Codec,
    sandbox: String,
    ports: Vec<u16>,
    runtime: Arc<dyn Runtime>,
    idle: Duration,
) where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let pair = [Some(Direction::Both), Some(Direction::Out)];
    let directions: Vec<_> = ports.iter().flat_map(|_| pair).collect();
    let mut channels = Channels::start(socket, &directions, codec, idle);
    let mut workers = JoinSet::new();
    let mut pipes = std::mem::take(&mut channels.pipes).into_iter().flatten();
    for port in ports {
        let (Some(mut data), Some(mut error)) = (pipes.next(), pipes.next()) else {
            break;
        };
        let (sandbox, runtime) = (sandbox.clone(), runtime.clone());
        workers.spawn(async move {
            let number = port.to_le_bytes();
            let _ = data.io.write_all(&number).await;
            let _ = error.io.write_all(&number).await;
            forward(data, error, &sandbox, port, runtime.as_ref()).await;
        });
    }
    let closed = channels.closed();
    let all = async { while workers.join_next().await.is_some() {} };
    tokio::select! {
        () = all => channels.finish().await,
        () = closed => {}
    }
}
