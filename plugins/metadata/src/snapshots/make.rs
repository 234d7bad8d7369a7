//! Making a snapshot: prepare or view.
//!
//! 1. Look: the key and the target must be free (a taken one is leased and AlreadyExists), the parent must be there;
//!    number the backend key. 2. The backend makes it. One that knows the target already answers AlreadyExists: then
//!    its committed snapshot is recorded under the target's name, and the caller learns AlreadyExists. 3. Record it; if
//!    that fails, take it back.

use std::sync::Arc;

use corten_core::protos::time;
use corten_core::snapshots::{Info, SnapshotKind};
use corten_core::{Error, Kind, Labels, Mount, Result, Scope, Timestamp, labels};
use tracing::error;

use super::{at, inherited, link, unknown_parent};
use crate::db::{Db, Layers, ensure_namespace};
use crate::keys::{backend_key, load, save};
use crate::leases;
use crate::records::{Snapshot, checked_labels};
use crate::store::Txn;

/// One call.
#[derive(Clone)]
pub(super) struct Make {
    db: Arc<Db>,
    scope: Scope,
    snapshotter: String,
    key: String,
    parent: String,
    labels: Labels,
    view: bool,
}

/// What looking came to.
enum Looked {
    /// Taken: the words of the error. The lease was added.
    Taken(String),
    /// Free: the backend keys of it and of its parent.
    Free { own: String, parent: String },
}

// === impl Make ===

impl Make {
    pub(super) fn new(
        db: &Arc<Db>,
        scope: &Scope,
        snapshotter: &str,
        key: &str,
        parent: &str,
        mut labels: Labels,
        view: bool,
    ) -> Result<Self> {
        db.layers(snapshotter)?;
        checked_labels("info.Labels", &mut labels)?;
        Ok(Self {
            db: db.clone(),
            scope: scope.clone(),
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels,
            view,
        })
    }

    fn target(&self) -> Option<&String> {
        self.labels.get(labels::SNAPSHOT_REF)
    }

    pub(super) async fn run(self) -> Result<Vec<Mount>> {
        let db = self.db.clone();
        let layers = db.layers(&self.snapshotter)?;
        let _keys = layers.hold(&self.scope.namespace, &[&self.key]).await;
        let this = self.clone();
        let (own, parent) = match db.write(move |txn| this.look(txn)).await? {
            Looked::Taken(what) => return Err(Error::already_exists(what)),
            Looked::Free { own, parent } => (own, parent),
        };
        // Not the sweep lock: a backend that fetches may take long, and collections do not wait for it.
        let _making = layers.making(&own);
        let mut made = self.ask(layers, &own, &parent).await;
        let mut sweep = None;
        if let Err(said) = &made
            && said.kind() == Kind::AlreadyExists
        {
            // From here to its record nothing may sweep what the backend has.
            sweep = Some(layers.sweep.read().await);
            match self.adopt(&parent, said).await? {
                Some(adopted) => return Err(adopted),
                // Swept in between: once more.
                None => made = self.ask(layers, &own, &parent).await,
            }
        }
        let mounts = match made {
            Ok(mounts) => mounts,
            Err(e) if e.kind() == Kind::AlreadyExists => {
                let absent = || {
                    let target = self.target().map_or("", String::as_str);
                    Error::not_found(format!("target snapshot {target:?} in backend"))
                };
                return Err(self.adopt(&parent, &e).await?.unwrap_or_else(absent));
            }
            Err(e) => return Err(e),
        };
        drop(sweep);
        let now = Some(time::now());
        let record = self.record(own.clone(), self.labels.clone(), now, now);
        let this = self.clone();
        let name = self.key.clone();
        let stored = db
            .write(move |txn| this.store(txn, &name, &record, &parent))
            .await;
        let refused = match stored {
            Ok(true) => return Ok(mounts),
            Ok(false) => Error::already_exists(format!("snapshot {:?}", self.key)),
            Err(e) => e,
        };
        if let Err(e) = layers.backend.remove(&own).await {
            error!(snapshotter = self.snapshotter, backend.key = own, error = %e, "take back snapshot");
            db.soil_snapshotter(&self.snapshotter);
        }
        Err(refused)
    }

