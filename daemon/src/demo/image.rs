//! The image that this program carries: one layer with one static program, as OCI blobs.

use anyhow::{Context as _, Result};
use corten_core::Digest;
use corten_protos::containerd::types::Descriptor;

/// The guest, built by build.rs.
const GUEST: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hello"));

/// A blob and how the image refers to it.
pub(super) struct Blob {
    pub(super) descriptor: Descriptor,
    pub(super) data: Vec<u8>,
}

/// The image: manifest, config, layer.
pub(super) struct Image {
    pub(super) manifest: Blob,
    pub(super) config: Blob,
    pub(super) layer: Blob,
}

fn blob(media_type: &str, data: Vec<u8>) -> Blob {
    let descriptor = Descriptor {
        media_type: media_type.into(),
        digest: Digest::sha256(&data).to_string(),
        size: i64::try_from(data.len()).unwrap_or(i64::MAX),
        ..Descriptor::default()
    };
    Blob { descriptor, data }
}

/// Builds the image.
pub(super) fn build() -> Result<Image> {
    let layer = blob(
        "application/vnd.oci.image.layer.v1.tar",
        layer().context("build the layer")?,
    );
    let architecture = corten_registry::Platform::host().architecture;
    let config = serde_json::json!({
        "architecture": architecture,
        "os": "linux",
        "config": {"Entrypoint": ["/hello"], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [layer.descriptor.digest]},
    });
    let config = blob(
        "application/vnd.oci.image.config.v1+json",
        serde_json::to_vec(&config)?,
    );
    let describe = |b: &Blob| {
        serde_json::json!({
            "mediaType": b.descriptor.media_type,
            "digest": b.descriptor.digest,
            "size": b.descriptor.size,
        })
    };
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": describe(&config),
        "layers": [describe(&layer)],
    });
    let manifest = blob(
        "application/vnd.oci.image.manifest.v1+json",
        serde_json::to_vec(&manifest)?,
    );
    Ok(Image {
        manifest,
        config,
        layer,
    })
}

fn layer() -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for dir in ["dev/", "proc/", "sys/"] {
        let mut h = header(0o755, 0);
        h.set_entry_type(tar::EntryType::Directory);
        tar.append_data(&mut h, dir, std::io::empty())?;
    }
    let size = u64::try_from(GUEST.len()).context("size of the guest")?;
    tar.append_data(&mut header(0o755, size), "hello", GUEST)?;
    Ok(tar.into_inner()?)
}

fn header(mode: u32, size: u64) -> tar::Header {
    let mut h = tar::Header::new_gnu();
    h.set_mode(mode);
    h.set_size(size);
    h.set_uid(0);
    h.set_gid(0);
    h.set_mtime(0);
    h
}
