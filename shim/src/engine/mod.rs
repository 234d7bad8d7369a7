//! Owns who runs a container: this process itself (`native`), or an OCI runtime that the options name (`binary`).
//!
//! The difference ends here: identity, streams, exits and events of a process are the same for both. What the named
//! runtime made is asked of it again; statistics and OOM kills are read from the cgroup it chose.

pub(crate) mod binary;
mod command;
mod console;
pub(crate) mod native;

use crate::error::{Context, Result};
use crate::task::Container;

// === impl Container ===

impl Container {
    /// Every pid of the container.
    pub(crate) async fn pids(&self) -> Result<Vec<i32>> {
        match &self.binary {
            Some(binary) => binary.pids().await,
            None => Ok(self.cgroup.pids()?),
        }
    }

    pub(crate) async fn freeze(&self) -> Result<()> {
        match &self.binary {
            Some(binary) => binary.pause().await,
            None => native::freeze(&self.cgroup).await,
        }
        .context("OCI runtime pause failed")
    }

    pub(crate) async fn thaw(&self) -> Result<()> {
        match &self.binary {
            Some(binary) => binary.resume().await,
            None => Ok(self.cgroup.thaw()?),
        }
        .context("OCI runtime resume failed")
    }

    /// Applies a resources document.
    pub(crate) async fn limit(&self, document: &[u8]) -> Result<()> {
        let resources = corten_oci::Resources::parse(document)?;
        match &self.binary {
            Some(binary) => binary.update(document).await,
            None => crate::systemd::update(&self.cgroup, &resources).await,
        }
        .context("OCI runtime update failed")
    }
}
