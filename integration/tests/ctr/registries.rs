//! How clients reach registries: every registry flag of every command that has them, and what is
//! pulled, fetched and pushed of an image. Most of these commands speak to the registry themselves
//! and to the daemon's content store; `images pull` and `push` of 2.4 let the daemon do it.

use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};

use corten_integration::case::Case;
use corten_integration::ctr::Client;
use corten_integration::images::{self, Image};
use corten_integration::registry::{Registry, Tiny, Trick};
use corten_integration::runner::{Test, with_both_clients};
use corten_integration::tests;

pub(crate) fn tests() -> Vec<Test> {
    let mut all = with_both_clients(tests![
        fetches_what_was_asked_for,
        shows_a_client_certificate,
        logs_in_with_user_or_refresh_token,
        traces_what_is_said,
        pulls_what_was_asked_for,
        pushes_a_manifest_by_digest,
    ]);
    all.extend(tests![
        pulls_of_the_daemon_take_every_flag,
        pushes_of_the_daemon_take_every_flag,
        pushes_blobs_that_are_not_for_distribution,
    ]);
    all
}

/// The commands that the client itself carries out: fetching ones, then pushing ones.
fn commands(c: &Case) -> [Vec<&'static str>; 2] {
    if c.client == Client::New {
        [
            vec![
                "images pull --local",
                "content fetch",
                "content fetch-object",
                "content fetch-blob",
            ],
            vec!["images push --local", "content push-object"],
        ]
    } else {
        [
            vec!["images pull", "content fetch", "content fetch-object"],
            vec!["images push", "content push-object"],
        ]
    }
}

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Runs `command` with `flags` against `reference`, which is `image` somewhere.
fn reach(c: &Case, command: &str, flags: &str, reference: &str, image: &Image) {
    if command.contains("push-object") {
        // Into a repository that has no such layer yet.
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let new = reference.replace('/', &format!("/new{number}/"));
        let layer = &image.layers()[0];
        let cmd = c.ctr(command).words(flags).arg(new);
        cmd.args([layer, &image.blobs[layer].media_type]).ok();
        return;
    }
    let cmd = c.ctr(command).words(flags).arg(reference);
    if command.contains("fetch-object") || command.contains("fetch-blob") {
        let digest = if command.contains("blob") {
            image.config()
        } else {
            image.digest.clone()
        };
        let done = cmd.arg(&digest).run();
        done.expect_code(0);
        // --http-dump writes to standard output as well.
        let bytes = &image.blobs[&digest].bytes;
        let found = done.stdout.windows(bytes.len()).any(|w| w == bytes);
        assert!(found, "{}", done.report());
    } else {
        cmd.ok();
    }
}

fn reach_all(c: &Case, flags: &str, reference: &str, image: &Image) {
    let [fetching, pushing] = commands(c);
    for command in fetching.iter().chain(&pushing) {
        reach(c, command, flags, reference, image);
    }
}

fn shows_a_client_certificate(c: &Case) {
    let image = images::unique(&c.namespace);
    let registry = Registry::mutual_tls(&c.dir);
    let plain = Registry::plain(&c.dir);
    plain.push(&image);
    let reference = registry.reference(&image);
    let ca = registry.ca.as_ref().unwrap().display();
    let (cert, key) = registry.client.as_ref().unwrap();
    let mut shown = format!("--tlscert {} --tlskey {}", cert.display(), key.display());
    if c.client == Client::Old {
        // It takes loopback for plain HTTP unless it is told otherwise.
        let bare = registry.bare_hosts_dir();
        shown += &format!(" --hosts-dir {}", bare.display());
    }
    c.ctr("content fetch")
        .words(&format!("--tlscacert {ca}"))
        .arg(&reference)
        .fails("");
    reach_all(c, &format!("--tlscacert {ca} {shown}"), &reference, &image);
    reach_all(c, &format!("--skip-verify {shown}"), &reference, &image);
    let hosts = registry.hosts_dir();
    reach_all(
        c,
        &format!("--hosts-dir {}", hosts.display()),
        &reference,
        &image,
    );
    drop(plain);
}

