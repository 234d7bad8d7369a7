//! Image records over the store.

use std::sync::Arc;

use async_trait::async_trait;
use corten_core::filter::{Fields, Filter, map_field};
use corten_core::images::Images;
use corten_core::protos::containerd::services::images::v1::{
    Image, ImageCreate, ImageDelete, ImageUpdate,
};
use corten_core::protos::time;
use corten_core::{Descriptor, Digest, Error, Labels, Namespace, Result, Scope, labels};

use crate::db::{Db, Dirt, ensure_namespace};
use crate::keys::{self, key, load, save};
use crate::leases;
use crate::records::{checked_labels, immutable, take_over};
use crate::store::Txn;

pub(crate) struct Store(pub(crate) Arc<Db>);

struct View<'a>(&'a Image);

#[async_trait]
impl Images for Store {
    async fn get(&self, ns: &Namespace, name: &str) -> Result<Image> {
        self.0
            .read(|r| load(r, &key(keys::IMAGES, &[ns.as_str(), name])))?
            .ok_or_else(|| unknown(name))
    }

    async fn list(&self, ns: &Namespace, filter: &Filter) -> Result<Vec<Image>> {
        let prefix = key(keys::IMAGES, &[ns.as_str()]);
        self.0
            .read(|r| keys::list(r, &prefix, |i: &Image| filter.matches(&View(i))))
    }

    async fn create(&self, scope: &Scope, mut image: Image) -> Result<Image> {
        validate(&mut image)?;
        let owned = scope.clone();
        let image = self
            .0
            .write(move |txn| {
                let at = key(keys::IMAGES, &[owned.namespace.as_str(), &image.name]);
                if txn.has(&at)? {
                    return Err(Error::already_exists(format!("image {:?}", image.name)));
                }
                ensure_namespace(txn, &owned.namespace)?;
                hold(txn, &owned, &image)?;
                image.created_at.get_or_insert_with(time::now);
                image.updated_at = image.created_at;
                save(txn, &at, &image)?;
                Ok(image)
            })
            .await?;
        let event = ImageCreate {
            name: image.name.clone(),
            labels: image.labels.clone(),
        };
        self.0
            .publish(&scope.namespace, "/images/create", &event)
            .await;
        Ok(image)
    }

    async fn update(&self, scope: &Scope, image: Image, paths: &[String]) -> Result<Image> {
        if image.name.is_empty() {
            return Err(Error::invalid("image name is required for update"));
        }
        let (owned, paths) = (scope.clone(), paths.to_vec());
        let updated = self
            .0
            .write(move |txn| {
                let at = key(keys::IMAGES, &[owned.namespace.as_str(), &image.name]);
                let current: Image = load(txn, &at)?.ok_or_else(|| unknown(&image.name))?;
                let created_at = current.created_at;
                let updated_at = image.updated_at.unwrap_or_else(time::now);
                let mut updated = masked(current, image, &paths)?;
                validate(&mut updated)?;
                hold(txn, &owned, &updated)?;
                updated.created_at = created_at;
                updated.updated_at = Some(updated_at);
                save(txn, &at, &updated)?;
                Ok(updated)
            })
            .await?;
        let event = ImageUpdate {
            name: updated.name.clone(),
            labels: updated.labels.clone(),
        };
        self.0
            .publish(&scope.namespace, "/images/update", &event)
            .await;
        Ok(updated)
    }

    async fn delete(&self, scope: &Scope, name: &str, target: Option<Descriptor>) -> Result<()> {
        let (owned, wanted) = (scope.clone(), name.to_owned());
        self.0
            .write_deleting(Dirt::Records, move |txn| {
                let at = key(keys::IMAGES, &[owned.namespace.as_str(), &wanted]);
                let current: Image = load(txn, &at)?.ok_or_else(|| unknown(&wanted))?;
                if let Some(target) = target.filter(|t| !t.digest.is_empty()) {
                    let digest = current.target.map(|t| t.digest).unwrap_or_default();
                    if digest != target.digest {
                        return Err(Error::not_found(format!(
                            "image {wanted:?} has target {digest}, not {}",
                            target.digest
                        )));
                    }
                }
                leases::release(txn, &owned, leases::IMAGES, &wanted)?;
                txn.delete(&at)
            })
            .await?;
        let event = ImageDelete {
            name: name.to_owned(),
        };
        self.0
            .publish(&scope.namespace, "/images/delete", &event)
            .await;
        Ok(())
    }
}

impl Fields for View<'_> {
    fn field(&self, path: &[String]) -> Option<String> {
        let (first, rest) = path.split_first()?;
        let target = self.0.target.as_ref();
        let value = match first.as_str() {
            "name" => self.0.name.clone(),
            "target" => match rest.first()?.as_str() {
                "digest" => target?.digest.clone(),
                "mediatype" => target?.media_type.clone(),
                _ => return None,
            },
            "labels" => return map_field(&self.0.labels, rest),
            "annotations" => return map_field(&target?.annotations, rest),
            _ => return None,
        };
        (!value.is_empty()).then_some(value)
    }
}

fn unknown(name: &str) -> Error {
    Error::not_found(format!("image {name:?}"))
}

/// Applies the mask; no path replaces everything but the name and the times.
fn masked(current: Image, wanted: Image, paths: &[String]) -> Result<Image> {
    if paths.is_empty() {
        return Ok(wanted);
    }
    let none = Labels::new();
    let mut updated = current;
    for path in paths {
        let annotations = wanted.target.as_ref().map_or(&none, |t| &t.annotations);
        if let Some(name) = path.strip_prefix("labels.") {
            take_over(&mut updated.labels, &wanted.labels, name);
        } else if let Some(name) = path.strip_prefix("annotations.") {
            let target = updated.target.get_or_insert_default();
            take_over(&mut target.annotations, annotations, name);
        } else {
            match path.as_str() {
                "labels" => updated.labels.clone_from(&wanted.labels),
                "target" => updated.target.clone_from(&wanted.target),
                "annotations" => {
                    updated
                        .target
                        .get_or_insert_default()
                        .annotations
                        .clone_from(annotations);
                }
                _ => return Err(immutable(path, &format!("image {:?}", updated.name))),
            }
        }
    }
    Ok(updated)
}

fn validate(image: &mut Image) -> Result<()> {
    if image.name.is_empty() {
        return Err(Error::invalid("image name must not be empty"));
    }
    checked_labels("image.Labels", &mut image.labels)?;
    let target = image.target.get_or_insert_default();
    if let Err(e) = Digest::parse(&target.digest) {
        return Err(e.context(format!("target.Digest {:?} invalid", target.digest)));
    }
    if target.size <= 0 {
        return Err(Error::invalid("target.Size must be greater than zero"));
    }
    if target.media_type.is_empty() {
        return Err(Error::invalid("target.MediaType must be set"));
    }
    target.annotations.retain(|_, v| !v.is_empty());
    Ok(())
}

/// Images are roots by themselves; only one that expires needs a lease.
fn hold(txn: &mut Txn<'_>, scope: &Scope, image: &Image) -> Result<()> {
    if image.labels.contains_key(labels::GC_EXPIRE) {
        leases::hold(txn, scope, leases::IMAGES, &image.name)?;
    }
    Ok(())
}
