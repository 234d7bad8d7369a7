//! Names of pods and containers that are taken, each by one id.

use std::collections::HashMap;
use std::sync::Arc;

use corten_core::{Error, Kind, Result};
use parking_lot::Mutex;

/// Names by who has them.
#[derive(Debug, Default, Clone)]
pub struct Names(Arc<Mutex<HashMap<String, String>>>);

/// A name held while its record is being made; given back when it is dropped, unless it was kept.
#[derive(Debug)]
pub struct Reservation {
    names: Names,
    name: String,
    id: String,
    kept: bool,
}

impl Names {
    /// Takes `name` for `id`; taking it again for the same id is fine.
    ///
    /// # Errors
    /// AlreadyExists: another id has it.
    pub fn reserve(&self, name: &str, id: &str) -> Result<Reservation> {
        let mut names = self.0.lock();
        if let Some(owner) = names.get(name)
            && owner != id
        {
            return Err(Error::new(
                Kind::AlreadyExists,
                format!("name {name:?} is reserved for {owner:?}"),
            ));
        }
        names.insert(name.into(), id.into());
        Ok(Reservation {
            names: self.clone(),
            name: name.into(),
            id: id.into(),
            kept: false,
        })
    }

    /// Gives back the name that `id` has.
    pub fn release(&self, name: &str, id: &str) {
        let mut names = self.0.lock();
        if names.get(name).is_some_and(|owner| owner == id) {
            names.remove(name);
        }
    }
}

impl Reservation {
    /// The record exists now and has the name.
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.kept {
            self.names.release(&self.name, &self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_names_back() {
        let names = Names::default();
        let held = names.reserve("n", "a").unwrap();
        assert_eq!(
            names.reserve("n", "b").unwrap_err().kind(),
            Kind::AlreadyExists
        );
        drop(held);
        names.reserve("n", "b").unwrap().keep();
        names.release("n", "a");
        assert!(names.reserve("n", "a").is_err());
        names.release("n", "b");
        assert!(names.reserve("n", "a").is_ok());
    }
}
