//! io.containerd.shim.v1 "manager": what every shim of this daemon is started with.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use corten_core::{Error, Namespace, Result};
use corten_registry::{Context, Kind, Properties, Registration};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::discovery::Discovery;
use crate::shim::Shim;

/// The kind of the shim manager. Only this crate's task manager and sandbox controller need it.
#[derive(Debug)]
pub struct ShimManager;

impl Kind for ShimManager {
    const URI: &'static str = "io.containerd.shim.v1";
    type Interface = Manager;
}

/// Longest socket folder: a socket's name is 64 hex digits, and its whole path fits in 108 bytes.
const LONGEST_SOCKET_DIR: usize = 42;
/// Where shims' sockets go when the daemon's own state folder has too long a name.
const FALLBACK_SOCKET_DIR: &str = "/run/containerd/s";

/// `plugins."io.containerd.shim.v1.manager"`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Config {
    /// `KEY=VALUE`, added to the environment of `start`.
    env: Vec<String>,
    /// Folder of the shims' sockets; empty: `<state>/s`.
    socket_dir: String,
}

/// All connected shims: those of tasks, and those of sandboxes, which tasks may join.
type Shims = Mutex<HashMap<(Namespace, String), Arc<Shim>>>;

/// What every shim is started with, where shims are found, and which are connected.
#[derive(Debug)]
pub struct Manager {
    pub(crate) shims: Shims,
    /// Bundles whose dead shim's `delete` failed, with its binary: the id is taken until that works.
    pub(crate) leftovers: Mutex<HashMap<PathBuf, PathBuf>>,
    pub(crate) discovery: Discovery,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) socket_dir: PathBuf,
    pub(crate) grpc_address: String,
    pub(crate) ttrpc_address: String,
    pub(crate) own_binary: PathBuf,
    pub(crate) version: String,
    pub(crate) timeouts: Timeouts,
}

/// How long a shim may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timeouts {
    /// To be loaded at boot: dial, Connect and Pids together.
    pub(crate) load: Duration,
    /// For each step of cleaning up.
    pub(crate) cleanup: Duration,
    pub(crate) shutdown: Duration,
    /// To tell a state.
    pub(crate) state: Duration,
}

// === impl Timeouts ===

impl Timeouts {
    fn of(properties: &Properties) -> Self {
        let get = |name: &str, default: u64| {
            properties
                .timeouts
                .get(&format!("io.containerd.timeout.{name}"))
                .copied()
                .filter(|d| !d.is_zero())
                .unwrap_or_else(|| Duration::from_secs(default))
        };
        Self {
            load: get("shim.load", 5),
            cleanup: get("shim.cleanup", 5),
            shutdown: get("shim.shutdown", 3),
            state: get("task.state", 2),
        }
    }
}

// === impl Manager ===

impl Manager {
    fn new(config: &Config, properties: &Properties) -> Result<Self> {
        let own_binary = std::env::current_exe()
            .map_err(|e| Error::from(e).context("find the daemon's own binary"))?;
        let path: Vec<PathBuf> = std::env::var_os("PATH")
            .map(|p| std::env::split_paths(&p).collect())
            .unwrap_or_default();
        Ok(Self {
            shims: Shims::default(),
            leftovers: Mutex::default(),
            discovery: Discovery::new(std::env::current_dir().ok(), &path, &own_binary),
            env: config
                .env
                .iter()
                .map(|e| parse_env(e))
                .collect::<Result<_>>()?,
            socket_dir: socket_dir(&config.socket_dir, &properties.state)?,
            grpc_address: properties.grpc_address.clone(),
            ttrpc_address: properties.ttrpc_address.clone(),
            own_binary,
            version: properties.version.clone(),
            timeouts: Timeouts::of(properties),
        })
    }

    /// For tests: shims are found in `folder` only.
    #[cfg(test)]
    pub(crate) fn for_test(folder: &Path, timeouts: Timeouts) -> Self {
        Self {
            shims: Shims::default(),
            leftovers: Mutex::default(),
            discovery: Discovery::new(None, &[folder.into()], Path::new("/none")),
            env: Vec::new(),
            socket_dir: folder.into(),
            grpc_address: "/run/test.sock".into(),
            ttrpc_address: "/run/test.sock.ttrpc".into(),
            own_binary: "/usr/bin/true".into(),
            version: "2.4.2".into(),
            timeouts,
        }
    }
}

fn parse_env(entry: &str) -> Result<(String, String)> {
    entry
        .split_once('=')
        .filter(|(k, _)| !k.is_empty())
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .ok_or_else(|| Error::invalid(format!("env entry {entry:?}")))
}

fn socket_dir(configured: &str, state: &Path) -> Result<PathBuf> {
    if configured.is_empty() {
        let own = state.join("s");
        let fits = own.as_os_str().len() <= LONGEST_SOCKET_DIR;
        return Ok(if fits {
            own
        } else {
            FALLBACK_SOCKET_DIR.into()
        });
    }
    let dir = PathBuf::from(configured);
    if !dir.is_absolute() {
        return Err(Error::invalid(format!(
            "socket_dir must be an absolute path: {configured:?}"
        )));
    }
    if dir.as_os_str().len() > LONGEST_SOCKET_DIR {
        return Err(Error::invalid(format!(
            "socket_dir length must be no longer than {LONGEST_SOCKET_DIR} characters"
        )));
    }
    Ok(dir)
}

/// The plugin.
pub fn registration() -> Registration {
    Registration::new::<ShimManager>("manager")
        .config::<Config>()
        .init(|cx: &mut Context, config: Config| {
            Box::pin(async move { Ok(Arc::new(Manager::new(&config, cx.properties())?)) })
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_folder_fits_a_socket_path() {
        let dir = |c: &str, s: &str| socket_dir(c, Path::new(s)).map(|d| d.display().to_string());
        assert_eq!(dir("", "/run/containerd").unwrap(), "/run/containerd/s");
        assert_eq!(
            dir("", &format!("/{}", "x".repeat(60))).unwrap(),
            FALLBACK_SOCKET_DIR
        );
        assert_eq!(dir("/run/mine", "/run/containerd").unwrap(), "/run/mine");
        dir("mine", "/run/containerd").unwrap_err();
        dir(&format!("/{}", "x".repeat(42)), "/run/containerd").unwrap_err();
    }

    #[test]
    fn env_entries_have_a_name() {
        assert_eq!(parse_env("A=b=c").unwrap(), ("A".into(), "b=c".into()));
        parse_env("A").unwrap_err();
        parse_env("=b").unwrap_err();
    }
}
