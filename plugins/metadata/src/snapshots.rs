//! Namespaced snapshots over the store and the snapshotters.
//!
//! A record gives a key of a namespace its backend key `<ns>/<number>/<key>`, its parent, labels and times; the state
//! and the layer itself are the backend's. Removing deletes the record; the layer goes with the next collection.
//! Steps that touch a backend and the store run as a whole, under the locks of the keys they name.

mod make;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use corten_core::filter::{Fields, Filter, map_field};
use corten_core::protos::containerd::events::{SnapshotCommit, SnapshotPrepare, SnapshotRemove};
use corten_core::protos::time;
use corten_core::snapshots::{Commit, Info, Snapshots, Snapshotter, Usage};
use corten_core::{Error, Labels, Mount, Namespace, Result, Scope, labels};
use tracing::error;

use crate::db::{Db, Dirt};
use crate::keys::{self, any, backend_key, key, load, save};
use crate::leases;
use crate::records::{Snapshot, checked_labels, masked_labels, system_time};
use crate::store::{Read, Txn};

pub(crate) struct Store(pub(crate) Arc<Db>);

struct View<'a>(&'a Info);

#[async_trait]
impl Snapshots for Store {
    async fn stat(&self, ns: &Namespace, snapshotter: &str, key: &str) -> Result<Info> {
        let layers = self.0.layers(snapshotter)?;
        let record = self.0.read(|r| get(r, ns, snapshotter, key))?;
        let info = layers.backend.stat(&record.backend).await?;
        Ok(over(info, key.to_owned(), record))
    }

    async fn update(
        &self,
        ns: &Namespace,
        snapshotter: &str,
        info: Info,
        paths: &[String],
    ) -> Result<Info> {
        if info.name.is_empty() {
            return Err(Error::new(
                corten_core::Kind::InvalidArgument,
                "invalid argument",
            ));
        }
        let (db, ns) = (self.0.clone(), ns.clone());
        let (snapshotter, paths) = (snapshotter.to_owned(), paths.to_vec());
        self.0
            .whole(async move { update(&db, ns, snapshotter, info, paths).await })
            .await
    }

    async fn usage(&self, ns: &Namespace, snapshotter: &str, key: &str) -> Result<Usage> {
        let layers = self.0.layers(snapshotter)?;
        let record = self.0.read(|r| get(r, ns, snapshotter, key))?;
        layers.backend.usage(&record.backend).await
    }

    async fn mounts(&self, ns: &Namespace, snapshotter: &str, key: &str) -> Result<Vec<Mount>> {
        let layers = self.0.layers(snapshotter)?;
        let record = self.0.read(|r| get(r, ns, snapshotter, key))?;
        layers.backend.mounts(&record.backend).await
    }

    async fn prepare(
        &self,
        scope: &Scope,
        snapshotter: &str,
        key: &str,
        parent: &str,
        labels: Labels,
    ) -> Result<Vec<Mount>> {
        let make = make::Make::new(&self.0, scope, snapshotter, key, parent, labels, false)?;
        let mounts = self.0.whole(make.run()).await?;
        let event = SnapshotPrepare {
            key: key.to_owned(),
            parent: parent.to_owned(),
            snapshotter: snapshotter.to_owned(),
        };
        self.0
            .publish(&scope.namespace, "/snapshot/prepare", &event)
            .await;
        Ok(mounts)
    }

    async fn view(
        &self,
        scope: &Scope,
        snapshotter: &str,
        key: &str,
        parent: &str,
        labels: Labels,
    ) -> Result<Vec<Mount>> {
        // containerd publishes nothing for a view.
        let make = make::Make::new(&self.0, scope, snapshotter, key, parent, labels, true)?;
        self.0.whole(make.run()).await
    }

    async fn commit(&self, scope: &Scope, snapshotter: &str, mut c: Commit) -> Result<()> {
        self.0.layers(snapshotter)?;
        checked_labels("info.Labels", &mut c.labels)?;
        let (db, owned) = (self.0.clone(), scope.clone());
        let name = snapshotter.to_owned();
        self.0
            .whole(async move { commit(&db, owned, name, c).await })
            .await
    }

    async fn remove(&self, scope: &Scope, snapshotter: &str, key: &str) -> Result<()> {
        self.0.layers(snapshotter)?;
        let (db, owned) = (self.0.clone(), scope.clone());
        let (snapshotter, key) = (snapshotter.to_owned(), key.to_owned());
        self.0
            .whole(async move { remove(&db, owned, snapshotter, key).await })
            .await
    }

