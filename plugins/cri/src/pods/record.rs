//! What is stored of a pod: a sandbox record whose extensions are containerd's.
//!
//! Until the pod is complete the record has the label `name`, as containerd's has: a daemon that finds one knows that
//! nobody was told of the pod, and shows it as not ready, so that the kubelet removes it.

use std::sync::Arc;

use corten_core::{Any, Context, Kind, Result};
use corten_protos::containerd::services::sandbox::v1::ControllerStartResponse;
use corten_protos::containerd::types::{Sandbox, sandbox};
use corten_protos::runtime::v1::LinuxContainerResources;
use serde::{Deserialize, Serialize};

use crate::Cri;
use crate::store;
use crate::store::pod::{Metadata, Pod};

/// Type URL of [`Metadata`], as containerd registers it.
pub const METADATA_URL: &str = "github.com/containerd/cri/pkg/store/sandbox/Metadata";
/// Key of a sandbox record's extension with [`Metadata`].
pub const METADATA: &str = "metadata";
/// Key of a sandbox record's extension with [`Updated`].
pub const UPDATED: &str = "updated-resources";

const UPDATED_URL: &str = "io.containerd.cri.v1/UpdatedResources";
/// Label of a record whose pod is not complete.
const INCOMPLETE: &str = "name";

/// What UpdatePodSandboxResources said last.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Updated {
    pub overhead: Option<LinuxContainerResources>,
    pub resources: Option<LinuxContainerResources>,
}

/// The record of a pod that is about to be made.
///
/// # Errors
/// Internal: its metadata is not JSON, which cannot be.
pub fn draft(pod: &Pod, options: Option<Any>, spec: Option<Any>) -> Result<Sandbox> {
    let metadata = pod.metadata.read();
    Ok(Sandbox {
        sandbox_id: pod.id.clone(),
        runtime: Some(sandbox::Runtime {
            name: pod.runtime.clone(),
            options,
        }),
        spec,
        labels: [(INCOMPLETE.to_owned(), metadata.name.clone())].into(),
        extensions: [(METADATA.to_owned(), extension(&metadata)?)].into(),
        sandboxer: pod.sandboxer.clone(),
        ..Sandbox::default()
    })
}

/// Metadata as an extension.
///
/// # Errors
/// See [`draft`].
pub fn extension(metadata: &Metadata) -> Result<Any> {
    store::encode(METADATA_URL, metadata)
}

/// The metadata on a sandbox record; none on one that is not the CRI's.
///
/// # Errors
/// InvalidArgument: it cannot be read.
pub fn metadata(record: &Sandbox) -> Result<Option<Metadata>> {
    record
        .extensions
        .get(METADATA)
        .map(store::decode)
        .transpose()
}

/// Whether RunPodSandbox got to its end.
pub fn is_complete(record: &Sandbox) -> bool {
    !record.labels.contains_key(INCOMPLETE)
}

/// What [`save_resources`] wrote.
pub fn updated(record: &Sandbox) -> Updated {
    let stored = record.extensions.get(UPDATED);
    stored
        .and_then(|any| serde_json::from_slice(&any.value).ok())
        .unwrap_or_default()
}

/// The part of a pod's record that changes with its metadata.
fn current(pod: &Pod) -> Result<Sandbox> {
    let extension = extension(&pod.metadata.read())?;
    Ok(Sandbox {
        sandbox_id: pod.id.clone(),
        runtime: Some(sandbox::Runtime {
            name: pod.runtime.clone(),
            options: None,
        }),
        extensions: [(METADATA.to_owned(), extension)].into(),
        ..Sandbox::default()
    })
}

/// Stores the pod's metadata as they are now.
///
/// # Errors
/// Of the store.
pub async fn save(cri: &Cri, pod: &Pod) -> Result<Sandbox> {
    write(cri, current(pod)?, &[&format!("extensions.{METADATA}")]).await
}

