//! The records of one snapshotter, in an ACID database with one writer.
//!
//! Tables: `snapshots` (key -> record), `children` ((parent id, child id)), `counters` (`next`: the next id). Ids are
//! never used twice.
//!
//! After an I/O error (a full disk) redb refuses everything until it is opened again. That is done here at once, so the
//! snapshotter works again by itself when there is room.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use corten_core::snapshots::{Info, SnapshotKind, Usage};
use corten_core::{Context, Error, Kind, Labels, Result, labels};
use parking_lot::RwLock;
use prost::Message;
use redb::{
    Database, DatabaseError, ReadOnlyTable, ReadableDatabase, ReadableTable, Table,
    TableDefinition, WriteTransaction,
};

const SNAPSHOTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("snapshots");
const CHILDREN: TableDefinition<'_, (u64, u64), ()> = TableDefinition::new("children");
const COUNTERS: TableDefinition<'_, &str, u64> = TableDefinition::new("counters");

/// Bytes of pages kept in memory: the records of thousands of snapshots.
const CACHE: usize = 2 << 20;
/// How long to wait for another process to release the file.
const PATIENCE: Duration = Duration::from_secs(10);

/// A record as stored.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Record {
    #[prost(uint64, tag = "1")]
    pub(crate) id: u64,
    /// 1 view, 2 active, 3 committed.
    #[prost(uint32, tag = "2")]
    kind: u32,
    #[prost(string, tag = "3")]
    pub(crate) parent: String,
    #[prost(btree_map = "string, string", tag = "4")]
    pub(crate) labels: Labels,
    /// Nanoseconds since the epoch.
    #[prost(uint64, tag = "5")]
    created: u64,
    #[prost(uint64, tag = "6")]
    updated: u64,
    #[prost(int64, tag = "7")]
    inodes: i64,
    #[prost(int64, tag = "8")]
    size: i64,
}

impl Record {
    pub(crate) fn kind(&self) -> SnapshotKind {
        match self.kind {
            2 => SnapshotKind::Active,
            3 => SnapshotKind::Committed,
            _ => SnapshotKind::View,
        }
    }

    fn set_kind(&mut self, kind: SnapshotKind) {
        self.kind = match kind {
            SnapshotKind::View => 1,
            SnapshotKind::Active => 2,
            SnapshotKind::Committed => 3,
        };
    }

    pub(crate) fn usage(&self) -> Usage {
        Usage {
            inodes: self.inodes,
            size: self.size,
        }
    }

    pub(crate) fn info(&self, name: &str) -> Info {
        Info {
            kind: self.kind(),
            name: name.to_owned(),
            parent: self.parent.clone(),
            labels: self.labels.clone(),
            created_at: time(self.created),
            updated_at: time(self.updated),
        }
    }
}

fn time(nanos: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos)
}

fn now() -> u64 {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// A snapshot with the ids of its parents, nearest first.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) id: u64,
    pub(crate) kind: SnapshotKind,
    pub(crate) labels: Labels,
    pub(crate) parents: Vec<u64>,
}

/// What to create.
#[derive(Debug, Clone)]
pub(crate) struct New {
    pub(crate) kind: SnapshotKind,
    pub(crate) key: String,
    pub(crate) parent: String,
    pub(crate) labels: Labels,
}

type SnapshotTable = ReadOnlyTable<&'static str, &'static [u8]>;

/// The database. Whoever works with it holds the lock shared; None when it could not be opened again.
pub(crate) struct Records {
    path: PathBuf,
    db: RwLock<Option<Database>>,
}

/// An error of redb. Unavailable says that the file has to be opened again; nothing else here is of that class.
fn fault(e: impl Into<redb::Error>) -> Error {
    match e.into() {
        e @ (redb::Error::Io(_) | redb::Error::PreviousIo) => {
            Error::new(Kind::Unavailable, "snapshot database").with_source(e)
        }
        e => Error::internal("snapshot database").with_source(e),
    }
}

/// A daemon that is started before the last one has ended waits for it.
fn open(path: &Path) -> Result<Database> {
    let begun = Instant::now();
    let mut warned = false;
    loop {
        let opened = Database::builder().set_cache_size(CACHE).create(path);
        match opened {
            Err(DatabaseError::DatabaseAlreadyOpen) if begun.elapsed() < PATIENCE => {
                if !warned {
                    warned = true;
                    tracing::warn!(path = %path.display(), "wait for another process to close the snapshots");
                }
                std::thread::park_timeout(Duration::from_millis(50));
            }
            other => {
                return other
                    .map_err(fault)
                    .with_context(|| format!("open {}", path.display()));
            }
        }
    }
}

