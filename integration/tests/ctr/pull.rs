//! `ctr images pull` and `push` with registries good and bad.

use std::fs;

use corten_integration::case::Case;
use corten_integration::images::{self, Image};
use corten_integration::process::Cmd;
use corten_integration::registry::{Registry, Tiny, Trick};
use corten_integration::runner::{Test, with_both_clients};
use corten_integration::tests;

pub(crate) fn tests() -> Vec<Test> {
    let mut all = with_both_clients(tests![
        pulls_over_plain_http,
        pulls_over_tls_with_a_hosts_directory,
        pulls_many_layers,
        pulls_docker_media_types,
        says_that_a_tag_is_missing,
        refuses_wrong_bytes,
        refuses_half_a_layer,
        logs_in_for_a_token,
    ]);
    all.extend(tests![
        pulls_through_the_local_client,
        pulls_zstd_layers,
        pulls_its_own_platform_of_an_index,
        pulls_all_platforms,
        pulls_by_digest,
        pulls_from_a_mirror,
        pulls_ten_thousand_files,
        pulls_again_without_fetching_twice,
        pulls_with_an_anonymous_token,
        logs_in_with_a_password,
        follows_redirects,
        resumes_a_cut_layer,
        waits_for_a_busy_registry,
        reads_chunked_answers,
        says_that_credentials_are_missing,
        says_that_the_registry_is_broken,
        says_that_nobody_listens,
        says_that_a_layer_is_missing,
        refuses_a_certificate_it_does_not_know,
        refuses_a_bad_reference,
        labels_what_it_pulls,
        pulls_into_the_native_snapshotter,
        pushes_what_can_be_pulled,
        pulls_and_runs,
        fetches_without_unpacking,
        fetches_one_object,
    ]);
    all
}

fn pull(c: &Case, flags: &str, reference: &str) -> Cmd {
    c.ctr("images pull").words(flags).arg(reference)
}

fn is_whole(c: &Case, image: &Image, reference: &str) {
    assert_eq!(c.list("images ls -q"), [reference]);
    let table = c.new_ctr("images ls").ok();
    assert!(table.contains(&image.digest), "{table}");
    c.run_named(reference, "--rm", "whole", &["busybox", "true"])
        .ok();
}

fn nothing_came(c: &Case) {
    assert!(c.list("images ls -q").is_empty(), "an image is there");
    assert!(c.column("snapshots ls").is_empty(), "a snapshot is there");
}

fn pulls_over_plain_http(c: &Case) {
    let registry = Registry::plain(&c.dir);
    let image = images::busybox();
    let reference = registry.push(&image);
    pull(c, "--plain-http", &reference).ok();
    is_whole(c, &image, &reference);
    assert_eq!(c.column("snapshots ls"), [image.chain_id()]);
}

fn pulls_over_tls_with_a_hosts_directory(c: &Case) {
    // One storage, two registries: the plain one is for pushing.
    let image = images::busybox();
    let tls = Registry::tls(&c.dir);
    let plain = Registry::plain(&c.dir);
    plain.push(&image);
    let reference = tls.reference(&image);
    let hosts = format!("--hosts-dir {}", tls.hosts_dir().display());
    pull(c, &hosts, &reference).ok();
    is_whole(c, &image, &reference);
    drop(plain);
}

fn pulls_many_layers(c: &Case) {
    let registry = Registry::plain(&c.dir);
    let image = images::layered();
    let reference = registry.push(&image);
    pull(c, "--plain-http", &reference).ok();
    assert_eq!(c.column("snapshots ls").len(), image.diff_ids.len());
    c.run_named(
        &reference,
        "--rm",
        "a",
        &["cat", "/t/replaced", "/t/n0", "/t/count"],
    )
    .prints("second017");
}

fn pulls_docker_media_types(c: &Case) {
    let registry = Registry::plain(&c.dir);
    let image = images::docker();
    let reference = registry.push(&image);
    pull(c, "--plain-http", &reference).ok();
    is_whole(c, &image, &reference);
    assert!(c.ctr("images ls").ok().contains(images::DOCKER_MANIFEST));
}

fn says_that_a_tag_is_missing(c: &Case) {
    let registry = Registry::plain(&c.dir);
    let reference = format!("{}/nowhere/nothing:1", registry.host());
    let done = pull(c, "--plain-http", &reference).fails("not found");
    let text = format!("failed to resolve reference \"{reference}\"");
    let other = format!("failed to resolve image: {reference}");
    assert!(
        done.err().contains(&text) || done.err().contains(&other),
        "{}",
        done.report()
    );
    nothing_came(c);
}

