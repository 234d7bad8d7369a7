//! Many at once: pulls, deletions and collections; and a store of a thousand records.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use corten_core::filter::Filter;
use corten_core::snapshots::Commit;
use corten_core::{Digest, Scope};

use super::fakes::*;

/// What a client does for an image: lease, layers, snapshots, manifest, image, end of the lease.
async fn pull(w: &World, n: usize, round: usize) {
    let s = scope("one");
    let lease = format!("lease-{n}-{round}");
    w.md()
        .leases()
        .create(&s.namespace, &lease, map(&[]))
        .await
        .unwrap();
    let leased: Scope = s.with_lease(&lease);
    let mut refs: Vec<(String, String)> = Vec::new();
    let mut parent = String::new();
    for layer in 0..3 {
        // The lowest layer is common to all.
        let data = if layer == 0 {
            "common".to_owned()
        } else {
            format!("layer-{n}-{layer}")
        };
        let digest = w.blob(&leased, data.as_bytes(), &[]).await;
        refs.push((
            format!("containerd.io/gc.ref.content.l.{layer}"),
            digest.to_string(),
        ));
        let name = format!("chain-{data}");
        let key = format!("extract-{n}-{round}-{layer}");
        let sn = w.md().snapshots();
        let target = map(&[("containerd.io/snapshot.ref", &name)]);
        match sn.prepare(&leased, "mem", &key, &parent, target).await {
            Ok(_) => {
                let c = Commit {
                    name: name.clone(),
                    key: key.clone(),
                    ..Default::default()
                };
                if let Err(e) = sn.commit(&leased, "mem", c).await {
                    assert_eq!(e.kind(), corten_core::Kind::AlreadyExists, "{e}");
                    sn.remove(&leased, "mem", &key).await.unwrap();
                }
            }
            Err(e) => assert_eq!(e.kind(), corten_core::Kind::AlreadyExists, "{e}"),
        }
        parent = name;
    }
    refs.push(("containerd.io/gc.ref.snapshot.mem".into(), parent.clone()));
    let labels: Vec<_> = refs.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let manifest = format!("manifest-{n}");
    w.blob(&leased, manifest.as_bytes(), &labels).await;
    let name = format!("image-{n}");
    w.image(&s, &name, manifest.as_bytes(), &[]).await;
    w.md()
        .leases()
        .delete(&s.namespace, &lease, false)
        .await
        .unwrap();
    check(w, n, &parent).await;
}

/// Nothing that an image refers to is missing.
async fn check(w: &World, n: usize, top: &str) {
    let one = ns("one");
    for data in [
        format!("manifest-{n}"),
        "common".into(),
        format!("layer-{n}-1"),
        format!("layer-{n}-2"),
    ] {
        let digest = Digest::sha256(data.as_bytes());
        let reader = w.md().content().reader_at(&one, &digest).await;
        assert!(reader.is_ok(), "{data} of image {n} is gone");
    }
    let sn = w.md().snapshots();
    let mut key = top.to_owned();
    while !key.is_empty() {
        key = sn.stat(&one, "mem", &key).await.unwrap().parent;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn collections_never_take_what_pulls_need() {
    let w = Arc::new(World::new());
    let stop = Arc::new(AtomicBool::new(false));
    let collector = {
        let (w, stop) = (w.clone(), stop.clone());
        tokio::spawn(async move {
            let mut runs = 0;
            while !stop.load(Ordering::SeqCst) {
                w.collect().await;
                runs += 1;
            }
            runs
        })
    };
    let pulls: Vec<_> = (0..6)
        .map(|n| {
            let w = w.clone();
            tokio::spawn(async move {
                for round in 0..8 {
                    pull(&w, n, round).await;
                    w.md()
                        .images()
                        .delete(&scope("one"), &format!("image-{n}"), None)
                        .await
                        .unwrap();
                }
                pull(&w, n, 99).await;
            })
        })
        .collect();
    for p in pulls {
        p.await.unwrap();
    }
    stop.store(true, Ordering::SeqCst);
    assert!(collector.await.unwrap() > 0);
    w.collect().await;
    // common, and of each image: manifest and two layers; three snapshots, the lowest common.
    assert_eq!(w.blobs.blobs().len(), 1 + 6 * 3);
    assert_eq!(w.layers.keys().len(), 1 + 6 * 2);
    for n in 0..6 {
        check(&w, n, &format!("chain-layer-{n}-2")).await;
    }
    for n in 0..6 {
        w.md()
            .images()
            .delete(&scope("one"), &format!("image-{n}"), None)
            .await
            .unwrap();
    }
    w.collect().await;
    assert!(w.blobs.blobs().is_empty() && w.layers.keys().is_empty());
    assert!(w.blobs.ingests().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_records_are_there_after_a_reopen() {
    let mut w = World::new();
    let begun = Instant::now();
    let md = w.md().clone();
    let writes: Vec<_> = (0..1000)
        .map(|n| {
            let md = md.clone();
            tokio::spawn(async move {
                let s = scope("one");
                md.images()
                    .create(&s, image(&format!("image-{n}"), b"x", &[]))
                    .await
                    .unwrap();
                md.containers()
                    .create(&s, container(&format!("c{n}"), ""))
                    .await
                    .unwrap();
            })
        })
        .collect();
    for write in writes {
        write.await.unwrap();
    }
    let wrote = begun.elapsed();
    drop(md);
    let begun = Instant::now();
    w.reopen();
    let opened = begun.elapsed();
    let begun = Instant::now();
    let listed = w
        .md()
        .containers()
        .list(&ns("one"), &Filter::all())
        .await
        .unwrap()
        .len();
    assert_eq!(listed, 1000);
    let took = begun.elapsed();
    assert_eq!(
        w.md()
            .images()
            .list(&ns("one"), &Filter::all())
            .await
            .unwrap()
            .len(),
        1000
    );
    // Figures for the report; a timing is never a pass/fail test.
    tracing::info!(?wrote, ?opened, list = ?took, "a thousand images and containers");
    eprintln!("2000 writes {wrote:?}, reopen {opened:?}, list of 1000 {took:?}");
}

#[tokio::test]
async fn one_failing_mutation_leaves_its_batch_alone() {
    let w = World::new();
    let images = w.md().images();
    let s = scope("one");
    images.create(&s, image("taken", b"x", &[])).await.unwrap();
    let names: Vec<String> = (0..50)
        .map(|n| {
            if n % 2 == 0 {
                "taken".into()
            } else {
                n.to_string()
            }
        })
        .collect();
    let done =
        futures::future::join_all(names.iter().map(|n| images.create(&s, image(n, b"x", &[]))))
            .await;
    assert_eq!(done.iter().filter(|d| d.is_ok()).count(), 25);
    assert_eq!(
        images
            .list(&s.namespace, &Filter::all())
            .await
            .unwrap()
            .len(),
        26
    );
}

#[tokio::test]
async fn an_abandoned_call_is_done_as_a_whole() {
    let w = World::new();
    let sn = w.md().snapshots();
    let s = scope("one");
    // Polled once and dropped, as when a client goes away.
    let mut call = Box::pin(sn.prepare(&s, "mem", "k", "", map(&[])));
    assert!(futures::poll!(&mut call).is_pending());
    drop(call);
    let deadline = Instant::now() + Duration::from_secs(10);
    while sn.stat(&s.namespace, "mem", "k").await.is_err() {
        assert!(Instant::now() < deadline);
        tokio::task::yield_now().await;
    }
    assert_eq!(w.layers.keys(), ["one/1/k"]);
}
