//! What a gRPC or ttrpc service plugin hands to the servers.

use tonic::service::RoutesBuilder;

/// A gRPC façade: adds its service to the routes of the sockets.
pub trait GrpcService: Send + Sync {
    /// Called once for each listener.
    fn add_to(&self, routes: &mut RoutesBuilder);
}

/// Methods of ttrpc services by service name.
pub type TtrpcServices = std::collections::HashMap<String, ttrpc::r#async::Service>;

/// A ttrpc façade.
pub trait TtrpcService: Send + Sync {
    /// Called once for each listener.
    fn services(&self) -> TtrpcServices;
}

/// A snapshot of what the plugin system knows, for introspection; set after boot.
pub trait PluginTable: Send + Sync {
    /// In starting order.
    fn records(&self) -> Vec<corten_registry::Record>;
}