impl Records {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let records = Self {
            db: RwLock::new(Some(open(path)?)),
            path: path.to_owned(),
        };
        records.write(|txn| {
            txn.open_table(SNAPSHOTS).map_err(fault)?;
            txn.open_table(CHILDREN).map_err(fault)?;
            txn.open_table(COUNTERS).map_err(fault)?;
            Ok(())
        })?;
        Ok(records)
    }

    /// Calls `f` with the open database, and opens it again when it failed.
    fn with<T>(&self, f: impl FnOnce(&Database) -> Result<T>) -> Result<T> {
        if self.db.read().is_none() {
            self.reopen();
        }
        let done = match self.db.read().as_ref() {
            Some(db) => f(db),
            None => Err(Error::new(
                Kind::Unavailable,
                "snapshot database cannot be opened",
            )),
        };
        if done.as_ref().is_err_and(|e| e.kind() == Kind::Unavailable) {
            self.reopen();
        }
        done
    }

    fn reopen(&self) {
        let mut db = self.db.write();
        // The old one holds the file's lock.
        db.take();
        match open(&self.path) {
            Ok(opened) => *db = Some(opened),
            Err(error) => tracing::warn!(%error, "open snapshot database again"),
        }
    }

    /// One transaction: all of `f` or nothing.
    fn write<T>(&self, f: impl FnOnce(&WriteTransaction) -> Result<T>) -> Result<T> {
        self.with(|db| {
            let mut txn = db.begin_write().map_err(fault)?;
            // Two-phase commits, and no repair walk after a crash.
            txn.set_quick_repair(true);
            let out = f(&txn)?;
            txn.commit().map_err(fault)?;
            Ok(out)
        })
    }

    /// Looks things up in one state of the database.
    fn read<T>(&self, f: impl FnOnce(&SnapshotTable) -> Result<T>) -> Result<T> {
        self.with(|db| {
            let txn = db.begin_read().map_err(fault)?;
            f(&txn.open_table(SNAPSHOTS).map_err(fault)?)
        })
    }

    /// NotFound "snapshot does not exist".
    pub(crate) fn get(&self, key: &str) -> Result<Record> {
        self.read(|table| found(table, key))
    }

    pub(crate) fn list(&self) -> Result<Vec<(String, Record)>> {
        self.read(|table| {
            let mut out = Vec::new();
            for row in table.iter().map_err(fault)? {
                let (key, value) = row.map_err(fault)?;
                out.push((key.value().to_owned(), decode(value.value())?));
            }
            Ok(out)
        })
    }

    /// An active snapshot or view with its parents.
    pub(crate) fn snapshot(&self, key: &str) -> Result<Snapshot> {
        self.read(|table| {
            let record = found(table, key)?;
            if record.kind() == SnapshotKind::Committed {
                return Err(Error::precondition(format!(
                    "requested snapshot {key} not active or view"
                )));
            }
            let parents = parents(table, &record)?;
            Ok(Snapshot {
                id: record.id,
                kind: record.kind(),
                labels: record.labels,
                parents,
            })
        })
    }

    /// The chain that a child of `parent` would have, nearest first; none for no parent.
    pub(crate) fn chain(&self, parent: &str) -> Result<Vec<u64>> {
        if parent.is_empty() {
            return Ok(Vec::new());
        }
        self.read(|table| {
            let record = usable_parent(table, parent)?;
            let mut chain = vec![record.id];
            chain.extend(parents(table, &record)?);
            Ok(chain)
        })
    }

    /// Adds a record; `place` puts the tree in its place just before the commit.
    pub(crate) fn create(
        &self,
        new: New,
        place: impl FnOnce(&Snapshot) -> Result<()>,
    ) -> Result<Snapshot> {
        self.write(|txn| {
            let mut table = txn.open_table(SNAPSHOTS).map_err(fault)?;
            let mut chain = Vec::new();
            if !new.parent.is_empty() {
                let parent = usable_parent(&table, &new.parent)?;
                chain.push(parent.id);
                chain.extend(parents(&table, &parent)?);
            }
            if find(&table, &new.key)?.is_some() {
                return Err(Error::already_exists(format!("snapshot {}", new.key)));
            }
            let id = next_id(txn)?;
            let now = now();
            let mut record = Record {
                id,
                parent: new.parent,
                labels: new.labels,
                created: now,
                updated: now,
                ..Default::default()
            };
            record.set_kind(new.kind);
            put(&mut table, &new.key, &record)?;
            link(txn, chain.first().copied(), id)?;
            let made = Snapshot {
                id,
                kind: new.kind,
                labels: record.labels,
                parents: chain,
            };
            place(&made)?;
            Ok(made)
        })
    }

    /// Active `key` becomes committed `name` with `labels` (not those of the active one). `parent` rebases one that
    /// was prepared without.
    pub(crate) fn commit(
        &self,
        name: &str,
        key: &str,
        parent: &str,
        labels: Labels,
        usage: Usage,
    ) -> Result<()> {
        self.write(|txn| {
            let mut table = txn.open_table(SNAPSHOTS).map_err(fault)?;
            if find(&table, name)?.is_some() {
                return Err(Error::already_exists(format!("committed snapshot {name}")));
            }
            let Some(mut record) = find(&table, key)? else {
                return Err(Error::not_found(format!(
                    "failed to get active snapshot {key:?}"
                )));
            };
            if record.kind() != SnapshotKind::Active {
                return Err(Error::precondition(format!(
                    "snapshot {key:?} is not active"
                )));
            }
            if record.parent.is_empty() {
                parent.clone_into(&mut record.parent);
            } else if !parent.is_empty() && record.parent != parent {
                return Err(Error::invalid(format!(
                    "cannot change parent of active snapshot {key:?} on commit"
                )));
            }
            if !record.parent.is_empty() {
                let Some(found) = find(&table, &record.parent)? else {
                    return Err(Error::not_found(format!(
                        "missing parent {:?} of snapshot {key:?}",
                        record.parent
                    )));
                };
                if found.kind() != SnapshotKind::Committed {
                    return Err(Error::precondition(format!(
                        "parent {:?} is not committed",
                        record.parent
                    )));
                }
                link(txn, Some(found.id), record.id)?;
            }
            record.set_kind(SnapshotKind::Committed);
            record.labels = labels;
            record.created = now();
            record.updated = record.created;
            (record.inodes, record.size) = (usage.inodes, usage.size);
            table.remove(key).map_err(fault)?;
            put(&mut table, name, &record)
        })
    }

    /// Removes the record; `displace` takes the tree out of its place just before the commit.
    pub(crate) fn remove(&self, key: &str, displace: impl FnOnce(u64) -> Result<()>) -> Result<()> {
        self.write(|txn| {
            let mut table = txn.open_table(SNAPSHOTS).map_err(fault)?;
            let Some(record) = find(&table, key)? else {
                return Err(Error::not_found(format!("snapshot {key}")));
            };
            let mut children = txn.open_table(CHILDREN).map_err(fault)?;
            let mut own = children
                .range((record.id, 0)..=(record.id, u64::MAX))
                .map_err(fault)?;
            if own.next().is_some() {
                return Err(Error::precondition("cannot remove snapshot with child"));
            }
            drop(own);
            if let Some(parent) = find(&table, &record.parent)? {
                children.remove((parent.id, record.id)).map_err(fault)?;
            }
            table.remove(key).map_err(fault)?;
            displace(record.id)
        })
    }

    /// Changes labels under the mask.
    pub(crate) fn update(&self, info: &Info, paths: &[String]) -> Result<Record> {
        self.write(|txn| {
            let mut table = txn.open_table(SNAPSHOTS).map_err(fault)?;
            let mut record = found(&table, &info.name)?;
            record.labels =
                labels::masked(&record.labels, &info.labels, paths).ok_or_else(|| {
                    Error::invalid(format!(
                        "cannot update {:?} field on snapshot {:?}",
                        paths.join(","),
                        info.name
                    ))
                })?;
            record.updated = now();
            put(&mut table, &info.name, &record)?;
            Ok(record)
        })
    }

    /// Calls `f` with the ids in use while nobody can add or remove any.
    pub(crate) fn exclusively<T>(&self, f: impl FnOnce(&HashSet<u64>) -> Result<T>) -> Result<T> {
        self.with(|db| {
            let txn = db.begin_write().map_err(fault)?;
            let mut ids = HashSet::new();
            {
                let table = txn.open_table(SNAPSHOTS).map_err(fault)?;
                for row in table.iter().map_err(fault)? {
                    ids.insert(decode(row.map_err(fault)?.1.value())?.id);
                }
            }
            let out = f(&ids);
            txn.abort().map_err(fault)?;
            out
        })
    }
}

