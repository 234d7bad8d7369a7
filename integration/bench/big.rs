//! The large image of the pull figure: files of this machine in layers of at most 220 MB, six or
//! so of them, as a real base image with a language's tools would be.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use corten_integration::images::{Image, Layer, Recipe};
use corten_integration::tarball::Tarball;

const TREES: [&str; 9] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/share/doc",
    "/usr/include",
    "/usr/lib/python3",
    "/usr/bin",
    "/usr/lib/gcc",
    "/usr/share/perl",
    "/usr/lib/go",
    "/usr/share/locale",
];
const LAYER: u64 = 220 << 20;
const FILE: u64 = 30 << 20;

/// An image of at most `megabytes`, unpacked, and how many it really has.
pub(crate) fn image(megabytes: u64) -> (Image, u64) {
    let (mut recipe, mut total) = (Recipe::new("big"), 0);
    for tree in TREES {
        let room = LAYER.min((megabytes << 20).saturating_sub(total));
        let (tar, size) = layer(Path::new(tree), room);
        if size > 0 {
            recipe = recipe.layer(Layer::gzip(tar));
            total += size;
        }
    }
    (recipe.build(), total >> 20)
}

/// The regular files below `tree`, as many as there is room for.
fn layer(tree: &Path, room: u64) -> (Tarball, u64) {
    let (mut tar, mut size) = (Tarball::new(), 0);
    let mut open = vec![tree.to_owned()];
    while let Some(dir) = open.pop() {
        let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> = entries.map(|e| e.path()).collect();
        paths.sort_unstable();
        for path in paths {
            let Ok(meta) = fs::symlink_metadata(&path) else {
                continue;
            };
            if meta.is_dir() {
                open.push(path);
            } else if meta.is_file() && meta.len() < FILE && size + meta.len() <= room {
                let Ok(bytes) = fs::read(&path) else { continue };
                size += meta.len();
                let name = format!("big{}", path.display());
                tar = tar.file(&name, meta.permissions().mode() & 0o777, bytes);
            }
        }
    }
    (tar, size)
}
