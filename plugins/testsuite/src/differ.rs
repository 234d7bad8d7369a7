//! What every differ must do, on plain folders and on overlays.

use std::fs;
use std::future::Future;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use corten_core::content::Content;
use corten_core::diff::{ApplyOptions, CompareOptions, Differ};
use corten_core::{Descriptor, Digest, Kind, Mount, Namespace, Scope, labels};
use corten_sys::mount::with_temp_mount;

use crate::memory::Memory;

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// A differ over a store in memory.
struct Env {
    differ: Arc<dyn Differ>,
    content: Memory,
    dir: tempfile::TempDir,
    scope: Scope,
}

/// Runs the suite on the differs that `open` makes over a content store.
pub async fn suite<F, Fut>(open: F)
where
    F: Fn(Arc<dyn Content>) -> Fut,
    Fut: Future<Output = Arc<dyn Differ>>,
{
    if !crate::can_mount("differ") {
        return;
    }
    macro_rules! cases {
        ($($case:ident),* $(,)?) => {$({
            eprintln!("differ: {}", stringify!($case));
            let content = Memory::default();
            let env = Env {
                differ: open(Arc::new(content.clone())).await,
                content,
                dir: tempfile::tempdir().unwrap(),
                scope: Scope::new(Namespace::new("test").unwrap()),
            };
            $case(&env).await;
        })*};
    }
    cases!(
        a_tree_goes_there_and_back_in_every_compression,
        changes_on_an_overlay_are_found,
        an_unchanged_tree_gives_an_empty_layer,
        times_are_bounded,
        what_cannot_be_done_is_refused,
        a_broken_layer_is_an_error,
        trailing_bytes_belong_to_the_digest,
        an_existing_blob_gets_its_diff_id,
        a_layer_can_be_applied_before_its_parent_is_known,
    );
}

fn bind(path: &Path) -> Vec<Mount> {
    fs::create_dir_all(path).unwrap();
    vec![Mount {
        r#type: "bind".into(),
        source: path.to_string_lossy().into_owned(),
        options: vec!["rbind".into(), "rw".into()],
        ..Default::default()
    }]
}

fn overlay(upper: &Path, lower: &[&Path]) -> Vec<Mount> {
    let work = upper.with_extension("work");
    for dir in [upper, work.as_path()] {
        fs::create_dir_all(dir).unwrap();
    }
    let lower: Vec<_> = lower
        .iter()
        .map(|p| p.to_string_lossy().into_owned())
        .collect();
    vec![Mount {
        r#type: "overlay".into(),
        source: "overlay".into(),
        options: vec![
            format!("workdir={}", work.display()),
            format!("upperdir={}", upper.display()),
            format!("lowerdir={}", lower.join(":")),
            "index=off".into(),
        ],
        ..Default::default()
    }]
}

/// Every entry of a tree in one line each: what a container would see.
fn listing(root: &Path) -> Vec<String> {
    fn walk(root: &Path, at: &Path, out: &mut Vec<String>) {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            let m = fs::symlink_metadata(&path).unwrap();
            let what = if m.is_symlink() {
                format!("-> {}", fs::read_link(&path).unwrap().display())
            } else if m.is_file() {
                let text = fs::read(&path).unwrap();
                let user = corten_sys::xattr::get(&path, "user.note").unwrap();
                format!("{} links {} {user:?}", Digest::sha256(&text), m.nlink())
            } else {
                format!("rdev {}", m.rdev())
            };
            out.push(format!(
                "{} {:o} {}:{} {what}",
                path.strip_prefix(root).unwrap().display(),
                m.mode(),
                m.uid(),
                m.gid()
            ));
            if m.is_dir() {
                walk(root, &path, out);
            }
        }
    }
    let mut out = Vec::new();
    walk(root, root, &mut out);
    out.sort();
    out
}

fn seen(mounts: &[Mount]) -> Vec<String> {
    with_temp_mount(mounts, None, |root| Ok(listing(root))).unwrap()
}

fn change(mounts: &[Mount], f: impl FnOnce(&Path)) {
    with_temp_mount(mounts, None, |root| {
        f(root);
        Ok(())
    })
    .unwrap();
}

