//! The labels by which image records are the CRI's.

use corten_core::Labels;

/// Key: this record is kept by the CRI.
pub const MANAGED: &str = "io.cri-containerd.image";
/// Its value.
pub const MANAGED_VALUE: &str = "managed";
/// Key: the kubelet must not collect this image.
pub const PINNED: &str = "io.cri-containerd.pinned";
/// Its value.
pub const PINNED_VALUE: &str = "pinned";

/// The labels of a record that the CRI makes.
pub(super) fn of(pinned: bool) -> Labels {
    let mut out = Labels::from([(MANAGED.into(), MANAGED_VALUE.into())]);
    if pinned {
        out.insert(PINNED.into(), PINNED_VALUE.into());
    }
    out
}
