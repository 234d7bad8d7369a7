//! corten-proxy: plugins that live in another process (`[proxy_plugins]`).
//!
//! The mirror of corten-services: there a trait is served as a gRPC service, here a gRPC service of somebody else
//! becomes a plugin with that trait. One file per trait; `channel` is the connection that they share.
//!
//! A proxy plugin is loaded whether its process is there or not: it is connected when it is called, and again after
//! it went away. A call that cannot reach it fails with Unavailable, naming plugin and address; nothing here waits
//! for a process to appear, and nothing is kept of one that died, except a sandbox's exit, which is asked for again.

mod channel;
mod content;
mod differ;
mod sandbox;
mod snapshotter;

use std::collections::BTreeMap;
use std::sync::Arc;

use corten_core::content::Backend;
use corten_core::diff::Differ;
use corten_core::sandbox::Controller;
use corten_core::snapshots::Snapshotter;
use corten_core::{Error, Result, kinds};
use corten_registry::{Context, Kind, Platform, Registration};
use serde::{Deserialize, Serialize};

use crate::channel::Remote;

/// `[proxy_plugins.NAME]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// `snapshot`, `content`, `diff`, `sandbox`, or the type URI of the plugin.
    #[serde(rename = "type")]
    pub kind: String,
    /// Path of a unix socket, with or without `unix://`.
    pub address: String,
    /// `os/architecture[/variant]`; empty = the host's.
    pub platform: String,
    /// Shown by introspection.
    pub exports: BTreeMap<String, String>,
    /// Shown by introspection; `rebase` and the like are believed.
    pub capabilities: Vec<String>,
}

/// The names of a type in config files.
fn is<K: Kind>(kind: &str, short: &str) -> bool {
    kind == K::URI || kind == short
}

/// The plugin that `config` describes under `name`.
///
/// # Errors
/// InvalidArgument for a type that cannot be a proxy, or an address that is no path.
pub fn registration(name: &str, config: Config) -> Result<Registration> {
    let remote = Remote::new(name, &config.address)?;
    let kind = config.kind.clone();
    if is::<kinds::Snapshotter>(&kind, "snapshot") {
        let plugin = Arc::new(snapshotter::Proxy::new(remote)) as Arc<dyn Snapshotter>;
        Ok(register::<kinds::Snapshotter>(name, config, plugin))
    } else if is::<kinds::Content>(&kind, "content") {
        let plugin = Arc::new(content::Proxy::new(remote)) as Arc<dyn Backend>;
        Ok(register::<kinds::Content>(name, config, plugin))
    } else if is::<kinds::Differ>(&kind, "diff") {
        let plugin = Arc::new(differ::Proxy::new(remote)) as Arc<dyn Differ>;
        Ok(register::<kinds::Differ>(name, config, plugin))
    } else if is::<kinds::SandboxController>(&kind, "sandbox") {
        let plugin = Arc::new(sandbox::Proxy::new(remote)) as Arc<dyn Controller>;
        Ok(register::<kinds::SandboxController>(name, config, plugin))
    } else {
        Err(Error::invalid(format!(
            "proxy plugin {name}: type {kind:?} is not snapshot, content, diff or sandbox"
        )))
    }
}

/// The snapshotter `name` at `address`.
///
/// # Errors
/// InvalidArgument for an address that is no path.
pub fn snapshotter(name: &str, address: &str) -> Result<Arc<dyn Snapshotter>> {
    Ok(Arc::new(snapshotter::Proxy::new(Remote::new(
        name, address,
    )?)))
}

/// The content store at `address`.
///
/// # Errors
/// InvalidArgument for an address that is no path.
pub fn content(name: &str, address: &str) -> Result<Arc<dyn Backend>> {
    Ok(Arc::new(content::Proxy::new(Remote::new(name, address)?)))
}

/// The differ at `address`.
///
/// # Errors
/// InvalidArgument for an address that is no path.
pub fn differ(name: &str, address: &str) -> Result<Arc<dyn Differ>> {
    Ok(Arc::new(differ::Proxy::new(Remote::new(name, address)?)))
}

/// The sandbox controller `name` at `address`.
///
/// # Errors
/// InvalidArgument for an address that is no path.
pub fn sandbox(name: &str, address: &str) -> Result<Arc<dyn Controller>> {
    Ok(Arc::new(sandbox::Proxy::new(Remote::new(name, address)?)))
}

fn register<K: Kind>(name: &str, config: Config, plugin: Arc<K::Interface>) -> Registration {
    Registration::new::<K>(name).init_plain(move |cx: &mut Context| {
        Box::pin(async move {
            cx.platform(platform(&config.platform));
            for (key, value) in config.exports {
                cx.export(key, value);
            }
            cx.export("address", config.address);
            for capability in config.capabilities {
                cx.capability(capability);
            }
            Ok(plugin)
        })
    })
}

fn platform(text: &str) -> Platform {
    let mut parts = text.split('/').map(str::to_owned);
    match (parts.next(), parts.next()) {
        (Some(os), Some(architecture)) => Platform {
            os,
            architecture,
            variant: parts.next().unwrap_or_default(),
        },
        _ => Platform::host(),
    }
}
