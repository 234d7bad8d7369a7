//! A plugin's declaration of itself.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::config::{Fault, decode};
use crate::context::Context;

/// Any error of a plugin's start.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A plugin type: containerd's type URI together with the interface that its plugins offer to others.
pub trait Kind: Send + Sync + 'static {
    /// `io.containerd.<type>.v<n>`.
    const URI: &'static str;
    /// What `Context::single` and friends hand out, as `Arc<Self::Interface>`.
    type Interface: ?Sized + Send + Sync + 'static;
}

/// Why a plugin did not start.
#[derive(Debug)]
pub enum InitError {
    /// The plugin is not for this host (containerd's ErrSkipPlugin): not a failure.
    Skip(String),
    /// Anything else: logged and listed; fatal only when the plugin is required.
    Failed(BoxError),
}

impl fmt::Display for InitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Skip(reason) => write!(f, "skip plugin: {reason}"),
            Self::Failed(e) => write!(f, "{e}"),
        }
    }
}

impl<E: Into<BoxError>> From<E> for InitError {
    fn from(e: E) -> Self {
        Self::Failed(e.into())
    }
}

/// `Err(skip("no mkfs.erofs on PATH"))`: the plugin is listed as skipped.
pub fn skip(reason: impl Into<String>) -> InitError {
    InitError::Skip(reason.into())
}

/// An OCI platform that a plugin serves, as `ctr plugins ls` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    pub variant: String,
}

impl Platform {
    /// The platform of this build, in the OCI image-spec's names.
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", ""),
            "aarch64" => ("arm64", "v8"),
            "x86" => ("386", ""),
            "arm" => ("arm", "v7"),
            "powerpc64" => ("ppc64le", ""),
            other => (other, ""),
        };
        Self {
            os: "linux".into(),
            architecture: architecture.into(),
            variant: variant.into(),
        }
    }
}

pub(crate) type Instance = Box<dyn Any + Send + Sync>;
pub(crate) type InitFuture<'a> =
    Pin<Box<dyn Future<Output = Result<Instance, InitError>> + Send + 'a>>;
type CheckFn = fn(toml::Table) -> Result<Vec<String>, Fault>;
type InitFn = Box<dyn for<'a> FnOnce(&'a mut Context, toml::Table) -> InitFuture<'a> + Send>;

/// One plugin: type, id, dependencies, config and start function.
pub struct Registration {
    pub(crate) kind: &'static str,
    pub(crate) id: String,
    pub(crate) requires: Vec<&'static str>,
    pub(crate) default_config: Option<toml::Table>,
    check: CheckFn,
    pub(crate) init: InitFn,
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration")
            .field("uri", &self.uri())
            .field("requires", &self.requires)
            .finish_non_exhaustive()
    }
}

impl Registration {
    /// Starts the declaration of plugin `id` of kind `K`.
    #[expect(
        clippy::new_ret_no_self,
        reason = "a builder whose last step gives the registration"
    )]
    pub fn new<K: Kind>(id: impl Into<String>) -> Builder<K, ()> {
        Builder {
            id: id.into(),
            requires: Vec::new(),
            default_config: None,
            _kind: PhantomData,
        }
    }

    /// The type URI.
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// The id within the type.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// `type.id`, the name used in config files and `disabled_plugins`.
    pub fn uri(&self) -> String {
        format!("{}.{}", self.kind, self.id)
    }

    /// Type URIs that must be started before this one; `*` means all others.
    pub fn requires(&self) -> &[&'static str] {
        &self.requires
    }

    /// Looks at a config table without starting anything: the keys that the plugin does not read.
    ///
    /// # Errors
    /// A value of the wrong type; the plugin would not start.
    pub fn check(&self, table: &toml::Table) -> Result<Vec<String>, Fault> {
        (self.check)(table.clone())
    }

    /// The default config table, if the plugin has one.
    pub fn default_config(&self) -> Option<&toml::Table> {
        self.default_config.as_ref()
    }
}

/// A [`Registration`] under construction; `C` is the config type once [`Builder::config`] named it.
pub struct Builder<K, C> {
    id: String,
    requires: Vec<&'static str>,
    default_config: Option<toml::Table>,
    _kind: PhantomData<fn() -> (K, C)>,
}

impl<K, C> fmt::Debug for Builder<K, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl<K: Kind, C> Builder<K, C> {
    /// Declares that all plugins of kind `D` start first and may be looked up.
    #[must_use]
    pub fn requires<D: Kind>(mut self) -> Self {
        self.requires.push(D::URI);
        self
    }

    /// Declares that every other plugin starts first (health, introspection).
    #[must_use]
    pub fn requires_all(mut self) -> Self {
        self.requires.push("*");
        self
    }

    /// Names the config type: its `Default` feeds `config default`, its serde form the file.
    #[must_use]
    pub fn config<N>(self) -> Builder<K, N>
    where
        N: Serialize + DeserializeOwned + Default + Send + 'static,
    {
        let default_config = toml::Table::try_from(N::default()).ok();
        Builder {
            id: self.id,
            requires: self.requires,
            default_config,
            _kind: PhantomData,
        }
    }
}

impl<K: Kind> Builder<K, ()> {
    /// The start function of a plugin without config.
    pub fn init_plain<F>(self, init: F) -> Registration
    where
        F: for<'a> FnOnce(
                &'a mut Context,
            ) -> Pin<
                Box<dyn Future<Output = Result<Arc<K::Interface>, InitError>> + Send + 'a>,
            > + Send
            + 'static,
    {
        Registration {
            kind: K::URI,
            id: self.id,
            requires: self.requires,
            default_config: None,
            check: |table| Ok(table.into_iter().map(|(key, _)| key).collect()),
            init: Box::new(move |cx, _table| {
                Box::pin(async move {
                    let plugin: Arc<K::Interface> = init(cx).await?;
                    Ok(Box::new(plugin) as Instance)
                })
            }),
        }
    }
}

impl<K: Kind, C> Builder<K, C>
where
    C: Serialize + DeserializeOwned + Default + Send + 'static,
{
    /// The start function of a plugin with config `C`.
    pub fn init<F>(self, init: F) -> Registration
    where
        F: for<'a> FnOnce(
                &'a mut Context,
                C,
            ) -> Pin<
                Box<dyn Future<Output = Result<Arc<K::Interface>, InitError>> + Send + 'a>,
            > + Send
            + 'static,
    {
        Registration {
            kind: K::URI,
            id: self.id,
            requires: self.requires,
            default_config: self.default_config,
            check: |table| decode::<C>(table).map(|d| d.unknown),
            init: Box::new(move |cx, table| {
                Box::pin(async move {
                    let decoded = decode::<C>(table).map_err(|e| {
                        InitError::Failed(
                            format!("decode plugin config: {e} in `{}`", e.key).into(),
                        )
                    })?;
                    let plugin: Arc<K::Interface> = init(cx, decoded.config).await?;
                    Ok(Box::new(plugin) as Instance)
                })
            }),
        }
    }
}
