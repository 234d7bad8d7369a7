//! The rest of ctr: flags of small commands, global flags, `ctr shim`, sandboxes, checkpoints of
//! containers.

use std::fs;

use corten_integration::case::Case;
use corten_integration::ctr::Client;
use corten_integration::images;
use corten_integration::process::{DEADLINE, eventually, program};
use corten_integration::runner::{Test, with_both_clients};
use corten_integration::tests;
use serde_json::Value;

pub(crate) fn tests() -> Vec<Test> {
    let mut all = with_both_clients(tests![
        takes_global_flags,
        lists_names_only,
        prunes_references,
        packs_a_diff_as_asked_for,
        unpacks_with_a_snapshotter,
        saves_and_restores_a_container,
    ]);
    all.extend(tests![
        speaks_with_a_shim,
        mounts_a_snapshot_for_a_while,
        runs_a_sandbox,
        runs_containers_in_a_sandbox,
        inspects_a_runtime_with_options,
        lists_deprecations_as_json,
    ]);
    let mut quiet = with_both_clients(tests![prints_mounts_of_what_it_prepares]);
    quiet.extend(tests![edits_a_blob]);
    all.extend(quiet.into_iter().map(Test::quiet_daemon));
    all
}

fn takes_global_flags(c: &Case) {
    c.ctr("--debug --timeout 30s --connect-timeout 5s images ls")
        .ok();
    assert!(c.ctr("oci spec").ok().contains("ociVersion"));
    assert!(c.ctr("--version").ok().contains("ctr"));
    assert!(c.ctr("--help").ok().contains("COMMANDS"));
    let done = c
        .ctr("--connect-timeout 1s -a /no/such/socket images ls")
        .run();
    assert_eq!(done.code(), 1, "{}", done.report());
    let done = c.ctr("--timeout 200ms events").run();
    assert!(done.code() != 0, "it ends by itself: {}", done.report());
}

fn lists_names_only(c: &Case) {
    let plugins = c.ctr("plugins ls -q").ok();
    assert!(
        plugins.lines().any(|l| l.contains("overlayfs")),
        "{plugins}"
    );
    let spaces = c.list("namespaces ls -q");
    c.ctr("namespaces label").args([&c.namespace, "a=b"]).ok();
    assert!(
        c.list("namespaces ls -q").contains(&c.namespace),
        "{spaces:?}"
    );
    c.ctr("content active --timeout 5s --root").arg(&c.dir).ok();
    let lists = ["leases", "content", "task", "containers", "images"];
    assert!(
        lists
            .iter()
            .all(|l| c.ctr(l).words("ls -q").ok().is_empty())
    );
    let name = format!("{}-c", c.namespace);
    c.ctr("namespaces create").arg(&name).ok();
    let done = c.ctr("namespaces rm --cgroup").arg(&name).run();
    assert!(!done.err().contains("not found"), "{}", done.report());
    let _ = c.ctr("namespaces rm").arg(&name).run();
}

fn edits_a_blob(c: &Case) {
    let image = images::busybox();
    c.has(&image);
    let editor = c.file("editor");
    program(&editor, "#!/bin/sh\nsed -i 's/amd64/arm64/' \"$1\"\n");
    c.ctr("content edit --validate json")
        .arg(image.config())
        .fails("validating the edit result not supported");
    let edit = c.ctr("content edit --editor").arg(&editor);
    let digest = edit.arg(image.config()).ok().trim().to_owned();
    let text = c.ctr("content get").arg(&digest).ok();
    assert!(text.contains("arm64"), "{text}");
    c.ctr("content rm").arg(&digest).ok();
}

fn prunes_references(c: &Case) {
    let image = images::busybox();
    c.has(&image);
    c.ctr("content prune references --dry").ok();
    assert!(c.list("content ls -q").contains(&image.layers()[0]));
    c.ctr("content prune references --async").ok();
    c.ctr("content prune references").ok();
    // The layer was unpacked: its bytes are needed no more.
    assert!(!c.list("content ls -q").contains(&image.layers()[0]));
    assert!(c.list("images ls -q").contains(&image.name));
}

