//! Image verifiers: programs of the administrator that may refuse an image before it is pulled.

use std::fs;

use corten_integration::case::Case;
use corten_integration::daemon::{Daemon, Setup};
use corten_integration::images;
use corten_integration::process::{Cmd, program};
use corten_integration::registry::{Tiny, Trick};
use corten_integration::runner::Test;
use corten_integration::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        asks_every_program_before_a_pull,
        blocks_what_a_program_refuses,
        blocks_what_a_program_does_not_judge,
    ]
}

/// A daemon that asks `script`.
fn daemon(c: &Case, script: &str) -> Daemon {
    let dir = c.file("verifiers");
    fs::create_dir_all(&dir).unwrap();
    program(&dir.join("judge"), &format!("#!/bin/sh\n{script}\n"));
    let extra = format!(
        "[plugins.'io.containerd.image-verifier.v1.bindir']\nbin_dir = \"{}\"\n\
         per_verifier_timeout = \"1s\"\n",
        dir.display()
    );
    Setup::new(c.daemon.kind).extra(&extra).start()
}

fn ctr(c: &Case, daemon: &Daemon, words: &str) -> Cmd {
    let cmd = c
        .client
        .command(&daemon.socket(), "verified", &daemon.base.join("t"));
    cmd.words(words)
}

fn asks_every_program_before_a_pull(c: &Case) {
    let said = c.file("said");
    let script = format!("echo \"$@\" >>{0}; cat >>{0}; exit 0", said.display());
    let daemon = daemon(c, &script);
    let image = images::busybox();
    let registry = Tiny::serve(image.clone(), Trick::None);
    let reference = registry.reference();
    ctr(c, &daemon, "images pull --plain-http")
        .arg(&reference)
        .ok();
    let said = fs::read_to_string(said).unwrap();
    let (args, descriptor) = said.split_once('\n').unwrap();
    let expected = format!(
        "-name {reference} -digest {} -stdin-media-type application/vnd.oci.descriptor.v1+json",
        image.digest
    );
    assert_eq!(args, expected);
    let descriptor: serde_json::Value = serde_json::from_str(descriptor).unwrap();
    assert_eq!(descriptor["digest"], image.digest, "{descriptor}");
    assert!(descriptor["size"].is_u64() && descriptor["mediaType"].is_string());
    assert_eq!(daemon.stop(), 0);
}

fn blocks_what_a_program_refuses(c: &Case) {
    let daemon = daemon(c, "echo we do not know it; exit 7");
    let image = images::busybox();
    let registry = Tiny::serve(image.clone(), Trick::None);
    let reference = registry.reference();
    let reason = format!(
        "image verifier bindir blocked pull of {reference} with digest {} for reason: \
         verifier judge rejected image (exit code 7): we do not know it",
        image.digest
    );
    ctr(c, &daemon, "images pull --plain-http")
        .arg(&reference)
        .fails(&reason);
    assert_eq!(ctr(c, &daemon, "images ls -q").ok(), "");
    assert_eq!(ctr(c, &daemon, "content ls -q").ok(), "");
    let fetched = registry.requests();
    assert!(
        !fetched.iter().any(|r| r.contains("/blobs/")),
        "{fetched:?}"
    );
    assert_eq!(daemon.stop(), 0);
}

fn blocks_what_a_program_does_not_judge(c: &Case) {
    let daemon = daemon(c, "sleep 1000");
    let registry = Tiny::serve(images::busybox(), Trick::None);
    let pull = ctr(c, &daemon, "images pull --plain-http").arg(registry.reference());
    let done = pull.fails("image verifier bindir returned error: failed to call verifier judge");
    assert!(done.err().contains("signal: killed"), "{}", done.report());
    assert_eq!(ctr(c, &daemon, "images ls -q").ok(), "");
    assert_eq!(daemon.stop(), 0);
}
