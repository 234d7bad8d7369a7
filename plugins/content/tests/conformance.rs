//! The local store under the content suite, and what only it promises: containerd's layout on disk.

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use bytes::Bytes;
use corten_content::Store;
use corten_core::content::{Backend, WriterOptions};
use corten_core::{Digest, Labels};

#[tokio::test]
async fn the_store_conforms() {
    corten_testsuite::content::suite(|dir| async move {
        Arc::new(Store::open(&dir).unwrap()) as Arc<dyn Backend>
    })
    .await;
}

#[tokio::test]
async fn the_layout_is_containerds() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("content");
    let store = Store::open(&root).unwrap();
    let digest = Digest::sha256(b"data");
    let options = WriterOptions {
        r#ref: "k8s.io/1/ref".into(),
        total: 4,
        ..Default::default()
    };
    let mut w = store.writer(options).await.unwrap();
    w.write(Bytes::from_static(b"data")).await.unwrap();
    let ingest = root
        .join("ingest")
        .join(Digest::sha256(b"k8s.io/1/ref").hex());
    let text = |name: &str| std::fs::read_to_string(ingest.join(name)).unwrap();
    assert_eq!(
        (
            text("ref").as_str(),
            text("total").as_str(),
            text("data").as_str()
        ),
        ("k8s.io/1/ref", "4", "data")
    );
    for time in ["startedat", "updatedat"] {
        assert!(
            text(time).ends_with('Z') && text(time).contains('T'),
            "{}",
            text(time)
        );
    }
    w.commit(4, Some(digest.clone()), Labels::new())
        .await
        .unwrap();
    let blob = std::fs::metadata(root.join("blobs/sha256").join(digest.hex())).unwrap();
    assert_eq!(blob.mode() & 0o777, 0o444);
    assert_eq!(std::fs::metadata(&root).unwrap().mode() & 0o777, 0o700);
    assert!(!ingest.exists());
}

#[tokio::test]
async fn an_ingest_of_stock_containerd_is_resumed_and_a_broken_one_is_begun_anew() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let make = |r#ref: &str, files: &[(&str, &str)]| {
        let ingest = dir
            .path()
            .join("ingest")
            .join(Digest::sha256(r#ref.as_bytes()).hex());
        std::fs::create_dir(&ingest).unwrap();
        for (name, text) in files {
            std::fs::write(ingest.join(name), text).unwrap();
        }
    };
    let time = "2026-02-03T04:05:06.789012345+01:00";
    make(
        "go",
        &[
            ("ref", "go"),
            ("startedat", time),
            ("updatedat", time),
            ("data", "da"),
            ("total", "4"),
        ],
    );
    make("broken", &[("data", "garbage")]);
    let writer = |r#ref: &str| {
        store.writer(WriterOptions {
            r#ref: r#ref.into(),
            ..Default::default()
        })
    };
    let w = writer("go").await.unwrap();
    assert_eq!((w.status().offset, w.status().total), (2, 4));
    assert_eq!(writer("broken").await.unwrap().status().offset, 0);
}

#[tokio::test]
async fn a_write_that_nobody_waits_for_frees_its_ref() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let open = || WriterOptions {
        r#ref: "r".into(),
        ..Default::default()
    };
    let mut w = store.writer(open()).await.unwrap();
    {
        let mut write = w.write(Bytes::from(vec![1; 8 << 20]));
        // Started, and given up at once.
        let _ = futures::poll!(&mut write);
    }
    assert!(w.write(Bytes::from_static(b"x")).await.is_err());
    drop(w);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while store.writer(open()).await.is_err() {
        assert!(std::time::Instant::now() < deadline, "the ref stays locked");
        tokio::task::yield_now().await;
    }
}
