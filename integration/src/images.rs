//! Images made offline: an [`Image`] is a set of blobs with one root descriptor, which can be
//! written as an archive or pushed to a registry. The catalogue of them is in `images/catalogue.rs`.

mod catalogue;
mod kubernetes;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::PathBuf;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

pub use catalogue::*;
pub use kubernetes::cri_suite;

use crate::peers;
use crate::tarball::Tarball;

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// How a layer is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// A layer: its tar stream and how it is packed.
#[derive(Clone, Debug)]
pub struct Layer {
    pub tar: Vec<u8>,
    pub packing: Packing,
}

/// An image that exists only here.
#[derive(Clone, Debug)]
pub struct Image {
    /// The full reference, tag included.
    pub name: String,
    /// Media type of the root: a manifest or an index.
    pub media_type: String,
    pub digest: String,
    pub blobs: BTreeMap<String, Blob>,
    /// The uncompressed layers' digests, lowest first (of the first platform).
    pub diff_ids: Vec<String>,
}

/// Bytes with the media type that a registry or archive states for them.
#[derive(Clone, Debug)]
pub struct Blob {
    pub media_type: String,
    pub bytes: Vec<u8>,
}

/// How an image is built from its layers.
#[derive(Clone, Debug)]
pub struct Recipe {
    name: String,
    layers: Vec<Layer>,
    config: Value,
    architecture: String,
    docker: bool,
    annotation: Option<String>,
}

