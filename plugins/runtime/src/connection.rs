//! One ttrpc connection to a shim: dialled with a deadline, watched for its end, closed on purpose or not.
//!
//! The ttrpc crate tells only the pending calls that a connection is gone. Here the socket itself is wrapped, so that
//! its end is known at once even when nothing is pending: that is how a dead shim is noticed.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use corten_core::scope::NAMESPACE_TTRPC;
use corten_core::{Error, Kind, Namespace, Result, spans, status};
use corten_protos::containerd::runtime::bootstrap::v1::BootstrapResult;
use corten_protos::ttrpc::runtime::{Client, Context};
use corten_protos::ttrpc::{PodClient, SandboxClient, TASK_V2, TASK_V3, TaskClient};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::{oneshot, watch};
use ttrpc::r#async::transport::Socket;

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
    client: Client,
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
        match bootstrap.protocol.to_ascii_lowercase().as_str() {
            "ttrpc" => {}
            "grpc" => return Err(Error::not_implemented("shims that speak grpc")),
            other => {
                return Err(Error::new(
                    Kind::Unknown,
                    format!("unexpected protocol: {other:?}"),
                ));
            }
        }
        let failed = |e: Error| e.context("failed to create TTRPC connection");
        match tokio::time::timeout(patience, connect(&bootstrap.address)).await {
            Ok(Ok(stream)) => Ok(Self::over(namespace, stream)),
            Ok(Err(e)) => Err(failed(e)),
            Err(_) => Err(failed(CallError::TimedOut.into())),
        }
    }

    /// A connection over a connected socket.
    pub(crate) fn over(namespace: &Namespace, stream: UnixStream) -> Self {
        let (ended, ended_rx) = watch::channel(false);
        let (stop, stop_rx) = oneshot::channel();
        let client = Client::new(Socket::new(Watched {
            stream,
            ended,
            stop: stop_rx,
        }));
        Self {
            client,
            namespace: namespace.clone(),
            ended: ended_rx,
            stop: Mutex::new(Some(stop)),
            turn: Mutex::new(()),
        }
    }

    /// The task API of this version.
    pub(crate) fn task(&self, version: i32) -> TaskClient {
        let service = if version >= 3 { TASK_V3 } else { TASK_V2 };
        TaskClient::with_service(self.client.clone(), service)
    }

    /// The sandbox API.
    pub(crate) fn sandbox(&self) -> SandboxClient {
        SandboxClient::new(self.client.clone())
    }

    /// Our own shim's logs and outputs.
    pub(crate) fn pod(&self) -> PodClient {
        PodClient::new(self.client.clone())
    }

    /// Metadata of one call, and its deadline for the shim's own use.
    fn context(&self, patience: Option<Duration>) -> Context {
        let mut cx = Context::default();
        cx.add(
            NAMESPACE_TTRPC.to_owned(),
            self.namespace.as_str().to_owned(),
        );
        for (name, value) in spans::current().map_or_else(Vec::new, |s| s.headers()) {
            cx.add(name, value);
        }
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

fn connect_abstract(name: &str) -> io::Result<UnixStream> {
    use std::os::linux::net::SocketAddrExt;
    let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
    let stream = std::os::unix::net::UnixStream::connect_addr(&address)?;
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

// === impl Watched ===

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
                unreachable!("a call is no span of its own")
            }
            fn trace_id(&self) -> String {
                "1".into()
            }
            fn headers(&self) -> Vec<(String, String)> {
                vec![("traceparent".into(), "00-1-2-01".into())]
            }
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
        assert_eq!(dial("unix:///x", "grpc").await.kind(), Kind::NotImplemented);
        assert_eq!(dial("unix:///x", "").await.kind(), Kind::Unknown);
    }
}
