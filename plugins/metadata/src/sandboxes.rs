//! Sandbox records over the store.

use std::sync::Arc;

use async_trait::async_trait;
use corten_core::filter::{Fields, Filter, map_field};
use corten_core::protos::containerd::types::Sandbox;
use corten_core::protos::time;
use corten_core::sandbox::Sandboxes;
use corten_core::{Context as _, Error, Namespace, Result, Scope, id};

use crate::db::{Db, Dirt, ensure_namespace};
use crate::keys::{self, key, load, save};
use crate::records::{checked_labels, immutable, mask, take_over};

/// What an update without mask replaces.
const MUTABLE: [&str; 4] = ["labels", "extensions", "spec", "runtime"];

pub(crate) struct Store(pub(crate) Arc<Db>);

struct View<'a>(&'a Sandbox);

#[async_trait]
impl Sandboxes for Store {
    async fn get(&self, ns: &Namespace, id: &str) -> Result<Sandbox> {
        self.0
            .read(|r| load(r, &key(keys::SANDBOXES, &[ns.as_str(), id])))?
            .ok_or_else(|| unknown(id))
    }

    async fn list(&self, ns: &Namespace, filter: &Filter) -> Result<Vec<Sandbox>> {
        let prefix = key(keys::SANDBOXES, &[ns.as_str()]);
        self.0
            .read(|r| keys::list(r, &prefix, |s: &Sandbox| filter.matches(&View(s))))
    }

    async fn create(&self, scope: &Scope, mut sandbox: Sandbox) -> Result<Sandbox> {
        validate(&mut sandbox).context("failed to validate sandbox")?;
        let ns = scope.namespace.clone();
        self.0
            .write(move |txn| {
                let at = key(keys::SANDBOXES, &[ns.as_str(), &sandbox.sandbox_id]);
                if txn.has(&at)? {
                    // containerd's words, doubled as they are there.
                    let what = format!("sandbox bucket {:?} already exists", sandbox.sandbox_id);
                    return Err(Error::already_exists(what).context("write error"));
                }
                ensure_namespace(txn, &ns)?;
                sandbox.created_at = Some(time::now());
                sandbox.updated_at = sandbox.created_at;
                save(txn, &at, &sandbox)?;
                Ok(sandbox)
            })
            .await
    }

    async fn update(&self, scope: &Scope, sandbox: Sandbox, paths: &[String]) -> Result<Sandbox> {
        let (ns, paths) = (scope.namespace.clone(), paths.to_vec());
        self.0
            .write(move |txn| {
                let at = key(keys::SANDBOXES, &[ns.as_str(), &sandbox.sandbox_id]);
                let current: Sandbox =
                    load(txn, &at)?.ok_or_else(|| unknown(&sandbox.sandbox_id))?;
                let mut updated = masked(current, &sandbox, &paths)?;
                validate(&mut updated)?;
                updated.updated_at = Some(time::now());
                save(txn, &at, &updated)?;
                Ok(updated)
            })
            .await
    }

    async fn delete(&self, scope: &Scope, id: &str) -> Result<()> {
        let at = key(keys::SANDBOXES, &[scope.namespace.as_str(), id]);
        let wanted = id.to_owned();
        self.0
            .write_deleting(Dirt::Records, move |txn| match txn.delete(&at)? {
                true => Ok(()),
                false => Err(Error::not_found(format!(
                    "failed to delete sandbox {wanted:?}"
                ))),
            })
            .await
    }
}

impl Fields for View<'_> {
    fn field(&self, path: &[String]) -> Option<String> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "id" => Some(self.0.sandbox_id.clone()),
            "labels" => map_field(&self.0.labels, rest),
            _ => None,
        }
    }
}

fn unknown(id: &str) -> Error {
    Error::not_found(format!("bucket {id:?} not found"))
}

fn masked(current: Sandbox, wanted: &Sandbox, paths: &[String]) -> Result<Sandbox> {
    let runtime = |s: &Sandbox| s.runtime.as_ref().map(|r| r.name.clone());
    let same = runtime(&current).unwrap_or_default() == runtime(wanted).unwrap_or_default();
    let paths = mask(paths, &MUTABLE, &[("sandbox.Runtime.Name", same)])?;
    let mut updated = current;
    for path in paths {
        if let Some(name) = path.strip_prefix("labels.") {
            take_over(&mut updated.labels, &wanted.labels, name);
        } else if let Some(name) = path.strip_prefix("extensions.") {
            take_over(&mut updated.extensions, &wanted.extensions, name);
        } else {
            match path {
                "labels" => updated.labels.clone_from(&wanted.labels),
                "extensions" => updated.extensions.clone_from(&wanted.extensions),
                "runtime" => updated.runtime.clone_from(&wanted.runtime),
                "spec" => updated.spec.clone_from(&wanted.spec),
                _ => {
                    return Err(immutable(
                        path,
                        &format!("sandbox {:?}", updated.sandbox_id),
                    ));
                }
            }
        }
    }
    Ok(updated)
}

fn validate(sandbox: &mut Sandbox) -> Result<()> {
    id::validate(&sandbox.sandbox_id).context("invalid sandbox ID")?;
    checked_labels("sandbox.Labels", &mut sandbox.labels)
}
