//! The writer's thread: batches, one commit for each.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use corten_core::{Error, Kind, Result};
use redb::Durability;
use tracing::warn;

use super::reserve::Reserve;
use super::{Base, File, Options, RECORDS, Txn, failed};

/// Runs a mutation: whether to keep its writes, and whom to tell how the commit went.
///
/// Without a transaction it does not run and only says whom to tell.
pub(super) type Job = Box<dyn FnOnce(Option<&mut Txn<'_>>) -> (bool, Finish) + Send>;
pub(super) type Finish = Box<dyn FnOnce(Result<()>) + Send>;

/// Mutations in one commit at most: bounds the latency of the first.
const BATCH: usize = 256;
/// With `no_sync`: how long a commit stays in memory at most when nothing follows it.
const SYNC_AFTER: Duration = Duration::from_millis(500);

pub(super) struct Writer {
    file: Arc<File>,
    queue: Receiver<Job>,
    options: Options,
    reserve: Reserve,
}

type Records<'a> = redb::Table<'a, &'static [u8], &'static [u8]>;

/// Keys and what they are to hold; `None` removes a key.
type Writes = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// What a batch came to.
#[derive(PartialEq)]
enum Outcome {
    Unchanged,
    Committed,
    Failed,
}

// === impl Writer ===

impl Writer {
    pub(super) fn new(file: Arc<File>, queue: Receiver<Job>, options: Options) -> Self {
        let reserve = Reserve::open(file.path.with_extension("reserve"));
        Self {
            file,
            queue,
            options,
            reserve,
        }
    }

    /// Until the store is dropped and the queue is empty.
    pub(super) fn run(mut self) {
        let mut unsynced = false;
        loop {
            let first = if unsynced {
                match self.queue.recv_timeout(SYNC_AFTER) {
                    Ok(job) => job,
                    Err(end) => {
                        self.sync();
                        unsynced = false;
                        match end {
                            RecvTimeoutError::Timeout => continue,
                            RecvTimeoutError::Disconnected => return,
                        }
                    }
                }
            } else {
                match self.queue.recv() {
                    Ok(job) => job,
                    Err(_) => return,
                }
            };
            let mut batch = vec![first];
            batch.extend(self.queue.try_iter().take(BATCH - 1));
            match self.batch(batch) {
                Outcome::Unchanged => {}
                Outcome::Committed => {
                    unsynced = self.options.no_sync;
                    self.reserve.fill();
                }
                Outcome::Failed => self.file.reopen(),
            }
        }
    }

    /// Runs and commits `batch`, then tells everyone.
    fn batch(&mut self, batch: Vec<Job>) -> Outcome {
        let mut finishes = Vec::with_capacity(batch.len());
        let mut unrun = batch.into_iter();
        let mut all = Writes::new();
        let mut complete = false;
        let mut done = self.file.with(|database| {
            let mut txn = database.begin_write().map_err(failed("begin write"))?;
            self.set_durability(&mut txn)?;
            {
                let mut table = txn.open_table(RECORDS).map_err(failed("open records"))?;
                for job in unrun.by_ref() {
                    let base = Base(&table);
                    let mut overlay = Txn::new(&base);
                    let (keep, finish) = job(Some(&mut overlay));
                    finishes.push(finish);
                    let writes = if keep {
                        overlay.pending
                    } else {
                        BTreeMap::new()
                    };
                    for (key, value) in writes {
                        write(&mut table, &key, value.as_deref())?;
                        all.push((key, value));
                    }
                }
            }
            complete = true;
            if all.is_empty() {
                txn.abort().map_err(failed("end metadata transaction"))?;
            } else {
                txn.commit().map_err(failed("commit metadata"))?;
            }
            Ok(!all.is_empty())
        });
        let is_full = done
            .as_ref()
            .is_err_and(|e| e.kind() == Kind::ResourceExhausted);
        if is_full && self.reserve.release() && complete {
            self.file.reopen();
            done = self.repeat(&all).map(|()| true);
        }
        let outcome = match &done {
            Ok(false) => Outcome::Unchanged,
            Ok(true) => Outcome::Committed,
            Err(error) => {
                warn!(%error, "metadata transaction");
                Outcome::Failed
            }
        };
        // Those that did not get to run learn of the failure too.
        finishes.extend(unrun.map(|job| job(None).1));
        for finish in finishes {
            finish(done.as_ref().map(|_| ()).map_err(same));
        }
        outcome
    }

    /// Makes the changes of a commit that failed.
    fn repeat(&self, writes: &Writes) -> Result<()> {
        self.file.with(|database| {
            let mut txn = database.begin_write().map_err(failed("begin write"))?;
            self.set_durability(&mut txn)?;
            {
                let mut table = txn.open_table(RECORDS).map_err(failed("open records"))?;
                for (key, value) in writes {
                    write(&mut table, key, value.as_deref())?;
                }
            }
            txn.commit().map_err(failed("commit metadata"))
        })
    }

    fn set_durability(&self, txn: &mut redb::WriteTransaction) -> Result<()> {
        if self.options.no_sync {
            txn.set_durability(Durability::None)
                .map_err(failed("set durability"))
        } else {
            txn.set_quick_repair(true);
            Ok(())
        }
    }

    /// Makes what was committed without fsync durable.
    fn sync(&self) {
        let synced = self.file.with(|database| {
            let mut txn = database.begin_write().map_err(failed("begin write"))?;
            txn.set_quick_repair(true);
            txn.commit().map_err(failed("sync metadata"))
        });
        if let Err(error) = synced {
            warn!(%error, "sync metadata");
            self.file.reopen();
        }
    }
}

/// Sets or removes one record.
fn write(table: &mut Records<'_>, key: &[u8], value: Option<&[u8]>) -> Result<()> {
    match value {
        Some(value) => table.insert(key, value),
        None => table.remove(key),
    }
    .map(drop)
    .map_err(failed("write metadata"))
}

/// The same error once more: errors own their causes and cannot be cloned.
fn same(error: &Error) -> Error {
    Error::new(error.kind(), error.to_string())
}
