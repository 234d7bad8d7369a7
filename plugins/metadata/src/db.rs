//! The database: the store together with what its records name (blobs, snapshots) and whom it tells (events, GC).
//!
//! Order of locks, outer first: key locks of a snapshotter, then the sweep lock of a snapshotter or of the content.
//! Whoever makes a thing in a backend holds the sweep lock shared from before the backend call until the record is
//! durable; a sweep holds it alone and removes what no record names. A snapshot's making may take long (a remote
//! snapshotter fetches) and is announced instead of locked. So nothing is swept between its making and its record.
//! Marking needs no lock: it is one mutation among the others.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use corten_core::content::Backend;
use corten_core::events::{self, Events};
use corten_core::gc::Resources;
use corten_core::keylock::{KeyGuard, KeyLocks};
use corten_core::snapshots::Snapshotter;
use corten_core::tasks_set::TaskSet;
use corten_core::{Context as _, Error, Namespace, Result, Scope};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{RwLock as AsyncRwLock, oneshot};
use tracing::warn;

use crate::keys;
use crate::store::{Options, Read, Store, Txn};

/// File name of the store in the plugin's folder.
pub(crate) const FILE: &str = "meta.redb";
/// containerd's own database in the same folder, when the root was containerd's.
const FOREIGN: &str = "meta.db";

/// What a database is opened with.
pub struct Parts {
    /// The plugin's folder; made when absent.
    pub root: PathBuf,
    pub content: Arc<dyn Backend>,
    /// By plugin id.
    pub snapshotters: BTreeMap<String, Arc<dyn Snapshotter>>,
    pub events: Arc<dyn Events>,
    /// Content policy `isolated`: who wants a blob of another namespace has to bring its bytes.
    pub isolated: bool,
    /// Trade durability of the last half second for speed.
    pub no_sync: bool,
    /// How long to wait for another process that has the database open; none: for ever.
    pub patience: Option<std::time::Duration>,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts")
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}

/// Told after each change whether something was deleted since the last collection.
pub(crate) type Callback = Box<dyn Fn(bool) + Send + Sync>;

pub(crate) struct Db {
    pub(crate) store: Store,
    pub(crate) content: Arc<dyn Backend>,
    /// Shared by whoever makes blobs or ingests, alone by their sweep.
    pub(crate) content_sweep: AsyncRwLock<()>,
    /// Held while the record of an ingest and its bytes in the backend come or go together; taken after the sweep's lock.
    ingests: KeyLocks,
    pub(crate) snapshotters: BTreeMap<String, Layers>,
    pub(crate) isolated: bool,
    /// The root was containerd's, whose database names blobs and snapshots too: nothing may be swept.
    pub(crate) foreign: bool,
    /// What has to be swept at the next collection.
    pub(crate) dirty: Mutex<Dirty>,
    /// Something was deleted since the last collection.
    pub(crate) deleted: AtomicBool,
    events: Arc<dyn Events>,
    callbacks: RwLock<Vec<Callback>>,
    /// What is collected with our own.
    others: RwLock<Vec<Arc<dyn Resources>>>,
    tasks: TaskSet,
}

/// One snapshotter with its locks.
pub(crate) struct Layers {
    pub(crate) backend: Arc<dyn Snapshotter>,
    /// Shared by whoever makes snapshots, alone by their sweep.
    pub(crate) sweep: AsyncRwLock<()>,
    keys: KeyLocks,
    /// Backend keys that are being made and have no record yet.
    making: Mutex<HashSet<String>>,
}

/// See [`Layers::making`].
pub(crate) struct Making<'a> {
    layers: &'a Layers,
    key: String,
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        self.layers.making.lock().remove(&self.key);
    }
}

/// What a deletion leaves behind.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Dirt<'a> {
    /// At most records.
    Records,
    /// A blob or an ingest.
    Content,
    /// A snapshot of this snapshotter.
    Snapshots(&'a str),
}

/// Backends with possible garbage.
#[derive(Debug, Default)]
pub(crate) struct Dirty {
    pub(crate) content: bool,
    pub(crate) snapshotters: BTreeSet<String>,
}

// === impl Db ===

impl Db {
    /// Waits until nobody else opens, commits or aborts this ingest: one who fails to open it takes its record back, and
    /// must not take one that somebody else came to use.
    pub(crate) async fn lock_ingest(&self, scope: &Scope, r#ref: &str) -> KeyGuard {
        let name = format!("{}/{ref}", scope.namespace);
        self.ingests.lock(name).await
    }

