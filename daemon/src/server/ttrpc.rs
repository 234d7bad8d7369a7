//! The ttrpc socket, where shims forward their events.

use std::sync::Arc;

use anyhow::Result;
use corten_core::service::TtrpcService;
use ttrpc::r#async::Server;

use super::grpc::{own, prepare, socket_path};
use crate::config::Socket;

/// Binds the socket and serves `services`.
pub(super) async fn serve(
    socket: &Socket,
    services: impl Iterator<Item = Arc<dyn TtrpcService>>,
) -> Result<Server> {
    let path = socket_path(socket)?;
    prepare(path)?;
    let mut server = Server::new().bind(&format!("unix://{}", path.display()))?;
    own(path, socket)?;
    for service in services {
        server = server.register_service(service.services());
    }
    server.start().await?;
    Ok(server)
}
