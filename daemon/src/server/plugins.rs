//! The servers as plugins: what they are made from and what they need. They start when all plugins have.
//!
//! ```text
//! io.containerd.server.v1    grpc, grpc-tcp, ttrpc, metrics, debug    a listener each
//! io.containerd.metrics.v1   grpc-prometheus                          counts the calls of the gRPC listeners
//!                            grpc-otel                                gives them spans, if there is a tracer
//! io.containerd.ttrpc.v1     otelttrpc                                the same for calls of the ttrpc listener
//! io.containerd.http.v1      pprof                                    what the debug listener answers
//! ```
//! Ids, needs and config are containerd 2.4's. Without a plugin of the lower rows, the listeners do without.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use corten_core::kinds;
use corten_core::metrics::Source;
use corten_core::service::{TtrpcService, TtrpcServices};
use corten_registry::{InitError, Kind, Registration, skip};
use tracing::warn;

use super::calls::Calls;
use super::tcp::TcpSocket;
use super::{debug, web};
use crate::config::{GrpcMetrics, LocalSocket, Metrics, Socket};

/// The kind of the listeners.
#[derive(Debug)]
pub(super) struct Server;

impl Kind for Server {
    const URI: &'static str = "io.containerd.server.v1";
    type Interface = Listener;
}

/// A listener that is to be, with its configuration.
#[derive(Debug)]
pub(super) enum Listener {
    Grpc(Socket),
    GrpcTcp(TcpSocket),
    Ttrpc(LocalSocket),
    Metrics(Metrics),
    Debug(LocalSocket, Arc<Pages>),
}

/// The kind of what HTTP listeners answer.
#[derive(Debug)]
pub(super) struct Http;

impl Kind for Http {
    const URI: &'static str = "io.containerd.http.v1";
    type Interface = Pages;
}

/// Makes the answers, from what is known after the boot.
#[derive(Debug)]
pub(super) struct Pages(fn(debug::Facts) -> web::Handler);

/// The table of calls, once `grpc-prometheus` made it. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct CallTable(Arc<OnceLock<Calls>>);

/// Nothing to tell: the plugin is there for what the listeners do when they find it.
struct Marker;

// === impl CallTable ===

impl CallTable {
    /// The table; an empty one that counts nothing when there is none.
    pub(super) fn get(&self) -> Calls {
        self.0.get().cloned().unwrap_or_default()
    }
}

// === impl Pages ===

impl Pages {
    pub(super) fn handler(&self, facts: debug::Facts) -> web::Handler {
        (self.0)(facts)
    }
}

// === impl Calls ===

#[async_trait]
impl Source for Calls {
    async fn collect(&self) -> String {
        let mut out = String::new();
        self.encode(&mut out);
        out
    }
}

// === impl Marker ===

#[async_trait]
impl Source for Marker {
    async fn collect(&self) -> String {
        String::new()
    }
}

impl TtrpcService for Marker {
    fn services(&self) -> TtrpcServices {
        TtrpcServices::new()
    }
}

/// All of them. `counted`: somebody will read the count of calls.
pub(crate) fn registrations(table: &CallTable, counted: bool) -> Vec<Registration> {
    vec![
        pprof(),
        grpc_prometheus(table.clone(), counted),
        grpc_otel(),
        otelttrpc(),
        grpc(),
        grpc_tcp(),
        ttrpc(),
        metrics(),
        debug(),
    ]
}

/// Without an address, a listener is not wanted.
fn wanted(address: &str) -> Result<(), InitError> {
    match address {
        "" => Err(skip("no address")),
        _ => Ok(()),
    }
}

fn pprof() -> Registration {
    Registration::new::<Http>("pprof")
        .init_plain(|_| Box::pin(async { Ok(Arc::new(Pages(debug::handler))) }))
}

fn grpc_prometheus(table: CallTable, counted: bool) -> Registration {
    Registration::new::<kinds::Metrics>("grpc-prometheus")
        .requires::<kinds::Grpc>()
        .config::<GrpcMetrics>()
        .init(move |_, config: GrpcMetrics| {
            Box::pin(async move {
                let calls = match counted {
                    true => Calls::new(config.grpc_histogram),
                    false => Calls::default(),
                };
                let _ = table.0.set(calls.clone());
                Ok(Arc::new(calls) as Arc<dyn Source>)
            })
        })
}

fn grpc_otel() -> Registration {
    Registration::new::<kinds::Metrics>(GRPC_OTEL)
        .requires::<kinds::Grpc>()
        .init_plain(|_| Box::pin(async { Ok(Arc::new(Marker) as Arc<dyn Source>) }))
}

fn otelttrpc() -> Registration {
    Registration::new::<kinds::Ttrpc>(OTEL_TTRPC)
        .init_plain(|_| Box::pin(async { Ok(Arc::new(Marker) as Arc<dyn TtrpcService>) }))
}

/// With it, calls of the gRPC listeners have spans.
pub(super) const GRPC_OTEL: &str = "grpc-otel";
/// With it, calls of the ttrpc listener have spans.
pub(super) const OTEL_TTRPC: &str = "otelttrpc";

fn grpc() -> Registration {
    Registration::new::<Server>("grpc")
        .requires::<kinds::Grpc>()
        .requires::<kinds::Metrics>()
        .config::<Socket>()
        .init(|_, socket: Socket| {
            Box::pin(async move {
                if socket.address.is_empty() {
                    return Err("grpc address cannot be empty: invalid argument".into());
                }
                Ok(Arc::new(Listener::Grpc(socket)))
            })
        })
}

fn grpc_tcp() -> Registration {
    Registration::new::<Server>("grpc-tcp")
        .requires::<kinds::Grpc>()
        .requires::<kinds::Metrics>()
        .config::<TcpSocket>()
        .init(|_, socket: TcpSocket| {
            Box::pin(async move {
                wanted(&socket.address)?;
                Ok(Arc::new(Listener::GrpcTcp(socket)))
            })
        })
}

fn ttrpc() -> Registration {
    Registration::new::<Server>("ttrpc")
        .requires::<kinds::Ttrpc>()
        .requires::<kinds::Grpc>()
        .config::<LocalSocket>()
        .init(|cx, socket: LocalSocket| {
            Box::pin(async move {
                wanted(&socket.address)?;
                let (own, both) = (cx.all::<kinds::Ttrpc>()?, cx.all::<kinds::Grpc>()?);
                let own = own.into_values().map(|(s, _)| s.services());
                let both = both.into_values().map(|(s, _)| s.ttrpc());
                if own.chain(both).all(|s| s.is_empty()) {
                    return Err(skip("no ttrpc services configured"));
                }
                Ok(Arc::new(Listener::Ttrpc(socket)))
            })
        })
}

fn metrics() -> Registration {
    Registration::new::<Server>("metrics")
        .config::<Metrics>()
        .init(|_, config: Metrics| {
            Box::pin(async move {
                wanted(&config.address)?;
                Ok(Arc::new(Listener::Metrics(config)))
            })
        })
}

fn debug() -> Registration {
    Registration::new::<Server>("debug")
        .requires::<Http>()
        .config::<LocalSocket>()
        .init(|cx, socket: LocalSocket| {
            Box::pin(async move {
                wanted(&socket.address)?;
                let Ok(pages) = cx.by_id::<Http>("pprof") else {
                    warn!("there is an address for the debug server, but no pprof plugin");
                    return Err(skip("no pprof plugin"));
                };
                Ok(Arc::new(Listener::Debug(socket, pages)))
            })
        })
}
