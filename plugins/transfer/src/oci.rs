//! The OCI and Docker image documents: descriptors, manifests, indexes, configs; their media types, the ingest
//! names and the garbage collection labels that containerd derives from them.
//!
//! Everything here is parsed from text that strangers wrote: parsing never panics, `null` means "not there" as in
//! Go's decoder, and a document that could be read as manifest and as index is refused.

use std::collections::BTreeMap;

use corten_core::images::{INDEXES, MANIFESTS};
use corten_core::json::nullable;
use corten_core::{Descriptor, Digest, Error, Kind, Result};
use serde::{Deserialize, Serialize};

use crate::platform::Platform;

pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

/// Annotation with the tag (or the full name) of an image in an OCI layout.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Annotation with containerd's full image name.
pub const IMAGE_NAME: &str = "io.containerd.image.name";
/// Annotation of a child that refers to the manifest it hangs below.
const MANIFEST_SUBJECT: &str = "io.containerd.manifest.subject";

/// Largest manifest or index that is read.
pub const MAX_DOCUMENT: u64 = 4 << 20;
/// Largest image config that is read.
pub const MAX_CONFIG: u64 = 8 << 20;
/// Most references, duplicates included, that one image may have (containerd 2.4.1).
pub const MAX_REFERENCES: usize = 10_000;
/// Deepest nesting of indexes.
pub const MAX_DEPTH: usize = 64;

/// A descriptor with all the fields of the image-spec.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Desc {
    #[serde(deserialize_with = "nullable")]
    pub media_type: String,
    #[serde(deserialize_with = "nullable")]
    pub digest: String,
    #[serde(deserialize_with = "nullable")]
    pub size: i64,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    #[serde(
        deserialize_with = "nullable",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub annotations: BTreeMap<String, String>,
    /// The blob itself in base64, when it was embedded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
}

/// What a manifest or index lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    Manifest {
        config: Box<Desc>,
        layers: Vec<Desc>,
    },
    Index(Vec<Desc>),
}

/// An index that this crate writes.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    pub schema_version: u32,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    pub manifests: Vec<Desc>,
}

/// A manifest that this crate writes.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    pub schema_version: u32,
    pub media_type: String,
    pub config: Desc,
    pub layers: Vec<Desc>,
}

/// The part of an image config that pulling and unpacking need.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    #[serde(flatten)]
    pub platform: Platform,
    #[serde(deserialize_with = "nullable")]
    pub rootfs: RootFs,
}

/// Layers by the digests of their uncompressed tars.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct RootFs {
    #[serde(rename = "type", deserialize_with = "nullable")]
    pub kind: String,
    #[serde(deserialize_with = "nullable")]
    pub diff_ids: Vec<String>,
}

// === impl Desc ===

impl Desc {
    /// The API's form.
    pub fn proto(&self) -> Descriptor {
        Descriptor {
            media_type: self.media_type.clone(),
            digest: self.digest.clone(),
            size: self.size,
            annotations: self.annotations.clone(),
        }
    }

    /// The digest, checked.
    ///
    /// # Errors
    /// InvalidArgument for anything that is not a well-formed digest.
    pub fn checked_digest(&self) -> Result<Digest> {
        Digest::parse(&self.digest)
    }

    /// The size, checked.
    ///
    /// # Errors
    /// InvalidArgument for zero and negative sizes, in containerd's words.
    pub fn checked_size(&self) -> Result<u64> {
        match u64::try_from(self.size) {
            Ok(0) => Err(Error::invalid(format!(
                "unable to fetch descriptor ({}) which reports content size of zero",
                self.digest
            ))),
            Ok(n) => Ok(n),
            Err(_) => Err(Error::invalid(format!(
                "unable to fetch descriptor ({}) which reports negative content size ({})",
                self.digest, self.size
            ))),
        }
    }

