//! Container records over the store.

use std::sync::Arc;

use async_trait::async_trait;
use corten_core::containers::Containers;
use corten_core::filter::{Fields, Filter, map_field};
use corten_core::protos::containerd::events::{
    ContainerCreate, ContainerDelete, ContainerUpdate, container_create,
};
use corten_core::protos::containerd::services::containers::v1::Container;
use corten_core::protos::time;
use corten_core::{Context as _, Error, Namespace, Result, Scope, id};

use crate::db::{Db, Dirt, ensure_namespace};
use crate::keys::{self, key, load, save};
use crate::records::{checked_labels, immutable, mask, take_over};

/// What an update without mask replaces.
const MUTABLE: [&str; 5] = ["labels", "spec", "extensions", "image", "snapshotkey"];

pub(crate) struct Store(pub(crate) Arc<Db>);

struct View<'a>(&'a Container);

#[async_trait]
impl Containers for Store {
    async fn get(&self, ns: &Namespace, id: &str) -> Result<Container> {
        self.0
            .read(|r| load(r, &key(keys::CONTAINERS, &[ns.as_str(), id])))?
            .ok_or_else(|| {
                Error::not_found(format!("container {id:?} in namespace {:?}", ns.as_str()))
            })
    }

    async fn list(&self, ns: &Namespace, filter: &Filter) -> Result<Vec<Container>> {
        let prefix = key(keys::CONTAINERS, &[ns.as_str()]);
        self.0
            .read(|r| keys::list(r, &prefix, |c: &Container| filter.matches(&View(c))))
    }

    async fn create(&self, scope: &Scope, mut container: Container) -> Result<Container> {
        validate(&mut container).context("create container failed validation")?;
        let ns = scope.namespace.clone();
        let container = self
            .0
            .write(move |txn| {
                let at = key(keys::CONTAINERS, &[ns.as_str(), &container.id]);
                if txn.has(&at)? {
                    return Err(Error::already_exists(format!(
                        "container {:?}",
                        container.id
                    )));
                }
                ensure_namespace(txn, &ns)?;
                container.created_at = Some(time::now());
                container.updated_at = container.created_at;
                save(txn, &at, &container)?;
                Ok(container)
            })
            .await?;
        let event = ContainerCreate {
            id: container.id.clone(),
            image: container.image.clone(),
            runtime: container
                .runtime
                .clone()
                .map(|r| container_create::Runtime {
                    name: r.name,
                    options: r.options,
                }),
        };
        self.0
            .publish(&scope.namespace, "/containers/create", &event)
            .await;
        Ok(container)
    }

    async fn update(
        &self,
        scope: &Scope,
        container: Container,
        paths: &[String],
    ) -> Result<Container> {
        if container.id.is_empty() {
            return Err(Error::invalid("must specify a container id"));
        }
        let (ns, paths) = (scope.namespace.clone(), paths.to_vec());
        let updated = self
            .0
            .write(move |txn| {
                let at = key(keys::CONTAINERS, &[ns.as_str(), &container.id]);
                let current: Container = load(txn, &at)?
                    .ok_or_else(|| Error::not_found(format!("container {:?}", container.id)))?;
                let created_at = current.created_at;
                let mut updated = masked(current, &container, &paths)?;
                validate(&mut updated).context("update failed validation")?;
                updated.created_at = created_at;
                updated.updated_at = Some(time::now());
                save(txn, &at, &updated)?;
                Ok(updated)
            })
            .await?;
        let event = ContainerUpdate {
            id: updated.id.clone(),
            image: updated.image.clone(),
            labels: updated.labels.clone(),
            snapshot_key: updated.snapshot_key.clone(),
        };
        self.0
            .publish(&scope.namespace, "/containers/update", &event)
            .await;
        Ok(updated)
    }

    async fn delete(&self, scope: &Scope, id: &str) -> Result<()> {
        let at = key(keys::CONTAINERS, &[scope.namespace.as_str(), id]);
        let wanted = id.to_owned();
        self.0
            .write_deleting(Dirt::Records, move |txn| match txn.delete(&at)? {
                true => Ok(()),
                false => Err(Error::not_found(format!("container {wanted}"))),
            })
            .await?;
        let event = ContainerDelete { id: id.to_owned() };
        self.0
            .publish(&scope.namespace, "/containers/delete", &event)
            .await;
        Ok(())
    }
}

impl Fields for View<'_> {
    fn field(&self, path: &[String]) -> Option<String> {
        let (first, rest) = path.split_first()?;
        let value = match first.as_str() {
            "id" => self.0.id.clone(),
            "image" => self.0.image.clone(),
            "runtime" if rest.first()? == "name" => self.0.runtime.as_ref()?.name.clone(),
            "labels" => return map_field(&self.0.labels, rest),
            _ => return None,
        };
        (!value.is_empty()).then_some(value)
    }
}

fn masked(current: Container, wanted: &Container, paths: &[String]) -> Result<Container> {
    let runtime = |c: &Container| c.runtime.as_ref().map(|r| r.name.clone());
    let fixed = [
        (
            "container.Snapshotter",
            current.snapshotter == wanted.snapshotter,
        ),
        (
            "container.Runtime.Name",
            runtime(&current).unwrap_or_default() == runtime(wanted).unwrap_or_default(),
        ),
    ];
    let paths = mask(paths, &MUTABLE, &fixed)?;
    let mut updated = current;
    for path in paths {
        if let Some(name) = path.strip_prefix("labels.") {
            take_over(&mut updated.labels, &wanted.labels, name);
        } else if let Some(name) = path.strip_prefix("extensions.") {
            take_over(&mut updated.extensions, &wanted.extensions, name);
        } else {
            match path {
                "labels" => updated.labels.clone_from(&wanted.labels),
                "spec" => updated.spec.clone_from(&wanted.spec),
                "extensions" => updated.extensions.clone_from(&wanted.extensions),
                "image" => updated.image.clone_from(&wanted.image),
                "snapshotkey" => updated.snapshot_key.clone_from(&wanted.snapshot_key),
                _ => return Err(immutable(path, &format!("{:?}", updated.id))),
            }
        }
    }
    Ok(updated)
}

fn validate(container: &mut Container) -> Result<()> {
    id::validate(&container.id).context("container.ID")?;
    if container.extensions.contains_key("") {
        return Err(Error::invalid(
            "container.Extension keys must not be zero-length",
        ));
    }
    checked_labels("containers.Labels", &mut container.labels)?;
    if container.runtime.as_ref().is_none_or(|r| r.name.is_empty()) {
        return Err(Error::invalid("container.Runtime.Name must be set"));
    }
    if container.spec.is_none() {
        return Err(Error::invalid("container.Spec must be set"));
    }
    if !container.snapshot_key.is_empty() && container.snapshotter.is_empty() {
        return Err(Error::invalid(
            "container.Snapshotter must be set if container.SnapshotKey is set",
        ));
    }
    Ok(())
}
