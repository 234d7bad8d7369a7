//! The listener: hands out URLs, speaks HTTP up to the upgrade, and gives the connection to what serves it.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use corten_core::tasks_set::TaskSet;
use corten_core::{Context, Error, Kind, Result};
use corten_protos::runtime::v1::{AttachRequest, ExecRequest, PortForwardRequest};
use http::{Method, Request as HttpRequest, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use super::head::Counted;
use super::remote::Job;
use super::runtime::Runtime;
use super::tls::Tls;
use super::tokens::{Request, Tokens};
use super::upgrade::{Answer, Refusal, Wire, negotiate, refuse};
use super::{forward, remote, websocket};

/// Most connections at a time, unless [`Config::connections`] says otherwise.
pub const MAX_CONNECTIONS: usize = 4096;
/// Largest head of a request.
pub const MAX_HEAD: usize = 64 * 1024;

/// Longest wait for a TLS handshake, and for a request's head.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Pause when the kernel has no descriptors or memory for a connection.
const PAUSE: Duration = Duration::from_millis(100);
/// How long open connections may take to end with the daemon.
const PATIENCE: Duration = Duration::from_secs(1);

/// How to serve.
#[derive(Debug, Clone)]
pub struct Config {
    /// Loopback by default: who can reach it and has a token is in the container.
    pub address: IpAddr,
    /// 0: any that is free.
    pub port: u16,
    pub tls: Tls,
    /// Longest time without a byte in either direction.
    pub idle: Duration,
    /// Longest time for a client to make its streams.
    pub creation: Duration,
    /// Most connections at a time.
    pub connections: usize,
}

/// The streaming server.
pub struct Server {
    shared: Arc<Shared>,
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    tasks: TaskSet,
}

/// What requests and connections need.
struct Shared {
    tokens: Tokens,
    runtime: Arc<dyn Runtime>,
    config: Config,
    base: String,
}

/// Hands out URLs.
#[derive(Clone)]
pub struct Urls(Arc<Shared>);

impl Default for Config {
    fn default() -> Self {
        Self {
            address: Ipv4Addr::LOCALHOST.into(),
            port: 0,
            tls: Tls::Off,
            idle: Duration::from_secs(4 * 60 * 60),
            creation: Duration::from_secs(30),
            connections: MAX_CONNECTIONS,
        }
    }
}

// === impl Urls ===

impl Urls {
    /// A URL to run a process at.
    ///
    /// # Errors
    /// InvalidArgument for streams that do not go together; ResourceExhausted for too many unused URLs.
    pub fn exec(&self, request: ExecRequest) -> Result<String> {
        check(
            &request.container_id,
            [request.stdin, request.stdout, request.stderr],
            request.tty,
        )?;
        self.url(Request::Exec(request))
    }

    /// A URL to join a container at.
    ///
    /// # Errors
    /// As [`Self::exec`].
    pub fn attach(&self, request: AttachRequest) -> Result<String> {
        check(
            &request.container_id,
            [request.stdin, request.stdout, request.stderr],
            request.tty,
        )?;
        self.url(Request::Attach(request))
    }

    /// A URL to forward ports at.
    ///
    /// # Errors
    /// As [`Self::exec`].
    pub fn port_forward(&self, request: PortForwardRequest) -> Result<String> {
        if request.pod_sandbox_id.is_empty() {
            return Err(invalid("missing required pod_sandbox_id"));
        }
        if !request.port.iter().all(|p| (1..=65535).contains(p)) {
            return Err(invalid("port is out of range"));
        }
        self.url(Request::PortForward(request))
    }

    fn url(&self, request: Request) -> Result<String> {
        let word = request.word();
        let token = self.0.tokens.insert(request)?;
        Ok(format!("{}/{word}/{token}", self.0.base))
    }
}

fn check(container: &str, streams: [bool; 3], tty: bool) -> Result<()> {
    if container.is_empty() {
        return Err(invalid("missing required container_id"));
    }
    if tty && streams[2] {
        return Err(invalid("tty and stderr cannot both be true"));
    }
    if !streams.contains(&true) {
        return Err(invalid("one of stdin, stdout, or stderr must be set"));
    }
    Ok(())
}

fn invalid(text: &'static str) -> Error {
    Error::new(Kind::InvalidArgument, text)
}

// === impl Server ===

impl Server {
    /// Listens; nobody is served before [`Self::serve`].
    ///
    /// # Errors
    /// Of the address; InvalidArgument of the certificate.
    pub async fn bind(config: Config, runtime: Arc<dyn Runtime>) -> Result<Self> {
        let tls = config.tls.acceptor()?;
        let wanted = SocketAddr::new(config.address, config.port);
        let listener = TcpListener::bind(wanted).await;
        let listener = listener.with_context(|| format!("streaming server: listen on {wanted}"))?;
        let address = listener
            .local_addr()
            .context("streaming server: its address")?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let base = format!("{scheme}://{address}");
        let shared = Shared {
            tokens: Tokens::default(),
            runtime,
            config,
            base,
        };
        Ok(Self {
            shared: Arc::new(shared),
            listener,
            tls,
            tasks: TaskSet::new(),
        })
    }

    /// What hands out URLs of this server.
    pub fn urls(&self) -> Urls {
        Urls(self.shared.clone())
    }

    /// Where it listens: `http://127.0.0.1:10010`.
    pub fn base(&self) -> &str {
        &self.shared.base
    }

    /// Serves until `stop` ends; then open connections are closed.
    pub async fn serve(self, stop: impl Future<Output = ()> + Send) {
        let slots = Arc::new(Semaphore::new(self.shared.config.connections));
        tokio::pin!(stop);
        loop {
            let accept = async {
                let slot = slots.clone().acquire_owned().await.ok()?;
                Some((slot, self.listener.accept().await))
            };
            let accepted = tokio::select! {
                accepted = accept => accepted,
                () = &mut stop => break,
            };
            match accepted {
                Some((slot, Ok((stream, _)))) => {
                    let (shared, tls) = (self.shared.clone(), self.tls.clone());
                    self.tasks.spawn("streaming", async move {
                        let _slot = slot;
                        connection(stream, tls, &shared).await;
                    });
                }
                Some((_, Err(error))) => {
                    warn!(%error, "accept a streaming connection");
                    sleep(PAUSE).await;
                }
                None => break,
            }
        }
        self.tasks.drain(PATIENCE).await;
    }
}

async fn connection(stream: TcpStream, tls: Option<TlsAcceptor>, shared: &Shared) {
    let _ = stream.set_nodelay(true);
    match tls {
        None => speak(stream, shared).await,
        Some(tls) => match timeout(HANDSHAKE, tls.accept(stream)).await {
            Ok(Ok(stream)) => speak(stream, shared).await,
            Ok(Err(error)) => debug!(%error, "a streaming client's TLS handshake"),
            Err(_) => debug!("a streaming client's TLS handshake took too long"),
        },
    }
}

/// HTTP, until the connection ends or is upgraded; then what it was upgraded to.
async fn speak<T>(io: T, shared: &Shared)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let upgraded = Arc::new(parking_lot::Mutex::new(None));
    let service = service_fn(|mut request: HttpRequest<Incoming>| {
        let answer = match answer(shared, &request) {
            Ok((wire, request_of_token, answer)) => {
                let upgrade = hyper::upgrade::on(&mut request);
                *upgraded.lock() = Some((upgrade, wire, request_of_token));
                answer
            }
            Err(refusal) => *refusal,
        };
        async { Ok::<_, Infallible>(answer) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HANDSHAKE)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(Counted::new(io, MAX_HEAD)), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        return debug!(%error, "a streaming client's request");
    }
    let taken = upgraded.lock().take();
    if let Some((upgrade, wire, request)) = taken {
        serve_upgraded(upgrade, wire, request, shared).await;
    }
}

/// The token's request and the wire, or why not.
fn answer(
    shared: &Shared,
    request: &HttpRequest<Incoming>,
) -> std::result::Result<(Wire, Request, Answer), Refusal> {
    if request.method() != Method::GET && request.method() != Method::POST {
        return Err(refuse(
            StatusCode::METHOD_NOT_ALLOWED,
            "405: Method Not Allowed",
        ));
    }
    let unknown = || refuse(StatusCode::NOT_FOUND, "404 page not found\n");
    let path = request.uri().path().strip_prefix('/').ok_or_else(unknown)?;
    let (word, token) = path.split_once('/').ok_or_else(unknown)?;
    let found = shared.tokens.take(token).filter(|r| r.word() == word);
    let found = found.ok_or_else(unknown)?;
    let ports = matches!(found, Request::PortForward(_));
    let (wire, answer) = negotiate(request.headers(), ports)?;
    Ok((wire, found, answer))
}

async fn serve_upgraded(upgrade: OnUpgrade, wire: Wire, request: Request, shared: &Shared) {
    let io = match upgrade.await {
        Ok(io) => TokioIo::new(io),
        Err(error) => return debug!(%error, "a streaming client's upgrade"),
    };
    let (idle, creation) = (shared.config.idle, shared.config.creation);
    let runtime = shared.runtime.clone();
    let job = match request {
        Request::Exec(r) => Job::Exec(r),
        Request::Attach(r) => Job::Attach(r),
        Request::PortForward(r) => {
            let pod = r.pod_sandbox_id;
            return match wire {
                Wire::Spdy(_) => forward::serve_spdy(io, pod, runtime, (idle, creation)).await,
                Wire::Tunnel => {
                    let (io, _tasks) = websocket::tunnel(websocket::accept(io).await);
                    forward::serve_spdy(io, pod, runtime, (idle, creation)).await;
                }
                Wire::Channels(_, codec) => {
                    let ports = r
                        .port
                        .iter()
                        .filter_map(|p| u16::try_from(*p).ok())
                        .collect();
                    let socket = websocket::accept(io).await;
                    forward::serve_channels(socket, codec, pod, ports, runtime, idle).await;
                }
            };
        }
    };
    match wire {
        Wire::Spdy(protocol) => {
            remote::serve_spdy(io, protocol, job, runtime.as_ref(), (idle, creation)).await;
        }
        Wire::Channels(protocol, codec) => {
            let socket = websocket::accept(io).await;
            remote::serve_channels(socket, protocol, codec, job, runtime.as_ref(), idle).await;
        }
        // Only ports are tunnelled, and nothing else is agreed on.
        Wire::Tunnel => {}
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("base", &self.shared.base)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Urls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Urls").field(&self.0.base).finish()
    }
}
