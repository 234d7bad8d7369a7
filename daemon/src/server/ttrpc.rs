//! The ttrpc socket, where shims forward their events.

use std::sync::Arc;

use anyhow::Result;
use corten_core::service::TtrpcServices;
use corten_core::spans::Tracer;
use ttrpc::r#async::Server;

use super::grpc::{own, prepare, socket_path};
use super::traced::traced;
use crate::config::LocalSocket;

/// Binds the socket and serves `services`, with a span for each call if there is a tracer.
pub(super) async fn serve(
    socket: &LocalSocket,
    services: impl Iterator<Item = TtrpcServices>,
    tracer: Option<&Arc<dyn Tracer>>,
) -> Result<Server> {
    let path = socket_path(socket)?;
    prepare(path)?;
    let mut server = Server::new().bind(&format!("unix://{}", path.display()))?;
    own(path, socket)?;
    for services in services {
        server = server.register_service(match tracer {
            Some(tracer) => traced(services, tracer),
            None => services,
        });
    }
    server.start().await?;
    Ok(server)
}
