//! An HTTP server in this process that answers what a test tells it, and cuts connections.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// A request as the server saw it: header names in lower case.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// What it answers; `cut` closes the connection after so many bytes of the body.
#[derive(Default)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) cut: Option<usize>,
}

pub(crate) fn reply(status: u16, body: impl Into<Vec<u8>>) -> Reply {
    Reply {
        status,
        body: body.into(),
        ..Reply::default()
    }
}

pub(crate) type Log = Arc<Mutex<Vec<Seen>>>;

/// Starts a server; it lives as long as the test's runtime.
pub(crate) async fn serve(
    answer: impl Fn(&Seen, usize) -> Reply + Send + Sync + 'static,
) -> (String, Log) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let log = Log::default();
    let (answer, seen) = (Arc::new(answer), log.clone());
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(connection(socket, answer.clone(), seen.clone()));
        }
    });
    (address, log)
}

async fn connection(
    mut socket: tokio::net::TcpStream,
    answer: Arc<impl Fn(&Seen, usize) -> Reply>,
    log: Log,
) -> Option<()> {
    let mut buffer = Vec::new();
    loop {
        let end = loop {
            if let Some(at) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            if socket.read_buf(&mut buffer).await.ok()? == 0 || buffer.first() == Some(&0x16) {
                // TLS: answered in plain text, as a plain server does.
                socket
                    .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                    .await
                    .ok()?;
                return None;
            }
        };
        let head = String::from_utf8(buffer[..end].to_vec()).ok()?;
        let mut lines = head.lines();
        let mut first = lines.next()?.split(' ');
        let mut seen = Seen {
            method: first.next()?.into(),
            target: first.next()?.into(),
            headers: lines
                .filter_map(|l| l.split_once(": "))
                .map(|(k, v)| (k.to_lowercase(), v.to_owned()))
                .collect(),
            body: Vec::new(),
        };
        let length: usize = seen.header("content-length").parse().unwrap_or(0);
        while buffer.len() < end + length {
            socket.read_buf(&mut buffer).await.ok()?;
        }
        seen.body = buffer[end..end + length].to_vec();
        buffer.drain(..end + length);
        let count = log.lock().len();
        log.lock().push(seen.clone());
        let r = answer(&seen, count);
        let mut out = format!(
            "HTTP/1.1 {} X\r\ncontent-length: {}\r\n",
            r.status,
            r.body.len()
        );
        for (k, v) in &r.headers {
            out.push_str(&format!("{k}: {v}\r\n"));
        }
        out.push_str("\r\n");
        socket.write_all(out.as_bytes()).await.ok()?;
        if seen.method != "HEAD" {
            let cut = r.cut.unwrap_or(r.body.len());
            socket.write_all(&r.body[..cut]).await.ok()?;
            socket.flush().await.ok()?;
            if r.cut.is_some() {
                return None;
            }
        }
    }
}
