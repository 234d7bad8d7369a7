//! The image store as one end of a transfer: which content belongs to it, and under which names it is kept.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use corten_core::images::Images;
use corten_core::protos::containerd::services::images::v1::Image;
use corten_core::protos::containerd::types::transfer::{ImageReference, ImageStore};
use corten_core::protos::time::rfc3339;
use corten_core::{
    Context, Descriptor, Error, Kind, Labels, Namespace, Result, Scope, Timestamp, labels,
};

use crate::oci::{Desc, IMAGE_NAME, REF_NAME, is_config, is_index, is_manifest};
use crate::platform::{Matcher, Platform};

/// Mark on descriptors that come from an imported index: their names are in their annotations.
pub(crate) const REF_SOURCE: &str = "io.containerd.import.ref-source";

/// Parsed form of the API's `ImageStore`.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    pub name: String,
    labels: Labels,
    pub platforms: Vec<Platform>,
    all_metadata: bool,
    manifest_limit: usize,
    references: Vec<ImageReference>,
    /// Platform and snapshotter (may be empty).
    pub unpacks: Vec<(Platform, String)>,
}

impl From<ImageStore> for Store {
    fn from(s: ImageStore) -> Self {
        Self {
            name: s.name,
            labels: s.labels,
            platforms: s.platforms.iter().map(Platform::from).collect(),
            all_metadata: s.all_metadata,
            manifest_limit: s.manifest_limit as usize,
            references: s.extra_references,
            unpacks: s
                .unpacks
                .into_iter()
                .map(|u| {
                    (
                        u.platform
                            .as_ref()
                            .map_or_else(Platform::host, Platform::from),
                        u.snapshotter,
                    )
                })
                .collect(),
        }
    }
}

impl std::fmt::Display for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Local Image Store ({})", self.name)
    }
}

impl Store {
    fn matcher(&self) -> Matcher {
        Matcher::ordered(&self.platforms)
    }

    /// Which of `children`, as `parent` lists them, are to be fetched.
    ///
    /// # Errors
    /// NotFound when a number of manifests is asked for and none fits.
    pub(crate) fn wanted(&self, parent: &Desc, mut children: Vec<Desc>) -> Result<Vec<Desc>> {
        let matcher = self.matcher();
        if self.all_metadata {
            // Manifests and configs of all platforms, layers only of the wanted ones.
            let other = parent
                .platform
                .as_ref()
                .is_some_and(|p| !matcher.matches(p));
            if other && is_manifest(&parent.media_type) {
                children.retain(|c| is_config(&c.media_type));
            }
        } else {
            children.retain(|c| c.platform.as_ref().is_none_or(|p| matcher.matches(p)));
        }
        if self.manifest_limit > 0 && is_index(&parent.media_type) {
            children.sort_by(|a, b| matcher.compare(a.platform.as_ref(), b.platform.as_ref()));
            if children.is_empty() {
                return Err(Error::not_found("no match for platform in manifest"));
            }
            children.truncate(self.manifest_limit);
        }
        Ok(children)
    }

    /// Records `desc` under all its names; existing records are updated.
    ///
    /// # Errors
    /// NotFound "no image name found" when it has no name; the store's.
    pub(crate) async fn save(
        &self,
        scope: &Scope,
        images: &dyn Images,
        desc: &Desc,
    ) -> Result<Vec<Image>> {
        let mut target = desc.clone();
        let names = match target.annotations.remove(REF_SOURCE).as_deref() {
            None => self.given_names(&target),
            Some("annotation") => self.annotated_names(&target),
            Some(_) => return Err(Error::invalid("ref source not supported")),
        };
        if names.is_empty() {
            return Err(Error::not_found("no image name found"));
        }
        let mut out = Vec::new();
        for (name, labels) in names {
            let image = Image {
                name,
                labels,
                target: Some(target.proto()),
                ..Image::default()
            };
            out.push(put(scope, images, image).await?);
        }
        Ok(out)
    }

    fn given_names(&self, desc: &Desc) -> Vec<(String, Labels)> {
        let mut out = Vec::new();
        if !self.name.is_empty() {
            out.push((self.name.clone(), self.labels.clone()));
        }
        for r in self
            .references
            .iter()
            .filter(|r| !r.is_prefix || r.add_digest)
        {
            let name = if r.add_digest {
                with_digest(&r.name, desc)
            } else {
                r.name.clone()
            };
            out.push((name, self.extra_labels()));
        }
        out
    }