fn refuses_wrong_bytes(c: &Case) {
    let registry = Tiny::serve(images::unique(&c.namespace), Trick::WrongBytes);
    let done = pull(c, "--plain-http", &registry.reference()).run();
    assert_ne!(done.code(), 0, "{}", done.report());
    assert!(
        done.err().contains("unexpected commit digest"),
        "{}",
        done.report()
    );
    nothing_came(c);
    assert!(
        !c.list("content ls -q")
            .contains(&images::unique(&c.namespace).layers()[0])
    );
}

fn refuses_half_a_layer(c: &Case) {
    let registry = Tiny::serve(images::unique(&c.namespace), Trick::Cut);
    let done = pull(c, "--plain-http", &registry.reference()).run();
    assert_ne!(done.code(), 0, "{}", done.report());
    nothing_came(c);
}

fn logs_in_for_a_token(c: &Case) {
    let image = images::unique(&c.namespace);
    let registry = Tiny::serve(image.clone(), Trick::PrivateToken);
    let reference = registry.reference();
    pull(c, "--plain-http --user user:secret", &reference).ok();
    is_whole(c, &image, &reference);
    assert!(
        registry.requests().iter().any(|r| r.ends_with("/token")),
        "{:?}",
        registry.requests()
    );
}

fn pulls_through_the_local_client(c: &Case) {
    let registry = Registry::plain(&c.dir);
    let image = images::layered();
    let reference = registry.push(&image);
    c.new_ctr("images pull --local --plain-http")
        .arg(&reference)
        .ok();
    is_whole(c, &image, &reference);
}

fn pulls_zstd_layers(c: &Case) {
    let registry = Registry::plain(&c.dir);
    let reference = registry.push(&images::zstd());
    pull(c, "--plain-http", &reference).ok();
    c.run_named(&reference, "--rm", "a", &["cat", "/plain"])
        .prints("plain");
}

fn pulls_its_own_platform_of_an_index(c: &Case) {
    let registry = Registry::plain(&c.dir);
    let image = images::multi();
    let reference = registry.push(&image);
    pull(c, "--plain-http", &reference).ok();
    c.run_named(&reference, "--rm", "a", &["cat", "/arch"])
        .prints("amd64");
    assert_eq!(
        c.column("snapshots ls").len(),
        1,
        "only one platform is unpacked"
    );
    let table = c.ctr("images ls").ok();
    assert!(table.contains(images::OCI_INDEX), "{table}");
    // The layer of the other platform stays away.
    assert!(
        c.list("content ls -q").len() < image.blobs.len(),
        "{:?}",
        c.list("content ls -q")
    );
}

fn pulls_all_platforms(c: &Case) {
    let registry = Registry::plain(&c.dir);
    let image = images::multi();
    let reference = registry.push(&image);
    c.new_ctr("images pull --all-platforms --local --plain-http")
        .arg(&reference)
        .ok();
    assert_eq!(c.list("content ls -q").len(), image.blobs.len());
}

fn pulls_by_digest(c: &Case) {
    let registry = Registry::plain(&c.dir);
    let image = images::busybox();
    registry.push(&image);
    let reference = format!(
        "{}/{}@{}",
        registry.host(),
        image.repository().0,
        image.digest
    );
    pull(c, "--plain-http", &reference).ok();
    is_whole(c, &image, &reference);
}

fn pulls_from_a_mirror(c: &Case) {
    let registry = Registry::plain(&c.dir);
    let image = images::busybox();
    registry.push(&image);
    let reference = format!("far.away.example/{}:1", image.repository().0);
    let hosts = registry.mirror_dir("far.away.example");
    pull(c, &format!("--hosts-dir {}", hosts.display()), &reference).ok();
    is_whole(c, &image, &reference);
}

fn pulls_ten_thousand_files(c: &Case) {
    let registry = Registry::plain(&c.dir);
    let reference = registry.push(&images::many_files());
    pull(c, "--plain-http", &reference).ok();
    let script = "find /many -type f | wc -l";
    c.run_named(&reference, "--rm", "a", &["sh", "-c", script])
        .prints("10000\n");
}