    async fn list(&self, ns: &Namespace, snapshotter: &str, filter: &Filter) -> Result<Vec<Info>> {
        let layers = self.0.layers(snapshotter)?;
        let mut records: Vec<(String, Snapshot)> = Vec::new();
        self.0.read(|r| {
            let prefix = key(keys::SNAPSHOTS, &[ns.as_str(), snapshotter]);
            keys::each(r, &prefix, &mut |k, record| {
                records.push((keys::last(k)?, record));
                Ok(())
            })
        })?;
        if records.is_empty() {
            return Ok(Vec::new());
        }
        // One question to the backend instead of one for each.
        let all = layers.backend.list().await?;
        let mut all: BTreeMap<String, Info> =
            all.into_iter().map(|i| (i.name.clone(), i)).collect();
        Ok(records
            .into_iter()
            .filter_map(|(name, record)| Some(over(all.remove(&record.backend)?, name, record)))
            .filter(|info| filter.matches(&View(info)))
            .collect())
    }

    async fn cleanup(&self, _ns: &Namespace, snapshotter: &str) -> Result<()> {
        self.0.layers(snapshotter)?.backend.cleanup().await
    }

    fn names(&self) -> Vec<String> {
        self.0.snapshotters.keys().cloned().collect()
    }

    fn backend(&self, snapshotter: &str) -> Result<Arc<dyn Snapshotter>> {
        Ok(self.0.layers(snapshotter)?.backend.clone())
    }
}

impl Fields for View<'_> {
    fn field(&self, path: &[String]) -> Option<String> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "kind" => Some(self.0.kind.as_str().to_owned()),
            "name" => Some(self.0.name.clone()),
            "parent" => Some(self.0.parent.clone()),
            "labels" => map_field(&self.0.labels, rest),
            _ => None,
        }
    }
}

// === records ===

/// The key of a snapshot's record.
fn at(ns: &Namespace, snapshotter: &str, name: &str) -> Vec<u8> {
    key(keys::SNAPSHOTS, &[ns.as_str(), snapshotter, name])
}

/// The key that says that `name` is a child of `parent`.
fn link(ns: &Namespace, snapshotter: &str, parent: &str, name: &str) -> Vec<u8> {
    key(keys::CHILDREN, &[ns.as_str(), snapshotter, parent, name])
}

fn unknown(name: &str) -> Error {
    Error::not_found(format!("snapshot {name} does not exist"))
}

fn unknown_parent(name: &str) -> Error {
    Error::not_found(format!("parent snapshot {name} does not exist"))
}

fn get(from: &dyn Read, ns: &Namespace, snapshotter: &str, name: &str) -> Result<Snapshot> {
    load(from, &at(ns, snapshotter, name))?.ok_or_else(|| unknown(name))
}

/// The backend's information under the record's: name, parent, times and labels are the namespace's.
fn over(backend: Info, name: String, record: Snapshot) -> Info {
    let mut labels = backend.labels;
    labels.extend(record.labels);
    Info {
        kind: backend.kind,
        name,
        parent: record.parent,
        labels,
        created_at: system_time(record.created_at),
        updated_at: system_time(record.updated_at),
    }
}

/// The labels that reach a snapshotter.
fn inherited(all: &Labels) -> Labels {
    all.iter()
        .filter(|(k, _)| *k == labels::SNAPSHOT_REF || k.starts_with(labels::SNAPSHOT_PREFIX))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect()
}

/// Deletes a record and its link from the parent.
pub(crate) fn delete_record(
    txn: &mut Txn<'_>,
    ns: &Namespace,
    snapshotter: &str,
    name: &str,
    parent: &str,
) -> Result<()> {
    txn.delete(&at(ns, snapshotter, name))?;
    if !parent.is_empty() {
        txn.delete(&link(ns, snapshotter, parent, name))?;
    }
    Ok(())
}

// === steps ===

async fn update(
    db: &Db,
    ns: Namespace,
    snapshotter: String,
    wanted: Info,
    paths: Vec<String>,
) -> Result<Info> {
    let layers = db.layers(&snapshotter)?;
    let _keys = layers.hold(&ns, &[&wanted.name]).await;
    let _sweep = layers.sweep.read().await;
    let name = wanted.name.clone();
    let mut record = db.read(|r| get(r, &ns, &snapshotter, &name))?;
    masked_labels(&mut record.labels, &wanted.labels, &paths, || {
        format!("snapshot {name:?}")
    })?;
    checked_labels("info.Labels", &mut record.labels)?;
    record.updated_at = Some(time::now());
    // The backend first: should the daemon die in between, the client has no answer and asks again.
    let inner = Info {
        name: record.backend.clone(),
        labels: inherited(&record.labels),
        parent: String::new(),
        ..wanted
    };
    let inner = layers.backend.update(inner, &paths).await?;
    let stored = record.clone();
    let place = at(&ns, &snapshotter, &name);
    db.write(move |txn| {
        // A collection may have removed it meanwhile.
        if !txn.has(&place)? {
            return Err(unknown(&stored.backend));
        }
        save(txn, &place, &stored)
    })
    .await?;
    Ok(over(inner, name, record))
}

/// What the records say before a commit.
struct Planned {
    /// The active snapshot in the backend and what it becomes there.
    from: String,
    to: String,
    /// Parent in the namespace; empty when none.
    parent: String,
    /// Backend key of a parent that is only named now.
    rebase: String,
}

