//! Writing the configuration: `config default` and `config dump`.

use corten_registry::Registration;

use super::{
    Config, DEBUG_TABLE, GRPC_METRICS_TABLE, GRPC_TABLE, GRPC_TCP_TABLE, GrpcMetrics,
    METRICS_TABLE, Metrics, Socket, TTRPC_TABLE,
};
use crate::server::TcpSocket;

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
    // The listeners that are off until they get an address.
    for (uri, defaults) in [
        (GRPC_TCP_TABLE, toml::Table::try_from(TcpSocket::default())?),
        (METRICS_TABLE, toml::Table::try_from(Metrics::default())?),
        (
            GRPC_METRICS_TABLE,
            toml::Table::try_from(GrpcMetrics::default())?,
        ),
    ] {
        fill(full.plugins.entry(uri.to_owned()).or_default(), &defaults);
    }
    let debug = full.plugins.entry(DEBUG_TABLE.to_owned()).or_default();
    for (key, value) in [
        ("address", toml::Value::from("")),
        ("uid", 0.into()),
        ("gid", 0.into()),
    ] {
        debug.entry(key).or_insert(value);
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