fn found(table: &impl ReadableTable<&'static str, &'static [u8]>, key: &str) -> Result<Record> {
    find(table, key)?.ok_or_else(|| Error::not_found("snapshot does not exist"))
}

fn find(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    key: &str,
) -> Result<Option<Record>> {
    table
        .get(key)
        .map_err(fault)?
        .map(|v| decode(v.value()))
        .transpose()
}

fn decode(bytes: &[u8]) -> Result<Record> {
    Record::decode(bytes)
        .map_err(|e| Error::new(Kind::DataLoss, "snapshot record is damaged").with_source(e))
}

fn put(
    table: &mut Table<'_, &'static str, &'static [u8]>,
    key: &str,
    record: &Record,
) -> Result<()> {
    table
        .insert(key, record.encode_to_vec().as_slice())
        .map_err(fault)?;
    Ok(())
}

fn next_id(txn: &WriteTransaction) -> Result<u64> {
    let mut counters = txn.open_table(COUNTERS).map_err(fault)?;
    let id = counters
        .get("next")
        .map_err(fault)?
        .map_or(1, |v| v.value());
    counters.insert("next", id + 1).map_err(fault)?;
    Ok(id)
}

fn link(txn: &WriteTransaction, parent: Option<u64>, child: u64) -> Result<()> {
    if let Some(parent) = parent {
        let mut children = txn.open_table(CHILDREN).map_err(fault)?;
        children.insert((parent, child), ()).map_err(fault)?;
    }
    Ok(())
}

