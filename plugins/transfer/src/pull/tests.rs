//! Whole pulls, from a registry in this process into stand-ins of the stores.

use std::collections::HashMap;
use std::sync::Arc;

use corten_core::diff::Differ;
use corten_core::protos::containerd::types::transfer::ImageStore;
use corten_core::{Digest, Kind};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::*;
use crate::fakes::{Layers as Snaps, Memory, Plain};
use crate::oci::{DOCKER_CONFIG, DOCKER_LAYER, DOCKER_MANIFEST, OCI_INDEX};
use crate::platform::{Matcher, Platform};
use crate::registry::tests::{Log, fetcher, open, reply, serve};

/// Blobs of a registry by digest.
#[derive(Clone, Default)]
struct Blobs(Arc<Mutex<HashMap<String, Vec<u8>>>>);

impl Blobs {
    fn put(&self, data: &[u8], media_type: &str) -> Desc {
        let digest = Digest::sha256(data).to_string();
        self.0.lock().insert(digest.clone(), data.to_vec());
        let size = data.len() as i64;
        Desc {
            media_type: media_type.into(),
            digest,
            size,
            ..Desc::default()
        }
    }
    fn put_json(&self, value: &Value, media_type: &str) -> Desc {
        self.put(value.to_string().as_bytes(), media_type)
    }
    fn config(&self, arch: &str, layers: &[Desc]) -> Desc {
        let ids: Vec<_> = layers.iter().map(|l| l.digest.clone()).collect();
        let config = json!({"os": "linux", "architecture": arch,
            "rootfs": {"type": "layers", "diff_ids": ids}});
        self.put_json(&config, DOCKER_CONFIG)
    }
    fn manifest(&self, config: &Desc, layers: &[Desc]) -> Desc {
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers});
        self.put_json(&manifest, DOCKER_MANIFEST)
    }
    fn layers(&self, names: &[&str]) -> Vec<Desc> {
        names
            .iter()
            .map(|n| self.put(n.as_bytes(), DOCKER_LAYER))
            .collect()
    }
    fn index(&self, manifests: &[Desc]) -> Desc {
        self.put_json(
            &json!({"schemaVersion": 2, "manifests": manifests}),
            OCI_INDEX,
        )
    }
    async fn serve(&self) -> (String, Log) {
        let blobs = self.clone();
        serve(move |r, _| {
            let digest = r.target.rsplit('/').next().unwrap_or_default();
            blobs
                .0
                .lock()
                .get(digest)
                .map_or_else(|| reply(404, ""), |b| reply(200, b.clone()))
        })
        .await
    }
}

struct Bench {
    store: Memory,
    snaps: Snaps,
    differ: Arc<Plain>,
    pull: Arc<Pull>,
    log: Log,
}

async fn bench(blobs: &Blobs, store: ImageStore, parallel: bool) -> Bench {
    let (host, log) = blobs.serve().await;
    let memory = Memory::default();
    let snaps = Snaps::default();
    let differ = Arc::new(Plain(DOCKER_LAYER, memory.clone(), Mutex::default()));
    let unpacker = Unpacker {
        content: memory.content(),
        snapshots: Arc::new(snaps.clone()),
        locks: Default::default(),
        parallel: parallel.then(|| Arc::new(Semaphore::new(2))),
    };
    let other: Arc<dyn Differ> = Arc::new(Plain("other", memory.clone(), Mutex::default()));
    let target = UnpackTarget {
        platform: Matcher::only(&Platform::parse("linux/amd64").unwrap()),
        snapshotter: "overlayfs".into(),
        differs: vec![other, differ.clone()],
        rebase: true,
        config_type: String::new(),
        layer_types: vec!["other".into()],
        sync_fs: parallel,
    };
    let pull = Arc::new(Pull {
        fetcher: fetcher(open(&host, |_| {}).await, &memory),
        store: store.into(),
        unpacker,
        targets: vec![target],
    });
    Bench {
        store: memory,
        snaps,
        differ,
        pull,
        log,
    }
}

fn has(b: &Bench, desc: &Desc) -> bool {
    b.store
        .bytes(&Digest::parse(&desc.digest).unwrap())
        .is_some()
}

