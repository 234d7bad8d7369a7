//! Bad input: a clear error in containerd's words, and nothing left behind.

use std::fs;

use corten_integration::case::Case;
use corten_integration::images;
use corten_integration::runner::{Test, with_both_clients};
use corten_integration::tests;

pub(crate) fn tests() -> Vec<Test> {
    let mut all = with_both_clients(tests![
        says_that_an_image_is_missing,
        says_that_a_command_is_missing,
        says_that_a_command_cannot_be_run,
        says_that_a_runtime_is_unknown,
        says_that_a_container_is_missing,
        refuses_a_second_container_of_a_name,
        says_that_a_mount_source_is_missing,
        fails_an_exec_of_a_missing_command,
    ]);
    all.extend(tests![
        says_that_a_snapshotter_is_unknown,
        says_that_an_identifier_is_bad,
        says_that_a_namespace_is_bad,
        says_that_things_are_missing,
        refuses_a_broken_archive,
        refuses_an_archive_with_wrong_bytes,
        refuses_an_image_for_another_platform,
        refuses_a_working_directory_that_is_a_file,
        refuses_a_bad_seccomp_profile,
        fails_twice_the_same_way,
    ]);
    all
}

const CREATE: &str = "failed to create shim task: OCI runtime create failed: ";

/// After a run that failed: ctr --rm removes container and snapshot, the daemon all the rest.
fn nothing_is_left(c: &Case) {
    assert!(c.list("containers ls -q").is_empty(), "a container is left");
    assert!(c.list("task ls -q").is_empty(), "a task is left");
    assert!(
        !c.column("snapshots ls")
            .iter()
            .any(|k| !k.starts_with("sha256:")),
        "a snapshot"
    );
}

