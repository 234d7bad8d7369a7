//! What a plugin sees while it starts: its folders, its properties, and the plugins it declared to need.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::registration::{Kind, Platform};

/// Facts about the daemon that every plugin may read.
#[derive(Debug, Clone, Default)]
pub struct Properties {
    /// Persistent root of the daemon, e.g. `/var/lib/containerd`.
    pub root: PathBuf,
    /// Volatile state of the daemon, e.g. `/run/containerd`.
    pub state: PathBuf,
    /// Address of the main gRPC socket (a path).
    pub grpc_address: String,
    /// Address of the ttrpc socket (a path).
    pub ttrpc_address: String,
    /// The daemon's own version, as `ctr version` shows it.
    pub version: String,
    /// The `stream_processors` table of the config, which the differs read.
    pub stream_processors: BTreeMap<String, toml::Value>,
    /// The `timeouts` table of the config.
    pub timeouts: BTreeMap<String, std::time::Duration>,
}

/// Instances of one kind with what they told, by id.
pub type ById<I> = BTreeMap<String, (Arc<I>, Meta)>;

/// What a plugin tells about itself while starting; shown by introspection.
#[derive(Debug, Clone, Default)]
pub struct Meta {
    pub platforms: Vec<Platform>,
    pub exports: BTreeMap<String, String>,
    pub capabilities: Vec<String>,
}

/// A look-up that cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// The plugin asks for a kind that it did not declare: a bug in its registration.
    #[error("plugin {plugin} looks up {kind} without declaring it")]
    Undeclared { plugin: String, kind: &'static str },
    /// No plugin of the kind started.
    #[error("no plugins registered for {kind}: plugin: not found")]
    NotFound { kind: &'static str },
    /// No plugin of that id started.
    #[error("no plugin {kind}.{id}: plugin: not found")]
    NoSuchId { kind: &'static str, id: String },
    /// The plugin exists, but did not start.
    #[error("load required plugin {kind}.{id}: {reason}")]
    Unavailable {
        kind: &'static str,
        id: String,
        reason: String,
    },
    /// More than one plugin of the kind started.
    #[error("multiple plugins registered for {kind}: plugin: multiple instances")]
    Multiple { kind: &'static str },
}

pub(crate) struct Started {
    pub(crate) kind: &'static str,
    pub(crate) id: String,
    /// `Arc<K::Interface>` behind `Any`, or why there is none.
    pub(crate) instance: Result<Arc<dyn Any + Send + Sync>, String>,
    pub(crate) meta: Meta,
}

impl fmt::Debug for Started {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{} ({})", self.kind, self.id, self.instance.is_ok())
    }
}

/// The start context of one plugin.
#[derive(Debug)]
pub struct Context {
    pub(crate) kind: &'static str,
    pub(crate) id: String,
    pub(crate) requires: Vec<&'static str>,
    pub(crate) properties: Arc<Properties>,
    pub(crate) started: Arc<Vec<Started>>,
    pub(crate) meta: Meta,
}

impl Context {
    /// The plugin's own folder below the persistent root: `<root>/<type>.<id>`. Not created here.
    pub fn root(&self) -> PathBuf {
        self.properties
            .root
            .join(format!("{}.{}", self.kind, self.id))
    }

    /// The plugin's own folder below the volatile state: `<state>/<type>.<id>`. Not created here.
    pub fn state(&self) -> PathBuf {
        self.properties
            .state
            .join(format!("{}.{}", self.kind, self.id))
    }

    /// The daemon's facts.
    pub fn properties(&self) -> &Properties {
        &self.properties
    }

    /// The daemon's state folder itself.
    pub fn daemon_state(&self) -> &Path {
        &self.properties.state
    }

    /// Sets a value that introspection shows, e.g. `root`.
    pub fn export(&mut self, key: impl Into<String>, value: impl Into<String>) {
        self.meta.exports.insert(key.into(), value.into());
    }

    /// Adds a capability, e.g. `rebase`.
    pub fn capability(&mut self, name: impl Into<String>) {
        self.meta.capabilities.push(name.into());
    }

    /// Adds a platform that the plugin serves.
    pub fn platform(&mut self, platform: Platform) {
        self.meta.platforms.push(platform);
    }

    /// Adds the host's platform to the plugin's platforms.
    pub fn host_platform(&mut self) {
        self.meta.platforms.push(Platform::host());
    }

    /// The only started plugin of kind `K`.
    ///
    /// # Errors
    /// None started, several started, or `K` was not declared.
    pub fn single<K: Kind>(&self) -> Result<Arc<K::Interface>, LookupError> {
        let mut found = None;
        let mut broken = None;
        for s in self.declared::<K>()? {
            match &s.instance {
                Ok(i) if found.is_none() => found = Some(typed::<K>(i)),
                Ok(_) => return Err(LookupError::Multiple { kind: K::URI }),
                Err(reason) => broken = Some((s.id.clone(), reason.clone())),
            }
        }
        match (found.flatten(), broken) {
            (Some(p), _) => Ok(p),
            (None, Some((id, reason))) => Err(LookupError::Unavailable {
                kind: K::URI,
                id,
                reason,
            }),
            (None, None) => Err(LookupError::NotFound { kind: K::URI }),
        }
    }

    /// The started plugin `id` of kind `K`.
    ///
    /// # Errors
    /// Not there, not started, or `K` was not declared.
    pub fn by_id<K: Kind>(&self, id: &str) -> Result<Arc<K::Interface>, LookupError> {
        let s =
            self.declared::<K>()?
                .find(|s| s.id == id)
                .ok_or_else(|| LookupError::NoSuchId {
                    kind: K::URI,
                    id: id.into(),
                })?;
        match &s.instance {
            Ok(i) => typed::<K>(i).ok_or(LookupError::NotFound { kind: K::URI }),
            Err(reason) => Err(LookupError::Unavailable {
                kind: K::URI,
                id: id.into(),
                reason: reason.clone(),
            }),
        }
    }

    /// All started plugins of kind `K` by id, with what they said of themselves.
    ///
    /// # Errors
    /// `K` was not declared. An empty map is not an error.
    pub fn all<K: Kind>(&self) -> Result<ById<K::Interface>, LookupError> {
        Ok(self
            .declared::<K>()?
            .filter_map(|s| {
                let i = s.instance.as_ref().ok()?;
                Some((s.id.clone(), (typed::<K>(i)?, s.meta.clone())))
            })
            .collect())
    }

    fn declared<K: Kind>(&self) -> Result<impl Iterator<Item = &Started>, LookupError> {
        if !self.requires.iter().any(|r| *r == "*" || *r == K::URI) {
            return Err(LookupError::Undeclared {
                plugin: format!("{}.{}", self.kind, self.id),
                kind: K::URI,
            });
        }
        Ok(self.started.iter().filter(|s| s.kind == K::URI))
    }
}

pub(crate) fn typed<K: Kind>(i: &Arc<dyn Any + Send + Sync>) -> Option<Arc<K::Interface>> {
    i.downcast_ref::<Arc<K::Interface>>().cloned()
}
