//! Images read from blobs, for hosts of all kinds, and blobs that are no images.

use std::collections::HashMap;

use async_trait::async_trait;
use corten_core::content::{Info, IngestStatus, ReadAt, Writer, WriterOptions};
use corten_core::filter::Filter;
use corten_core::{Labels, Scope};
use serde_json::{Value, json};

use super::*;

fn entry(architecture: &str, variant: &str) -> EntryPlatform {
    EntryPlatform {
        architecture: architecture.into(),
        os: "linux".into(),
        variant: variant.into(),
    }
}

fn host(architecture: &str, variant: &str) -> Platform {
    Platform {
        os: "linux".into(),
        architecture: architecture.into(),
        variant: variant.into(),
    }
}

#[test]
fn the_nearest_platform_wins() {
    let amd = host("amd64", "");
    let of = |h: &Platform, a: &str, v: &str| rank(h, Some(&entry(a, v)));
    assert_eq!(of(&amd, "amd64", "v1"), Some(0));
    assert_eq!(of(&amd, "amd64", "v3"), None);
    assert!(of(&amd, "386", "") > of(&amd, "amd64", ""));
    assert_eq!(of(&amd, "arm64", ""), None);
    let arm = host("arm64", "");
    assert_eq!(of(&arm, "arm64", "v8"), Some(0));
    assert!(of(&arm, "arm", "v7") < of(&arm, "arm", "v6"));
    let windows = EntryPlatform {
        os: "windows".into(),
        ..entry("amd64", "")
    };
    assert_eq!(rank(&amd, Some(&windows)), None);
    assert!(rank(&amd, None) > of(&amd, "386", ""));
}

#[test]
fn unknown_sizes_do_not_count() {
    assert_eq!(sum([1, -1, 2]), 3);
    assert_eq!(sum([i64::MAX, i64::MAX, i64::MAX]), u64::MAX);
}

const MANIFEST: &str = MANIFESTS[0];
const INDEX: &str = INDEXES[0];

/// Blobs; nothing else is asked for.
#[derive(Default)]
struct Blobs(HashMap<String, Vec<u8>>);

struct Blob(Vec<u8>);

impl ReadAt for Blob {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
        let rest = &self.0[usize::try_from(offset).unwrap()..];
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }
}

#[async_trait]
impl Content for Blobs {
    async fn info(&self, _: &Namespace, digest: &Digest) -> Result<Info> {
        Err(Error::not_found(digest))
    }
    async fn update(&self, _: &Namespace, info: Info, _: &[String]) -> Result<Info> {
        Ok(info)
    }
    async fn list(&self, _: &Namespace, _: &Filter) -> Result<Vec<Info>> {
        Ok(Vec::new())
    }
    async fn delete(&self, _: &Scope, digest: &Digest) -> Result<()> {
        Err(Error::not_found(digest))
    }
    async fn reader_at(&self, _: &Namespace, digest: &Digest) -> Result<Arc<dyn ReadAt>> {
        let found = self.0.get(digest.as_str());
        let found = found.ok_or_else(|| Error::not_found(digest))?;
        Ok(Arc::new(Blob(found.clone())))
    }
    async fn writer(&self, _: &Scope, _: WriterOptions) -> Result<Box<dyn Writer>> {
        Err(Error::not_implemented("write"))
    }
    async fn status(&self, _: &Namespace, name: &str) -> Result<IngestStatus> {
        Err(Error::not_found(name))
    }
    async fn list_statuses(&self, _: &Namespace, _: &Filter) -> Result<Vec<IngestStatus>> {
        Ok(Vec::new())
    }
    async fn abort(&self, _: &Scope, name: &str) -> Result<()> {
        Err(Error::not_found(name))
    }
}

impl Blobs {
    fn put(&mut self, kind: &str, data: Vec<u8>) -> Value {
        let digest = Digest::sha256(&data).to_string();
        let size = data.len();
        self.0.insert(digest.clone(), data);
        json!({ "mediaType": kind, "digest": digest, "size": size })
    }

    fn document(&mut self, kind: &str, document: &Value) -> Value {
        self.put(kind, document.to_string().into_bytes())
    }

