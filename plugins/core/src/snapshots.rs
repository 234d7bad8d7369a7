//! Snapshots: stacks of file system layers.
//!
//! Life: `prepare(key, parent)` gives a writable layer as mounts; `commit(name, key)` freezes it under a name that
//! can be a parent; `view` is read-only. Committed snapshots with children cannot be removed. Mounts are a recipe:
//! who asked for them mounts them.
//!
//! Two traits: a [`Snapshotter`] is a back end (overlayfs, native, a proxy) without namespaces; [`Snapshots`] is
//! what others use, from the metadata plugin, with namespaces, leases, labels and garbage collection.

use async_trait::async_trait;
use std::sync::Arc;
use std::time::SystemTime;

use crate::error::Result;
use crate::filter::Filter;
use crate::labels::Labels;
use crate::scope::Scope;
use crate::{Mount, Namespace};

/// Capability: user-namespace id maps as mount options.
pub const REMAP_IDS: &str = "remap-ids";
/// Capability: remapping works by mount options only.
pub const ONLY_REMAP_IDS: &str = "only-remap-ids";
/// Capability: a parent can be named at commit.
pub const REBASE: &str = "rebase";

/// State of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotKind {
    View,
    Active,
    Committed,
}

impl SnapshotKind {
    /// The name used in filters.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Active => "active",
            Self::Committed => "committed",
        }
    }
}

/// What is known of one snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    pub kind: SnapshotKind,
    /// Key of an active one, name of a committed one.
    pub name: String,
    /// Empty when there is none.
    pub parent: String,
    pub labels: Labels,
    pub created_at: SystemTime,
    pub updated_at: SystemTime,
}

/// Disk usage of one snapshot without its parents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    pub inodes: i64,
    /// Bytes.
    pub size: i64,
}

/// A back end.
#[async_trait]
pub trait Snapshotter: Send + Sync {
    /// NotFound when absent.
    async fn stat(&self, key: &str) -> Result<Info>;
    /// Replaces labels under the mask; nothing else can change.
    async fn update(&self, info: Info, paths: &[String]) -> Result<Info>;
    async fn usage(&self, key: &str) -> Result<Usage>;
    /// Mounts of an active snapshot or view.
    async fn mounts(&self, key: &str) -> Result<Vec<Mount>>;
    /// AlreadyExists when the key is taken; NotFound when the parent is not committed.
    async fn prepare(&self, key: &str, parent: &str, labels: Labels) -> Result<Vec<Mount>>;
    async fn view(&self, key: &str, parent: &str, labels: Labels) -> Result<Vec<Mount>>;
    /// Freezes `key` as `name`. `parent` non-empty rebases onto it (capability `rebase`).
    async fn commit(&self, name: &str, key: &str, parent: &str, labels: Labels) -> Result<()>;
    /// FailedPrecondition while it has children.
    async fn remove(&self, key: &str) -> Result<()>;
    async fn list(&self) -> Result<Vec<Info>>;
    /// Removes what no record names any more.
    async fn cleanup(&self) -> Result<()>;
}

/// The namespaced snapshots of all snapshotters. `snapshotter` is the plugin's id; InvalidArgument
/// "snapshotter not loaded: X" when there is none of that id.
#[async_trait]
pub trait Snapshots: Send + Sync {
    async fn stat(&self, ns: &Namespace, snapshotter: &str, key: &str) -> Result<Info>;
    async fn update(
        &self,
        ns: &Namespace,
        snapshotter: &str,
        info: Info,
        paths: &[String],
    ) -> Result<Info>;
    async fn usage(&self, ns: &Namespace, snapshotter: &str, key: &str) -> Result<Usage>;
    async fn mounts(&self, ns: &Namespace, snapshotter: &str, key: &str) -> Result<Vec<Mount>>;
    async fn prepare(
        &self,
        scope: &Scope,
        snapshotter: &str,
        key: &str,
        parent: &str,
        labels: Labels,
    ) -> Result<Vec<Mount>>;
    async fn view(
        &self,
        scope: &Scope,
        snapshotter: &str,
        key: &str,
        parent: &str,
        labels: Labels,
    ) -> Result<Vec<Mount>>;
    async fn commit(&self, scope: &Scope, snapshotter: &str, commit: Commit) -> Result<()>;
    async fn remove(&self, scope: &Scope, snapshotter: &str, key: &str) -> Result<()>;
    async fn list(&self, ns: &Namespace, snapshotter: &str, filter: &Filter) -> Result<Vec<Info>>;
    async fn cleanup(&self, ns: &Namespace, snapshotter: &str) -> Result<()>;
    /// Ids of the loaded snapshotters.
    fn names(&self) -> Vec<String>;
    /// The back end itself, for capabilities and file system facts.
    fn backend(&self, snapshotter: &str) -> Result<Arc<dyn Snapshotter>>;
}

/// Arguments of [`Snapshots::commit`].
#[derive(Debug, Clone, Default)]
pub struct Commit {
    pub name: String,
    pub key: String,
    /// Rebase target; empty keeps the parent of the prepare.
    pub parent: String,
    pub labels: Labels,
}