fn fill(root: &Path) {
    fs::create_dir_all(root.join("etc/deep/er")).unwrap();
    fs::write(root.join("etc/passwd"), "root").unwrap();
    fs::write(root.join("etc/deep/er/f"), vec![7; 300_000]).unwrap();
    fs::hard_link(root.join("etc/passwd"), root.join("etc/passwd-")).unwrap();
    symlink("/nowhere", root.join("etc/link")).unwrap();
    fs::write(root.join("su"), "elf").unwrap();
    std::os::unix::fs::chown(root.join("su"), Some(5), Some(3_000_000_000)).unwrap();
    fs::set_permissions(root.join("su"), PermissionsExt::from_mode(0o4750)).unwrap();
    corten_sys::xattr::set(&root.join("su"), "user.note", b"kept").unwrap();
    corten_sys::fifo::create(&root.join("pipe"), 0o640).unwrap();
    fs::write(root.join("n".repeat(200)), "long name").unwrap();
    drop(std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap());
}

impl Env {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn compare(&self, lower: &[Mount], upper: &[Mount], media_type: &str) -> Descriptor {
        let options = CompareOptions {
            media_type: media_type.into(),
            ..Default::default()
        };
        self.differ
            .compare(&self.scope, lower, upper, options)
            .await
            .unwrap()
    }

    async fn apply(&self, layer: &Descriptor, mounts: &[Mount]) -> Descriptor {
        let options = ApplyOptions {
            sync_fs: true,
            ..Default::default()
        };
        self.differ
            .apply(&self.scope, layer, mounts, options)
            .await
            .unwrap()
    }

    async fn label(&self, layer: &Descriptor) -> Option<String> {
        let digest = Digest::parse(&layer.digest).unwrap();
        let info = self
            .content
            .info(&self.scope.namespace, &digest)
            .await
            .unwrap();
        info.labels.get(labels::UNCOMPRESSED).cloned()
    }
}

async fn a_tree_goes_there_and_back_in_every_compression(env: &Env) {
    let tree = bind(&env.path("tree"));
    change(&tree, fill);
    let mut diff_ids = Vec::new();
    for media_type in [LAYER, GZIP, ZSTD, ""] {
        let layer = env.compare(&[], &tree, media_type).await;
        let want = if media_type.is_empty() {
            GZIP
        } else {
            media_type
        };
        assert_eq!(layer.media_type, want);
        let copy = bind(&env.path(&format!("copy-{}", diff_ids.len())));
        let applied = env.apply(&layer, &copy).await;
        assert_eq!(applied.media_type, LAYER);
        if want == LAYER {
            assert_eq!((&applied.digest, applied.size), (&layer.digest, layer.size));
        } else {
            assert_eq!(env.label(&layer).await.as_ref(), Some(&applied.digest));
        }
        let mut want = seen(&tree);
        want.retain(|l| !l.starts_with("socket "));
        assert_eq!(seen(&copy), want);
        diff_ids.push(applied.digest);
    }
    diff_ids.dedup();
    assert_eq!(diff_ids.len(), 1);
}

