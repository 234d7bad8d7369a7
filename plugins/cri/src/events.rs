//! What happens to pods and containers, for GetContainerEvents.
//!
//! Nobody who makes an event waits for who reads it: a reader that does not keep up is let go (its stream ends; the
//! kubelet comes back and lists everything again). While nobody reads, events wait for the next reader, for a while.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use corten_core::Result;
use corten_protos::runtime::v1::{ContainerEventResponse, ContainerEventType, GetEventsRequest};
use corten_protos::time;
use futures::StreamExt;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tracing::warn;

use crate::Cri;
use crate::service::Answers;

/// Events that wait for one reader; one that leaves more unread is let go.
pub const MAX_UNREAD: usize = 1024;
/// Events that wait while nobody reads.
pub const MAX_HELD: usize = 256;
/// How long they wait.
pub const HELD: Duration = Duration::from_secs(300);

/// Who reads events, and what waits for readers.
#[derive(Debug, Default)]
pub struct Hub {
    inner: Mutex<Inner>,
    dropped: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct Inner {
    readers: Vec<mpsc::Sender<ContainerEventResponse>>,
    held: VecDeque<(Instant, ContainerEventResponse)>,
}

// === impl Hub ===

impl Hub {
    /// Counts there what nobody reads.
    pub fn counting(dropped: Arc<AtomicU64>) -> Self {
        Self {
            dropped,
            ..Self::default()
        }
    }

    /// Tells all readers.
    pub fn send(&self, event: ContainerEventResponse) {
        let mut inner = self.inner.lock();
        let before = inner.readers.len();
        inner.readers.retain(|reader| {
            let told = reader.try_send(event.clone());
            if let Err(mpsc::error::TrySendError::Full(_)) = &told {
                self.dropped.fetch_add(1, Ordering::Relaxed);
                warn!("a reader of container events does not keep up and is let go");
            }
            told.is_ok()
        });
        if before > 0 && !inner.readers.is_empty() {
            return;
        }
        let now = Instant::now();
        inner.held.push_back((now, event));
        self.forget(&mut inner, now);
    }

    /// Events from now on, after those that waited.
    pub fn subscribe(&self) -> mpsc::Receiver<ContainerEventResponse> {
        let (sender, receiver) = mpsc::channel(MAX_UNREAD);
        let mut inner = self.inner.lock();
        self.forget(&mut inner, Instant::now());
        for (_, event) in inner.held.drain(..) {
            // Fits: fewer wait than a reader may leave unread.
            let _ = sender.try_send(event);
        }
        inner.readers.push(sender);
        receiver
    }

    /// Events that nobody read.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn forget(&self, inner: &mut Inner, now: Instant) {
        let old = |at: &Instant| now.duration_since(*at) > HELD;
        while inner.held.len() > MAX_HELD || inner.held.front().is_some_and(|(at, _)| old(at)) {
            inner.held.pop_front();
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Cri {
    /// Tells of a container, or of a pod itself when both ids are its own.
    pub async fn announce(
        self: &Arc<Self>,
        container: &str,
        sandbox: &str,
        kind: ContainerEventType,
    ) {
        let status = match self.pods.get(sandbox) {
            Ok(pod) => crate::pods::status_of(self, &pod).await.ok(),
            Err(_) => None,
        };
        let containers_statuses = self.container_statuses(sandbox).await;
        self.hub.send(ContainerEventResponse {
            container_id: container.to_owned(),
            container_event_type: kind as i32,
            created_at: time::unix_nanos(&time::now()),
            pod_sandbox_status: status,
            containers_statuses,
        });
    }

    /// # Errors
    /// None: the stream ends when its reader does not keep up.
    pub async fn get_container_events(
        &self,
        _: GetEventsRequest,
    ) -> Result<Answers<ContainerEventResponse>> {
        let events = self.hub.subscribe();
        let stream = futures::stream::unfold(events, async |mut events| {
            let event = events.recv().await?;
            Some((Ok(event), events))
        });
        Ok(stream.boxed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(n: usize) -> ContainerEventResponse {
        ContainerEventResponse {
            container_id: n.to_string(),
            ..Default::default()
        }
    }

    #[test]
    fn events_wait_for_a_reader_but_not_without_bound() {
        let hub = Hub::default();
        for n in 0..=MAX_HELD {
            hub.send(event(n));
        }
        assert_eq!(hub.dropped(), 1);
        let mut reader = hub.subscribe();
        assert_eq!(reader.try_recv().unwrap().container_id, "1");
        hub.send(event(9999));
        let mut last = String::new();
        while let Ok(e) = reader.try_recv() {
            last = e.container_id;
        }
        assert_eq!(last, "9999");
        assert!(hub.subscribe().try_recv().is_err());
    }

    #[test]
    fn a_reader_that_does_not_keep_up_is_let_go_and_others_are_not() {
        let hub = Hub::default();
        let mut slow = hub.subscribe();
        let mut fast = hub.subscribe();
        for n in 0..=MAX_UNREAD {
            hub.send(event(n));
            assert_eq!(fast.try_recv().unwrap().container_id, n.to_string());
        }
        let mut read = 0;
        while slow.try_recv().is_ok() {
            read += 1;
        }
        assert_eq!(read, MAX_UNREAD);
        assert_eq!(
            slow.try_recv(),
            Err(mpsc::error::TryRecvError::Disconnected)
        );
        assert_eq!(hub.dropped(), 1);
    }
}
