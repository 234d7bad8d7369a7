//! The manager on real mounts; each case says when it cannot run here.

use std::path::Path;
use std::sync::Arc;

use corten_core::filter::Filter;
use corten_core::gc::Resources;
use corten_core::mounts::{ActivateOptions, Handler, Manager};
use corten_core::{Kind, Labels, Mount, Namespace, Scope};

use crate::handlers::{Erofs, LoopDevice, is_mounted};
use crate::{MountManager, targets::Handlers};

fn scope() -> Scope {
    Scope::new(Namespace::new("test").unwrap())
}

fn handlers() -> Handlers {
    let all: [(&str, Arc<dyn Handler>); 2] =
        [("erofs", Arc::new(Erofs)), ("loop", Arc::new(LoopDevice))];
    all.into_iter().map(|(k, h)| (k.to_owned(), h)).collect()
}

async fn open(dir: &Path) -> MountManager {
    MountManager::open(dir.join("t"), vec![dir.to_owned()], handlers())
        .await
        .unwrap()
}

fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
    Mount {
        r#type: kind.into(),
        source: source.into(),
        options: options.iter().map(|o| (*o).to_owned()).collect(),
        ..Default::default()
    }
}

fn may_mount() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: mounts need root");
    }
    root
}

/// A tmpfs, and an overlay whose folders are made in it.
fn layered(lower: &Path) -> Vec<Mount> {
    let lower = format!("lowerdir={}", lower.display());
    vec![
        mount("tmpfs", "tmpfs", &["size=1m"]),
        mount(
            "format/mkdir/overlay",
            "overlay",
            &[
                "X-containerd.mkdir.path={{ mount 0 }}/upper:0755",
                "X-containerd.mkdir.path={{ mount 0 }}/work:0755",
                "upperdir={{ mount 0 }}/upper",
                "workdir={{ mount 0 }}/work",
                &lower,
            ],
        ),
    ]
}

fn left(dir: &Path) -> usize {
    std::fs::read_dir(dir.join("t")).unwrap().count()
}

#[tokio::test]
async fn what_needs_no_manager_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let m = open(dir.path()).await;
    let plain = [mount("bind", "/", &["rbind"])];
    let e = m
        .activate(&scope(), "x", &plain, ActivateOptions::default())
        .await
        .unwrap_err();
    assert_eq!(e.kind(), Kind::NotImplemented);
    let ns = scope().namespace;
    assert_eq!(m.info(&ns, "x").await.unwrap_err().kind(), Kind::NotFound);
    assert_eq!(
        m.deactivate(&ns, "x").await.unwrap_err().kind(),
        Kind::NotFound
    );
    assert_eq!(left(dir.path()), 0);
}