async fn changes_on_an_overlay_are_found(env: &Env) {
    let base = bind(&env.path("base"));
    change(&base, |r| {
        fill(r);
        fs::create_dir_all(r.join("gone/sub")).unwrap();
        fs::write(r.join("gone/sub/f"), "x").unwrap();
        fs::create_dir(r.join("anew")).unwrap();
        fs::write(r.join("anew/old"), "x").unwrap();
        fs::create_dir(r.join("renamed")).unwrap();
        fs::write(r.join("renamed/f"), "x").unwrap();
        fs::write(r.join("became-dir"), "x").unwrap();
    });
    let upper = overlay(&env.path("upper"), &[&env.path("base")]);
    change(&upper, |r| {
        fs::remove_dir_all(r.join("gone")).unwrap();
        fs::remove_dir_all(r.join("anew")).unwrap();
        fs::create_dir(r.join("anew")).unwrap();
        fs::write(r.join("anew/new"), "x").unwrap();
        fs::write(r.join("etc/deep/er/added"), "x").unwrap();
        fs::write(r.join("etc/passwd"), "other").unwrap();
        fs::remove_file(r.join("etc/link")).unwrap();
        fs::set_permissions(r.join("su"), PermissionsExt::from_mode(0o700)).unwrap();
        fs::create_dir(r.join("moved")).unwrap();
        fs::rename(r.join("renamed/f"), r.join("moved/f")).unwrap();
        fs::remove_file(r.join("became-dir")).unwrap();
        fs::create_dir(r.join("became-dir")).unwrap();
    });
    let want = seen(&upper);
    let layer = env.compare(&base, &upper, GZIP).await;
    // Small: nothing unchanged may be in it.
    assert!(layer.size < 3000, "{}", layer.size);
    let on_overlay = overlay(&env.path("applied"), &[&env.path("base")]);
    env.apply(&layer, &on_overlay).await;
    // Copy-up parts hard links, and archives hold no sockets.
    let links = |lines: Vec<String>| {
        let mut lines: Vec<_> = lines
            .iter()
            .map(|l| l.replace("links 2", "links 1"))
            .collect();
        lines.retain(|l| !l.starts_with("socket "));
        lines
    };
    assert_eq!(links(seen(&on_overlay)), links(want.clone()));
    // The same trees without the help of an upper folder give the same changes.
    let copy = bind(&env.path("copy"));
    env.apply(&env.compare(&[], &upper, LAYER).await, &copy)
        .await;
    let walked = env.compare(&base, &copy, LAYER).await;
    let again = overlay(&env.path("again"), &[&env.path("base")]);
    env.apply(&walked, &again).await;
    assert_eq!(links(seen(&again)), links(want.clone()));
    // And applied to a plain copy of the base, whiteouts delete.
    let plain = bind(&env.path("plain"));
    env.apply(&env.compare(&[], &base, LAYER).await, &plain)
        .await;
    env.apply(&layer, &plain).await;
    assert_eq!(links(seen(&plain)), links(want));
}

async fn an_unchanged_tree_gives_an_empty_layer(env: &Env) {
    let base = bind(&env.path("base"));
    change(&base, fill);
    let upper = overlay(&env.path("upper"), &[&env.path("base")]);
    let layer = env.compare(&base, &upper, LAYER).await;
    assert_eq!(layer.size, 1024);
    assert_eq!(env.compare(&base, &base, LAYER).await.digest, layer.digest);
}

async fn times_are_bounded(env: &Env) {
    let tree = bind(&env.path("tree"));
    change(&tree, |r| fs::write(r.join("f"), "x").unwrap());
    let bound = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
    let options = CompareOptions {
        media_type: LAYER.into(),
        source_date_epoch: Some(bound),
        ..Default::default()
    };
    let layer = env
        .differ
        .compare(&env.scope, &[], &tree, options)
        .await
        .unwrap();
    let copy = bind(&env.path("copy"));
    env.apply(&layer, &copy).await;
    assert_eq!(fs::metadata(env.path("copy/f")).unwrap().mtime(), 1_000_000);
}

async fn what_cannot_be_done_is_refused(env: &Env) {
    let tree = bind(&env.path("tree"));
    let options = CompareOptions {
        media_type: "application/x".into(),
        ..Default::default()
    };
    let e = env
        .differ
        .compare(&env.scope, &[], &tree, options)
        .await
        .unwrap_err();
    assert_eq!(e.kind(), Kind::NotImplemented);
    let digest = env.content.put(vec![0; 1024]);
    let apply = async |media_type: &str, digest: &str, mounts: &[Mount]| {
        let layer = Descriptor {
            media_type: media_type.into(),
            digest: digest.into(),
            size: 1024,
            ..Default::default()
        };
        let options = ApplyOptions::default();
        env.differ
            .apply(&env.scope, &layer, mounts, options)
            .await
            .unwrap_err()
            .kind()
    };
    let digest = digest.as_str();
    assert_eq!(
        apply("application/json", digest, &tree).await,
        Kind::NotImplemented
    );
    let encrypted = format!("{GZIP}+encrypted");
    assert_eq!(apply(&encrypted, digest, &tree).await, Kind::NotImplemented);
    let absent = Digest::sha256(b"absent");
    assert_eq!(apply(LAYER, absent.as_str(), &tree).await, Kind::NotFound);
    assert_eq!(
        apply(LAYER, "sha256:../..", &tree).await,
        Kind::InvalidArgument
    );
    let mut read_only = tree.clone();
    read_only[0].options = vec!["rbind".into(), "ro".into()];
    assert_eq!(
        apply(LAYER, digest, &read_only).await,
        Kind::FailedPrecondition
    );
}

