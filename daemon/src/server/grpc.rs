//! The gRPC socket.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use corten_core::service::{GrpcService, Limits};
use futures::{Stream, TryStreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::service::RoutesBuilder;
use tonic::transport::server::Connected;
use tonic::transport::{Endpoint, Server, ServerTlsConfig, Uri};
use tracing::error;

use super::ClientChannel;
use super::authority::Lenient;
use super::layer::CallLayer;
use crate::config::{LocalSocket, Socket};

/// Window of one stream and of a connection: a blob read or an image import must not wait for window updates.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// Binds the socket and serves `services` until `stopped`.
pub(super) fn serve(
    socket: &Socket,
    services: &[Arc<dyn GrpcService>],
    layer: CallLayer,
    stopped: watch::Receiver<bool>,
) -> Result<JoinHandle<()>> {
    let connections = UnixListenerStream::new(bind(&socket.local())?);
    serve_on(
        connections.map_ok(Lenient::new),
        None,
        Limits::of(socket.max_recv_message_size, socket.max_send_message_size),
        services,
        layer,
        stopped,
    )
}

/// Serves `services` on a listener's connections until `stopped`.
pub(super) fn serve_on<I, IO>(
    incoming: I,
    tls: Option<ServerTlsConfig>,
    limits: Limits,
    services: &[Arc<dyn GrpcService>],
    layer: CallLayer,
    mut stopped: watch::Receiver<bool>,
) -> Result<JoinHandle<()>>
where
    I: Stream<Item = std::io::Result<IO>> + Send + 'static,
    IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    let mut routes = RoutesBuilder::default();
    for service in services {
        service.add_to(&mut routes, limits);
    }
    let mut server = Server::builder();
    if let Some(tls) = tls {
        server = server
            .tls_config(tls)
            .context("set up TLS from tls_cert and tls_key")?;
    }
    let server = server
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .layer(layer)
        .add_routes(routes.routes());
    // Owned by Servers, which aborts it at drain.
    let task = tokio::spawn(async move {
        let stop = async move {
            let _ = stopped.wait_for(|s| *s).await;
        };
        if let Err(error) = server.serve_with_incoming_shutdown(incoming, stop).await {
            error!(%error, "the gRPC server ended");
        }
    });
    Ok(task)
}

/// A listening unix socket of mode 0660 with the configured owner. A stale socket file is replaced; a live one is
/// an error.
pub(super) fn bind(socket: &LocalSocket) -> Result<UnixListener> {
    let path = socket_path(socket)?;
    prepare(path)?;
    let listener = UnixListener::bind(path).with_context(|| format!("bind {}", path.display()))?;
    own(path, socket)?;
    Ok(listener)
}

/// The path of a socket address.
pub(super) fn socket_path(socket: &LocalSocket) -> Result<&Path> {
    let path = Path::new(
        socket
            .address
            .strip_prefix("unix://")
            .unwrap_or(&socket.address),
    );
    if !path.is_absolute() {
        bail!(
            "address {:?} is not the path of a unix socket",
            socket.address
        );
    }
    Ok(path)
}

/// Makes the folder and removes a socket that nobody serves.
pub(super) fn prepare(path: &Path) -> Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        bail!("another daemon serves {}", path.display());
    }
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("remove stale {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Mode 0660 and the configured owner.
pub(super) fn own(path: &Path, socket: &LocalSocket) -> Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))
        .and_then(|()| std::os::unix::fs::chown(path, Some(socket.uid), Some(socket.gid)))
        .with_context(|| format!("set mode and owner of {}", path.display()))
}

/// A client of the daemon at `address`, for our own sub-commands.
pub(crate) async fn client(address: &str) -> Result<ClientChannel> {
    let path = address
        .strip_prefix("unix://")
        .unwrap_or(address)
        .to_owned();
    let shown = path.clone();
    Endpoint::from_static("http://localhost")
        .connect_with_connector(tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move {
                let stream = UnixStream::connect(path).await?;
                Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
            }
        }))
        .await
        .with_context(|| format!("connect to {shown}"))
}
