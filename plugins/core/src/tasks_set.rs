//! Background tasks with an owner: named when spawned, joined at drain.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinSet;
use tracing::{Instrument, info_span, warn};

/// A set of background tasks. Clones share the set.
#[derive(Debug, Clone, Default)]
pub struct TaskSet {
    inner: Arc<Mutex<JoinSet<()>>>,
}

impl TaskSet {
    /// An empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts `task`; its log lines carry `name`.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let mut set = self.inner.lock();
        // Finished ones are taken out here, so that a long life does not collect them.
        while let Some(done) = set.try_join_next() {
            if done.is_err_and(|e| e.is_panic()) {
                warn!("a background task panicked");
            }
        }
        set.spawn(task.instrument(info_span!(parent: None, "task", name)));
    }

    /// Waits for all, at most `patience`, then aborts what is left.
    pub async fn drain(&self, patience: Duration) {
        let mut set = std::mem::take(&mut *self.inner.lock());
        let all = async { while set.join_next().await.is_some() {} };
        if tokio::time::timeout(patience, all).await.is_err() {
            warn!(left = set.len(), "background tasks did not end in time");
            set.abort_all();
        }
    }
}
