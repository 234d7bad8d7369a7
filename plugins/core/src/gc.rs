//! Garbage collection: what nothing refers to is removed.

use std::time::Duration;

use async_trait::async_trait;

use crate::error::Result;
use crate::{Labels, Namespace};

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

/// A thing of another store than the collector's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    pub namespace: Namespace,
    pub name: String,
    /// Its `gc.bref.*` say what keeps it.
    pub labels: Labels,
    /// The lease that keeps it as long as it lives.
    pub lease: Option<String>,
    /// Kept for itself, whatever refers to it.
    pub active: bool,
    /// Grows with every use: what was used after it was listed is not removed.
    pub version: u64,
}

/// Things of another store that the collector judges together with its own: activated mounts, clients' streams.
#[async_trait]
pub trait Resources: Send + Sync {
    /// What they are: others keep them by the label `gc.ref.<kind>`.
    fn kind(&self) -> &'static str;
    /// All that may be collected now. Must not block.
    fn all(&self) -> Vec<Resource>;
    /// Removes what nothing refers to, and what earlier failures left. Called after each collection.
    async fn remove(&self, garbage: Vec<Resource>) -> Result<()>;
}
