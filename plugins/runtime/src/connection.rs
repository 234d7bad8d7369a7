//! One connection to a shim: dialled with a deadline, watched for its end, closed on purpose or not.
//!
//! The ttrpc crate tells only the pending calls that a connection is gone. Here the socket itself is wrapped, so that
//! its end is known at once even when nothing is pending: that is how a dead shim is noticed. A shim may also speak
//! gRPC; the same socket is below it then, and it is never made a second time behind our back.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use corten_core::scope::NAMESPACE_TTRPC;
use corten_core::{Error, Kind, Namespace, Result, status};
use corten_protos::containerd::runtime::bootstrap::v1::BootstrapResult;
use corten_protos::ttrpc::runtime::{Client, Context};
use corten_protos::ttrpc::{PodClient, SandboxClient, TASK_V2, TASK_V3, TaskClient};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::{oneshot, watch};
use tonic::transport::{Channel, Endpoint, Uri};
use ttrpc::r#async::transport::Socket;

use crate::bootstrap::NEWEST;
use crate::client::{Pods, Sandboxes, Tasks};

/// By how much a deadline told to the shim is later than the one kept here.
const MARGIN: Duration = Duration::from_secs(1);

/// How a call to a shim fails.
#[derive(Debug)]
pub(crate) enum CallError {
    /// The connection is gone.
    Lost,
    /// No answer within the time given.
    TimedOut,
    /// The shim said no.
    Refused(Error),
}

/// An open connection. Dropping it closes it.
pub(crate) struct Connection {
    wire: Wire,
    namespace: Namespace,
    ended: watch::Receiver<bool>,
    stop: Mutex<Option<oneshot::Sender<()>>>,
    /// Held while a call is numbered and queued.
    turn: Mutex<()>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Connection(ended: {})", *self.ended.borrow())
    }
}

/// What is spoken on the socket.
enum Wire {
    Ttrpc(Client),
    Grpc(Channel),
}

/// The socket; reports its end and can be stopped from outside.
struct Watched {
    stream: UnixStream,
    ended: watch::Sender<bool>,
    stop: oneshot::Receiver<()>,
}

// === impl CallError ===

impl From<CallError> for Error {
    fn from(e: CallError) -> Self {
        match e {
            // containerd: ttrpc.ErrClosed has no class.
            CallError::Lost => Self::new(Kind::Unknown, "ttrpc: closed"),
            CallError::TimedOut => {
                Self::new(Kind::DeadlineExceeded, Kind::DeadlineExceeded.words())
            }
            CallError::Refused(e) => e,
        }
    }
}

impl CallError {
    /// Whether the shim answered with an error of this class.
    pub(crate) fn is(&self, kind: Kind) -> bool {
        matches!(self, Self::Refused(e) if e.kind() == kind)
    }

    fn of(e: ttrpc::Error) -> Self {
        match e {
            ttrpc::Error::RpcStatus(s) => {
                let kind = match status::kind_of_number(s.code.value()) {
                    // Go's server says Unimplemented here; Rust's has no class of its own for it.
                    Kind::InvalidArgument if s.message.ends_with("service does not exist") => {
                        Kind::NotImplemented
                    }
                    kind => kind,
                };
                Self::Refused(Error::new(kind, s.message))
            }
            ttrpc::Error::Others(text) => Self::Refused(Error::new(Kind::Unknown, text)),
            _ => Self::Lost,
        }
    }
}

// === impl Connection ===