/// `sha256:…` of some bytes.
#[must_use]
pub fn digest_of(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    Sha256::digest(bytes)
        .iter()
        .fold("sha256:".to_owned(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

// === impl Layer ===

impl Layer {
    #[must_use]
    pub fn gzip(tar: Tarball) -> Self {
        Self {
            tar: tar.finish(),
            packing: Packing::Gzip,
        }
    }

    #[must_use]
    pub fn zstd(tar: Tarball) -> Self {
        Self {
            tar: tar.finish(),
            packing: Packing::Zstd,
        }
    }

    #[must_use]
    pub fn plain(tar: Tarball) -> Self {
        Self {
            tar: tar.finish(),
            packing: Packing::Plain,
        }
    }

    fn packed(&self) -> Vec<u8> {
        match self.packing {
            Packing::Plain => self.tar.clone(),
            Packing::Gzip => {
                let level = flate2::Compression::fast();
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
                encoder.write_all(&self.tar).unwrap();
                encoder.finish().unwrap()
            }
            Packing::Zstd => zstd::encode_all(self.tar.as_slice(), 3).unwrap(),
        }
    }

    fn media_type(&self, docker: bool) -> &'static str {
        match (self.packing, docker) {
            (Packing::Plain, false) => "application/vnd.oci.image.layer.v1.tar",
            (Packing::Gzip, false) => "application/vnd.oci.image.layer.v1.tar+gzip",
            (Packing::Zstd, false) => "application/vnd.oci.image.layer.v1.tar+zstd",
            (Packing::Plain, true) => "application/vnd.docker.image.rootfs.diff.tar",
            (Packing::Gzip, true) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
            (Packing::Zstd, true) => "application/vnd.docker.image.rootfs.diff.tar.zstd",
        }
    }
}

// === impl Recipe ===

impl Recipe {
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self::referenced(&format!("test.local/{name}:1"))
    }

    /// Of a full reference: `host/path:tag`.
    #[must_use]
    pub fn referenced(reference: &str) -> Self {
        Self {
            name: reference.to_owned(),
            layers: Vec::new(),
            config: json!({"Cmd": ["sh"], "Env": ["PATH=/bin:/usr/bin"]}),
            architecture: "amd64".to_owned(),
            docker: false,
            annotation: None,
        }
    }

    #[must_use]
    pub fn layer(mut self, layer: Layer) -> Self {
        self.layers.push(layer);
        self
    }

    #[must_use]
    pub fn config(mut self, config: Value) -> Self {
        self.config = config;
        self
    }

    #[must_use]
    pub fn architecture(mut self, name: &str) -> Self {
        name.clone_into(&mut self.architecture);
        self
    }

    /// A word to the manifest.
    #[must_use]
    pub fn annotation(mut self, text: &str) -> Self {
        self.annotation = Some(text.to_owned());
        self
    }

    /// Docker's media types in place of OCI's.
    #[must_use]
    pub fn docker(mut self) -> Self {
        self.docker = true;
        self
    }

    #[must_use]
    pub fn build(self) -> Image {
        let mut blobs = BTreeMap::new();
        let mut layers = Vec::new();
        let mut diff_ids = Vec::new();
        for layer in &self.layers {
            diff_ids.push(digest_of(&layer.tar));
            layers.push(add(
                &mut blobs,
                layer.media_type(self.docker),
                layer.packed(),
            ));
        }
        let history = vec![json!({"created_by": "corten-integration"}); layers.len()];
        let config = json!({
            "architecture": self.architecture, "os": "linux", "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids}, "history": history,
        });
        let (manifest_type, config_type) = if self.docker {
            (DOCKER_MANIFEST, DOCKER_CONFIG)
        } else {
            (OCI_MANIFEST, OCI_CONFIG)
        };
        let config = add(&mut blobs, config_type, config.to_string().into_bytes());
        let mut manifest = json!({
            "schemaVersion": 2, "mediaType": manifest_type, "config": config, "layers": layers,
        });
        if let Some(text) = self.annotation {
            manifest["annotations"] = json!({"org.example.note": text});
        }
        let root = add(&mut blobs, manifest_type, manifest.to_string().into_bytes());
        Image {
            name: self.name,
            media_type: manifest_type.to_owned(),
            digest: text(&root["digest"]),
            blobs,
            diff_ids,
        }
    }
}

fn add(blobs: &mut BTreeMap<String, Blob>, media_type: &str, bytes: Vec<u8>) -> Value {
    let digest = digest_of(&bytes);
    let descriptor = json!({"mediaType": media_type, "digest": digest, "size": bytes.len()});
    blobs.insert(
        digest,
        Blob {
            media_type: media_type.to_owned(),
            bytes,
        },
    );
    descriptor
}

fn text(value: &Value) -> String {
    value.as_str().expect("a JSON string").to_owned()
}

// === impl Image ===

impl Image {
    /// One name for several images, each for a platform of its own.
    #[must_use]
    pub fn index(name: &str, members: &[(&str, Self)]) -> Self {
        let mut blobs = BTreeMap::new();
        let manifests: Vec<_> = members
            .iter()
            .map(|(architecture, image)| {
                blobs.extend(image.blobs.clone());
                json!({
                    "mediaType": image.media_type, "digest": image.digest,
                    "size": image.blobs[&image.digest].bytes.len(),
                    "platform": {"os": "linux", "architecture": architecture},
                })
            })
            .collect();
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests});
        let root = add(&mut blobs, OCI_INDEX, index.to_string().into_bytes());
        let diff_ids = members[0].1.diff_ids.clone();
        Self {
            name: format!("test.local/{name}:1"),
            media_type: OCI_INDEX.to_owned(),
            digest: text(&root["digest"]),
            blobs,
            diff_ids,
        }
    }

    /// Path and tag as a registry has them: `busybox` and `1`.
    #[must_use]
    pub fn repository(&self) -> (&str, &str) {
        let path = self.name.split_once('/').expect("names have a host").1;
        path.split_once(':').expect("names have a tag")
    }

    /// The manifest of an image that is not an index.
    #[must_use]
    pub fn manifest(&self) -> Value {
        serde_json::from_slice(&self.blobs[&self.digest].bytes).expect("we wrote it")
    }

    /// Digests of the (packed) layers, lowest first.
    #[must_use]
    pub fn layers(&self) -> Vec<String> {
        let manifest = self.manifest();
        let layers = manifest["layers"]
            .as_array()
            .expect("a manifest has layers");
        layers.iter().map(|l| text(&l["digest"])).collect()
    }

    /// The config's digest.
    #[must_use]
    pub fn config(&self) -> String {
        text(&self.manifest()["config"]["digest"])
    }

    /// The chain ID of the topmost layer: the key of its committed snapshot.
    #[must_use]
    pub fn chain_id(&self) -> String {
        self.diff_ids
            .iter()
            .cloned()
            .reduce(|chain, diff| digest_of(format!("{chain} {diff}").as_bytes()))
            .expect("an image has layers")
    }

    /// The image as an OCI layout in a tar file.
    #[must_use]
    pub fn oci_layout(&self) -> Vec<u8> {
        let root = &self.blobs[&self.digest];
        let index = json!({"schemaVersion": 2, "manifests": [{
            "mediaType": root.media_type, "digest": self.digest, "size": root.bytes.len(),
            "annotations": {"io.containerd.image.name": self.name},
        }]});
        let mut tar = Tarball::new()
            .file("oci-layout", 0o644, r#"{"imageLayoutVersion":"1.0.0"}"#)
            .file("index.json", 0o644, index.to_string());
        for (digest, blob) in &self.blobs {
            let hex = digest.strip_prefix("sha256:").expect("we made it");
            tar = tar.file(&format!("blobs/sha256/{hex}"), 0o644, &blob.bytes);
        }
        tar.finish()
    }

    /// The image as `docker save` writes it.
    #[must_use]
    pub fn docker_archive(&self) -> Vec<u8> {
        let config = self.config();
        let config_name = format!("{}.json", &config["sha256:".len()..]);
        let mut tar = Tarball::new();
        let mut layers = Vec::new();
        for digest in self.layers() {
            let path = format!("{}/layer.tar", &digest["sha256:".len()..]);
            tar = tar.file(&path, 0o644, &self.blobs[&digest].bytes);
            layers.push(path);
        }
        let manifest = json!([{"Config": config_name, "RepoTags": [self.name], "Layers": layers}]);
        tar.file(&config_name, 0o644, &self.blobs[&config].bytes)
            .file("manifest.json", 0o644, manifest.to_string())
            .finish()
    }

    /// A file with [`Image::oci_layout`], kept from run to run under the image's digest.
    #[must_use]
    pub fn archive(&self) -> PathBuf {
        let dir = peers::dir().join("images");
        let key = digest_of(format!("{}{}", self.name, self.digest).as_bytes());
        let path = dir.join(format!("{}.tar", &key["sha256:".len()..][..32]));
        if !path.exists() {
            fs::create_dir_all(&dir).unwrap();
            let thread = format!("{:?}", std::thread::current().id());
            let part = path.with_extension(format!("{}{}", std::process::id(), &thread[9..]));
            fs::write(&part, self.oci_layout()).unwrap();
            fs::rename(part, &path).unwrap();
        }
        path
    }
}
