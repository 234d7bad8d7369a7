//! The sockets: gRPC and ttrpc on unix sockets, one layer around every call, and the drain.

mod grpc;
mod layer;
mod ttrpc;

use std::time::Duration;

use anyhow::{Context as _, Result};
use corten_core::kinds;
use corten_registry::Plugins;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tracing::{info, warn};

use crate::config::Socket;
use layer::InFlight;

pub(crate) use grpc::client;

/// The running servers.
pub(crate) struct Servers {
    stop: watch::Sender<bool>,
    grpc: JoinHandle<()>,
    ttrpc: ::ttrpc::r#async::Server,
    in_flight: InFlight,
    sockets: Vec<String>,
}

impl Servers {
    /// Binds both sockets and serves what the plugins offer.
    pub(crate) async fn start(plugins: &Plugins, grpc: &Socket, ttrpc: &Socket) -> Result<Self> {
        let (stop, stopped) = watch::channel(false);
        let in_flight = InFlight::default();
        let services: Vec<_> =
            plugins.all::<kinds::Grpc>().into_iter().map(|(_, service)| service).collect();
        let grpc_task = grpc::serve(grpc, &services, in_flight.clone(), stopped)
            .with_context(|| format!("serve gRPC on {}", grpc.address))?;
        let services = plugins.all::<kinds::Ttrpc>().into_iter().map(|(_, service)| service);
        let ttrpc_server = ttrpc::serve(ttrpc, services)
            .await
            .with_context(|| format!("serve ttrpc on {}", ttrpc.address))?;
        info!(address = %grpc.address, "serving...");
        info!(address = %ttrpc.address, "serving...");
        Ok(Self {
            stop,
            grpc: grpc_task,
            ttrpc: ttrpc_server,
            in_flight,
            sockets: vec![grpc.address.clone(), ttrpc.address.clone()],
        })
    }

    /// Takes no new calls, lets the finite ones end, and closes the rest after `patience`.
    pub(crate) async fn drain(mut self, patience: Duration) {
        let _ = self.stop.send(true);
        self.ttrpc.stop_listen().await;
        if tokio::time::timeout(patience, self.in_flight.idle()).await.is_err() {
            warn!("some calls did not end in time");
        }
        self.grpc.abort();
        self.ttrpc.disconnect().await;
        for path in &self.sockets {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl std::fmt::Debug for Servers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Servers").field("sockets", &self.sockets).finish_non_exhaustive()
    }
}

/// The channel type of our own clients (demo, publish).
pub(crate) type ClientChannel = Channel;
