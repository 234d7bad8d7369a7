//! The record of a container with the daemon: what is stored of it, its folders, its specification.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use corten_core::runtime::Task;
use corten_core::{Any, Context, Error, Labels, Result, labels};
use corten_protos::containerd::services::containers::v1::Container as Record;
use corten_protos::runtime::v1::{ContainerMetadata, PodSandboxMetadata};
use serde_json::Value;
use tracing::warn;

use crate::cri::Cri;
use crate::spec::oci::Spec;
use crate::store::container::METADATA;
use crate::store::{self, container};

/// Type URL of the metadata's JSON.
const METADATA_TYPE: &str = "github.com/containerd/cri/pkg/store/container/Metadata";
/// Tells the CRI's own records apart: sandboxes and containers.
pub(super) const KIND: &str = "io.cri-containerd.kind";
pub(super) const CONTAINER: &str = "container";
/// Labels that images may not set: the daemon and this plugin obey them.
const RESERVED: [&str; 2] = ["containerd.io/", "io.cri-containerd"];

impl Cri {
    /// A container's folder that outlives the machine's next start.
    pub(crate) fn container_root(&self, id: &str) -> PathBuf {
        self.root.join("containers").join(id)
    }

    /// A container's folder that does not.
    pub(crate) fn container_state(&self, id: &str) -> PathBuf {
        self.state.join("containers").join(id)
    }

    /// The record of a container.
    ///
    /// # Errors
    /// NotFound.
    pub(crate) async fn record(&self, id: &str) -> Result<Record> {
        let containers = self.metadata.containers();
        let record = containers.get(&self.ns, id).await;
        record.context("get container info")
    }

    /// The task of a container.
    ///
    /// # Errors
    /// NotFound: it has none.
    pub(crate) async fn container_task(&self, id: &str) -> Result<Arc<dyn Task>> {
        self.tasks.get(&self.ns, id).await
    }

    /// Replaces the specification on a container's record.
    pub(super) async fn store_spec(&self, id: &str, spec: &Spec) -> Result<()> {
        let record = Record {
            id: id.into(),
            spec: Some(spec.to_any()),
            ..Record::default()
        };
        let containers = self.metadata.containers();
        containers
            .update(&self.scope(), record, &["spec".to_owned()])
            .await
            .context("failed to update container spec")?;
        Ok(())
    }
}

/// The specification on a record.
pub(super) fn parse(record: &Record) -> Result<Value> {
    let spec = record
        .spec
        .as_ref()
        .ok_or_else(|| Error::not_found(format!("specification of container {}", record.id)))?;
    serde_json::from_slice(&spec.value)
        .map_err(|e| Error::internal("read a container's specification").with_source(e))
}

/// The same as a document that can be changed.
pub(super) fn document(record: &Record) -> Result<Spec> {
    let spec = record
        .spec
        .as_ref()
        .ok_or_else(|| Error::not_found(format!("specification of container {}", record.id)))?;
    Spec::from_any(spec)
}

/// The extensions of a record.
pub(super) fn extensions(metadata: &container::Metadata) -> Result<BTreeMap<String, Any>> {
    let encoded = store::encode(METADATA_TYPE, metadata)?;
    Ok(BTreeMap::from([(METADATA.to_owned(), encoded)]))
}

/// The metadata in a record's extensions.
pub(super) fn metadata(record: &Record) -> Result<container::Metadata> {
    let extension = record
        .extensions
        .get(METADATA)
        .ok_or_else(|| Error::not_found(format!("metadata extension {METADATA:?}")))?;
    store::decode(extension)
}

/// The name of a container: unique for as long as it is there.
pub(super) fn full_name(container: &ContainerMetadata, pod: &PodSandboxMetadata) -> String {
    [
        container.name.as_str(),
        &pod.name,
        &pod.namespace,
        &pod.uid,
        &container.attempt.to_string(),
    ]
    .join("_")
}

/// The labels of a record: those of the image as far as it may set them, then those asked for.
pub(super) fn build_labels(asked: &Labels, of_image: &Labels) -> Labels {
    let mut out = Labels::new();
    for (key, value) in of_image {
        if RESERVED.iter().any(|p| key.starts_with(p)) {
            warn!(
                label = key,
                "skipping a label of an image in a namespace reserved for containerd"
            );
            continue;
        }
        match labels::validate(key, value) {
            Ok(()) => drop(out.insert(key.clone(), value.clone())),
            Err(error) => warn!(%error, "unable to add a label of an image to the container"),
        }
    }
    out.extend(asked.clone());
    out.insert(KIND.into(), CONTAINER.into());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> Labels {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    #[test]
    fn images_cannot_set_labels_that_the_daemon_obeys() {
        let long = "x".repeat(labels::MAX_SIZE - 1);
        let fits = "x".repeat(labels::MAX_SIZE - 2);
        let image = map(&[
            ("a", "image"),
            ("b", "image"),
            ("containerd.io/gc.root", "1"),
            ("io.cri-containerd.kind", "sandbox"),
            ("io.cri-containerd.image", "managed"),
            ("nn", &long),
            ("n", &long),
            ("nf", &fits),
        ]);
        let built = build_labels(&map(&[("b", "asked")]), &image);
        let want = map(&[
            ("a", "image"),
            ("b", "asked"),
            (KIND, CONTAINER),
            ("n", &long),
            ("nf", &fits),
        ]);
        assert_eq!(built, want);
    }

    #[test]
    fn the_metadata_is_containerds_json() {
        let metadata = container::Metadata {
            id: "x".into(),
            sandbox_id: "p".into(),
            log_path: "/l".into(),
            ..Default::default()
        };
        let extensions = extensions(&metadata).unwrap();
        let any = &extensions[METADATA];
        let json: Value = serde_json::from_slice(&any.value).unwrap();
        assert_eq!(json["Version"], "v1");
        assert_eq!(json["Metadata"]["ID"], "x");
        assert_eq!(json["Metadata"]["SandboxID"], "p");
        assert_eq!(json["Metadata"]["LogPath"], "/l");
        let record = Record {
            extensions,
            ..Record::default()
        };
        assert_eq!(super::metadata(&record).unwrap().log_path, "/l");
        assert!(super::metadata(&Record::default()).is_err());
    }
}
