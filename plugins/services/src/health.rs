//! grpc.health.v1.Health: serving as soon as the sockets are, since those open only after the boot.

use std::sync::Arc;

use corten_core::kinds;
use corten_core::service::{GrpcService, Limits};
use corten_registry::Registration;
use tonic::service::RoutesBuilder;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};

struct Service(HealthReporter);

impl GrpcService for Service {
    fn add_to(&self, routes: &mut RoutesBuilder, limits: Limits) {
        let service = HealthService::from_health_reporter(self.0.clone());
        let server = HealthServer::new(service)
            .max_decoding_message_size(limits.received)
            .max_encoding_message_size(limits.sent);
        routes.add_service(server);
    }
}

/// The plugin. A new reporter says SERVING for the server as a whole, and knows no other name.
pub fn registration() -> Registration {
    Registration::new::<kinds::Grpc>("healthcheck").init_plain(|_| {
        Box::pin(async { Ok(Arc::new(Service(HealthReporter::new())) as Arc<dyn GrpcService>) })
    })
}
