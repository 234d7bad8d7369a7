//! What a gRPC or ttrpc service plugin hands to the servers.

use tonic::service::RoutesBuilder;

/// The largest messages of a listener, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub received: usize,
    pub sent: usize,
}

/// What containerd allows when its config says nothing (defaults.DefaultMaxRecvMsgSize).
pub const MAX_MESSAGE: usize = 16 << 20;

impl Limits {
    /// As configured; 0 is the default.
    pub fn of(received: usize, sent: usize) -> Self {
        let or_default = |size| if size == 0 { MAX_MESSAGE } else { size };
        Self {
            received: or_default(received),
            sent: or_default(sent),
        }
    }
}

/// What the tasks service exports to the CRI if it is configured: the file that says what classes of block I/O mean.
pub const BLOCKIO_FILE: &str = "blockio_config_file";

/// A gRPC façade: adds its service to the routes of the sockets.
pub trait GrpcService: Send + Sync {
    /// Called once for each listener.
    fn add_to(&self, routes: &mut RoutesBuilder, limits: Limits);

    /// What of it is served on ttrpc too.
    fn ttrpc(&self) -> TtrpcServices {
        TtrpcServices::new()
    }

    /// Whether it stays off listeners that other machines can reach.
    fn local_only(&self) -> bool {
        false
    }
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
