//! All snapshotters under the suite.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests: a failed step is a failed test"
)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use corten_core::mounts::{ActivateOptions, Handler, Manager};
use corten_core::snapshots::Snapshotter;
use corten_core::{Kind, Labels, Mount, Namespace, Scope};
use corten_mount::MountManager;
use corten_mount::handlers::Erofs;
use corten_snapshots::{erofs, native, overlayfs};
use corten_sys::mount::with_temp_mount;
use corten_testsuite::snapshotter::{Mounter, Traits};

#[tokio::test]
async fn native_conforms() {
    corten_testsuite::snapshotter::suite(|dir| async move {
        Arc::new(native::Native::open(dir).await.unwrap()) as Arc<dyn Snapshotter>
    })
    .await;
}

#[tokio::test]
async fn overlayfs_conforms() {
    if !corten_testsuite::can_mount("overlayfs") {
        return;
    }
    let probe = tempfile::tempdir().unwrap();
    if let Err(e) = corten_sys::overlay::probe(probe.path()) {
        eprintln!("overlayfs: skipped: {e}");
        return;
    }
    for sync_remove in [false, true] {
        corten_testsuite::snapshotter::suite(|dir| async move {
            let config = overlayfs::Config {
                sync_remove,
                ..Default::default()
            };
            let opened = overlayfs::Overlay::open(dir, &config, true).await.unwrap();
            Arc::new(opened) as Arc<dyn Snapshotter>
        })
        .await;
    }
}

/// Runs async work to its end from anywhere.
fn wait<T: Send>(work: impl Future<Output = T> + Send) -> T {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    std::thread::scope(|s| s.spawn(|| runtime().block_on(work)).join().unwrap())
}

/// Mounts what erofs' recipes say, with the mount manager.
fn managed(dir: &Path) -> Mounter {
    let handlers = BTreeMap::from([("erofs".to_owned(), Arc::new(Erofs) as Arc<dyn Handler>)]);
    // Recipes make images and folders below the folders of the suite's cases.
    let roots = vec![std::env::temp_dir()];
    let manager = wait(MountManager::open(dir.join("t"), roots, handlers)).unwrap();
    Arc::new(move |mounts: &[Mount], f: &mut dyn FnMut(&Path)| {
        let scope = Scope::new(Namespace::new("suite").unwrap());
        let made = manager.activate(&scope, "case", mounts, ActivateOptions::default());
        let (system, active) = match wait(made) {
            Ok(info) => (info.system, true),
            Err(e) if e.kind() == Kind::NotImplemented => (mounts.to_vec(), false),
            Err(e) => panic!("{e}"),
        };
        with_temp_mount(&system, None, |root| {
            f(root);
            Ok(())
        })
        .unwrap();
        if active {
            wait(manager.deactivate(&scope.namespace, "case")).unwrap();
        }
    })
}

fn can_erofs() -> bool {
    let tools = std::process::Command::new("mkfs.erofs")
        .arg("-V")
        .output()
        .is_ok();
    let can =
        tools && corten_sys::image::kernel_knows("erofs") && corten_testsuite::can_mount("erofs");
    if !can {
        eprintln!("erofs: skipped: needs root, the kernel's erofs and mkfs.erofs");
    }
    can
}

async fn open_erofs(dir: &Path, config: &erofs::Config) -> Arc<dyn Snapshotter> {
    Arc::new(
        erofs::Erofs::open(dir.to_owned(), config, true)
            .await
            .unwrap(),
    )
}

#[tokio::test]
async fn erofs_conforms() {
    if !can_erofs() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let traits = Traits {
        mounter: managed(dir.path()),
        depth: 12,
        converts: true,
    };
    corten_testsuite::snapshotter::suite_with(traits, |dir| async move {
        open_erofs(&dir, &erofs::Config::default()).await
    })
    .await;
}