fn packs_a_diff_as_asked_for(c: &Case) {
    let image = images::busybox();
    c.has(&image);
    c.ctr("snapshots prepare active").arg(image.chain_id()).ok();
    let flags = "--media-type application/vnd.oci.image.layer.v1.tar --ref my-diff --keep \
                 --label color=rust";
    let done = c.ctr("snapshots diff").words(flags).arg("active").run();
    done.expect_code(0);
    let kept = c.list("content ls -q labels.color==rust");
    assert_eq!(kept, [images::digest_of(&done.stdout)]);
    c.ctr("content rm").arg(&kept[0]).ok();
    c.ctr("snapshots rm active").ok();
}

fn prints_mounts_of_what_it_prepares(c: &Case) {
    let image = images::busybox();
    c.has(&image);
    let chain = image.chain_id();
    for command in ["prepare", "view"] {
        let key = format!("{command}-a");
        let cmd = c
            .ctr("snapshots")
            .arg(command)
            .words("--target /some/where");
        let line = cmd.args([&key, &chain]).ok();
        assert!(
            line.starts_with("mount -t ") && line.contains("/some/where"),
            "{line}"
        );
        c.ctr("snapshots rm").arg(&key).ok();
        let cmd = c.ctr("snapshots").arg(command).words("--mounts");
        let json: Value = serde_json::from_str(&cmd.args([&key, &chain]).ok()).unwrap();
        assert!(
            json[0]["Type"].is_string() || json[0]["type"].is_string(),
            "{json}"
        );
        c.ctr("snapshots rm").arg(&key).ok();
    }
}

fn unpacks_with_a_snapshotter(c: &Case) {
    let image = images::busybox();
    c.new_ctr("images import --no-unpack")
        .arg(image.archive())
        .ok();
    let sync = if c.client == Client::New {
        "--sync-fs"
    } else {
        ""
    };
    c.ctr("snapshots unpack --snapshotter native")
        .words(sync)
        .arg(&image.digest)
        .ok();
    let native = c.column("snapshots --snapshotter native ls");
    assert_eq!(native, [image.chain_id()]);
}

fn saves_and_restores_a_container(c: &Case) {
    c.run(
        "-d --null-io",
        "a",
        &["sh", "-c", "echo kept > /kept; exec sleep 1000"],
    )
    .ok();
    let written = || {
        let done = c.exec("", "a", &["cat", "/kept"]).run();
        (done.out() == "kept\n").then_some(())
    };
    eventually(DEADLINE, written).expect("it writes");
    c.ctr("containers checkpoint --rw --image a test.local/saved:1")
        .ok();
    assert_eq!(c.status("a").as_deref(), Some("RUNNING"), "it is resumed");
    c.remove("a");
    // Options of the runtime are what restore looks for first; this container has none.
    c.ctr("containers restore --rw b test.local/saved:1")
        .fails("media type not found");
}

