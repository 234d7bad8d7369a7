//! Labels: small key-value strings on every record, some of which the daemon obeys.

use std::collections::BTreeMap;

use crate::error::{Error, Result};

/// Labels in key order, so that what is stored and served is deterministic.
pub type Labels = BTreeMap<String, String>;

/// Longest key plus value, in bytes (containerd: pkg/labels).
pub const MAX_SIZE: usize = 4096;

/// Set by the unpacker on compressed layers: the diff id.
pub const UNCOMPRESSED: &str = "containerd.io/uncompressed";
/// Prefix of the labels that name where a blob can be mounted from.
pub const DISTRIBUTION_SOURCE: &str = "containerd.io/distribution.source";
/// Namespace label: its content may be shared with others although the policy is isolated.
pub const SHAREABLE: &str = "containerd.io/namespace.shareable";
/// Namespace label: snapshotter used when a client names none.
pub const DEFAULT_SNAPSHOTTER: &str = "containerd.io/defaults/snapshotter";
/// Namespace label: runtime used when a client names none.
pub const DEFAULT_RUNTIME: &str = "containerd.io/defaults/runtime";
/// The chain id that a Prepare is meant to end in.
pub const SNAPSHOT_REF: &str = "containerd.io/snapshot.ref";
/// Prefix of the labels that reach a snapshotter.
pub const SNAPSHOT_PREFIX: &str = "containerd.io/snapshot/";
/// Labels of the garbage collector.
pub const GC_ROOT: &str = "containerd.io/gc.root";
pub const GC_REF: &str = "containerd.io/gc.ref";
pub const GC_REF_CONTENT: &str = "containerd.io/gc.ref.content";
pub const GC_REF_SNAPSHOT: &str = "containerd.io/gc.ref.snapshot";
pub const GC_REF_MOUNT: &str = "containerd.io/gc.ref.mount";
pub const GC_REF_STREAM: &str = "containerd.io/gc.ref.stream";
pub const GC_REF_IMAGE: &str = "containerd.io/gc.ref.image";
pub const GC_BREF_CONTAINER: &str = "containerd.io/gc.bref.container";
pub const GC_BREF_CONTENT: &str = "containerd.io/gc.bref.content";
pub const GC_BREF_IMAGE: &str = "containerd.io/gc.bref.image";
pub const GC_BREF_SNAPSHOT: &str = "containerd.io/gc.bref.snapshot";
pub const GC_EXPIRE: &str = "containerd.io/gc.expire";
pub const GC_FLAT: &str = "containerd.io/gc.flat";

/// Checks one label.
///
/// # Errors
/// InvalidArgument when key and value together are longer than 4096 bytes.
pub fn validate(key: &str, value: &str) -> Result<()> {
    let size = key.len() + value.len();
    if size > MAX_SIZE {
        let mut short = key;
        if key.len() > 10 {
            let end = (0..=10)
                .rev()
                .find(|i| key.is_char_boundary(*i))
                .unwrap_or(0);
            short = &key[..end];
        }
        return Err(Error::invalid(format!(
            "label key and value length ({size} bytes) greater than maximum size ({MAX_SIZE} bytes), key: {short}"
        )));
    }
    Ok(())
}

/// Checks all labels.
///
/// # Errors
/// See [`validate`].
pub fn validate_all(labels: &Labels) -> Result<()> {
    labels.iter().try_for_each(|(k, v)| validate(k, v))
}

/// Applies an update of `labels` under the mask paths `labels` and `labels.<key>`: an empty mask or `labels`
/// replaces all, `labels.<key>` sets one; an empty value removes. Returns `None` for a path of another field.
pub fn masked(current: &Labels, wanted: &Labels, paths: &[String]) -> Option<Labels> {
    if paths.is_empty() {
        return Some(without_empty(wanted.clone()));
    }
    let mut out = current.clone();
    for p in paths {
        if p == "labels" {
            out = wanted.clone();
        } else {
            let key = p.strip_prefix("labels.")?;
            match wanted.get(key) {
                Some(v) if !v.is_empty() => out.insert(key.into(), v.clone()),
                _ => out.remove(key),
            };
        }
    }
    Some(without_empty(out))
}

fn without_empty(mut labels: Labels) -> Labels {
    labels.retain(|_, v| !v.is_empty());
    labels
}
