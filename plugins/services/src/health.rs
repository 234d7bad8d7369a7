//! grpc.health.v1.Health: serving as soon as the sockets are, since those open only after the boot.

use std::sync::Arc;

use corten_core::kinds;
use corten_core::service::GrpcService;
use corten_registry::Registration;
use tonic::service::RoutesBuilder;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};

struct Service(HealthReporter);

impl GrpcService for Service {
    fn add_to(&self, routes: &mut RoutesBuilder) {
        let service = HealthService::from_health_reporter(self.0.clone());
        routes.add_service(HealthServer::new(service));
    }
}

/// The plugin. A new reporter says SERVING for the server as a whole, and knows no other name.
pub fn registration() -> Registration {
    Registration::new::<kinds::Grpc>("healthcheck").init_plain(|_| {
        Box::pin(async { Ok(Arc::new(Service(HealthReporter::new())) as Arc<dyn GrpcService>) })
    })
}
