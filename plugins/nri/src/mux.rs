//! Two connections over one socket, framed as NRI does it.
//!
//! ```text
//! ┌────────────────┬────────────┬─────────┐
//! │ connection u32 │ length u32 │ payload │    big-endian
//! └────────────────┴────────────┴─────────┘
//! ```
//! Connection 1 carries the daemon's calls to the plugin, 2 the plugin's to the daemon. Frames are no messages: a payload may
//! hold a part of a ttrpc message or several. But the Go library hands each frame to one read: a frame that is longer than the
//! reader's buffer breaks the connection, and so do more than 256 unread ones. Its ttrpc reads with a buffer of 4096 bytes at
//! first and then with one that fits the rest of a message. So a message leaves here in at most two frames, cut at 4096.
//!
//! When either end of any connection closes, all is closed. A full connection holds up the socket: its reader is a ttrpc
//! connection, which always reads.

use std::io;

use corten_core::tasks_set::TaskSet;
use parking_lot::Mutex;
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, DuplexStream, ReadHalf,
    WriteHalf, copy, duplex, sink, split,
};
use tokio::sync::{oneshot, watch};
use tracing::debug;

/// The connection of the daemon's calls.
const PLUGIN: u32 = 1;
/// The connection of the plugin's calls.
const RUNTIME: u32 = 2;
/// A ttrpc message: header and payload.
const HEADER: usize = 10;
const PAYLOAD_MAX: usize = 4 << 20;
/// The Go reader's buffer.
const FIRST_FRAME: usize = 4096;
/// Bytes of one connection that wait for their reader.
const BUFFER: usize = 64 << 10;

/// An open socket with its two connections. Dropping it closes them.
#[derive(Debug)]
pub(crate) struct Mux {
    ended: watch::Receiver<bool>,
    answered: watch::Receiver<bool>,
    stop: Mutex<Option<oneshot::Sender<()>>>,
}

/// The near ends of the two connections.
pub(crate) struct Connections {
    pub(crate) plugin: DuplexStream,
    pub(crate) runtime: DuplexStream,
}

// === impl Mux ===

impl Mux {
    /// Splits a socket.
    pub(crate) fn open<S>(trunk: S, tasks: &TaskSet) -> (Self, Connections)
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (ended, ended_rx) = watch::channel(false);
        let (answered, answered_rx) = watch::channel(false);
        let (stop, stopped) = oneshot::channel::<()>();
        let (plugin, plugin_far) = duplex(BUFFER);
        let (runtime, runtime_far) = duplex(BUFFER);
        tasks.spawn("nri connection", async move {
            let end = carry(trunk, plugin_far, runtime_far, &answered, stopped).await;
            if let Err(e) = end {
                debug!(error = %e, "the connection to a plugin broke");
            }
            let _ = ended.send(true);
        });
        let mux = Self {
            ended: ended_rx,
            answered: answered_rx,
            stop: Mutex::new(Some(stop)),
        };
        (mux, Connections { plugin, runtime })
    }

    /// Closes all.
    pub(crate) fn close(&self) {
        self.stop.lock().take();
    }

    /// Whether all is closed.
    pub(crate) fn is_ended(&self) -> bool {
        *self.ended.borrow() || self.stop.lock().is_none()
    }

    /// Waits until all is closed, whoever closed it.
    pub(crate) async fn ended(&self) {
        let _ = self.ended.clone().wait_for(|e| *e).await;
    }

    /// Waits until an answer to a call of the plugin's has gone out, or all is closed.
    pub(crate) async fn answered(&self) {
        let _ = self.answered.clone().wait_for(|a| *a).await;
    }
}

/// Carries bytes until any of the three ends.
async fn carry<S: AsyncRead + AsyncWrite>(
    trunk: S,
    plugin: DuplexStream,
    runtime: DuplexStream,
    answered: &watch::Sender<bool>,
    stopped: oneshot::Receiver<()>,
) -> io::Result<()> {
    let (read, write) = split(trunk);
    let write = tokio::sync::Mutex::new(write);
    let (plugin_out, plugin_in) = split(plugin);
    let (runtime_out, runtime_in) = split(runtime);
    tokio::select! {
        end = receive(BufReader::new(read), plugin_in, runtime_in) => end,
        end = send(PLUGIN, plugin_out, &write, || ()) => end,
        end = send(RUNTIME, runtime_out, &write, || { answered.send_replace(true); }) => end,
        _ = stopped => Ok(()),
    }
}

