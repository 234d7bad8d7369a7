//! Lists whose entries have keys: mounts, devices, environment.

use std::collections::BTreeSet;

use corten_core::Result;
use corten_core::nri::adjust::removal;
use corten_protos::nri::pkg::api::v1alpha1::{Field, KeyValue, LinuxDevice, Mount};

use super::Claims;

/// An entry; its key says which other one it replaces.
pub(super) trait Entry: Clone {
    fn key(&self) -> &str;
}

impl Entry for Mount {
    fn key(&self) -> &str {
        &self.destination
    }
}

impl Entry for LinuxDevice {
    fn key(&self) -> &str {
        &self.path
    }
}

impl Entry for KeyValue {
    fn key(&self) -> &str {
        &self.key
    }
}

impl Claims<'_> {
    /// Merges entries into what all want; gives those that are no removals.
    pub(super) fn listed<E: Entry>(
        &mut self,
        field: Field,
        wanted: &[E],
        all: &mut Vec<E>,
    ) -> Result<Vec<E>> {
        let (gone, added): (Vec<&E>, Vec<&E>) = wanted.iter().partition(|e| removal(e.key()).1);
        let removed: BTreeSet<&str> = gone.iter().map(|e| removal(e.key()).0).collect();
        all.retain(|e| {
            let stays = !removed.contains(e.key());
            if !stays {
                self.owners
                    .clear_entry(self.id, field, e.key(), self.plugin);
            }
            stays
        });
        for e in &added {
            self.entry(field, e.key())?;
            all.push((*e).clone());
        }
        // What is set anew is replaced anyway.
        let anew: BTreeSet<&str> = added.iter().map(|e| e.key()).collect();
        for e in gone {
            if !anew.contains(removal(e.key()).0) && !all.iter().any(|a| a.key() == e.key()) {
                all.push(e.clone());
            }
        }
        Ok(added.into_iter().cloned().collect())
    }
}

/// Shows the next plugin a list after `wanted`.
pub(super) fn replace<E: Entry>(seen: &mut Vec<E>, wanted: &[E], added: Vec<E>) {
    let keys: BTreeSet<&str> = wanted.iter().map(|e| removal(e.key()).0).collect();
    seen.retain(|e| !keys.contains(e.key()));
    seen.extend(added);
}

/// The same for an environment.
pub(super) fn replace_env(seen: &mut Vec<String>, wanted: &[KeyValue], added: Vec<KeyValue>) {
    let keys: BTreeSet<&str> = wanted.iter().map(|e| removal(e.key()).0).collect();
    seen.retain(|e| !keys.contains(e.split('=').next().unwrap_or_default()));
    seen.extend(added.into_iter().map(|e| format!("{}={}", e.key, e.value)));
}
