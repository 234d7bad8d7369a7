//! Namespaces, images, containers, sandboxes and leases: rules, texts, events, and that all survives a reopen.

use corten_core::filter::Filter;
use corten_core::protos::containerd::services::leases::v1::Resource;
use corten_core::protos::containerd::types::{Sandbox, sandbox};
use corten_core::{Any, Digest, Kind};

use super::fakes::*;

fn all() -> Filter {
    Filter::all()
}

fn filter(text: &str) -> Filter {
    Filter::parse(&[text]).unwrap()
}

#[tokio::test]
async fn namespaces_live_and_die_as_in_containerd() {
    let w = World::new();
    let n = w.md().namespaces();
    let one = ns("one");
    n.create(&one, map(&[("a", "1"), ("empty", "")]))
        .await
        .unwrap();
    fails(
        n.create(&one, map(&[])).await,
        Kind::AlreadyExists,
        "namespace \"one\": already exists",
    );
    assert_eq!(n.labels(&one).await.unwrap(), map(&[("a", "1")]));
    assert_eq!(n.labels(&ns("unknown")).await.unwrap(), map(&[]));
    let paths = ["labels.b".to_owned(), "labels.a".to_owned()];
    let updated = n
        .update(&one, map(&[("b", "2"), ("c", "3")]), &paths)
        .await
        .unwrap();
    assert_eq!(updated, map(&[("b", "2")]));
    fails(
        n.update(&one, map(&[]), &["name".to_owned()]).await,
        Kind::InvalidArgument,
        "cannot update \"name\" field on namespace \"one\": invalid argument",
    );
    w.image(&scope("one"), "i", b"x", &[]).await;
    w.blob(&scope("one"), b"x", &[]).await;
    w.md()
        .containers()
        .create(&scope("one"), container("c", "k"))
        .await
        .unwrap();
    w.md()
        .snapshots()
        .prepare(&scope("one"), "mem", "k", "", map(&[]))
        .await
        .unwrap();
    fails(
        n.delete(&one).await,
        Kind::FailedPrecondition,
        "namespace \"one\" must be empty, but it still has images, blobs, containers, snapshots on \"mem\" \
         snapshotter: failed precondition",
    );
    fails(
        n.delete(&ns("x")).await,
        Kind::NotFound,
        "namespace \"x\": not found",
    );
    w.md()
        .leases()
        .create(&ns("two"), "l", map(&[]))
        .await
        .unwrap();
    let names: Vec<_> = n.list().await.unwrap().into_iter().map(|p| p.0).collect();
    assert_eq!(names, ["one", "two"], "writes make namespaces");
    w.events.take();
    n.delete(&ns("two")).await.unwrap();
    assert_eq!(w.events.take(), ["two/namespaces/delete"]);
    assert!(
        w.md()
            .leases()
            .list(&ns("two"), &all())
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn images_are_checked() {
    let w = World::new();
    let s = scope("one");
    let images = w.md().images();
    let bad = |f: fn(&mut corten_core::protos::containerd::services::images::v1::Image)| {
        let mut i = image("i", b"x", &[]);
        f(&mut i);
        i
    };
    for (i, text) in [
        (
            bad(|i| i.name.clear()),
            "image name must not be empty: invalid argument",
        ),
        (
            bad(|i| i.target.as_mut().unwrap().size = 0),
            "target.Size must be greater than zero: invalid argument",
        ),
        (
            bad(|i| i.target.as_mut().unwrap().media_type.clear()),
            "target.MediaType must be set: invalid argument",
        ),
    ] {
        fails(images.create(&s, i).await, Kind::InvalidArgument, text);
    }
    let e = images
        .create(&s, bad(|i| i.target = None))
        .await
        .unwrap_err();
    assert!(
        e.to_string().starts_with("target.Digest \"\" invalid: "),
        "{e}"
    );
    let long = "x".repeat(4096);
    let e = images
        .create(&s, image("i", b"x", &[("k", &long)]))
        .await
        .unwrap_err();
    assert!(
        e.to_string()
            .starts_with("image.Labels: label key and value length"),
        "{e}"
    );
    let made = images
        .create(&s, image("i", b"x", &[("a", "1"), ("gone", "")]))
        .await
        .unwrap();
    assert!(made.created_at.is_some() && made.created_at == made.updated_at);
    assert_eq!(made.labels, map(&[("a", "1")]));
    fails(
        images.create(&s, image("i", b"x", &[])).await,
        Kind::AlreadyExists,
        "image \"i\": already exists",
    );
    fails(
        images.get(&ns("two"), "i").await,
        Kind::NotFound,
        "image \"i\": not found",
    );
}

#[tokio::test]
async fn images_take_the_times_that_they_come_with() {
    let w = World::new();
    let s = scope("one");
    let images = w.md().images();
    let at = |seconds| {
        Some(corten_core::Timestamp {
            seconds,
            ..Default::default()
        })
    };
    let mut epoch = image("i", b"x", &[]);
    epoch.created_at = at(1_000_000_000);
    let made = images.create(&s, epoch.clone()).await.unwrap();
    assert_eq!(
        (made.created_at, made.updated_at),
        (at(1_000_000_000), at(1_000_000_000))
    );
    epoch.created_at = at(5);
    epoch.updated_at = at(1_100_000_000);
    let updated = images.update(&s, epoch, &["labels".into()]).await.unwrap();
    assert_eq!(
        (updated.created_at, updated.updated_at),
        (at(1_000_000_000), at(1_100_000_000))
    );
}

#[tokio::test]
async fn images_are_updated_by_mask_and_deleted_by_target() {
    let mut w = World::new();
    let s = scope("one");
    let images = w.md().images();
    let made = images
        .create(&s, image("i", b"x", &[("a", "1")]))
        .await
        .unwrap();
    let mut change = image("i", b"yy", &[("a", ""), ("b", "2")]);
    change.target.as_mut().unwrap().annotations = map(&[("k", "v")]);
    let paths = |p: &[&str]| p.iter().map(|p| (*p).to_owned()).collect::<Vec<_>>();
    let u = images
        .update(&s, change.clone(), &paths(&["labels.b"]))
        .await
        .unwrap();
    assert_eq!(u.labels, map(&[("a", "1"), ("b", "2")]));
    assert_eq!(u.target.as_ref().unwrap().digest, descriptor(b"x").digest);
    let u = images
        .update(&s, change.clone(), &paths(&["labels.a", "annotations.k"]))
        .await
        .unwrap();
    assert_eq!(u.labels, map(&[("b", "2")]));
    assert_eq!(u.target.unwrap().annotations, map(&[("k", "v")]));
    fails(
        images.update(&s, change.clone(), &paths(&["size"])).await,
        Kind::InvalidArgument,
        "cannot update \"size\" field on image \"i\": invalid argument",
    );
    let u = images.update(&s, change, &[]).await.unwrap();
    assert_eq!((u.target.unwrap().size, u.created_at), (2, made.created_at));
    fails(
        images.delete(&s, "i", Some(descriptor(b"x"))).await,
        Kind::NotFound,
        &format!(
            "image \"i\" has target {}, not {}: not found",
            Digest::sha256(b"yy"),
            Digest::sha256(b"x")
        ),
    );
    w.image(&s, "docker.io/library/j:1", b"z", &[("k", "v")])
        .await;
    for (f, n) in [
        ("name~=busybox", 0),
        ("name==i", 1),
        ("labels.k==v", 1),
        ("target.mediatype==application/x", 2),
        ("annotations.k", 1),
        ("target.digest==x", 0),
    ] {
        assert_eq!(
            images.list(&s.namespace, &filter(f)).await.unwrap().len(),
            n,
            "{f}"
        );
    }
    images.delete(&s, "i", None).await.unwrap();
    fails(
        images.delete(&s, "i", None).await,
        Kind::NotFound,
        "image \"i\": not found",
    );
    let events = w.events.take();
    assert_eq!(
        events.iter().filter(|e| *e == "one/images/update").count(),
        3
    );
    assert_eq!(events.last().unwrap(), "one/images/delete");
    drop(images);
    w.reopen();
    assert_eq!(
        w.md()
            .images()
            .list(&s.namespace, &all())
            .await
            .unwrap()
            .len(),
        1
    );
}

#[tokio::test]
async fn containers_are_checked() {
    let w = World::new();
    let s = scope("one");
    let c = w.md().containers();
    let bad = |f: fn(&mut corten_core::protos::containerd::services::containers::v1::Container)| {
        let mut x = container("c", "");
        f(&mut x);
        x
    };
    for (x, text) in [
        (
            bad(|x| x.id = "a/b".into()),
            "container.ID: identifier \"a/b\" must match ^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$: invalid argument",
        ),
        (
            bad(|x| x.runtime = None),
            "container.Runtime.Name must be set: invalid argument",
        ),
        (
            bad(|x| x.spec = None),
            "container.Spec must be set: invalid argument",
        ),
        (
            bad(|x| {
                x.snapshotter.clear();
                x.snapshot_key = "k".into();
            }),
            "container.Snapshotter must be set if container.SnapshotKey is set: invalid argument",
        ),
        (
            bad(|x| {
                x.extensions.insert(String::new(), Any::default());
            }),
            "container.Extension keys must not be zero-length: invalid argument",
        ),
    ] {
        let text = format!("create container failed validation: {text}");
        fails(c.create(&s, x).await, Kind::InvalidArgument, &text);
    }
    c.create(&s, container("c", "k")).await.unwrap();
    fails(
        c.create(&s, container("c", "k")).await,
        Kind::AlreadyExists,
        "container \"c\": already exists",
    );
    fails(
        c.get(&s.namespace, "d").await,
        Kind::NotFound,
        "container \"d\" in namespace \"one\": not found",
    );
}

#[tokio::test]
async fn containers_are_updated_by_mask_and_announced() {
    let w = World::new();
    let s = scope("one");
    let c = w.md().containers();
    let made = c.create(&s, container("c", "k")).await.unwrap();
    let mut change = container("c", "other");
    change.labels = map(&[("a", "1")]);
    change.image = "new".into();
    let u = c
        .update(&s, change.clone(), &["labels.a".into(), "image".into()])
        .await
        .unwrap();
    assert_eq!((u.image.as_str(), u.snapshot_key.as_str()), ("new", "k"));
    assert_eq!(u.created_at, made.created_at);
    for (path, text) in [
        (
            "snapshotter",
            "cannot update \"snapshotter\" field on \"c\": invalid argument",
        ),
        (
            "runtime.name",
            "cannot update \"runtime.name\" field on \"c\": invalid argument",
        ),
    ] {
        fails(
            c.update(&s, change.clone(), &[path.into()]).await,
            Kind::InvalidArgument,
            text,
        );
    }
    change.snapshotter = "native".into();
    fails(
        c.update(&s, change.clone(), &[]).await,
        Kind::InvalidArgument,
        "container.Snapshotter field is immutable: invalid argument",
    );
    change.snapshotter = "mem".into();
    assert_eq!(
        c.update(&s, change, &[]).await.unwrap().snapshot_key,
        "other"
    );
    for (f, n) in [
        ("id==c", 1),
        ("runtime.name~=corten", 1),
        ("image==new", 1),
        ("labels.a==2", 0),
    ] {
        assert_eq!(
            c.list(&s.namespace, &filter(f)).await.unwrap().len(),
            n,
            "{f}"
        );
    }
    c.delete(&s, "c").await.unwrap();
    fails(
        c.delete(&s, "c").await,
        Kind::NotFound,
        "container c: not found",
    );
    assert_eq!(
        w.events.take(),
        ["create", "update", "update", "delete"].map(|e| format!("one/containers/{e}"))
    );
}

#[tokio::test]
async fn sandboxes_are_checked_and_masked() {
    let w = World::new();
    let s = scope("one");
    let store = w.md().sandboxes();
    let runtime = |n: &str| {
        Some(sandbox::Runtime {
            name: n.into(),
            options: None,
        })
    };
    let mut x = Sandbox {
        sandbox_id: "s".into(),
        runtime: runtime("r"),
        ..Default::default()
    };
    x.sandboxer = "shim".into();
    store.create(&s, x.clone()).await.unwrap();
    assert_eq!(
        store.create(&s, x.clone()).await.unwrap_err().kind(),
        Kind::AlreadyExists
    );
    assert_eq!(
        store
            .create(&s, Sandbox::default())
            .await
            .unwrap_err()
            .kind(),
        Kind::InvalidArgument
    );
    x.labels = map(&[("a", "1")]);
    x.extensions.insert("e".into(), Any::default());
    let u = store
        .update(&s, x.clone(), &["extensions.e".into()])
        .await
        .unwrap();
    assert!(u.labels.is_empty() && u.extensions.contains_key("e") && u.sandboxer == "shim");
    x.runtime = runtime("q");
    fails(
        store.update(&s, x.clone(), &[]).await,
        Kind::InvalidArgument,
        "sandbox.Runtime.Name field is immutable: invalid argument",
    );
    assert_eq!(
        store
            .update(&s, x, &["runtime".into()])
            .await
            .unwrap()
            .runtime,
        runtime("q")
    );
    assert_eq!(
        store
            .list(&s.namespace, &filter("id==s"))
            .await
            .unwrap()
            .len(),
        1
    );
    fails(
        store.get(&s.namespace, "t").await,
        Kind::NotFound,
        "bucket \"t\" not found: not found",
    );
    store.delete(&s, "s").await.unwrap();
    fails(
        store.delete(&s, "s").await,
        Kind::NotFound,
        "failed to delete sandbox \"s\": not found",
    );
}

#[tokio::test]
async fn leases_list_what_they_hold_and_refuse_what_they_cannot() {
    let w = World::new();
    let one = ns("one");
    let l = w.md().leases();
    l.create(&one, "l", map(&[("a", "1")])).await.unwrap();
    fails(
        l.create(&one, "l", map(&[])).await,
        Kind::AlreadyExists,
        "lease \"l\": already exists",
    );
    let random = l.create(&one, "", map(&[])).await.unwrap();
    assert!(!random.id.is_empty());
    assert_eq!(
        l.list(&one, &filter("labels.a==1")).await.unwrap()[0].id,
        "l"
    );
    let r = |t: &str, id: &str| Resource {
        id: id.into(),
        r#type: t.into(),
    };
    let digest = Digest::sha256(b"x").to_string();
    let held = [
        r("content", &digest),
        r("images", "i"),
        r("ingests", "g"),
        r("snapshots/mem", "k"),
    ];
    for x in &held {
        l.add_resource(&one, "l", x.clone()).await.unwrap();
    }
    assert_eq!(l.resources(&one, "l").await.unwrap(), held);
    for (x, kind, text) in [
        (
            r("mounts", "m"),
            Kind::NotImplemented,
            "resource type mounts not supported yet: not implemented",
        ),
        (
            r("snapshots", "k"),
            Kind::InvalidArgument,
            "invalid snapshot resource type snapshots: invalid argument",
        ),
        (
            r("images/x", "k"),
            Kind::InvalidArgument,
            "invalid resource type images/x: invalid argument",
        ),
    ] {
        fails(l.add_resource(&one, "l", x).await, kind, text);
    }
    let e = l
        .add_resource(&one, "l", r("content", "x"))
        .await
        .unwrap_err();
    assert_eq!(e.kind(), Kind::InvalidArgument);
    fails(
        l.add_resource(&one, "m", r("images", "i")).await,
        Kind::NotFound,
        "lease \"m\": not found",
    );
}

#[tokio::test]
async fn a_deleted_lease_leaves_nothing_to_a_new_one_of_its_name() {
    let w = World::new();
    let one = ns("one");
    let l = w.md().leases();
    l.create(&one, "l", map(&[])).await.unwrap();
    let r = |t: &str, id: &str| Resource {
        id: id.into(),
        r#type: t.into(),
    };
    for x in [
        r("images", "i"),
        r("ingests", "g"),
        r("snapshots/mem", "k"),
        r("ingests", "h"),
    ] {
        l.add_resource(&one, "l", x).await.unwrap();
    }
    l.delete_resource(&one, "l", r("images", "i"))
        .await
        .unwrap();
    assert_eq!(l.resources(&one, "l").await.unwrap().len(), 3);
    l.delete(&one, "l", false).await.unwrap();
    fails(
        l.delete(&one, "l", false).await,
        Kind::NotFound,
        "lease \"l\": not found",
    );
    fails(
        l.resources(&one, "l").await,
        Kind::NotFound,
        "lease \"l\": not found",
    );
    l.create(&one, "l", map(&[])).await.unwrap();
    assert!(
        l.resources(&one, "l").await.unwrap().is_empty(),
        "a new lease of the name holds nothing"
    );
}

#[tokio::test]
async fn a_lease_that_does_not_exist_fails_every_write() {
    let w = World::new();
    let s = scope("one").with_lease("nope");
    let text = "lease does not exist: not found";
    let expiring = [("containerd.io/gc.expire", "2100-01-01T00:00:00Z")];
    fails(
        w.md()
            .images()
            .create(&s, image("i", b"x", &expiring))
            .await,
        Kind::NotFound,
        text,
    );
    let snapshots = w.md().snapshots();
    fails(
        snapshots.prepare(&s, "mem", "k", "", map(&[])).await,
        Kind::NotFound,
        text,
    );
    let options = corten_core::content::WriterOptions {
        r#ref: "r".into(),
        ..Default::default()
    };
    fails(
        w.md().content().writer(&s, options).await.map(|_| ()),
        Kind::NotFound,
        text,
    );
    assert!(
        w.layers.keys().is_empty() && w.blobs.ingests().is_empty(),
        "nothing was left behind"
    );
    assert!(
        w.md().namespaces().list().await.unwrap().is_empty(),
        "failed writes make no namespace"
    );
}
