//! Writing the configuration: `config default` and `config dump`.

use corten_registry::Registration;

use super::Config;

/// The configuration as TOML, with every plugin's table filled up with its defaults.
pub(crate) fn render(config: &Config, registrations: &[Registration]) -> anyhow::Result<String> {
    let mut full = config.clone().with_addresses()?;
    for r in registrations {
        if let Some(defaults) = r.default_config() {
            fill(full.plugins.entry(r.uri()).or_default(), defaults);
        }
    }
    Ok(toml::to_string(&full)?)
}

fn fill(table: &mut toml::Table, defaults: &toml::Table) {
    for (key, value) in defaults {
        match (table.get_mut(key), value) {
            (None, v) => {
                table.insert(key.clone(), v.clone());
            }
            (Some(toml::Value::Table(t)), toml::Value::Table(d)) => fill(t, d),
            _ => {}
        }
    }
}