    fn image(&mut self, config: Vec<u8>) -> Value {
        let config = self.put("application/vnd.oci.image.config.v1+json", config);
        let layer = json!({ "mediaType": "x", "digest": "sha256:l", "size": 1000 });
        self.document(MANIFEST, &json!({ "config": config, "layers": [layer] }))
    }

    async fn load(self, entry: &Value) -> Result<ImageRecord> {
        let target = Descriptor {
            media_type: entry["mediaType"].as_str().unwrap().into(),
            digest: entry["digest"].as_str().unwrap().into(),
            size: entry["size"].as_i64().unwrap(),
            ..Descriptor::default()
        };
        let image = Image {
            name: "h.io/a:1".into(),
            target: Some(target),
            labels: Labels::from([(PINNED.into(), PINNED_VALUE.into())]),
            ..Image::default()
        };
        let loader = Loader {
            ns: Namespace::new("k8s.io").unwrap(),
            content: Arc::new(self),
        };
        loader.load(&image).await
    }
}

fn on(mut entry: Value, architecture: &str) -> Value {
    entry["platform"] = json!({ "os": "linux", "architecture": architecture });
    entry
}

#[tokio::test]
async fn an_image_is_that_of_this_host() {
    let mut blobs = Blobs::default();
    let mine = br#"{"config":{"User":"7"},"rootfs":{"diff_ids":[]}}"#.to_vec();
    let id = Digest::sha256(&mine).to_string();
    let other = blobs.image(br#"{"config":{"User":"8"}}"#.to_vec());
    let own = blobs.image(mine.clone());
    let host = Platform::host().architecture;
    let manifests = json!([on(other, "s390x"), on(own.clone(), &host)]);
    let index = blobs.document(INDEX, &json!({ "manifests": manifests }));
    let record = blobs.load(&index).await.unwrap();
    assert_eq!((record.id, record.config.config.user), (id, "7".into()));
    assert!(record.pinned && record.chain_id.is_empty());
    let bytes = |v: &Value| v["size"].as_u64().unwrap();
    assert_eq!(
        record.size,
        bytes(&index) + bytes(&own) + mine.len() as u64 + 1000
    );
}

#[tokio::test]
async fn what_is_no_image_is_refused() {
    let nested = |depth: usize| {
        let mut blobs = Blobs::default();
        let mut entry = blobs.image(b"{}".to_vec());
        for _ in 0..depth {
            entry = blobs.document(INDEX, &json!({ "manifests": [entry] }));
        }
        (blobs, entry)
    };
    let (blobs, entry) = nested(MAX_DEPTH - 1);
    assert!(blobs.load(&entry).await.is_ok());
    let (blobs, entry) = nested(MAX_DEPTH);
    assert_eq!(
        blobs.load(&entry).await.unwrap_err().kind(),
        Kind::ResourceExhausted
    );

    let padded = |bytes: u64| {
        let mut config = b"{}".to_vec();
        config.resize(usize::try_from(bytes).unwrap(), b' ');
        config
    };
    for (bytes, want) in [(MAX_CONFIG, true), (MAX_CONFIG + 1, false)] {
        let mut blobs = Blobs::default();
        let entry = blobs.image(padded(bytes));
        assert_eq!(blobs.load(&entry).await.is_ok(), want, "{bytes}");
    }
    for (bytes, want) in [
        (MAX_DOCUMENT, Kind::InvalidArgument),
        (MAX_DOCUMENT + 1, Kind::ResourceExhausted),
    ] {
        let mut blobs = Blobs::default();
        // Read, and found to have no config.
        let entry = blobs.put(MANIFEST, padded(bytes));
        assert_eq!(
            blobs.load(&entry).await.unwrap_err().kind(),
            want,
            "{bytes}"
        );
    }
    for (kind, data, want) in [
        (MANIFEST, "null", Kind::InvalidArgument),
        (MANIFEST, "{", Kind::InvalidArgument),
        (INDEX, "{}", Kind::NotFound),
        ("text/plain", "{}", Kind::NotFound),
    ] {
        let mut blobs = Blobs::default();
        let entry = blobs.put(kind, data.into());
        assert_eq!(
            blobs.load(&entry).await.unwrap_err().kind(),
            want,
            "{kind} {data}"
        );
    }
}
