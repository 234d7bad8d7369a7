//! Snapshots of several namespaces over one snapshotter.

use corten_core::filter::Filter;
use corten_core::snapshots::{Commit, Info, SnapshotKind};
use corten_core::{Kind, Labels};

use super::fakes::*;

fn commit(name: &str, key: &str) -> Commit {
    Commit {
        name: name.into(),
        key: key.into(),
        ..Default::default()
    }
}

fn target(name: &str) -> Labels {
    map(&[("containerd.io/snapshot.ref", name)])
}

#[tokio::test]
async fn a_snapshot_lives_in_its_namespace() {
    let w = World::new();
    let (s, sn) = (scope("one"), w.md().snapshots());
    let labels = map(&[("x", "1"), ("containerd.io/snapshot/y", "2")]);
    let mounts = sn
        .prepare(&s, "mem", "k", "", labels.clone())
        .await
        .unwrap();
    assert_eq!(w.layers.keys(), ["one/1/k"]);
    assert_eq!(mounts[0].source, "/mem/one/1/k");
    assert_eq!(
        w.layers.labels(),
        [map(&[("containerd.io/snapshot/y", "2")])]
    );
    let info = sn.stat(&s.namespace, "mem", "k").await.unwrap();
    assert_eq!(
        (info.kind, info.name.as_str(), &info.labels),
        (SnapshotKind::Active, "k", &labels)
    );
    fails(
        sn.prepare(&s, "mem", "k", "", map(&[])).await,
        Kind::AlreadyExists,
        "snapshot \"k\": already exists",
    );
    fails(
        sn.stat(&ns("two"), "mem", "k").await,
        Kind::NotFound,
        "snapshot k does not exist: not found",
    );
    fails(
        sn.prepare(&s, "mem", "c", "nope", map(&[])).await,
        Kind::NotFound,
        "parent snapshot nope does not exist: not found",
    );
    fails(
        sn.stat(&s.namespace, "zfs", "k").await,
        Kind::InvalidArgument,
        "snapshotter not loaded: zfs: invalid argument",
    );
    sn.commit(&s, "mem", commit("base", "k")).await.unwrap();
    fails(
        sn.commit(&s, "mem", commit("base", "k")).await,
        Kind::AlreadyExists,
        "snapshot \"base\": already exists",
    );
    fails(
        sn.commit(&s, "mem", commit("other", "k")).await,
        Kind::NotFound,
        "snapshot k does not exist: not found",
    );
    sn.view(&s, "mem", "v", "base", map(&[])).await.unwrap();
    fails(
        sn.remove(&s, "mem", "base").await,
        Kind::FailedPrecondition,
        "cannot remove snapshot with child: failed precondition",
    );
}

#[tokio::test]
async fn snapshots_are_listed_labelled_and_removed() {
    let mut w = World::new();
    let (s, sn) = (scope("one"), w.md().snapshots());
    sn.prepare(&s, "mem", "k", "", map(&[])).await.unwrap();
    sn.commit(&s, "mem", commit("base", "k")).await.unwrap();
    sn.view(&s, "mem", "v", "base", map(&[])).await.unwrap();
    drop(sn);
    w.reopen();
    let sn = w.md().snapshots();
    let kind = |f: &str| Filter::parse(&[f]).unwrap();
    let names = |l: Vec<Info>| l.into_iter().map(|i| i.name).collect::<Vec<_>>();
    assert_eq!(
        names(
            sn.list(&s.namespace, "mem", &kind("kind==view"))
                .await
                .unwrap()
        ),
        ["v"]
    );
    assert_eq!(
        names(
            sn.list(&s.namespace, "mem", &kind("parent==base"))
                .await
                .unwrap()
        ),
        ["v"]
    );
    assert_eq!(
        names(sn.list(&s.namespace, "mem", &Filter::all()).await.unwrap()),
        ["base", "v"]
    );
    let info = Info {
        labels: map(&[("z", "3")]),
        ..sn.stat(&s.namespace, "mem", "base").await.unwrap()
    };
    let info = sn
        .update(&s.namespace, "mem", info, &["labels.z".into()])
        .await
        .unwrap();
    assert_eq!(
        (info.kind, info.labels),
        (SnapshotKind::Committed, map(&[("z", "3")]))
    );
    assert_eq!(sn.usage(&s.namespace, "mem", "base").await.unwrap().size, 2);
    sn.remove(&s, "mem", "v").await.unwrap();
    sn.remove(&s, "mem", "base").await.unwrap();
    assert_eq!(
        w.events.take(),
        ["prepare", "commit", "remove", "remove"].map(|e| format!("one/snapshot/{e}"))
    );
    assert_eq!(w.layers.keys().len(), 2, "layers go with the collection");
    w.collect().await;
    assert!(w.layers.keys().is_empty());
}

