//! Records by id, found by any unambiguous prefix of it.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use corten_core::{Error, Result};
use parking_lot::RwLock;

/// Records by id.
#[derive(Debug)]
pub struct Index<T> {
    what: &'static str,
    records: RwLock<BTreeMap<String, Arc<T>>>,
}

impl<T> Index<T> {
    /// An empty index of `what`: "sandbox", "container".
    pub fn new(what: &'static str) -> Self {
        Self {
            what,
            records: RwLock::new(BTreeMap::new()),
        }
    }

    /// Adds a record.
    ///
    /// # Errors
    /// AlreadyExists: the id is taken.
    pub fn add(&self, id: &str, record: Arc<T>) -> Result<()> {
        let mut records = self.records.write();
        if records.contains_key(id) {
            return Err(Error::already_exists(format!("{} {id}", self.what)));
        }
        records.insert(id.into(), record);
        Ok(())
    }

    /// The record whose id is `id`, or the only one whose id starts with it.
    ///
    /// # Errors
    /// NotFound: none, or `id` is empty. InvalidArgument: several.
    pub fn get(&self, id: &str) -> Result<Arc<T>> {
        let records = self.records.read();
        if let Some(found) = records.get(id) {
            return Ok(found.clone());
        }
        let missing = || {
            Error::not_found(format!(
                "an error occurred when try to find {} {id:?}",
                self.what
            ))
        };
        if id.is_empty() {
            return Err(missing());
        }
        let mut found = records
            .range::<str, _>((Bound::Included(id), Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(id));
        let first = found.next().ok_or_else(missing)?;
        if found.next().is_some() {
            return Err(Error::invalid(format!(
                "{} id {id:?} is ambiguous",
                self.what
            )));
        }
        Ok(first.1.clone())
    }

    /// All records, by id.
    pub fn list(&self) -> Vec<Arc<T>> {
        self.records.read().values().cloned().collect()
    }

    /// Forgets a record; the full id is needed.
    pub fn remove(&self, id: &str) -> Option<Arc<T>> {
        self.records.write().remove(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_by_unambiguous_prefix() {
        let index = Index::new("sandbox");
        for id in ["abc1", "abd2", "b"] {
            index.add(id, Arc::new(id)).unwrap();
        }
        assert_eq!(*index.get("abc").unwrap(), "abc1");
        assert_eq!(*index.get("b").unwrap(), "b");
        assert_eq!(
            index.get("ab").unwrap_err().kind(),
            corten_core::Kind::InvalidArgument
        );
        for missing in ["", "c", "abc12"] {
            assert_eq!(
                index.get(missing).unwrap_err().kind(),
                corten_core::Kind::NotFound
            );
        }
        assert!(index.add("b", Arc::new("x")).is_err());
        assert!(index.remove("abd2").is_some());
        assert_eq!(*index.get("ab").unwrap(), "abc1");
    }
}