    /// The name of the ingest that fetches this blob (containerd: remotes.MakeRefKey). Clients show it as progress.
    pub fn ref_key(&self) -> String {
        let prefix = if is_manifest(&self.media_type) {
            "manifest"
        } else if is_index(&self.media_type) {
            "index"
        } else if is_layer(&self.media_type) {
            "layer"
        } else if is_known_config(&self.media_type) {
            "config"
        } else if self.media_type == "application/vnd.in-toto+json" {
            "attestation"
        } else {
            "unknown"
        };
        match self.annotations.get(REF_NAME) {
            Some(name) => format!("{prefix}-{name}@{}", self.digest),
            None => format!("{prefix}-{}", self.digest),
        }
    }

    /// Whether this is a manifest or an index.
    pub fn is_document(&self) -> bool {
        is_manifest(&self.media_type) || is_index(&self.media_type)
    }
}

impl From<&Descriptor> for Desc {
    fn from(d: &Descriptor) -> Self {
        Self {
            media_type: d.media_type.clone(),
            digest: d.digest.clone(),
            size: d.size,
            annotations: d.annotations.clone(),
            ..Self::default()
        }
    }
}

// === impl Document ===

impl Document {
    /// Parses the blob that `desc` describes.
    ///
    /// # Errors
    /// InvalidArgument when it is not JSON, or not (only) what its media type says (CVE-2021-41190).
    pub fn parse(desc: &Desc, data: &[u8]) -> Result<Self> {
        let bad = |why: String| {
            Error::new(
                Kind::InvalidArgument,
                format!("children: invalid desc {}: {why}", desc.digest),
            )
        };
        let raw: Raw = serde_json::from_slice(data).map_err(|e| bad(e.to_string()))?;
        if raw.fs_layers.is_some() {
            return Err(bad("media-type: schema 1 not supported".into()));
        }
        let kind = &desc.media_type;
        if is_manifest(kind) {
            if raw.manifests.is_some() || is_index(&raw.media_type) {
                return Err(bad(format!(
                    "media-type: expected manifest but found index ({kind})"
                )));
            }
            let config = raw
                .config
                .ok_or_else(|| bad("manifest without config".into()))?;
            return Ok(Self::Manifest {
                config: Box::new(config),
                layers: raw.layers.unwrap_or_default(),
            });
        }
        if raw.config.is_some() || raw.layers.is_some() || is_manifest(&raw.media_type) {
            return Err(bad(format!(
                "media-type: expected index but found manifest ({kind})"
            )));
        }
        Ok(Self::Index(raw.manifests.unwrap_or_default()))
    }

