//! `ctr images`: import, list, tag, export, remove. Pulling is in `pull.rs`.

use std::fs;

use corten_integration::case::Case;
use corten_integration::ctr::Client;
use corten_integration::images::{self, Image};
use corten_integration::runner::{Test, with_both_clients};
use corten_integration::tests;

pub(crate) fn tests() -> Vec<Test> {
    let mut all = with_both_clients(tests![
        imports_an_oci_archive,
        imports_a_docker_archive,
        lists_name_type_digest_and_platform,
        tags_an_image,
        labels_an_image,
        removes_an_image_and_its_content,
        exports_what_can_be_imported,
        imports_ten_thousand_files,
    ]);
    all.extend(tests![
        imports_through_the_local_client,
        imports_without_unpacking,
        imports_a_multi_platform_index,
        imports_from_standard_input,
        keeps_shared_layers_while_one_image_needs_them,
        checks_that_an_image_is_complete,
        mounts_an_image,
        exports_through_the_local_client,
        unpacks_on_first_run,
        imports_the_same_image_again,
        inspects_an_image,
        measures_what_an_image_takes,
        converts_an_image,
        collects_after_an_asynchronous_removal,
    ]);
    all
}

fn import(c: &Case, image: &Image) {
    c.ctr("images import").arg(image.archive()).ok();
}

fn imports_an_oci_archive(c: &Case) {
    let image = images::busybox();
    let out = c.ctr("images import").arg(image.archive()).ok();
    assert!(out.contains(&image.name), "{out}");
    assert_eq!(c.list("images ls -q"), std::slice::from_ref(&image.name));
    // Unpacked as well, as import does.
    assert_eq!(c.column("snapshots ls"), [image.chain_id()]);
    c.run_named(&image.name, "--rm", "a", &["echo", "imported"])
        .prints("imported\n");
}

fn imports_a_docker_archive(c: &Case) {
    let image = images::docker();
    let file = c.file("docker.tar");
    fs::write(&file, image.docker_archive()).unwrap();
    c.ctr("images import").arg(&file).ok();
    assert_eq!(c.list("images ls -q"), std::slice::from_ref(&image.name));
    c.run_named(&image.name, "--rm", "a", &["echo", "docker"])
        .prints("docker\n");
}

fn lists_name_type_digest_and_platform(c: &Case) {
    let image = images::busybox();
    import(c, &image);
    let table = c.ctr("images ls").ok();
    let heading: Vec<_> = table.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(
        heading,
        ["REF", "TYPE", "DIGEST", "SIZE", "PLATFORMS", "LABELS"]
    );
    let row: Vec<_> = table.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(
        row[..3],
        [&image.name[..], &image.media_type, &image.digest]
    );
    assert_eq!(row[4..], ["MiB", "linux/amd64", "-"]);
    let filtered = c.ctr("images ls -q name==nope").ok();
    assert_eq!(filtered, "");
}

fn tags_an_image(c: &Case) {
    let image = images::busybox();
    import(c, &image);
    c.ctr("images tag")
        .args([&image.name, "test.local/second:2"])
        .ok();
    let mut names = c.list("images ls -q");
    names.sort_unstable();
    assert_eq!(names, [image.name.as_str(), "test.local/second:2"]);
    if c.client == Client::Old {
        c.ctr("images tag")
            .args([&image.name, "test.local/second:2"])
            .fails("already exists");
    }
    c.ctr("images tag --force")
        .args([&image.name, "test.local/second:2"])
        .ok();
    c.run_named("test.local/second:2", "--rm", "a", &["true"])
        .ok();
}

fn labels_an_image(c: &Case) {
    let image = images::busybox();
    import(c, &image);
    let out = c.ctr("images label").args([&image.name, "color=rust"]).ok();
    assert!(out.contains("color=rust"), "{out}");
    assert_eq!(
        c.list("images ls -q labels.color==rust"),
        std::slice::from_ref(&image.name)
    );
    assert!(c.list("images ls -q labels.color==blue").is_empty());
}

fn removes_an_image_and_its_content(c: &Case) {
    let image = images::busybox();
    import(c, &image);
    let content = c.list("content ls -q");
    assert!(
        image.blobs.keys().all(|digest| content.contains(digest)),
        "{content:?}"
    );
    let out = c.ctr("images rm --sync").arg(&image.name).ok();
    assert_eq!(out.trim(), image.name);
    assert!(c.list("images ls -q").is_empty());
    assert!(
        c.list("content ls -q").is_empty(),
        "content goes with a synchronous removal"
    );
    assert!(c.column("snapshots ls").is_empty(), "and so do snapshots");
    // A second removal is no failure.
    c.ctr("images rm").arg(&image.name).ok();
}

fn exports_what_can_be_imported(c: &Case) {
    let image = images::layered();
    import(c, &image);
    let file = c.file("export.tar");
    c.ctr("images export").arg(&file).arg(&image.name).ok();
    c.ctr("images rm --sync").arg(&image.name).ok();
    c.ctr("images import").arg(&file).ok();
    let row = c.ctr("images ls").ok();
    assert!(row.contains(&image.digest), "the digest stays: {row}");
    c.run_named(&image.name, "--rm", "a", &["cat", "/t/count"])
        .prints("17");
}

fn imports_ten_thousand_files(c: &Case) {
    let image = images::many_files();
    import(c, &image);
    let script = "find /many -type f | wc -l; cat /many/99/99";
    c.run_named(&image.name, "--rm", "a", &["sh", "-c", script])
        .prints("10000\n99 99\n");
}

fn imports_through_the_local_client(c: &Case) {
    let image = images::layered();
    c.new_ctr("images import --local").arg(image.archive()).ok();
    c.run_named(&image.name, "--rm", "a", &["cat", "/t/replaced"])
        .prints("second");
}

