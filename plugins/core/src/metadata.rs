//! The metadata store: everything that must survive, in one ACID database.

use std::sync::Arc;

use crate::containers::Containers;
use crate::content::Content;
use crate::gc::{Collector, Resources};
use crate::images::Images;
use crate::leases::Leases;
use crate::namespaces::Namespaces;
use crate::sandbox::Sandboxes;
use crate::snapshots::Snapshots;

/// What the metadata plugin offers: one handle for each noun, all over the same database.
pub trait Metadata: Send + Sync {
    fn namespaces(&self) -> Arc<dyn Namespaces>;
    fn images(&self) -> Arc<dyn Images>;
    fn containers(&self) -> Arc<dyn Containers>;
    fn content(&self) -> Arc<dyn Content>;
    fn snapshots(&self) -> Arc<dyn Snapshots>;
    fn leases(&self) -> Arc<dyn Leases>;
    fn sandboxes(&self) -> Arc<dyn Sandboxes>;
    fn collector(&self) -> Arc<dyn Collector>;
    /// Collects these too; of a kind the last registration counts.
    fn collect_also(&self, resources: Arc<dyn Resources>);
    /// Called after each committed change, with `true` when something was deleted: feeds the scheduler.
    fn on_mutation(&self, callback: Box<dyn Fn(bool) + Send + Sync>);
}
