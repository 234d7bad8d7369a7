//! One pod: what was asked for, where its namespaces are, in which state it is.

use std::sync::atomic::AtomicBool;

use corten_protos::runtime::v1::{LinuxContainerResources, PodSandboxConfig, PodSandboxState};
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// Key of a pause container's extension with [`Metadata`].
pub const METADATA: &str = "io.cri-containerd.sandbox.metadata";

/// What is stored of a pod; containerd's names.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Metadata {
    #[serde(rename = "ID")]
    pub id: String,
    /// `NAME_NAMESPACE_UID_ATTEMPT`.
    pub name: String,
    pub config: PodSandboxConfig,
    #[serde(rename = "NetNSPath")]
    pub netns_path: String,
    #[serde(rename = "IP")]
    pub ip: String,
    #[serde(rename = "AdditionalIPs")]
    pub additional_ips: Option<Vec<String>>,
    pub runtime_handler: String,
    /// As go-cni writes it.
    #[serde(rename = "CNIResult")]
    pub cni_result: serde_json::Value,
    pub process_label: String,
}

/// What changes of a pod.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// Of the process that holds the namespaces; 0: none runs.
    pub pid: u32,
    /// Nanoseconds since 1970.
    pub created_at: i64,
    pub exited_at: Option<std::time::SystemTime>,
    pub exit_status: u32,
    pub state: State,
    /// Of the last UpdatePodSandboxResources.
    pub overhead: Option<LinuxContainerResources>,
    pub resources: Option<LinuxContainerResources>,
}

/// The states of a pod.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum State {
    /// Being made, not taken back whole, or found without its network: shown as not ready.
    #[default]
    Unknown,
    Ready,
    NotReady,
}

impl State {
    /// The CRI's state.
    pub fn cri(self) -> PodSandboxState {
        match self {
            Self::Ready => PodSandboxState::SandboxReady,
            Self::Unknown | Self::NotReady => PodSandboxState::SandboxNotready,
        }
    }
}

/// A pod.
#[derive(Debug)]
pub struct Pod {
    pub id: String,
    pub metadata: RwLock<Metadata>,
    pub status: RwLock<Status>,
    /// Which controller keeps it: `podsandbox`, `shim`, a proxy plugin's.
    pub sandboxer: String,
    /// The runtime type of its handler, as when it was made: `io.containerd.corten.v2`.
    pub runtime: String,
    /// Where a shim's sandbox takes tasks, and its protocol version; from the controller's start.
    pub endpoint: RwLock<(String, u32)>,
    /// Becomes true when the pod ends; StopPodSandbox waits for it.
    pub stopped: watch::Sender<bool>,
    /// Whether this daemon took its network down, whole: the kubelet stops pods several times, and plugins are slow.
    pub detached: AtomicBool,
}

impl Pod {
    /// A pod that is being made.
    pub fn new(metadata: Metadata, sandboxer: String, runtime: String) -> Self {
        Self {
            id: metadata.id.clone(),
            metadata: RwLock::new(metadata),
            status: RwLock::new(Status::default()),
            sandboxer,
            runtime,
            endpoint: RwLock::default(),
            stopped: watch::Sender::new(false),
            detached: AtomicBool::new(false),
        }
    }

    /// Its state now.
    pub fn state(&self) -> State {
        self.status.read().state
    }
}
