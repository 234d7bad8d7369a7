//! The store: one ordered map of bytes in one redb file, with transactions. Nothing else here knows of redb.
//!
//! One thread writes. It takes all waiting mutations as one batch, runs each against the transaction and commits once
//! (group commit): concurrent writers share the two fsyncs. Each mutation sees those before it and is atomic by itself:
//! it writes into an overlay that is merged when it succeeds and dropped when it fails, so a failing one leaves nothing
//! and touches no other. Every caller waits until its change is durable. Readers use snapshots (MVCC) and wait for
//! nobody.
//!
//! Every commit saves the allocator's state (`quick_repair`, which implies two-phase commit): opening after kill -9
//! takes as long as after a clean stop. After an I/O error redb refuses everything until it is opened again; the writer
//! does that, so a disk that was full works again by itself when there is room. Beside the file lies some space held
//! back (`reserve.rs`): on a full disk it is given up, and the commit that failed is made again.

mod reserve;
mod writer;

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::ops::Bound;
use std::os::unix::fs::OpenOptionsExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use corten_core::{Context as _, Error, Kind, Result};
use parking_lot::RwLock;
use redb::{ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tracing::warn;

use writer::{Job, Writer};

/// Version of the layout in `keys.rs` and `records.rs`.
const SCHEMA: u64 = 1;
/// Mutations that wait for the writer at most; further callers wait for a place.
const WAITING: usize = 1024;
/// How long another process may have the file that was ours a moment ago.
const REOPEN_PATIENCE: Duration = Duration::from_secs(10);

const RECORDS: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("records");
const META: TableDefinition<'static, &str, u64> = TableDefinition::new("corten");

/// Is shown keys and values, and says whether to go on.
pub(crate) type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> Result<bool> + 'a;

/// Looking things up, in a snapshot or inside a mutation.
pub(crate) trait Read {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>>;
    /// Visits all pairs whose key begins with `prefix`, in order, until `visit` returns false.
    fn scan(&self, prefix: &[u8], visit: &mut Visit<'_>) -> Result<()>;
}

/// A mutation under way: the transaction with the mutation's own writes over it.
pub(crate) struct Txn<'a> {
    base: &'a dyn Read,
    pending: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
}

/// How to open a store.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Options {
    /// Commits are durable only after a while: fast, and a crash loses the last of them.
    pub no_sync: bool,
    /// How long to wait for another process to release the file; none: for ever.
    pub patience: Option<Duration>,
}

/// The open store. Dropping it waits for the writer.
pub(crate) struct Store {
    file: Arc<File>,
    jobs: Option<mpsc::SyncSender<Job>>,
    places: Arc<Semaphore>,
    writer: Option<JoinHandle<()>>,
}

/// The database file, reopened after I/O errors.
pub(crate) struct File {
    path: PathBuf,
    database: RwLock<Option<redb::Database>>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("path", &self.file.path)
            .finish_non_exhaustive()
    }
}

// === impl Store ===

impl Store {
    /// Opens or makes the store at `path`; its folder must exist.
    pub(crate) fn open(path: &Path, options: Options) -> Result<Self> {
        let database = open_patiently(path, options.patience)?;
        check_schema(&database)
            .with_context(|| format!("open metadata database {}", path.display()))?;
        let file = Arc::new(File {
            path: path.to_owned(),
            database: RwLock::new(Some(database)),
        });
        // As many places as permits: a send never blocks and never fails for want of room.
        let (jobs, queue) = mpsc::sync_channel(WAITING);
        let writer = Writer::new(file.clone(), queue, options);
        let writer = std::thread::Builder::new()
            .name("metadata-writer".into())
            .spawn(move || writer.run())
            .context("start metadata writer")?;
        Ok(Self {
            file,
            jobs: Some(jobs),
            places: Arc::new(Semaphore::new(WAITING)),
            writer: Some(writer),
        })
    }

