//! Who set which field of which container: a field has one owner, and a second one is a conflict.
//!
//! An owner with a leading `-` did not set the field but took it from another plugin; it alone may set it then.

use corten_core::{Error, Kind, Result};
use corten_protos::nri::pkg::api::v1alpha1::{Field, FieldOwners, OwningPlugins};

/// The owners so far, as validators are shown them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Owners(OwningPlugins);

// === impl Owners ===

impl Owners {
    pub(crate) fn message(&self) -> &OwningPlugins {
        &self.0
    }

    /// `plugin` sets a field.
    pub(crate) fn claim(&mut self, id: &str, field: Field, plugin: &str) -> Result<()> {
        let owners = self.of(id);
        let number = field as i32;
        free(owners.simple.get(&number), plugin, field, "")?;
        owners.simple.insert(number, plugin.to_owned());
        Ok(())
    }

    /// `plugin` sets one entry of a field that has several.
    pub(crate) fn claim_entry(
        &mut self,
        id: &str,
        field: Field,
        key: &str,
        plugin: &str,
    ) -> Result<()> {
        let entries = &mut self.of(id).compound.entry(field as i32).or_default().owners;
        free(entries.get(key), plugin, field, key)?;
        entries.insert(key.to_owned(), plugin.to_owned());
        Ok(())
    }

    /// `plugin` is one more of those who add to a field.
    pub(crate) fn join(&mut self, id: &str, field: Field, plugin: &str) {
        let owners = self.of(id).simple.entry(field as i32).or_default();
        if !owners.is_empty() {
            owners.push(',');
        }
        owners.push_str(plugin);
    }

    /// `plugin` takes a field from whoever set it.
    pub(crate) fn clear(&mut self, id: &str, field: Field, plugin: &str) {
        let owners = &mut self.of(id).simple;
        owners.insert(field as i32, format!("-{plugin}"));
    }

    /// `plugin` takes an entry from whoever set it.
    pub(crate) fn clear_entry(&mut self, id: &str, field: Field, key: &str, plugin: &str) {
        let entries = &mut self.of(id).compound.entry(field as i32).or_default().owners;
        entries.insert(key.to_owned(), format!("-{plugin}"));
    }

    fn of(&mut self, id: &str) -> &mut FieldOwners {
        self.0.owners.entry(id.to_owned()).or_default()
    }
}

/// The owner of a field as a validator sees it.
pub(crate) fn owner(owners: Option<&OwningPlugins>, id: &str, field: Field) -> Option<String> {
    let fields = owners?.owners.get(id)?;
    fields.simple.get(&(field as i32)).cloned()
}

/// The owners of a field's entries.
pub(crate) fn entry_owners(
    owners: Option<&OwningPlugins>,
    id: &str,
    field: Field,
) -> Vec<(String, String)> {
    let fields = owners.and_then(|o| o.owners.get(id));
    let entries = fields.and_then(|f| f.compound.get(&(field as i32)));
    let entries = entries.into_iter().flat_map(|e| &e.owners);
    entries.map(|(k, v)| (k.clone(), v.clone())).collect()
}

fn free(owner: Option<&String>, plugin: &str, field: Field, key: &str) -> Result<()> {
    let Some(owner) = owner else {
        return Ok(());
    };
    let other = match owner.strip_prefix('-') {
        Some(clearer) if clearer == plugin => return Ok(()),
        Some(clearer) => clearer,
        None => owner,
    };
    let what = format!("{} {key}", field.as_str_name());
    Err(Error::new(
        Kind::Unknown,
        format!(
            "plugins {plugin:?} and {other:?} both tried to set {}",
            what.trim_end()
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_owner_is_a_conflict_unless_it_took_the_field() {
        let mut owners = Owners::default();
        owners.claim("c", Field::MemLimit, "00-a").unwrap();
        owners.claim("d", Field::MemLimit, "00-b").unwrap();
        let e = owners.claim("c", Field::MemLimit, "00-b").unwrap_err();
        assert_eq!(
            e.to_string(),
            "plugins \"00-b\" and \"00-a\" both tried to set MemLimit"
        );
        owners.clear("c", Field::MemLimit, "00-b");
        let e = owners.claim("c", Field::MemLimit, "00-c").unwrap_err();
        assert!(e.to_string().contains("\"00-c\" and \"00-b\""), "{e}");
        owners.claim("c", Field::MemLimit, "00-b").unwrap();
        assert_eq!(
            owner(Some(owners.message()), "c", Field::MemLimit).as_deref(),
            Some("00-b")
        );

        owners
            .claim_entry("c", Field::Mounts, "/x", "00-a")
            .unwrap();
        owners
            .claim_entry("c", Field::Mounts, "/y", "00-b")
            .unwrap();
        let e = owners
            .claim_entry("c", Field::Mounts, "/x", "00-b")
            .unwrap_err();
        assert!(
            e.to_string().ends_with("both tried to set Mounts /x"),
            "{e}"
        );
        owners.clear_entry("c", Field::Mounts, "/x", "00-b");
        owners
            .claim_entry("c", Field::Mounts, "/x", "00-b")
            .unwrap();

        owners.join("c", Field::OciHooks, "00-a");
        owners.join("c", Field::OciHooks, "00-b");
        assert_eq!(
            owner(Some(owners.message()), "c", Field::OciHooks).as_deref(),
            Some("00-a,00-b")
        );
    }
}