    fn annotated_names(&self, desc: &Desc) -> Vec<(String, Labels)> {
        let mut out = Vec::new();
        for r in self.references.iter().filter(|r| r.is_prefix) {
            let name = annotated_name(&desc.annotations, &r.name, !r.allow_overwrite);
            let named = name.is_some();
            out.extend(name.map(|n| (n, self.extra_labels())));
            if r.add_digest && !(named && r.skip_named_digest) {
                out.push((with_digest(&r.name, desc), self.extra_labels()));
            }
        }
        out
    }

    // Names beside a main one live only as long as it does.
    fn extra_labels(&self) -> Labels {
        let mut out = self.labels.clone();
        if !self.name.is_empty() {
            out.insert(labels::GC_BREF_IMAGE.into(), self.name.clone());
            out.insert(labels::GC_EXPIRE.into(), rfc3339_in(Duration::ZERO));
        }
        out
    }

    /// The images to read from: the named one and the extra references.
    ///
    /// # Errors
    /// NotFound; NotImplemented for a prefix.
    pub(crate) async fn lookup(&self, ns: &Namespace, images: &dyn Images) -> Result<Vec<Image>> {
        let mut out = Vec::new();
        if !self.name.is_empty() {
            out.push(images.get(ns, &self.name).await?);
        }
        for r in &self.references {
            if r.is_prefix {
                return Err(Error::not_implemented(
                    "prefix lookup on export not implemented",
                ));
            }
            out.push(images.get(ns, &r.name).await?);
        }
        Ok(out)
    }

    /// The named image and its target.
    ///
    /// # Errors
    /// NotFound.
    pub(crate) async fn get(&self, ns: &Namespace, images: &dyn Images) -> Result<(Image, Desc)> {
        let image = images.get(ns, &self.name).await?;
        let desc = target_of(&image)?;
        Ok((image, desc))
    }
}

/// The target of an image record.
///
/// # Errors
/// FailedPrecondition when the record has none.
pub(crate) fn target_of(image: &Image) -> Result<Desc> {
    image
        .target
        .as_ref()
        .map(|t: &Descriptor| Desc::from(t))
        .ok_or_else(|| Error::precondition(format!("image {:?} has no target", image.name)))
}

async fn put(scope: &Scope, images: &dyn Images, image: Image) -> Result<Image> {
    // A record may be removed between the two calls; not for ever.
    for _ in 0..8 {
        match images.create(scope, image.clone()).await {
            Err(e) if e.kind() == Kind::AlreadyExists => {}
            other => return other,
        }
        match images.update(scope, image.clone(), &[]).await {
            Err(e) if e.kind() == Kind::NotFound => {}
            other => return other,
        }
    }
    Err(Error::new(
        Kind::Aborted,
        format!("image {:?} changes all the time", image.name),
    ))
    .context("store image")
}

/// A time `after` from now, as garbage collection labels carry it.
pub(crate) fn rfc3339_in(after: Duration) -> String {
    let mut at = Timestamp::from(SystemTime::now() + after);
    at.nanos = 0;
    rfc3339(&at)
}

fn with_digest(name: &str, desc: &Desc) -> String {
    format!("{name}@{}", desc.digest)
}

// The full name in containerd's annotation, or the tag in OCI's below `prefix`.
fn annotated_name(
    annotations: &BTreeMap<String, String>,
    prefix: &str,
    only_below: bool,
) -> Option<String> {
    let translate = |text: &str| -> Option<String> {
        if prefix.is_empty() || text.is_empty() {
            return None;
        }
        if text.contains(['/', ':', '@']) {
            return (!only_below || is_below(text, prefix)).then(|| text.to_owned());
        }
        Some(format!("{prefix}:{text}"))
    };
    match annotations.get(IMAGE_NAME).filter(|n| !n.is_empty()) {
        Some(name) => translate(name).filter(|n| n == name),
        None => translate(annotations.get(REF_NAME)?),
    }
}

