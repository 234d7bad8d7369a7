//! What every snapshotter must do. The cases follow containerd's own suite for its snapshotters.

mod subject;

use std::fs;
use std::future::Future;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use corten_core::snapshots::{Info, SnapshotKind, Snapshotter};
use corten_core::{Kind, Labels, Mount};

use subject::Sn;
pub use subject::{Mounter, Traits};

/// Runs the suite on the snapshotters that `open` makes in a folder.
pub async fn suite<F, Fut>(open: F)
where
    F: Fn(PathBuf) -> Fut,
    Fut: Future<Output = Arc<dyn Snapshotter>>,
{
    suite_with(Traits::default(), open).await;
}

/// Runs the suite on snapshotters of these traits.
pub async fn suite_with<F, Fut>(traits: Traits, open: F)
where
    F: Fn(PathBuf) -> Fut,
    Fut: Future<Output = Arc<dyn Snapshotter>>,
{
    let open = async |dir: PathBuf| Sn {
        snapshotter: open(dir).await,
        traits: traits.clone(),
    };
    macro_rules! cases {
        ($($case:ident),* $(,)?) => {$({
            eprintln!("snapshotter: {}", stringify!($case));
            let dir = tempfile::tempdir().unwrap();
            $case(open(dir.path().to_owned()).await).await;
        })*};
    }
    cases!(
        records_tell_kind_parent_and_labels,
        bad_parents_and_taken_keys_are_refused,
        commit_refuses_what_is_not_active,
        labels_change_under_a_mask,
        snapshots_with_children_stay,
        all_are_listed,
        a_parent_can_come_at_commit,
        labels_are_not_inherited_by_commit,
    );
    let dir = tempfile::tempdir().unwrap();
    eprintln!("snapshotter: records_survive_a_restart_and_leftovers_do_not");
    records_survive_a_restart_and_leftovers_do_not(dir.path(), &open).await;
    if !crate::can_mount("snapshotter") {
        return;
    }
    cases!(
        layers_stack_and_siblings_are_apart,
        files_are_updated_in_upper_layers,
        deleted_files_and_folders_stay_deleted,
        a_folder_made_anew_is_empty,
        files_move_from_lower_layers,
        owners_and_modes_survive_commits,
        the_roots_mode_is_inherited,
        views_are_read_only,
        intermediate_snapshots_are_removed_in_order,
        usage_counts_the_own_layer,
        mounts_are_the_same_when_asked_again,
        many_layers_mount,
        cleanup_spares_what_lives,
        parallel_preparation_gives_distinct_trees,
    );
}

fn on<T>(sn: &Sn, mounts: &[Mount], f: impl FnOnce(&Path) -> T) -> T {
    let (mut f, mut out) = (Some(f), None);
    (sn.traits.mounter)(mounts, &mut |root| out = f.take().map(|f| f(root)));
    out.unwrap()
}

/// Prepares `key` on `parent`, changes it by `f` and commits it as `name`.
async fn layer(sn: &Sn, name: &str, parent: &str, f: impl FnOnce(&Path)) {
    let key = format!("prepare-{name}");
    let mounts = sn.prepare(&key, parent, Labels::new()).await.unwrap();
    on(sn, &mounts, f);
    sn.commit(name, &key, "", Labels::new()).await.unwrap();
}

