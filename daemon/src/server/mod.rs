//! The sockets: gRPC and ttrpc on unix sockets, one layer around every call, and the drain. On request also gRPC over
//! TCP, Prometheus' metrics and the debug socket.

mod authority;
mod calls;
mod debug;
mod grpc;
mod layer;
mod metrics;
mod process;
mod tcp;
mod ttrpc;
mod web;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use corten_core::kinds;
use corten_core::spans::Tracer;
use corten_registry::Plugins;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tracing::{info, warn};

use crate::config::{
    Config, ConfigError, DEBUG_TABLE, GRPC_METRICS_TABLE, GRPC_TABLE, GRPC_TCP_TABLE, GrpcMetrics,
    METRICS_TABLE, Metrics, Socket, TTRPC_TABLE,
};
use calls::Calls;
use layer::{CallLayer, InFlight};
use web::Listener;

pub(crate) use grpc::client;
pub(crate) use tcp::TcpSocket;

/// What the configuration says of the listeners.
#[derive(Debug)]
pub(crate) struct Listeners {
    pub(crate) grpc: Socket,
    pub(crate) ttrpc: Socket,
    tcp: TcpSocket,
    debug: Socket,
    metrics: Metrics,
    grpc_metrics: GrpcMetrics,
    log_trace_id: bool,
    state: std::path::PathBuf,
}

impl Listeners {
    /// Reads their tables.
    pub(crate) fn of(config: &Config) -> Result<Self, ConfigError> {
        Ok(Self {
            grpc: config.grpc()?,
            ttrpc: config.ttrpc()?,
            tcp: config.table(GRPC_TCP_TABLE)?,
            debug: config.table(DEBUG_TABLE)?,
            metrics: config.table(METRICS_TABLE)?,
            grpc_metrics: config.table(GRPC_METRICS_TABLE)?,
            log_trace_id: config.debug.log_trace_id,
            state: config.state.clone(),
        })
    }

    /// Whether the table of that name is a listener's.
    pub(crate) fn has(uri: &str) -> bool {
        uri.starts_with("io.containerd.server.v1.") || uri == GRPC_METRICS_TABLE
    }

    /// A warning for each key in their tables that nobody reads.
    pub(crate) fn unknown_keys(config: &Config) -> Vec<String> {
        let mut all = config.unknown::<TcpSocket>(GRPC_TCP_TABLE);
        for table in [GRPC_TABLE, TTRPC_TABLE, DEBUG_TABLE] {
            all.extend(config.unknown::<Socket>(table));
        }
        all.extend(config.unknown::<Metrics>(METRICS_TABLE));
        all.extend(config.unknown::<GrpcMetrics>(GRPC_METRICS_TABLE));
        all
    }
}

/// The running servers.
pub(crate) struct Servers {
    stop: watch::Sender<bool>,
    /// gRPC on its sockets, and the operator's endpoints.
    tasks: Vec<JoinHandle<()>>,
    ttrpc: ::ttrpc::r#async::Server,
    in_flight: InFlight,
    tracer: Option<Arc<dyn Tracer>>,
    sockets: Vec<String>,
}

