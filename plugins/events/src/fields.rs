//! What a filter can ask of an envelope: `namespace`, `topic` and `event.<field path>`.
//!
//! Paths inside an event are the protobuf names of its text fields, as containerd's generated code knows them: an
//! empty text counts as absent, numbers and times cannot be asked for, `labels` takes the rest of the path as its
//! key. An event of another type has no fields.

use corten_core::filter::{Fields, map_field};
use corten_core::protos::any;
use corten_core::protos::containerd::events::{
    ContainerCreate, ContainerDelete, ContainerUpdate, ContentCreate, ContentDelete,
    NamespaceCreate, NamespaceDelete, NamespaceUpdate, SandboxCreate, SandboxExit, SandboxStart,
    SnapshotCommit, SnapshotPrepare, SnapshotRemove, TaskCheckpointed, TaskCreate, TaskDelete,
    TaskExecAdded, TaskExecStarted, TaskExit, TaskOom, TaskPaused, TaskResumed, TaskStart,
};
use corten_core::protos::containerd::services::images::v1::{
    ImageCreate, ImageDelete, ImageUpdate,
};
use corten_core::protos::containerd::types::Envelope;
use corten_core::{Any, Labels};
use prost::{Message, Name};

/// An envelope as filters see it.
pub(crate) struct View<'a>(pub(crate) &'a Envelope);

impl Fields for View<'_> {
    fn field(&self, path: &[String]) -> Option<String> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "namespace" => text(&self.0.namespace),
            "topic" => text(&self.0.topic),
            "event" => event(self.0.event.as_ref()?, rest),
            _ => None,
        }
    }
}

fn text(value: &str) -> Option<String> {
    (!value.is_empty()).then(|| value.to_owned())
}

fn label(labels: &Labels, rest: &[String]) -> Option<String> {
    map_field(labels, rest)
}

fn event(event: &Any, path: &[String]) -> Option<String> {
    let (first, rest) = path.split_first()?;
    let name = any::name(&event.type_url);
    /// One row per message: its askable fields by name.
    macro_rules! table {
        ($($message:ident |$m:ident| { $($name:literal => $value:expr),* })*) => {
            $(if is::<$message>(name) {
                let $m = $message::decode(event.value.as_slice()).ok()?;
                return match first.as_str() { $($name => $value,)* _ => None };
            })*
        };
    }
    table! {
        ContainerCreate |m| {
            "id" => text(&m.id),
            "image" => text(&m.image),
            "runtime" => match rest.first().map(String::as_str) {
                Some("name") => text(&m.runtime?.name),
                _ => None,
            }
        }
        ContainerUpdate |m| {
            "id" => text(&m.id),
            "image" => text(&m.image),
            "labels" => label(&m.labels, rest),
            "snapshot_key" => text(&m.snapshot_key)
        }
        ContainerDelete |m| { "id" => text(&m.id) }
        ContentCreate |m| { "digest" => text(&m.digest), "mediaType" => text(&m.media_type) }
        ContentDelete |m| { "digest" => text(&m.digest) }
        ImageCreate |m| { "name" => text(&m.name), "labels" => label(&m.labels, rest) }
        ImageUpdate |m| { "name" => text(&m.name), "labels" => label(&m.labels, rest) }
        ImageDelete |m| { "name" => text(&m.name) }
        NamespaceCreate |m| { "name" => text(&m.name), "labels" => label(&m.labels, rest) }
        NamespaceUpdate |m| { "name" => text(&m.name), "labels" => label(&m.labels, rest) }
        NamespaceDelete |m| { "name" => text(&m.name) }
        SandboxCreate |m| { "sandbox_id" => text(&m.sandbox_id) }
        SandboxStart |m| { "sandbox_id" => text(&m.sandbox_id) }
        SandboxExit |m| { "sandbox_id" => text(&m.sandbox_id) }
        SnapshotPrepare |m| {
            "key" => text(&m.key),
            "parent" => text(&m.parent),
            "snapshotter" => text(&m.snapshotter)
        }
        SnapshotCommit |m| {
            "key" => text(&m.key),
            "name" => text(&m.name),
            "snapshotter" => text(&m.snapshotter)
        }
        SnapshotRemove |m| { "key" => text(&m.key), "snapshotter" => text(&m.snapshotter) }
        TaskCreate |m| {
            "container_id" => text(&m.container_id),
            "bundle" => text(&m.bundle),
            "checkpoint" => text(&m.checkpoint),
            "io" => match (rest.first().map(String::as_str), m.io?) {
                (Some("stdin"), io) => text(&io.stdin),
                (Some("stdout"), io) => text(&io.stdout),
                (Some("stderr"), io) => text(&io.stderr),
                (Some("terminal"), io) => Some(io.terminal.to_string()),
                _ => None,
            }
        }
        TaskStart |m| { "container_id" => text(&m.container_id) }
        TaskDelete |m| { "container_id" => text(&m.container_id), "id" => text(&m.id) }
        TaskExit |m| { "container_id" => text(&m.container_id), "id" => text(&m.id) }
        TaskOom |m| { "container_id" => text(&m.container_id) }
        TaskExecAdded |m| { "container_id" => text(&m.container_id), "exec_id" => text(&m.exec_id) }
        TaskExecStarted |m| { "container_id" => text(&m.container_id), "exec_id" => text(&m.exec_id) }
        TaskPaused |m| { "container_id" => text(&m.container_id) }
        TaskResumed |m| { "container_id" => text(&m.container_id) }
        TaskCheckpointed |m| {
            "container_id" => text(&m.container_id),
            "checkpoint" => text(&m.checkpoint)
        }
    }
    None
}

/// Whether `name` is the full name of `M`, without building that name.
fn is<M: Name>(name: &str) -> bool {
    name.strip_suffix(M::NAME).and_then(|p| p.strip_suffix('.')) == Some(M::PACKAGE)
}
