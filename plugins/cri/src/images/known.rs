//! The images that are known: by id, by unambiguous prefix of an id, by name. An index over the records in the metadata,
//! which alone are the truth.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use corten_core::{Digest, Error, Result};
use parking_lot::RwLock;

use super::record::ImageRecord;
use super::reference::{Named, rank};

/// Known images.
#[derive(Debug, Default)]
pub(super) struct Known {
    inner: RwLock<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    names: HashMap<String, Name>,
    images: BTreeMap<String, Entry>,
}

/// What a name stands for.
#[derive(Debug)]
struct Name {
    id: String,
    /// The digest of the record's target.
    target: String,
}

#[derive(Debug)]
struct Entry {
    record: Arc<ImageRecord>,
    /// Those of its names that pin it.
    pins: BTreeSet<String>,
}

// === impl Known ===

impl Known {
    /// `record` is what its only name stands for now.
    pub(super) fn put(&self, record: ImageRecord) {
        let Some(name) = record.references.first().cloned() else {
            return;
        };
        let mut inner = self.inner.write();
        if inner.names.get(&name).is_some_and(|n| n.id != record.id) {
            inner.forget(&name);
        }
        let id = record.id.clone();
        let stands_for = Name {
            id: id.clone(),
            target: record.target.digest.clone(),
        };
        inner.names.insert(name.clone(), stands_for);
        let pinned = record.pinned;
        let entry = inner.images.entry(id).or_insert_with(|| Entry {
            record: Arc::new(record.clone()),
            pins: BTreeSet::new(),
        });
        if pinned {
            entry.pins.insert(name.clone());
        } else {
            entry.pins.remove(&name);
        }
        let mut references = entry.record.references.clone();
        if !references.contains(&name) {
            references.push(name);
        }
        references.sort_by_cached_key(|r| (rank(r), r.clone()));
        let updated = ImageRecord {
            references,
            pinned: !entry.pins.is_empty(),
            ..record
        };
        if *entry.record != updated {
            entry.record = Arc::new(updated);
        }
    }

    /// Whether it is known that `name` stands for `target` and that it pins it, or does not.
    pub(super) fn is_current(&self, name: &str, target: &str, pinned: bool) -> bool {
        let inner = self.inner.read();
        inner.names.get(name).is_some_and(|n| {
            let image = inner.images.get(&n.id);
            n.target == target && image.is_some_and(|e| e.pins.contains(name) == pinned)
        })
    }

    /// `name` stands for nothing any more.
    pub(super) fn forget(&self, name: &str) {
        self.inner.write().forget(name);
    }

    /// All names.
    pub(super) fn names(&self) -> Vec<String> {
        self.inner.read().names.keys().cloned().collect()
    }

    /// All images, by id.
    pub(super) fn list(&self) -> Vec<Arc<ImageRecord>> {
        let inner = self.inner.read();
        inner.images.values().map(|e| e.record.clone()).collect()
    }

    /// The image that a whole id, a name, or an unambiguous prefix of an id (with or without its algorithm) stands for.
    ///
    /// # Errors
    /// NotFound; InvalidArgument when several ids begin so.
    pub(super) fn find(&self, name_or_id: &str) -> Result<Arc<ImageRecord>> {
        let missing = || Error::not_found(format!("image {name_or_id:?}"));
        let inner = self.inner.read();
        let by_id = |id: &str| inner.images.get(id).map(|e| e.record.clone());
        if Digest::parse(name_or_id).is_ok() {
            return by_id(name_or_id).ok_or_else(missing);
        }
        let whole = Named::pulled(name_or_id).map(|n| n.to_string());
        for name in whole.iter().map(String::as_str).chain([name_or_id]) {
            if let Some(found) = inner.names.get(name).and_then(|n| by_id(&n.id)) {
                return Ok(found);
            }
        }
        let hex = name_or_id
            .rsplit_once(':')
            .map_or(name_or_id, |(_, hex)| hex);
        if hex.is_empty() || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(missing());
        }
        let prefix = match name_or_id.contains(':') {
            true => name_or_id.to_owned(),
            false => format!("sha256:{hex}"),
        };
        let mut found = inner
            .images
            .range::<str, _>((Bound::Included(prefix.as_str()), Bound::Unbounded))
            .take_while(|(id, _)| id.starts_with(&prefix));
        let first = found.next().ok_or_else(missing)?;
        if found.next().is_some() {
            return Err(Error::invalid(format!("ambiguous image id {name_or_id:?}")));
        }
        Ok(first.1.record.clone())
    }
}

