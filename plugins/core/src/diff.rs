//! Diffs: a layer blob applied to mounts, and the difference of two mounts as a layer blob.

use std::time::SystemTime;

use async_trait::async_trait;

use crate::error::Result;
use crate::{Descriptor, Labels, Mount, Scope};

/// Options of [`Differ::apply`].
#[derive(Debug, Clone, Default)]
pub struct ApplyOptions {
    /// Sync the file system before success.
    pub sync_fs: bool,
    /// Payloads for stream processors by id.
    pub payloads: std::collections::BTreeMap<String, crate::Any>,
}

/// Options of [`Differ::compare`].
#[derive(Debug, Clone, Default)]
pub struct CompareOptions {
    /// Media type of the result; empty = OCI gzip layer.
    pub media_type: String,
    /// Name of the ingest; empty = made up.
    pub r#ref: String,
    /// Labels of the new blob.
    pub labels: Labels,
    /// Upper bound of all time stamps.
    pub source_date_epoch: Option<SystemTime>,
}

/// One way to apply and to make layers. NotImplemented lets the next differ try.
#[async_trait]
pub trait Differ: Send + Sync {
    /// Applies blob `descriptor` to `mounts`; the answer describes the uncompressed tar (its digest is the diff id).
    async fn apply(
        &self,
        scope: &Scope,
        descriptor: &Descriptor,
        mounts: &[Mount],
        options: ApplyOptions,
    ) -> Result<Descriptor>;
    /// Writes what `upper` has over `lower` as a blob.
    async fn compare(
        &self,
        scope: &Scope,
        lower: &[Mount],
        upper: &[Mount],
        options: CompareOptions,
    ) -> Result<Descriptor>;
}
