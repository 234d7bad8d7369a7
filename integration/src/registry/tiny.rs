//! A registry with one image and one trick: it asks for a token, sends wrong bytes, hangs up.
//!
//! It keeps the list of what it was asked, so that a test can tell what a client did.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::images::Image;

/// What the registry does besides serving its image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trick {
    None,
    /// Wants a bearer token from its `/token`, given to anyone.
    Token,
    /// Wants a bearer token, given to `user` with `secret` only.
    PrivateToken,
    /// Wants a bearer token, given for the refresh token `secret` only.
    Refresh,
    /// Wants `user` with `secret` on every request.
    Basic,
    /// Serves layers with a flipped byte.
    WrongBytes,
    /// Announces each layer in full, sends half of it and hangs up; every time.
    Cut,
    /// As `Cut`, but only on the first request for each layer.
    CutOnce,
    /// Sends half of a layer on its first request and then nothing, without hanging up.
    Stall,
    /// Answers 503 to the first two requests for blobs.
    Busy,
    /// Answers 500 to everything.
    Broken,
    /// Sends clients elsewhere (to itself) for blobs.
    Redirect,
    /// Forgets the layers: 404.
    NoLayers,
    /// Sends no Content-Length but chunks.
    Chunked,
    /// As `Basic`, and sends clients to another server for blobs.
    BasicElsewhere(SocketAddr),
    /// Wants a name and a password, and nothing will do.
    Greedy,
}

/// A listening server; stops when dropped.
#[derive(Debug)]
pub struct Tiny {
    address: SocketAddr,
    image: Image,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    image: Image,
    trick: Trick,
    stopped: AtomicBool,
    refused: AtomicU32,
    requests: Mutex<Vec<String>>,
    credentials: Mutex<Vec<String>>,
}

#[derive(Debug)]
struct Request {
    method: String,
    target: String,
    authorization: String,
    range: Option<usize>,
    body: String,
}

/// What `printf user:secret | base64` prints.
const CREDENTIALS: &str = "Basic dXNlcjpzZWNyZXQ=";
const BEARER: &str = "Bearer let-me-in";

// === impl Tiny ===

impl Tiny {
    #[must_use]
    pub fn serve(image: Image, trick: Trick) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("loopback has free ports");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared {
            image: image.clone(),
            trick,
            stopped: AtomicBool::new(false),
            refused: AtomicU32::new(0),
            requests: Mutex::default(),
            credentials: Mutex::default(),
        });
        let server = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if server.stopped.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let server = Arc::clone(&server);
                // A client that hangs up ends the conversation, not the server.
                thread::spawn(move || drop(server.talk(&stream, address)));
            }
        });
        Self {
            address,
            image,
            shared,
        }
    }

    /// The image's reference here.
    #[must_use]
    pub fn reference(&self) -> String {
        let (path, tag) = self.image.repository();
        format!("{}/{path}:{tag}", self.address)
    }

    /// What was asked so far: method and path, and where a range began.
    #[must_use]
    pub fn requests(&self) -> Vec<String> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What clients have told of themselves.
    #[must_use]
    pub fn credentials(&self) -> Vec<String> {
        self.shared.credentials.lock().unwrap().clone()
    }
}

impl Drop for Tiny {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        // Wakes the accepting thread.
        let _ = TcpStream::connect(self.address);
    }
}

// === impl Shared ===

