//! One holder for each key at a time: two pulls of the same blob do the work once, two writers of the same snapshot
//! take turns.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

type Locks = Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>;

/// The locks in use. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct KeyLocks {
    locks: Arc<Locks>,
}

/// Holds a key until dropped.
#[derive(Debug)]
pub struct KeyGuard {
    key: String,
    guard: Option<OwnedMutexGuard<()>>,
    locks: Arc<Locks>,
}

impl KeyLocks {
    /// Waits for `key`. Cancel-safe.
    pub async fn lock(&self, key: String) -> KeyGuard {
        let lock = self.locks.lock().entry(key.clone()).or_default().clone();
        // The guard exists before the wait, so that a cancelled wait also forgets the key.
        let mut out = KeyGuard {
            key,
            guard: None,
            locks: self.locks.clone(),
        };
        out.guard = Some(lock.lock_owned().await);
        out
    }

    /// Keys that are held or waited for.
    pub fn in_use(&self) -> usize {
        self.locks.lock().len()
    }

    /// Waits for all of `keys`, in their order, so that two callers never wait for each other. Cancel-safe.
    pub async fn lock_all(&self, keys: BTreeSet<String>) -> Vec<KeyGuard> {
        let mut held = Vec::with_capacity(keys.len());
        for key in keys {
            held.push(self.lock(key).await);
        }
        held
    }
}

impl Drop for KeyGuard {
    fn drop(&mut self) {
        drop(self.guard.take());
        let mut locks = self.locks.lock();
        // Only the table holds it: nobody waits and nobody can start to, because that needs the table.
        if locks
            .get(&self.key)
            .is_some_and(|l| Arc::strong_count(l) == 1)
        {
            locks.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_at_a_time_and_nothing_is_left() {
        let locks = KeyLocks::default();
        let first = locks.lock("a".into()).await;
        let other = locks.lock("b".into()).await;
        let waiting = tokio::spawn({
            let locks = locks.clone();
            async move { drop(locks.lock("a".into()).await) }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop((first, other));
        waiting.await.unwrap();
        assert!(locks.locks.lock().is_empty());
    }
}