    /// Runs `f` on a snapshot.
    pub(crate) fn read<T>(&self, f: impl FnOnce(&dyn Read) -> Result<T>) -> Result<T> {
        // The guard is not held while `f` runs, so that a reopen never waits for a slow reader's callbacks.
        let begin = || {
            self.file
                .with(|db| db.begin_read().map_err(failed("begin read")))
        };
        let snapshot = match begin() {
            Err(e) if e.kind() == Kind::Unavailable => {
                self.file.reopen();
                begin()?
            }
            other => other?,
        };
        let table = snapshot
            .open_table(RECORDS)
            .map_err(failed("open records"))?;
        f(&Base(&table))
    }

    /// Runs `f` as one atomic mutation and waits until it is durable. The flag tells whether anything changed.
    ///
    /// Cancel-safe in the sense that an abandoned mutation still happens as a whole.
    pub(crate) async fn write<T, F>(&self, f: F) -> Result<(T, bool)>
    where
        T: Send + 'static,
        F: FnOnce(&mut Txn<'_>) -> Result<T> + Send + 'static,
    {
        let closed = || Error::new(Kind::Unavailable, "metadata database is closed");
        let place = self
            .places
            .clone()
            .acquire_owned()
            .await
            .map_err(|_| closed())?;
        let (reply, result) = oneshot::channel();
        let job = job(f, reply, place);
        self.jobs
            .as_ref()
            .ok_or_else(closed)?
            .try_send(job)
            .map_err(|_| closed())?;
        result.await.map_err(|_| closed())?
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.jobs.take();
        if self.writer.take().is_some_and(|w| w.join().is_err()) {
            warn!("metadata writer panicked");
        }
    }
}

/// Packs `f` so that the writer needs not know `T`.
fn job<T, F>(f: F, reply: oneshot::Sender<Result<(T, bool)>>, place: OwnedSemaphorePermit) -> Job
where
    T: Send + 'static,
    F: FnOnce(&mut Txn<'_>) -> Result<T> + Send + 'static,
{
    Box::new(move |txn| {
        let mut changed = false;
        let done = txn.map(|txn| {
            // The overlay of a mutation that panicked is dropped, so nothing half done survives it.
            let done = catch_unwind(AssertUnwindSafe(|| f(txn)))
                .unwrap_or_else(|_| Err(Error::internal("metadata mutation panicked")));
            changed = done.is_ok() && !txn.pending.is_empty();
            done
        });
        let keep = matches!(done, Some(Ok(_)));
        let finish = move |committed: Result<()>| {
            drop(place);
            let answer = match done {
                Some(done) => done.and_then(|t| committed.map(|()| (t, changed))),
                None => Err(committed
                    .err()
                    .unwrap_or_else(|| Error::internal("not run"))),
            };
            // Nobody waits for an abandoned call.
            let _ = reply.send(answer);
        };
        (keep, Box::new(finish))
    })
}

// === impl File ===

impl File {
    /// Uses the open database; opens it again when an earlier attempt failed.
    fn with<T>(&self, f: impl FnOnce(&redb::Database) -> Result<T>) -> Result<T> {
        let open = self.database.read();
        match open.as_ref() {
            Some(database) => f(database),
            None => Err(Error::new(
                Kind::Unavailable,
                "metadata database is being reopened",
            )),
        }
    }

    /// Closes and opens the file; after an I/O error this is what makes it usable again.
    fn reopen(&self) {
        let mut open = self.database.write();
        // The old handle holds the file's lock.
        open.take();
        match open_patiently(&self.path, Some(REOPEN_PATIENCE)) {
            Ok(database) => *open = Some(database),
            Err(error) => warn!(%error, "reopen metadata database"),
        }
    }
}

fn open_patiently(path: &Path, patience: Option<Duration>) -> Result<redb::Database> {
    let what = || format!("open metadata database {}", path.display());
    let begun = Instant::now();
    let mut warned = false;
    loop {
        // Specs hold secrets: nobody else may read the file.
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .with_context(what)?;
        match redb::Builder::new().create_file(file) {
            Ok(database) => return Ok(database),
            Err(redb::DatabaseError::DatabaseAlreadyOpen)
                if patience.is_none_or(|p| begun.elapsed() < p) =>
            {
                if !warned {
                    warned = true;
                    warn!(path = %path.display(), "wait for another process to close the metadata");
                }
                std::thread::park_timeout(Duration::from_millis(50));
            }
            Err(redb::DatabaseError::DatabaseAlreadyOpen) => {
                return Err(Error::new(Kind::Unavailable, "another process has it open"))
                    .with_context(what);
            }
            Err(e) => return Err(failed("redb")(e)).with_context(what),
        }
    }
}

/// Makes the tables of a new file; refuses a file of another version.
fn check_schema(database: &redb::Database) -> Result<()> {
    let mut txn = database.begin_write().map_err(failed("begin write"))?;
    txn.set_quick_repair(true);
    let found = {
        let mut meta = txn.open_table(META).map_err(failed("open schema"))?;
        txn.open_table(RECORDS).map_err(failed("open records"))?;
        let found = meta
            .get("schema")
            .map_err(failed("read schema"))?
            .map(|v| v.value());
        if found.is_none() {
            meta.insert("schema", SCHEMA)
                .map_err(failed("write schema"))?;
        }
        found
    };
    match found {
        None => txn.commit().map_err(failed("commit schema")),
        Some(SCHEMA) => txn.abort().map_err(failed("read schema")),
        Some(other) => Err(Error::precondition(format!(
            "its schema {other} is not {SCHEMA}, which this version knows"
        ))),
    }
}

/// An error of redb: an I/O error keeps its class (a full disk is ResourceExhausted).
fn failed<E: Into<redb::Error>>(what: &'static str) -> impl FnOnce(E) -> Error {
    move |e| match e.into() {
        redb::Error::Io(e) => Error::from(e).context(what),
        e => Error::new(Kind::Unknown, what).with_source(e),
    }
}

// === impl Read ===

/// A table of redb.
struct Base<'a, T>(&'a T);

impl<T: ReadableTable<&'static [u8], &'static [u8]>> Read for Base<'_, T> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let found = self.0.get(key).map_err(failed("read metadata"))?;
        Ok(found.map(|v| v.value().to_vec()))
    }

    fn scan(&self, prefix: &[u8], visit: &mut Visit<'_>) -> Result<()> {
        for pair in self.0.range(prefix..).map_err(failed("scan metadata"))? {
            let (key, value) = pair.map_err(failed("scan metadata"))?;
            if !key.value().starts_with(prefix) || !visit(key.value(), value.value())? {
                break;
            }
        }
        Ok(())
    }
}