/// Deals frames out to the connections.
async fn receive(
    mut trunk: impl AsyncRead + Unpin,
    mut plugin: WriteHalf<DuplexStream>,
    mut runtime: WriteHalf<DuplexStream>,
) -> io::Result<()> {
    loop {
        let connection = match trunk.read_u32().await {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            other => other?,
        };
        let length = trunk.read_u32().await?;
        if length as usize > HEADER + PAYLOAD_MAX {
            return Err(invalid(format!("a frame of {length} bytes")));
        }
        let length = u64::from(length);
        let mut payload = (&mut trunk).take(length);
        let copied = match connection {
            PLUGIN => copy(&mut payload, &mut plugin).await?,
            RUNTIME => copy(&mut payload, &mut runtime).await?,
            // For nobody: dropped, as the Go library does.
            _ => copy(&mut payload, &mut sink()).await?,
        };
        if copied < length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Cuts one connection's messages into frames.
async fn send<W: AsyncWrite + Unpin>(
    connection: u32,
    mut from: ReadHalf<DuplexStream>,
    trunk: &tokio::sync::Mutex<W>,
    sent: impl Fn(),
) -> io::Result<()> {
    let mut message = Vec::new();
    loop {
        message.clear();
        message.resize(HEADER, 0);
        match from.read_exact(&mut message).await {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            other => other?,
        };
        let length = u32::from_be_bytes([message[0], message[1], message[2], message[3]]) as usize;
        if length > PAYLOAD_MAX {
            return Err(invalid(format!("a message of {length} bytes")));
        }
        message.resize(HEADER + length, 0);
        from.read_exact(&mut message[HEADER..]).await?;
        let out = frames(connection, &message);
        let mut trunk = trunk.lock().await;
        trunk.write_all(&out).await?;
        trunk.flush().await?;
        sent();
        if message.capacity() > BUFFER {
            message = Vec::new();
        }
    }
}

/// One message as it goes over the socket.
fn frames(connection: u32, message: &[u8]) -> Vec<u8> {
    let (first, rest) = message.split_at(message.len().min(FIRST_FRAME));
    let mut out = Vec::with_capacity(message.len() + 16);
    for part in [first, rest].into_iter().filter(|p| !p.is_empty()) {
        out.extend(connection.to_be_bytes());
        let length = u32::try_from(part.len()).expect("a message is at most 4 MiB");
        out.extend(length.to_be_bytes());
        out.extend(part);
    }
    out
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn message(length: usize) -> Vec<u8> {
        let mut m = u32::try_from(length).unwrap().to_be_bytes().to_vec();
        m.resize(HEADER + length, 7);
        m
    }

    #[test]
    fn a_message_is_cut_where_a_go_reader_can_take_it() {
        for (length, want) in [
            (0, vec![10]),
            (4086, vec![4096]),
            (4087, vec![4096, 1]),
            (PAYLOAD_MAX, vec![4096, PAYLOAD_MAX + HEADER - 4096]),
        ] {
            let m = message(length);
            let out = frames(2, &m);
            let (mut rest, mut lengths, mut whole): (_, Vec<usize>, Vec<u8>) =
                (out.as_slice(), vec![], vec![]);
            while !rest.is_empty() {
                assert_eq!(rest[..4], [0, 0, 0, 2]);
                let n = u32::from_be_bytes(rest[4..8].try_into().unwrap()) as usize;
                lengths.push(n);
                whole.extend(&rest[8..8 + n]);
                rest = &rest[8 + n..];
            }
            assert_eq!(lengths, want);
            assert!(whole == m);
        }
    }

    #[tokio::test]
    async fn both_connections_work_side_by_side_and_end_together() {
        let tasks = TaskSet::new();
        let (a, b) = duplex(100);
        let (near, mut ours) = Mux::open(a, &tasks);
        let (far, mut theirs) = Mux::open(b, &tasks);
        let (large, small) = (message(100_000), message(3));
        let writing = async {
            ours.plugin.write_all(&large).await.unwrap();
            theirs.runtime.write_all(&small).await.unwrap();
        };
        let reading = async {
            let mut got = vec![0; large.len()];
            theirs.plugin.read_exact(&mut got).await.unwrap();
            assert!(got == large);
            let mut got = vec![0; small.len()];
            ours.runtime.read_exact(&mut got).await.unwrap();
            assert!(got == small);
        };
        tokio::join!(writing, reading);
        near.close();
        assert!(near.is_ended());
        far.ended().await;
        assert_eq!(theirs.plugin.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn hostile_frames_end_the_connection_and_strange_ones_are_dropped() {
        let tasks = TaskSet::new();
        let check = async |bytes: &[u8], ends: bool| {
            let (a, mut b) = duplex(1 << 20);
            let (mux, _connections) = Mux::open(a, &tasks);
            b.write_all(bytes).await.unwrap();
            let ended = tokio::time::timeout(Duration::from_millis(100), mux.ended()).await;
            assert_eq!(ended.is_ok(), ends, "{bytes:?}");
        };
        check(&[0, 0, 0, 9, 0, 0, 0, 1, 1], false).await;
        check(&[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff], true).await;
        check(&[0, 0, 0, 1, 0, 0x40, 0, 11], true).await;
        check(&[0, 0, 0, 1, 0, 0x40, 0, 10], false).await;
    }
}