impl Connection {
    /// Connects to what `start` answered.
    pub(crate) async fn dial(
        namespace: &Namespace,
        bootstrap: &BootstrapResult,
        patience: Duration,
    ) -> Result<Self> {
        let grpc = match bootstrap.protocol.to_ascii_lowercase().as_str() {
            "ttrpc" => false,
            "grpc" => true,
            other => {
                return Err(Error::new(
                    Kind::Unknown,
                    format!("unexpected protocol: {other:?}"),
                ));
            }
        };
        let version = bootstrap.version;
        if grpc && version != NEWEST {
            let text =
                format!("containerd client supports only v3 GRPC task service (got {version})");
            return Err(Error::new(Kind::Unknown, text));
        }
        let dialled = async {
            if grpc {
                let stream = connect_path(&bootstrap.address).await?;
                Box::pin(Self::over_grpc(namespace, stream)).await
            } else {
                Ok(Self::over(namespace, connect(&bootstrap.address).await?))
            }
        };
        let dialled = match tokio::time::timeout(patience, dialled).await {
            Ok(dialled) => dialled,
            Err(_) => Err(CallError::TimedOut.into()),
        };
        let protocol = bootstrap.protocol.to_ascii_uppercase();
        dialled.map_err(|e| e.context(format!("failed to create {protocol} connection")))
    }

    /// A ttrpc connection over a connected socket.
    pub(crate) fn over(namespace: &Namespace, stream: UnixStream) -> Self {
        let (watched, ended, stop) = Watched::new(stream);
        let client = Client::new(Socket::new(watched));
        Self::new(namespace, Wire::Ttrpc(client), ended, stop)
    }

    /// A gRPC connection over a connected socket.
    async fn over_grpc(namespace: &Namespace, stream: UnixStream) -> Result<Self> {
        let (watched, ended, stop) = Watched::new(stream);
        let only = Mutex::new(Some(watched));
        let channel = Endpoint::from_static("http://localhost")
            .connect_with_connector(tower::service_fn(move |_: Uri| {
                // A shim whose connection broke is dead: its channel must not come back with another one.
                let stream = only.lock().take();
                let stream = stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected));
                async { stream.map(TokioIo::new) }
            }))
            .await
            .map_err(|e| Error::new(Kind::Unavailable, format!("greet the shim: {e}")))?;
        Ok(Self::new(namespace, Wire::Grpc(channel), ended, stop))
    }

    fn new(
        namespace: &Namespace,
        wire: Wire,
        ended: watch::Receiver<bool>,
        stop: oneshot::Sender<()>,
    ) -> Self {
        Self {
            wire,
            namespace: namespace.clone(),
            ended,
            stop: Mutex::new(Some(stop)),
            turn: Mutex::new(()),
        }
    }

    /// The task API of this version. There is but one in gRPC.
    pub(crate) fn task(&self, version: i32) -> Tasks {
        let service = if version >= NEWEST { TASK_V3 } else { TASK_V2 };
        match &self.wire {
            Wire::Ttrpc(client) => Tasks::Ttrpc(TaskClient::with_service(client.clone(), service)),
            Wire::Grpc(channel) => Tasks::over(channel.clone()),
        }
    }

    /// Whether an older task API may be tried.
    pub(crate) fn may_be_older(&self) -> bool {
        matches!(self.wire, Wire::Ttrpc(_))
    }

    /// The sandbox API.
    pub(crate) fn sandbox(&self) -> Sandboxes {
        match &self.wire {
            Wire::Ttrpc(client) => Sandboxes::Ttrpc(SandboxClient::new(client.clone())),
            Wire::Grpc(channel) => Sandboxes::over(channel.clone()),
        }
    }

    /// Our own shim's logs and outputs.
    pub(crate) fn pod(&self) -> Pods {
        match &self.wire {
            Wire::Ttrpc(client) => Pods::Ttrpc(PodClient::new(client.clone())),
            Wire::Grpc(_) => Pods::None,
        }
    }

    /// Metadata of one call, and its deadline for the shim's own use.
    fn context(&self, patience: Option<Duration>) -> Context {
        let mut cx = Context::default();
        cx.add(
            NAMESPACE_TTRPC.to_owned(),
            self.namespace.as_str().to_owned(),
        );
        if let Some(p) = patience {
            // Later than our own, which alone tells a time-out from other errors.
            cx.timeout_nano = i64::try_from((p + MARGIN).as_nanos()).unwrap_or(i64::MAX);
        }
        cx
    }

    /// Makes one call. Cancel-safe: a dropped call is forgotten, the shim carries on with it.
    pub(crate) async fn call<T, F>(
        &self,
        patience: Option<Duration>,
        call: impl FnOnce(Context) -> F,
    ) -> Result<T, CallError>
    where
        F: Future<Output = ttrpc::Result<T>>,
    {
        if *self.ended.borrow() {
            return Err(CallError::Lost);
        }
        // The crate numbers a call and queues it in its first poll. Two calls that do so at once may be
        // queued in the wrong order, which Go's server refuses ("StreamID cannot be re-used").
        let mut call = pin!(tokio::task::unconstrained(call(self.context(patience))));
        let answer = async {
            let first = poll_fn(|cx| {
                let _turn = self.turn.lock();
                Poll::Ready(call.as_mut().poll(cx))
            });
            if let Poll::Ready(answer) = first.await {
                return answer.map_err(CallError::of);
            }
            let mut ended = self.ended.clone();
            tokio::select! {
                biased;
                answer = call.as_mut() => answer.map_err(CallError::of),
                // A call that was queued just when the connection went away is never answered by the crate.
                _ = ended.wait_for(|e| *e) => Err(CallError::Lost),
            }
        };
        match patience {
            None => answer.await,
            Some(p) => tokio::time::timeout(p, answer)
                .await
                .unwrap_or(Err(CallError::TimedOut)),
        }
    }

    /// Waits for the end of the connection, whoever ended it.
    pub(crate) async fn ended(&self) {
        let _ = self.ended.clone().wait_for(|e| *e).await;
    }

    /// A signal of the end for someone who does not hold the connection.
    pub(crate) fn end_signal(&self) -> watch::Receiver<bool> {
        self.ended.clone()
    }

    /// Ends the connection; pending calls fail with [`CallError::Lost`].
    pub(crate) fn close(&self) {
        self.stop.lock().take();
    }
}