async fn commit_empty(sn: &Sn, name: &str, parent: &str) {
    let key = format!("prepare-{name}");
    sn.prepare(&key, parent, Labels::new()).await.unwrap();
    sn.commit(name, &key, "", Labels::new()).await.unwrap();
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

fn facts(i: &Info) -> (SnapshotKind, &str, &str) {
    (i.kind, i.name.as_str(), i.parent.as_str())
}

fn read(path: PathBuf) -> String {
    fs::read_to_string(path).unwrap()
}

async fn records_tell_kind_parent_and_labels(sn: Sn) {
    commit_empty(&sn, "base", "").await;
    sn.prepare("active", "base", labels(&[("a", "1")]))
        .await
        .unwrap();
    sn.view("view", "base", Labels::new()).await.unwrap();
    let active = sn.stat("active").await.unwrap();
    assert_eq!(facts(&active), (SnapshotKind::Active, "active", "base"));
    assert_eq!(active.labels, labels(&[("a", "1")]));
    assert!(active.created_at <= active.updated_at);
    assert_eq!(
        facts(&sn.stat("view").await.unwrap()),
        (SnapshotKind::View, "view", "base")
    );
    assert_eq!(
        facts(&sn.stat("base").await.unwrap()),
        (SnapshotKind::Committed, "base", "")
    );
    let e = sn.stat("absent").await.unwrap_err();
    assert_eq!(e.kind(), Kind::NotFound);
}

async fn bad_parents_and_taken_keys_are_refused(sn: Sn) {
    sn.prepare("active", "", Labels::new()).await.unwrap();
    for view in [false, true] {
        let make = async |key: &'static str, parent: &'static str| {
            let made = if view {
                sn.view(key, parent, Labels::new()).await
            } else {
                sn.prepare(key, parent, Labels::new()).await
            };
            made.unwrap_err().kind()
        };
        assert_eq!(make("x", "absent").await, Kind::NotFound);
        assert_eq!(make("x", "active").await, Kind::InvalidArgument);
        assert_eq!(make("active", "").await, Kind::AlreadyExists);
    }
    assert_eq!(
        sn.mounts("absent").await.unwrap_err().kind(),
        Kind::NotFound
    );
    assert_eq!(sn.list().await.unwrap().len(), 1);
}

async fn commit_refuses_what_is_not_active(sn: Sn) {
    commit_empty(&sn, "base", "").await;
    sn.prepare("active", "base", Labels::new()).await.unwrap();
    sn.view("view", "base", Labels::new()).await.unwrap();
    let commit = async |name: &'static str, key: &'static str| {
        sn.commit(name, key, "", Labels::new())
            .await
            .unwrap_err()
            .kind()
    };
    assert_eq!(commit("new", "absent").await, Kind::NotFound);
    assert_eq!(commit("base", "active").await, Kind::AlreadyExists);
    assert_eq!(commit("new", "view").await, Kind::FailedPrecondition);
    assert_eq!(commit("new", "base").await, Kind::FailedPrecondition);
    sn.commit("new", "active", "", Labels::new()).await.unwrap();
    assert_eq!(sn.stat("active").await.unwrap_err().kind(), Kind::NotFound);
    assert_eq!(
        sn.mounts("new").await.unwrap_err().kind(),
        Kind::FailedPrecondition
    );
}

async fn labels_change_under_a_mask(sn: Sn) {
    sn.prepare("key", "", labels(&[("a", "1"), ("b", "2")]))
        .await
        .unwrap();
    let mut info = sn.stat("key").await.unwrap();
    info.labels = labels(&[("a", "9"), ("b", "8"), ("c", "7")]);
    let got = sn
        .update(info.clone(), &["labels.a".into(), "labels.c".into()])
        .await
        .unwrap();
    assert_eq!(got.labels, labels(&[("a", "9"), ("b", "2"), ("c", "7")]));
    assert!(got.updated_at >= got.created_at);
    info.labels = labels(&[("a", ""), ("d", "4")]);
    let got = sn.update(info.clone(), &["labels.a".into()]).await.unwrap();
    assert_eq!(got.labels, labels(&[("b", "2"), ("c", "7")]));
    let got = sn.update(info.clone(), &["labels".into()]).await.unwrap();
    assert_eq!(got.labels, labels(&[("d", "4")]));
    info.labels = labels(&[("e", "5")]);
    assert_eq!(
        sn.update(info.clone(), &[]).await.unwrap().labels,
        labels(&[("e", "5")])
    );
    let e = sn
        .update(info.clone(), &["parent".into()])
        .await
        .unwrap_err();
    assert_eq!(e.kind(), Kind::InvalidArgument);
    assert_eq!(sn.stat("key").await.unwrap().labels, labels(&[("e", "5")]));
    info.name = "absent".into();
    assert_eq!(
        sn.update(info, &[]).await.unwrap_err().kind(),
        Kind::NotFound
    );
}

async fn snapshots_with_children_stay(sn: Sn) {
    commit_empty(&sn, "base", "").await;
    sn.prepare("child", "base", Labels::new()).await.unwrap();
    sn.view("view", "base", Labels::new()).await.unwrap();
    for key in ["child", "view"] {
        let e = sn.remove("base").await.unwrap_err();
        assert_eq!(e.kind(), Kind::FailedPrecondition);
        assert!(
            e.to_string().contains("cannot remove snapshot with child"),
            "{e}"
        );
        sn.remove(key).await.unwrap();
    }
    sn.remove("base").await.unwrap();
    assert_eq!(sn.remove("base").await.unwrap_err().kind(), Kind::NotFound);
    sn.prepare("child", "", Labels::new()).await.unwrap();
}

async fn all_are_listed(sn: Sn) {
    commit_empty(&sn, "a", "").await;
    commit_empty(&sn, "b", "a").await;
    sn.prepare("c", "b", Labels::new()).await.unwrap();
    sn.view("d", "a", Labels::new()).await.unwrap();
    let mut listed = sn.list().await.unwrap();
    listed.sort_by(|x, y| x.name.cmp(&y.name));
    let got: Vec<_> = listed.iter().map(facts).collect();
    assert_eq!(
        got,
        [
            (SnapshotKind::Committed, "a", ""),
            (SnapshotKind::Committed, "b", "a"),
            (SnapshotKind::Active, "c", "b"),
            (SnapshotKind::View, "d", "a"),
        ]
    );
    for i in &listed {
        assert_eq!(sn.stat(&i.name).await.unwrap(), *i);
    }
}

async fn a_parent_can_come_at_commit(sn: Sn) {
    commit_empty(&sn, "base", "").await;
    commit_empty(&sn, "other", "").await;
    sn.prepare("late", "", Labels::new()).await.unwrap();
    let e = sn
        .commit("x", "late", "absent", Labels::new())
        .await
        .unwrap_err();
    assert_eq!(e.kind(), Kind::NotFound);
    sn.commit("rebased", "late", "base", Labels::new())
        .await
        .unwrap();
    assert_eq!(sn.stat("rebased").await.unwrap().parent, "base");
    assert_eq!(
        sn.remove("base").await.unwrap_err().kind(),
        Kind::FailedPrecondition
    );
    sn.prepare("fixed", "base", Labels::new()).await.unwrap();
    let e = sn
        .commit("y", "fixed", "other", Labels::new())
        .await
        .unwrap_err();
    assert_eq!(e.kind(), Kind::InvalidArgument);
    sn.commit("y", "fixed", "base", Labels::new())
        .await
        .unwrap();
}

async fn labels_are_not_inherited_by_commit(sn: Sn) {
    sn.prepare("key", "", labels(&[("old", "1")]))
        .await
        .unwrap();
    sn.commit("name", "key", "", labels(&[("new", "2")]))
        .await
        .unwrap();
    assert_eq!(
        sn.stat("name").await.unwrap().labels,
        labels(&[("new", "2")])
    );
}

async fn records_survive_a_restart_and_leftovers_do_not(
    dir: &Path,
    open: &impl AsyncFn(PathBuf) -> Sn,
) {
    let sn = open(dir.to_owned()).await;
    commit_empty(&sn, "base", "").await;
    let mounts = sn
        .prepare("active", "base", labels(&[("a", "1")]))
        .await
        .unwrap();
    let before = sn.stat("active").await.unwrap();
    drop(sn);
    let trees = dir.join("snapshots");
    let has_trees = trees.is_dir();
    if has_trees {
        // What a crash leaves: a tree whose record was not committed, and one half deleted.
        for left in ["77/fs", "new-1-1/fs", "rm-5/fs"] {
            fs::create_dir_all(trees.join(left)).unwrap();
        }
    }
    let sn = open(dir.to_owned()).await;
    assert_eq!(sn.stat("active").await.unwrap(), before);
    assert_eq!(sn.mounts("active").await.unwrap(), mounts);
    sn.cleanup().await.unwrap();
    if has_trees {
        let names: Vec<_> = fs::read_dir(&trees)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(names.len(), 2, "{names:?}");
    }
    sn.prepare("next", "base", Labels::new()).await.unwrap();
}

async fn layers_stack_and_siblings_are_apart(sn: Sn) {
    layer(&sn, "a", "", |r| fs::write(r.join("foo"), "foo\n").unwrap()).await;
    layer(&sn, "b", "a", |r| {
        assert_eq!(read(r.join("foo")), "foo\n");
        fs::create_dir_all(r.join("x/y")).unwrap();
        fs::write(r.join("x/y/bar"), "bar\n").unwrap();
    })
    .await;
    let one = sn.prepare("one", "b", Labels::new()).await.unwrap();
    let two = sn.prepare("two", "b", Labels::new()).await.unwrap();
    on(&sn, &one, |r| fs::write(r.join("x/y/bar"), "one").unwrap());
    on(&sn, &two, |r| {
        assert_eq!(read(r.join("x/y/bar")), "bar\n");
        assert_eq!(read(r.join("foo")), "foo\n");
    });
    let view = sn.view("view", "a", Labels::new()).await.unwrap();
    on(&sn, &view, |r| {
        assert!(r.join("foo").exists() && !r.join("x").exists());
    });
}

async fn files_are_updated_in_upper_layers(sn: Sn) {
    layer(&sn, "l1", "", |r| {
        fs::create_dir(r.join("etc")).unwrap();
        fs::write(r.join("etc/hosts"), "127.0.0.1").unwrap();
        fs::write(r.join("etc/profile"), "PATH=/bin").unwrap();
    })
    .await;
    layer(&sn, "l2", "l1", |r| {
        fs::write(r.join("etc/hosts"), "::1").unwrap();
        fs::write(r.join("etc/profile"), "PATH=/usr/bin").unwrap();
        fs::create_dir(r.join("root")).unwrap();
    })
    .await;
    layer(&sn, "l3", "l2", |r| {
        assert_eq!(read(r.join("etc/hosts")), "::1");
        fs::write(r.join("etc/hosts"), "third").unwrap();
    })
    .await;
    let v1 = sn.view("v1", "l1", Labels::new()).await.unwrap();
    let v3 = sn.view("v3", "l3", Labels::new()).await.unwrap();
    on(&sn, &v1, |r| {
        assert_eq!(read(r.join("etc/hosts")), "127.0.0.1");
    });
    on(&sn, &v3, |r| {
        assert_eq!(read(r.join("etc/hosts")), "third");
        assert_eq!(read(r.join("etc/profile")), "PATH=/usr/bin");
        assert!(r.join("root").is_dir());
    });
}

async fn deleted_files_and_folders_stay_deleted(sn: Sn) {
    layer(&sn, "l1", "", |r| {
        fs::create_dir_all(r.join("dir/sub")).unwrap();
        fs::write(r.join("dir/sub/f"), "x").unwrap();
        fs::write(r.join("file"), "x").unwrap();
        fs::write(r.join("kept"), "x").unwrap();
    })
    .await;
    layer(&sn, "l2", "l1", |r| {
        fs::remove_dir_all(r.join("dir")).unwrap();
        fs::remove_file(r.join("file")).unwrap();
    })
    .await;
    layer(&sn, "l3", "l2", |r| fs::write(r.join("new"), "x").unwrap()).await;
    let view = sn.view("v", "l3", Labels::new()).await.unwrap();
    on(&sn, &view, |r| {
        let mut names: Vec<_> = fs::read_dir(r)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["kept", "new"]);
    });
}

