//! How plugins come: installed ones are launched with a connected socket, others connect to ours.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use corten_core::{Context, Error, Result};
use futures::future::join_all;
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, Command};
use tokio::sync::{Semaphore, oneshot};
use tracing::{info, warn};

use crate::config::Config;
use crate::plugin::{Arrival, Identity, Plugin, Updates};
use crate::relay::Relay;

/// Connections that are not yet plugins.
const PENDING: usize = 64;
/// How long to wait after a connection could not be accepted.
const BACK_OFF: Duration = Duration::from_millis(100);

/// An open socket. Dropping it closes and removes it.
#[derive(Debug)]
pub(crate) struct Listening {
    path: PathBuf,
    _stop: oneshot::Sender<()>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A plugin to launch.
#[derive(Debug, PartialEq, Eq)]
struct Installed {
    identity: Identity,
    path: PathBuf,
    config: String,
}

impl Relay {
    /// Launches what is installed. Whatever fails is logged and left out.
    pub(crate) async fn launch_installed(&self) {
        let config = self.config.clone();
        let installed = corten_sys::blocking(move || discover(&config)).await;
        let installed = installed.unwrap_or_else(|e| {
            warn!(error = %e, "cannot look for plugins");
            Vec::new()
        });
        let launches = installed.into_iter().map(|plugin| async move {
            let name = plugin.identity.to_string();
            match self.launch(plugin).await {
                Ok(plugin) => Some(plugin),
                Err(e) => {
                    warn!(nri.plugin = name, error = %e, "failed to start an installed plugin");
                    None
                }
            }
        });
        for plugin in join_all(launches).await.into_iter().flatten() {
            let name = plugin.identity.to_string();
            if let Err(e) = self.admit(plugin).await {
                warn!(nri.plugin = name, error = %e, "failed to synchronize an installed plugin");
            }
        }
    }

    async fn launch(&self, plugin: Installed) -> Result<Plugin> {
        info!(nri.plugin = %plugin.identity, "starting an installed plugin");
        let (stream, child) = spawn(&plugin)
            .map_err(Error::from)
            .with_context(|| format!("launch {}", plugin.path.display()))?;
        self.welcome(Arrival {
            stream,
            launched: Some((plugin.identity, child, plugin.config)),
        })
        .await
    }

    async fn welcome(&self, arrival: Arrival) -> Result<Plugin> {
        let updates: std::sync::Weak<dyn Updates> = self.me.clone();
        Plugin::welcome(arrival, &self.host, updates, &self.tasks).await
    }

    /// Opens the socket.
    pub(crate) async fn listen(&self) -> Result<()> {
        if self.config.disable_connections {
            info!("connections of external plugins are disabled");
            return Ok(());
        }
        let path = self.config.socket_path.clone();
        let listener = bind(&path)
            .map_err(Error::from)
            .with_context(|| format!("failed to create socket {path:?}"))?;
        let (stop, stopped) = oneshot::channel();
        let me = self.me.clone();
        self.tasks.spawn("nri socket", async move {
            let accepting = async {
                let pending = Arc::new(Semaphore::new(PENDING));
                loop {
                    let Ok(permit) = pending.clone().acquire_owned().await else {
                        return;
                    };
                    let stream = match listener.accept().await {
                        Ok((stream, _)) => stream,
                        Err(e) => {
                            warn!(error = %e, "cannot accept a plugin's connection");
                            tokio::time::sleep(BACK_OFF).await;
                            continue;
                        }
                    };
                    let Some(relay) = me.upgrade() else {
                        return;
                    };
                    relay.clone().tasks.spawn("nri arrival", async move {
                        if let Err(e) = relay.receive(stream).await {
                            warn!(error = %e, "an external plugin was not admitted");
                        }
                        drop(permit);
                    });
                }
            };
            tokio::select! {
                () = accepting => {}
                _ = stopped => {}
            }
        });
        *self.listening.lock() = Some(Listening { path, _stop: stop });
        Ok(())
    }

