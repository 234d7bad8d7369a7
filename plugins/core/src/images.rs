//! Image records: a name and the descriptor that it points to.

use async_trait::async_trait;

use crate::error::Result;
use crate::filter::Filter;
use crate::protos::containerd::services::images::v1::Image;
use crate::{Descriptor, Namespace, Scope};

/// Media types of indexes.
pub const INDEXES: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
/// Media types of manifests.
pub const MANIFESTS: [&str; 2] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// The image records of all namespaces. Writes publish /images/* events and create the namespace. The times of a
/// record are now, unless it comes with some: then the caller decided (source date epoch).
#[async_trait]
pub trait Images: Send + Sync {
    async fn get(&self, ns: &Namespace, name: &str) -> Result<Image>;
    async fn list(&self, ns: &Namespace, filter: &Filter) -> Result<Vec<Image>>;
    /// InvalidArgument without name, digest, media type or size > 0; AlreadyExists.
    async fn create(&self, scope: &Scope, image: Image) -> Result<Image>;
    /// Mask paths labels, labels.K, target, annotations, annotations.K; none = everything but created_at.
    async fn update(&self, scope: &Scope, image: Image, paths: &[String]) -> Result<Image>;
    /// With `target`, NotFound unless the record still points to it.
    async fn delete(&self, scope: &Scope, name: &str, target: Option<Descriptor>) -> Result<()>;
}