    pub(crate) fn open(parts: Parts) -> Result<Arc<Self>> {
        std::fs::create_dir_all(&parts.root)
            .with_context(|| format!("make metadata folder {}", parts.root.display()))?;
        let foreign = parts.root.join(FOREIGN).exists();
        let options = Options {
            no_sync: parts.no_sync,
            patience: parts.patience,
        };
        let store = Store::open(&parts.root.join(FILE), options)?;
        // A daemon that died between the sweep of records and that of the backends left garbage: look once.
        let dirty = Dirty {
            content: true,
            snapshotters: parts.snapshotters.keys().cloned().collect(),
        };
        if foreign {
            warn!(
                path = %parts.root.join(FOREIGN).display(),
                "containerd's own database is here: its records are not read, and no blob or snapshot is ever \
                 freed while that file is there"
            );
        }
        let layers = |backend| Layers {
            backend,
            sweep: AsyncRwLock::default(),
            keys: KeyLocks::default(),
            making: Mutex::default(),
        };
        Ok(Arc::new(Self {
            store,
            content: parts.content,
            content_sweep: AsyncRwLock::default(),
            ingests: KeyLocks::default(),
            snapshotters: parts
                .snapshotters
                .into_iter()
                .map(|(k, v)| (k, layers(v)))
                .collect(),
            isolated: parts.isolated,
            foreign,
            dirty: Mutex::new(dirty),
            deleted: AtomicBool::new(false),
            events: parts.events,
            callbacks: RwLock::default(),
            others: RwLock::default(),
            tasks: TaskSet::new(),
        }))
    }

    /// Looks things up in a snapshot.
    pub(crate) fn read<T>(&self, f: impl FnOnce(&dyn Read) -> Result<T>) -> Result<T> {
        self.store.read(f)
    }

    /// Changes things and tells the scheduler.
    pub(crate) async fn write<T, F>(&self, f: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut Txn<'_>) -> Result<T> + Send + 'static,
    {
        let (out, changed) = self.store.write(f).await?;
        if changed {
            self.changed();
        }
        Ok(out)
    }

    /// Deletes things: the same, and the next collection has work, in the backend too when `dirt` says so.
    pub(crate) async fn write_deleting<T, F>(&self, dirt: Dirt<'_>, f: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut Txn<'_>) -> Result<T> + Send + 'static,
    {
        let (out, changed) = self.store.write(f).await?;
        if changed {
            // Before the callback: a collection that it starts must see them.
            match dirt {
                Dirt::Records => {}
                Dirt::Content => self.soil_content(),
                Dirt::Snapshots(snapshotter) => self.soil_snapshotter(snapshotter),
            }
            self.deleted.store(true, Ordering::SeqCst);
            self.changed();
        }
        Ok(out)
    }

    fn changed(&self) {
        let deleted = self.deleted.load(Ordering::SeqCst);
        for callback in self.callbacks.read().iter() {
            callback(deleted);
        }
    }

    pub(crate) fn on_mutation(&self, callback: Callback) {
        self.callbacks.write().push(callback);
    }

    pub(crate) fn collect_also(&self, resources: Arc<dyn Resources>) {
        let mut others = self.others.write();
        others.retain(|o| o.kind() != resources.kind());
        others.push(resources);
    }

    /// What is collected with our own.
    pub(crate) fn others(&self) -> Vec<Arc<dyn Resources>> {
        self.others.read().clone()
    }

    /// Runs `work` to its end even when the caller goes away: used where several steps must not be cut in two.
    pub(crate) async fn whole<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let (reply, result) = oneshot::channel();
        self.tasks.spawn("metadata", async move {
            // Nobody waits for an abandoned call.
            let _ = reply.send(work.await);
        });
        result
            .await
            .map_err(|_| Error::internal("metadata call panicked"))?
    }

    pub(crate) async fn publish<M: prost::Message + prost::Name>(
        &self,
        ns: &Namespace,
        topic: &str,
        event: &M,
    ) {
        events::publish(&*self.events, ns, topic, event).await;
    }

    /// The snapshotter of this id.
    pub(crate) fn layers(&self, snapshotter: &str) -> Result<&Layers> {
        self.snapshotters
            .get(snapshotter)
            .ok_or_else(|| Error::invalid(format!("snapshotter not loaded: {snapshotter}")))
    }

    /// The next collection sweeps this snapshotter.
    pub(crate) fn soil_snapshotter(&self, snapshotter: &str) {
        self.dirty
            .lock()
            .snapshotters
            .insert(snapshotter.to_owned());
    }

    /// The next collection sweeps the content.
    pub(crate) fn soil_content(&self) {
        self.dirty.lock().content = true;
    }
}

/// Makes the namespace when it is not there: writes do so implicitly.
pub(crate) fn ensure_namespace(txn: &mut Txn<'_>, ns: &Namespace) -> Result<()> {
    let key = keys::key(keys::NAMESPACES, &[ns.as_str()]);
    if !txn.has(&key)? {
        let record = crate::namespaces::Record {
            name: ns.to_string(),
            ..Default::default()
        };
        keys::save(txn, &key, &record)?;
    }
    Ok(())
}

// === impl Layers ===

impl Layers {
    /// Holds all `names` of `ns`.
    pub(crate) async fn hold(&self, ns: &Namespace, names: &[&str]) -> Vec<KeyGuard> {
        let names = names.iter().map(|n| format!("{ns}/{n}")).collect();
        self.keys.lock_all(names).await
    }

    /// Announces a backend key that is about to be made; keep the guard until its record is durable.
    pub(crate) fn making(&self, key: &str) -> Making<'_> {
        self.making.lock().insert(key.to_owned());
        Making {
            layers: self,
            key: key.to_owned(),
        }
    }

    /// The backend keys that are being made.
    pub(crate) fn being_made(&self) -> HashSet<String> {
        self.making.lock().clone()
    }
}
