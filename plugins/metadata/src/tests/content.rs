//! Content of several namespaces over one backend.

use bytes::Bytes;
use corten_core::content::{Info, WriterOptions, read_blob};
use corten_core::filter::Filter;
use corten_core::protos::any;
use corten_core::protos::containerd::events::ContentCreate;
use corten_core::{Digest, Kind};

use super::fakes::*;

fn options(r#ref: &str, data: Option<&[u8]>) -> WriterOptions {
    WriterOptions {
        r#ref: r#ref.into(),
        total: data.map_or(0, |d| d.len() as u64),
        expected: data.map(Digest::sha256),
        media_type: "application/x".into(),
    }
}

#[tokio::test]
async fn a_blob_is_written_read_labelled_and_deleted() {
    let w = World::new();
    let (s, c) = (scope("one"), w.md().content());
    let mut writer = c.writer(&s, options("r", Some(b"hello"))).await.unwrap();
    writer.write(Bytes::from_static(b"hel")).await.unwrap();
    let second = c.writer(&s, options("r", Some(b"hello"))).await;
    assert_eq!(second.map(|_| ()).unwrap_err().kind(), Kind::Unavailable);
    assert_eq!(c.status(&s.namespace, "r").await.unwrap().offset, 3);
    drop(writer);
    let mut writer = c.writer(&s, options("r", Some(b"hello"))).await.unwrap();
    assert_eq!(
        (writer.status().offset, writer.status().r#ref.as_str()),
        (3, "r"),
        "resumed"
    );
    writer.write(Bytes::from_static(b"lo")).await.unwrap();
    fails(
        writer.commit(7, None, map(&[])).await,
        Kind::FailedPrecondition,
        "\"r\" failed size validation: 5 != 7: failed precondition",
    );
    let e = writer
        .commit(5, Some(Digest::sha256(b"x")), map(&[]))
        .await
        .unwrap_err();
    assert_eq!(e.kind(), Kind::FailedPrecondition);
    writer
        .commit(5, Some(Digest::sha256(b"hello")), map(&[("a", "1")]))
        .await
        .unwrap();
    let digest = Digest::sha256(b"hello");
    let info = c.info(&s.namespace, &digest).await.unwrap();
    assert_eq!((info.size, info.labels.clone()), (5, map(&[("a", "1")])));
    assert_eq!(
        read_blob(&*c, &s.namespace, &digest, 10).await.unwrap(),
        b"hello"
    );
    assert!(
        c.list_statuses(&s.namespace, &Filter::all())
            .await
            .unwrap()
            .is_empty()
    );
    let change = Info {
        labels: map(&[("b", "2")]),
        ..info
    };
    let updated = c
        .update(&s.namespace, change.clone(), &["labels.b".into()])
        .await
        .unwrap();
    assert_eq!(updated.labels, map(&[("a", "1"), ("b", "2")]));
    fails(
        c.update(&s.namespace, change, &["size".into()]).await,
        Kind::InvalidArgument,
        &format!("cannot update \"size\" field on content info \"{digest}\": invalid argument"),
    );
    let events = w.events.take_all();
    assert_eq!(events[0].0, "one/content/create");
    let event: ContentCreate = any::unpack(&events[0].1).unwrap();
    assert_eq!(
        (event.size, event.media_type.as_str()),
        (5, "application/x")
    );
    let unknown = format!("content digest {digest}: not found");
    fails(c.info(&ns("two"), &digest).await, Kind::NotFound, &unknown);
    fails(
        c.reader_at(&ns("two"), &digest).await.map(|_| ()),
        Kind::NotFound,
        &unknown,
    );
    c.delete(&s, &digest).await.unwrap();
    fails(c.delete(&s, &digest).await, Kind::NotFound, &unknown);
    assert_eq!(w.events.take(), ["one/content/delete"]);
    assert_eq!(w.blobs.blobs().len(), 1, "bytes go with the collection");
    w.collect().await;
    assert!(w.blobs.blobs().is_empty());
}

#[tokio::test]
async fn an_existing_blob_is_an_error_that_leases() {
    let w = World::new();
    let (s, c, l) = (scope("one"), w.md().content(), w.md().leases());
    let digest = w.blob(&s, b"x", &[]).await;
    l.create(&s.namespace, "l", map(&[])).await.unwrap();
    let leased = s.with_lease("l");
    fails(
        c.writer(&leased, options("r", Some(b"x")))
            .await
            .map(|_| ()),
        Kind::AlreadyExists,
        &format!("content {digest}: already exists"),
    );
    let held = l.resources(&s.namespace, "l").await.unwrap();
    assert_eq!((held.len(), held[0].id.as_str()), (1, digest.as_str()));
    // Nobody said which digest: found out at commit, and leased all the same.
    l.create(&s.namespace, "m", map(&[])).await.unwrap();
    let leased = s.with_lease("m");
    let mut writer = c.writer(&leased, options("r", None)).await.unwrap();
    assert_eq!(
        l.resources(&s.namespace, "m").await.unwrap()[0].r#type,
        "ingests"
    );
    writer.write(Bytes::from_static(b"x")).await.unwrap();
    fails(
        writer.commit(0, None, map(&[])).await,
        Kind::AlreadyExists,
        &format!("content {digest}: already exists"),
    );
    let held = l.resources(&s.namespace, "m").await.unwrap();
    assert_eq!((held.len(), held[0].r#type.as_str()), (1, "content"));
}

#[tokio::test]
async fn shared_blobs_are_linked_without_bytes() {
    let w = World::new();
    w.blob(&scope("one"), b"hello", &[]).await;
    let (s, c) = (scope("two"), w.md().content());
    let mut writer = c.writer(&s, options("r", Some(b"hello"))).await.unwrap();
    assert_eq!(
        (writer.status().offset, writer.digest()),
        (5, Digest::sha256(b"hello"))
    );
    assert!(w.blobs.ingests().is_empty());
    // The other namespace deletes it: the ingest keeps the bytes.
    w.md()
        .content()
        .delete(&scope("one"), &Digest::sha256(b"hello"))
        .await
        .unwrap();
    w.collect().await;
    assert_eq!(w.blobs.blobs().len(), 1);
    fails(
        writer.commit(4, None, map(&[])).await,
        Kind::FailedPrecondition,
        "\"r\" failed size validation: 5 != 4: failed precondition",
    );
    writer.commit(5, None, map(&[])).await.unwrap();
    assert!(w.has_blob(&s.namespace, &Digest::sha256(b"hello")).await);
}

#[tokio::test]
async fn a_shared_writer_that_is_written_to_has_the_bytes_so_far() {
    let w = World::new();
    w.blob(&scope("one"), b"hello", &[]).await;
    let (s, c) = (scope("two"), w.md().content());
    let mut writer = c.writer(&s, options("r", Some(b"hello"))).await.unwrap();
    writer.write(Bytes::from_static(b" world")).await.unwrap();
    writer
        .commit(11, Some(Digest::sha256(b"hello world")), map(&[]))
        .await
        .unwrap();
    let mut writer = c.writer(&s, options("r", Some(b"hello"))).await.unwrap();
    writer.truncate(4).await.unwrap();
    assert_eq!(writer.status().offset, 4);
    writer
        .commit(4, Some(Digest::sha256(b"hell")), map(&[]))
        .await
        .unwrap();
}

#[tokio::test]
async fn isolated_namespaces_bring_their_own_bytes_unless_one_shares() {
    let w = World::with(true);
    w.blob(&scope("one"), b"hello", &[]).await;
    let (s, c) = (scope("two"), w.md().content());
    let mut writer = c.writer(&s, options("r", Some(b"hello"))).await.unwrap();
    assert_eq!(writer.status().offset, 0);
    writer.write(Bytes::from_static(b"hello")).await.unwrap();
    writer.commit(5, None, map(&[])).await.unwrap();
    assert!(w.has_blob(&s.namespace, &Digest::sha256(b"hello")).await);
    let shareable = map(&[("containerd.io/namespace.shareable", "true")]);
    w.md()
        .namespaces()
        .update(&ns("one"), shareable, &[])
        .await
        .unwrap();
    let writer = c
        .writer(&scope("three"), options("r", Some(b"hello")))
        .await
        .unwrap();
    assert_eq!(writer.status().offset, 5);
}

#[tokio::test]
async fn ingests_are_aborted_and_listed_by_namespace() {
    let w = World::new();
    let (s, c) = (scope("one"), w.md().content());
    for r in ["a", "b"] {
        c.writer(&s, options(r, None)).await.unwrap();
    }
    let statuses = c
        .list_statuses(&s.namespace, &Filter::parse(&["ref==a"]).unwrap())
        .await
        .unwrap();
    assert_eq!(
        statuses
            .iter()
            .map(|s| s.r#ref.as_str())
            .collect::<Vec<_>>(),
        ["a"]
    );
    assert!(
        c.list_statuses(&ns("two"), &Filter::all())
            .await
            .unwrap()
            .is_empty()
    );
    c.abort(&s, "a").await.unwrap();
    fails(
        c.abort(&s, "a").await,
        Kind::NotFound,
        "reference a: not found",
    );
    assert_eq!(w.blobs.ingests().len(), 1);
    fails(
        c.status(&s.namespace, "a").await,
        Kind::NotFound,
        "reference a: not found",
    );
    fails(
        c.writer(&s, options("", None)).await.map(|_| ()),
        Kind::InvalidArgument,
        "ref must not be empty: invalid argument",
    );
}