async fn a_folder_made_anew_is_empty(sn: Sn) {
    layer(&sn, "l1", "", |r| {
        fs::create_dir(r.join("dir")).unwrap();
        fs::write(r.join("dir/old"), "x").unwrap();
    })
    .await;
    layer(&sn, "l2", "l1", |r| {
        fs::remove_dir_all(r.join("dir")).unwrap();
        fs::create_dir(r.join("dir")).unwrap();
        fs::write(r.join("dir/new"), "x").unwrap();
    })
    .await;
    commit_empty(&sn, "l3", "l2").await;
    let view = sn.view("v", "l3", Labels::new()).await.unwrap();
    on(&sn, &view, |r| {
        assert!(r.join("dir/new").exists() && !r.join("dir/old").exists());
    });
}

async fn files_move_from_lower_layers(sn: Sn) {
    layer(&sn, "l1", "", |r| {
        fs::create_dir_all(r.join("dir1")).unwrap();
        fs::write(r.join("dir1/f1"), "hello\n").unwrap();
        fs::write(r.join("f2"), "bye\n").unwrap();
    })
    .await;
    layer(&sn, "l2", "l1", |r| {
        fs::rename(r.join("dir1/f1"), r.join("moved")).unwrap();
        fs::rename(r.join("f2"), r.join("dir1/f2")).unwrap();
    })
    .await;
    let view = sn.view("v", "l2", Labels::new()).await.unwrap();
    on(&sn, &view, |r| {
        assert_eq!(read(r.join("moved")), "hello\n");
        assert_eq!(read(r.join("dir1/f2")), "bye\n");
        assert!(!r.join("f2").exists() && !r.join("dir1/f1").exists());
    });
}