fn is_below(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', ':', '@']))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{DOCKER_CONFIG, DOCKER_LAYER, DOCKER_MANIFEST, OCI_INDEX};

    fn store(references: Vec<ImageReference>, name: &str) -> Store {
        Store::from(ImageStore {
            name: name.into(),
            extra_references: references,
            ..ImageStore::default()
        })
    }

    fn prefix(name: &str, overwrite: bool, digest: bool, skip: bool) -> ImageReference {
        ImageReference {
            name: name.into(),
            is_prefix: true,
            allow_overwrite: overwrite,
            add_digest: digest,
            skip_named_digest: skip,
        }
    }

    fn desc(annotations: &[(&str, &str)]) -> Desc {
        let annotations = annotations
            .iter()
            .map(|(k, v)| ((*k).into(), (*v).into()))
            .collect();
        Desc {
            digest: "sha256:d".into(),
            annotations,
            ..Desc::default()
        }
    }

    #[test]
    fn names_of_imports() {
        let names = |r: ImageReference, d: &Desc| {
            let names = store(vec![r], "").annotated_names(d);
            names.into_iter().map(|n| n.0).collect::<Vec<_>>()
        };
        let full = desc(&[(IMAGE_NAME, "docker.io/library/a:1"), (REF_NAME, "1")]);
        let tag = desc(&[(REF_NAME, "1")]);
        let none = desc(&[]);
        let at = |n: &str| format!("{n}@sha256:d");
        assert_eq!(
            names(prefix("p", true, false, false), &full),
            ["docker.io/library/a:1"]
        );
        assert!(names(prefix("p", false, false, false), &full).is_empty());
        assert_eq!(
            names(prefix("docker.io/library/a", false, false, false), &full),
            ["docker.io/library/a:1"]
        );
        assert_eq!(names(prefix("p", false, false, false), &tag), ["p:1"]);
        assert!(names(prefix("p", true, false, false), &none).is_empty());
        assert_eq!(names(prefix("p", true, true, false), &none), [at("p")]);
        assert_eq!(names(prefix("p", true, true, true), &tag), ["p:1"]);
        assert_eq!(
            names(prefix("p", true, true, false), &tag),
            ["p:1".to_owned(), at("p")]
        );
    }

    #[test]
    fn extra_names_expire_with_the_main_one() {
        let names = store(vec![prefix("p", true, true, true)], "main").given_names(&desc(&[]));
        assert_eq!(names[0].0, "main");
        assert!(names[0].1.is_empty());
        assert_eq!(names[1].0, "p@sha256:d");
        assert_eq!(names[1].1[labels::GC_BREF_IMAGE], "main");
        assert!(names[1].1.contains_key(labels::GC_EXPIRE));
    }

    #[test]
    fn filters() {
        let p = |t: &str| Some(Platform::parse(t).unwrap());
        let entry = |t: &str| Desc {
            media_type: DOCKER_MANIFEST.into(),
            platform: p(t),
            ..Desc::default()
        };
        let index = Desc {
            media_type: OCI_INDEX.into(),
            ..Desc::default()
        };
        let manifests = vec![
            entry("linux/arm64"),
            entry("linux/amd64"),
            entry("linux/s390x"),
        ];
        let mut s = store(vec![], "");
        assert_eq!(s.wanted(&index, manifests.clone()).unwrap().len(), 3);
        s.platforms = vec![Platform::parse("linux/amd64").unwrap()];
        assert_eq!(
            s.wanted(&index, manifests.clone()).unwrap(),
            [entry("linux/amd64")]
        );
        s.all_metadata = true;
        assert_eq!(s.wanted(&index, manifests.clone()).unwrap().len(), 3);
        let child = |t: &str| Desc {
            media_type: t.into(),
            ..Desc::default()
        };
        let parts = vec![child(DOCKER_CONFIG), child(DOCKER_LAYER)];
        assert_eq!(
            s.wanted(&entry("linux/arm64"), parts.clone())
                .unwrap()
                .len(),
            1
        );
        assert_eq!(s.wanted(&entry("linux/amd64"), parts).unwrap().len(), 2);
        s.manifest_limit = 1;
        assert_eq!(s.wanted(&index, manifests).unwrap(), [entry("linux/amd64")]);
        assert!(s.wanted(&index, vec![]).is_err());
    }
}