    /// The descriptors in the order that containerd visits them: config before layers.
    pub fn into_children(self) -> Vec<Desc> {
        match self {
            Self::Manifest { config, mut layers } => {
                layers.insert(0, *config);
                layers
            }
            Self::Index(manifests) => manifests,
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Raw {
    #[serde(deserialize_with = "nullable")]
    media_type: String,
    config: Option<Desc>,
    layers: Option<Vec<Desc>>,
    manifests: Option<Vec<Desc>>,
    fs_layers: Option<serde_json::Value>,
}

// === impl ImageConfig ===

impl ImageConfig {
    /// Parses a config blob.
    ///
    /// # Errors
    /// InvalidArgument.
    pub fn parse(data: &[u8]) -> Result<Self> {
        serde_json::from_slice(data).map_err(|e| {
            Error::new(
                Kind::InvalidArgument,
                format!("unmarshal image config: {e}"),
            )
        })
    }

    /// The diff ids, checked.
    ///
    /// # Errors
    /// InvalidArgument.
    pub fn diff_ids(&self) -> Result<Vec<Digest>> {
        self.rootfs
            .diff_ids
            .iter()
            .map(|d| Digest::parse(d))
            .collect()
    }
}

// === media types ===

pub fn is_manifest(media_type: &str) -> bool {
    MANIFESTS.contains(&media_type)
}

pub fn is_index(media_type: &str) -> bool {
    INDEXES.contains(&media_type)
}

/// A config of a runnable image.
pub fn is_config(media_type: &str) -> bool {
    media_type == OCI_CONFIG || media_type == DOCKER_CONFIG
}

/// Configs of images and of checkpoints.
pub fn is_known_config(media_type: &str) -> bool {
    is_config(media_type)
        || media_type == "application/vnd.containerd.container.criu.checkpoint.criu.tar"
        || media_type == "application/vnd.containerd.container.checkpoint.config.v1+proto"
}

pub fn is_layer(media_type: &str) -> bool {
    media_type.starts_with("application/vnd.oci.image.layer.")
        || matches!(
            media_type.split('+').next().unwrap_or_default(),
            DOCKER_LAYER
                | DOCKER_LAYER_GZIP
                | "application/vnd.docker.image.rootfs.diff.tar.zstd"
                | "application/vnd.docker.image.rootfs.foreign.diff.tar"
                | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
                | "application/vnd.erofs.layer.v1"
        )
}

/// Layers that may not be redistributed.
pub fn is_non_distributable(media_type: &str) -> bool {
    media_type.starts_with("application/vnd.oci.image.layer.nondistributable.")
        || media_type.starts_with("application/vnd.docker.image.rootfs.foreign.")
}

/// The labels that keep `children` alive with their parent: `containerd.io/gc.ref.content.{config,l.N,m.N,N}`.
pub fn gc_labels(children: &[Desc]) -> BTreeMap<String, String> {
    let mut count: BTreeMap<&str, usize> = BTreeMap::new();
    let mut out = BTreeMap::new();
    for child in children {
        let kind = if child.annotations.contains_key(MANIFEST_SUBJECT) {
            "referrer.sha256."
        } else if is_known_config(&child.media_type) {
            "config"
        } else if is_manifest(&child.media_type) {
            "m."
        } else if is_layer(&child.media_type) {
            "l."
        } else {
            ""
        };
        let n = count.entry(kind).or_default();
        let index = *n;
        *n += 1;
        let Ok(digest) = child.checked_digest() else {
            continue;
        };
        let suffix = match kind {
            "referrer.sha256." => format!("{kind}{}", &digest.hex()[..12]),
            "config" if index == 0 => kind.to_owned(),
            _ => format!("{kind}{index}"),
        };
        out.insert(
            format!("{}.{suffix}", corten_core::labels::GC_REF_CONTENT),
            digest.to_string(),
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn desc(media_type: &str) -> Desc {
        Desc {
            media_type: media_type.into(),
            digest: Digest::sha256(b"x").to_string(),
            size: 1,
            ..Desc::default()
        }
    }

    #[test]
    fn ambiguous_documents_are_refused() {
        let m = desc(DOCKER_MANIFEST);
        let i = desc(OCI_INDEX);
        assert!(Document::parse(&m, br#"{"config":{},"layers":[]}"#).is_ok());
        assert!(Document::parse(&m, br#"{"config":{},"layers":null}"#).is_ok());
        assert!(Document::parse(&i, br#"{"manifests":[]}"#).is_ok());
        for (d, text) in [
            (&m, r#"{"config":{},"layers":[],"manifests":[]}"#),
            (
                &m,
                r#"{"mediaType":"application/vnd.oci.image.index.v1+json","config":{}}"#,
            ),
            (&m, r#"{"fsLayers":[]}"#),
            (&m, "{}"),
            (&m, "nonsense"),
            (&i, r#"{"manifests":[],"layers":[]}"#),
            (&i, r#"{"manifests":[],"config":{}}"#),
        ] {
            assert!(Document::parse(d, text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn names_and_labels_are_those_of_containerd() {
        let layer = desc("application/vnd.oci.image.layer.v1.tar+gzip");
        assert!(layer.ref_key().starts_with("layer-sha256:"));
        assert!(desc(OCI_CONFIG).ref_key().starts_with("config-sha256:"));
        assert!(desc("text/plain").ref_key().starts_with("unknown-sha256:"));
        let labels = gc_labels(&[
            desc(OCI_CONFIG),
            layer.clone(),
            layer,
            desc(DOCKER_MANIFEST),
        ]);
        let keys: Vec<_> = labels
            .keys()
            .map(|k| &k["containerd.io/gc.ref.content.".len()..])
            .collect();
        assert_eq!(keys, ["config", "l.0", "l.1", "m.0"]);
        let mut bad = desc(OCI_CONFIG);
        bad.digest = "sha256:12".into();
        bad.annotations.insert(MANIFEST_SUBJECT.into(), "x".into());
        assert!(gc_labels(&[bad]).is_empty());
    }
}
