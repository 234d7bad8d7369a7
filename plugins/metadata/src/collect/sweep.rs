//! The sweep of the backends: whatever no record names any more.
//!
//! Each backend is swept under its sweep lock, which everyone who makes something in it shares until the record is
//! durable; snapshots in the making, which may take long, are announced instead. A failure is logged and the backend stays dirty: the next collection tries again.

use std::collections::{BTreeMap, HashSet};

use corten_core::protos::containerd::services::content::v1::Info as Blob;
use corten_core::snapshots::{Info, Snapshotter};
use corten_core::{Kind, Result};
use futures::future::join;
use futures::future::join_all;
use tracing::{debug, warn};

use crate::db::{Db, Dirty, Layers};
use crate::keys::{self, each};
use crate::records::{Ingest, Snapshot};

pub(super) async fn sweep(db: &Db, dirty: Dirty) {
    if db.foreign {
        debug!("nothing is swept beside containerd's own database");
        return;
    }
    let content = async {
        if dirty.content
            && let Err(error) = sweep_content(db).await
        {
            warn!(%error, "content garbage collection");
            db.soil_content();
        }
    };
    let snapshots = join_all(dirty.snapshotters.iter().map(|name| async move {
        let Some(layers) = db.snapshotters.get(name) else {
            return;
        };
        if let Err(error) = sweep_snapshots(db, name, layers).await {
            warn!(snapshotter = name, %error, "snapshot garbage collection");
            db.soil_snapshotter(name);
        }
    }));
    join(content, snapshots).await;
}

async fn sweep_content(db: &Db) -> Result<()> {
    let _alone = db.content_sweep.write().await;
    let (mut blobs, mut ingests) = (HashSet::new(), HashSet::new());
    db.read(|r| {
        each(r, &[keys::BLOBS], &mut |_, blob: Blob| {
            blobs.insert(blob.digest);
            Ok(())
        })?;
        each(r, &[keys::INGESTS], &mut |_, ingest: Ingest| {
            // A blob that is being taken over may have lost its record in the other namespace.
            blobs.insert(ingest.expected);
            ingests.insert(ingest.backend);
            Ok(())
        })
    })?;
    for blob in db.content.list().await? {
        if !blobs.contains(blob.digest.as_str()) {
            tolerate_absence(db.content.delete(&blob.digest).await)?;
            debug!(digest = %blob.digest, "removed content");
        }
    }
    for ingest in db.content.list_statuses().await? {
        if !ingests.contains(&ingest.r#ref) {
            tolerate_absence(db.content.abort(&ingest.r#ref).await)?;
            debug!(r#ref = ingest.r#ref, "aborted ingest");
        }
    }
    Ok(())
}

async fn sweep_snapshots(db: &Db, name: &str, layers: &Layers) -> Result<()> {
    {
        let _alone = layers.sweep.write().await;
        // In this order: what is listed was announced as being made before, and what is made no more has its record.
        let all = layers.backend.list().await?;
        let mut kept: HashSet<String> = layers.being_made();
        db.read(|r| {
            each(r, &[keys::SNAPSHOTS], &mut |k, snapshot: Snapshot| {
                if keys::parts(k)?.get(1).is_some_and(|s| s == name) {
                    kept.insert(snapshot.backend);
                }
                Ok(())
            })
        })?;
        remove_all_but(&*layers.backend, name, &all, &kept).await?;
    }
    // Deleting files may take long and needs no lock: no record and no backend key names them any more.
    match layers.backend.cleanup().await {
        Err(e) if e.kind() != Kind::NotImplemented => Err(e),
        _ => Ok(()),
    }
}

/// Children before parents.
async fn remove_all_but(
    backend: &dyn Snapshotter,
    name: &str,
    all: &[Info],
    kept: &HashSet<String>,
) -> Result<()> {
    let mut children: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut todo: Vec<&str> = Vec::new();
    let there: HashSet<&str> = all.iter().map(|i| i.name.as_str()).collect();
    for info in all {
        if there.contains(info.parent.as_str()) {
            children.entry(&info.parent).or_default().push(&info.name);
        } else {
            todo.push(&info.name);
        }
    }
    // From the roots down; walked backwards, every child comes before its parent.
    let mut order = Vec::with_capacity(all.len());
    while let Some(key) = todo.pop() {
        order.push(key);
        todo.extend(children.get(key).into_iter().flatten());
    }
    for key in order.into_iter().rev().filter(|k| !kept.contains(*k)) {
        match backend.remove(key).await {
            Err(e) if e.kind() == Kind::FailedPrecondition => {
                warn!(snapshotter = name, backend.key = key, error = %e, "remove snapshot");
            }
            other => tolerate_absence(other)?,
        }
        debug!(snapshotter = name, backend.key = key, "removed snapshot");
    }
    Ok(())
}

fn tolerate_absence(done: Result<()>) -> Result<()> {
    match done {
        Err(e) if e.kind() == Kind::NotFound => Ok(()),
        other => other,
    }
}
