//! `ctr content` and `ctr leases`.

use corten_integration::case::Case;
use corten_integration::images;
use corten_integration::runner::{Test, with_both_clients};
use corten_integration::tests;

pub(crate) fn tests() -> Vec<Test> {
    let mut all = with_both_clients(tests![
        lists_what_an_image_needs,
        gives_the_bytes_back,
        labels_content,
        creates_lists_and_removes_leases,
    ]);
    let mut quiet = with_both_clients(tests![takes_bytes_in, refuses_a_digest_that_does_not_fit]);
    quiet.extend(tests![
        refuses_a_size_that_does_not_fit,
        removes_content,
        takes_the_same_bytes_twice,
        takes_large_content,
        shares_bytes_between_namespaces,
        collects_what_nothing_refers_to,
    ]);
    all.extend(quiet.into_iter().map(Test::quiet_daemon));
    all
}

fn ingest(c: &Case, flags: &str, bytes: &[u8]) -> corten_integration::process::Done {
    // ctr goes on where an earlier ingest of the same name stopped, for which it must seek.
    let file = c.file("bytes");
    std::fs::write(&file, bytes).unwrap();
    c.ctr("content ingest")
        .words(flags)
        .arg("some-ref")
        .stdin_file(&file)
        .run()
}

fn lists_what_an_image_needs(c: &Case) {
    let image = images::busybox();
    c.has(&image);
    // The archive's own index may be there as well, until it is collected.
    let digests = c.list("content ls -q");
    assert!(
        image.blobs.keys().all(|digest| digests.contains(digest)),
        "{digests:?}"
    );
    assert!(digests.len() <= image.blobs.len() + 1, "{digests:?}");
    let table = c.ctr("content ls").ok();
    assert!(table.starts_with("DIGEST"), "{table}");
}

fn gives_the_bytes_back(c: &Case) {
    let image = images::busybox();
    c.has(&image);
    for (digest, blob) in &image.blobs {
        let done = c.ctr("content get").arg(digest).run();
        done.expect_code(0);
        assert!(done.stdout == blob.bytes, "{digest} differs");
    }
}

fn takes_bytes_in(c: &Case) {
    let digest = images::digest_of(b"hello");
    let flags = format!("--expected-digest {digest} --expected-size 5");
    ingest(c, &flags, b"hello").expect_code(0);
    c.ctr("content get").arg(&digest).prints("hello");
    assert!(c.column("content active").is_empty());
    c.ctr("content rm").arg(&digest).ok();
}

fn refuses_a_digest_that_does_not_fit(c: &Case) {
    let wrong = images::digest_of(b"something else");
    let done = ingest(c, &format!("--expected-digest {wrong}"), b"hello");
    let right = images::digest_of(b"hello");
    let text = format!("unexpected commit digest {right}, expected {wrong}: failed precondition");
    assert!(
        done.code() == 1 && done.err().contains(&text),
        "{}",
        done.report()
    );
    assert!(c.list("content ls -q").is_empty());
    // The bytes wait for a better commit.
    assert_eq!(c.column("content active"), ["some-ref"]);
    ingest(c, &format!("--expected-digest {right}"), b"hello").expect_code(0);
    c.ctr("content rm").arg(&right).ok();
}

fn refuses_a_size_that_does_not_fit(c: &Case) {
    let digest = images::digest_of(b"hello");
    let done = ingest(
        c,
        &format!("--expected-digest {digest} --expected-size 4"),
        b"hello",
    );
    assert_ne!(done.code(), 0, "{}", done.report());
    assert!(c.list("content ls -q").is_empty());
    ingest(c, &format!("--expected-digest {digest}"), b"hello").expect_code(0);
    c.ctr("content rm").arg(&digest).ok();
}

