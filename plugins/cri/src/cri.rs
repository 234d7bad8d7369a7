//! What all RPCs share.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use corten_cni::Cni;
use corten_core::diff::Differ;
use corten_core::events::Events;
use corten_core::keylock::KeyLocks;
use corten_core::metadata::Metadata;
use corten_core::mounts::Manager;
use corten_core::nri::Nri;
use corten_core::runtime::Tasks;
use corten_core::sandbox::Controller;
use corten_core::tasks_set::TaskSet;
use corten_core::warnings::Warnings;
use corten_core::{Namespace, Scope};

use crate::config;
use crate::events::Hub;
use crate::images::Images;
use crate::metrics::Metrics;
use crate::pods::pause::Pause;
use crate::spec::Specs;
use crate::stats::Collector;
use crate::status::Handlers;
use crate::store::{Container, Index, Names, Pod};
use crate::streaming::server::Urls;

/// The namespace of everything that Kubernetes has here.
pub const NAMESPACE: &str = "k8s.io";

/// The CRI plugin: each RPC is a method of it.
pub struct Cri {
    pub ns: Namespace,
    pub runtime: config::Runtime,
    pub grpc: config::Grpc,
    /// What must outlive the machine's next start: `<root>/sandboxes/ID`, `<root>/containers/ID`.
    pub root: PathBuf,
    /// What must not: `<state>/sandboxes/ID` (shm), `<state>/containers/ID` (FIFOs).
    pub state: PathBuf,
    /// The daemon's own root, its gRPC address and version, for those who ask.
    pub daemon_root: PathBuf,
    pub endpoint: String,
    pub version: String,
    pub metadata: Arc<dyn Metadata>,
    /// What is in use that will go.
    pub warnings: Arc<dyn Warnings>,
    pub tasks: Arc<dyn Tasks>,
    pub events: Arc<dyn Events>,
    pub mounts: Arc<dyn Manager>,
    /// Makes the changes of a root file system a blob.
    pub differ: Arc<dyn Differ>,
    /// By sandboxer.
    pub controllers: BTreeMap<String, Arc<dyn Controller>>,
    /// The controller of pods with a pause container, which is one of them too.
    pub pause: Arc<Pause>,
    pub pods: Index<Pod>,
    pub pod_names: Names,
    /// One stop, removal or update of a pod at a time.
    pub locks: KeyLocks,
    pub containers: Index<Container>,
    pub container_names: Names,
    pub images: Arc<Images>,
    pub specs: Arc<Specs>,
    /// By handler, and `default`.
    pub networks: BTreeMap<String, Arc<Cni>>,
    /// What the shims of the handlers can do.
    pub handlers: Handlers,
    pub hub: Hub,
    /// For Prometheus.
    pub metrics: Arc<Metrics>,
    pub collector: Arc<Collector>,
    /// None where the plugin did not start.
    pub nri: Option<Arc<dyn Nri>>,
    /// What goes on without its client.
    pub background: TaskSet,
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
