//! The collector: what nothing refers to is removed.
//!
//! A collection is one mutation of the store (mark the reachable, delete the records of the rest, see [`mark`]) and then
//! the sweep of those backends that have lost something (see [`sweep`]). The mutation is atomic among the others, so no
//! reference can appear between marking and deleting.

mod labels;
mod mark;
mod sweep;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use async_trait::async_trait;
use corten_core::gc::{Collector, Resource, Stats};
use corten_core::protos::containerd::events::SnapshotRemove;
use corten_core::protos::containerd::services::images::v1::ImageDelete;
use corten_core::protos::time;
use corten_core::{Namespace, Result};
use tracing::{debug, warn};

use crate::db::Db;
use crate::keys::{self, key};
use crate::leases;
use crate::snapshots;
use crate::store::Txn;

use mark::{Node, What};

pub(crate) struct Store(pub(crate) Arc<Db>);

#[async_trait]
impl Collector for Store {
    async fn collect(&self) -> Result<Stats> {
        let db = self.0.clone();
        self.0.whole(async move { collect(&db).await }).await
    }
}

async fn collect(db: &Db) -> Result<Stats> {
    let begun = Instant::now();
    // Before the mark: what is deleted from here on belongs to the next collection.
    db.deleted.store(false, Ordering::SeqCst);
    // Before the mark too: what is made or used from here on is judged the next time.
    let others = db.others();
    let listed: Vec<(&'static str, Vec<Resource>)> =
        others.iter().map(|o| (o.kind(), o.all())).collect();
    let judged = listed.clone();
    let marked = db.store.write(move |txn| {
        let graph = mark::Graph::read(txn, &judged, &time::now())?;
        let garbage = graph.garbage();
        for node in &garbage {
            delete(txn, &graph, node)?;
        }
        Ok(garbage)
    });
    let garbage = match marked.await {
        Ok((garbage, _)) => garbage,
        Err(e) => {
            db.deleted.store(true, Ordering::SeqCst);
            return Err(e.context("mark and sweep metadata"));
        }
    };
    let elapsed = begun.elapsed();
    for node in &garbage {
        match &node.what {
            What::Snapshot(snapshotter) => db.soil_snapshotter(snapshotter),
            What::Content | What::Ingest => db.soil_content(),
            _ => {}
        }
        debug!(?node, "removed by garbage collection");
    }
    announce(db, &garbage).await;
    for (others, (kind, all)) in others.iter().zip(listed) {
        let unused = |r: &Resource| {
            garbage.iter().any(|g| {
                g.what == What::Other(kind) && g.ns == r.namespace.as_str() && g.name == r.name
            })
        };
        let unused = all.into_iter().filter(unused).collect();
        if let Err(error) = others.remove(unused).await {
            warn!(%error, "{kind} garbage collection");
        }
    }
    let dirty = std::mem::take(&mut *db.dirty.lock());
    sweep::sweep(db, dirty).await;
    Ok(Stats {
        elapsed,
        removed: garbage.len(),
    })
}

fn delete(txn: &mut Txn<'_>, graph: &mark::Graph, node: &Node) -> Result<()> {
    let (ns, name) = (node.ns.as_str(), node.name.as_str());
    match &node.what {
        What::Lease => leases::remove(txn, ns, name).map(|_| ()),
        What::Image => txn.delete(&key(keys::IMAGES, &[ns, name])).map(|_| ()),
        What::Content => txn.delete(&key(keys::BLOBS, &[ns, name])).map(|_| ()),
        What::Ingest => txn.delete(&key(keys::INGESTS, &[ns, name])).map(|_| ()),
        What::Snapshot(snapshotter) => {
            let ns = Namespace::new(ns)?;
            snapshots::delete_record(txn, &ns, snapshotter, name, graph.parent(node))
        }
        What::Container | What::Other(_) => Ok(()),
    }
}

/// containerd tells of images and snapshots that it collects, and of nothing else.
async fn announce(db: &Db, garbage: &[Node]) {
    for node in garbage {
        let Ok(ns) = Namespace::new(node.ns.clone()) else {
            continue;
        };
        let name = node.name.clone();
        match &node.what {
            What::Image => {
                let event = ImageDelete { name };
                db.publish(&ns, "/images/delete", &event).await;
            }

            What::Snapshot(snapshotter) => {
                let event = SnapshotRemove {
                    key: name,
                    snapshotter: snapshotter.clone(),
                };
                db.publish(&ns, "/snapshot/remove", &event).await;
            }
            _ => {}
        }
    }
}