fn pulls_again_without_fetching_twice(c: &Case) {
    let registry = Tiny::serve(images::unique(&c.namespace), Trick::None);
    let reference = registry.reference();
    pull(c, "--plain-http", &reference).ok();
    let blobs = || {
        registry
            .requests()
            .iter()
            .filter(|r| r.contains("/blobs/"))
            .count()
    };
    let before = blobs();
    assert_eq!(before, 2, "config and layer: {:?}", registry.requests());
    pull(c, "--plain-http", &reference).ok();
    assert_eq!(blobs(), before, "{:?}", registry.requests());
}

fn pulls_with_an_anonymous_token(c: &Case) {
    let image = images::unique(&c.namespace);
    let registry = Tiny::serve(image.clone(), Trick::Token);
    pull(c, "--plain-http", &registry.reference()).ok();
    is_whole(c, &image, &registry.reference());
}

fn logs_in_with_a_password(c: &Case) {
    let image = images::unique(&c.namespace);
    let registry = Tiny::serve(image.clone(), Trick::Basic);
    pull(c, "--plain-http --user user:secret", &registry.reference()).ok();
    is_whole(c, &image, &registry.reference());
}

fn follows_redirects(c: &Case) {
    let image = images::unique(&c.namespace);
    let registry = Tiny::serve(image.clone(), Trick::Redirect);
    pull(c, "--plain-http", &registry.reference()).ok();
    is_whole(c, &image, &registry.reference());
}

fn resumes_a_cut_layer(c: &Case) {
    let image = images::unique(&c.namespace);
    let registry = Tiny::serve(image.clone(), Trick::CutOnce);
    pull(c, "--plain-http", &registry.reference()).ok();
    is_whole(c, &image, &registry.reference());
}

fn waits_for_a_busy_registry(c: &Case) {
    let image = images::unique(&c.namespace);
    let registry = Tiny::serve(image, Trick::Busy);
    let done = pull(c, "--plain-http", &registry.reference()).run();
    // Stock gives up on a 503; a second pull goes through, and so must ours at the latest.
    if done.code() != 0 {
        assert!(done.err().contains("503"), "{}", done.report());
        let again = pull(c, "--plain-http", &registry.reference()).run();
        if again.code() != 0 {
            pull(c, "--plain-http", &registry.reference()).ok();
        }
    }
    c.run_named(&registry.reference(), "--rm", "a", &["true"])
        .ok();
}

fn reads_chunked_answers(c: &Case) {
    let image = images::unique(&c.namespace);
    let registry = Tiny::serve(image.clone(), Trick::Chunked);
    pull(c, "--plain-http", &registry.reference()).ok();
    is_whole(c, &image, &registry.reference());
}

fn says_that_credentials_are_missing(c: &Case) {
    for trick in [Trick::Basic, Trick::PrivateToken] {
        let registry = Tiny::serve(images::unique(&c.namespace), trick);
        let done = pull(c, "--plain-http", &registry.reference()).run();
        assert_ne!(done.code(), 0, "{}", done.report());
        let error = done.err();
        assert!(
            error.contains("401") || error.to_lowercase().contains("authorization"),
            "{error}"
        );
        nothing_came(c);
    }
}

fn says_that_the_registry_is_broken(c: &Case) {
    let registry = Tiny::serve(images::unique(&c.namespace), Trick::Broken);
    pull(c, "--plain-http", &registry.reference()).fails("500 Internal Server Error");
    nothing_came(c);
}

fn says_that_nobody_listens(c: &Case) {
    let registry = Tiny::serve(images::unique(&c.namespace), Trick::None);
    let reference = registry.reference();
    drop(registry);
    pull(c, "--plain-http", &reference).fails("connection refused");
    nothing_came(c);
}

fn says_that_a_layer_is_missing(c: &Case) {
    let registry = Tiny::serve(images::unique(&c.namespace), Trick::NoLayers);
    pull(c, "--plain-http", &registry.reference()).fails("not found");
    nothing_came(c);
}

fn refuses_a_certificate_it_does_not_know(c: &Case) {
    let registry = Registry::tls(&c.dir);
    let hosts = registry.hosts_dir();
    // The same rules without the CA.
    let file = hosts.join(registry.host()).join("hosts.toml");
    let text = fs::read_to_string(&file).unwrap();
    let without: String = text
        .lines()
        .filter(|l| !l.contains("ca ="))
        .map(|l| format!("{l}\n"))
        .collect();
    fs::write(&file, without).unwrap();
    let reference = registry.reference(&images::busybox());
    let done = pull(c, &format!("--hosts-dir {}", hosts.display()), &reference).run();
    assert_ne!(done.code(), 0, "{}", done.report());
    assert!(
        done.err().to_lowercase().contains("certificate"),
        "{}",
        done.report()
    );
    nothing_came(c);
}