fn usable_parent(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    parent: &str,
) -> Result<Record> {
    let Some(record) = find(table, parent)? else {
        return Err(Error::not_found(format!(
            "missing parent {parent:?} bucket"
        )));
    };
    if record.kind() != SnapshotKind::Committed {
        return Err(Error::invalid(format!(
            "parent {parent:?} is not committed snapshot"
        )));
    }
    Ok(record)
}

/// Ids of the parents of `record`, nearest first.
fn parents(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    record: &Record,
) -> Result<Vec<u64>> {
    let mut out = Vec::new();
    let mut parent = record.parent.clone();
    while !parent.is_empty() {
        let found = find(table, &parent)?.ok_or_else(|| Error::not_found("missing parent"))?;
        out.push(found.id);
        parent = found.parent;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(key: &str) -> New {
        New {
            kind: SnapshotKind::Active,
            key: key.into(),
            parent: String::new(),
            labels: Labels::from([("a".into(), "x".repeat(4000))]),
        }
    }

    #[test]
    fn a_database_in_use_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metadata.db");
        let first = Records::open(&path).unwrap();
        first.create(new("kept"), |_| Ok(())).unwrap();
        std::thread::scope(|s| {
            let second = s.spawn(|| Records::open(&path).unwrap().get("kept").map(|r| r.id));
            std::thread::park_timeout(Duration::from_millis(120));
            assert!(!second.is_finished());
            drop(first);
            assert_eq!(second.join().unwrap().unwrap(), 1);
        });
    }

    /// Needs a small file system of its own: set the variable to a folder on a tmpfs of a few MiB.
    #[test]
    fn a_full_disk_fails_writes_and_heals_by_itself() {
        let Some(disk) = std::env::var_os("CORTEN_TEST_SMALL_DISK") else {
            return;
        };
        let disk = PathBuf::from(disk);
        let records = Records::open(&disk.join("metadata.db")).unwrap();
        records.create(new("first"), |_| Ok(())).unwrap();
        let mut ballast = std::fs::File::create(disk.join("ballast")).unwrap();
        while std::io::Write::write_all(&mut ballast, &[7; 4096]).is_ok() {}
        drop(ballast);
        let failed = (0..1000).find_map(|i| {
            let made = records.create(new(&format!("k{i}")), |_| Ok(()));
            made.err().map(|e| (i, e))
        });
        let (kept, e) = failed.unwrap();
        assert_eq!(e.kind(), Kind::Unavailable, "{e}");
        std::fs::remove_file(disk.join("ballast")).unwrap();
        records.create(new("second"), |_| Ok(())).unwrap();
        records.get("first").unwrap();
        assert_eq!(records.list().unwrap().len(), kept + 2);
    }
}
