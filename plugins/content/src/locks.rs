//! Who writes which ref: at most one writer each.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use corten_core::{Error, Kind, Result};
use parking_lot::Mutex;

use crate::ingest::format_time;

/// The refs being written and since when.
#[derive(Debug, Clone, Default)]
pub(crate) struct Locks {
    held: Arc<Mutex<HashMap<String, (Instant, SystemTime)>>>,
}

/// Holds one ref until dropped.
#[derive(Debug)]
pub(crate) struct RefLock {
    locks: Locks,
    r#ref: String,
}

impl Locks {
    /// Takes `ref`, or says how long it has been held.
    pub(crate) fn lock(&self, r#ref: &str) -> Result<RefLock> {
        let mut held = self.held.lock();
        if let Some((since, at)) = held.get(r#ref) {
            return Err(Error::new(
                Kind::Unavailable,
                format!(
                    "ref {} locked for {:?} (since {}): unavailable",
                    r#ref,
                    since.elapsed(),
                    format_time(*at)
                ),
            ));
        }
        held.insert(r#ref.to_owned(), (Instant::now(), SystemTime::now()));
        Ok(RefLock {
            locks: self.clone(),
            r#ref: r#ref.to_owned(),
        })
    }
}

impl Drop for RefLock {
    fn drop(&mut self) {
        self.locks.held.lock().remove(&self.r#ref);
    }
}
