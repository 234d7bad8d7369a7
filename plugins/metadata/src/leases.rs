//! Leases over the store: the records, what each holds, and how other writes add to them.

use std::sync::Arc;

use async_trait::async_trait;
use corten_core::filter::{Fields, Filter, map_field};
use corten_core::leases::Leases;
use corten_core::protos::containerd::services::leases::v1::{Lease, Resource};
use corten_core::protos::time;
use corten_core::{Digest, Error, Kind, Labels, Namespace, Result, Scope};

use crate::db::{Db, Dirt, ensure_namespace};
use crate::keys::{self, key, load, parts, save};
use crate::records::checked_labels;
use crate::store::{Read as _, Txn};

/// Resource types; snapshots are `snapshots/<snapshotter>`.
pub(crate) const CONTENT: &str = "content";
pub(crate) const INGESTS: &str = "ingests";
pub(crate) const IMAGES: &str = "images";
pub(crate) const SNAPSHOTS: &str = "snapshots";

pub(crate) struct Store(pub(crate) Arc<Db>);

struct View<'a>(&'a Lease);

/// The resource type of a snapshotter's snapshots.
pub(crate) fn snapshots_of(snapshotter: &str) -> String {
    format!("{SNAPSHOTS}/{snapshotter}")
}

/// Adds a resource to the lease of the call; false when the call has none.
pub(crate) fn hold(txn: &mut Txn<'_>, scope: &Scope, kind: &str, id: &str) -> Result<bool> {
    let Some(lease) = &scope.lease else {
        return Ok(false);
    };
    let ns = scope.namespace.as_str();
    if !txn.has(&key(keys::LEASES, &[ns, lease]))? {
        return Err(Error::not_found("lease does not exist"));
    }
    txn.put(&key(keys::LEASED, &[ns, lease, kind, id]), &[])?;
    Ok(true)
}

/// Takes a resource that is deleted out of the lease of the call.
pub(crate) fn release(txn: &mut Txn<'_>, scope: &Scope, kind: &str, id: &str) -> Result<()> {
    if let Some(lease) = &scope.lease {
        txn.delete(&key(
            keys::LEASED,
            &[scope.namespace.as_str(), lease, kind, id],
        ))?;
    }
    Ok(())
}

/// Deletes a lease with the list of what it holds; false when there is none of that id.
pub(crate) fn remove(txn: &mut Txn<'_>, ns: &str, id: &str) -> Result<bool> {
    if !txn.delete(&key(keys::LEASES, &[ns, id]))? {
        return Ok(false);
    }
    let mut held = Vec::new();
    txn.scan(&key(keys::LEASED, &[ns, id]), &mut |k, _| {
        held.push(k.to_vec());
        Ok(true)
    })?;
    for k in held {
        txn.delete(&k)?;
    }
    Ok(true)
}

#[async_trait]
impl Leases for Store {
    async fn create(&self, ns: &Namespace, id: &str, mut labels: Labels) -> Result<Lease> {
        checked_labels("lease.Labels", &mut labels)?;
        let id = if id.is_empty() {
            uuid::Uuid::new_v4().to_string()
        } else {
            id.to_owned()
        };
        let lease = Lease {
            id,
            created_at: Some(time::now()),
            labels,
        };
        let ns = ns.clone();
        self.0
            .write(move |txn| {
                let at = key(keys::LEASES, &[ns.as_str(), &lease.id]);
                if txn.has(&at)? {
                    return Err(Error::already_exists(format!("lease {:?}", lease.id)));
                }
                ensure_namespace(txn, &ns)?;
                save(txn, &at, &lease)?;
                Ok(lease)
            })
            .await
    }

    /// Does not know the scheduler: the plugin `manager` adds the wait for `sync`.
    async fn delete(&self, ns: &Namespace, id: &str, _sync: bool) -> Result<()> {
        let (ns, id) = (ns.clone(), id.to_owned());
        self.0
            .write_deleting(Dirt::Records, move |txn| {
                match remove(txn, ns.as_str(), &id)? {
                    true => Ok(()),
                    false => Err(unknown(&id)),
                }
            })
            .await
    }

    async fn list(&self, ns: &Namespace, filter: &Filter) -> Result<Vec<Lease>> {
        let prefix = key(keys::LEASES, &[ns.as_str()]);
        self.0
            .read(|r| keys::list(r, &prefix, |l: &Lease| filter.matches(&View(l))))
    }

    async fn add_resource(&self, ns: &Namespace, id: &str, resource: Resource) -> Result<()> {
        let (ns, id) = (ns.clone(), id.to_owned());
        self.0
            .write(move |txn| {
                exists(txn, &ns, &id)?;
                check(&resource)?;
                txn.put(&held(&ns, &id, &resource), &[])
            })
            .await
    }

    async fn delete_resource(&self, ns: &Namespace, id: &str, resource: Resource) -> Result<()> {
        let (ns, id) = (ns.clone(), id.to_owned());
        self.0
            .write_deleting(Dirt::Records, move |txn| {
                exists(txn, &ns, &id)?;
                check(&resource)?;
                txn.delete(&held(&ns, &id, &resource)).map(|_| ())
            })
            .await
    }

    async fn resources(&self, ns: &Namespace, id: &str) -> Result<Vec<Resource>> {
        self.0.read(|r| {
            load::<Lease>(r, &key(keys::LEASES, &[ns.as_str(), id]))?.ok_or_else(|| unknown(id))?;
            let mut out = Vec::new();
            r.scan(&key(keys::LEASED, &[ns.as_str(), id]), &mut |k, _| {
                let mut parts = parts(k)?;
                let id = parts.pop().unwrap_or_default();
                let r#type = parts.pop().unwrap_or_default();
                out.push(Resource { id, r#type });
                Ok(true)
            })?;
            Ok(out)
        })
    }
}

impl Fields for View<'_> {
    fn field(&self, path: &[String]) -> Option<String> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "id" => Some(self.0.id.clone()),
            "labels" => map_field(&self.0.labels, rest),
            _ => None,
        }
    }
}

fn held(ns: &Namespace, lease: &str, r: &Resource) -> Vec<u8> {
    key(keys::LEASED, &[ns.as_str(), lease, &r.r#type, &r.id])
}

fn unknown(id: &str) -> Error {
    Error::not_found(format!("lease {id:?}"))
}

fn exists(txn: &Txn<'_>, ns: &Namespace, id: &str) -> Result<()> {
    match txn.has(&key(keys::LEASES, &[ns.as_str(), id]))? {
        true => Ok(()),
        false => Err(unknown(id)),
    }
}

fn check(resource: &Resource) -> Result<()> {
    let kind = &resource.r#type;
    let words: Vec<&str> = kind.split('/').collect();
    match (words[0], words.len()) {
        (CONTENT, 1) => Digest::parse(&resource.id)
            .map(|_| ())
            .map_err(|e| e.context(format!("invalid content resource id {}", resource.id))),
        (INGESTS | IMAGES, 1) | (SNAPSHOTS, 2) => Ok(()),
        (SNAPSHOTS, _) => Err(Error::invalid(format!(
            "invalid snapshot resource type {kind}"
        ))),
        (CONTENT | INGESTS | IMAGES, _) => {
            Err(Error::invalid(format!("invalid resource type {kind}")))
        }
        _ => Err(Error::new(
            Kind::NotImplemented,
            format!("resource type {kind} not supported yet: not implemented"),
        )),
    }
}