fn refuses_a_bad_reference(c: &Case) {
    for reference in ["not a reference", "host.only", "/starts/with/a/slash:1"] {
        let done = c.ctr("images pull --plain-http").arg(reference).run();
        assert_ne!(done.code(), 0, "{}", done.report());
        nothing_came(c);
    }
}

fn labels_what_it_pulls(c: &Case) {
    let registry = Registry::plain(&c.dir);
    let image = images::busybox();
    let reference = registry.push(&image);
    pull(c, "--plain-http --label color=rust", &reference).ok();
    assert_eq!(
        c.list("images ls -q labels.color==rust"),
        std::slice::from_ref(&reference)
    );
    let content = c.ctr("content ls").ok();
    let row = |digest: &str| {
        content
            .lines()
            .find(|l| l.starts_with(digest))
            .unwrap()
            .to_owned()
    };
    let manifest = row(&image.digest);
    let config = format!("containerd.io/gc.ref.content.config={}", image.config());
    assert!(manifest.contains(&config), "{manifest}");
    let layer = format!("containerd.io/gc.ref.content.l.0={}", image.layers()[0]);
    assert!(manifest.contains(&layer), "{manifest}");
    let source = "containerd.io/distribution.source.127.0.0.1=busybox";
    assert!(manifest.contains(source), "{manifest}");
    let chain = format!(
        "containerd.io/gc.ref.snapshot.overlayfs={}",
        image.chain_id()
    );
    assert!(
        row(&image.config()).contains(&chain),
        "{}",
        row(&image.config())
    );
    let diff = format!("containerd.io/uncompressed={}", image.diff_ids[0]);
    assert!(
        row(&image.layers()[0]).contains(&diff),
        "{}",
        row(&image.layers()[0])
    );
}

fn pulls_into_the_native_snapshotter(c: &Case) {
    let registry = Registry::plain(&c.dir);
    let image = images::layered();
    let reference = registry.push(&image);
    // --local: stock's transfer service unpacks only for the snapshotters its config lists.
    c.new_ctr("images pull --local --plain-http --snapshotter native")
        .arg(&reference)
        .ok();
    assert_eq!(
        c.column("snapshots --snapshotter native ls").len(),
        image.diff_ids.len()
    );
    assert!(c.column("snapshots ls").is_empty());
    let script = "ls -A /t/opaque; ls /t/gone* 2>/dev/null; stat -c %h /t/kept/a; cat /t/replaced";
    c.run_named(
        &reference,
        "--rm --snapshotter native",
        "a",
        &["sh", "-c", script],
    )
    .prints("upper\n2\nsecond");
}

fn pushes_what_can_be_pulled(c: &Case) {
    let registry = Registry::plain(&c.dir);
    let image = images::layered();
    c.has(&image);
    let reference = registry.reference(&image);
    c.ctr("images tag").args([&image.name, &reference]).ok();
    c.new_ctr("images push --plain-http").arg(&reference).ok();
    c.ctr("images rm").args([&image.name, &reference]).ok();
    c.ctr("images rm --sync nothing").ok();
    pull(c, "--plain-http", &reference).ok();
    is_whole(c, &image, &reference);
}

fn pulls_and_runs(c: &Case) {
    let registry = Registry::plain(&c.dir);
    let image = images::configured();
    let reference = registry.push(&image);
    pull(c, "--plain-http", &reference).ok();
    c.run_named(&reference, "--rm", "a", &[])
        .prints("entry hello in /home/alice as 1000 with default\n");
}

fn fetches_without_unpacking(c: &Case) {
    let registry = Registry::plain(&c.dir);
    let image = images::busybox();
    let reference = registry.push(&image);
    c.ctr("content fetch --plain-http").arg(&reference).ok();
    assert_eq!(c.list("images ls -q"), [reference]);
    assert!(c.column("snapshots ls").is_empty());
}

fn fetches_one_object(c: &Case) {
    let registry = Registry::plain(&c.dir);
    let image = images::busybox();
    let reference = registry.push(&image);
    let done = c
        .ctr("content fetch-object --plain-http")
        .args([&reference, &image.digest])
        .run();
    done.expect_code(0);
    assert!(
        done.stdout == image.blobs[&image.digest].bytes,
        "{}",
        done.report()
    );
}
