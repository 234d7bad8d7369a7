//! HTTP/1.1 for the operator's endpoints: GET of a few paths, answered in bounded time.
//!
//! They are for scrapers and humans, so few connections at a time are enough; more wait in the listener's backlog.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::{debug, warn};

/// Connections that are served at once.
const CONNECTIONS: usize = 16;
/// How long a client may take to say what it wants.
const HEADER_PATIENCE: Duration = Duration::from_secs(10);

/// An answer to a path; `None` is 404.
pub(super) type Handler = Arc<dyn Fn(&str) -> BoxFuture<'static, Option<Answer>> + Send + Sync>;

/// What a path gives.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) content_type: &'static str,
    pub(super) text: String,
}

/// A listening socket of either family.
#[derive(Debug)]
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Binds `host:port`; an empty host is every address, as in Go.
pub(super) async fn bind_tcp(address: &str) -> Result<TcpListener> {
    let bound = match address.strip_prefix(':') {
        Some(port) => match TcpListener::bind(format!("[::]:{port}")).await {
            Ok(l) => Ok(l),
            // A kernel without IPv6.
            Err(_) => TcpListener::bind(format!("0.0.0.0:{port}")).await,
        },
        None => TcpListener::bind(address).await,
    };
    bound.with_context(|| format!("listen on {address}"))
}

/// Serves until the future is dropped, which also ends the connections.
pub(super) async fn serve(listener: Listener, handler: Handler) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        // The semaphore is never closed.
        let Ok(slot) = slots.clone().acquire_owned().await else {
            return;
        };
        while connections.try_join_next().is_some() {}
        let stream = match listener.accept().await {
            Ok(stream) => stream,
            Err(error) => {
                warn!(%error, "an operator's endpoint cannot accept");
                // Out of fds, mostly: give it time instead of spinning.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let handler = handler.clone();
        connections.spawn(async move {
            match stream {
                Stream::Tcp(s) => connection(s, handler).await,
                Stream::Unix(s) => connection(s, handler).await,
            }
            drop(slot);
        });
    }
}

impl Listener {
    async fn accept(&self) -> io::Result<Stream> {
        Ok(match self {
            Self::Tcp(l) => Stream::Tcp(l.accept().await?.0),
            Self::Unix(l) => Stream::Unix(l.accept().await?.0),
        })
    }

    /// Where TCP really listens: port 0 becomes a number.
    #[cfg(test)]
    pub(super) fn tcp_address(&self) -> Option<std::net::SocketAddr> {
        match self {
            Self::Tcp(l) => l.local_addr().ok(),
            Self::Unix(_) => None,
        }
    }
}

impl Answer {
    pub(super) fn ok(content_type: &'static str, text: String) -> Self {
        Self {
            status: StatusCode::OK,
            content_type,
            text,
        }
    }

    pub(super) fn not_found(text: impl Into<String>) -> Self {
        Self {
            status: StatusCode::NOT_FOUND,
            content_type: "text/plain; charset=utf-8",
            text: text.into(),
        }
    }
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin, handler: Handler) {
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let handler = handler.clone();
        async move { Ok::<_, std::convert::Infallible>(respond(&request, &handler).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_PATIENCE)
        .max_buf_size(16 << 10)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        debug!(%error, "a connection to an operator's endpoint ended");
    }
}

async fn respond(request: &Request<Incoming>, handler: &Handler) -> Response<Full<Bytes>> {
    let answer = if matches!(*request.method(), Method::GET | Method::HEAD) {
        let answer = handler(request.uri().path()).await;
        answer.unwrap_or_else(|| Answer::not_found("404 page not found\n"))
    } else {
        Answer {
            status: StatusCode::METHOD_NOT_ALLOWED,
            content_type: "text/plain; charset=utf-8",
            text: "405 method not allowed\n".into(),
        }
    };
    let mut response = Response::new(Full::new(Bytes::from(answer.text)));
    *response.status_mut() = answer.status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static(answer.content_type),
    );
    response
}
