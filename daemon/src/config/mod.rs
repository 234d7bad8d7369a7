//! The daemon's configuration: containerd's config.toml, versions 1 to 4, with imports.
//!
//! ```text
//! file -> table -> migrate to version 4 -> merge imports in order -> typed Config (+ warnings)
//! ```
//!
//! Each file is migrated on its own and then merged, so a drop-in may have another version than the main file
//! (containerd 2.4 cmd/containerd/server/config). Unknown keys warn and are ignored; a value of the wrong type is
//! an error that names file, line and key, also in the tables of plugins, which stay raw here: each plugin has its type.

mod load;
mod merge;
mod migrate;
mod render;
mod sources;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use corten_registry::{Fault, decode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub(crate) use load::load;
pub(crate) use render::render;
use sources::Sources;

/// The version that is written and that all others are migrated to.
pub(crate) const VERSION: i64 = 4;
/// Read when no `-c` is given and it exists.
pub(crate) const DEFAULT_PATH: &str = "/etc/containerd/config.toml";
/// Imported when the main file names no imports.
pub(crate) const DEFAULT_IMPORT: &str = "/etc/containerd/conf.d/*.toml";

/// The whole configuration in version 4.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Config {
    pub(crate) version: i64,
    pub(crate) root: PathBuf,
    pub(crate) state: PathBuf,
    pub(crate) temp: String,
    pub(crate) disabled_plugins: Vec<String>,
    pub(crate) required_plugins: Vec<String>,
    pub(crate) oom_score: i64,
    pub(crate) imports: Vec<String>,
    pub(crate) debug: Debug,
    pub(crate) cgroup: Cgroup,
    pub(crate) timeouts: BTreeMap<String, String>,
    pub(crate) proxy_plugins: BTreeMap<String, corten_proxy::Config>,
    pub(crate) stream_processors: BTreeMap<String, toml::Value>,
    pub(crate) plugins: BTreeMap<String, toml::Table>,
    /// What it was read from.
    #[serde(skip)]
    pub(crate) sources: Sources,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            version: VERSION,
            root: "/var/lib/containerd".into(),
            state: "/run/containerd".into(),
            temp: String::new(),
            disabled_plugins: Vec::new(),
            required_plugins: Vec::new(),
            oom_score: 0,
            imports: vec![DEFAULT_IMPORT.into()],
            debug: Debug::default(),
            cgroup: Cgroup::default(),
            timeouts: default_timeouts(),
            proxy_plugins: BTreeMap::new(),
            stream_processors: BTreeMap::new(),
            plugins: BTreeMap::new(),
            sources: Sources::default(),
        }
    }
}

/// `[debug]`: logging.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Debug {
    /// trace, debug, info, warn, error, fatal, panic; empty = info.
    pub(crate) level: String,
    /// text or json; empty = text.
    pub(crate) format: String,
    pub(crate) log_trace_id: bool,
}

/// `[cgroup]`: where the daemon puts itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Cgroup {
    pub(crate) path: String,
}

/// `plugins."io.containerd.server.v1.grpc"`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Socket {
    pub(crate) address: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Bytes; 0 = 16 MiB.
    pub(crate) max_recv_message_size: usize,
    /// Bytes; 0 = 16 MiB.
    pub(crate) max_send_message_size: usize,
}

impl Default for Socket {
    fn default() -> Self {
        Self {
            address: String::new(),
            uid: 0,
            gid: 0,
            max_recv_message_size: 16 << 20,
            max_send_message_size: 16 << 20,
        }
    }
}

/// `plugins."io.containerd.server.v1.ttrpc"` and `.debug`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct LocalSocket {
    pub(crate) address: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

// === impl Socket ===

impl Socket {
    /// The place of the socket, without what is said on it.
    pub(crate) fn local(&self) -> LocalSocket {
        LocalSocket {
            address: self.address.clone(),
            uid: self.uid,
            gid: self.gid,
        }
    }
}

/// `plugins."io.containerd.server.v1.metrics"`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Metrics {
    /// `host:port`; empty = off.
    pub(crate) address: String,
}

/// `plugins."io.containerd.metrics.v1.grpc-prometheus"`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct GrpcMetrics {
    /// Whether latencies are counted too.
    pub(crate) grpc_histogram: bool,
}