    async fn ask(&self, layers: &Layers, own: &str, parent: &str) -> Result<Vec<Mount>> {
        let inner = inherited(&self.labels);
        if self.view {
            layers.backend.view(own, parent, inner).await
        } else {
            layers.backend.prepare(own, parent, inner).await
        }
    }

    fn look(&self, txn: &mut Txn<'_>) -> Result<Looked> {
        let ns = &self.scope.namespace;
        ensure_namespace(txn, ns)?;
        let kind = leases::snapshots_of(&self.snapshotter);
        let taken = self
            .target()
            .map(|t| (t, format!("target snapshot {t:?}")))
            .into_iter()
            .chain([(&self.key, format!("snapshot {:?}", self.key))]);
        for (name, what) in taken {
            if txn.has(&at(ns, &self.snapshotter, name))? {
                leases::hold(txn, &self.scope, &kind, name)?;
                return Ok(Looked::Taken(what));
            }
        }
        // A lease that does not exist is found out before the backend works for nothing.
        leases::hold(txn, &self.scope, &kind, &self.key)?;
        let mut parent = String::new();
        if !self.parent.is_empty() {
            let found: Option<Snapshot> = load(txn, &at(ns, &self.snapshotter, &self.parent))?;
            parent = found.ok_or_else(|| unknown_parent(&self.parent))?.backend;
        }
        Ok(Looked::Free {
            own: backend_key(txn, ns.as_str(), &self.key)?,
            parent,
        })
    }

    fn record(
        &self,
        backend: String,
        labels: Labels,
        created_at: Option<Timestamp>,
        updated_at: Option<Timestamp>,
    ) -> Snapshot {
        Snapshot {
            backend,
            parent: self.parent.clone(),
            labels,
            created_at,
            updated_at,
        }
    }

    /// Stores the record under `name`; false when that name is taken. `parent` is what the backend has as parent.
    fn store(
        &self,
        txn: &mut Txn<'_>,
        name: &str,
        record: &Snapshot,
        parent: &str,
    ) -> Result<bool> {
        let (ns, sn) = (&self.scope.namespace, self.snapshotter.as_str());
        let kind = leases::snapshots_of(sn);
        if name != self.key {
            leases::release(txn, &self.scope, &kind, &self.key)?;
        }
        leases::hold(txn, &self.scope, &kind, name)?;
        if txn.has(&at(ns, sn, name))? {
            return Ok(false);
        }
        if !self.parent.is_empty() {
            let found: Option<Snapshot> = load(txn, &at(ns, sn, &self.parent))?;
            if found.ok_or_else(|| unknown_parent(&self.parent))?.backend != parent {
                let what = format!("mismatched parent {} from target {name}", self.parent);
                return Err(Error::invalid(what));
            }
            txn.put(&link(ns, sn, &self.parent, name), &[])?;
        }
        save(txn, &at(ns, sn, name), record)?;
        Ok(true)
    }

    /// The backend says that it has this already, as remote snapshotters do: records it, and gives the error that
    /// tells the caller so. `None` when the backend does not have it after all.
    async fn adopt(&self, parent: &str, said: &Error) -> Result<Option<Error>> {
        let Some(target) = self.target().cloned() else {
            // The key is new, so this is not an answer that callers should take for "skip the layer".
            let what = format!("unexpected error from snapshotter: {said}: unknown");
            return Err(Error::new(Kind::Unknown, what));
        };
        let backend = &self.db.layers(&self.snapshotter)?.backend;
        let all = backend
            .list()
            .await
            .map_err(|e| e.context("failed walking backend snapshots"))?;
        let is_it = |i: &Info| {
            i.kind == SnapshotKind::Committed
                && i.labels.get(labels::SNAPSHOT_REF) == Some(&target)
                && i.parent == parent
        };
        let Some(found) = all.into_iter().find(is_it) else {
            return Ok(None);
        };
        let mut labels = found.labels;
        labels.extend(self.labels.clone());
        let record = self.record(
            found.name,
            labels,
            Some(found.created_at.into()),
            Some(found.updated_at.into()),
        );
        let (this, name, parent) = (self.clone(), target.clone(), found.parent);
        self.db
            .write(move |txn| this.store(txn, &name, &record, &parent))
            .await?;
        let what = format!("target snapshot {target:?} from snapshotter");
        Ok(Some(Error::already_exists(what)))
    }
}
