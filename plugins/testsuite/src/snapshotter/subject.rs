//! A snapshotter under the suite, and what the suite has to know of its kind.

use std::path::Path;
use std::sync::Arc;

use corten_core::Mount;
use corten_core::snapshots::Snapshotter;
use corten_sys::mount::with_temp_mount;

/// Mounts a recipe, shows the result and takes it away again.
pub type Mounter = Arc<dyn Fn(&[Mount], &mut dyn FnMut(&Path)) + Send + Sync>;

/// What the suite has to know of a kind of snapshotters.
#[derive(Clone)]
pub struct Traits {
    /// Recipes may need more than mount(2).
    pub mounter: Mounter,
    /// How many layers to stack at most.
    pub depth: usize,
    /// Layers are stored in another form than they are written.
    pub converts: bool,
}

impl std::fmt::Debug for Traits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Traits")
            .field("depth", &self.depth)
            .field("converts", &self.converts)
            .finish_non_exhaustive()
    }
}

impl Default for Traits {
    /// Recipes for mount(2), 128 layers, stored as written.
    fn default() -> Self {
        Self {
            mounter: Arc::new(|mounts, f| {
                with_temp_mount(mounts, None, |root| {
                    f(root);
                    Ok(())
                })
                .unwrap();
            }),
            depth: 128,
            converts: false,
        }
    }
}

/// The snapshotter of one case.
pub(super) struct Sn {
    pub(super) snapshotter: Arc<dyn Snapshotter>,
    pub(super) traits: Traits,
}

impl std::ops::Deref for Sn {
    type Target = dyn Snapshotter;
    fn deref(&self) -> &Self::Target {
        &*self.snapshotter
    }
}
