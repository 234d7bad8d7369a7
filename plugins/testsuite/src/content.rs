//! What every content back end must do.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use corten_core::content::{Backend, Reader, WriterOptions};
use corten_core::{Digest, Kind, Labels};

type Store = Arc<dyn Backend>;

/// Runs the suite on the stores that `open` makes in a folder.
pub async fn suite<F, Fut>(open: F)
where
    F: Fn(PathBuf) -> Fut,
    Fut: Future<Output = Store>,
{
    macro_rules! cases {
        ($($case:ident),* $(,)?) => {$({
            eprintln!("content: {}", stringify!($case));
            let dir = tempfile::tempdir().unwrap();
            $case(open(dir.path().to_owned()).await).await;
        })*};
    }
    cases!(
        a_blob_is_written_and_read,
        blobs_are_listed_and_deleted,
        what_is_absent_is_not_found,
        a_ref_has_one_writer,
        a_dropped_writer_is_resumed,
        truncate_goes_back,
        a_wrong_size_or_digest_is_refused,
        an_existing_blob_is_not_written_again,
        abort_removes_the_ingest,
        statuses_are_listed,
        other_algorithms_work,
        an_empty_blob_is_a_blob,
        a_closed_writer_says_so,
        strange_refs_are_refs,
    );
    let dir = tempfile::tempdir().unwrap();
    eprintln!("content: an_ingest_survives_a_restart");
    an_ingest_survives_a_restart(dir.path(), &open).await;
}

fn options(r#ref: &str, data: &[u8]) -> WriterOptions {
    WriterOptions {
        r#ref: r#ref.into(),
        total: data.len() as u64,
        expected: Some(Digest::sha256(data)),
        ..Default::default()
    }
}

async fn put(store: &Store, data: &[u8]) -> Digest {
    let digest = Digest::sha256(data);
    let mut w = store
        .writer(options(&format!("put-{digest}"), data))
        .await
        .unwrap();
    w.write(Bytes::copy_from_slice(data)).await.unwrap();
    w.commit(data.len() as u64, Some(digest.clone()), Labels::new())
        .await
        .unwrap();
    digest
}

async fn get(store: &Store, digest: &Digest) -> Vec<u8> {
    let mut out = Vec::new();
    let reader = store.reader_at(digest).await.unwrap();
    std::io::Read::read_to_end(&mut Reader::new(reader), &mut out).unwrap();
    out
}

async fn kind_of_writer(store: &Store, options: WriterOptions) -> Option<Kind> {
    store.writer(options).await.err().map(|e| e.kind())
}

async fn a_blob_is_written_and_read(store: Store) {
    let data: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
    let digest = Digest::sha256(&data);
    let mut w = store.writer(options("ref", &data)).await.unwrap();
    for chunk in data.chunks(77_777) {
        w.write(Bytes::copy_from_slice(chunk)).await.unwrap();
    }
    assert_eq!(
        (w.status().offset, w.digest()),
        (data.len() as u64, digest.clone())
    );
    assert_eq!(
        store.info(&digest).await.unwrap_err().kind(),
        Kind::NotFound
    );
    w.commit(data.len() as u64, Some(digest.clone()), Labels::new())
        .await
        .unwrap();
    assert!(get(&store, &digest).await == data);
    let info = store.info(&digest).await.unwrap();
    assert_eq!((info.size, &info.digest), (data.len() as u64, &digest));
    let reader = store.reader_at(&digest).await.unwrap();
    let mut some = [0; 8];
    assert_eq!(reader.read_at(&mut some, 4).unwrap(), 8);
    assert_eq!(some, data[4..12]);
    assert_eq!(reader.read_at(&mut some, data.len() as u64).unwrap(), 0);
    assert!(store.list_statuses().await.unwrap().is_empty());
}

async fn blobs_are_listed_and_deleted(store: Store) {
    assert!(store.list().await.unwrap().is_empty());
    let mut want = vec![put(&store, b"a").await, put(&store, b"b").await];
    want.sort();
    let listed = store.list().await.unwrap();
    let mut digests: Vec<_> = listed.into_iter().map(|i| i.digest).collect();
    digests.sort();
    assert_eq!(digests, want);
    store.delete(&want[0]).await.unwrap();
    assert_eq!(
        store.delete(&want[0]).await.unwrap_err().kind(),
        Kind::NotFound
    );
    assert_eq!(store.list().await.unwrap().len(), 1);
}