#[tokio::test]
async fn layers_become_a_chain_one_by_one_and_side_by_side() {
    for parallel in [false, true] {
        let blobs = Blobs::default();
        let layers = blobs.layers(&["one", "two", "three"]);
        let config = blobs.config("amd64", &layers);
        let root = blobs.manifest(&config, &layers);
        let b = bench(&blobs, ImageStore::default(), parallel).await;
        b.pull.clone().run(root.clone()).await.unwrap();
        let ids: Vec<_> = layers
            .iter()
            .map(|l| Digest::parse(&l.digest).unwrap())
            .collect();
        let chain = corten_core::digest::chain_ids(&ids);
        let done = b.snaps.committed();
        assert_eq!((done.len(), b.snaps.active()), (3, 0));
        // Each is synced where that was asked for: see `bench`.
        assert_eq!(*b.differ.2.lock(), [parallel; 3]);
        assert_eq!(done[chain[0].as_str()], "");
        assert_eq!(done[chain[2].as_str()], chain[1].as_str());
        let labels = b.store.labels(&Digest::parse(&config.digest).unwrap());
        assert_eq!(
            labels["containerd.io/gc.ref.snapshot.overlayfs"],
            chain[2].as_str()
        );
        let labels = b.store.labels(&ids[1]);
        assert_eq!(labels["containerd.io/uncompressed"], layers[1].digest);
        // Again: nothing is fetched or applied.
        let before = b.log.lock().len();
        b.pull.clone().run(root).await.unwrap();
        assert_eq!((b.log.lock().len(), b.differ.2.lock().len()), (before, 3));
    }
}

#[tokio::test]
async fn configured_types_are_unpacked_like_an_images() {
    let blobs = Blobs::default();
    let mut layers = blobs.layers(&["one", "two"]);
    let mut config = blobs.config("amd64", &layers);
    layers[1].media_type = "other".into();
    let root = blobs.manifest(&config, &layers);
    let b = bench(&blobs, ImageStore::default(), false).await;
    b.pull.clone().run(root).await.unwrap();
    assert_eq!(b.snaps.committed().len(), 2);
    // A config of another type belongs to who asked for that type only.
    config.media_type = "application/x.config".into();
    let root = blobs.manifest(&config, &layers);
    let mut b = bench(&blobs, ImageStore::default(), false).await;
    b.pull.clone().run(root.clone()).await.unwrap();
    assert_eq!(b.snaps.committed().len(), 0);
    assert!(layers.iter().all(|l| has(&b, l)));
    let pull = Arc::get_mut(&mut b.pull).unwrap();
    pull.targets[0].config_type = config.media_type;
    b.pull.clone().run(root).await.unwrap();
    assert_eq!(b.snaps.committed().len(), 2);
}

#[tokio::test]
async fn pulls_at_the_same_time_share_the_work() {
    let blobs = Blobs::default();
    let layers = blobs.layers(&["one", "two"]);
    let config = blobs.config("amd64", &layers);
    let root = blobs.manifest(&config, &layers);
    let b = bench(&blobs, ImageStore::default(), false).await;
    let runs = (0..8).map(|_| b.pull.clone().run(root.clone()));
    for done in futures::future::join_all(runs).await {
        done.unwrap();
    }
    assert_eq!((b.log.lock().len(), b.differ.2.lock().len()), (4, 2));
}