async fn owners_and_modes_survive_commits(sn: Sn) {
    layer(&sn, "l1", "", |r| {
        fs::create_dir_all(r.join("opt/a/b")).unwrap();
        fs::write(r.join("opt/file"), "x").unwrap();
    })
    .await;
    layer(&sn, "l2", "l1", |r| {
        std::os::unix::fs::chown(r.join("opt/a"), Some(1), Some(2)).unwrap();
        fs::set_permissions(r.join("opt/a"), PermissionsExt::from_mode(0o1777)).unwrap();
        std::os::unix::fs::chown(r.join("opt/file"), Some(3), Some(4)).unwrap();
        fs::set_permissions(r.join("opt/file"), PermissionsExt::from_mode(0o4711)).unwrap();
    })
    .await;
    layer(&sn, "l3", "l2", |r| {
        fs::write(r.join("other"), "x").unwrap();
    })
    .await;
    let view = sn.view("v", "l3", Labels::new()).await.unwrap();
    on(&sn, &view, |r| {
        let m = |p: &str| {
            let m = fs::metadata(r.join(p)).unwrap();
            (m.uid(), m.gid(), m.mode() & 0o7777)
        };
        assert_eq!(m("opt/a"), (1, 2, 0o1777));
        assert_eq!(m("opt/file"), (3, 4, 0o4711));
    });
}

