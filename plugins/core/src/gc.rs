//! Garbage collection: what nothing refers to is removed.

use std::time::Duration;

use async_trait::async_trait;

use crate::error::Result;

/// What a collection did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    pub elapsed: Duration,
    /// Resources removed.
    pub removed: usize,
}

/// A store that can collect its own garbage.
#[async_trait]
pub trait Collector: Send + Sync {
    /// Marks and sweeps once.
    async fn collect(&self) -> Result<Stats>;
}

/// The scheduler of collections.
#[async_trait]
pub trait Scheduler: Send + Sync {
    /// Collects now and waits until it is done (`sync` deletes).
    async fn schedule_and_wait(&self) -> Result<Stats>;
}
