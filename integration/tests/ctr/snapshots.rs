//! `ctr snapshots`: trees of file systems without containers, by overlayfs and native.

use std::fs;

use corten_integration::case::Case;
use corten_integration::images;
use corten_integration::process::Cmd;
use corten_integration::runner::{Test, with_both_clients};
use corten_integration::tests;

pub(crate) fn tests() -> Vec<Test> {
    let mut all = with_both_clients(tests![
        works_without_overlayfs,
        prints_mounts_that_work,
        measures_usage,
        shows_the_tree,
        labels_snapshots,
        lists_layers_with_their_parents,
        prepares_and_commits
    ]);
    all.extend(tests![
        refuses_to_remove_a_parent,
        diffs_a_snapshot,
        unpacks_an_image,
    ]);
    let quiet = tests![views_read_only, keeps_hidden_files_hidden];
    all.extend(quiet.into_iter().map(Test::quiet_daemon));
    all
}

fn snapshots(c: &Case, words: &str) -> Cmd {
    c.ctr("snapshots").words(words)
}

fn lists_layers_with_their_parents(c: &Case) {
    let image = images::layered();
    c.has(&image);
    let table = snapshots(c, "ls").ok();
    let heading: Vec<_> = table.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(heading, ["KEY", "PARENT", "KIND"]);
    assert_eq!(table.lines().count() - 1, image.diff_ids.len());
    let top = table
        .lines()
        .find(|l| l.starts_with(&image.chain_id()))
        .unwrap();
    assert!(top.trim_end().ends_with("Committed"), "{top}");
    let roots = table
        .lines()
        .skip(1)
        .filter(|l| l.split_whitespace().count() == 2)
        .count();
    assert_eq!(roots, 1, "one layer has no parent:\n{table}");
}

fn prepares_and_commits(c: &Case) {
    let image = images::busybox();
    c.has(&image);
    snapshots(c, "prepare active").arg(image.chain_id()).ok();
    let info: serde_json::Value = serde_json::from_str(&snapshots(c, "info active").ok()).unwrap();
    assert_eq!(
        (&info["Kind"], &info["Name"]),
        (&"Active".into(), &"active".into())
    );
    assert_eq!(info["Parent"], image.chain_id());
    snapshots(c, "prepare active")
        .arg(image.chain_id())
        .fails("already exists");
    // ctr roots what it commits, so that no collection takes it.
    snapshots(c, "commit done active").ok();
    snapshots(c, "info active").fails("not found");
    let info: serde_json::Value = serde_json::from_str(&snapshots(c, "info done").ok()).unwrap();
    assert_eq!(info["Kind"], "Committed");
    snapshots(c, "rm done").ok();
}

fn prints_mounts_that_work(c: &Case) {
    let image = images::busybox();
    c.has(&image);
    snapshots(c, "prepare active").arg(image.chain_id()).ok();
    let target = c.file("target");
    fs::create_dir(&target).unwrap();
    let line = snapshots(c, "mounts").arg(&target).arg("active").ok();
    assert!(line.starts_with("mount -t "), "{line}");
    let done = Cmd::new("sh").args(["-c", &line]).run();
    done.expect_code(0);
    assert!(target.join("bin/busybox").exists());
    fs::write(target.join("new"), "x").unwrap();
    Cmd::new("umount").arg(&target).ok();
    snapshots(c, "rm active").ok();
}

fn views_read_only(c: &Case) {
    let image = images::busybox();
    c.has(&image);
    snapshots(c, "view look").arg(image.chain_id()).ok();
    let info: serde_json::Value = serde_json::from_str(&snapshots(c, "info look").ok()).unwrap();
    assert_eq!(info["Kind"], "View");
    let line = snapshots(c, "mounts /mnt look").ok();
    let words: Vec<_> = line.split([' ', ',']).collect();
    assert!(words.contains(&"ro"), "{line}");
    snapshots(c, "commit no look").fails("is not active");
    snapshots(c, "rm look").ok();
}

fn measures_usage(c: &Case) {
    let image = images::busybox();
    c.has(&image);
    let line = snapshots(c, "usage -b").arg(image.chain_id()).ok();
    let row: Vec<_> = line.lines().nth(1).unwrap().split_whitespace().collect();
    let (size, inodes): (u64, u64) = (row[1].parse().unwrap(), row[2].parse().unwrap());
    assert!(size > 1_000_000, "busybox alone is larger than {size}");
    assert!(inodes > 200, "every applet is a link, not only {inodes}");
}

fn shows_the_tree(c: &Case) {
    let image = images::layered();
    c.has(&image);
    let tree = snapshots(c, "tree").ok();
    assert_eq!(
        tree.trim_end().lines().count(),
        image.diff_ids.len(),
        "{tree}"
    );
    assert!(
        tree.trim_start().starts_with("sha256:"),
        "the root comes first: {tree}"
    );
    assert!(
        tree.trim_end()
            .lines()
            .last()
            .unwrap()
            .contains(&image.chain_id()),
        "{tree}"
    );
}