async fn the_roots_mode_is_inherited(sn: Sn) {
    let first = sn.prepare("first", "", Labels::new()).await.unwrap();
    on(&sn, &first, |r| {
        assert_eq!(fs::metadata(r).unwrap().mode() & 0o777, 0o755);
        fs::set_permissions(r, PermissionsExt::from_mode(0o711)).unwrap();
        std::os::unix::fs::chown(r, Some(5), Some(6)).unwrap();
    });
    sn.commit("base", "first", "", Labels::new()).await.unwrap();
    let second = sn.prepare("second", "base", Labels::new()).await.unwrap();
    on(&sn, &second, |r| {
        let m = fs::metadata(r).unwrap();
        assert_eq!((m.mode() & 0o777, m.uid(), m.gid()), (0o711, 5, 6));
    });
}

async fn views_are_read_only(sn: Sn) {
    layer(&sn, "a", "", |r| fs::write(r.join("f"), "x").unwrap()).await;
    layer(&sn, "b", "a", |r| fs::write(r.join("g"), "x").unwrap()).await;
    for parent in ["", "a", "b"] {
        let mounts = sn
            .view(&format!("view-{parent}"), parent, Labels::new())
            .await
            .unwrap();
        on(&sn, &mounts, |r| {
            let e = fs::write(r.join("new"), "x").unwrap_err();
            assert_eq!(e.kind(), std::io::ErrorKind::ReadOnlyFilesystem, "{parent}");
        });
    }
}

async fn intermediate_snapshots_are_removed_in_order(sn: Sn) {
    layer(&sn, "base", "", |r| {
        fs::write(r.join("foo"), "base").unwrap();
    })
    .await;
    layer(&sn, "mid", "base", |r| {
        fs::write(r.join("foo"), "mid").unwrap();
    })
    .await;
    let top = sn.prepare("top", "mid", Labels::new()).await.unwrap();
    assert_eq!(
        sn.remove("mid").await.unwrap_err().kind(),
        Kind::FailedPrecondition
    );
    on(&sn, &top, |r| assert_eq!(read(r.join("foo")), "mid"));
    sn.remove("top").await.unwrap();
    sn.remove("mid").await.unwrap();
    sn.remove("base").await.unwrap();
    assert!(sn.list().await.unwrap().is_empty());
}

