//! Transfers: moving images between registries, stores and streams (containerd: core/transfer).

use async_trait::async_trait;
use tokio::sync::mpsc;

use crate::error::Result;
use crate::protos::containerd::types::transfer::Progress;
use crate::{Any, Scope};

/// Where progress goes. Bounded; a full channel makes the transfer wait, a closed one is ignored.
pub type ProgressSink = mpsc::Sender<Progress>;

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
