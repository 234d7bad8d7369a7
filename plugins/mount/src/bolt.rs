//! Plugin `io.containerd.mount-manager.v1.bolt`: activations by namespace and name.
//!
//! The id is the one that users and configs know; the store is the folder of activations itself, see
//! [`crate::targets`]. What is known of all activations is kept in memory.
//!
//! One call at a time works on a name. Mounting and unmounting go on to their end when the caller goes away, so that
//! what is in memory is what is on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use corten_core::filter::{Filter, map_field};
use corten_core::gc::{Resource, Resources};
use corten_core::keylock::KeyLocks;
use corten_core::mounts::{ActivateOptions, Handler, Manager};
use corten_core::{Context, Error, Kind, Mount, Namespace, Result, Scope, kinds, labels};
use corten_protos::containerd::types::ActivationInfo;
use corten_registry::Registration;
use corten_sys::blocking;
use parking_lot::Mutex;

use crate::plan::{Plan, plan};
use crate::targets::{Activation, Targets};

/// Namespace and name.
type Key = (String, String);

/// The manager. Clones share it.
#[derive(Clone)]
pub struct MountManager {
    inner: Arc<Inner>,
}

struct Inner {
    targets: Targets,
    names: KeyLocks,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    all: BTreeMap<Key, Entry>,
    /// The last id given.
    last: u64,
    /// Counts uses.
    clock: u64,
    /// Folders whose undoing failed: tried again with the next garbage.
    doomed: BTreeSet<u64>,
}

struct Entry {
    id: u64,
    record: Activation,
    version: u64,
    pinned: bool,
}

impl std::fmt::Debug for MountManager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MountManager({})", self.inner.state.lock().all.len())
    }
}

// === impl MountManager ===

impl MountManager {
    /// Opens the folder `targets`: takes up what is mounted, and undoes what is not whole. Images and folders may be
    /// made in it and below `roots`.
    ///
    /// # Errors
    /// The file system's.
    pub async fn open(
        targets: PathBuf,
        roots: Vec<PathBuf>,
        handlers: BTreeMap<String, Arc<dyn Handler>>,
    ) -> Result<Self> {
        blocking(move || {
            let targets = Targets::open(targets, roots, handlers)?;
            let mut state = State::default();
            for id in targets.ids()? {
                state.last = id;
                let record = targets.load(id);
                let known = record.and_then(|record| {
                    let name = record.info.as_ref()?.name.clone();
                    Some(((record.namespace.clone(), name), record))
                });
                let Some((key, record)) = known else {
                    if let Err(error) = targets.undo(id) {
                        tracing::warn!(id, %error, "undo the mounts of an earlier daemon");
                        state.doomed.insert(id);
                    }
                    continue;
                };
                let entry = Entry {
                    id,
                    record,
                    version: 0,
                    pinned: false,
                };
                state.all.insert(key, entry);
            }
            let inner = Inner {
                targets,
                names: KeyLocks::default(),
                state: Mutex::new(state),
            };
            Ok(Self {
                inner: Arc::new(inner),
            })
        })
        .await
    }

    async fn drop_entry(&self, key: Key, only: Option<u64>) -> Result<()> {
        let held = self.inner.names.lock(lock_name(&key)).await;
        let inner = self.inner.clone();
        blocking(move || {
            let _held = held;
            inner.deactivate(&key, only)
        })
        .await
    }
}

fn lock_name((ns, name): &Key) -> String {
    format!("{ns}/{name}")
}

fn unknown(name: &str) -> Error {
    Error::new(Kind::NotFound, format!("mount {name:?} not found"))
}

// === impl Inner ===

impl Inner {
    /// The id of a new activation, unless the name is taken.
    fn begin(&self, key: &Key) -> Result<u64> {
        let mut state = self.state.lock();
        state.clock += 1;
        let now = state.clock;
        if let Some(entry) = state.all.get_mut(key) {
            // Whoever asks for it again is going to use it.
            entry.version = now;
            return Err(Error::already_exists(format!("mount {:?}", key.1)));
        }
        state.last += 1;
        Ok(state.last)
    }

