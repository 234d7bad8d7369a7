//! Images as tar archives: OCI layouts and what `docker save` writes.

mod names;
mod read;
mod write;

#[cfg(test)]
mod tests;

pub use read::read;
pub use write::{Export, write};

/// `oci-layout`: marks a folder or archive as an OCI layout.
const LAYOUT: &str = "oci-layout";
const LAYOUT_VERSION: &str = "1.0.0";
const INDEX: &str = "index.json";
/// Docker's list of images.
const MANIFEST: &str = "manifest.json";

/// One image in Docker's `manifest.json`.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct DockerImage {
    #[serde(deserialize_with = "corten_core::json::nullable")]
    config: String,
    #[serde(deserialize_with = "corten_core::json::nullable")]
    repo_tags: Vec<String>,
    #[serde(deserialize_with = "corten_core::json::nullable")]
    layers: Vec<String>,
}