/// `unix:///path`; an address without scheme is an abstract socket (pkg/shim/util_unix.go).
async fn connect(address: &str) -> Result<UnixStream> {
    let stream = match address.split_once("://") {
        Some(("unix", path)) => UnixStream::connect(path).await,
        Some((scheme, _)) => {
            return Err(Error::not_implemented(format!(
                "unsupported protocol: {scheme}"
            )));
        }
        None => connect_abstract(address),
    };
    stream.map_err(|e| Error::from(e).context(format!("dial {address}")))
}

/// What shims that speak gRPC answer: a path, or an abstract name with `@` (core/runtime/v2/shim.go).
async fn connect_path(address: &str) -> Result<UnixStream> {
    let path = address.strip_prefix("unix://").unwrap_or(address);
    let stream = match path.strip_prefix('@') {
        Some(name) => connect_abstract(name),
        None => UnixStream::connect(path).await,
    };
    stream.map_err(|e| Error::from(e).context(format!("dial {address}")))
}

fn connect_abstract(name: &str) -> io::Result<UnixStream> {
    use std::os::linux::net::SocketAddrExt;
    let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
    let stream = std::os::unix::net::UnixStream::connect_addr(&address)?;
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

// === impl Watched ===

impl Watched {
    /// The socket, the signal of its end, and what ends it when it is dropped.
    fn new(stream: UnixStream) -> (Self, watch::Receiver<bool>, oneshot::Sender<()>) {
        let (ended, ended_rx) = watch::channel(false);
        let (stop_tx, stop) = oneshot::channel();
        let watched = Self {
            stream,
            ended,
            stop,
        };
        (watched, ended_rx, stop_tx)
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if Pin::new(&mut self.stop).poll(cx).is_ready() {
            // End of file makes the crate tear its side down.
            let _ = self.ended.send(true);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        match &read {
            Poll::Ready(Ok(())) if buf.filled().len() > before || buf.remaining() == 0 => {}
            Poll::Ready(_) => {
                let _ = self.ended.send(true);
            }
            Poll::Pending => {}
        }
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let _ = self.ended.send(true);
    }
}

#[cfg(test)]
mod tests {
    use corten_core::spans;

    use super::*;

    #[tokio::test]
    async fn the_end_is_noticed_without_a_pending_call_and_close_ends_pending_ones() {
        let ns = Namespace::new("ns").unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let c = Connection::over(&ns, ours);
        drop(theirs);
        tokio::time::timeout(Duration::from_secs(5), c.ended())
            .await
            .unwrap();

        let (ours, _theirs) = UnixStream::pair().unwrap();
        let c = std::sync::Arc::new(Connection::over(&ns, ours));
        let pending = tokio::spawn({
            let c = c.clone();
            async move {
                let request = corten_protos::containerd::task::v3::ConnectRequest::default();
                c.call(None, |cx| async { c.task(3).connect(cx, &request).await })
                    .await
                    .map(|_| ())
            }
        });
        tokio::task::yield_now().await;
        c.close();
        let e = tokio::time::timeout(Duration::from_secs(5), pending)
            .await
            .unwrap()
            .unwrap();
        assert!(matches!(e, Err(CallError::Lost)), "{e:?}");
    }

    #[tokio::test]
    async fn a_shim_is_told_of_the_trace() {
        use tokio::io::AsyncReadExt as _;
        struct Here;
        impl spans::Point for Here {
            fn child(&self, _: &str) -> Box<dyn spans::Span> {
                unreachable!("a call is no part of this process")
            }
            fn call(&self, name: &str) -> Box<dyn spans::Span> {
                assert_eq!(name, "containerd.task.v3.Task/Connect");
                Box::new(Here)
            }
            fn trace_id(&self) -> String {
                "1".into()
            }
            fn headers(&self) -> Vec<(String, String)> {
                vec![("traceparent".into(), "00-1-2-01".into())]
            }
        }
        impl spans::Span for Here {
            fn point(&self) -> std::sync::Arc<dyn spans::Point> {
                std::sync::Arc::new(Here)
            }
            fn end(self: Box<Self>, _: tonic::Code) {}
        }
        let ns = Namespace::new("ns").unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let c = Connection::over(&ns, ours);
        let request = corten_protos::containerd::task::v3::ConnectRequest::default();
        let call = c.call(None, |cx| async { c.task(3).connect(cx, &request).await });
        let call = spans::below(Some(std::sync::Arc::new(Here)), call);
        let mut seen = Vec::new();
        let read = async {
            while !seen.windows(9).any(|w| w == b"00-1-2-01") {
                assert_ne!(theirs.read_buf(&mut seen).await.unwrap(), 0);
            }
        };
        tokio::select! {
            _ = call => panic!("nobody answers"),
            () = read => {}
            () = tokio::time::sleep(Duration::from_secs(5)) => panic!("not told"),
        }
    }

    #[tokio::test]
    async fn dialling_fails_clearly() {
        let ns = Namespace::new("ns").unwrap();
        let dial = async |address: &str, protocol: &str| {
            let b = BootstrapResult {
                version: 3,
                address: address.into(),
                protocol: protocol.into(),
                ..Default::default()
            };
            Connection::dial(&ns, &b, Duration::from_secs(1))
                .await
                .unwrap_err()
        };
        assert_eq!(
            dial("unix:///no/such", "ttrpc").await.kind(),
            Kind::NotFound
        );
        assert_eq!(
            dial("vsock://1:2", "ttrpc").await.kind(),
            Kind::NotImplemented
        );
        assert_eq!(dial("/no/such", "grpc").await.kind(), Kind::NotFound);
        assert_eq!(dial("unix:///x", "").await.kind(), Kind::Unknown);
    }
}
