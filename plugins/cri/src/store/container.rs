//! One container: what was asked for, from which image, in which state it is.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use corten_protos::runtime::v1::{ContainerConfig, ContainerResources, ContainerState};
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::logs::Copier;

/// Type URL of a container's metadata, on its record. nerdctl reads it.
pub const METADATA: &str = "io.cri-containerd.container.metadata";

/// What is stored of a container; containerd's names.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Metadata {
    #[serde(rename = "ID")]
    pub id: String,
    /// `NAME_POD_NAMESPACE_UID_ATTEMPT`.
    pub name: String,
    #[serde(rename = "SandboxID")]
    pub sandbox_id: String,
    pub config: ContainerConfig,
    /// The image's id: its config digest.
    pub image_ref: String,
    /// The digest of the image's target: index or manifest.
    pub image_digest: String,
    /// A tag of the image, else its repository and digest.
    pub image_name: String,
    pub log_path: String,
    pub stop_signal: String,
    pub process_label: String,
}

/// What changes of a container. Checkpointed in the container's folder as `status` before anybody hears of it; times are
/// nanoseconds since 1970, 0 is never.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Status {
    pub pid: u32,
    pub created_at: i64,
    pub started_at: i64,
    pub finished_at: i64,
    pub exit_code: i32,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`, `Unknown`.
    pub reason: String,
    pub message: String,
    #[serde(skip)]
    pub starting: bool,
    #[serde(skip)]
    pub removing: bool,
    #[serde(skip)]
    pub unknown: bool,
    pub resources: Option<ContainerResources>,
}

impl Status {
    /// The CRI's state.
    pub fn state(&self) -> ContainerState {
        if self.unknown {
            ContainerState::ContainerUnknown
        } else if self.finished_at != 0 {
            ContainerState::ContainerExited
        } else if self.started_at != 0 {
            ContainerState::ContainerRunning
        } else if self.created_at != 0 {
            ContainerState::ContainerCreated
        } else {
            ContainerState::ContainerUnknown
        }
    }
}

/// A container.
#[derive(Debug)]
pub struct Container {
    pub id: String,
    pub sandbox_id: String,
    pub metadata: RwLock<Metadata>,
    /// Written only by the `containers` module, which checkpoints it first.
    pub status: RwLock<Status>,
    /// Its folder below the plugin's root: the status file, image-defined volumes.
    pub dir: PathBuf,
    /// Its snapshotter; its snapshot's key is its id.
    pub snapshotter: String,
    /// Its pod's runtime type.
    pub runtime: String,
    /// Becomes true when the container has ended for good.
    pub stopped: watch::Sender<bool>,
    /// An OOM kill was seen.
    pub oom: AtomicBool,
    /// Its stop signal was sent: nobody sends it twice.
    pub signalled: AtomicBool,
    /// Copies its output, where its shim writes no log.
    pub io: RwLock<Option<Arc<Copier>>>,
    /// Held by whoever changes the status.
    pub changing: tokio::sync::Mutex<()>,
    /// Held by whoever tells of its start, its end or its removal, in this order.
    pub telling: tokio::sync::Mutex<()>,
}

impl Container {
    /// A container as it is stored.
    pub fn new(
        metadata: Metadata,
        status: Status,
        dir: PathBuf,
        snapshotter: String,
        runtime: String,
    ) -> Self {
        Self {
            id: metadata.id.clone(),
            sandbox_id: metadata.sandbox_id.clone(),
            metadata: RwLock::new(metadata),
            status: RwLock::new(status),
            dir,
            snapshotter,
            runtime,
            stopped: watch::Sender::new(false),
            oom: AtomicBool::default(),
            signalled: AtomicBool::default(),
            io: RwLock::default(),
            changing: tokio::sync::Mutex::default(),
            telling: tokio::sync::Mutex::default(),
        }
    }

    /// Its state now.
    pub fn state(&self) -> ContainerState {
        self.status.read().state()
    }
}
