//! Container records: spec, runtime, snapshot; no process.

use async_trait::async_trait;

use crate::error::Result;
use crate::filter::Filter;
use crate::protos::containerd::services::containers::v1::Container;
use crate::{Namespace, Scope};

/// The container records of all namespaces. Writes publish /containers/* events.
#[async_trait]
pub trait Containers: Send + Sync {
    async fn get(&self, ns: &Namespace, id: &str) -> Result<Container>;
    async fn list(&self, ns: &Namespace, filter: &Filter) -> Result<Vec<Container>>;
    async fn create(&self, scope: &Scope, container: Container) -> Result<Container>;
    /// Mask paths labels, labels.K, spec, extensions, extensions.K, image, snapshotkey; none = all of these.
    /// `snapshotter` and `runtime.name` cannot change.
    async fn update(
        &self,
        scope: &Scope,
        container: Container,
        paths: &[String],
    ) -> Result<Container>;
    async fn delete(&self, scope: &Scope, id: &str) -> Result<()>;
}