impl Read for Txn<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        match self.pending.get(key) {
            Some(written) => Ok(written.clone()),
            None => self.base.get(key),
        }
    }

    fn scan(&self, prefix: &[u8], visit: &mut Visit<'_>) -> Result<()> {
        let mut own = self
            .pending
            .range::<[u8], _>((Bound::Included(prefix), Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .peekable();
        let mut more = true;
        self.base.scan(prefix, &mut |key, value| {
            while let Some((k, v)) = own.next_if(|(k, _)| k.as_slice() < key) {
                if let Some(v) = v {
                    more = visit(k, v)?;
                }
                if !more {
                    return Ok(false);
                }
            }
            more = match own.next_if(|(k, _)| k.as_slice() == key) {
                Some((_, None)) => true,
                Some((_, Some(v))) => visit(key, v)?,
                None => visit(key, value)?,
            };
            Ok(more)
        })?;
        for (k, v) in own {
            if let (true, Some(v)) = (more, v) {
                more = visit(k, v)?;
            }
        }
        Ok(())
    }
}

// === impl Txn ===

impl<'a> Txn<'a> {
    fn new(base: &'a dyn Read) -> Self {
        Self {
            base,
            pending: BTreeMap::new(),
        }
    }

    /// Sets `key`. Writing what is there already is no change.
    pub(crate) fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        if self.get(key)?.as_deref() != Some(value) {
            self.pending.insert(key.to_vec(), Some(value.to_vec()));
        }
        Ok(())
    }

    /// Removes `key`; false when it was not there.
    pub(crate) fn delete(&mut self, key: &[u8]) -> Result<bool> {
        let there = self.get(key)?.is_some();
        if there {
            self.pending.insert(key.to_vec(), None);
        }
        Ok(there)
    }

    /// Whether `key` is there.
    pub(crate) fn has(&self, key: &[u8]) -> Result<bool> {
        Ok(self.get(key)?.is_some())
    }
}

#[cfg(test)]
mod tests;
