//! Streams between a client and the daemon, found by id (containerd: core/streaming).

use std::sync::Arc;

use async_trait::async_trait;

use crate::error::Result;
use crate::{Any, Namespace};

/// One bidirectional stream of Any messages. `send` calls are serialised by the implementation.
#[async_trait]
pub trait Stream: Send + Sync {
    /// The next message of the peer; `None` when it closed its side.
    async fn recv(&self) -> Result<Option<Any>>;
    /// Sends; Canceled or Unavailable when the peer is gone.
    async fn send(&self, message: Any) -> Result<()>;
    /// Closes our side; later sends fail.
    async fn close(&self);
}

/// The registry of open streams.
pub trait Streams: Send + Sync {
    /// AlreadyExists for a second stream of that id. With a lease, the garbage collector closes the stream once the
    /// lease is gone.
    fn register_leased(
        &self,
        ns: &Namespace,
        lease: Option<&str>,
        id: &str,
        stream: Arc<dyn Stream>,
    ) -> Result<()>;
    /// The same without a lease: the stream lasts until it is closed.
    fn register(&self, ns: &Namespace, id: &str, stream: Arc<dyn Stream>) -> Result<()> {
        self.register_leased(ns, None, id, stream)
    }
    /// NotFound.
    fn get(&self, ns: &Namespace, id: &str) -> Result<Arc<dyn Stream>>;
    /// Forgets exactly this stream: the id may be another one's by now.
    fn remove(&self, ns: &Namespace, id: &str, stream: &Arc<dyn Stream>);
}
