//! Archives there and back: what is exported can be imported, and what Docker writes can be read.

use std::io::Write;
use std::sync::Arc;

use corten_core::content::{Content, WriterOptions};
use corten_core::labels::UNCOMPRESSED;
use corten_core::{Digest, Error, Kind, Result};

use super::{Export, read, write};
use crate::fakes::{Memory, scope};
use crate::oci::{
    DOCKER_CONFIG, DOCKER_LAYER_GZIP, DOCKER_MANIFEST, Desc, IMAGE_NAME, OCI_INDEX, REF_NAME,
};
use crate::platform::{Matcher, Platform};

fn desc(digest: &Digest, size: usize, media_type: &str) -> Desc {
    Desc {
        media_type: media_type.into(),
        digest: digest.to_string(),
        size: size as i64,
        ..Desc::default()
    }
}

fn put(store: &Memory, data: &[u8], media_type: &str) -> Desc {
    desc(&store.put(data.to_vec()), data.len(), media_type)
}

/// An index of one manifest for each platform.
fn image(store: &Memory, platforms: &[&str]) -> Desc {
    let mut manifests = Vec::new();
    for p in platforms {
        let platform = Platform::parse(p).unwrap();
        let config = serde_json::json!({
            "architecture": platform.architecture, "os": platform.os,
            "rootfs": {"type": "layers", "diff_ids": []}});
        let config = put(store, config.to_string().as_bytes(), DOCKER_CONFIG);
        let layer = put(store, format!("layer of {p}").as_bytes(), DOCKER_LAYER_GZIP);
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": DOCKER_MANIFEST, "config": config, "layers": [layer]});
        let mut manifest = put(store, manifest.to_string().as_bytes(), DOCKER_MANIFEST);
        manifest.platform = Some(platform);
        manifests.push(manifest);
    }
    let index = serde_json::json!({"schemaVersion": 2, "manifests": manifests});
    put(store, index.to_string().as_bytes(), OCI_INDEX)
}

fn export(image: Desc, all: bool) -> Export {
    Export {
        images: vec![("docker.io/library/app:v1".into(), image)],
        platform: Matcher::ordered(&[Platform::parse("linux/amd64").unwrap()]),
        all_platforms: all,
        skip_docker: false,
        skip_non_distributable: false,
    }
}

async fn written(store: &Memory, export: Export) -> Result<Vec<u8>> {
    let content: Arc<dyn Content> = store.content();
    tokio::task::spawn_blocking(move || {
        let mut out = Vec::new();
        write(&content, &scope(), &export, &mut out).map(|()| out)
    })
    .await
    .unwrap()
}

async fn imported(store: &Memory, archive: Vec<u8>, compress: bool) -> Result<Desc> {
    let content: Arc<dyn Content> = store.content();
    tokio::task::spawn_blocking(move || {
        read(&content, &scope(), archive.as_slice(), true, compress)
    })
    .await
    .unwrap()
}

fn names(archive: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(archive);
    let entries = archive.entries().unwrap();
    entries
        .map(|e| e.unwrap().path().unwrap().display().to_string())
        .collect()
}

fn tarball(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = tar::Builder::new(Vec::new());
    for (name, data) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        header.set_entry_type(tar::EntryType::Regular);
        out.append_data(&mut header, name, *data).unwrap();
    }
    out.into_inner().unwrap()
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(data).unwrap();
    out.finish().unwrap()
}

fn index_of(store: &Memory, index: &Desc) -> serde_json::Value {
    let digest = index.checked_digest().unwrap();
    serde_json::from_slice(&store.bytes(&digest).unwrap()).unwrap()
}

#[tokio::test]
async fn an_exported_image_can_be_imported_elsewhere() {
    let (here, there) = (Memory::default(), Memory::default());
    let root = image(&here, &["linux/amd64", "linux/arm64"]);
    let archive = written(&here, export(root.clone(), true)).await.unwrap();
    let found = names(&archive);
    assert!(
        found.is_sorted() && found.contains(&"oci-layout".to_owned()),
        "{found:?}"
    );
    for packed in [
        archive.clone(),
        gzip(&archive),
        zstd::encode_all(&archive[..], 1).unwrap(),
    ] {
        let index = imported(&there, packed, false).await.unwrap();
        let entry = &index_of(&there, &index)["manifests"][0];
        assert_eq!(entry["digest"], root.digest);
        assert_eq!(entry["annotations"][IMAGE_NAME], "docker.io/library/app:v1");
        assert_eq!(entry["annotations"][REF_NAME], "v1");
        assert!(
            there
                .bytes(&Digest::sha256(b"layer of linux/arm64"))
                .is_some()
        );
    }
    let load: Vec<super::DockerImage> = {
        let mut archive = tar::Archive::new(&archive[..]);
        let mut entries = archive.entries().unwrap().map(Result::unwrap);
        let e = entries
            .find(|e| e.path().unwrap().ends_with("manifest.json"))
            .unwrap();
        serde_json::from_reader(e).unwrap()
    };
    assert_eq!(load[0].repo_tags, ["app:v1"]);
    assert!(load[0].layers[0].ends_with(Digest::sha256(b"layer of linux/amd64").hex()));
}