async fn what_is_absent_is_not_found(store: Store) {
    let digest = Digest::sha256(b"absent");
    let e = store.info(&digest).await.unwrap_err();
    assert_eq!(e.kind(), Kind::NotFound);
    assert!(
        e.to_string()
            .ends_with(&format!("content {digest}: not found")),
        "{e}"
    );
    assert_eq!(
        store.reader_at(&digest).await.err().unwrap().kind(),
        Kind::NotFound
    );
    assert_eq!(
        store.delete(&digest).await.unwrap_err().kind(),
        Kind::NotFound
    );
    assert_eq!(
        store.status("absent").await.unwrap_err().kind(),
        Kind::NotFound
    );
    assert_eq!(
        store.abort("absent").await.unwrap_err().kind(),
        Kind::NotFound
    );
}

async fn a_ref_has_one_writer(store: Store) {
    let first = store.writer(options("ref", b"data")).await.unwrap();
    let e = store.writer(options("ref", b"data")).await.err().unwrap();
    assert_eq!(e.kind(), Kind::Unavailable);
    assert!(e.to_string().starts_with("ref ref locked for "), "{e}");
    assert_eq!(
        kind_of_writer(&store, options("other", b"data")).await,
        None
    );
    drop(first);
    assert_eq!(kind_of_writer(&store, options("ref", b"data")).await, None);
}

