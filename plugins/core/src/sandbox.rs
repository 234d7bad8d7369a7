//! Sandbox records (containerd: core/sandbox). Controllers follow with the CRI.

use async_trait::async_trait;

use crate::error::Result;
use crate::filter::Filter;
use crate::protos::containerd::types::Sandbox;
use crate::{Namespace, Scope};

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
