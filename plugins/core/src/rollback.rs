//! Undo as a value: each step pushes how to take it back; the last line commits.
//!
//! An uncommitted [`Rollback`] that is dropped runs its undos in reverse on a task of its own, so that a client
//! that goes away in the middle leaves nothing behind. All undos run, whatever the others did.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use tracing::warn;

use crate::error::Result;

type Undo = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

/// Longest time one undo may take (containerd: io.containerd.timeout.cri.defercleanup).
const DEADLINE: Duration = Duration::from_secs(60);

/// The undos pushed so far.
#[derive(Default)]
pub struct Rollback {
    undos: Vec<(&'static str, Undo)>,
}

impl std::fmt::Debug for Rollback {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.undos.iter().map(|u| u.0))
            .finish()
    }
}

impl Rollback {
    /// Nothing to undo yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Says how to take back the step just made.
    pub fn push<F>(&mut self, what: &'static str, undo: F)
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        self.undos.push((what, Box::pin(undo)));
    }

    /// All steps are to stay.
    pub fn commit(mut self) {
        self.undos.clear();
    }

    /// Undoes now and waits for it.
    pub async fn run(mut self) {
        undo_all(std::mem::take(&mut self.undos)).await;
    }
}

impl Drop for Rollback {
    fn drop(&mut self) {
        if self.undos.is_empty() {
            return;
        }
        let undos = std::mem::take(&mut self.undos);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(undo_all(undos));
        }
    }
}

async fn undo_all(mut undos: Vec<(&'static str, Undo)>) {
    while let Some((what, undo)) = undos.pop() {
        match tokio::time::timeout(DEADLINE, undo).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(what, %error, "undo"),
            Err(_) => warn!(what, "undo took too long"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;
    use crate::Error;

    #[tokio::test]
    async fn undos_run_in_reverse_and_all_of_them() {
        let log = Arc::new(Mutex::new(Vec::new()));
        let mut r = Rollback::new();
        for name in ["a", "b", "c"] {
            let log = log.clone();
            r.push(name, async move {
                log.lock().push(name);
                if name == "b" {
                    Err(Error::internal("b is stuck"))
                } else {
                    Ok(())
                }
            });
        }
        r.run().await;
        assert_eq!(*log.lock(), ["c", "b", "a"]);
    }

    #[tokio::test]
    async fn commit_keeps_everything() {
        let mut r = Rollback::new();
        r.push("never", async { panic!("committed steps are not undone") });
        r.commit();
        tokio::task::yield_now().await;
    }
}
