//! A task's root file system through the mount manager: what the shim cannot mount itself is mounted here, under the
//! container's id, before Create, and undone when the task is deleted (containerd 2.4 core/runtime/v2/task_mounts.go).
//!
//! What a shim mounts itself it says in its answer to `start` (an extension), or in the older annotation of its `-info`.
//! An activation that outlives its task, because the daemon or the shim died, goes with the container's record.

use std::collections::HashMap;
use std::sync::Arc;

use corten_core::mounts::{ActivateOptions, Manager};
use corten_core::runtime::CreateOptions;
use corten_core::{Kind, Labels, Mount, Result, Scope, labels};
use corten_protos::any;
use corten_protos::containerd::types::MountCapabilities;
use parking_lot::Mutex;
use tracing::{error, warn};

use crate::bundle::Bundle;
use crate::command;
use crate::shim::Shim;

const ALLOW_MOUNTS: &str = "containerd.io/runtime-allow-mounts";
/// Runtimes that never had the annotation.
const WITHOUT_ANNOTATION: [&str; 2] = ["io.containerd.runc.v2", "io.containerd.corten.v2"];

/// The way to the mount manager; without one all mounts are the shim's.
#[derive(Default)]
pub(crate) struct TaskMounts {
    manager: Option<Arc<dyn Manager>>,
    /// What runtimes said in their `-info`, by name.
    annotations: Mutex<HashMap<String, MountCapabilities>>,
}

// === impl TaskMounts ===

impl TaskMounts {
    pub(crate) fn new(manager: Option<Arc<dyn Manager>>) -> Self {
        Self {
            manager,
            annotations: Mutex::default(),
        }
    }

    /// What the shim has to mount; with `true` when this call activated something that a failed Create must undo.
    pub(crate) async fn activate(
        &self,
        shim: &Shim,
        o: &CreateOptions,
    ) -> Result<(Vec<Mount>, bool)> {
        let Some(manager) = &self.manager else {
            return Ok((o.rootfs.clone(), false));
        };
        let usual = |m: &Mount| matches!(m.r#type.as_str(), "bind" | "overlay");
        let claims = match o.rootfs.iter().all(usual) {
            true => MountCapabilities::default(),
            false => self.claims(shim, &o.runtime).await,
        };
        let id = &shim.bundle.id;
        let options = ActivateOptions {
            labels: Labels::from([(labels::GC_BREF_CONTAINER.to_owned(), id.clone())]),
            claimed_types: claims.types,
            claimed_transforms: claims.transforms,
            ..Default::default()
        };
        let scope = Scope::new(shim.bundle.namespace.clone());
        match manager.activate(&scope, id, &o.rootfs, options).await {
            Ok(info) => Ok((info.system, true)),
            // Of an earlier task of the same container, which still refers to it.
            Err(e) if e.kind() == Kind::AlreadyExists => {
                let info = manager.info(&scope.namespace, id).await?;
                Ok((info.system, false))
            }
            Err(e) if e.kind() == Kind::NotImplemented => Ok((o.rootfs.clone(), false)),
            Err(e) => Err(e),
        }
    }

    /// Undoes the activation of a task, if it had one.
    pub(crate) async fn deactivate(&self, bundle: &Bundle) {
        let Some(manager) = &self.manager else {
            return;
        };
        match manager.deactivate(&bundle.namespace, &bundle.id).await {
            Err(e) if e.kind() == Kind::NotFound => {}
            Err(error) => {
                error!(container.id = %bundle.id, %error, "failed to deactivate mounts");
            }
            Ok(()) => {}
        }
    }

    async fn claims(&self, shim: &Shim, runtime: &str) -> MountCapabilities {
        for extension in &shim.bootstrap.extensions {
            let Some(value) = &extension.value else {
                continue;
            };
            if any::is::<MountCapabilities>(value) {
                return any::unpack(value).unwrap_or_else(|e| {
                    // To mount too much here is safe, too little is not.
                    error!(error = %e, "failed to read shim mount capabilities, assuming none");
                    MountCapabilities::default()
                });
            }
        }
        if WITHOUT_ANNOTATION.contains(&runtime) {
            return MountCapabilities::default();
        }
        if let Some(known) = self.annotations.lock().get(runtime) {
            return known.clone();
        }
        let info = match command::info(&shim.binary, None).await {
            Ok(info) => info,
            Err(error) => {
                warn!(runtime, %error, "ask a runtime for the mounts it makes itself");
                return MountCapabilities::default();
            }
        };
        let text = info.annotations.get(ALLOW_MOUNTS);
        let said = parse(text.map_or("", String::as_str));
        self.annotations
            .lock()
            .insert(runtime.to_owned(), said.clone());
        said
    }
}

/// `erofs,format/*,mkdir/*`
fn parse(text: &str) -> MountCapabilities {
    let mut out = MountCapabilities::default();
    for word in text.split(',').map(str::trim).filter(|w| !w.is_empty()) {
        match word.strip_suffix("/*") {
            Some(transform) => out.transforms.push(transform.to_owned()),
            None => out.types.push(word.to_owned()),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_old_annotation_names_types_and_transformations() {
        let said = parse("erofs, format/*,mkdir/*,,mkfs/ext4");
        assert_eq!(said.types, ["erofs", "mkfs/ext4"]);
        assert_eq!(said.transforms, ["format", "mkdir"]);
        assert_eq!(parse(""), MountCapabilities::default());
    }
}
