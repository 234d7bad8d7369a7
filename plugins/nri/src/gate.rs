//! Keeps requests and the synchronization of new plugins apart.
//!
//! Many requests may be inside at once, and one request several times over: that is why a request never waits for a
//! synchronization that itself still waits. Lest newcomers wait for ever on a busy node, one that has waited for
//! [`PATIENCE`] holds new entries back, each for at most [`HOLD`].

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout, timeout_at};

/// How long a synchronization waits before it asks for room.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long an entry makes room. An entry from within a request only loses this time.
const HOLD: Duration = Duration::from_secs(2);

/// The gate. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Gate {
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    counts: Mutex<Counts>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Counts {
    /// Requests inside.
    inside: usize,
    /// A synchronization is going on.
    closed: bool,
    /// Synchronizations that have waited long.
    urgent: usize,
}

/// A request inside.
#[derive(Debug)]
pub(crate) struct Inside(Arc<State>);

/// A synchronization going on.
#[derive(Debug)]
pub(crate) struct Closed(Arc<State>);

/// A synchronization that has waited long.
struct Urgent<'a>(&'a State);

// === impl Gate ===

impl Gate {
    /// Enters with a request. Cancel-safe.
    pub(crate) async fn enter(&self) -> Inside {
        let held = Instant::now() + HOLD;
        loop {
            let changed = self.state.changed.notified();
            let polite = {
                let mut counts = self.state.counts.lock();
                if !counts.closed && (counts.urgent == 0 || Instant::now() >= held) {
                    counts.inside += 1;
                    return Inside(self.state.clone());
                }
                !counts.closed
            };
            if polite {
                let _ = timeout_at(held, changed).await;
            } else {
                changed.await;
            }
        }
    }

    /// Waits until nobody is inside and keeps everyone out. Cancel-safe.
    pub(crate) async fn close(&self) -> Closed {
        if let Ok(closed) = timeout(PATIENCE, self.wait()).await {
            return closed;
        }
        let _urgent = Urgent::new(&self.state);
        self.wait().await
    }

    async fn wait(&self) -> Closed {
        loop {
            let changed = self.state.changed.notified();
            {
                let mut counts = self.state.counts.lock();
                if counts.inside == 0 && !counts.closed {
                    counts.closed = true;
                    return Closed(self.state.clone());
                }
            }
            changed.await;
        }
    }
}

// === impl guards ===

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.counts.lock().inside -= 1;
        self.0.changed.notify_waiters();
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        self.0.counts.lock().closed = false;
        self.0.changed.notify_waiters();
    }
}

impl<'a> Urgent<'a> {
    fn new(state: &'a State) -> Self {
        state.counts.lock().urgent += 1;
        Self(state)
    }
}

impl Drop for Urgent<'_> {
    fn drop(&mut self) {
        self.0.counts.lock().urgent -= 1;
        self.0.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn requests_and_synchronizations_exclude_each_other() {
        let gate = Gate::default();
        let outer = gate.enter().await;
        let closing = tokio::spawn({
            let gate = gate.clone();
            async move { gate.close().await }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        // One that is inside gets in again, though a synchronization waits.
        let inner = timeout(Duration::from_millis(1), gate.enter()).await;
        drop(inner.unwrap());
        assert!(!closing.is_finished());
        drop(outer);
        let closed = closing.await.unwrap();
        let mut entering = Box::pin(gate.enter());
        assert!(
            timeout(Duration::from_secs(99), &mut entering)
                .await
                .is_err()
        );
        drop(closed);
        drop(entering.await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_node_lets_a_newcomer_in_and_nobody_locks_up() {
        let gate = Gate::default();
        let outer = gate.enter().await;
        let closing = tokio::spawn({
            let gate = gate.clone();
            async move { gate.close().await }
        });
        tokio::time::sleep(PATIENCE + Duration::from_secs(1)).await;
        // An entry from within waits, but not for ever.
        let start = Instant::now();
        drop(gate.enter().await);
        assert_eq!(start.elapsed(), HOLD);
        // Others are held back until the newcomer is done.
        let entering = tokio::spawn({
            let gate = gate.clone();
            async move { gate.enter().await }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        drop(outer);
        let closed = closing.await.unwrap();
        assert!(!entering.is_finished());
        drop(closed);
        drop(entering.await.unwrap());
    }
}
