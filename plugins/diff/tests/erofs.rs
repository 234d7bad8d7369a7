//! Layers into snapshots of the erofs snapshotter: by its own differ and by the walking one, with the same result.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests: a failed step is a failed test"
)]

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use corten_core::diff::{ApplyOptions, CompareOptions, Differ};
use corten_core::mounts::{ActivateOptions, Handler, Manager};
use corten_core::snapshots::Snapshotter;
use corten_core::{Descriptor, Digest, Kind, Labels, Mount, Namespace, Scope};
use corten_diff::{Walking, erofs};
use corten_mount::MountManager;
use corten_mount::handlers::Erofs as Handle;
use corten_sys::mount::with_temp_mount;
use corten_testsuite::memory::Memory;

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

struct World {
    dir: tempfile::TempDir,
    content: Memory,
    manager: MountManager,
    scope: Scope,
}

impl World {
    async fn new() -> Option<Self> {
        let help = corten_sys::image::mkfs_erofs_help();
        if help.is_err()
            || !corten_sys::image::kernel_knows("erofs")
            || !corten_testsuite::can_mount("erofs")
        {
            eprintln!("skipped: needs root, the kernel's erofs and mkfs.erofs");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let handlers = BTreeMap::from([("erofs".to_owned(), Arc::new(Handle) as Arc<dyn Handler>)]);
        let roots = vec![dir.path().to_owned()];
        let manager = MountManager::open(dir.path().join("t"), roots, handlers);
        Some(Self {
            manager: manager.await.unwrap(),
            dir,
            content: Memory::default(),
            scope: Scope::new(Namespace::new("test").unwrap()),
        })
    }

    fn walking(&self) -> Walking {
        Walking::new(Arc::new(self.content.clone()))
            .with_mounts(Some(Arc::new(self.manager.clone())))
    }

    fn erofs(&self) -> erofs::Erofs {
        let help = corten_sys::image::mkfs_erofs_help().unwrap();
        erofs::Erofs::new(self.walking(), &erofs::Config::default(), &help).unwrap()
    }

    async fn snapshotter(&self, name: &str) -> Arc<dyn Snapshotter> {
        let root = self.dir.path().join(name);
        let config = corten_snapshots::erofs::Config::default();
        Arc::new(
            corten_snapshots::erofs::Erofs::open(root, &config, true)
                .await
                .unwrap(),
        )
    }

    async fn on<T>(&self, mounts: &[Mount], f: impl FnOnce(&Path) -> T) -> T {
        let options = ActivateOptions::default();
        let made = self.manager.activate(&self.scope, "x", mounts, options);
        let system = match made.await {
            Ok(info) => info.system,
            Err(e) if e.kind() == Kind::NotImplemented => mounts.to_vec(),
            Err(e) => panic!("{e}"),
        };
        let out = with_temp_mount(&system, None, |root| Ok(f(root))).unwrap();
        // Absent when it was not needed.
        let _ = self.manager.deactivate(&self.scope.namespace, "x").await;
        out
    }
}

/// A folder with a file of it, and whatever else `more` adds.
fn layer(more: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
    let mut b = tar::Builder::new(Vec::new());
    more(&mut b);
    b.into_inner().unwrap()
}

fn file(b: &mut tar::Builder<Vec<u8>>, path: &str, data: &[u8]) {
    let mut h = tar::Header::new_gnu();
    h.set_size(data.len() as u64);
    h.set_mode(0o640);
    h.set_uid(7);
    h.set_gid(8);
    h.set_mtime(1_600_000_000);
    b.append_data(&mut h, path, data).unwrap();
}

fn blob(w: &World, data: Vec<u8>) -> Descriptor {
    let size = i64::try_from(data.len()).unwrap();
    Descriptor {
        media_type: LAYER.into(),
        digest: w.content.put(data).to_string(),
        size,
        ..Default::default()
    }
}

#[tokio::test]
async fn both_differs_make_the_same_layers() {
    let Some(w) = World::new().await else { return };
    let bottom = layer(|b| {
        file(b, "kept", b"kept");
        file(b, "gone", b"gone");
        file(b, "dir/old", b"old");
    });
    let top = layer(|b| {
        file(b, ".wh.gone", b"");
        file(b, "dir/.wh..wh..opq", b"");
        file(b, "dir/new", b"new");
    });
    let layers = [blob(&w, bottom), blob(&w, top)];
    let differs: [(&str, Arc<dyn Differ>); 2] = [
        ("walking", Arc::new(w.walking())),
        ("erofs", Arc::new(w.erofs())),
    ];
    for (name, differ) in differs {
        let sn = w.snapshotter(name).await;
        let mut parent = String::new();
        for layer in &layers {
            let key = format!("prepare-{}", layer.digest);
            let mounts = sn.prepare(&key, &parent, Labels::new()).await.unwrap();
            let done = differ
                .apply(&w.scope, layer, &mounts, ApplyOptions::default())
                .await
                .unwrap();
            assert_eq!(done.digest, layer.digest, "{name}");
            sn.commit(&layer.digest, &key, "", Labels::new())
                .await
                .unwrap();
            parent = layer.digest.clone();
        }
        let view = sn.view("v", &parent, Labels::new()).await.unwrap();
        w.on(&view, |r| {
            let kept = std::fs::metadata(r.join("kept")).unwrap();
            let facts = (kept.mode() & 0o777, kept.uid(), kept.gid(), kept.mtime());
            assert_eq!(facts, (0o640, 7, 8, 1_600_000_000), "{name}");
            assert!(
                !r.join("gone").exists() && !r.join("dir/old").exists(),
                "{name}"
            );
            assert_eq!(std::fs::read(r.join("dir/new")).unwrap(), b"new", "{name}");
        })
        .await;

        // What is written on top of images is found again.
        let active = sn.prepare("a", &parent, Labels::new()).await.unwrap();
        w.on(&active, |r| {
            std::fs::write(r.join("written"), "w").unwrap();
            std::fs::remove_file(r.join("kept")).unwrap();
        })
        .await;
        let options = CompareOptions {
            media_type: LAYER.into(),
            ..Default::default()
        };
        let diff = differ
            .compare(&w.scope, &view, &active, options)
            .await
            .unwrap();
        let digest = Digest::parse(&diff.digest).unwrap();
        let bytes = w.content.get(&digest).unwrap();
        let mut names: Vec<String> = tar::Archive::new(bytes.as_ref())
            .entries()
            .unwrap()
            .map(|e| e.unwrap().path().unwrap().display().to_string())
            .collect();
        names.sort();
        assert_eq!(names, [".wh.kept", "written"], "{name}");
        assert_eq!(
            std::fs::read_dir(w.dir.path().join("t")).unwrap().count(),
            0
        );
    }
}

#[tokio::test]
async fn layers_that_are_images_are_copied() {
    let Some(w) = World::new().await else { return };
    let tree = w.dir.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(tree.join("f"), "native").unwrap();
    let image = w.dir.path().join("image");
    corten_sys::image::make_erofs(&tree, &image, &[]).unwrap();
    let mut layer = blob(&w, std::fs::read(&image).unwrap());
    layer.media_type = "application/vnd.erofs.layer.v1".into();
    let sn = w.snapshotter("sn").await;
    let mounts = sn.prepare("k", "", Labels::new()).await.unwrap();
    let differ = w.erofs();
    let apply = async |layer: &Descriptor, mounts: &[Mount]| {
        differ
            .apply(&w.scope, layer, mounts, ApplyOptions::default())
            .await
    };
    let done = apply(&layer, &mounts).await.unwrap();
    assert_eq!(
        (&done.media_type, &done.digest),
        (&layer.media_type, &layer.digest)
    );
    sn.commit("base", "k", "", Labels::new()).await.unwrap();
    let view = sn.view("v", "base", Labels::new()).await.unwrap();
    w.on(&view, |r| {
        assert_eq!(std::fs::read(r.join("f")).unwrap(), b"native");
    })
    .await;

    // A layer that is whole, one of somebody else, and one that is no layer.
    let e = apply(&layer, &view).await.unwrap_err();
    assert_eq!(e.kind(), Kind::FailedPrecondition);
    let foreign = Mount {
        r#type: "bind".into(),
        source: tree.display().to_string(),
        options: vec!["rw".into()],
        ..Default::default()
    };
    let e = apply(&layer, &[foreign]).await.unwrap_err();
    assert_eq!(e.kind(), Kind::NotImplemented);
    let broken = blob(&w, b"this is no tar archive at all".repeat(40));
    let mounts = sn.prepare("k2", "", Labels::new()).await.unwrap();
    assert!(apply(&broken, &mounts).await.is_err());
    let tree = w.dir.path().join("sn/snapshots/3");
    let mut left: Vec<_> = std::fs::read_dir(tree)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, [".erofslayer", "fs", "work"]);
}