/// Plugin id of the main socket's table.
pub(crate) const GRPC_TABLE: &str = "io.containerd.server.v1.grpc";
/// Plugin id of the ttrpc socket's table.
pub(crate) const TTRPC_TABLE: &str = "io.containerd.server.v1.ttrpc";
/// Plugin id of the metrics listener's table.
pub(crate) const METRICS_TABLE: &str = "io.containerd.server.v1.metrics";
/// Plugin id of the debug socket's table.
pub(crate) const DEBUG_TABLE: &str = "io.containerd.server.v1.debug";
/// Plugin id of the TCP listener's table.
pub(crate) const GRPC_TCP_TABLE: &str = "io.containerd.server.v1.grpc-tcp";

/// Plugin id of the gRPC metrics' table.
pub(crate) const GRPC_METRICS_TABLE: &str = "io.containerd.metrics.v1.grpc-prometheus";

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("read config {path}: {source}")]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("failed to load TOML: {path}: {message}")]
    Parse { path: PathBuf, message: String },
    #[error(
        "expected containerd config version equal to or less than `{VERSION}`, got `{version}` in {path}"
    )]
    Version { path: PathBuf, version: i64 },
    #[error("failed to load TOML: {0}")]
    Wrong(String),
    #[error("config {path}: {message}")]
    Invalid { path: PathBuf, message: String },
}

impl Config {
    /// The gRPC socket, with its default address below the state folder when none is set.
    pub(crate) fn grpc(&self) -> Result<Socket, ConfigError> {
        let mut s: Socket = self.table(GRPC_TABLE)?;
        if s.address.is_empty() {
            s.address = self
                .state
                .join("containerd.sock")
                .to_string_lossy()
                .into_owned();
        }
        Ok(s)
    }

    /// The ttrpc socket: `<grpc address>.ttrpc` when none is set.
    pub(crate) fn ttrpc(&self) -> Result<LocalSocket, ConfigError> {
        let mut s: LocalSocket = self.table(TTRPC_TABLE)?;
        if s.address.is_empty() {
            let grpc = self.grpc()?;
            s.address = format!("{}.ttrpc", grpc.address);
            (s.uid, s.gid) = (grpc.uid, grpc.gid);
        }
        Ok(s)
    }

    /// With the addresses of the sockets where it has none.
    pub(crate) fn with_addresses(mut self) -> Result<Self, ConfigError> {
        let (grpc, ttrpc) = (self.grpc()?.local(), self.ttrpc()?);
        for (uri, socket) in [(GRPC_TABLE, grpc), (TTRPC_TABLE, ttrpc)] {
            let table = self.plugins.entry(uri.to_owned()).or_default();
            table.insert("address".into(), socket.address.into());
            table.insert("uid".into(), socket.uid.into());
            table.insert("gid".into(), socket.gid.into());
        }
        Ok(self)
    }

    /// A plugin's table as its type; the type's default when the file has none.
    pub(crate) fn table<T: DeserializeOwned + Default>(&self, uri: &str) -> Result<T, ConfigError> {
        match self.plugins.get(uri) {
            None => Ok(T::default()),
            Some(t) => match decode(t.clone()) {
                Ok(decoded) => Ok(decoded.config),
                Err(fault) => Err(self.wrong(uri, &fault)),
            },
        }
    }

    /// The error for a value of the wrong type in a table.
    pub(crate) fn wrong(&self, table: &str, fault: &Fault) -> ConfigError {
        ConfigError::Wrong(self.sources.explain(table, fault))
    }

    /// The timeouts as durations; a malformed one is an error.
    pub(crate) fn timeouts(&self) -> Result<BTreeMap<String, Duration>, ConfigError> {
        self.timeouts
            .iter()
            .map(|(k, v)| {
                let d = corten_core::duration::parse(v).ok_or_else(|| {
                    let fault = Fault {
                        key: format!("timeouts.{k}"),
                        message: format!("{v:?} is not a duration"),
                    };
                    self.wrong("", &fault)
                })?;
                Ok((k.clone(), d))
            })
            .collect()
    }
}

fn default_timeouts() -> BTreeMap<String, String> {
    [
        ("io.containerd.timeout.bolt.open", "0s"),
        ("io.containerd.timeout.cri.defercleanup", "1m0s"),
        ("io.containerd.timeout.metrics.shimstats", "2s"),
        ("io.containerd.timeout.shim.cleanup", "5s"),
        ("io.containerd.timeout.shim.load", "5s"),
        ("io.containerd.timeout.shim.shutdown", "3s"),
        ("io.containerd.timeout.task.state", "2s"),
    ]
    .into_iter()
    .map(|(k, v)| (k.to_owned(), v.to_owned()))
    .collect()
}

#[cfg(test)]
mod tests;
