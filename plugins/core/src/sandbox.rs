//! Sandboxes: environments that several containers share, e.g. a pod (containerd: core/sandbox).
//!
//! Two traits. [`Sandboxes`] are the records. A [`Controller`] makes and unmakes what a record describes: in a shim
//! (`shim`), or in another process (a proxy plugin). Life: `create` (nothing runs yet) -> `start` -> `stop` ->
//! `shutdown`, after which the controller knows nothing of it; `wait` answers when it ends, whoever ended it. The
//! record is the client's business: controllers neither make nor delete it.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;

use crate::error::Result;
use crate::filter::Filter;
use crate::protos::containerd::services::sandbox::v1::{
    ControllerStartResponse, ControllerStatusResponse, ControllerWaitResponse,
};
use crate::protos::containerd::types::{Metric, Platform, Sandbox};
use crate::{Any, Mount, Namespace, Scope};

/// What a started sandbox tells of itself.
pub type Instance = ControllerStartResponse;
/// What a sandbox is doing.
pub type Status = ControllerStatusResponse;
/// How a sandbox ended.
pub type Exit = ControllerWaitResponse;

/// State of a sandbox that serves containers, as the CRI names it.
pub const READY: &str = "SANDBOX_READY";
/// State of a sandbox that does not, or not any more.
pub const NOT_READY: &str = "SANDBOX_NOTREADY";

/// The sandbox records of all namespaces.
#[async_trait]
pub trait Sandboxes: Send + Sync {
    async fn get(&self, ns: &Namespace, id: &str) -> Result<Sandbox>;
    async fn list(&self, ns: &Namespace, filter: &Filter) -> Result<Vec<Sandbox>>;
    async fn create(&self, scope: &Scope, sandbox: Sandbox) -> Result<Sandbox>;
    /// Mask paths labels, extensions, spec, runtime (and labels.K, extensions.K).
    async fn update(&self, scope: &Scope, sandbox: Sandbox, paths: &[String]) -> Result<Sandbox>;
    async fn delete(&self, scope: &Scope, id: &str) -> Result<()>;
}

/// What a sandbox is made from, besides its record.
#[derive(Debug, Clone, Default)]
pub struct CreateOptions {
    pub rootfs: Vec<Mount>,
    /// Handed on as they are; the CRI sends its PodSandboxConfig.
    pub options: Option<Any>,
    /// Network namespace to join; empty = none is prepared.
    pub netns_path: String,
    pub annotations: BTreeMap<String, String>,
}

/// Runs sandboxes of one sort.
#[async_trait]
pub trait Controller: Send + Sync {
    /// AlreadyExists when it has a sandbox of that id.
    async fn create(&self, ns: &Namespace, sandbox: Sandbox, options: CreateOptions) -> Result<()>;
    /// A sandbox that cannot be started is gone afterwards.
    async fn start(&self, ns: &Namespace, id: &str) -> Result<Instance>;
    /// What containers in it run on.
    async fn platform(&self, ns: &Namespace, id: &str) -> Result<Platform>;
    /// Ends what runs in it, at most in `patience`; fine when there is no such sandbox.
    async fn stop(&self, ns: &Namespace, id: &str, patience: Duration) -> Result<()>;
    /// Answers when it ended. Cancel-safe.
    async fn wait(&self, ns: &Namespace, id: &str) -> Result<Exit>;
    /// An unknown sandbox has a status without a state.
    async fn status(&self, ns: &Namespace, id: &str, verbose: bool) -> Result<Status>;
    /// Frees everything; NotFound for an unknown one.
    async fn shutdown(&self, ns: &Namespace, id: &str) -> Result<()>;
    async fn metrics(&self, ns: &Namespace, id: &str) -> Result<Option<Metric>>;
    /// Tells a running sandbox that `fields` of its record changed. NotImplemented by those that need not know.
    async fn update(
        &self,
        ns: &Namespace,
        id: &str,
        sandbox: Sandbox,
        fields: Vec<String>,
    ) -> Result<()>;
}