    fn undo(&self, id: u64) -> Result<()> {
        let done = self.targets.undo(id);
        let mut state = self.state.lock();
        if done.is_err() {
            state.doomed.insert(id);
        } else {
            state.doomed.remove(&id);
        }
        done
    }

    fn activate(
        &self,
        key: Key,
        lease: String,
        (mounts, plan): (&[Mount], &Plan),
        options: ActivateOptions,
    ) -> Result<ActivationInfo> {
        let id = self.begin(&key)?;
        let made = self
            .targets
            .make(id, mounts, plan, options.temporary)
            .and_then(|(active, system)| {
                let info = ActivationInfo {
                    name: key.1.clone(),
                    active,
                    system,
                    labels: options.labels,
                };
                let record = Activation {
                    namespace: key.0.clone(),
                    info: Some(info.clone()),
                    lease,
                };
                self.targets.save(id, &record)?;
                Ok((info, record))
            });
        let (info, record) = match made {
            Ok(made) => made,
            Err(e) => {
                if let Err(error) = self.undo(id) {
                    tracing::error!(id, %error, "clean up after a failed activation");
                }
                return Err(e);
            }
        };
        let mut state = self.state.lock();
        state.clock += 1;
        let entry = Entry {
            id,
            record,
            version: state.clock,
            pinned: options.pinned,
        };
        state.all.insert(key, entry);
        Ok(info)
    }

    /// `only`: no more if it was used after this version.
    fn deactivate(&self, key: &Key, only: Option<u64>) -> Result<()> {
        let id = {
            let state = self.state.lock();
            let entry = state.all.get(key).ok_or_else(|| unknown(&key.1))?;
            if only.is_some_and(|version| entry.version != version) {
                return Ok(());
            }
            entry.id
        };
        self.targets.forget(id)?;
        self.state.lock().all.remove(key);
        self.undo(id)
    }

    fn update(
        &self,
        key: &Key,
        wanted: &ActivationInfo,
        paths: &[String],
    ) -> Result<ActivationInfo> {
        let (id, mut record) = {
            let state = self.state.lock();
            let entry = state.all.get(key).ok_or_else(|| unknown(&key.1))?;
            (entry.id, entry.record.clone())
        };
        let info = record.info.get_or_insert_default();
        info.labels = labels::masked(&info.labels, &wanted.labels, paths).ok_or_else(|| {
            Error::invalid(format!(
                "cannot update {:?} field on mount {:?}",
                paths.join(","),
                key.1
            ))
        })?;
        labels::validate_all(&info.labels)?;
        let info = info.clone();
        self.targets.save(id, &record)?;
        let mut state = self.state.lock();
        state.clock += 1;
        let now = state.clock;
        if let Some(entry) = state.all.get_mut(key) {
            (entry.record, entry.version) = (record, now);
        }
        Ok(info)
    }
}

#[async_trait]
impl Manager for MountManager {
    async fn activate(
        &self,
        scope: &Scope,
        name: &str,
        mounts: &[Mount],
        options: ActivateOptions,
    ) -> Result<ActivationInfo> {
        if name.is_empty() {
            return Err(Error::invalid("mount name is required"));
        }
        labels::validate_all(&options.labels)?;
        let handled = |kind: &str| self.inner.targets.handlers.contains_key(kind);
        let Some(plan) = plan(mounts, &options, handled) else {
            return Err(Error::new(
                Kind::NotImplemented,
                Kind::NotImplemented.words(),
            ));
        };
        let key = (scope.namespace.to_string(), name.to_owned());
        let held = self.inner.names.lock(lock_name(&key)).await;
        let (inner, mounts) = (self.inner.clone(), mounts.to_vec());
        let lease = scope.lease.clone().unwrap_or_default();
        blocking(move || {
            let _held = held;
            inner.activate(key, lease, (&mounts, &plan), options)
        })
        .await
    }

