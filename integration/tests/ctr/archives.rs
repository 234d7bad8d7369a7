//! `ctr images` beyond pull and run: import and export with their flags, labels, pruning,
//! conversion, mounts, installation.

use std::collections::BTreeSet;
use std::fs;

use corten_integration::case::Case;
use corten_integration::ctr::Client;
use corten_integration::images;
use corten_integration::runner::{Test, with_both_clients};
use corten_integration::tests;

pub(crate) fn tests() -> Vec<Test> {
    let mut all = with_both_clients(tests![
        installs_programs_of_an_image,
        imports_under_a_base_name,
        imports_one_platform_or_all,
        exports_one_platform_or_all,
        replaces_all_labels,
        checks_by_snapshotter,
        converts_media_types_and_platforms,
        mounts_for_writing,
        compresses_what_it_imports,
    ]);
    all.extend(tests![
        imports_with_every_flag_of_the_daemon,
        compresses_and_discards_what_it_imports,
        tags_in_every_way,
        prunes_unused_images,
        measures_usage_by_snapshotter,
    ]);
    all
}

/// The client that imports by itself says so.
fn local(c: &Case) -> &'static str {
    if c.client == Client::New {
        "--local"
    } else {
        ""
    }
}

fn imports_under_a_base_name(c: &Case) {
    let image = images::busybox();
    let flags = "--base-name test.local/based --digests --index-name test.local/index:1";
    c.ctr("images import")
        .words(local(c))
        .words(flags)
        .arg(image.archive())
        .ok();
    let names = c.list("images ls -q");
    assert!(
        names.contains(&"test.local/index:1".to_owned()),
        "{names:?}"
    );
    c.ctr("images import --skip-digest-for-named --digests --snapshotter native")
        .words(local(c))
        .arg(image.archive())
        .ok();
    assert!(c.list("images ls -q").contains(&image.name));
    assert_eq!(
        c.column("snapshots --snapshotter native ls"),
        [image.chain_id()]
    );
}

fn imports_one_platform_or_all(c: &Case) {
    let image = images::multi();
    let import = |flags: &str| {
        let cmd = c.ctr("images import").words(local(c)).words(flags);
        cmd.arg(image.archive()).ok();
        // The archive's own index may be there as well, until it is collected.
        let mut digests = c.list("content ls -q");
        digests.retain(|digest| image.blobs.contains_key(digest));
        c.ctr("images rm --sync").arg(&image.name).ok();
        digests.len()
    };
    let one = import("--platform linux/amd64");
    let all = import("--all-platforms --no-unpack");
    assert!(one <= all, "{one} and {all}");
    assert_eq!(all, image.blobs.len());
}

fn imports_with_every_flag_of_the_daemon(c: &Case) {
    let image = images::multi();
    let flags = "--base-name test.local/based --digests --index-name test.local/index:1 \
                 --skip-digest-for-named --platform linux/amd64 --snapshotter overlayfs \
                 --sync-fs --label color=rust";
    let done = c
        .ctr("images import")
        .words(flags)
        .arg(image.archive())
        .run();
    done.expect_code(0);
    let named = c.list("images ls -q labels.color==rust");
    assert!(
        !named.is_empty(),
        "{:?}: {}",
        c.list("images ls"),
        done.report()
    );
    assert!(
        named.contains(&"test.local/index:1".to_owned()),
        "{named:?}"
    );
    assert_eq!(c.column("snapshots ls"), [image.chain_id()]);
}

fn compresses_and_discards_what_it_imports(c: &Case) {
    // A Docker archive with a plain layer: compressed on its way in.
    let image = images::docker_plain();
    let file = c.file("docker.tar");
    fs::write(&file, image.docker_archive()).unwrap();
    c.ctr("images import --local --compress-blobs")
        .arg(&file)
        .ok();
    let manifest = c.ctr("images inspect --content").arg(&image.name).ok();
    assert!(manifest.contains("tar.gzip"), "{manifest}");
    c.run_named(&image.name, "--rm", "a", &["true"]).ok();
    c.ctr("images rm --sync").arg(&image.name).ok();

    c.ctr("images import --local --discard-unpacked-layers")
        .arg(&file)
        .ok();
    c.run_named(&image.name, "--rm", "b", &["true"]).ok();
}

fn compresses_what_it_imports(c: &Case) {
    let image = images::docker_plain();
    let file = c.file("docker.tar");
    fs::write(&file, image.docker_archive()).unwrap();
    c.ctr("images import --compress-blobs")
        .words(local(c))
        .arg(&file)
        .ok();
    c.run_named(&image.name, "--rm", "a", &["true"]).ok();
}

/// The names in an archive, which is read to its end.
fn members(file: &std::path::Path) -> std::io::Result<BTreeSet<String>> {
    let mut archive = tar::Archive::new(fs::File::open(file)?);
    let entries = archive.entries()?;
    let name = |e: tar::Entry<'_, _>| Ok(e.path()?.to_string_lossy().into_owned());
    entries.map(|e| name(e?)).collect()
}

