//! What all snapshotters of this crate do alike: records, removal, clean-up.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use corten_core::snapshots::{Info, SnapshotKind, Usage};
use corten_core::tasks_set::TaskSet;
use corten_core::{Context, Error, Labels, Result};
use corten_sys::blocking;

use crate::records::{New, Record, Records, Snapshot};
use crate::trees::{self, NewTree, Trees};

/// Records and trees of one snapshotter.
#[derive(Clone)]
pub(crate) struct Base {
    inner: Arc<Inner>,
    background: TaskSet,
    sync_remove: bool,
}

struct Inner {
    records: Records,
    trees: Trees,
}

impl std::fmt::Debug for Base {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Base")
            .field("trees", &self.inner.trees)
            .finish_non_exhaustive()
    }
}

impl Base {
    /// Opens `root` and displaces what a crash left; the deletion itself goes on in the background.
    pub(crate) async fn open(root: PathBuf, sync_remove: bool) -> Result<Self> {
        let (inner, left) = blocking(move || {
            let trees = Trees::open(&root)?;
            let records = Records::open(&root.join("metadata.db"))?;
            let left = records.exclusively(|used| trees.sweep(used))?;
            Ok((Inner { records, trees }, left))
        })
        .await?;
        let base = Self {
            inner: Arc::new(inner),
            background: TaskSet::new(),
            sync_remove,
        };
        base.delete_later(left);
        Ok(base)
    }

    pub(crate) fn path(&self, id: u64) -> PathBuf {
        self.inner.trees.path(id)
    }

    fn delete_later(&self, left: Vec<PathBuf>) {
        if left.is_empty() {
            return;
        }
        self.background.spawn("remove snapshots", async move {
            let deleted = blocking(move || {
                trees::delete(left);
                Ok(())
            });
            if let Err(error) = deleted.await {
                tracing::warn!(%error, "remove snapshots");
            }
        });
    }

    pub(crate) async fn get(&self, key: &str) -> Result<Record> {
        let (inner, key) = (self.inner.clone(), key.to_owned());
        blocking(move || inner.records.get(&key)).await
    }

    pub(crate) async fn list(&self) -> Result<Vec<(String, Record)>> {
        let inner = self.inner.clone();
        blocking(move || inner.records.list()).await
    }

    pub(crate) async fn snapshot(&self, key: &str) -> Result<Snapshot> {
        let (inner, key) = (self.inner.clone(), key.to_owned());
        blocking(move || inner.records.snapshot(&key)).await
    }

    pub(crate) async fn update(&self, info: Info, paths: &[String]) -> Result<Record> {
        let (inner, paths) = (self.inner.clone(), paths.to_vec());
        blocking(move || inner.records.update(&info, &paths)).await
    }

    /// Usage of a committed snapshot from its record, of an active one from the tree below `sub`.
    pub(crate) async fn usage(&self, key: &str, sub: &'static str) -> Result<Usage> {
        let record = self.get(key).await?;
        if record.kind() != SnapshotKind::Active {
            return Ok(record.usage());
        }
        let path = self.path(record.id).join(sub);
        blocking(move || measure(&path)).await
    }

    /// Creates a snapshot. `make` fills the new tree, knowing the chain of parents; when it is None the snapshot has
    /// no tree of its own.
    pub(crate) async fn create(
        &self,
        new: New,
        make: Option<impl FnOnce(&NewTree, &[PathBuf]) -> Result<()> + Send + 'static>,
    ) -> Result<Snapshot> {
        if new.key.is_empty() {
            return Err(Error::invalid("snapshot key must not be empty"));
        }
        let inner = self.inner.clone();
        blocking(move || {
            let (mut tree, mut stale) = (None, None);
            if let Some(make) = make {
                // Outside of the transaction: others need not wait for a copy.
                let chain = inner
                    .records
                    .chain(&new.parent)
                    .context("failed to create snapshot")?;
                let chain: Vec<_> = chain.into_iter().map(|id| inner.trees.path(id)).collect();
                let started = inner
                    .trees
                    .start()
                    .context("failed to create prepare snapshot dir")?;
                make(&started, &chain)?;
                tree = Some(started);
            }
            let snapshot = inner
                .records
                .create(new, |made| {
                    let Some(tree) = &mut tree else { return Ok(()) };
                    // An id is given again only when its record could not be committed (a full disk).
                    stale = inner.trees.displace(made.id)?;
                    tree.place(&inner.trees.path(made.id))
                })
                .context("failed to create snapshot")?;
            trees::delete(stale.into_iter().collect());
            Ok(snapshot)
        })
        .await
    }

    pub(crate) async fn commit(
        &self,
        names: (&str, &str, &str),
        labels: Labels,
        sub: &'static str,
    ) -> Result<()> {
        self.commit_with(names, labels, move |tree| measure(&tree.join(sub)))
            .await
    }

    /// Commits; `seal` finishes the tree of the snapshot and tells what it takes.
    pub(crate) async fn commit_with(
        &self,
        (name, key, parent): (&str, &str, &str),
        labels: Labels,
        seal: impl FnOnce(&Path) -> Result<Usage> + Send + 'static,
    ) -> Result<()> {
        if name.is_empty() {
            return Err(Error::invalid("snapshot name must not be empty"));
        }
        let inner = self.inner.clone();
        let (name, key, parent) = (name.to_owned(), key.to_owned(), parent.to_owned());
        blocking(move || {
            let id = inner.records.get(&key)?.id;
            let usage = seal(&inner.trees.path(id))?;
            inner
                .records
                .commit(&name, &key, &parent, labels, usage)
                .with_context(|| format!("failed to commit snapshot {key}"))
        })
        .await
    }

    pub(crate) async fn remove(&self, key: &str) -> Result<()> {
        let (inner, key) = (self.inner.clone(), key.to_owned());
        let sync = self.sync_remove;
        let left = blocking(move || {
            let mut aside = None;
            let removed = inner.records.remove(&key, |id| {
                aside = inner.trees.displace(id)?.map(|path| (id, path));
                Ok(())
            });
            if let Err(e) = removed {
                if let Some((id, path)) = aside {
                    inner.trees.restore(id, &path);
                }
                return Err(e.context(format!("failed to remove snapshot {key}")));
            }
            let left: Vec<_> = aside.map(|a| a.1).into_iter().collect();
            if sync {
                trees::delete(left);
                return Ok(Vec::new());
            }
            Ok(left)
        })
        .await?;
        self.delete_later(left);
        Ok(())
    }

    /// Deletes every tree without record, and waits for it.
    pub(crate) async fn cleanup(&self) -> Result<()> {
        let inner = self.inner.clone();
        blocking(move || {
            trees::delete(inner.records.exclusively(|used| inner.trees.sweep(used))?);
            Ok(())
        })
        .await
    }
}

fn measure(path: &Path) -> Result<Usage> {
    // A view of a parent has no tree of its own.
    let used = match corten_sys::tree::usage(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Usage::default()),
        other => other.with_context(|| format!("measure {}", path.display()))?,
    };
    Ok(Usage {
        inodes: used.inodes,
        size: used.bytes,
    })
}