fn logs_in_with_user_or_refresh_token(c: &Case) {
    let image = images::unique(&c.namespace);
    let [fetching, pushing] = commands(c);
    for (trick, flag) in [
        (Trick::Basic, "--user user:secret"),
        (Trick::Refresh, "--refresh secret"),
    ] {
        let registry = Tiny::serve(image.clone(), trick);
        for command in &fetching {
            let flags = format!("--plain-http {flag}");
            reach(c, command, &flags, &registry.reference(), &image);
        }
        c.ctr("content fetch --plain-http")
            .arg(registry.reference())
            .fails("");
        c.ctr("images rm").arg(registry.reference()).ok();
    }
    // Docker's registry here wants no credentials, and takes none amiss.
    c.has(&image);
    let registry = Registry::plain(&c.dir);
    let reference = registry.reference(&image);
    c.ctr("images tag").args([&image.name, &reference]).ok();
    for command in &pushing {
        for flag in ["--user user:secret", "--refresh secret"] {
            let flags = format!("--plain-http {flag}");
            reach(c, command, &flags, &reference, &image);
        }
    }
}

fn traces_what_is_said(c: &Case) {
    let image = images::unique(&c.namespace);
    let registry = Registry::plain(&c.dir);
    let reference = registry.push(&image);
    let flags = "--plain-http --http-dump --http-trace";
    reach_all(c, flags, &reference, &image);
    let done = c.ctr("content fetch").words(flags).arg(&reference).run();
    let said = done.out() + &done.err();
    assert!(said.contains("/v2/unique/manifests/1"), "{said}");
}

fn pulls_what_was_asked_for(c: &Case) {
    let registry = Registry::plain(&c.dir);
    let image = images::multi();
    let reference = registry.push(&image);
    let local = if c.client == Client::New {
        "--local"
    } else {
        ""
    };
    let pull = |flags: &str| {
        let cmd = c.ctr("images pull --plain-http").words(local);
        cmd.words(flags).arg(&reference).ok()
    };
    let flags = "--print-chainid --max-concurrent-downloads 1 --platform linux/amd64 \
                 --label color=rust --snapshotter native";
    let out = pull(flags);
    assert!(out.contains(&image.chain_id()), "{out}");
    assert_eq!(
        c.column("snapshots --snapshotter native ls"),
        [image.chain_id()]
    );
    let named = c.list("images ls -q labels.color==rust");
    assert_eq!(named, std::slice::from_ref(&reference));
    let before = c.list("content ls -q").len();
    pull("--all-platforms");
    assert_eq!(c.list("content ls -q").len(), image.blobs.len());
    assert!(before < image.blobs.len());
    if c.client == Client::New {
        pull("--skip-metadata --sync-fs");
    } else {
        pull("--all-metadata");
    }
}

fn pushes_a_manifest_by_digest(c: &Case) {
    let registry = Registry::plain(&c.dir);
    let image = images::multi();
    c.new_ctr("images import --all-platforms --no-unpack")
        .arg(image.archive())
        .ok();
    let host = registry.host();
    let local = if c.client == Client::New {
        "--local"
    } else {
        ""
    };
    let push = |flags: &str, tag: &str| {
        let reference = format!("{host}/multi:{tag}");
        let cmd = c.ctr("images push --plain-http").words(local).words(flags);
        cmd.args([&reference, &image.name]).ok();
        format!("{host}/multi@")
    };
    let index: serde_json::Value =
        serde_json::from_slice(&image.blobs[&image.digest].bytes).unwrap();
    let member = index["manifests"][0]["digest"].as_str().unwrap();
    let is_there = |repository: &str| {
        let fetch = c.ctr("content fetch-object --plain-http");
        // By digest: a manifest that is pushed alone gets no tag.
        let done = fetch.args([&format!("{repository}{member}"), member]).run();
        let bytes = &image.blobs[member].bytes;
        assert!(done.stdout == *bytes, "{}", done.report());
    };
    let flags = "--max-concurrent-uploaded-layers 1 --allow-non-distributable-blobs";
    if c.client == Client::New {
        // With --manifest the client of 1.6 runs into a panic of its own.
        let flags = format!(
            "{flags} --manifest {member} --manifest-type {}",
            images::OCI_MANIFEST
        );
        push(&flags, "member");
    }
    is_there(&push(flags, "index"));
    is_there(&push("--platform linux/amd64", "platform"));
}

