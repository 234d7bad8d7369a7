//! Pods: their sandboxes, from RunPodSandbox to RemovePodSandbox, and what becomes of them after a restart.
//!
//! ```text
//! run:    name -> lease -> record -> netns -> network -> controller create, start -> READY     (undone in reverse)
//! stop:   containers -> controller stop -> network -> netns                                    (again and again is fine)
//! remove: stop -> containers -> controller shutdown -> record, name, lease
//! ```
//! Who keeps a pod's namespaces is its controller: `shim` has a holder process in our shim and needs no image;
//! [`pause`] runs a pause container as a task of any shim; others are proxy plugins.
//!
//! | file | what |
//! |---|---|
//! | [`run`], [`stop`], [`remove`], [`status`], [`list`], [`update`] | the RPCs |
//! | [`request`] | what a PodSandboxConfig says, and which runtime it gets |
//! | [`network`] | namespaces and CNI |
//! | [`record`] | what is stored |
//! | [`monitor`] | how pods end |
//! | [`recover`] | what a new daemon finds |
//! | [`pause`] | the pause-image controller |

pub mod list;
pub mod monitor;
pub mod network;
pub mod options;
pub mod pause;
pub mod quantity;
pub mod record;
pub mod recover;
pub mod remove;
pub mod request;
pub mod run;
pub mod status;
pub mod stop;
pub mod update;

use std::sync::Arc;

use corten_core::sandbox::Controller;
use corten_core::{Error, Kind, Result};

use crate::Cri;

pub use status::status_of;

/// Who keeps pods of this sort.
///
/// # Errors
/// NotFound: nobody of that name.
pub fn controller<'a>(cri: &'a Cri, sandboxer: &str) -> Result<&'a Arc<dyn Controller>> {
    cri.controllers.get(sandboxer).ok_or_else(|| {
        Error::new(
            Kind::NotFound,
            format!("failed to get sandbox controller by {sandboxer}"),
        )
    })
}