#[tokio::test]
async fn a_wrong_layer_leaves_nothing_half_done() {
    for parallel in [false, true] {
        let blobs = Blobs::default();
        let layers = blobs.layers(&["one", "two", "three"]);
        let mut lied = layers.clone();
        lied[1].digest = Digest::sha256(b"something else").to_string();
        let config = blobs.config("amd64", &lied);
        let root = blobs.manifest(&config, &layers);
        let b = bench(&blobs, ImageStore::default(), parallel).await;
        let e = b.pull.clone().run(root).await.unwrap_err();
        assert!(e.to_string().contains("wrong diff id"), "{e}");
        // The removal of what was active runs on its own.
        for _ in 0..200 {
            if b.snaps.active() == 0 {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        assert_eq!(b.snaps.active(), 0);
        assert!(b.snaps.committed().len() <= 1);
        assert_eq!(b.pull.unpacker.locks.in_use(), 0);
    }
}

#[tokio::test]
async fn missing_and_superfluous_layers_are_errors() {
    let blobs = Blobs::default();
    let layers = blobs.layers(&["one", "two"]);
    let config = blobs.config("amd64", &layers);
    let root = blobs.manifest(&config, &layers[..1]);
    let b = bench(&blobs, ImageStore::default(), false).await;
    let e = b.pull.clone().run(root).await.unwrap_err();
    assert!(
        e.to_string()
            .contains("number of layers and diffIDs don't match: 1 != 2"),
        "{e}"
    );
    let root = blobs.manifest(&config, &layers);
    blobs.0.lock().remove(&layers[1].digest);
    let b = bench(&blobs, ImageStore::default(), false).await;
    let e = b.pull.clone().run(root).await.unwrap_err();
    assert_eq!(e.kind(), Kind::NotFound, "{e}");
    assert_eq!(b.snaps.active(), 0);
}

#[tokio::test]
async fn only_the_wanted_platform_is_fetched_whole() {
    let blobs = Blobs::default();
    let mut manifests = Vec::new();
    let mut layers = Vec::new();
    for arch in ["amd64", "s390x"] {
        let own = blobs.layers(&[arch]);
        let mut m = blobs.manifest(&blobs.config(arch, &own), &own);
        m.platform = Some(Platform::parse(&format!("linux/{arch}")).unwrap());
        manifests.push(m);
        layers.extend(own);
    }
    let root = blobs.index(&manifests);
    let host = corten_core::protos::containerd::types::Platform {
        os: "linux".into(),
        architecture: "amd64".into(),
        ..Default::default()
    };
    for all_metadata in [false, true] {
        let store = ImageStore {
            platforms: vec![host.clone()],
            all_metadata,
            ..ImageStore::default()
        };
        let b = bench(&blobs, store, false).await;
        b.pull.clone().run(root.clone()).await.unwrap();
        assert!(has(&b, &manifests[0]) && has(&b, &layers[0]) && !has(&b, &layers[1]));
        assert_eq!(has(&b, &manifests[1]), all_metadata);
        let labels = b.store.labels(&Digest::parse(&root.digest).unwrap());
        assert_eq!(
            labels["containerd.io/gc.ref.content.m.1"],
            manifests[1].digest
        );
    }
    // All platforms: the foreign layers are fetched, and not unpacked.
    let b = bench(&blobs, ImageStore::default(), false).await;
    b.pull.clone().run(root).await.unwrap();
    assert!(has(&b, &layers[1]));
    assert_eq!(b.snaps.committed().len(), 1);
}

#[tokio::test]
async fn variants_with_one_config_are_all_fetched() {
    let blobs = Blobs::default();
    let plain = blobs.layers(&["one"]);
    let config = blobs.config("amd64", &plain);
    let zipped = vec![blobs.put(b"one, zipped", crate::oci::DOCKER_LAYER_GZIP)];
    let root = blobs.index(&[
        blobs.manifest(&config, &plain),
        blobs.manifest(&config, &zipped),
    ]);
    let b = bench(&blobs, ImageStore::default(), false).await;
    let done = b.pull.clone().run(root).await;
    // Which variant comes first is not said; the differ here knows only one of them.
    if done.is_ok() {
        assert!(has(&b, &plain[0]) && has(&b, &zipped[0]));
    }
}

#[tokio::test]
async fn graphs_are_bounded() {
    let blobs = Blobs::default();
    let leaf = blobs.put(b"leaf", "text/plain");
    let wide = blobs.index(&vec![leaf; MAX_REFERENCES]);
    let b = bench(&blobs, ImageStore::default(), false).await;
    let e = b.pull.clone().run(wide).await.unwrap_err();
    assert_eq!(e.kind(), Kind::ResourceExhausted, "{e}");
    let mut deep = blobs.index(&[]);
    for _ in 0..MAX_DEPTH {
        deep = blobs.index(&[deep]);
    }
    let e = b.pull.clone().run(deep).await.unwrap_err();
    assert_eq!(e.kind(), Kind::ResourceExhausted, "{e}");
}

#[tokio::test]
async fn digests_of_strangers_do_no_harm() {
    let blobs = Blobs::default();
    for digest in [
        "",
        "sha256:",
        "sha256:12",
        "md5:00",
        "sha256:../../etc/passwd",
        "é:é",
    ] {
        let mut child = blobs.put(b"x", "text/plain");
        child.digest = digest.into();
        child
            .annotations
            .insert("io.containerd.manifest.subject".into(), "x".into());
        let root = blobs.index(&[child]);
        let b = bench(&blobs, ImageStore::default(), false).await;
        let e = b.pull.clone().run(root).await.unwrap_err();
        assert_eq!(e.kind(), Kind::InvalidArgument, "{digest}: {e}");
    }
}
