//! The image of one layer: where it is, and how it is made of a folder.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use corten_core::{Context, Error, Mount, Result};
use corten_sys::image::make_erofs;
use corten_sys::mount;

pub(crate) const LAYER: &str = "layer.erofs";
pub(crate) const CACHED: &str = "cached";
pub(crate) const MARK: &str = ".erofslayer";
pub(crate) const WRITABLE: &str = "rwlayer.img";

/// A layer's image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Image {
    pub(crate) path: PathBuf,
    /// It lies in the snapshot's folder; one of a cache is shared and never touched.
    pub(crate) owned: bool,
}

/// The image of the snapshot in `tree`; None before a layer was applied. One that is noted but not there is an error,
/// never an empty layer.
pub(crate) fn find(tree: &Path) -> Result<Option<Image>> {
    let what = |path: &Path| format!("layer blob {:?}", path.display());
    let irregular = |path: &Path| {
        Error::precondition(format!(
            "layer blob {:?} is not a regular file",
            path.display()
        ))
    };
    match fs::read(tree.join(CACHED)) {
        Ok(bytes) => {
            let path = PathBuf::from(std::ffi::OsString::from_vec(bytes));
            let found = fs::metadata(&path).with_context(|| {
                format!("layer blob {:?} from the cache is unusable", path.display())
            })?;
            if !found.is_file() {
                return Err(irregular(&path));
            }
            return Ok(Some(Image { path, owned: false }));
        }
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(e).context("read the note of a cached layer");
        }
        Err(_) => {}
    }
    let path = tree.join(LAYER);
    match fs::symlink_metadata(&path) {
        Ok(found) if found.is_file() => Ok(Some(Image { path, owned: true })),
        Ok(_) => Err(irregular(&path)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| what(&path)),
    }
}

/// Makes the image of what was written into an active snapshot, and empties the folder.
pub(crate) fn convert(tree: &Path, block: bool) -> Result<Image> {
    let (upper, path) = (tree.join("fs"), tree.join(LAYER));
    let writable = tree.join(WRITABLE);
    if block && writable.exists() {
        let m = Mount {
            r#type: "ext4".into(),
            source: writable.to_string_lossy().into_owned(),
            options: vec!["ro".into(), "loop".into(), "noload".into()],
            ..Default::default()
        };
        mount::mount_one(&m, &upper)
            .with_context(|| format!("failed to mount writable layer {}", writable.display()))?;
        let made = match upper.join("upper") {
            inner if inner.is_dir() => make_erofs(&inner, &path, &[]),
            _ => empty(tree, &path),
        };
        let unmounted = mount::unmount_all(&upper, false);
        made.context("failed to convert upper block to erofs layer")?;
        unmounted?;
    } else {
        make_erofs(&upper, &path, &[]).context("failed to convert upper to erofs layer")?;
        for entry in fs::read_dir(&upper).context("list layer")? {
            let entry = entry.context("list layer")?.path();
            if let Err(error) = corten_sys::tree::remove(&entry) {
                tracing::warn!(path = %entry.display(), %error, "remove directory");
            }
        }
    }
    Ok(Image { path, owned: true })
}

/// Nothing was ever written.
fn empty(tree: &Path, path: &Path) -> Result<()> {
    let dir = tree.join("empty");
    fs::create_dir_all(&dir).context("make empty layer")?;
    make_erofs(&dir, path, &[])?;
    fs::remove_dir(&dir).context("remove empty layer")
}