async fn usage_counts_the_own_layer(sn: Sn) {
    let mounts = sn.prepare("active", "", Labels::new()).await.unwrap();
    let empty = sn.usage("active").await.unwrap();
    on(&sn, &mounts, |r| {
        fs::write(r.join("a"), vec![1; 1 << 20]).unwrap();
        fs::hard_link(r.join("a"), r.join("b")).unwrap();
    });
    let full = sn.usage("active").await.unwrap();
    assert_eq!(full.inodes, empty.inodes + 1);
    assert!(
        full.size - empty.size >= 1 << 20 && full.size - empty.size < 2 << 20,
        "{full:?}"
    );
    sn.commit("done", "active", "", Labels::new())
        .await
        .unwrap();
    let done = sn.usage("done").await.unwrap();
    if sn.traits.converts {
        assert!(done.size >= 1 << 20 && done.inodes > 0, "{done:?}");
    } else {
        assert_eq!(done, full);
    }
    assert_eq!(sn.usage("absent").await.unwrap_err().kind(), Kind::NotFound);
}

async fn mounts_are_the_same_when_asked_again(sn: Sn) {
    commit_empty(&sn, "a", "").await;
    commit_empty(&sn, "b", "a").await;
    for parent in ["", "a", "b"] {
        let (p, v) = (format!("p{parent}"), format!("v{parent}"));
        let prepared = sn.prepare(&p, parent, Labels::new()).await.unwrap();
        assert_eq!(sn.mounts(&p).await.unwrap(), prepared);
        let viewed = sn.view(&v, parent, Labels::new()).await.unwrap();
        assert_eq!(sn.mounts(&v).await.unwrap(), viewed);
    }
}

async fn many_layers_mount(sn: Sn) {
    let depth = sn.traits.depth;
    let mut parent = String::new();
    for i in 1..=depth {
        let name = format!("layer-{i}");
        layer(&sn, &name, &parent, |r| {
            if i > 1 {
                assert_eq!(read(r.join("bottom")), (i - 1).to_string());
            }
            fs::write(r.join("bottom"), i.to_string()).unwrap();
            fs::write(r.join(i.to_string()), "").unwrap();
        })
        .await;
        parent = name;
    }
    let view = sn.view("all", &parent, Labels::new()).await.unwrap();
    on(&sn, &view, |r| {
        assert_eq!(read(r.join("bottom")), depth.to_string());
        assert_eq!(fs::read_dir(r).unwrap().count(), depth + 1);
    });
}

async fn cleanup_spares_what_lives(sn: Sn) {
    layer(&sn, "base", "", |r| fs::write(r.join("f"), "x").unwrap()).await;
    let active = sn.prepare("active", "base", Labels::new()).await.unwrap();
    sn.prepare("gone", "base", Labels::new()).await.unwrap();
    sn.remove("gone").await.unwrap();
    sn.cleanup().await.unwrap();
    on(&sn, &active, |r| assert_eq!(read(r.join("f")), "x"));
}

async fn parallel_preparation_gives_distinct_trees(sn: Sn) {
    layer(&sn, "base", "", |r| fs::write(r.join("f"), "x").unwrap()).await;
    let keys: Vec<String> = (0..16).map(|i| format!("key-{i}")).collect();
    let made = keys
        .iter()
        .map(|key| sn.prepare(key, "base", Labels::new()));
    let made = futures::future::join_all(made).await;
    for (key, mounts) in keys.iter().zip(made) {
        on(&sn, &mounts.unwrap(), |r| {
            assert_eq!(fs::read_dir(r).unwrap().count(), 1);
            fs::write(r.join(key), "").unwrap();
        });
    }
    let same = (0..8).map(|_| sn.prepare("same", "base", Labels::new()));
    let won = futures::future::join_all(same)
        .await
        .into_iter()
        .filter(Result::is_ok)
        .count();
    assert_eq!(won, 1);
}