fn pulls_of_the_daemon_take_every_flag(c: &Case) {
    let image = images::multi();
    let registry = Registry::plain(&c.dir);
    let reference = registry.push(&image);
    let pull = |flags: &str| {
        let cmd = c.ctr("images pull").words(flags);
        cmd.arg(&reference).run()
    };
    let flags = "--plain-http --platform linux/amd64 --sync-fs --snapshotter overlayfs \
                 --skip-metadata --label color=rust";
    pull(flags).expect_code(0);
    assert_eq!(c.column("snapshots ls"), [image.chain_id()]);
    c.ctr("images rm --sync").arg(&reference).ok();
    let done = pull("--plain-http --platform linux/amd64 --http-dump --http-trace");
    done.expect_code(0);
    let said = done.out() + &done.err();
    let told = said.contains("/v2/multi/manifests/1");
    assert!(told, "the requests are not shown: {}", done.err());
    pull("--plain-http --all-platforms").expect_code(0);
    assert_eq!(c.list("content ls -q").len(), image.blobs.len());
    for flag in ["--skip-verify", "--print-chainid", "--tlscacert x"] {
        let name = flag.split(' ').next().unwrap();
        let text = format!("\"{name}\" requires \"--local\" flag");
        let done = pull(flag);
        assert!(done.err().contains(&text), "{}", done.report());
    }
    for (trick, flag) in [
        (Trick::Basic, "--user user:secret"),
        (Trick::Refresh, "--refresh secret"),
    ] {
        let tiny = Tiny::serve(images::unique(&format!("{}{flag}", c.namespace)), trick);
        let cmd = c.ctr("images pull --plain-http").words(flag);
        cmd.arg(tiny.reference()).ok();
        assert!(c.list("images ls -q").contains(&tiny.reference()));
    }
    let tls = Registry::mutual_tls(&c.dir);
    let hosts = tls.hosts_dir();
    let reference = tls.reference(&image);
    c.ctr("images pull --hosts-dir")
        .arg(&hosts)
        .arg(&reference)
        .ok();
    assert!(c.list("images ls -q").contains(&reference));
}

fn pushes_of_the_daemon_take_every_flag(c: &Case) {
    let image = images::multi();
    c.new_ctr("images import --all-platforms --no-unpack")
        .arg(image.archive())
        .ok();
    let tls = Registry::mutual_tls(&c.dir);
    let plain = Registry::plain(&c.dir);
    let push = |flags: &str, host: &str, tag: &str| {
        let reference = format!("{host}/multi:{tag}");
        let cmd = c.ctr("images push").words(flags);
        cmd.args([&reference, &image.name]).run().expect_code(0);
        c.ctr("content fetch --all-platforms --plain-http")
            .arg(format!("{}/multi:{tag}", plain.host()))
            .ok();
    };
    let (open, closed) = (plain.host(), tls.host());
    push("--plain-http --user user:secret", &open, "a");
    push("--plain-http --refresh secret", &open, "b");
    push(
        "--plain-http --platform linux/amd64 --platform linux/arm64",
        &open,
        "c",
    );
    let hosts = format!("--hosts-dir {}", tls.hosts_dir().display());
    push(&hosts, &closed, "d");
    let reference = format!("{open}/multi:1");
    for flag in ["--manifest x", "--skip-verify", "--http-dump"] {
        let done = c.ctr("images push").words(flag).arg(&reference).run();
        let text = "requires \"--local\" flag";
        assert!(done.err().contains(text), "{}", done.report());
    }
}

fn fetches_what_was_asked_for(c: &Case) {
    let registry = Registry::plain(&c.dir);
    let image = images::multi();
    let reference = registry.push(&image);
    let count = |flags: &str| {
        let fetch = c.ctr("content fetch --plain-http").words(flags);
        fetch.arg(&reference).ok();
        let count = c.list("content ls -q").len();
        c.ctr("images rm --sync").arg(&reference).ok();
        count
    };
    let metadata = count("--metadata-only");
    let newer = c.client == Client::New;
    let one = count("--platform linux/arm64 --label color=rust");
    let all = count("--all-platforms");
    assert_eq!(all, image.blobs.len());
    let other = if newer {
        "--skip-metadata"
    } else {
        "--all-metadata"
    };
    assert!(count(other) < all);
    if !newer {
        return;
    }
    assert!(metadata < all && one < all, "{metadata} and {one} of {all}");
    let blob = c
        .ctr("content fetch-blob --plain-http --media-type application/octet-stream")
        .args([&reference, &image.blobs.keys().next().unwrap().clone()])
        .run();
    blob.expect_code(0);
    assert!(image.blobs.values().any(|b| b.bytes == blob.stdout));
}

fn pushes_blobs_that_are_not_for_distribution(c: &Case) {
    let image = images::busybox();
    c.has(&image);
    let registry = Registry::plain(&c.dir);
    let reference = registry.reference(&image);
    c.ctr("images push --local --plain-http --allow-non-distributable-blobs")
        .args([&reference, &image.name])
        .ok();
    let file = c.file("out.tar");
    c.ctr("images export --skip-non-distributable --skip-manifest-json")
        .arg(&file)
        .arg(&image.name)
        .ok();
    assert!(fs::metadata(&file).unwrap().len() > 1000);
}
