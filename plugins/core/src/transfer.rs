//! Transfers: moving images between registries, stores and streams (containerd: core/transfer).

use async_trait::async_trait;
use tokio::sync::mpsc;

use crate::error::Result;
use crate::protos::containerd::types::transfer::Progress;
use crate::{Any, Scope};

/// Where progress goes. Bounded; a full channel makes the transfer wait, a closed one is ignored.
pub type ProgressSink = mpsc::Sender<Progress>;

/// What only callers within the daemon can ask of a transfer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Responses at a time over all pulls that ask for the same, and bytes of a chunk; none: as the plugin is
    /// configured.
    pub downloads: Option<(usize, u64)>,
    /// Nothing refers to the layers' blobs once they are unpacked.
    pub discard_layers: bool,
    /// Snapshots get the labels by which remote snapshotters find the image in its registry.
    pub annotate: bool,
    /// Layers are on disk before their snapshots are committed.
    pub sync_fs: bool,
}

/// Cause of an error ([`crate::Error::is_caused_by`]): no host of the registry could be talked to. Another try may do.
#[derive(Debug)]
pub struct Unreachable(pub String);

/// Cause of an error: a verifier refused the image, or did not judge it.
#[derive(Debug)]
pub struct Refused(pub String);

impl std::fmt::Display for Unreachable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unreachable {}
impl std::error::Error for Refused {}

/// The transfer plugin.
#[async_trait]
pub trait Transfer: Send + Sync {
    /// Moves from `source` to `destination`, both Any of `containerd.types.transfer.*`; NotImplemented for a pair
    /// that has no meaning.
    async fn transfer(
        &self,
        scope: &Scope,
        source: Any,
        destination: Any,
        progress: Option<ProgressSink>,
    ) -> Result<()>;

    /// The same with wishes that the messages cannot carry. Who cannot fulfil them leaves them out.
    async fn transfer_with(
        &self,
        scope: &Scope,
        source: Any,
        destination: Any,
        options: Options,
        progress: Option<ProgressSink>,
    ) -> Result<()> {
        let _ = options;
        self.transfer(scope, source, destination, progress).await
    }
}