impl Servers {
    /// Binds the sockets and serves what the plugins offer.
    pub(crate) async fn start(
        plugins: &Plugins,
        listeners: &Listeners,
        begun: Instant,
    ) -> Result<Self> {
        let l = listeners;
        let (stop, stopped) = watch::channel(false);
        let in_flight = InFlight::default();
        let calls = if l.metrics.address.is_empty() {
            Calls::default()
        } else {
            Calls::new(l.grpc_metrics.grpc_histogram)
        };
        let tracer = plugins.all::<kinds::Tracing>().pop().map(|(_, t)| t);
        let layer = CallLayer::new(in_flight.clone(), calls.clone())
            .traced_by(tracer.clone(), l.log_trace_id);
        let services: Vec<_> = plugins
            .all::<kinds::Grpc>()
            .into_iter()
            .map(|(_, service)| service)
            .collect();
        let mut tasks = vec![];
        let ttrpc_services = plugins.all::<kinds::Ttrpc>().into_iter().map(|(_, s)| s);
        let ttrpc = ttrpc::serve(&l.ttrpc, ttrpc_services)
            .await
            .with_context(|| format!("serve ttrpc on {}", l.ttrpc.address))?;
        info!(address = %l.ttrpc.address, "serving...");
        let mut sockets = vec![l.grpc.address.clone(), l.ttrpc.address.clone()];
        if !l.tcp.address.is_empty() {
            let served = tcp::serve(&l.tcp, &services, layer.clone(), stopped.clone()).await;
            tasks.push(served.with_context(|| format!("serve gRPC on {}", l.tcp.address))?);
            info!(address = %l.tcp.address, "serving...");
        }
        if !l.metrics.address.is_empty() {
            let listener = web::bind_tcp(&l.metrics.address)
                .await
                .context("serve metrics")?;
            let mut sources: Vec<_> = plugins.all::<kinds::TaskMonitor>();
            sources.extend(plugins.all::<kinds::Metrics>());
            let sources = sources.into_iter().map(|(_, source)| source).collect();
            let handler = metrics::handler(calls, sources);
            tasks.push(endpoint(Listener::Tcp(listener), handler));
            info!(address = %l.metrics.address, "serving metrics...");
        }
        if !l.debug.address.is_empty() {
            let facts = debug::Facts {
                plugins: plugins.records().to_vec(),
                state: l.state.clone(),
                in_flight: in_flight.clone(),
                begun,
            };
            let listener = debug_listener(&l.debug).await.context("serve debug")?;
            if matches!(listener, Listener::Unix(_)) {
                sockets.push(l.debug.address.clone());
            }
            tasks.push(endpoint(listener, debug::handler(facts)));
            info!(address = %l.debug.address, "serving debug...");
        }
        // The last one: who gets through to it finds everything.
        let served = grpc::serve(&l.grpc, &services, layer, stopped);
        tasks.push(served.with_context(|| format!("serve gRPC on {}", l.grpc.address))?);
        info!(address = %l.grpc.address, "serving...");
        Ok(Self {
            stop,
            tasks,
            ttrpc,
            in_flight,
            tracer,
            sockets,
        })
    }

    /// Takes no new calls, lets the finite ones end, and closes the rest after `patience`.
    pub(crate) async fn drain(mut self, patience: Duration) {
        let _ = self.stop.send(true);
        self.ttrpc.stop_listen().await;
        if tokio::time::timeout(patience, self.in_flight.idle())
            .await
            .is_err()
        {
            warn!("some calls did not end in time");
        }
        for task in &self.tasks {
            task.abort();
        }
        self.ttrpc.disconnect().await;
        if let Some(tracer) = self.tracer {
            let _ = tokio::task::spawn_blocking(move || tracer.shutdown()).await;
        }
        for path in &self.sockets {
            let _ = std::fs::remove_file(path.strip_prefix("unix://").unwrap_or(path));
        }
    }
}

impl std::fmt::Debug for Servers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Servers")
            .field("sockets", &self.sockets)
            .finish_non_exhaustive()
    }
}

/// Serves an operator's endpoint; the task is one of the `Servers`.
fn endpoint(listener: Listener, handler: web::Handler) -> JoinHandle<()> {
    tokio::spawn(web::serve(listener, handler))
}

/// The debug address is a path, or `host:port` as containerd allows too.
async fn debug_listener(socket: &Socket) -> Result<Listener> {
    let path = socket
        .address
        .strip_prefix("unix://")
        .unwrap_or(&socket.address);
    if Path::new(path).is_absolute() {
        Ok(Listener::Unix(grpc::bind(socket)?))
    } else {
        Ok(Listener::Tcp(web::bind_tcp(path).await?))
    }
}

/// The channel type of our own clients (demo, publish).
pub(crate) type ClientChannel = Channel;
