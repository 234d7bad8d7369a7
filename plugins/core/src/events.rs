//! Events: what happened, to whom it may concern. No replay.

use async_trait::async_trait;
use tokio::sync::mpsc;

use crate::error::Result;
use crate::filter::Filter;
use crate::protos::containerd::types::Envelope;
use crate::{Any, Namespace, protos};

/// The exchange.
#[async_trait]
pub trait Events: Send + Sync {
    /// Publishes `event` in `ns` under `topic` (`/images/create`) with the time of now.
    async fn publish(&self, ns: &Namespace, topic: &str, event: Any) -> Result<()>;
    /// Publishes an envelope that a shim made. InvalidArgument without time stamp, namespace or topic.
    async fn forward(&self, envelope: Envelope) -> Result<()>;
    /// All later events that match, of every namespace. Bounded: a subscriber that does not keep up for long is
    /// closed (its channel ends); nobody else waits for it.
    fn subscribe(&self, filter: Filter) -> mpsc::Receiver<Envelope>;
}

/// Publishes a message of the API; a failure is logged, not returned: an event never undoes what it tells of.
pub async fn publish<M: prost::Message + prost::Name>(
    events: &dyn Events,
    ns: &Namespace,
    topic: &str,
    event: &M,
) {
    if let Err(error) = events.publish(ns, topic, protos::any::pack(event)).await {
        tracing::warn!(%error, topic, "publish event");
    }
}
