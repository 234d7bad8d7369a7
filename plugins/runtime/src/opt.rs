//! io.containerd.internal.v1 "opt": where `ctr install` puts programs, and from where they are run.
//!
//! The plugin makes the folders and tells clients of them. The daemon puts them before its own PATH and
//! LD_LIBRARY_PATH when it starts, so that shims, runtimes and stream processors are found there first.

use std::any::Any;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use corten_core::{Context as _, kinds};
use corten_registry::Registration;
use corten_sys::blocking;
use serde::{Deserialize, Serialize};

/// `type.id` of the plugin.
pub const URI: &str = "io.containerd.internal.v1.opt";

/// `plugins."io.containerd.internal.v1.opt"`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Has the folders `bin` and `lib`.
    pub path: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            path: "/opt/containerd".into(),
        }
    }
}

/// The plugin.
pub fn registration() -> Registration {
    Registration::new::<kinds::Internal>("opt")
        .config::<Config>()
        .init(|cx, config| {
            Box::pin(async move {
                cx.export("path", config.path.display().to_string());
                let make = move || {
                    for name in ["bin", "lib"] {
                        let dir = config.path.join(name);
                        std::fs::DirBuilder::new()
                            .recursive(true)
                            .mode(0o711)
                            .create(&dir)
                            .with_context(|| format!("create {}", dir.display()))?;
                    }
                    Ok(())
                };
                blocking(make).await?;
                Ok(Arc::new(()) as Arc<dyn Any + Send + Sync>)
            })
        })
}