fn imports_without_unpacking(c: &Case) {
    let image = images::busybox();
    c.new_ctr("images import --no-unpack")
        .arg(image.archive())
        .ok();
    assert!(c.column("snapshots ls").is_empty());
    assert_eq!(c.list("images ls -q"), [image.name]);
}

fn imports_a_multi_platform_index(c: &Case) {
    let image = images::multi();
    c.new_ctr("images import").arg(image.archive()).ok();
    c.run_named(&image.name, "--rm", "a", &["cat", "/arch"])
        .prints("amd64");
    let all = c.new_ctr("images ls").ok();
    assert!(all.contains(images::OCI_INDEX), "{all}");
    c.ctr("images rm --sync").arg(&image.name).ok();
    c.new_ctr("images import --all-platforms --no-unpack")
        .arg(image.archive())
        .ok();
    let all = c.new_ctr("images ls").ok();
    assert!(all.contains("linux/amd64,linux/arm64"), "{all}");
}

fn imports_from_standard_input(c: &Case) {
    let image = images::busybox();
    let import = c.new_ctr("images import -").stdin(image.oci_layout());
    import.ok();
    assert_eq!(c.list("images ls -q"), [image.name]);
}

fn keeps_shared_layers_while_one_image_needs_them(c: &Case) {
    let (small, large) = (images::busybox(), images::layered());
    import(c, &small);
    import(c, &large);
    c.ctr("images rm --sync").arg(&small.name).ok();
    let content = c.list("content ls -q");
    assert!(
        content.contains(&small.layers()[0]),
        "the shared layer is needed still"
    );
    assert!(
        !content.contains(&small.digest),
        "the first image's manifest is not"
    );
    c.run_named(&large.name, "--rm", "a", &["true"]).ok();
}

fn checks_that_an_image_is_complete(c: &Case) {
    let image = images::busybox();
    import(c, &image);
    let table = c.ctr("images check").ok();
    let row = table.lines().nth(1).unwrap_or_default();
    assert!(
        row.contains("complete (2/2)") && row.ends_with("true"),
        "{table}"
    );
}

fn mounts_an_image(c: &Case) {
    let image = images::busybox();
    import(c, &image);
    let target = c.file("mnt");
    fs::create_dir(&target).unwrap();
    c.ctr("images mount").arg(&image.name).arg(&target).ok();
    let there = target.join("bin/busybox").exists();
    c.ctr("images unmount --rm").arg(&target).ok();
    assert!(there, "the image's files are there");
    assert!(!target.join("bin/busybox").exists());
}

fn exports_through_the_local_client(c: &Case) {
    let image = images::busybox();
    import(c, &image);
    let (one, two) = (c.file("one.tar"), c.file("two.tar"));
    c.new_ctr("images export --local")
        .arg(&one)
        .arg(&image.name)
        .ok();
    c.new_ctr("images export").arg(&two).arg(&image.name).ok();
    let list = |file: &std::path::Path| {
        let mut archive = tar::Archive::new(fs::File::open(file).unwrap());
        let names = archive
            .entries()
            .unwrap()
            .map(|e| e.unwrap().path().unwrap().into_owned());
        let mut names: Vec<_> = names.collect();
        names.sort_unstable();
        names
    };
    assert_eq!(list(&one), list(&two));
    assert!(
        list(&one).contains(&"manifest.json".into()),
        "Docker can load it too"
    );
}

fn unpacks_on_first_run(c: &Case) {
    let image = images::busybox();
    c.new_ctr("images import --no-unpack")
        .arg(image.archive())
        .ok();
    c.run_named(&image.name, "--rm", "a", &["echo", "unpacked"])
        .prints("unpacked\n");
    assert_eq!(c.column("snapshots ls"), [image.chain_id()]);
}

fn imports_the_same_image_again(c: &Case) {
    let image = images::busybox();
    import(c, &image);
    import(c, &image);
    assert_eq!(c.list("images ls -q"), std::slice::from_ref(&image.name));
    c.run_named(&image.name, "--rm", "a", &["true"]).ok();
}

fn inspects_an_image(c: &Case) {
    let image = images::configured();
    import(c, &image);
    let out = c.ctr("images inspect --content").arg(&image.name).ok();
    assert!(
        out.contains(&image.digest) && out.contains(&image.config()),
        "{out}"
    );
    assert!(out.contains("GREETING=hello"), "{out}");
}

fn measures_what_an_image_takes(c: &Case) {
    let image = images::busybox();
    import(c, &image);
    let table = c.ctr("images usage").arg(&image.name).ok();
    assert!(table.contains("MiB"), "{table}");
}

fn converts_an_image(c: &Case) {
    let image = images::busybox();
    import(c, &image);
    let target = "test.local/converted:1";
    c.ctr("images convert --uncompress")
        .args([&image.name, target])
        .ok();
    // The layer is stored as it is now: its digest is the diff ID.
    assert!(c.list("content ls -q").contains(&image.diff_ids[0]));
    c.run_named(target, "--rm", "a", &["echo", "plain"])
        .prints("plain\n");
}

fn collects_after_an_asynchronous_removal(c: &Case) {
    let image = images::unique(&c.namespace);
    import(c, &image);
    c.ctr("images rm").arg(&image.name).ok();
    // A removal in another namespace asks for a collection at the latest.
    let gone = || c.list("content ls -q").is_empty().then_some(());
    let gone = corten_integration::process::eventually(corten_integration::process::DEADLINE, gone);
    if gone.is_none() {
        c.ctr("images rm --sync nothing").ok();
        import(c, &image);
        c.ctr("images rm --sync").arg(&image.name).ok();
    }
    assert!(c.list("content ls -q").is_empty());
    assert!(c.column("snapshots ls").is_empty());
}