    async fn receive(&self, stream: UnixStream) -> Result<()> {
        let arrival = Arrival {
            stream,
            launched: None,
        };
        let plugin = self.welcome(arrival).await?;
        self.admit(plugin).await
    }
}

/// The socket, in a folder of root's own. One that a former daemon left is replaced.
fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(m) if m.file_type().is_socket() => std::fs::remove_file(path)?,
        _ => {}
    }
    UnixListener::bind(path)
}

/// Executable files called `IDX-NAME`, in order. Others are pointed out and passed over.
fn discover(config: &Config) -> Result<Vec<Installed>> {
    let folder = &config.plugin_path;
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).with_context(|| format!("read {}", folder.display())),
    };
    let mut out = Vec::new();
    for entry in entries.flatten() {
        let path = entry.path();
        let Ok(meta) = std::fs::metadata(&path) else {
            continue;
        };
        if meta.is_dir() || meta.permissions().mode() & 0o111 == 0 {
            continue;
        }
        let name = entry.file_name().to_string_lossy().into_owned();
        let found = Identity::parse(&name).and_then(|identity| {
            let config = drop_in(&config.plugin_config_path, &identity)?;
            Ok(Installed {
                identity,
                path,
                config,
            })
        });
        match found {
            Ok(plugin) => out.push(plugin),
            Err(e) => warn!(file = name, error = %e, "an installed plugin is passed over"),
        }
    }
    out.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(out)
}

/// A plugin's configuration: its own, else that of all of its name.
fn drop_in(folder: &Path, identity: &Identity) -> Result<String> {
    for file in [
        format!("{identity}.conf"),
        format!("{}.conf", identity.name),
    ] {
        let path = folder.join(file);
        match std::fs::read_to_string(&path) {
            Ok(text) => return Ok(text),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e).with_context(|| format!("read {}", path.display())),
        }
    }
    Ok(String::new())
}

/// Starts a plugin's process with its end of a connection as descriptor 3.
fn spawn(plugin: &Installed) -> io::Result<(UnixStream, Child)> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let mut command = std::process::Command::new(&plugin.path);
    command
        .env_clear()
        .env("NRI_PLUGIN_NAME", &plugin.identity.name)
        .env("NRI_PLUGIN_IDX", &plugin.identity.index)
        .env("NRI_PLUGIN_SOCKET", "3")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    corten_sys::payload::pass(&mut command, OwnedFd::from(theirs));
    let child = Command::from(command).kill_on_drop(true).spawn()?;
    Ok((UnixStream::from_std(ours)?, child))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn installed_plugins_are_found_with_their_configurations() {
        let dir = tempfile::tempdir().unwrap();
        let (plugins, confs) = (dir.path().join("plugins"), dir.path().join("conf"));
        let config = Config {
            plugin_path: plugins.clone(),
            plugin_config_path: confs.clone(),
            ..Default::default()
        };
        assert_eq!(discover(&config).unwrap(), []);
        std::fs::create_dir_all(plugins.join("10-folder")).unwrap();
        std::fs::create_dir_all(&confs).unwrap();
        for (name, mode) in [
            ("20-b", 0o755),
            ("10-a", 0o700),
            ("30-text", 0o644),
            ("odd", 0o755),
            ("40-a", 0o755),
        ] {
            let path = plugins.join(name);
            std::fs::write(&path, "").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        std::fs::write(confs.join("a.conf"), "all").unwrap();
        std::fs::write(confs.join("10-a.conf"), "own").unwrap();
        let found: Vec<(String, String)> = discover(&config)
            .unwrap()
            .into_iter()
            .map(|p| (p.identity.to_string(), p.config))
            .collect();
        let want = [("10-a", "own"), ("20-b", ""), ("40-a", "all")];
        assert_eq!(found, want.map(|(a, b)| (a.to_owned(), b.to_owned())));
    }

    #[tokio::test]
    async fn only_a_socket_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/nri.sock");
        drop(bind(&path).unwrap());
        drop(bind(&path).unwrap());
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "precious").unwrap();
        assert!(bind(&path).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }
}
