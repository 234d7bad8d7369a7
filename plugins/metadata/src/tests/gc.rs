//! What is kept and what goes.

use corten_core::protos::containerd::services::leases::v1::Resource;
use corten_core::protos::containerd::types::Sandbox;
use corten_core::snapshots::Commit;
use corten_core::{Digest, Scope};

use super::fakes::*;

const PAST: &str = "2001-01-01T00:00:00Z";
const FUTURE: &str = "2101-01-01T00:00:00Z";

async fn snapshot(w: &World, s: &Scope, name: &str, parent: &str, labels: &[(&str, &str)]) {
    let sn = w.md().snapshots();
    let key = format!("active-{name}");
    sn.prepare(s, "mem", &key, parent, map(&[])).await.unwrap();
    let commit = Commit {
        name: name.into(),
        key,
        labels: map(labels),
        ..Default::default()
    };
    sn.commit(s, "mem", commit).await.unwrap();
}

async fn snapshots(w: &World, s: &Scope) -> Vec<String> {
    let (sn, all) = (w.md().snapshots(), corten_core::filter::Filter::all());
    let found = sn.list(&s.namespace, "mem", &all).await.unwrap();
    found.into_iter().map(|i| i.name).collect()
}

fn digest(data: &[u8]) -> String {
    Digest::sha256(data).to_string()
}

#[tokio::test]
async fn an_image_keeps_what_its_labels_reach() {
    let w = World::new();
    let s = scope("one");
    let (layer, config, child) = (digest(b"layer"), digest(b"config"), digest(b"child"));
    snapshot(&w, &s, "bottom", "", &[]).await;
    snapshot(&w, &s, "top", "bottom", &[]).await;
    snapshot(&w, &s, "stray", "", &[]).await;
    w.blob(&s, b"layer", &[]).await;
    w.blob(&s, b"child", &[]).await;
    w.blob(
        &s,
        b"config",
        &[("containerd.io/gc.ref.snapshot.mem", "top")],
    )
    .await;
    w.blob(&s, b"stray", &[]).await;
    let refs = [
        ("containerd.io/gc.ref.content.l.0", layer.as_str()),
        ("containerd.io/gc.ref.content.config", config.as_str()),
        ("containerd.io/gc.ref.content/m", child.as_str()),
    ];
    w.blob(&s, b"manifest", &refs).await;
    w.image(&s, "i", b"manifest", &[]).await;
    w.events.take();
    assert_eq!(w.collect().await, 2);
    assert_eq!(w.blobs.blobs().len(), 4);
    assert_eq!(snapshots(&w, &s).await, ["bottom", "top"]);
    assert_eq!(w.layers.keys().len(), 2);
    assert_eq!(w.events.take(), ["one/snapshot/remove"]);
    assert_eq!(w.collect().await, 0);
    w.md().images().delete(&s, "i", None).await.unwrap();
    assert_eq!(w.collect().await, 6);
    assert!(w.blobs.blobs().is_empty() && w.layers.keys().is_empty());
}

#[tokio::test]
async fn leases_hold_until_they_end_and_flat_ones_only_what_they_name() {
    let w = World::new();
    let s = scope("one");
    let l = w.md().leases();
    for (id, labels) in [
        ("live", map(&[("containerd.io/gc.expire", FUTURE)])),
        ("dead", map(&[("containerd.io/gc.expire", PAST)])),
        ("flat", map(&[("containerd.io/gc.flat", "true")])),
        ("odd", map(&[("containerd.io/gc.expire", "tomorrow")])),
    ] {
        l.create(&s.namespace, id, labels).await.unwrap();
    }
    let refers = |to: &str| vec![("containerd.io/gc.ref.content.0".to_owned(), to.to_owned())];
    for lease in ["live", "dead", "flat", "odd"] {
        let part = format!("{lease}-part");
        w.blob(&s, part.as_bytes(), &[]).await;
        let labels = refers(&digest(part.as_bytes()));
        let labels: Vec<_> = labels
            .iter()
            .map(|(k, v)| (k.as_str(), v.as_str()))
            .collect();
        w.blob(
            &s.with_lease(lease),
            format!("{lease}-whole").as_bytes(),
            &labels,
        )
        .await;
    }
    w.collect().await;
    let has = |t: &str| w.blobs.blobs().contains(&Digest::sha256(t.as_bytes()));
    assert!(has("live-whole") && has("live-part") && has("odd-part"));
    assert!(!has("dead-whole") && !has("dead-part"));
    assert!(has("flat-whole") && !has("flat-part"));
    let left: Vec<_> = l
        .list(&s.namespace, &corten_core::filter::Filter::all())
        .await
        .unwrap()
        .into_iter()
        .map(|l| l.id)
        .collect();
    assert_eq!(
        left,
        ["flat", "live", "odd"],
        "an expired lease goes itself"
    );
    l.delete(&s.namespace, "live", false).await.unwrap();
    w.collect().await;
    assert!(!w.blobs.blobs().contains(&Digest::sha256(b"live-whole")));
}

