//! Transfers: moving images between registries, stores and streams (containerd: core/transfer).

use async_trait::async_trait;
use tokio::sync::mpsc;

use crate::error::Result;
use crate::protos::containerd::types::transfer::Progress;
use crate::{Any, Scope};

/// Where progress goes. Bounded; a full channel makes the transfer wait, a closed one is ignored.
pub type ProgressSink = mpsc::Sender<Progress>;

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
}
