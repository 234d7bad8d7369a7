//! The exchange: fan-out of events to subscribers (plugin `io.containerd.event.v1.exchange`).
//!
//! Invariants: a publisher never waits for a subscriber; all subscribers see the events of one publisher in the order
//! in which it published them; nothing is replayed. Each subscriber has a queue of [`QUEUE`] envelopes. One that lets
//! it fill up is closed (its channel ends), because events after a gap would mislead it.

use std::sync::Arc;

use async_trait::async_trait;
use corten_core::events::Events;
use corten_core::filter::Filter;
use corten_core::protos::containerd::types::Envelope;
use corten_core::protos::time;
use corten_core::{Any, Context as _, Error, Namespace, Result, id, kinds};
use corten_registry::Registration;
use parking_lot::Mutex;
use tokio::sync::mpsc::{self, error::TrySendError};
use tracing::{trace, warn};

use crate::fields::View;

/// Envelopes that wait for one subscriber at most; one more closes it.
pub const QUEUE: usize = 16_384;

/// The exchange.
#[derive(Default)]
pub struct Exchange {
    subscribers: Mutex<Vec<Subscriber>>,
}

struct Subscriber {
    filter: Filter,
    queue: mpsc::Sender<Envelope>,
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exchange")
            .field("subscribers", &self.subscribers.lock().len())
            .finish()
    }
}

// === impl Exchange ===

impl Exchange {
    /// An exchange without subscribers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Queues `envelope` for every subscriber that wants it. Under one lock, so that order is the same for all.
    fn fan_out(&self, envelope: &Envelope) {
        self.subscribers.lock().retain(|s| {
            if s.queue.is_closed() {
                return false;
            }
            if !s.filter.matches(&View(envelope)) {
                return true;
            }
            match s.queue.try_send(envelope.clone()) {
                Ok(()) => true,
                Err(TrySendError::Closed(_)) => false,
                Err(TrySendError::Full(_)) => {
                    warn!(
                        queue = QUEUE,
                        "close event subscriber that does not keep up"
                    );
                    false
                }
            }
        });
    }
}

#[async_trait]
impl Events for Exchange {
    async fn publish(&self, ns: &Namespace, topic: &str, event: Any) -> Result<()> {
        validate_topic(topic)?;
        trace!(topic, ns = %ns, event.r#type = event.type_url, "event published");
        self.fan_out(&Envelope {
            timestamp: Some(time::now()),
            namespace: ns.as_str().to_owned(),
            topic: topic.to_owned(),
            event: Some(event),
        });
        Ok(())
    }

    async fn forward(&self, envelope: Envelope) -> Result<()> {
        id::validate(&envelope.namespace).context("event envelope has invalid namespace")?;
        validate_topic(&envelope.topic)?;
        if envelope.timestamp.is_none_or(|t| t == time::GO_ZERO) {
            return Err(Error::invalid("timestamp must be set on forwarded event"));
        }
        trace!(
            topic = envelope.topic,
            ns = envelope.namespace,
            "event forwarded"
        );
        self.fan_out(&envelope);
        Ok(())
    }

    fn subscribe(&self, filter: Filter) -> mpsc::Receiver<Envelope> {
        // When full: the subscriber is closed, see `fan_out`.
        let (queue, receiver) = mpsc::channel(QUEUE);
        self.subscribers.lock().push(Subscriber { filter, queue });
        receiver
    }
}

fn validate_topic(topic: &str) -> Result<()> {
    let check = || {
        let Some(rest) = topic.strip_prefix('/') else {
            let why = if topic.is_empty() {
                "must not be empty"
            } else {
                "must start with '/'"
            };
            return Err(Error::invalid(why));
        };
        if rest.is_empty() {
            return Err(Error::invalid("must have at least one component"));
        }
        rest.split('/').try_for_each(|part| {
            id::validate(part).with_context(|| format!("failed validation on component {part:?}"))
        })
    };
    check().with_context(|| format!("envelope topic {topic:?}"))
}

/// Plugin `exchange`.
pub fn registration() -> Registration {
    Registration::new::<kinds::Event>("exchange")
        .init_plain(|_cx| Box::pin(async { Ok(Arc::new(Exchange::new()) as Arc<dyn Events>) }))
}

#[cfg(test)]
mod tests;