fn says_that_an_image_is_missing(c: &Case) {
    c.run_named("nowhere.local/missing:1", "--rm", "a", &["true"])
        .fails(r#"image "nowhere.local/missing:1": not found"#);
    nothing_is_left(c);
}

fn says_that_a_command_is_missing(c: &Case) {
    let done = c.run("--rm", "a", &["no-such-command"]).fails(CREATE);
    done.expect_code(1);
    let text = r#"exec: "no-such-command": executable file not found in $PATH"#;
    assert!(done.err().contains(text), "{}", done.report());
    let done = c.run("--rm", "a", &["/no/such/command"]).fails(CREATE);
    let text = r#"exec: "/no/such/command": stat /no/such/command: no such file or directory"#;
    assert!(done.err().contains(text), "{}", done.report());
    nothing_is_left(c);
}

fn says_that_a_command_cannot_be_run(c: &Case) {
    let done = c.run("--rm", "a", &["/etc/passwd"]).fails(CREATE);
    assert!(
        done.err()
            .contains(r#"exec: "/etc/passwd": permission denied"#),
        "{}",
        done.report()
    );
    let done = c.run("--rm", "a", &["/etc"]).fails(CREATE);
    assert!(
        done.err().contains(r#"exec: "/etc": is a directory"#),
        "{}",
        done.report()
    );
    nothing_is_left(c);
}

fn says_that_a_runtime_is_unknown(c: &Case) {
    c.run("--rm --runtime io.example.nope.v1", "a", &["true"]).fails(
        r#"runtime "io.example.nope.v1" binary not installed "containerd-shim-nope-v1": file does not exist"#,
    );
    c.run("--rm --runtime nope", "a", &["true"]).fails(
        "invalid runtime name nope, correct runtime name should be either format like \
         `io.containerd.runc.v2` or a full path to the binary",
    );
    c.run("--rm --runtime /no/such/shim", "a", &["true"])
        .fails("invalid custom binary path: stat /no/such/shim: no such file or directory");
    nothing_is_left(c);
}

fn says_that_a_container_is_missing(c: &Case) {
    let missing = format!(
        r#"container "nope" in namespace "{}": not found"#,
        c.namespace
    );
    let commands = "task kill, task delete, task start, task attach, task metrics, task ps, \
                    task pause, task resume, containers info, containers rm";
    for command in commands.split(", ") {
        c.ctr(command).arg("nope").fails(&missing).expect_code(1);
    }
    c.exec("", "nope", &["true"]).fails(&missing);
}

fn refuses_a_second_container_of_a_name(c: &Case) {
    c.sleeper("a");
    c.run("--rm", "a", &["true"])
        .fails(r#"snapshot "a": already exists"#);
    assert_eq!(
        c.status("a").as_deref(),
        Some("RUNNING"),
        "the first one lives on"
    );
    c.remove("a");
}

fn says_that_a_mount_source_is_missing(c: &Case) {
    let mount = "--rm --mount type=bind,src=/no/such/dir,dst=/mnt,options=rbind:ro";
    let done = c.run(mount, "a", &["true"]).fails(CREATE);
    assert!(
        done.err().contains("no such file or directory"),
        "{}",
        done.report()
    );
    assert!(
        done.err().contains("/no/such/dir"),
        "names the source: {}",
        done.report()
    );
    nothing_is_left(c);
}

fn fails_an_exec_of_a_missing_command(c: &Case) {
    c.sleeper("a");
    let done = c
        .exec("", "a", &["no-such-command"])
        .fails("OCI runtime exec failed: exec failed: ");
    let text = r#"exec: "no-such-command": executable file not found in $PATH"#;
    assert!(done.err().contains(text), "{}", done.report());
    // The container is none the worse for it.
    c.exec("", "a", &["echo", "fine"]).prints("fine\n");
    c.remove("a");
}

fn says_that_a_snapshotter_is_unknown(c: &Case) {
    c.run("--rm --snapshotter nope", "a", &["true"])
        .fails("snapshotter not loaded: nope: invalid argument");
    c.ctr("snapshots --snapshotter nope ls")
        .fails("snapshotter not loaded: nope");
}

fn says_that_an_identifier_is_bad(c: &Case) {
    let name = c.has(&images::busybox());
    for id in ["bad id", "a_", "-a", "a/b"] {
        let create = c.ctr("containers create --runtime").arg(&c.runtime);
        let done = create.args(["--", &name, id, "true"]).run();
        let text = format!(
            "container.ID: identifier {id:?} must match \
             ^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$: invalid argument"
        );
        assert!(
            done.code() == 1 && done.err().contains(&text),
            "{}",
            done.report()
        );
        // ctr prepares the snapshot before the daemon sees the name.
        let _ = c.ctr("snapshots rm").args(["--", id]).run();
    }
    let long = "x".repeat(77);
    let create = c.ctr("containers create --runtime").arg(&c.runtime);
    create
        .args([&name, &long, "true"])
        .fails("greater than maximum length (76 characters)");
    let _ = c.ctr("snapshots rm").arg(&long).run();
}

fn says_that_a_namespace_is_bad(c: &Case) {
    c.ctr("-n Bad_ images ls").fails(
        "namespace validation: identifier \"Bad_\" must match \
         ^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$: invalid argument",
    );
    c.ctr("-n")
        .arg("")
        .words("images ls")
        .fails("namespace is required: failed precondition");
}

fn says_that_things_are_missing(c: &Case) {
    let zero = format!("sha256:{}", "0".repeat(64));
    c.ctr("content get")
        .arg(&zero)
        .fails(&format!("content digest {zero}: not found"));
    c.ctr("snapshots rm nope")
        .fails("snapshot nope does not exist: not found");
    c.ctr("snapshots info nope").fails("not found");
    c.ctr("leases rm nope").fails(r#"lease "nope": not found"#);
    c.ctr("images tag nope a.b/c:1")
        .fails(r#"image "nope": not found"#);
    c.ctr("images label nope a=b")
        .fails(r#"image "nope": not found"#);
    c.ctr("images export /dev/null nope")
        .fails(r#"image "nope": not found"#);
    c.ctr("content get not-a-digest")
        .fails("invalid checksum digest format");
}

fn refuses_a_broken_archive(c: &Case) {
    let file = c.file("junk.tar");
    fs::write(&file, "this is no archive").unwrap();
    c.new_ctr("images import")
        .arg(&file)
        .fails("unexpected EOF");
    let whole = images::busybox().oci_layout();
    fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    c.new_ctr("images import")
        .arg(&file)
        .fails("unexpected EOF");
    c.new_ctr("images import --local")
        .arg(&file)
        .fails("unexpected EOF");
    assert!(c.list("images ls -q").is_empty());
}

fn refuses_an_archive_with_wrong_bytes(c: &Case) {
    let mut image = images::busybox();
    let layer = image.layers().remove(0);
    let blob = image.blobs.get_mut(&layer).unwrap();
    let middle = blob.bytes.len() / 2;
    blob.bytes[middle] ^= 1;
    let file = c.file("wrong.tar");
    fs::write(&file, image.oci_layout()).unwrap();
    // The blob is stored under its true digest, so the one that the manifest names is missing.
    for way in ["images import", "images import --local"] {
        let done = c.new_ctr(way).arg(&file).run();
        assert_ne!(done.code(), 0, "{}", done.report());
        let error = done.err();
        assert!(
            error.contains("unexpected commit digest") || error.contains("not found"),
            "{error}"
        );
        // The name may be there, as it is before an image is unpacked; what it names is not.
        assert!(!c.list("content ls -q").contains(&layer), "the digest lies");
        c.new_ctr("images rm --sync").arg(&image.name).ok();
    }
}

fn refuses_an_image_for_another_platform(c: &Case) {
    let image = images::foreign();
    c.new_ctr("images import --all-platforms --no-unpack")
        .arg(image.archive())
        .ok();
    let done = c.run_named(&image.name, "--rm", "a", &["true"]).run();
    assert_ne!(done.code(), 0, "{}", done.report());
    nothing_is_left(c);
}

fn refuses_a_working_directory_that_is_a_file(c: &Case) {
    let done = c
        .run("--rm --cwd /etc/passwd", "a", &["true"])
        .fails(CREATE);
    assert!(done.err().contains("not a directory"), "{}", done.report());
    nothing_is_left(c);
}

fn refuses_a_bad_seccomp_profile(c: &Case) {
    let profile = c.file("profile.json");
    fs::write(&profile, r#"{"defaultAction": "SCMP_ACT_NONSENSE"}"#).unwrap();
    let flags = format!("--rm --seccomp --seccomp-profile {}", profile.display());
    let done = c.run(&flags, "a", &["true"]).fails(CREATE);
    assert!(
        done.err().to_lowercase().contains("seccomp"),
        "{}",
        done.report()
    );
    nothing_is_left(c);
}

fn fails_twice_the_same_way(c: &Case) {
    let first = c.run("--rm", "a", &["nope"]).run();
    let second = c.run("--rm", "a", &["nope"]).run();
    assert_eq!((first.code(), first.err()), (second.code(), second.err()));
    c.run("--rm", "a", &["echo", "the name is free"])
        .prints("the name is free\n");
}
