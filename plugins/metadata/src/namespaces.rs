//! Namespaces over the store.

use std::sync::Arc;

use async_trait::async_trait;
use corten_core::namespaces::Namespaces;
use corten_core::protos::containerd::events::{NamespaceCreate, NamespaceDelete, NamespaceUpdate};
use corten_core::{Error, Labels, Namespace, Result};

use crate::db::{Db, Dirt, ensure_namespace};
use crate::keys::{self, any, key, load, save};
use crate::records::{checked_labels, immutable, take_over};
use crate::store::Read;

pub(crate) use corten_core::protos::containerd::services::namespaces::v1::Namespace as Record;

pub(crate) struct Store(pub(crate) Arc<Db>);

#[async_trait]
impl Namespaces for Store {
    async fn create(&self, ns: &Namespace, mut labels: Labels) -> Result<()> {
        checked_labels("namespace.Labels", &mut labels)?;
        let record = Record {
            name: ns.to_string(),
            labels: labels.clone(),
        };
        let at = key(keys::NAMESPACES, &[ns.as_str()]);
        let name = ns.to_string();
        self.0
            .write(move |txn| {
                if txn.has(&at)? {
                    return Err(Error::already_exists(format!("namespace {name:?}")));
                }
                save(txn, &at, &record)
            })
            .await?;
        let event = NamespaceCreate {
            name: ns.to_string(),
            labels,
        };
        self.0.publish(ns, "/namespaces/create", &event).await;
        Ok(())
    }

    async fn labels(&self, ns: &Namespace) -> Result<Labels> {
        self.0.read(|r| labels(r, ns.as_str()))
    }

    async fn update(&self, ns: &Namespace, wanted: Labels, paths: &[String]) -> Result<Labels> {
        let (owned, paths) = (ns.clone(), paths.to_vec());
        let updated = self
            .0
            .write(move |txn| {
                // containerd: setting a label of an unknown namespace makes it.
                ensure_namespace(txn, &owned)?;
                let at = key(keys::NAMESPACES, &[owned.as_str()]);
                let mut record: Record = load(txn, &at)?.unwrap_or_default();
                if paths.is_empty() {
                    record.labels.clone_from(&wanted);
                }
                for path in &paths {
                    if path == "labels" {
                        record.labels.clone_from(&wanted);
                    } else if let Some(name) = path.strip_prefix("labels.") {
                        take_over(&mut record.labels, &wanted, name);
                    } else {
                        return Err(immutable(path, &format!("namespace {:?}", owned.as_str())));
                    }
                }
                checked_labels("namespace.Labels", &mut record.labels)?;
                save(txn, &at, &record)?;
                Ok(record.labels)
            })
            .await?;
        let event = NamespaceUpdate {
            name: ns.to_string(),
            labels: updated.clone(),
        };
        self.0.publish(ns, "/namespaces/update", &event).await;
        Ok(updated)
    }

    async fn list(&self) -> Result<Vec<(String, Labels)>> {
        let all = self
            .0
            .read(|r| keys::list(r, &[keys::NAMESPACES], |_: &Record| true))?;
        Ok(all.into_iter().map(|n| (n.name, n.labels)).collect())
    }

    async fn delete(&self, ns: &Namespace) -> Result<()> {
        let name = ns.to_string();
        self.0
            .write_deleting(Dirt::Content, move |txn| {
                let left = what_is_left(txn, &name)?;
                if !left.is_empty() {
                    return Err(Error::precondition(format!(
                        "namespace {name:?} must be empty, but it still has {}",
                        left.join(", ")
                    )));
                }
                if !txn.delete(&key(keys::NAMESPACES, &[&name]))? {
                    return Err(Error::not_found(format!("namespace {name:?}")));
                }
                // Not counted as contents, and gone with it.
                for tag in [keys::LEASES, keys::LEASED, keys::SANDBOXES, keys::INGESTS] {
                    let mut below = Vec::new();
                    txn.scan(&key(tag, &[&name]), &mut |k, _| {
                        below.push(k.to_vec());
                        Ok(true)
                    })?;
                    for k in below {
                        txn.delete(&k)?;
                    }
                }
                Ok(())
            })
            .await?;
        self.0
            .publish(
                ns,
                "/namespaces/delete",
                &NamespaceDelete {
                    name: ns.to_string(),
                },
            )
            .await;
        Ok(())
    }
}

/// Labels of a namespace; none for an unknown one.
pub(crate) fn labels(from: &dyn Read, ns: &str) -> Result<Labels> {
    Ok(load::<Record>(from, &key(keys::NAMESPACES, &[ns]))?
        .unwrap_or_default()
        .labels)
}

/// What keeps a namespace from being deleted, in containerd's words and order.
fn what_is_left(from: &dyn Read, ns: &str) -> Result<Vec<String>> {
    let mut left = Vec::new();
    for (tag, word) in [
        (keys::IMAGES, "images"),
        (keys::BLOBS, "blobs"),
        (keys::CONTAINERS, "containers"),
    ] {
        if any(from, &key(tag, &[ns]))? {
            left.push(word.to_owned());
        }
    }
    let mut last = None;
    from.scan(&key(keys::SNAPSHOTS, &[ns]), &mut |k, _| {
        let snapshotter = keys::parts(k)?.into_iter().nth(1);
        if snapshotter != last {
            let name = snapshotter.clone().unwrap_or_default();
            left.push(format!("snapshots on {name:?} snapshotter"));
            last = snapshotter;
        }
        Ok(true)
    })?;
    Ok(left)
}