async fn commit(db: &Db, scope: Scope, snapshotter: String, c: Commit) -> Result<()> {
    let layers = db.layers(&snapshotter)?;
    let ns = scope.namespace.clone();
    let mut names = vec![c.name.as_str(), c.key.as_str()];
    names.extend((!c.parent.is_empty()).then_some(c.parent.as_str()));
    let _keys = layers.hold(&ns, &names).await;
    let _sweep = layers.sweep.read().await;
    let event = SnapshotCommit {
        key: c.key.clone(),
        name: c.name.clone(),
        snapshotter: snapshotter.clone(),
    };
    let (owned, sn, request) = (scope.clone(), snapshotter.clone(), c.clone());
    let planned = db
        .write(move |txn| plan_commit(txn, &owned, &sn, &request))
        .await?;
    let Some(planned) = planned else {
        return Err(Error::already_exists(format!("snapshot {:?}", c.name)));
    };
    let inner = inherited(&c.labels);
    layers
        .backend
        .commit(&planned.to, &planned.from, &planned.rebase, inner)
        .await?;
    let to = planned.to.clone();
    let (owned, sn) = (scope.clone(), snapshotter.clone());
    let done = db
        .write(move |txn| finish_commit(txn, &owned, &sn, c, planned))
        .await;
    if let Err(e) = done {
        // A collection took the active one away: what was committed is nobody's.
        error!(snapshotter, backend.key = to, error = %e, "record committed snapshot");
        db.soil_snapshotter(&snapshotter);
        return Err(e);
    }
    db.publish(&ns, "/snapshot/commit", &event).await;
    Ok(())
}

/// Checks a commit and numbers it; `None` when the name is taken (and now leased).
fn plan_commit(
    txn: &mut Txn<'_>,
    scope: &Scope,
    snapshotter: &str,
    c: &Commit,
) -> Result<Option<Planned>> {
    let ns = &scope.namespace;
    if txn.has(&at(ns, snapshotter, &c.name))? {
        leases::hold(txn, scope, &leases::snapshots_of(snapshotter), &c.name)?;
        return Ok(None);
    }
    let active = get(txn, ns, snapshotter, &c.key)?;
    let rebase = active.parent.is_empty() && !c.parent.is_empty();
    let parent = if rebase {
        c.parent.clone()
    } else {
        active.parent
    };
    let mut parent_key = String::new();
    if !parent.is_empty() {
        let found: Option<Snapshot> = load(txn, &at(ns, snapshotter, &parent))?;
        parent_key = found.ok_or_else(|| unknown_parent(&parent))?.backend;
    }
    Ok(Some(Planned {
        from: active.backend,
        to: backend_key(txn, ns.as_str(), &c.name)?,
        parent,
        rebase: if rebase { parent_key } else { String::new() },
    }))
}

/// Records what the backend has committed.
fn finish_commit(
    txn: &mut Txn<'_>,
    scope: &Scope,
    snapshotter: &str,
    c: Commit,
    planned: Planned,
) -> Result<()> {
    let ns = &scope.namespace;
    let kind = leases::snapshots_of(snapshotter);
    let active = get(txn, ns, snapshotter, &c.key)?;
    let now = Some(time::now());
    delete_record(txn, ns, snapshotter, &c.key, &active.parent)?;
    leases::release(txn, scope, &kind, &c.key)?;
    leases::hold(txn, scope, &kind, &c.name)?;
    if !planned.parent.is_empty() {
        if !txn.has(&at(ns, snapshotter, &planned.parent))? {
            return Err(unknown_parent(&planned.parent));
        }
        txn.put(&link(ns, snapshotter, &planned.parent, &c.name), &[])?;
    }
    let record = Snapshot {
        backend: planned.to,
        parent: planned.parent,
        labels: c.labels,
        created_at: now,
        updated_at: now,
    };
    save(txn, &at(ns, snapshotter, &c.name), &record)
}

async fn remove(db: &Db, scope: Scope, snapshotter: String, name: String) -> Result<()> {
    let layers = db.layers(&snapshotter)?;
    let _keys = layers.hold(&scope.namespace, &[&name]).await;
    let event = SnapshotRemove {
        key: name.clone(),
        snapshotter: snapshotter.clone(),
    };
    let (owned, sn) = (scope.clone(), snapshotter.clone());
    db.write_deleting(Dirt::Snapshots(&snapshotter), move |txn| {
        let ns = &owned.namespace;
        let record = get(txn, ns, &sn, &name)?;
        if any(txn, &key(keys::CHILDREN, &[ns.as_str(), &sn, &name]))? {
            return Err(Error::precondition("cannot remove snapshot with child"));
        }
        delete_record(txn, ns, &sn, &name, &record.parent)?;
        leases::release(txn, &owned, &leases::snapshots_of(&sn), &name)
    })
    .await?;
    db.publish(&scope.namespace, "/snapshot/remove", &event)
        .await;
    Ok(())
}
