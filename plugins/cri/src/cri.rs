//! What all RPCs share.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use corten_core::events::Events;
use corten_core::metadata::Metadata;
use corten_core::mounts::Manager;
use corten_core::runtime::Tasks;
use corten_core::sandbox::Controller;
use corten_core::{Namespace, Scope};

use crate::config;
use crate::store::{Container, Index, Names, Pod};
use crate::streaming::server::Urls;

/// The namespace of everything that Kubernetes has here.
pub const NAMESPACE: &str = "k8s.io";

/// The CRI plugin: each RPC is a method of it.
pub struct Cri {
    pub ns: Namespace,
    pub runtime: config::Runtime,
    pub images_config: config::Images,
    pub grpc: config::Grpc,
    /// What must outlive the machine's next start: `<root>/sandboxes/ID`, `<root>/containers/ID`.
    pub root: PathBuf,
    /// What must not: `<state>/sandboxes/ID` (shm, hosts), `<state>/containers/ID` (FIFOs).
    pub state: PathBuf,
    pub metadata: Arc<dyn Metadata>,
    pub tasks: Arc<dyn Tasks>,
    pub events: Arc<dyn Events>,
    pub mounts: Arc<dyn Manager>,
    /// By sandboxer.
    pub controllers: BTreeMap<String, Arc<dyn Controller>>,
    pub pods: Index<Pod>,
    pub pod_names: Names,
    pub containers: Index<Container>,
    pub container_names: Names,
    /// Set once the streaming server listens.
    pub urls: OnceLock<Urls>,
}

impl Cri {
    /// Calls below it without a lease.
    pub fn scope(&self) -> Scope {
        Scope::new(self.ns.clone())
    }
}

impl std::fmt::Debug for Cri {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cri").finish_non_exhaustive()
    }
}
