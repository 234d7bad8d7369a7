//! What labels say to the collector.
//!
//! ```text
//! gc.root                               this is kept
//! gc.ref.content[(.|/)x] = digest       this keeps that (also gc.ref.image, gc.ref.mount, gc.ref.stream = name)
//! gc.ref.snapshot.<snapshotter>[/x] = key
//! gc.bref.{content,image,container}[(.|/)x] = name, gc.bref.snapshot.<snapshotter>[/x] = key
//!                                       that keeps this
//! gc.cond.snapshot.<snapshotter>[/x] = usedat(<|>)duration[,..]|key
//!                                       this keeps that snapshot while its gc.cond.value-usedat is so old
//! ```

use std::time::Duration;

use corten_core::duration::parse as go_duration;
use corten_core::labels::{
    GC_BREF_CONTAINER, GC_BREF_CONTENT, GC_BREF_IMAGE, GC_BREF_SNAPSHOT, GC_EXPIRE, GC_REF_CONTENT,
    GC_REF_IMAGE, GC_REF_MOUNT, GC_REF_SNAPSHOT, GC_REF_STREAM, GC_ROOT,
};
use corten_core::protos::time::parse_rfc3339;
use corten_core::{Labels, Timestamp};
use tracing::info;

use super::mark::{Node, What};

const GC_COND_SNAPSHOT: &str = "containerd.io/gc.cond.snapshot";
const GC_COND_VALUE_USEDAT: &str = "containerd.io/gc.cond.value-usedat";

/// One label's meaning.
#[derive(Debug)]
pub(super) enum Meaning {
    Root,
    Ref(Node),
    BackRef(Node),
    /// The snapshot and the ages at which the labelled thing keeps it.
    Condition(Node, Vec<Age>),
    UsedAt(Timestamp),
}

/// A condition on the time since the last use.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Age {
    Below(Duration),
    Above(Duration),
}

/// All that the labels of a thing in `ns` mean.
pub(super) fn meanings<'a>(ns: &'a str, labels: &'a Labels) -> impl Iterator<Item = Meaning> + 'a {
    labels
        .range("containerd.io/gc.".to_owned()..)
        .take_while(|(k, _)| k.starts_with("containerd.io/gc."))
        .filter_map(move |(key, value)| meaning(ns, key, value))
}

fn meaning(ns: &str, key: &str, value: &str) -> Option<Meaning> {
    let node = |what| Node {
        what,
        ns: ns.to_owned(),
        name: value.to_owned(),
    };
    let refs = [
        (GC_REF_CONTENT, What::Content),
        (GC_REF_IMAGE, What::Image),
        (GC_REF_MOUNT, What::Other("mount")),
        (GC_REF_STREAM, What::Other("stream")),
    ];
    for (label, what) in refs {
        if is(key, label) {
            return Some(Meaning::Ref(node(what)));
        }
    }
    let back = [
        (GC_BREF_CONTENT, What::Content),
        (GC_BREF_IMAGE, What::Image),
        (GC_BREF_CONTAINER, What::Container),
    ];
    for (label, what) in back {
        if is(key, label) {
            return Some(Meaning::BackRef(node(what)));
        }
    }
    if let Some(rest) = key.strip_prefix(GC_REF_SNAPSHOT) {
        return Some(Meaning::Ref(node(What::Snapshot(snapshotter(
            rest.strip_prefix('.')?,
        )))));
    }
    if let Some(rest) = key.strip_prefix(GC_BREF_SNAPSHOT) {
        return Some(Meaning::BackRef(node(What::Snapshot(snapshotter(
            rest.strip_prefix('.')?,
        )))));
    }
    if let Some(rest) = key.strip_prefix(GC_COND_SNAPSHOT) {
        return condition(ns, rest.trim_start_matches(['.', '/']), value);
    }
    if key.starts_with(GC_COND_VALUE_USEDAT) {
        return parse_rfc3339(value).map(Meaning::UsedAt);
    }
    // containerd takes the label's prefix for the label.
    key.starts_with(GC_ROOT).then_some(Meaning::Root)
}

/// Whether `key` is `label` or `label` with a suffix after `.` or `/`.
fn is(key: &str, label: &str) -> bool {
    key.strip_prefix(label)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '/']))
}

fn snapshotter(rest: &str) -> String {
    rest.split_once('/').map_or(rest, |p| p.0).to_owned()
}

fn condition(ns: &str, rest: &str, value: &str) -> Option<Meaning> {
    let (conditions, key) = value.split_once('|')?;
    let ages = conditions.split(',').filter_map(|c| {
        let c = c.strip_prefix("usedat")?;
        if let Some(d) = c.strip_prefix('<') {
            go_duration(d).map(Age::Below)
        } else {
            go_duration(c.strip_prefix('>')?).map(Age::Above)
        }
    });
    let what = What::Snapshot(snapshotter(rest));
    let node = Node {
        what,
        ns: ns.to_owned(),
        name: key.to_owned(),
    };
    Some(Meaning::Condition(node, ages.collect()))
}

/// Whether the thing's `gc.expire` is past. An unreadable time never expires.
pub(super) fn expired(labels: &Labels, now: &Timestamp, what: &str) -> bool {
    let Some(text) = labels.get(GC_EXPIRE) else {
        return false;
    };
    match parse_rfc3339(text) {
        Some(at) => (now.seconds, now.nanos) > (at.seconds, at.nanos),
        None => {
            info!(resource = what, value = text, "ignore invalid expiration");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_follow_a_dot_or_a_slash() {
        for (key, want) in [
            ("containerd.io/gc.ref.content", true),
            ("containerd.io/gc.ref.content.l.0", true),
            ("containerd.io/gc.ref.content/x", true),
            ("containerd.io/gc.ref.contents", false),
            ("containerd.io/gc.ref.snapshot.overlayfs", true),
            ("containerd.io/gc.ref.snapshot.overlayfs/a", true),
            ("containerd.io/gc.ref.snapshotoverlayfs", false),
        ] {
            assert_eq!(
                matches!(meaning("n", key, "v"), Some(Meaning::Ref(_))),
                want,
                "{key}"
            );
        }
    }
}
