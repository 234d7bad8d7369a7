//! `ctr containers`: records without tasks.

use corten_integration::case::Case;
use corten_integration::images;
use corten_integration::runner::{Test, with_both_clients};
use corten_integration::tests;

pub(crate) fn tests() -> Vec<Test> {
    let mut all = with_both_clients(tests![
        creates_lists_and_removes,
        shows_what_it_knows,
        changes_labels,
        refuses_the_same_name_twice,
    ]);
    all.extend(tests![
        removes_the_snapshot_with_the_container,
        filters_by_label_and_image,
        keeps_namespaces_apart,
    ]);
    all.extend(
        with_both_clients(tests![keeps_the_snapshot_on_request])
            .into_iter()
            .map(Test::quiet_daemon),
    );
    all
}

fn create(c: &Case, flags: &str, id: &str) {
    let name = c.has(&images::busybox());
    let create = c
        .ctr("containers create --runtime")
        .arg(&c.runtime)
        .words(flags);
    create.args([&name, id, "true"]).ok();
}

fn creates_lists_and_removes(c: &Case) {
    create(c, "", "b");
    create(c, "", "a");
    assert_eq!(c.list("containers ls -q"), ["a", "b"]);
    let table = c.ctr("containers ls").ok();
    let row = table.lines().find(|l| l.starts_with('a')).unwrap();
    let fields: Vec<_> = row.split_whitespace().collect();
    assert_eq!(fields, ["a", &images::busybox().name, &c.runtime]);
    c.ctr("containers rm a b").ok();
    assert!(c.list("containers ls -q").is_empty());
}

fn shows_what_it_knows(c: &Case) {
    create(c, "--label k=v --env A=b --cwd /tmp", "a");
    let info: serde_json::Value = serde_json::from_str(&c.ctr("containers info a").ok()).unwrap();
    assert_eq!(info["ID"], "a");
    assert_eq!(info["Image"], images::busybox().name);
    assert_eq!(info["SnapshotKey"], "a");
    assert_eq!(info["Labels"]["k"], "v");
    assert_eq!(info["Spec"]["process"]["cwd"], "/tmp");
    let env = info["Spec"]["process"]["env"].as_array().unwrap();
    assert!(env.iter().any(|e| e == "A=b"));
    for time in ["CreatedAt", "UpdatedAt"] {
        let text = info[time].as_str().unwrap();
        assert!(
            text.starts_with("20") && text.ends_with('Z'),
            "{time} is {text}"
        );
    }
    c.ctr("containers rm a").ok();
}

fn changes_labels(c: &Case) {
    create(c, "--label keep=1 --label drop=1", "a");
    let printed = c.ctr("containers label a new=2 drop=").ok();
    let mut labels: Vec<_> = printed.trim().split(',').collect();
    labels.sort_unstable();
    let rest: Vec<_> = labels
        .into_iter()
        .filter(|l| !l.starts_with("io.containerd"))
        .collect();
    assert_eq!(rest, ["keep=1", "new=2"], "{printed}");
    c.ctr("containers rm a").ok();
}

fn refuses_the_same_name_twice(c: &Case) {
    create(c, "", "a");
    let name = images::busybox().name;
    let again = c
        .ctr("containers create --runtime")
        .arg(&c.runtime)
        .args([&name, "a", "true"]);
    again.fails("already exists");
    c.ctr("containers rm a").ok();
}

fn removes_the_snapshot_with_the_container(c: &Case) {
    create(c, "", "a");
    assert!(c.column("snapshots ls").contains(&"a".to_owned()));
    c.ctr("containers rm a").ok();
    assert!(!c.column("snapshots ls").contains(&"a".to_owned()));
}

fn keeps_the_snapshot_on_request(c: &Case) {
    create(c, "", "a");
    c.ctr("containers rm --keep-snapshot a").ok();
    assert!(c.column("snapshots ls").contains(&"a".to_owned()));
    c.ctr("snapshots rm a").ok();
}

fn filters_by_label_and_image(c: &Case) {
    create(c, "--label color=red", "a");
    create(c, "--label color=blue", "b");
    create(c, "", "c");
    let list = |filter: &str| {
        let out = c.ctr("containers ls -q").arg(filter).ok();
        out.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(list("labels.color==red"), ["a"]);
    assert_eq!(list("labels.color"), ["a", "b"]);
    assert_eq!(list("labels.color!=red"), ["b", "c"]);
    assert_eq!(list("id~=^[bc]$"), ["b", "c"]);
    assert_eq!(list("labels.color==red,id==b"), Vec::<String>::new());
    let error = c.ctr("containers ls -q").arg("labels.color=red==x").run();
    assert_eq!(error.code(), 1, "{}", error.report());
    c.ctr("containers rm a b c").ok();
}

fn keeps_namespaces_apart(c: &Case) {
    create(c, "", "a");
    let other = format!("{}-other", c.namespace);
    let there = |words: &str| c.ctr("-n").arg(&other).words(words);
    assert_eq!(there("containers ls -q").ok(), "");
    assert_eq!(there("images ls -q").ok(), "");
    there("containers info a").fails("not found");
    c.ctr("containers rm a").ok();
}