#[tokio::test]
async fn an_activation_comes_survives_a_restart_and_goes() {
    if !may_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let m = open(dir.path()).await;
    let ns = scope().namespace;
    let options = ActivateOptions {
        labels: Labels::from([("a".into(), "1".into())]),
        ..Default::default()
    };
    let mounts = layered(dir.path());
    let info = m
        .activate(&scope(), "c", &mounts, options.clone())
        .await
        .unwrap();
    let at = info.active[0].mount_point.clone();
    assert!(is_mounted(Path::new(&at)));
    assert_eq!(info.system.len(), 1);
    assert_eq!(info.system[0].r#type, "overlay");
    assert_eq!(info.system[0].options[0], format!("upperdir={at}/upper"));
    assert!(Path::new(&at).join("work").is_dir());
    let e = m
        .activate(&scope(), "c", &mounts, options)
        .await
        .unwrap_err();
    assert_eq!(e.kind(), Kind::AlreadyExists);

    drop(m);
    let m = open(dir.path()).await;
    assert_eq!(m.info(&ns, "c").await.unwrap(), info);
    let mut wanted = info.clone();
    wanted.labels = Labels::from([("b".into(), "2".into())]);
    let updated = m
        .update(&ns, wanted.clone(), &["labels.b".into()])
        .await
        .unwrap();
    assert_eq!(updated.labels.len(), 2);
    let e = m.update(&ns, wanted, &["name".into()]).await.unwrap_err();
    assert_eq!(e.kind(), Kind::InvalidArgument);
    for (filter, want) in [("name==c", 1), ("labels.b==2", 1), ("labels.b==3", 0)] {
        let found = m
            .list(&ns, &Filter::parse(&[filter]).unwrap())
            .await
            .unwrap();
        assert_eq!(found.len(), want, "{filter}");
    }
    let other = Namespace::new("other").unwrap();
    assert!(m.list(&other, &Filter::all()).await.unwrap().is_empty());

    m.deactivate(&ns, "c").await.unwrap();
    assert!(!is_mounted(Path::new(&at)));
    assert_eq!(left(dir.path()), 0);
}

#[tokio::test]
async fn temporary_ones_are_reached_by_a_bind() {
    if !may_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("below"), "x").unwrap();
    let m = open(dir.path()).await;
    let options = ActivateOptions {
        temporary: true,
        ..Default::default()
    };
    let mounts = layered(dir.path());
    let info = m.activate(&scope(), "c", &mounts, options).await.unwrap();
    assert_eq!((info.active.len(), info.system.len()), (2, 1));
    let bind = &info.system[0];
    assert_eq!(
        (bind.r#type.as_str(), bind.options.clone()),
        ("bind", vec!["rbind".into()])
    );
    assert!(Path::new(&bind.source).join("below").exists());
    m.deactivate(&scope().namespace, "c").await.unwrap();
    assert_eq!(left(dir.path()), 0);
}

#[tokio::test]
async fn what_fails_half_way_leaves_nothing() {
    if !may_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let m = open(dir.path()).await;
    let tmpfs = mount("tmpfs", "tmpfs", &[]);
    for bad in [
        mount("format/bind", "{{ mount 7 }}", &[]),
        mount("erofs", "/nonexistent", &[]),
        mount(
            "mkdir/overlay",
            "overlay",
            &["X-containerd.mkdir.path=/elsewhere"],
        ),
        mount("erofs", "/etc/passwd", &["X-containerd.dmverity=/x"]),
    ] {
        let mounts = [tmpfs.clone(), bad, mount("erofs", "/nonexistent", &[])];
        m.activate(&scope(), "c", &mounts, ActivateOptions::default())
            .await
            .unwrap_err();
        assert_eq!(left(dir.path()), 0, "{:?}", mounts[1]);
        assert!(m.all().is_empty());
    }
}

#[tokio::test]
async fn a_folder_without_record_is_undone_at_the_start() {
    if !may_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let m = open(dir.path()).await;
    let mounts = layered(dir.path());
    let info = m
        .activate(&scope(), "c", &mounts, ActivateOptions::default())
        .await
        .unwrap();
    drop(m);
    std::fs::remove_file(dir.path().join("t/1/activation")).unwrap();
    let m = open(dir.path()).await;
    assert!(!is_mounted(Path::new(&info.active[0].mount_point)));
    assert_eq!((m.all().len(), left(dir.path())), (0, 0));

    // A record whose mounts did not survive a reboot.
    let info = m
        .activate(&scope(), "c", &mounts, ActivateOptions::default())
        .await
        .unwrap();
    drop(m);
    corten_sys::mount::unmount(Path::new(&info.active[0].mount_point), false).unwrap();
    let m = open(dir.path()).await;
    assert_eq!((m.all().len(), left(dir.path())), (0, 0));
}

#[tokio::test]
async fn garbage_goes_unless_it_was_used_again() {
    if !may_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let m = open(dir.path()).await;
    let leased = scope().with_lease("l");
    let mounts = layered(dir.path());
    for name in ["a", "b", "pinned"] {
        let options = ActivateOptions {
            pinned: name == "pinned",
            ..Default::default()
        };
        m.activate(&leased, name, &mounts, options).await.unwrap();
    }
    let garbage = m.all();
    assert_eq!(garbage.len(), 2);
    assert_eq!(garbage[0].lease.as_deref(), Some("l"));
    m.info(&leased.namespace, "b").await.unwrap();
    m.remove(garbage).await.unwrap();
    let names: Vec<_> = m.all().into_iter().map(|r| r.name).collect();
    assert_eq!(names, ["b"]);

    // What is in use stays until it is not.
    let info = m.info(&leased.namespace, "b").await.unwrap();
    let busy = std::fs::File::create(Path::new(&info.active[0].mount_point).join("f")).unwrap();
    m.remove(m.all()).await.unwrap_err();
    assert_eq!((m.all().len(), left(dir.path())), (0, 2));
    drop(busy);
    m.remove(Vec::new()).await.unwrap();
    assert_eq!(left(dir.path()), 1);
    m.deactivate(&leased.namespace, "pinned").await.unwrap();
}

#[tokio::test]
async fn loop_devices_are_links_that_go() {
    if !may_mount() || !Path::new("/dev/loop-control").exists() {
        eprintln!("skipped: no loop devices");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    std::fs::write(&image, vec![0; 1 << 16]).unwrap();
    let m = open(dir.path()).await;
    let mounts = [
        mount("loop", &image.display().to_string(), &["ro"]),
        mount("format/ext4", "{{ mount 0 }}", &["ro"]),
    ];
    let info = m
        .activate(&scope(), "c", &mounts, ActivateOptions::default())
        .await
        .unwrap();
    let device = std::fs::read_link(&info.system[0].source).unwrap();
    assert!(corten_sys::loopdev::is_attached(&device));
    m.deactivate(&scope().namespace, "c").await.unwrap();
    assert_eq!(left(dir.path()), 0);
}