async fn a_broken_layer_is_an_error(env: &Env) {
    let tree = bind(&env.path("tree"));
    change(&tree, fill);
    let layer = env.compare(&[], &tree, GZIP).await;
    let whole = env
        .content
        .get(&Digest::parse(&layer.digest).unwrap())
        .unwrap();
    let cut = env.content.put(whole.slice(..whole.len() / 2));
    let garbage = env.content.put(vec![1; 5000]);
    for (n, digest) in [cut, garbage].into_iter().enumerate() {
        let layer = Descriptor {
            digest: digest.to_string(),
            ..layer.clone()
        };
        let copy = bind(&env.path(&format!("copy{n}")));
        let options = ApplyOptions::default();
        assert!(
            env.differ
                .apply(&env.scope, &layer, &copy, options)
                .await
                .is_err()
        );
    }
}

async fn trailing_bytes_belong_to_the_digest(env: &Env) {
    let tree = bind(&env.path("tree"));
    change(&tree, fill);
    let layer = env.compare(&[], &tree, LAYER).await;
    let whole = env
        .content
        .get(&Digest::parse(&layer.digest).unwrap())
        .unwrap();
    let padded = [&whole[..], &[0; 10_240], b"and more"].concat();
    let digest = env.content.put(padded.clone());
    let layer = Descriptor {
        digest: digest.to_string(),
        size: padded.len() as i64,
        ..layer
    };
    let applied = env.apply(&layer, &bind(&env.path("copy"))).await;
    assert_eq!(
        (applied.digest, applied.size),
        (digest.to_string(), padded.len() as i64)
    );
}

async fn an_existing_blob_gets_its_diff_id(env: &Env) {
    let tree = bind(&env.path("tree"));
    change(&tree, |r| fs::write(r.join("f"), "x").unwrap());
    let layer = env.compare(&[], &tree, GZIP).await;
    let digest = Digest::parse(&layer.digest).unwrap();
    let diff_id = env.label(&layer).await.unwrap();
    let mut info = env
        .content
        .info(&env.scope.namespace, &digest)
        .await
        .unwrap();
    info.labels.clear();
    env.content
        .update(&env.scope.namespace, info, &[])
        .await
        .unwrap();
    assert_eq!(env.compare(&[], &tree, GZIP).await.digest, layer.digest);
    assert_eq!(env.label(&layer).await, Some(diff_id));
}

/// How a parallel unpack works: an overlay recipe that has only an upper folder, linked to its parent afterwards.
async fn a_layer_can_be_applied_before_its_parent_is_known(env: &Env) {
    let base = bind(&env.path("base"));
    change(&base, fill);
    let upper = overlay(&env.path("upper"), &[&env.path("base")]);
    change(&upper, |r| {
        fs::remove_file(r.join("su")).unwrap();
        fs::remove_dir_all(r.join("etc")).unwrap();
    });
    let layer = env.compare(&base, &upper, GZIP).await;
    let mut alone = bind(&env.path("alone"));
    alone[0] = Mount {
        r#type: "overlay".into(),
        source: "overlay".into(),
        options: vec![format!("upperdir={}", alone[0].source), "rw".into()],
        ..Default::default()
    };
    env.apply(&layer, &alone).await;
    let stacked = overlay(&env.path("next"), &[&env.path("alone"), &env.path("base")]);
    assert_eq!(seen(&stacked), seen(&upper));
}