impl Shared {
    fn talk(&self, mut stream: &TcpStream, address: SocketAddr) -> std::io::Result<()> {
        let Some(request) = read(stream)? else {
            return Ok(());
        };
        let path = request
            .target
            .split('?')
            .next()
            .unwrap_or_default()
            .to_owned();
        self.requests.lock().unwrap().push(match request.range {
            Some(from) if from > 0 => format!("{} {path} from {from}", request.method),
            _ => format!("{} {path}", request.method),
        });
        if !request.authorization.is_empty() {
            let credentials = request.authorization.clone();
            self.credentials.lock().unwrap().push(credentials);
        }
        if let Some(answer) = self.refuse(&request, &path, address) {
            return stream.write_all(answer.as_bytes());
        }
        if path == "/v2/" {
            return stream.write_all(plain(200, "OK", "", "{}").as_bytes());
        }
        let last = path.rsplit('/').next().unwrap_or_default();
        let is_blob = path.contains("/blobs/");
        if is_blob && self.trick == Trick::Redirect && !request.target.contains("moved") {
            let place = format!("Location: http://{address}{path}?moved\r\n");
            return stream.write_all(plain(307, "Temporary Redirect", &place, "").as_bytes());
        }
        if let (true, Trick::BasicElsewhere(other)) = (is_blob, self.trick) {
            let place = format!("Location: http://{other}{path}\r\n");
            return stream.write_all(plain(307, "Temporary Redirect", &place, "").as_bytes());
        }
        let digest = if last.starts_with("sha256:") {
            last
        } else {
            &self.image.digest
        };
        let known = self.image.blobs.get(digest);
        let is_layer = known.is_some_and(|b| b.media_type.contains(".tar"));
        let known = known.filter(|_| !(is_layer && self.trick == Trick::NoLayers));
        let Some(blob) = known else {
            let body = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"not here"}]}"#;
            return stream.write_all(plain(404, "Not Found", "", body).as_bytes());
        };
        let mut bytes = blob.bytes.clone();
        if is_layer && self.trick == Trick::WrongBytes {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        }
        let start = request.range.unwrap_or(0).min(bytes.len());
        let (status, range) = match request.range {
            None => ("200 OK", String::new()),
            Some(_) => (
                "206 Partial Content",
                format!(
                    "Content-Range: bytes {start}-{}/{}\r\n",
                    bytes.len().saturating_sub(1),
                    bytes.len()
                ),
            ),
        };
        let rest = &bytes[start..];
        let chunked = self.trick == Trick::Chunked && is_blob && request.method == "GET";
        let length = if chunked {
            "Transfer-Encoding: chunked\r\n".to_owned()
        } else {
            format!("Content-Length: {}\r\n", rest.len())
        };
        let head = format!(
            "HTTP/1.1 {status}\r\n{length}{range}Content-Type: {}\r\n\
             Docker-Content-Digest: {digest}\r\nConnection: close\r\n\r\n",
            blob.media_type
        );
        stream.write_all(head.as_bytes())?;
        if request.method == "HEAD" {
            return Ok(());
        }
        if chunked {
            return write_chunks(stream, rest);
        }
        let once = || self.refused.fetch_add(1, Ordering::Relaxed) == 0;
        let cut = is_layer
            && match self.trick {
                Trick::Cut => true,
                Trick::CutOnce | Trick::Stall => once(),
                _ => false,
            };
        stream.write_all(if cut { &rest[..rest.len() / 2] } else { rest })?;
        if cut && self.trick == Trick::Stall {
            // Until the client goes.
            let _ = stream.read(&mut [0]);
        }
        Ok(())
    }

    /// An answer that is not what was asked for, if it comes to that.
    fn refuse(&self, request: &Request, path: &str, address: SocketAddr) -> Option<String> {
        let unauthorized = |challenge: &str| {
            let header = format!("WWW-Authenticate: {challenge}\r\n");
            Some(plain(
                401,
                "Unauthorized",
                &header,
                r#"{"errors":[{"code":"UNAUTHORIZED"}]}"#,
            ))
        };
        match self.trick {
            Trick::Token | Trick::PrivateToken | Trick::Refresh if path == "/token" => {
                let allowed = match self.trick {
                    Trick::PrivateToken => request.authorization == CREDENTIALS,
                    Trick::Refresh => request.body.contains("refresh_token=secret"),
                    _ => true,
                };
                if !allowed {
                    return unauthorized("Basic realm=\"tiny\"");
                }
                let body = r#"{"token":"let-me-in","access_token":"let-me-in","expires_in":300}"#;
                Some(plain(200, "OK", "Content-Type: application/json\r\n", body))
            }
            Trick::Token | Trick::PrivateToken | Trick::Refresh
                if request.authorization != BEARER =>
            {
                unauthorized(&format!(
                    "Bearer realm=\"http://{address}/token\",service=\"tiny\",\
                     scope=\"repository:{}:pull\"",
                    self.image.repository().0
                ))
            }
            Trick::Greedy => unauthorized("Basic realm=\"greedy\""),
            Trick::Basic | Trick::BasicElsewhere(_) if request.authorization != CREDENTIALS => {
                unauthorized("Basic realm=\"tiny\"")
            }
            Trick::Broken => Some(plain(500, "Internal Server Error", "", "{}")),
            Trick::Busy
                if path.contains("/blobs/") && self.refused.fetch_add(1, Ordering::Relaxed) < 2 =>
            {
                Some(plain(
                    503,
                    "Service Unavailable",
                    "Retry-After: 0\r\n",
                    "{}",
                ))
            }
            _ => None,
        }
    }
}

fn plain(code: u16, reason: &str, headers: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {code} {reason}\r\nContent-Length: {}\r\n{headers}Connection: close\r\n\r\n{body}",
        body.len()
    )
}

fn write_chunks(mut stream: &TcpStream, bytes: &[u8]) -> std::io::Result<()> {
    for chunk in bytes.chunks(10_000) {
        write!(stream, "{:x}\r\n", chunk.len())?;
        stream.write_all(chunk)?;
        stream.write_all(b"\r\n")?;
    }
    stream.write_all(b"0\r\n\r\n")
}

fn read(stream: &TcpStream) -> std::io::Result<Option<Request>> {
    let mut reader = BufReader::new(stream);
    let mut lines = reader.by_ref().lines();
    let Some(first) = lines.next().transpose()? else {
        return Ok(None);
    };
    let mut words = first.split(' ');
    let mut request = Request {
        method: words.next().unwrap_or_default().to_owned(),
        target: words.next().unwrap_or_default().to_owned(),
        authorization: String::new(),
        range: None,
        body: String::new(),
    };
    let mut length = 0;
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(':') else {
            break;
        };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse().unwrap_or(0),
            "authorization" => value.trim().clone_into(&mut request.authorization),
            "range" => {
                let range = value.trim().trim_start_matches("bytes=");
                request.range = range.split('-').next().and_then(|n| n.parse().ok());
            }
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    request.body = String::from_utf8_lossy(&body).into_owned();
    Ok(Some(request))
}
