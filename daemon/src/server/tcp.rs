//! The gRPC services over TCP: off unless an address is configured, TLS when a certificate is.
//!
//! Whoever reaches this socket is root on this host. Plain TCP and TLS without a client CA are what containerd
//! offers too, so they work, but not silently.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use corten_core::service::{GrpcService, Limits};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Identity, ServerTlsConfig};
use tracing::warn;

use super::layer::CallLayer;
use super::{grpc, web};

/// `plugins."io.containerd.server.v1.grpc-tcp"`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct TcpSocket {
    /// `host:port`; empty = off.
    pub(crate) address: String,
    pub(crate) tls_ca: String,
    pub(crate) tls_cert: String,
    pub(crate) tls_key: String,
    pub(crate) tls_common_name: String,
    /// Bytes; 0 = 16 MiB.
    pub(crate) max_recv_message_size: usize,
    /// Bytes; 0 = 16 MiB.
    pub(crate) max_send_message_size: usize,
}

impl Default for TcpSocket {
    fn default() -> Self {
        Self {
            address: String::new(),
            tls_ca: String::new(),
            tls_cert: String::new(),
            tls_key: String::new(),
            tls_common_name: String::new(),
            max_recv_message_size: 16 << 20,
            max_send_message_size: 16 << 20,
        }
    }
}

/// Binds the socket and serves `services` until `stopped`.
pub(super) async fn serve(
    socket: &TcpSocket,
    services: &[Arc<dyn GrpcService>],
    layer: CallLayer,
    stopped: watch::Receiver<bool>,
) -> Result<JoinHandle<()>> {
    let tls = tls(socket)?;
    let listener = web::bind_tcp(&socket.address).await?;
    if let Some(text) = exposure(socket, &listener) {
        warn!(address = %socket.address, "{text}");
    }
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let limits = Limits::of(socket.max_recv_message_size, socket.max_send_message_size);
    let reachable: Vec<_> = services
        .iter()
        .filter(|s| !s.local_only())
        .cloned()
        .collect();
    grpc::serve_on(incoming, tls, limits, &reachable, layer, stopped)
}

/// The TLS of the configuration; none when no certificate is named.
fn tls(socket: &TcpSocket) -> Result<Option<ServerTlsConfig>> {
    let s = socket;
    if s.tls_cert.is_empty() {
        if !s.tls_common_name.is_empty() {
            bail!(
                "tls_common_name names a certificate in Windows' store; set tls_cert and tls_key here"
            );
        }
        if !s.tls_key.is_empty() || !s.tls_ca.is_empty() {
            bail!("tls_key or tls_ca is set but tls_cert is not: refusing to serve without TLS");
        }
        return Ok(None);
    }
    if s.tls_key.is_empty() {
        bail!("tls_cert is set but tls_key is not");
    }
    let read = |path: &str| {
        std::fs::read(Path::new(path)).with_context(|| format!("read the TLS file {path}"))
    };
    let identity = Identity::from_pem(read(&s.tls_cert)?, read(&s.tls_key)?);
    let config = ServerTlsConfig::new().identity(identity);
    Ok(Some(match s.tls_ca.as_str() {
        "" => config,
        ca => config.client_ca_root(Certificate::from_pem(read(ca)?)),
    }))
}

/// What to warn of, if anything.
fn exposure(socket: &TcpSocket, listener: &TcpListener) -> Option<&'static str> {
    if listener.local_addr().is_ok_and(|a| a.ip().is_loopback()) && socket.tls_cert.is_empty() {
        return Some("gRPC over TCP without TLS: every user of this host can be root through it");
    }
    match (socket.tls_cert.is_empty(), socket.tls_ca.is_empty()) {
        (true, _) => Some("gRPC over TCP without TLS: whoever reaches it is root on this host"),
        (false, true) => Some(
            "gRPC over TCP without tls_ca: clients are not authenticated and are root on this host",
        ),
        (false, false) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(cert: &str, key: &str, ca: &str) -> TcpSocket {
        TcpSocket {
            tls_cert: cert.into(),
            tls_key: key.into(),
            tls_ca: ca.into(),
            ..TcpSocket::default()
        }
    }

    #[test]
    fn half_a_tls_configuration_never_means_plain_tcp() {
        assert!(tls(&TcpSocket::default()).unwrap().is_none());
        for (cert, key, ca, says) in [
            ("", "k", "", "tls_cert is not"),
            ("", "", "ca", "tls_cert is not"),
            ("c", "", "", "tls_key is not"),
            (
                "/no/such/cert",
                "/no/such/key",
                "",
                "read the TLS file /no/such/cert",
            ),
        ] {
            let e = tls(&socket(cert, key, ca)).unwrap_err().to_string();
            assert!(e.contains(says), "{e}");
        }
        let windows = TcpSocket {
            tls_common_name: "cn".into(),
            ..TcpSocket::default()
        };
        assert!(tls(&windows).is_err());
    }

    #[tokio::test]
    async fn what_exposes_the_host_is_said() {
        let loopback = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let any = TcpListener::bind("0.0.0.0:0").await.unwrap();
        assert!(
            exposure(&socket("", "", ""), &loopback)
                .unwrap()
                .contains("every user")
        );
        assert!(
            exposure(&socket("", "", ""), &any)
                .unwrap()
                .contains("whoever")
        );
        assert!(
            exposure(&socket("c", "k", ""), &any)
                .unwrap()
                .contains("tls_ca")
        );
        assert!(exposure(&socket("c", "k", "ca"), &any).is_none());
    }

    #[tokio::test]
    async fn a_certificate_that_is_none_is_refused_before_serving() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
        std::fs::write(path("c"), "not pem").unwrap();
        std::fs::write(path("k"), "not pem").unwrap();
        let s = TcpSocket {
            address: "127.0.0.1:0".into(),
            ..socket(&path("c"), &path("k"), "")
        };
        let (_stop, stopped) = watch::channel(false);
        let layer = CallLayer::new(Default::default(), Default::default());
        let e = serve(&s, &[], layer, stopped).await.unwrap_err();
        assert!(format!("{e:#}").contains("TLS"), "{e:#}");
    }
}
