//! What the streaming server needs of the rest of the CRI plugin.

use async_trait::async_trait;
use corten_core::Result;
use corten_protos::runtime::v1::{AttachRequest, ExecRequest};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

/// Bytes from the client.
pub type Input = Box<dyn AsyncRead + Send + Unpin>;
/// Bytes to the client. Dropped: the client sees the end of the stream.
pub type Output = Box<dyn AsyncWrite + Send + Unpin>;
/// Both. `shutdown` ends the direction to the client alone.
pub type Duplex = Box<dyn ReadWrite>;

/// Both directions in one object.
pub trait ReadWrite: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> ReadWrite for T {}

/// Does the work behind the streams.
///
/// A future is dropped when its client goes away; what must go on is not in the future. All streams are dropped when
/// it ends, and what was written to them reaches the client before the status does.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// Runs a process in a container and gives its exit code. The end of `stdin` is the client's half close.
    async fn exec(&self, request: &ExecRequest, streams: Streams) -> Result<u32>;

    /// Joins a container's streams until it ends. Going away does not end the container; whether the end of `stdin`
    /// is passed on is the container's `stdin_once`.
    async fn attach(&self, request: &AttachRequest, streams: Streams) -> Result<()>;

    /// Joins `stream` and a port of the pod's loopback until both directions have ended.
    async fn port_forward(&self, sandbox: &str, port: u16, stream: Duplex) -> Result<()>;
}

/// The streams of an exec or attach; those that the request did not ask for are not there.
#[derive(Default)]
pub struct Streams {
    pub stdin: Option<Input>,
    pub stdout: Option<Output>,
    pub stderr: Option<Output>,
    pub resize: Resize,
}

/// The client's terminal. A storm of sizes is seen as its last.
#[derive(Debug, Default)]
pub struct Resize(Option<watch::Receiver<Option<Size>>>);

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Size {
    #[serde(rename = "Width", alias = "width")]
    pub width: u16,
    #[serde(rename = "Height", alias = "height")]
    pub height: u16,
}

impl Resize {
    pub(crate) fn new(sizes: watch::Receiver<Option<Size>>) -> Self {
        Self(Some(sizes))
    }

    /// The next size; none when there will be no more. Cancel-safe.
    pub async fn next(&mut self) -> Option<Size> {
        let sizes = self.0.as_mut()?;
        loop {
            sizes.changed().await.ok()?;
            let size = *sizes.borrow_and_update();
            if size.is_some() {
                return size;
            }
        }
    }
}

impl std::fmt::Debug for Streams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Streams")
            .field("stdin", &self.stdin.is_some())
            .field("stdout", &self.stdout.is_some())
            .field("stderr", &self.stderr.is_some())
            .finish_non_exhaustive()
    }
}