#[tokio::test]
async fn only_the_wanted_platform_and_its_absence() {
    let store = Memory::default();
    let root = image(&store, &["linux/amd64", "linux/arm64"]);
    let archive = written(&store, export(root, false)).await.unwrap();
    let other = Digest::sha256(b"layer of linux/arm64");
    assert!(!names(&archive).iter().any(|n| n.ends_with(other.hex())));
    let root = image(&store, &["linux/arm64"]);
    let e: Error = written(&store, export(root, false)).await.unwrap_err();
    assert_eq!(e.to_string(), "no manifest found for platform: not found");
}

#[tokio::test]
async fn what_docker_save_writes() {
    let store = Memory::default();
    let layer = b"pretend this is a tar";
    let archive = tarball(&[
        (
            "c.json",
            br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#,
        ),
        ("l/layer.tar", layer),
        (
            "manifest.json",
            br#"[{"Config":"c.json","RepoTags":["app:v1","h.io/a/b"],"Layers":["l/layer.tar"]}]"#,
        ),
    ]);
    let index = imported(&store, archive.clone(), false).await.unwrap();
    let found = index_of(&store, &index);
    let name = |i: usize| found["manifests"][i]["annotations"][IMAGE_NAME].clone();
    assert_eq!(
        (name(0), name(1)),
        ("docker.io/library/app:v1".into(), "h.io/a/b:latest".into())
    );
    assert_eq!(found["manifests"][0]["platform"]["architecture"], "amd64");
    let compressed = imported(&store, archive.clone(), true).await.unwrap();
    let manifest = index_of(&store, &compressed)["manifests"][0]["digest"].clone();
    let digest = Digest::parse(manifest.as_str().unwrap()).unwrap();
    let manifest: serde_json::Value =
        serde_json::from_slice(&store.bytes(&digest).unwrap()).unwrap();
    assert_eq!(manifest["layers"][0]["mediaType"], DOCKER_LAYER_GZIP);
    let blob = Digest::parse(manifest["layers"][0]["digest"].as_str().unwrap()).unwrap();
    assert_eq!(
        store.labels(&blob)[UNCOMPRESSED],
        Digest::sha256(layer).to_string()
    );
    // A later import uses the compressed layer, and must hold it: the image that brought it may go meanwhile.
    assert!(!store.leased(&blob));
    let again = imported(&store, archive, false).await.unwrap();
    assert_eq!(again.digest, compressed.digest);
    assert!(store.leased(&blob));
}

#[tokio::test]
async fn what_is_no_image_is_refused() {
    let store = Memory::default();
    for (files, want) in [
        (vec![("a", &b"x"[..])], "unrecognized image format"),
        (
            vec![("oci-layout", br#"{"imageLayoutVersion":"9"}"#)],
            "unsupported OCI version 9",
        ),
        (
            vec![("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)],
            "missing index.json",
        ),
        (
            vec![("manifest.json", br#"[{"Config":"../../etc/passwd"}]"#)],
            "not found",
        ),
        (vec![("manifest.json", b"{")], "untar manifest"),
    ] {
        let e = imported(&store, tarball(&files), false).await.unwrap_err();
        assert_eq!(e.kind(), Kind::InvalidArgument, "{e}");
        assert!(e.to_string().contains(want), "{e}");
    }
    assert!(
        imported(
            &store,
            b"no tar at all, but long enough to look like one".repeat(40),
            false
        )
        .await
        .is_err()
    );
}

#[tokio::test]
async fn a_cut_archive_and_an_endless_name_are_refused() {
    let store = Memory::default();
    let mut cut = tarball(&[("blobs/sha256/x", &[7; 5000])]);
    cut.truncate(3000);
    let e = imported(&store, cut, false).await.unwrap_err();
    assert!(e.to_string().contains("unexpected EOF"), "{e}");
    let e = imported(&store, b"no archive".to_vec(), false).await;
    let e = e.unwrap_err();
    assert!(e.to_string().contains("unexpected EOF"), "{e}");

    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::GNULongName);
    header.set_size(64 << 20);
    header.set_cksum();
    let mut endless = header.as_bytes().to_vec();
    endless.resize(endless.len() + (64 << 20), b'a');
    let e = imported(&store, endless, false).await.unwrap_err();
    assert!(e.to_string().contains("extended header too long"), "{e}");
}

#[tokio::test]
async fn two_imports_of_files_of_the_same_name_do_not_disturb_each_other() {
    let store = Memory::default();
    let held = WriterOptions {
        r#ref: "tar-blobs/sha256/x".into(),
        ..Default::default()
    };
    let writer = store.content().writer(&scope(), held).await.unwrap();
    let release = tokio::spawn(async move {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        drop(writer);
    });
    let archive = tarball(&[("blobs/sha256/x", b"x")]);
    let e = imported(&store, archive, false).await.unwrap_err();
    assert_eq!(e.to_string(), "unrecognized image format");
    release.await.unwrap();
}