#[tokio::test]
async fn images_expire_unless_something_refers_to_them() {
    let w = World::new();
    let s = scope("one");
    for (name, at) in [
        ("old", PAST),
        ("new", FUTURE),
        ("named", PAST),
        ("leased", PAST),
    ] {
        w.blob(&s, name.as_bytes(), &[]).await;
        w.image(
            &s,
            name,
            name.as_bytes(),
            &[("containerd.io/gc.expire", at)],
        )
        .await;
    }
    let mut c = container("c", "");
    c.labels = map(&[("containerd.io/gc.ref.image", "named")]);
    w.md().containers().create(&s, c).await.unwrap();
    w.md()
        .leases()
        .create(&s.namespace, "l", map(&[]))
        .await
        .unwrap();
    let held = Resource {
        id: "leased".into(),
        r#type: "images".into(),
    };
    w.md()
        .leases()
        .add_resource(&s.namespace, "l", held)
        .await
        .unwrap();
    w.events.take();
    assert_eq!(w.collect().await, 2);
    assert_eq!(w.events.take(), ["one/images/delete"]);
    assert!(w.md().images().get(&s.namespace, "old").await.is_err());
    for name in ["new", "named", "leased"] {
        w.md().images().get(&s.namespace, name).await.unwrap();
        assert!(
            w.has_blob(&s.namespace, &Digest::sha256(name.as_bytes()))
                .await,
            "{name}"
        );
    }
}

#[tokio::test]
async fn roots_containers_sandboxes_and_back_references_keep() {
    let w = World::new();
    let s = scope("one");
    snapshot(&w, &s, "base", "", &[]).await;
    w.md()
        .snapshots()
        .prepare(&s, "mem", "rw", "base", map(&[]))
        .await
        .unwrap();
    w.md()
        .snapshots()
        .prepare(&s, "mem", "idle", "base", map(&[]))
        .await
        .unwrap();
    snapshot(&w, &s, "rooted", "", &[("containerd.io/gc.root", "x")]).await;
    snapshot(&w, &s, "boxed", "", &[]).await;
    w.blob(&s, b"rooted", &[("containerd.io/gc.root", "x")])
        .await;
    w.blob(
        &s,
        b"of container",
        &[("containerd.io/gc.bref.container", "c")],
    )
    .await;
    w.blob(
        &s,
        b"of blob",
        &[("containerd.io/gc.bref.content.x", &digest(b"rooted"))],
    )
    .await;
    w.blob(
        &s,
        b"of snapshot",
        &[("containerd.io/gc.bref.snapshot.mem/x", "rw")],
    )
    .await;
    w.blob(
        &s,
        b"of nobody",
        &[("containerd.io/gc.bref.container", "d")],
    )
    .await;
    w.md()
        .containers()
        .create(&s, container("c", "rw"))
        .await
        .unwrap();
    let labels = map(&[("containerd.io/gc.ref.snapshot.mem", "boxed")]);
    let sandbox = Sandbox {
        sandbox_id: "s".into(),
        labels,
        ..Default::default()
    };
    w.md().sandboxes().create(&s, sandbox).await.unwrap();
    assert_eq!(w.collect().await, 2);
    assert_eq!(snapshots(&w, &s).await, ["base", "boxed", "rooted", "rw"]);
    for data in ["rooted", "of container", "of blob", "of snapshot"] {
        assert!(
            w.has_blob(&s.namespace, &Digest::sha256(data.as_bytes()))
                .await,
            "{data}"
        );
    }
    w.md().containers().delete(&s, "c").await.unwrap();
    w.md().sandboxes().delete(&s, "s").await.unwrap();
    w.collect().await;
    assert_eq!(snapshots(&w, &s).await, ["rooted"]);
    assert_eq!(w.blobs.blobs().len(), 2);
    // A collected child is no child any more.
    snapshot(&w, &s, "p", "rooted", &[]).await;
    w.collect().await;
    w.md()
        .snapshots()
        .remove(&s, "mem", "rooted")
        .await
        .unwrap();
}

#[tokio::test]
async fn conditions_keep_a_snapshot_while_it_is_used() {
    let w = World::new();
    let s = scope("one");
    let used = corten_core::protos::time::rfc3339(&corten_core::protos::time::now());
    snapshot(
        &w,
        &s,
        "fresh",
        "",
        &[("containerd.io/gc.cond.value-usedat", &used)],
    )
    .await;
    snapshot(
        &w,
        &s,
        "stale",
        "",
        &[("containerd.io/gc.cond.value-usedat", PAST)],
    )
    .await;
    let labels = [
        ("containerd.io/gc.cond.snapshot.mem/a", "usedat<1h|fresh"),
        ("containerd.io/gc.cond.snapshot.mem/b", "usedat<1h|stale"),
    ];
    w.blob(&s, b"m", &[]).await;
    w.image(&s, "i", b"m", &labels).await;
    w.collect().await;
    assert_eq!(snapshots(&w, &s).await, ["fresh"]);
}