async fn a_dropped_writer_is_resumed(store: Store) {
    let mut w = store.writer(options("ref", b"hello world")).await.unwrap();
    w.write(Bytes::from_static(b"hello ")).await.unwrap();
    drop(w);
    let status = store.status("ref").await.unwrap();
    assert_eq!(
        (status.r#ref.as_str(), status.offset, status.total),
        ("ref", 6, 11)
    );
    let mut w = store.writer(options("ref", b"hello world")).await.unwrap();
    assert_eq!(
        (w.status().offset, w.digest()),
        (6, Digest::sha256(b"hello "))
    );
    w.write(Bytes::from_static(b"world")).await.unwrap();
    w.commit(11, Some(Digest::sha256(b"hello world")), Labels::new())
        .await
        .unwrap();
    assert_eq!(
        get(&store, &Digest::sha256(b"hello world")).await,
        b"hello world"
    );
}

async fn an_ingest_survives_a_restart<F, Fut>(dir: &Path, open: &F)
where
    F: Fn(PathBuf) -> Fut,
    Fut: Future<Output = Store>,
{
    let store = open(dir.to_owned()).await;
    let blob = put(&store, b"a blob").await;
    let mut w = store
        .writer(options("ns/1/ref", b"hello world"))
        .await
        .unwrap();
    w.write(Bytes::from_static(b"hello ")).await.unwrap();
    let before = w.status();
    drop((w, store));
    let store = open(dir.to_owned()).await;
    assert_eq!(get(&store, &blob).await, b"a blob");
    let mut w = store
        .writer(options("ns/1/ref", b"hello world"))
        .await
        .unwrap();
    assert_eq!(
        (w.status().offset, w.status().started_at),
        (6, before.started_at)
    );
    w.write(Bytes::from_static(b"world")).await.unwrap();
    w.commit(0, Some(Digest::sha256(b"hello world")), Labels::new())
        .await
        .unwrap();
}

async fn truncate_goes_back(store: Store) {
    let mut w = store.writer(options("ref", b"new!")).await.unwrap();
    w.write(Bytes::from_static(b"old and long")).await.unwrap();
    w.truncate(0).await.unwrap();
    assert_eq!((w.status().offset, w.digest()), (0, Digest::sha256(b"")));
    w.write(Bytes::from_static(b"new!")).await.unwrap();
    w.commit(4, Some(Digest::sha256(b"new!")), Labels::new())
        .await
        .unwrap();
    assert_eq!(get(&store, &Digest::sha256(b"new!")).await, b"new!");
}

async fn a_wrong_size_or_digest_is_refused(store: Store) {
    let good = Digest::sha256(b"data");
    let mut w = store.writer(options("size", b"data")).await.unwrap();
    w.write(Bytes::from_static(b"data")).await.unwrap();
    let e = w
        .commit(5, Some(good.clone()), Labels::new())
        .await
        .unwrap_err();
    assert_eq!(e.kind(), Kind::FailedPrecondition);
    assert_eq!(
        e.to_string(),
        "unexpected commit size 4, expected 5: failed precondition"
    );
    drop(w);
    let mut w = store.writer(options("digest", b"data")).await.unwrap();
    w.write(Bytes::from_static(b"DATA")).await.unwrap();
    let e = w
        .commit(4, Some(good.clone()), Labels::new())
        .await
        .unwrap_err();
    assert_eq!(e.kind(), Kind::FailedPrecondition);
    let text = format!(
        "unexpected commit digest {}, expected {good}: ",
        Digest::sha256(b"DATA")
    );
    assert!(e.to_string().starts_with(&text), "{e}");
    assert!(store.list().await.unwrap().is_empty());
    // The ref is free again, and what was written is still there.
    assert_eq!(
        store
            .writer(options("digest", b"data"))
            .await
            .unwrap()
            .status()
            .offset,
        4
    );
}

async fn an_existing_blob_is_not_written_again(store: Store) {
    let mut late = store
        .writer(WriterOptions {
            r#ref: "late".into(),
            ..Default::default()
        })
        .await
        .unwrap();
    let digest = put(&store, b"data").await;
    assert_eq!(
        kind_of_writer(&store, options("ref", b"data")).await,
        Some(Kind::AlreadyExists)
    );
    late.write(Bytes::from_static(b"data")).await.unwrap();
    let e = late
        .commit(4, Some(digest.clone()), Labels::new())
        .await
        .unwrap_err();
    assert_eq!(e.kind(), Kind::AlreadyExists);
    assert_eq!(e.to_string(), format!("content {digest}: already exists"));
    assert_eq!(
        store.status("late").await.unwrap_err().kind(),
        Kind::NotFound
    );
}

async fn abort_removes_the_ingest(store: Store) {
    let mut w = store.writer(options("ref", b"data")).await.unwrap();
    w.write(Bytes::from_static(b"da")).await.unwrap();
    drop(w);
    store.abort("ref").await.unwrap();
    assert_eq!(
        store.status("ref").await.unwrap_err().kind(),
        Kind::NotFound
    );
    assert_eq!(
        store
            .writer(options("ref", b"data"))
            .await
            .unwrap()
            .status()
            .offset,
        0
    );
}

async fn statuses_are_listed(store: Store) {
    let mut w = store.writer(options("a", b"data")).await.unwrap();
    w.write(Bytes::from_static(b"da")).await.unwrap();
    let _other = store.writer(options("b", b"more data")).await.unwrap();
    let mut listed = store.list_statuses().await.unwrap();
    listed.sort_by(|x, y| x.r#ref.cmp(&y.r#ref));
    let facts: Vec<_> = listed
        .iter()
        .map(|s| (s.r#ref.as_str(), s.offset, s.total))
        .collect();
    assert_eq!(facts, [("a", 2, 4), ("b", 0, 9)]);
    assert!(listed[0].started_at <= listed[0].updated_at);
}

async fn other_algorithms_work(store: Store) {
    // sha512 of "abc", from FIPS 180-2.
    let digest = Digest::parse(
        "sha512:ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
         2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
    )
    .unwrap();
    let open = WriterOptions {
        r#ref: "r".into(),
        expected: Some(digest.clone()),
        ..Default::default()
    };
    let mut w = store.writer(open).await.unwrap();
    w.write(Bytes::from_static(b"abc")).await.unwrap();
    assert_eq!(w.digest(), digest);
    w.commit(3, Some(digest.clone()), Labels::new())
        .await
        .unwrap();
    assert_eq!(get(&store, &digest).await, b"abc");
    store.delete(&digest).await.unwrap();
    // Learned only at the commit.
    let open = WriterOptions {
        r#ref: "r".into(),
        ..Default::default()
    };
    let mut w = store.writer(open).await.unwrap();
    w.write(Bytes::from_static(b"abc")).await.unwrap();
    w.commit(3, Some(digest.clone()), Labels::new())
        .await
        .unwrap();
    assert_eq!(store.list().await.unwrap()[0].digest, digest);
}

async fn an_empty_blob_is_a_blob(store: Store) {
    let digest = put(&store, b"").await;
    assert_eq!(get(&store, &digest).await, b"");
    assert_eq!(store.info(&digest).await.unwrap().size, 0);
}

async fn a_closed_writer_says_so(store: Store) {
    let mut w = store.writer(options("ref", b"x")).await.unwrap();
    w.write(Bytes::from_static(b"x")).await.unwrap();
    w.commit(1, None, Labels::new()).await.unwrap();
    assert_eq!(w.digest(), Digest::sha256(b"x"));
    let e = w.commit(1, None, Labels::new()).await.unwrap_err();
    assert_eq!(e.kind(), Kind::FailedPrecondition);
    assert!(w.write(Bytes::from_static(b"y")).await.is_err());
}

async fn strange_refs_are_refs(store: Store) {
    for r#ref in ["../../etc/passwd", "/", "a b\nc", &"long".repeat(1000)] {
        let w = store.writer(options(r#ref, b"x")).await.unwrap();
        assert_eq!(w.status().r#ref, r#ref);
        assert_eq!(store.status(r#ref).await.unwrap().r#ref, r#ref);
        drop(w);
        store.abort(r#ref).await.unwrap();
    }
    assert_eq!(
        kind_of_writer(&store, options("", b"x")).await,
        Some(Kind::InvalidArgument)
    );
}
