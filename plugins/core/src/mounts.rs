//! Mounts: facts about recipes that need no system call, and the manager of those that one mount(2) cannot make.
//!
//! A recipe of a snapshotter may need steps that are not mounts: `format/mkdir/overlay` is an overlay whose options are
//! templates over the mounts before it and whose folders have to be made. [`Manager::activate`] does what is needed and
//! answers with the recipe that is left, which anybody can mount. What it did it remembers by name, until
//! [`Manager::deactivate`] or until the garbage collector finds that nothing refers to it.

use std::path::Path;

use async_trait::async_trait;

use crate::error::Result;
use crate::filter::Filter;
use crate::protos::containerd::types::{ActivationInfo, ActiveMount};
use crate::{Labels, Mount, Namespace, Scope};

/// Options of [`Manager::activate`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ActivateOptions {
    /// Those of the garbage collector keep the activation: `gc.bref.*`.
    pub labels: Labels,
    /// Everything is mounted, and what is left is one bind of the result.
    pub temporary: bool,
    /// Mount types that the caller mounts itself.
    pub claimed_types: Vec<String>,
    /// Transformations (`format`, `mkdir`, `mkfs`) that the caller makes itself.
    pub claimed_transforms: Vec<String>,
    /// Never garbage while this daemon runs: for callers that deactivate before they answer.
    pub pinned: bool,
}

/// The mount manager.
#[async_trait]
pub trait Manager: Send + Sync {
    /// NotImplemented when nothing in `mounts` needs it: they can be mounted as they are. AlreadyExists.
    async fn activate(
        &self,
        scope: &Scope,
        name: &str,
        mounts: &[Mount],
        options: ActivateOptions,
    ) -> Result<ActivationInfo>;
    /// Undoes an activation. NotFound.
    async fn deactivate(&self, ns: &Namespace, name: &str) -> Result<()>;
    /// NotFound.
    async fn info(&self, ns: &Namespace, name: &str) -> Result<ActivationInfo>;
    /// Replaces labels under the mask; nothing else can change.
    async fn update(
        &self,
        ns: &Namespace,
        info: ActivationInfo,
        paths: &[String],
    ) -> Result<ActivationInfo>;
    async fn list(&self, ns: &Namespace, filter: &Filter) -> Result<Vec<ActivationInfo>>;
}

/// How one type of mount is made (`io.containerd.mount-handler.v1`, by the type's name). Called where blocking is
/// allowed.
pub trait Handler: Send + Sync {
    /// Makes `mount` at `at`, which does not exist yet; `active` are those before it. NotImplemented for a recipe that
    /// is not for this handler.
    fn mount(&self, mount: &Mount, at: &Path, active: &[ActiveMount]) -> Result<ActiveMount>;
    /// Undoes it; nothing there is fine.
    fn unmount(&self, at: &Path) -> Result<()>;
    /// Whether what was made at `at` still is: after a reboot it is not.
    fn is_active(&self, at: &Path) -> bool;
}

/// Whether a recipe gives a read-only file system (containerd 2.4 core/mount/mount.go): the last segment of the
/// type decides: erofs always; overlay unless it has an upperdir; others by the option `ro`.
pub fn is_read_only(mount: &Mount) -> bool {
    let kind = mount.r#type.rsplit('/').next().unwrap_or_default();
    let has = |want: &str| options(mount).any(|o| o == want);
    match kind {
        "erofs" => true,
        "overlay" => has("ro") || !options(mount).any(|o| o.starts_with("upperdir=")),
        _ => has("ro"),
    }
}

/// The recipe with every writable mount made read-only, on a copy.
#[must_use]
pub fn read_only(mounts: &[Mount]) -> Vec<Mount> {
    mounts
        .iter()
        .map(|m| {
            let mut m = m.clone();
            if m.r#type == "overlay" {
                // Without upper and work dir an overlay is read-only; the upper dir becomes the top lower dir.
                let upper = m
                    .options
                    .iter()
                    .find_map(|o| o.strip_prefix("upperdir=").map(str::to_owned));
                m.options
                    .retain(|o| !o.starts_with("upperdir=") && !o.starts_with("workdir="));
                if let Some(upper) = upper {
                    for o in &mut m.options {
                        if let Some(lower) = o.strip_prefix("lowerdir=") {
                            *o = format!("lowerdir={upper}:{lower}");
                        }
                    }
                }
            } else {
                m.options.retain(|o| o != "rw");
                if !m.options.iter().any(|o| o == "ro") {
                    m.options.push("ro".into());
                }
            }
            m
        })
        .collect()
}

fn options(mount: &Mount) -> impl Iterator<Item = &str> {
    mount.options.iter().flat_map(|o| o.split(','))
}