#[tokio::test]
async fn erofs_layers_are_written_into_images_and_sealed() {
    let mkfs = std::process::Command::new("mkfs.ext4").arg("-V").output();
    if !can_erofs() || mkfs.is_err() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let on = managed(dir.path());
    let config = erofs::Config {
        default_size: "16MiB".into(),
        set_immutable: true,
        ..Default::default()
    };
    let root = dir.path().join("sn");
    let sn = open_erofs(&root, &config).await;
    let write = |mounts: &[Mount], name: &str| {
        on(mounts, &mut |r| std::fs::write(r.join(name), name).unwrap());
    };
    let mounts = sn.prepare("1", "", Labels::new()).await.unwrap();
    write(&mounts, "a");
    // A second mount finds what the first has left.
    on(&mounts, &mut |r| assert!(r.join("a").exists()));
    sn.commit("base", "1", "", Labels::new()).await.unwrap();
    let small = Labels::from([("containerd.io/snapshot/max-size".into(), "4194304".into())]);
    let mounts = sn.prepare("2", "base", small).await.unwrap();
    write(&mounts, "b");
    let image = root.join("snapshots/2/rwlayer.img");
    assert_eq!(std::fs::metadata(image).unwrap().len(), 4 << 20);
    sn.commit("top", "2", "", Labels::new()).await.unwrap();
    sn.prepare("untouched", "top", Labels::new()).await.unwrap();
    sn.commit("empty", "untouched", "", Labels::new())
        .await
        .unwrap();
    let view = sn.view("v", "empty", Labels::new()).await.unwrap();
    on(&view, &mut |r| {
        assert!(r.join("a").exists() && r.join("b").exists());
    });
    let layer = root.join("snapshots/2/layer.erofs");
    let e = std::fs::OpenOptions::new()
        .write(true)
        .open(layer)
        .unwrap_err();
    assert_eq!(e.kind(), std::io::ErrorKind::PermissionDenied);
    assert!(sn.remove("top").await.is_err());
    for key in ["v", "empty", "top", "base"] {
        sn.remove(key).await.unwrap();
    }
    assert_eq!(
        std::fs::read_dir(root.join("snapshots")).unwrap().count(),
        0
    );
}

#[tokio::test]
async fn erofs_takes_layers_from_a_cache() {
    if !can_erofs() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let on = managed(dir.path());
    let hex = "0123456789abcdef".repeat(4);
    let blob = dir.path().join(format!("cache/sha256/01/{hex}.erofs"));
    let tree = dir.path().join("tree");
    std::fs::create_dir_all(&tree).unwrap();
    std::fs::create_dir_all(blob.parent().unwrap()).unwrap();
    std::fs::write(tree.join("cached"), "x").unwrap();
    let made = std::process::Command::new("mkfs.erofs")
        .arg("--quiet")
        .args([&blob, &tree])
        .status();
    assert!(made.unwrap().success());
    let config = erofs::Config {
        layer_content_caches: vec!["/nonexistent".into(), dir.path().join("cache")],
        ..Default::default()
    };
    let sn = open_erofs(&dir.path().join("sn"), &config).await;
    let labels = |hex: &str| {
        Labels::from([
            ("containerd.io/snapshot.ref".into(), "chain".into()),
            (
                "containerd.io/snapshot/diff-id".into(),
                format!("sha256:{hex}"),
            ),
        ])
    };
    let missed = sn
        .prepare("miss", "", labels(&"f".repeat(64)))
        .await
        .unwrap();
    assert_eq!(missed[0].r#type, "bind");
    for (key, parent) in [("1", ""), ("2", "one")] {
        let mounts = sn.prepare(key, parent, labels(&hex)).await.unwrap();
        assert!(corten_core::mounts::is_read_only(mounts.last().unwrap()));
        on(&mounts, &mut |r| assert!(r.join("cached").exists()));
        let name = if parent.is_empty() { "one" } else { "two" };
        sn.commit(name, key, "", Labels::new()).await.unwrap();
    }
    let info = sn.stat("two").await.unwrap();
    let shown = info.labels.get("io.containerd.erofs.v1/blob.ref").unwrap();
    assert_eq!(shown, &blob.display().to_string());
    sn.update(info, &[]).await.unwrap();
    let view = sn.view("v", "two", Labels::new()).await.unwrap();
    on(&view, &mut |r| assert!(r.join("cached").exists()));
    sn.remove("v").await.unwrap();
    std::fs::remove_file(&blob).unwrap();
    // Lost is not empty.
    assert!(sn.view("v", "two", Labels::new()).await.is_err());
}
