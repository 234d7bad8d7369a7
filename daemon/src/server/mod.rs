//! The sockets: gRPC and ttrpc on unix sockets, one layer around every call, and the drain. On request also gRPC over
//! TCP, Prometheus' metrics and the debug socket.

mod authority;
mod calls;
mod debug;
mod grpc;
mod layer;
mod metrics;
mod plugins;
mod process;
mod tcp;
mod traced;
mod ttrpc;
mod web;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use corten_core::kinds;
use corten_core::service::GrpcService;
use corten_core::spans::Tracer;
use corten_registry::Plugins;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tracing::{info, warn};

use crate::config::LocalSocket;
use layer::{CallLayer, InFlight};
use plugins::{GRPC_OTEL, Listener, OTEL_TTRPC, Server};

pub(crate) use grpc::client;
pub(crate) use plugins::{CallTable, registrations};
pub(crate) use tcp::TcpSocket;

/// What the servers are told beside their plugins.
#[derive(Debug)]
pub(crate) struct Facts {
    /// The daemon's state folder.
    pub(crate) state: PathBuf,
    /// When the daemon began.
    pub(crate) begun: Instant,
    pub(crate) log_trace_id: bool,
    /// Where the calls are counted.
    pub(crate) table: CallTable,
}

/// The running servers.
pub(crate) struct Servers {
    stop: watch::Sender<bool>,
    /// gRPC on its sockets, and the operator's endpoints.
    tasks: Vec<JoinHandle<()>>,
    ttrpc: Option<::ttrpc::r#async::Server>,
    in_flight: InFlight,
    tracer: Option<Arc<dyn Tracer>>,
    sockets: Vec<String>,
}

/// What the listeners have in common while they start.
struct Start<'a> {
    plugins: &'a Plugins,
    facts: &'a Facts,
    layer: CallLayer,
    services: Vec<Arc<dyn GrpcService>>,
    stopped: watch::Receiver<bool>,
}

impl Servers {
    /// Opens the listeners that are plugins, and serves what the other plugins offer.
    pub(crate) async fn start(plugins: &Plugins, facts: &Facts) -> Result<Self> {
        let (stop, stopped) = watch::channel(false);
        let in_flight = InFlight::default();
        let tracer = plugins.all::<kinds::Tracing>().pop().map(|(_, t)| t);
        let metrics = plugins.all::<kinds::Metrics>();
        let spans = tracer
            .clone()
            .filter(|_| metrics.iter().any(|(id, _)| id == GRPC_OTEL));
        let layer = CallLayer::new(in_flight.clone(), facts.table.get())
            .traced_by(spans, facts.log_trace_id);
        let services = plugins.all::<kinds::Grpc>().into_iter();
        let start = Start {
            plugins,
            facts,
            layer,
            services: services.map(|(_, service)| service).collect(),
            stopped,
        };
        let mut this = Self {
            stop,
            tasks: Vec::new(),
            ttrpc: None,
            in_flight,
            tracer,
            sockets: Vec::new(),
        };
        let mut listeners = plugins.all::<Server>();
        // gRPC's own socket is the last one: who gets through to it finds everything.
        listeners.sort_by_key(|(_, l)| matches!(**l, Listener::Grpc(_)));
        for (id, listener) in listeners {
            let opened = this.open(&start, &listener).await;
            opened.with_context(|| format!("start the server {id}"))?;
        }
        Ok(this)
    }

    async fn open(&mut self, start: &Start<'_>, listener: &Listener) -> Result<()> {
        let (layer, stopped) = (start.layer.clone(), start.stopped.clone());
        let address = match listener {
            Listener::Grpc(socket) => {
                let served = grpc::serve(socket, &start.services, layer, stopped);
                let address = &socket.address;
                self.tasks
                    .push(served.with_context(|| format!("serve gRPC on {address}"))?);
                self.sockets.push(address.clone());
                address
            }
            Listener::GrpcTcp(socket) => {
                let served = tcp::serve(socket, &start.services, layer, stopped).await;
                let address = &socket.address;
                self.tasks
                    .push(served.with_context(|| format!("serve gRPC on {address}"))?);
                address
            }
            Listener::Ttrpc(socket) => {
                let found = start.plugins.all::<kinds::Ttrpc>();
                let traced = found.iter().any(|(id, _)| id == OTEL_TTRPC);
                let tracer = self.tracer.as_ref().filter(|_| traced);
                let address = &socket.address;
                let services = found.iter().map(|(_, s)| s.services());
                let services = services.chain(start.services.iter().map(|s| s.ttrpc()));
                let served = ttrpc::serve(socket, services, tracer).await;
                self.ttrpc = Some(served.with_context(|| format!("serve ttrpc on {address}"))?);
                self.sockets.push(address.clone());
                address
            }
            Listener::Metrics(config) => {
                let listener = web::bind_tcp(&config.address)
                    .await
                    .context("serve metrics")?;
                let mut sources = start.plugins.all::<kinds::TaskMonitor>();
                sources.extend(start.plugins.all::<kinds::Metrics>());
                let sources = sources.into_iter().map(|(_, source)| source).collect();
                let handler = metrics::handler(sources);
                self.tasks
                    .push(endpoint(web::Listener::Tcp(listener), handler));
                &config.address
            }
            Listener::Debug(socket, pages) => {
                let listener = debug_listener(socket).await.context("serve debug")?;
                if matches!(listener, web::Listener::Unix(_)) {
                    self.sockets.push(socket.address.clone());
                }
                let handler = pages.handler(debug::Facts {
                    plugins: start.plugins.records().to_vec(),
                    state: start.facts.state.clone(),
                    in_flight: self.in_flight.clone(),
                    begun: start.facts.begun,
                });
                self.tasks.push(endpoint(listener, handler));
                &socket.address
            }
        };
        info!(%address, "serving...");
        Ok(())
    }

    /// Takes no new calls, lets the finite ones end, and closes the rest after `patience`.
    pub(crate) async fn drain(mut self, patience: Duration) {
        let _ = self.stop.send(true);
        if let Some(ttrpc) = &mut self.ttrpc {
            ttrpc.stop_listen().await;
        }
        if tokio::time::timeout(patience, self.in_flight.idle())
            .await
            .is_err()
        {
            warn!("some calls did not end in time");
        }
        for task in &self.tasks {
            task.abort();
        }
        if let Some(mut ttrpc) = self.ttrpc {
            ttrpc.disconnect().await;
        }
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
fn endpoint(listener: web::Listener, handler: web::Handler) -> JoinHandle<()> {
    tokio::spawn(web::serve(listener, handler))
}

/// The debug address is a path, or `host:port` as containerd allows too.
async fn debug_listener(socket: &LocalSocket) -> Result<web::Listener> {
    let path = socket
        .address
        .strip_prefix("unix://")
        .unwrap_or(&socket.address);
    if Path::new(path).is_absolute() {
        Ok(web::Listener::Unix(grpc::bind(socket)?))
    } else {
        Ok(web::Listener::Tcp(web::bind_tcp(path).await?))
    }
}

/// The channel type of our own clients (demo, publish).
pub(crate) type ClientChannel = Channel;