fn labels_content(c: &Case) {
    let image = images::busybox();
    c.has(&image);
    let out = c
        .ctr("content label")
        .args([&image.digest, "color=rust"])
        .ok();
    assert!(out.contains("color=rust"), "{out}");
    assert_eq!(
        c.list("content ls -q labels.color==rust"),
        std::slice::from_ref(&image.digest)
    );
    c.ctr("content label").args([&image.digest, "color="]).ok();
    assert!(c.list("content ls -q labels.color==rust").is_empty());
}

fn removes_content(c: &Case) {
    let digest = images::digest_of(b"gone soon");
    ingest(c, &format!("--expected-digest {digest}"), b"gone soon").expect_code(0);
    c.ctr("content rm").arg(&digest).ok();
    c.ctr("content get").arg(&digest).fails("not found");
}

fn takes_the_same_bytes_twice(c: &Case) {
    let digest = images::digest_of(b"twice");
    let flags = format!("--expected-digest {digest}");
    ingest(c, &flags, b"twice").expect_code(0);
    ingest(c, &flags, b"twice").expect_code(0);
    assert_eq!(c.list("content ls -q"), std::slice::from_ref(&digest));
    c.ctr("content rm").arg(&digest).ok();
}

fn takes_large_content(c: &Case) {
    let bytes: Vec<u8> = (0..20_000_000_u32).map(|n| (n >> 3) as u8).collect();
    let digest = images::digest_of(&bytes);
    ingest(
        c,
        &format!("--expected-digest {digest} --expected-size {}", bytes.len()),
        &bytes,
    )
    .expect_code(0);
    let done = c.ctr("content get").arg(&digest).run();
    assert!(
        done.stdout == bytes,
        "{} bytes came back",
        done.stdout.len()
    );
    c.ctr("content rm").arg(&digest).ok();
}

fn shares_bytes_between_namespaces(c: &Case) {
    let other = format!("{}-b", c.namespace);
    let digest = images::digest_of(b"shared");
    let flags = format!("--expected-digest {digest}");
    ingest(c, &flags, b"shared").expect_code(0);
    let there = |words: &str| c.ctr("-n").arg(&other).words(words);
    there("content get").arg(&digest).fails("not found");
    let second = there("content ingest")
        .words(&flags)
        .arg("r")
        .stdin_file(&c.file("bytes"));
    second.run().expect_code(0);
    c.ctr("content rm").arg(&digest).ok();
    there("content get").arg(&digest).prints("shared");
    there("content rm").arg(&digest).ok();
    c.ctr("namespaces rm").arg(&other).ok();
}

fn creates_lists_and_removes_leases(c: &Case) {
    let id = c.ctr("leases create --expires 1h").ok();
    let named = c.ctr("leases create --id mine a=b").ok();
    assert_eq!(named.trim(), "mine");
    let mut ids = c.list("leases ls -q");
    ids.sort_unstable();
    assert_eq!(ids.len(), 2);
    assert!(
        ids.contains(&id.trim().to_owned()) && ids.contains(&"mine".to_owned()),
        "{ids:?}"
    );
    c.ctr("leases create --id mine").fails("already exists");
    let table = c.ctr("leases ls").ok();
    assert!(
        table.contains("a=b") && table.contains("containerd.io/gc.expire="),
        "{table}"
    );
    c.ctr("leases rm --sync mine").arg(id.trim()).ok();
    assert!(c.list("leases ls -q").is_empty());
}

fn collects_what_nothing_refers_to(c: &Case) {
    let kept = images::digest_of(b"kept");
    let lost = images::digest_of(b"lost");
    ingest(c, &format!("--expected-digest {kept}"), b"kept").expect_code(0);
    ingest(c, &format!("--expected-digest {lost}"), b"lost").expect_code(0);
    c.ctr("content label")
        .args([&kept, "containerd.io/gc.root=yes"])
        .ok();
    // A synchronous removal of any image is what asks for a collection.
    c.has(&images::busybox());
    c.ctr("images rm --sync").arg(&images::busybox().name).ok();
    assert_eq!(c.list("content ls -q"), std::slice::from_ref(&kept));
    c.ctr("content rm").arg(&kept).ok();
}
