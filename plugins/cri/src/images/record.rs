//! What is known of one image: read from its record, its manifest and its configuration, for this host's platform.

use std::sync::Arc;

use corten_core::content::{Content, read_blob};
use corten_core::images::{INDEXES, MANIFESTS};
use corten_core::json::nullable;
use corten_core::protos::containerd::services::images::v1::Image;
use corten_core::{Context, Descriptor, Digest, Error, Kind, Namespace, Result};
use corten_registry::Platform;
use serde::Deserialize;

use super::config::ImageConfig;
use super::labels::{PINNED, PINNED_VALUE};
use super::reference::tags_and_digests;

/// Largest manifest or index, in bytes; the same as at a pull.
pub const MAX_DOCUMENT: u64 = 4 << 20;
/// Largest configuration, in bytes; the same as at a pull.
pub const MAX_CONFIG: u64 = 8 << 20;
/// Deepest nesting of indexes.
const MAX_DEPTH: usize = 8;

/// An image. Its id is its configuration's digest, everywhere.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageRecord {
    pub id: String,
    /// Of the top layer; empty for an image without layers.
    pub chain_id: String,
    pub config: ImageConfig,
    /// All names that stand for it; those that say more come first.
    pub references: Vec<String>,
    /// The index or manifest that its names point to.
    pub target: Descriptor,
    /// Bytes of its blobs.
    pub size: u64,
    /// One of its names is not to be collected by the kubelet.
    pub pinned: bool,
}

impl ImageRecord {
    /// Its names with a tag.
    pub fn repo_tags(&self) -> Vec<String> {
        tags_and_digests(self.references.iter().map(String::as_str)).0
    }

    /// Its names with a digest.
    pub fn repo_digests(&self) -> Vec<String> {
        tags_and_digests(self.references.iter().map(String::as_str)).1
    }
}

/// Reads images.
#[derive(Clone)]
pub(super) struct Loader {
    pub ns: Namespace,
    pub content: Arc<dyn Content>,
}

/// The parts of an index or manifest that count here.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Document {
    #[serde(deserialize_with = "nullable")]
    manifests: Vec<Entry>,
    #[serde(deserialize_with = "nullable")]
    config: Option<Entry>,
    #[serde(deserialize_with = "nullable")]
    layers: Vec<Entry>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Entry {
    #[serde(deserialize_with = "nullable")]
    media_type: String,
    #[serde(deserialize_with = "nullable")]
    digest: String,
    #[serde(deserialize_with = "nullable")]
    size: i64,
    platform: Option<EntryPlatform>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct EntryPlatform {
    #[serde(deserialize_with = "nullable")]
    architecture: String,
    #[serde(deserialize_with = "nullable")]
    os: String,
    #[serde(deserialize_with = "nullable")]
    variant: String,
}

// === impl Loader ===

impl Loader {
    /// Reads the image that a record names.
    ///
    /// # Errors
    /// NotFound: no manifest for this platform, or a blob is not here. InvalidArgument: not an image.
    pub(super) async fn load(&self, image: &Image) -> Result<ImageRecord> {
        let target = image
            .target
            .clone()
            .ok_or_else(|| Error::precondition(format!("image {:?} has no target", image.name)))?;
        let (manifest, above) = self.manifest(&target).await?;
        let config = manifest
            .config
            .ok_or_else(|| Error::invalid(format!("manifest of {:?} has no config", image.name)))?;
        let digest = Digest::parse(&config.digest)?;
        let blob = read_blob(&*self.content, &self.ns, &digest, MAX_CONFIG)
            .await
            .context("read image config")?;
        let parsed = ImageConfig::parse(&blob)?;
        let parts = manifest.layers.iter().chain([&config]).map(|e| e.size);
        let size = sum(parts).saturating_add(above);
        Ok(ImageRecord {
            id: config.digest,
            chain_id: parsed.chain_id().context("get image diffIDs")?,
            config: parsed,
            references: vec![image.name.clone()],
            target,
            size,
            pinned: image.labels.get(PINNED).is_some_and(|v| v == PINNED_VALUE),
        })
    }

    // The manifest for this host, and the bytes of it and of the indexes above it.
    async fn manifest(&self, target: &Descriptor) -> Result<(Document, u64)> {
        let host = Platform::host();
        let (mut kind, mut digest) = (target.media_type.clone(), target.digest.clone());
        let mut bytes = sum([target.size]);
        for _ in 0..MAX_DEPTH {
            let at = Digest::parse(&digest)?;
            let data = read_blob(&*self.content, &self.ns, &at, MAX_DOCUMENT)
                .await
                .with_context(|| format!("read {kind}"))?;
            let document: Document = serde_json::from_slice(&data)
                .map_err(|e| Error::invalid(format!("document {digest}: {e}")))?;
            if MANIFESTS.contains(&kind.as_str()) {
                return Ok((document, bytes));
            }
            if !INDEXES.contains(&kind.as_str()) {
                return Err(Error::not_found(format!(
                    "encountered unknown type {kind}; children may not be fetched"
                )));
            }
            let best = document
                .manifests
                .into_iter()
                .filter_map(|m| Some((rank(&host, m.platform.as_ref())?, m)))
                .min_by_key(|(rank, _)| *rank)
                .ok_or_else(|| {
                    Error::not_found(format!("no match for platform in manifest {digest}"))
                })?
                .1;
            bytes = bytes.saturating_add(sum([best.size]));
            (kind, digest) = (best.media_type, best.digest);
        }
        Err(Error::new(
            Kind::ResourceExhausted,
            format!("index {} is nested too deeply", target.digest),
        ))
    }
}

// Unknown sizes do not count.
fn sum(sizes: impl IntoIterator<Item = i64>) -> u64 {
    sizes
        .into_iter()
        .filter_map(|s| u64::try_from(s).ok())
        .fold(0, u64::saturating_add)
}

// How well an image for `image` runs on `host`: less is better, none is not at all. Without a platform it may.
fn rank(host: &Platform, image: Option<&EntryPlatform>) -> Option<u32> {
    const OTHER: u32 = 1000;
    let Some(image) = image else {
        return Some(2 * OTHER);
    };
    if image.os != host.os {
        return None;
    }
    let (arch, variant) = normal(&image.architecture, &image.variant);
    let (host_arch, host_variant) = normal(&host.architecture, &host.variant);
    let level = |v: &str| {
        v.trim_start_matches('v')
            .parse::<f32>()
            .ok()
            .map(|v| (v * 10.0) as u32)
    };
    if arch == host_arch {
        if variant == host_variant {
            return Some(0);
        }
        // What needs less runs, the nearest best.
        let (has, needs) = (level(&host_variant)?, level(&variant)?);
        return (needs <= has).then(|| 1 + has - needs);
    }
    match (host_arch.as_str(), arch.as_str()) {
        ("amd64", "386") => Some(OTHER),
        ("arm64", "arm") => Some(OTHER + 80_u32.saturating_sub(level(&variant)?)),
        _ => None,
    }
}

fn normal(arch: &str, variant: &str) -> (String, String) {
    let (arch, default) = match arch {
        "x86_64" | "x86-64" | "amd64" => ("amd64", "v1"),
        "aarch64" | "arm64" => ("arm64", "v8"),
        "armhf" | "arm" => ("arm", "v7"),
        "i386" | "386" => ("386", ""),
        other => (other, ""),
    };
    let variant = if variant.is_empty() { default } else { variant };
    (arch.into(), variant.into())
}

#[cfg(test)]
mod tests;