fn exports_one_platform_or_all(c: &Case) {
    let image = images::multi();
    c.new_ctr("images import --all-platforms --no-unpack")
        .arg(image.archive())
        .ok();
    let export = |flags: &str, name: &str| {
        let file = c.file(name);
        let once = || {
            let cmd = c.ctr("images export").words(flags);
            cmd.arg(&file).arg(&image.name).ok();
            members(&file)
        };
        // The client may be gone before it has written all of what stock containerd sends.
        for _ in 0..if c.is_reference() { 2 } else { 0 } {
            match once() {
                Ok(names) => return names,
                Err(e) => println!("stock containerd's export is cut ({e}): once more"),
            }
        }
        once().unwrap_or_else(|e| panic!("{name}: {e}"))
    };
    let one = export("--platform linux/arm64", "one.tar");
    let all = export("--all-platforms", "all.tar");
    let bare = export(
        "--all-platforms --skip-manifest-json --skip-non-distributable",
        "x.tar",
    );
    assert!(one.len() < all.len(), "{one:?} and {all:?}");
    let blobs = |set: &BTreeSet<String>| {
        let blobs = set
            .iter()
            .filter(|n| n.starts_with("blobs/sha256/") && n.len() > 20);
        blobs.count()
    };
    assert_eq!(blobs(&all), image.blobs.len());
    assert!(!bare.contains("manifest.json"), "{bare:?}");
    if c.client == Client::New {
        let local = export("--local --all-platforms", "local.tar");
        assert_eq!(blobs(&local), image.blobs.len());
    }
}

fn replaces_all_labels(c: &Case) {
    let name = c.has(&images::busybox());
    c.ctr("images label").args([&name, "a=1", "b=2"]).ok();
    let out = c
        .ctr("images label --replace-all")
        .args([&name, "only=this"])
        .ok();
    assert_eq!(out.trim(), "only=this");
    assert!(c.list("images ls -q labels.a==1").is_empty());
}

fn checks_by_snapshotter(c: &Case) {
    let image = images::busybox();
    c.has(&image);
    let ready = |flags: &str| c.ctr("images check -q").words(flags).ok();
    assert_eq!(ready("--snapshotter overlayfs").trim(), image.name);
    let table = c.ctr("images check --snapshotter native").ok();
    assert!(table.lines().nth(1).unwrap().ends_with("false"), "{table}");
}

fn converts_media_types_and_platforms(c: &Case) {
    let image = images::docker();
    c.has(&image);
    c.ctr("images convert --oci --platform linux/amd64")
        .args([&image.name, "test.local/oci:1"])
        .ok();
    let table = c.ctr("images ls name==test.local/oci:1").ok();
    assert!(table.contains("vnd.oci.image"), "{table}");
    c.run_named("test.local/oci:1", "--rm", "a", &["true"]).ok();
    let multi = images::multi();
    c.new_ctr("images import --all-platforms --no-unpack")
        .arg(multi.archive())
        .ok();
    c.ctr("images convert --uncompress --all-platforms")
        .args([&multi.name, "test.local/flat:1"])
        .ok();
    assert!(c.list("content ls -q").contains(&multi.diff_ids[0]));
}

fn mounts_for_writing(c: &Case) {
    let image = images::busybox();
    c.has(&image);
    let target = c.file("mnt");
    fs::create_dir(&target).unwrap();
    let newer = if c.client == Client::New {
        "--sync-fs --expiration 30m"
    } else {
        ""
    };
    c.ctr("images mount --rw --platform linux/amd64 --snapshotter overlayfs")
        .words(newer)
        .arg(&image.name)
        .arg(&target)
        .ok();
    let written = fs::write(target.join("new"), "x");
    c.ctr("images unmount --rm --snapshotter overlayfs")
        .arg(&target)
        .ok();
    written.unwrap();
    assert!(!target.join("new").exists());
}

fn tags_in_every_way(c: &Case) {
    let name = c.has(&images::busybox());
    c.ctr("images tag --local")
        .args([&name, "test.local/a:1"])
        .ok();
    c.ctr("images tag --local")
        .args([&name, "test.local/a:1"])
        .fails("already exists");
    c.ctr("images tag --local --force")
        .args([&name, "test.local/a:1"])
        .ok();
    c.ctr("images tag --skip-reference-check")
        .args([&name, "no-host-no-tag"])
        .ok();
    let names = c.list("images ls -q");
    assert!(names.contains(&"no-host-no-tag".to_owned()), "{names:?}");
}

fn prunes_unused_images(c: &Case) {
    let used = c.has(&images::busybox());
    c.has(&images::docker());
    c.sleeper("a");
    c.ctr("images prune").ok();
    assert_eq!(
        c.list("images ls -q").len(),
        2,
        "without --all nothing goes"
    );
    c.ctr("images prune --all").ok();
    assert_eq!(c.list("images ls -q"), [used]);
    c.remove("a");
}

fn measures_usage_by_snapshotter(c: &Case) {
    let image = images::busybox();
    c.has(&image);
    let usage = c
        .ctr("images usage --snapshotter overlayfs")
        .arg(&image.name);
    assert!(usage.ok().contains("MiB"));
    c.ctr("images usage --snapshotter native")
        .arg(&image.name)
        .fails("");
}

fn installs_programs_of_an_image(c: &Case) {
    let image = images::package();
    c.has(&image);
    let target = c.file("opt");
    fs::create_dir(&target).unwrap();
    let install = |flags: &str| {
        let cmd = c.ctr("install").words(flags).arg("--path").arg(&target);
        cmd.arg(&image.name)
    };
    install("").ok();
    assert!(target.join("bin/program").exists());
    assert!(!target.join("lib/library.so").exists());
    install("").fails("replace");
    install("--replace --libs").ok();
    assert!(target.join("lib/library.so").exists());
}
