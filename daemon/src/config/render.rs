//! Writing the configuration: `config default` and `config dump`.

use corten_registry::Registration;

use super::{Config, GRPC_TABLE, Socket, TTRPC_TABLE};

/// The configuration as TOML, with every plugin's table filled up with its defaults.
pub(crate) fn render(
    config: &Config,
    registrations: &[Registration],
) -> Result<String, toml::ser::Error> {
    let mut full = config.clone();
    for r in registrations {
        if let Some(defaults) = r.default_config() {
            fill(full.plugins.entry(r.uri()).or_default(), defaults);
        }
    }
    for (uri, address) in [
        (GRPC_TABLE, config.grpc().map(|s| s.address)),
        (TTRPC_TABLE, config.ttrpc().map(|s| s.address)),
    ] {
        let defaults = toml::Table::try_from(Socket {
            address: address.unwrap_or_default(),
            ..Socket::default()
        })?;
        let table = full.plugins.entry(uri.to_owned()).or_default();
        table.retain(|k, v| k != "address" || v.as_str() != Some(""));
        fill(table, &defaults);
    }
    toml::to_string(&full)
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