/// Stores what the controller told of a pod that runs, which completes its record.
///
/// # Errors
/// Of the store.
pub async fn complete(
    cri: &Cri,
    pod: &Pod,
    started: &ControllerStartResponse,
    spec: Option<Any>,
) -> Result<Sandbox> {
    let record = Sandbox {
        spec: started.spec.clone().or(spec),
        labels: started.labels.clone(),
        ..current(pod)?
    };
    let paths = [&format!("extensions.{METADATA}"), "spec", "labels"];
    write(cri, record, &paths).await
}

/// Stores new resources, and gives the whole record for the controller.
///
/// # Errors
/// Of the store.
pub async fn save_resources(cri: &Cri, id: &str, updated: &Updated) -> Result<Sandbox> {
    let sandboxes = cri.metadata.sandboxes();
    let mut record = sandboxes
        .get(&cri.ns, id)
        .await
        .with_context(|| format!("failed to get sandbox {id} from sandbox store"))?;
    let value = serde_json::to_vec(updated)
        .map_err(|e| corten_core::Error::internal(format!("encode {UPDATED}")).with_source(e))?;
    let any = Any {
        type_url: UPDATED_URL.into(),
        value,
    };
    record.extensions.insert(UPDATED.into(), any);
    write(cri, record, &[&format!("extensions.{UPDATED}")]).await
}

/// Forgets a pod's record; none is fine.
///
/// # Errors
/// Of the store.
pub async fn delete(cri: &Cri, id: &str) -> Result<()> {
    match cri.metadata.sandboxes().delete(&cri.scope(), id).await {
        Err(e) if e.kind() != Kind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Gives back a pod's lease; none is fine.
///
/// # Errors
/// Of the store.
pub async fn release_lease(cri: &Arc<Cri>, id: &str) -> Result<()> {
    match cri.metadata.leases().delete(&cri.ns, id, false).await {
        Err(e) if e.kind() != Kind::NotFound => Err(e),
        _ => Ok(()),
    }
}

async fn write(cri: &Cri, record: Sandbox, paths: &[&str]) -> Result<Sandbox> {
    let paths: Vec<String> = paths.iter().map(|&p| p.to_owned()).collect();
    let id = record.sandbox_id.clone();
    let sandboxes = cri.metadata.sandboxes();
    sandboxes
        .update(&cri.scope(), record, &paths)
        .await
        .with_context(|| format!("unable to save sandbox {id:?} to sandbox store"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_as_containerd_writes_it() {
        let metadata = Metadata {
            id: "p".into(),
            name: "web_default_u_0".into(),
            netns_path: "/run/netns/cni-1".into(),
            ..Metadata::default()
        };
        let pod = Pod::new(metadata, "shim".into(), "io.containerd.corten.v2".into());
        let mut record = draft(&pod, None, None).unwrap();
        assert!(!is_complete(&record));
        let any = &record.extensions[METADATA];
        assert_eq!(any.type_url, METADATA_URL);
        let json: serde_json::Value = serde_json::from_slice(&any.value).unwrap();
        assert_eq!(json["Version"], "v1");
        assert_eq!(json["Metadata"]["NetNSPath"], "/run/netns/cni-1");
        let theirs = br#"{"Version":"v1","Metadata":{"ID":"x","Name":"n","Config":{"metadata":{"name":"a"},
            "linux":{"security_context":{"namespace_options":{"pid":1}}}},"NetNSPath":"","IP":"10.0.0.2",
            "AdditionalIPs":null,"RuntimeHandler":"","CNIResult":{"Interfaces":{}},"ProcessLabel":""}}"#;
        record.extensions.insert(
            METADATA.into(),
            Any {
                type_url: METADATA_URL.into(),
                value: theirs.to_vec(),
            },
        );
        let read = super::metadata(&record).unwrap().unwrap();
        assert_eq!((read.id.as_str(), read.ip.as_str()), ("x", "10.0.0.2"));
        assert_eq!(crate::pods::request::namespaces(&read.config).pid, 1);
        record.labels.clear();
        assert!(is_complete(&record));
        assert!(updated(&record).resources.is_none());
    }
}
