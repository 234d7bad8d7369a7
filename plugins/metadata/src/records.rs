//! Records that the API has no message for, and the time and label rules that all records share.
//!
//! Field numbers are part of the file format: never reuse one.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use corten_core::{Error, Labels, Result, Timestamp, labels};

/// An ingest that is open or can be resumed.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Ingest {
    /// The ref in the backend.
    #[prost(string, tag = "1")]
    pub backend: String,
    /// Set while the blob is taken over from another namespace: no bytes are written.
    #[prost(string, tag = "2")]
    pub expected: String,
    /// When it may be collected; absent for one that a lease holds.
    #[prost(message, optional, tag = "3")]
    pub expire_at: Option<Timestamp>,
}

/// A snapshot of one namespace.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Snapshot {
    /// The key in the backend.
    #[prost(string, tag = "1")]
    pub backend: String,
    /// The parent's key in the namespace; empty when there is none.
    #[prost(string, tag = "2")]
    pub parent: String,
    #[prost(btree_map = "string, string", tag = "3")]
    pub labels: BTreeMap<String, String>,
    #[prost(message, optional, tag = "4")]
    pub created_at: Option<Timestamp>,
    #[prost(message, optional, tag = "5")]
    pub updated_at: Option<Timestamp>,
}

/// How long an ingest that no lease holds is kept.
pub(crate) const INGEST_LIFE: Duration = Duration::from_secs(24 * 3600);

/// The clock's time of a stored time; the epoch when there is none.
pub(crate) fn system_time(t: Option<Timestamp>) -> SystemTime {
    t.and_then(|t| SystemTime::try_from(t).ok())
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Checks `labels` and drops the empty ones, which mean "remove".
pub(crate) fn checked_labels(what: &'static str, labels: &mut Labels) -> Result<()> {
    labels::validate_all(labels).map_err(|e| e.context(what))?;
    labels.retain(|_, v| !v.is_empty());
    Ok(())
}

/// Takes the value of `key` over from `wanted`: one path `<field>.<key>` of an update mask.
pub(crate) fn take_over<V: Clone>(
    to: &mut BTreeMap<String, V>,
    wanted: &BTreeMap<String, V>,
    key: &str,
) {
    match wanted.get(key) {
        Some(value) => to.insert(key.to_owned(), value.clone()),
        None => to.remove(key),
    };
}

/// The paths of an update: those of its mask, or `all` without one. A whole record that differs in one of the `fixed`
/// fields (its name, and whether it is the same) is refused, not half applied.
pub(crate) fn mask<'a>(
    paths: &'a [String],
    all: &[&'a str],
    fixed: &[(&str, bool)],
) -> Result<Vec<&'a str>> {
    if !paths.is_empty() {
        return Ok(paths.iter().map(String::as_str).collect());
    }
    match fixed.iter().find(|(_, same)| !same) {
        Some((field, _)) => Err(Error::invalid(format!("{field} field is immutable"))),
        None => Ok(all.to_vec()),
    }
}

/// containerd's words for a mask path that cannot be updated.
pub(crate) fn immutable(path: &str, on: &str) -> Error {
    Error::invalid(format!("cannot update {path:?} field on {on}"))
}

/// Replaces `labels` under a mask of `labels` and `labels.<key>` paths; no path replaces all.
pub(crate) fn masked_labels(
    current: &mut Labels,
    wanted: &Labels,
    paths: &[String],
    on: impl Fn() -> String,
) -> Result<()> {
    if paths.is_empty() {
        current.clone_from(wanted);
    }
    for path in paths {
        if path == "labels" {
            current.clone_from(wanted);
        } else if let Some(key) = path.strip_prefix("labels.") {
            take_over(current, wanted, key);
        } else {
            return Err(immutable(path, &on()));
        }
    }
    Ok(())
}
