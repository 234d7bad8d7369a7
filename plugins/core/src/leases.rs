//! Leases: hold resources against garbage collection.

use async_trait::async_trait;

use crate::error::Result;
use crate::filter::Filter;
use crate::protos::containerd::services::leases::v1::{Lease, Resource};
use crate::{Labels, Namespace};

/// The leases of all namespaces.
#[async_trait]
pub trait Leases: Send + Sync {
    /// `id` empty makes a random one. AlreadyExists.
    async fn create(&self, ns: &Namespace, id: &str, labels: Labels) -> Result<Lease>;
    /// NotFound. `sync` waits for the garbage collection that follows.
    async fn delete(&self, ns: &Namespace, id: &str, sync: bool) -> Result<()>;
    async fn list(&self, ns: &Namespace, filter: &Filter) -> Result<Vec<Lease>>;
    /// Types: content, ingests, images, snapshots/<snapshotter>; NotImplemented for others.
    async fn add_resource(&self, ns: &Namespace, id: &str, resource: Resource) -> Result<()>;
    async fn delete_resource(&self, ns: &Namespace, id: &str, resource: Resource) -> Result<()>;
    async fn resources(&self, ns: &Namespace, id: &str) -> Result<Vec<Resource>>;
}