#[tokio::test]
async fn a_known_target_is_leased_and_the_layer_skipped() {
    let w = World::new();
    let (s, sn) = (scope("one"), w.md().snapshots());
    sn.prepare(&s, "mem", "k", "", map(&[])).await.unwrap();
    sn.commit(&s, "mem", commit("sha256:t", "k")).await.unwrap();
    w.md()
        .leases()
        .create(&s.namespace, "l", map(&[]))
        .await
        .unwrap();
    fails(
        sn.prepare(&s.with_lease("l"), "mem", "extract", "", target("sha256:t"))
            .await,
        Kind::AlreadyExists,
        "target snapshot \"sha256:t\": already exists",
    );
    let held = w.md().leases().resources(&s.namespace, "l").await.unwrap();
    assert_eq!(
        (held[0].r#type.as_str(), held[0].id.as_str()),
        ("snapshots/mem", "sha256:t")
    );
}

#[tokio::test]
async fn a_remote_snapshot_is_recorded_under_its_target() {
    let w = World::new();
    let (s, sn) = (scope("one"), w.md().snapshots());
    w.layers.remote.lock().insert("sha256:t".into());
    w.md()
        .leases()
        .create(&s.namespace, "l", map(&[]))
        .await
        .unwrap();
    fails(
        sn.prepare(&s.with_lease("l"), "mem", "extract", "", target("sha256:t"))
            .await,
        Kind::AlreadyExists,
        "target snapshot \"sha256:t\" from snapshotter: already exists",
    );
    let info = sn.stat(&s.namespace, "mem", "sha256:t").await.unwrap();
    assert_eq!(info.kind, SnapshotKind::Committed);
    assert!(sn.stat(&s.namespace, "mem", "extract").await.is_err());
    let held = w.md().leases().resources(&s.namespace, "l").await.unwrap();
    assert_eq!(
        held.iter().map(|r| r.id.as_str()).collect::<Vec<_>>(),
        ["sha256:t"]
    );
    w.collect().await;
    sn.prepare(&s, "mem", "child", "sha256:t", map(&[]))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_commit_can_name_its_parent_late() {
    let w = World::new();
    let (s, sn) = (scope("one"), w.md().snapshots());
    sn.prepare(&s, "mem", "a", "", map(&[])).await.unwrap();
    sn.prepare(&s, "mem", "b", "", map(&[])).await.unwrap();
    let rebase = |name: &str, parent: &str| Commit {
        parent: parent.into(),
        ..commit(name, "b")
    };
    fails(
        sn.commit(&s, "mem", rebase("B", "A")).await,
        Kind::NotFound,
        "parent snapshot A does not exist: not found",
    );
    sn.commit(&s, "mem", commit("A", "a")).await.unwrap();
    sn.commit(&s, "mem", rebase("B", "A")).await.unwrap();
    assert_eq!(sn.stat(&s.namespace, "mem", "B").await.unwrap().parent, "A");
    assert!(sn.remove(&s, "mem", "A").await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_commits_of_one_name_leave_one_and_the_other_active() {
    let w = World::new();
    let (s, sn) = (scope("one"), w.md().snapshots());
    for k in ["a", "b"] {
        sn.prepare(&s, "mem", k, "", map(&[])).await.unwrap();
    }
    let (one, two) = tokio::join!(
        sn.commit(&s, "mem", commit("layer", "a")),
        sn.commit(&s, "mem", commit("layer", "b"))
    );
    assert!(one.is_ok() != two.is_ok());
    assert_eq!(one.and(two).unwrap_err().kind(), Kind::AlreadyExists);
    let left = sn.list(&s.namespace, "mem", &Filter::all()).await.unwrap();
    let kinds: Vec<_> = left.iter().map(|i| i.kind).collect();
    assert!(kinds.contains(&SnapshotKind::Active) && kinds.contains(&SnapshotKind::Committed));
    assert_eq!(w.layers.keys().len(), 2);
}

#[tokio::test]
async fn a_slow_backend_holds_up_no_collection_and_loses_nothing_to_it() {
    let w = World::new();
    let s = scope("one");
    let sn = w.md().snapshots();
    w.layers.remote.lock().insert("far".into());
    sn.prepare(&s, "mem", "old", "", map(&[])).await.unwrap();
    sn.remove(&s, "mem", "old").await.unwrap();
    let shut = w.layers.gate.write().await;
    let near = sn.prepare(&s, "mem", "near", "", map(&[]));
    let far = sn.prepare(&s, "mem", "extract", "", target("far"));
    let meanwhile = async {
        while w.layers.keys().len() < 3 {
            tokio::task::yield_now().await;
        }
        w.collect().await;
        // What is being made stays; the remote one has no record yet and goes with the old one.
        assert_eq!(w.layers.keys(), ["one/2/near"]);
        drop(shut);
    };
    let (near, far, ()) = futures::join!(near, far, meanwhile);
    near.unwrap();
    // It was asked for again.
    assert_eq!(far.unwrap_err().kind(), Kind::AlreadyExists);
    for name in ["near", "far"] {
        sn.stat(&s.namespace, "mem", name).await.unwrap();
    }
}
