//! Namespaces: tenants of the metadata, with labels that the daemon obeys.

use async_trait::async_trait;

use crate::Namespace;
use crate::error::Result;
use crate::labels::Labels;

/// The namespaces.
#[async_trait]
pub trait Namespaces: Send + Sync {
    /// AlreadyExists.
    async fn create(&self, ns: &Namespace, labels: Labels) -> Result<()>;
    /// Labels of a namespace; empty for an unknown one (containerd answers so).
    async fn labels(&self, ns: &Namespace) -> Result<Labels>;
    /// NotFound for an unknown one when `set_label` would have nowhere to go.
    async fn update(&self, ns: &Namespace, labels: Labels, paths: &[String]) -> Result<Labels>;
    /// In name order.
    async fn list(&self) -> Result<Vec<(String, Labels)>>;
    /// FailedPrecondition, naming what is left, unless it is empty; NotFound.
    async fn delete(&self, ns: &Namespace) -> Result<()>;
}