fn speaks_with_a_shim(c: &Case) {
    c.sleeper("a");
    let pid = c.pid("a");
    let place = c.daemon.state().join("io.containerd.runtime.v2.task");
    let file = place.join(&c.namespace).join("a/bootstrap.json");
    let params: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    let address = params["address"].as_str().unwrap();
    // Without the address ctr computes it, as stock does, from the daemon's address and the id.
    let shim = |words: &str| {
        let cmd = c.ctr("shim --id a --shim-address").arg(address);
        cmd.words(words).run()
    };
    for words in ["state", "state --task-id a --api-version 3"] {
        let done = shim(words);
        done.expect_code(0);
        assert!(done.out().contains(&pid.to_string()), "{}", done.report());
    }
    // It names no container beside the exec, which no shim can make sense of.
    let spec = c.file("process.json");
    fs::write(&spec, r#"{"args": ["true"], "cwd": "/"}"#).unwrap();
    let exec = format!(
        "exec --cwd / --env A=b --attach --spec {} x",
        spec.display()
    );
    assert_ne!(shim(&exec).code(), 0);
    assert_ne!(shim("start").code(), 0, "it runs already");
    assert_ne!(shim("delete").code(), 0, "it is running");
    // With a task in it a shim stays.
    let _ = shim("shutdown --api-version 3");
    assert_eq!(c.pid("a"), pid);
    c.remove("a");
}

fn mounts_a_snapshot_for_a_while(c: &Case) {
    let image = images::busybox();
    c.has(&image);
    c.ctr("snapshots prepare active").arg(image.chain_id()).ok();
    let line = c.ctr("snapshots mounts --temp /mnt active").ok();
    assert!(
        line.starts_with("mount -t bind ") && line.contains(" /mnt "),
        "{line}"
    );
    c.ctr("snapshots rm active").ok();
}

fn runs_a_sandbox(c: &Case) {
    if c.is_reference() {
        println!("Corten only: the stock shim of runc has no sandbox service and stays behind");
        return;
    }
    let file = c.file("pod.json");
    fs::write(&file, c.ctr("oci spec").ok()).unwrap();
    let run = c.ctr("sandboxes run --runtime").arg(&c.runtime).arg(&file);
    assert_eq!(run.arg("pod").ok(), "pod\n");
    assert_eq!(c.column("sandboxes ls --filters id==pod"), ["pod"]);
    let info: Value = serde_json::from_str(&c.ctr("sandboxes info pod").ok()).unwrap();
    assert_eq!(info["Runtime"]["Name"], c.runtime, "{info}");
    c.ctr("sandboxes rm --force pod").ok();
    assert!(c.column("sandboxes ls").is_empty());
}

fn runs_containers_in_a_sandbox(c: &Case) {
    // A sandbox that is not there is one of a daemon of 1.x: the container gets a shim of its own.
    c.run("--rm --null-io --sandbox none", "a", &["true"]).ok();
    let create = c
        .ctr("containers create --sandbox none --runtime")
        .arg(&c.runtime);
    create
        .arg(c.has(&images::busybox()))
        .args(["b", "true"])
        .ok();
    assert!(c.ctr("containers info b").ok().contains("\"none\""));
    c.ctr("containers rm b").ok();
    if c.is_reference() {
        println!("Corten only: the stock shim of runc has no sandbox service");
        return;
    }
    let file = c.file("pod.json");
    let mut spec: Value = serde_json::from_str(&c.ctr("oci spec").ok()).unwrap();
    // The client names the namespace's own, in which others have been.
    spec["linux"]["cgroupsPath"] = format!("/{}/pod", c.namespace).into();
    fs::write(&file, spec.to_string()).unwrap();
    let run = c.ctr("sandboxes run --runtime").arg(&c.runtime).arg(&file);
    run.arg("pod").ok();
    c.run("-d --null-io --sandbox pod", "c", &["sleep", "1000"])
        .ok();
    assert_eq!(c.status("c").as_deref(), Some("RUNNING"));
    let tasks = c.daemon.state().join("io.containerd.runtime.v2.task");
    let sandbox = tasks.join(&c.namespace).join("c/sandbox");
    assert_eq!(fs::read_to_string(sandbox).unwrap(), "pod");
    c.ctr("task kill -s SIGKILL c").ok();
    c.wait_stopped("c");
    c.remove("c");
    c.ctr("sandboxes rm --force pod").ok();
}

fn inspects_a_runtime_with_options(c: &Case) {
    let done = c
        .ctr("plugins inspect-runtime --runtime")
        .arg(&c.runtime)
        .words("--runtime-config-path /no/such/file")
        .run();
    // Options are the shim's to judge.
    assert!(
        done.code() == 0 || done.err().contains("/no/such/file"),
        "{}",
        done.report()
    );
}

fn lists_deprecations_as_json(c: &Case) {
    let out = c.ctr("deprecations list --format json").ok();
    // Nothing to tell is told by nothing.
    if !out.trim().is_empty() {
        let json: Value = serde_json::from_str(&out).unwrap();
        assert!(json.is_array() || json.is_null(), "{json}");
    }
}