impl Inner {
    fn forget(&mut self, name: &str) {
        let Some(Name { id, .. }) = self.names.remove(name) else {
            return;
        };
        let Some(entry) = self.images.get_mut(&id) else {
            return;
        };
        entry.pins.remove(name);
        let mut record = ImageRecord::clone(&entry.record);
        record.references.retain(|r| r != name);
        record.pinned = !entry.pins.is_empty();
        if record.references.is_empty() {
            self.images.remove(&id);
        } else {
            entry.record = Arc::new(record);
        }
    }
}

#[cfg(test)]
mod tests {
    use corten_core::Kind;

    use super::*;
    use crate::images::config::ImageConfig;

    fn image(name: &str, id: &str, pinned: bool) -> ImageRecord {
        ImageRecord {
            id: id.into(),
            chain_id: String::new(),
            config: ImageConfig::default(),
            references: vec![name.into()],
            target: Default::default(),
            size: 1,
            pinned,
        }
    }

    #[test]
    fn names_ids_and_prefixes_find_one_image() {
        let k = Known::default();
        let id = Digest::sha256(b"a").to_string();
        let at = format!("docker.io/library/a@{}", Digest::sha256(b"m"));
        for name in [id.as_str(), at.as_str(), "docker.io/library/a:latest"] {
            k.put(image(name, &id, false));
        }
        assert_eq!(k.list().len(), 1);
        for name in [
            "a",
            "docker.io/library/a:latest",
            &at,
            &id,
            &id[..12],
            &id[7..12],
        ] {
            assert_eq!(k.find(name).unwrap().id, id, "{name}");
        }
        let found = k.find("a").unwrap();
        assert_eq!(
            found.references,
            ["docker.io/library/a:latest", at.as_str(), id.as_str()]
        );
        for missing in ["", "b", "sha256:", "zz", &Digest::sha256(b"b").to_string()] {
            assert_eq!(
                k.find(missing).unwrap_err().kind(),
                Kind::NotFound,
                "{missing}"
            );
        }
    }

    #[test]
    fn short_ids_must_be_unambiguous() {
        let k = Known::default();
        let ids = [
            format!("sha256:ab{}", "0".repeat(62)),
            format!("sha256:ab{}", "1".repeat(62)),
        ];
        k.put(image("h.io/a:1", &ids[0], false));
        k.put(image("h.io/b:1", &ids[1], false));
        assert_eq!(k.find("ab").unwrap_err().kind(), Kind::InvalidArgument);
        assert_eq!(k.find("ab1").unwrap().id, ids[1]);
    }

    #[test]
    fn a_moved_tag_leaves_its_old_image_and_pins_go_with_names() {
        let k = Known::default();
        let (a, b) = (
            Digest::sha256(b"a").to_string(),
            Digest::sha256(b"b").to_string(),
        );
        k.put(image("h.io/a:1", &a, true));
        assert!(k.is_current("h.io/a:1", "", true) && !k.is_current("h.io/a:1", "", false));
        k.put(image(&a, &a, false));
        assert!(k.find(&a).unwrap().pinned);
        k.put(image("h.io/a:1", &b, true));
        assert!(!k.find(&a).unwrap().pinned);
        assert_eq!(k.find("h.io/a:1").unwrap().id, b);
        k.put(image("h.io/a:1", &b, false));
        assert!(!k.find(&b).unwrap().pinned);
        k.forget("h.io/a:1");
        k.forget(&a);
        k.forget("never");
        assert!(k.list().is_empty());
    }
}