    async fn deactivate(&self, ns: &Namespace, name: &str) -> Result<()> {
        self.drop_entry((ns.to_string(), name.to_owned()), None)
            .await
    }

    async fn info(&self, ns: &Namespace, name: &str) -> Result<ActivationInfo> {
        let mut state = self.inner.state.lock();
        state.clock += 1;
        let now = state.clock;
        let entry = state
            .all
            .get_mut(&(ns.to_string(), name.to_owned()))
            .ok_or_else(|| unknown(name))?;
        entry.version = now;
        Ok(entry.record.info.clone().unwrap_or_default())
    }

    async fn update(
        &self,
        ns: &Namespace,
        info: ActivationInfo,
        paths: &[String],
    ) -> Result<ActivationInfo> {
        let key = (ns.to_string(), info.name.clone());
        let held = self.inner.names.lock(lock_name(&key)).await;
        let (inner, paths) = (self.inner.clone(), paths.to_vec());
        blocking(move || {
            let _held = held;
            inner.update(&key, &info, &paths)
        })
        .await
    }

    async fn list(&self, ns: &Namespace, filter: &Filter) -> Result<Vec<ActivationInfo>> {
        let state = self.inner.state.lock();
        let own = state.all.iter().filter(|((n, _), _)| n == ns.as_str());
        Ok(own
            .filter_map(|(_, entry)| entry.record.info.as_ref())
            .filter(|info| {
                filter.matches_with(|path| match path {
                    [field] if field == "name" => Some(info.name.clone()),
                    [field, rest @ ..] if field == "labels" => map_field(&info.labels, rest),
                    _ => None,
                })
            })
            .cloned()
            .collect())
    }
}

#[async_trait]
impl Resources for MountManager {
    fn kind(&self) -> &'static str {
        "mount"
    }

    fn all(&self) -> Vec<Resource> {
        let state = self.inner.state.lock();
        let free = state.all.iter().filter(|(_, entry)| !entry.pinned);
        free.filter_map(|((ns, name), entry)| {
            let lease = &entry.record.lease;
            Some(Resource {
                namespace: Namespace::new(ns.clone()).ok()?,
                name: name.clone(),
                labels: entry.record.info.clone().unwrap_or_default().labels,
                lease: (!lease.is_empty()).then(|| lease.clone()),
                active: false,
                version: entry.version,
            })
        })
        .collect()
    }

    async fn remove(&self, garbage: Vec<Resource>) -> Result<()> {
        let mut first = Ok(());
        let doomed: Vec<u64> = self.inner.state.lock().doomed.iter().copied().collect();
        for resource in garbage {
            let key = (resource.namespace.to_string(), resource.name);
            let done = self
                .drop_entry(key.clone(), Some(resource.version))
                .await
                .with_context(|| format!("deactivate mount {:?}", key.1));
            match done {
                Err(e) if e.kind() != Kind::NotFound && first.is_ok() => first = Err(e),
                _ => tracing::debug!(namespace = key.0, name = key.1, "remove mount"),
            }
        }
        if doomed.is_empty() {
            return first;
        }
        let inner = self.inner.clone();
        let again = blocking(move || {
            let mut first = Ok(());
            for id in doomed {
                let done = inner.undo(id);
                first = first.and(done);
            }
            first
        });
        first.and(again.await)
    }
}

/// The plugin.
pub fn registration() -> Registration {
    Registration::new::<kinds::MountManager>("bolt")
        .requires::<kinds::Metadata>()
        .requires::<kinds::MountHandler>()
        .init_plain(|cx| {
            Box::pin(async move {
                let metadata = cx.single::<kinds::Metadata>()?;
                let handlers = cx.all::<kinds::MountHandler>()?;
                let handlers = handlers.into_iter().map(|(id, (h, _))| (id, h)).collect();
                let roots = vec![cx.properties().root.clone()];
                let manager = MountManager::open(cx.state().join("t"), roots, handlers).await?;
                metadata.collect_also(Arc::new(manager.clone()));
                Ok(Arc::new(manager) as Arc<dyn Manager>)
            })
        })
}