#[tokio::test]
async fn open_ingests_and_leased_ones_stay_and_others_go_with_their_lease() {
    let mut w = World::new();
    let s = scope("one");
    w.md()
        .leases()
        .create(&s.namespace, "l", map(&[]))
        .await
        .unwrap();
    let open = |r: &str| corten_core::content::WriterOptions {
        r#ref: r.into(),
        ..Default::default()
    };
    w.md().content().writer(&s, open("day")).await.unwrap();
    w.md()
        .content()
        .writer(&s.with_lease("l"), open("leased"))
        .await
        .unwrap();
    assert_eq!(w.collect().await, 0);
    assert_eq!(w.blobs.ingests().len(), 2);
    w.reopen();
    w.collect().await;
    assert_eq!(w.blobs.ingests().len(), 2, "resumable after a restart");
    w.md()
        .leases()
        .delete(&s.namespace, "l", false)
        .await
        .unwrap();
    assert_eq!(w.collect().await, 1);
    assert_eq!(w.blobs.ingests(), ["one/1/day"]);
}

#[tokio::test]
async fn namespaces_do_not_keep_for_each_other_but_share_bytes() {
    let w = World::new();
    let (one, two) = (scope("one"), scope("two"));
    w.blob(&one, b"x", &[]).await;
    w.blob(&two, b"x", &[]).await;
    w.image(&one, "i", b"x", &[]).await;
    assert_eq!(w.collect().await, 1);
    assert!(w.has_blob(&one.namespace, &Digest::sha256(b"x")).await);
    assert!(!w.has_blob(&two.namespace, &Digest::sha256(b"x")).await);
    assert_eq!(w.blobs.blobs().len(), 1);
}

#[tokio::test]
async fn what_a_crash_left_in_the_backends_goes_at_the_next_start() {
    let mut w = World::new();
    let s = scope("one");
    w.blob(&s, b"x", &[]).await;
    w.image(&s, "i", b"x", &[]).await;
    w.collect().await;
    w.blobs.put(b"orphan");
    w.collect().await;
    assert_eq!(w.blobs.blobs().len(), 2, "a clean backend is not searched");
    w.reopen();
    w.collect().await;
    assert_eq!(w.blobs.blobs().len(), 1);
}

#[tokio::test]
async fn beside_containerds_database_nothing_is_swept() {
    let mut w = World::new();
    std::fs::write(w.root.path().join("meta.db"), b"bolt").unwrap();
    w.reopen();
    w.blobs.put(b"theirs");
    w.collect().await;
    assert_eq!(w.blobs.blobs().len(), 1);
}

/// Things of another store, by name with the lease and the labels that keep them.
#[derive(Default)]
struct Mounts(parking_lot::Mutex<Vec<corten_core::gc::Resource>>);

#[async_trait::async_trait]
impl corten_core::gc::Resources for Mounts {
    fn kind(&self) -> &'static str {
        "mount"
    }
    fn all(&self) -> Vec<corten_core::gc::Resource> {
        self.0.lock().clone()
    }
    async fn remove(&self, garbage: Vec<corten_core::gc::Resource>) -> corten_core::Result<()> {
        self.0.lock().retain(|r| !garbage.contains(r));
        Ok(())
    }
}

#[tokio::test]
async fn mounts_live_with_their_lease_their_container_and_who_names_them() {
    let w = World::new();
    let s = scope("one");
    let mounts = std::sync::Arc::new(Mounts::default());
    let add = |name: &str, lease: Option<&str>, labels: &[(&str, &str)]| {
        mounts.0.lock().push(corten_core::gc::Resource {
            namespace: s.namespace.clone(),
            name: name.into(),
            labels: map(labels),
            lease: lease.map(str::to_owned),
            active: name == "active",
            version: 1,
        });
    };
    add("active", None, &[]);
    add("leased", Some("l"), &[]);
    add("lost", Some("gone"), &[]);
    add("task", None, &[("containerd.io/gc.bref.container", "c")]);
    add("named", None, &[]);
    add("root", None, &[("containerd.io/gc.root", "x")]);
    w.md().collect_also(mounts.clone());
    let ns = &s.namespace;
    w.md().leases().create(ns, "l", map(&[])).await.unwrap();
    w.md()
        .containers()
        .create(&s, container("c", ""))
        .await
        .unwrap();
    let mut other = container("other", "");
    other.labels = map(&[("containerd.io/gc.ref.mount", "named")]);
    w.md().containers().create(&s, other).await.unwrap();
    let left = || {
        let all = mounts.0.lock();
        all.iter().map(|r| r.name.clone()).collect::<Vec<_>>()
    };
    w.collect().await;
    assert_eq!(left(), ["active", "leased", "task", "named"]);
    w.md().containers().delete(&s, "c").await.unwrap();
    w.md().leases().delete(ns, "l", true).await.unwrap();
    w.collect().await;
    assert_eq!(left(), ["active", "named"]);
}