fn labels_snapshots(c: &Case) {
    let image = images::busybox();
    c.has(&image);
    snapshots(c, "prepare active").arg(image.chain_id()).ok();
    let out = snapshots(c, "label active color=rust").ok();
    assert!(out.contains("color=rust"), "{out}");
    let info: serde_json::Value = serde_json::from_str(&snapshots(c, "info active").ok()).unwrap();
    assert_eq!(info["Labels"]["color"], "rust");
    snapshots(c, "rm active").ok();
}

fn refuses_to_remove_a_parent(c: &Case) {
    let image = images::busybox();
    c.has(&image);
    snapshots(c, "prepare active").arg(image.chain_id()).ok();
    snapshots(c, "rm")
        .arg(image.chain_id())
        .fails("cannot remove snapshot with child");
    snapshots(c, "rm active").ok();
}

fn works_without_overlayfs(c: &Case) {
    let native = |words: &str| c.ctr("snapshots --snapshotter native").words(words);
    native("prepare one").ok();
    let target = c.file("target");
    fs::create_dir(&target).unwrap();
    let line = native("mounts").arg(&target).arg("one").ok();
    assert!(line.contains("bind"), "{line}");
    Cmd::new("sh").args(["-c", &line]).run().expect_code(0);
    fs::write(target.join("kept"), "kept").unwrap();
    Cmd::new("umount").arg(&target).ok();
    native("commit base one").ok();
    native("prepare two base").ok();
    let line = native("mounts").arg(&target).arg("two").ok();
    Cmd::new("sh").args(["-c", &line]).run().expect_code(0);
    let text = fs::read_to_string(target.join("kept"));
    Cmd::new("umount").arg(&target).ok();
    assert_eq!(text.unwrap(), "kept");
    native("rm base").fails("cannot remove snapshot with child");
    native("rm two").ok();
    native("rm base").ok();
}

fn diffs_a_snapshot(c: &Case) {
    c.run(
        "-d --null-io",
        "a",
        &["sh", "-c", "echo new > /new; rm /etc/group; sleep 1000"],
    )
    .ok();
    let done = || {
        let out = c.exec("", "a", &["ls", "/etc"]).ok();
        (!out.contains("group")).then_some(())
    };
    corten_integration::process::eventually(corten_integration::process::DEADLINE, done).unwrap();
    let packed = snapshots(c, "diff a").run();
    packed.expect_code(0);
    let reader = flate2::read::GzDecoder::new(packed.stdout.as_slice());
    let mut archive = tar::Archive::new(reader);
    let names = archive
        .entries()
        .unwrap()
        .map(|e| e.unwrap().path().unwrap().into_owned());
    let names: Vec<_> = names.map(|p| p.to_string_lossy().into_owned()).collect();
    assert!(names.contains(&"new".to_owned()), "{names:?}");
    assert!(names.contains(&"etc/.wh.group".to_owned()), "{names:?}");
    assert!(
        !names.iter().any(|n| n.contains("busybox")),
        "only what changed: {names:?}"
    );
    c.remove("a");
}

fn unpacks_an_image(c: &Case) {
    let image = images::layered();
    c.new_ctr("images import --no-unpack")
        .arg(image.archive())
        .ok();
    let out = c.new_ctr("snapshots unpack").arg(&image.digest).run();
    assert_eq!(out.code(), 0, "{}", out.report());
    assert!(c.column("snapshots ls").contains(&image.chain_id()));
}

fn keeps_hidden_files_hidden(c: &Case) {
    // A whiteout made by the container itself, in its own layer, survives a commit.
    c.run(
        "-d --null-io",
        "a",
        &["sh", "-c", "rm -r /etc; mkdir /etc; exec sleep 1000"],
    )
    .ok();
    let done = || (c.exec("", "a", &["ls", "/etc"]).ok().is_empty()).then_some(());
    corten_integration::process::eventually(corten_integration::process::DEADLINE, done).unwrap();
    let _ = c.ctr("task delete -f a").run();
    c.ctr("containers rm --keep-snapshot a").ok();
    snapshots(c, "commit done a").ok();
    let target = c.file("target");
    fs::create_dir(&target).unwrap();
    snapshots(c, "view look done").ok();
    let line = snapshots(c, "mounts").arg(&target).arg("look").ok();
    Cmd::new("sh").args(["-c", &line]).run().expect_code(0);
    let names = fs::read_dir(target.join("etc")).map(Iterator::count);
    Cmd::new("umount").arg(&target).ok();
    assert_eq!(names.unwrap(), 0);
    snapshots(c, "rm look").ok();
    snapshots(c, "rm done").ok();
}
