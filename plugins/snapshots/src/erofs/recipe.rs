//! Mount recipes of erofs snapshots, as containerd 2.4 gives them (plugins/snapshots/erofs): every image is a mount of
//! its own, and templates put them together. The mount manager makes them into one mount.

use std::path::{Path, PathBuf};

use corten_core::snapshots::SnapshotKind;
use corten_core::{Error, Mount, Result};
use corten_sys::seal;

use super::image::{self, Image, WRITABLE};
use crate::overlayfs::{GID_MAP, UID_MAP};
use crate::records::Snapshot;

/// Bytes of the writable layer that a client asks for.
const MAX_SIZE: &str = "containerd.io/snapshot/max-size";
/// Metadata of a layer and of all below it, whose data are in the layers' images.
const MERGED: &str = "fsmeta.erofs";

/// What recipes depend on.
#[derive(Debug)]
pub(super) struct Recipes {
    pub(super) snapshots: PathBuf,
    /// More options of overlays.
    pub(super) options: Vec<String>,
    /// Bytes of a writable image; 0 = writable folders.
    pub(super) default_size: u64,
    pub(super) remap_ids: bool,
    /// Layers must have fs-verity.
    pub(super) verity: bool,
    /// Images with dm-verity data are not mounted without.
    pub(super) dmverity: bool,
}

fn recipe(kind: &str, source: impl Into<String>, options: Vec<String>) -> Mount {
    Mount {
        r#type: kind.into(),
        source: source.into(),
        options,
        ..Default::default()
    }
}

fn texts(options: &[&str]) -> Vec<String> {
    options.iter().map(|o| (*o).to_owned()).collect()
}

impl Recipes {
    fn tree(&self, id: u64) -> PathBuf {
        self.snapshots.join(id.to_string())
    }

    /// How `s` is mounted.
    pub(super) fn mounts(&self, s: &Snapshot) -> Result<Vec<Mount>> {
        let active = s.kind == SnapshotKind::Active;
        match s.parents.as_slice() {
            [] => self.bottom(s),
            [only] if !active => Ok(vec![self.layer(*only)?]),
            _ => self.stack(s),
        }
    }

    fn bottom(&self, s: &Snapshot) -> Result<Vec<Mount>> {
        if let Some(blob) = image::find(&self.tree(s.id))? {
            return Ok(vec![self.image(&blob)?]);
        }
        let access = match s.kind {
            SnapshotKind::View => "ro",
            _ => "rw",
        };
        if self.default_size > 0 {
            let bind = texts(&[
                "X-containerd.mkdir.path={{ mount 0 }}/upper:0755",
                access,
                "rbind",
            ]);
            return Ok(vec![
                self.writable(s, access),
                recipe("format/mkdir/bind", "{{ mount 0 }}/upper", bind),
            ]);
        }
        let upper = self.tree(s.id).join("fs");
        Ok(vec![recipe(
            "bind",
            upper.to_string_lossy(),
            texts(&[access, "rbind"]),
        )])
    }

    fn writable(&self, s: &Snapshot, access: &str) -> Mount {
        let asked = s.labels.get(MAX_SIZE).map(|text| text.parse::<u64>());
        let size = match asked {
            None => self.default_size,
            Some(Ok(size)) if size > 0 => size,
            Some(_) => {
                tracing::warn!(
                    label = MAX_SIZE,
                    "not a size, the default is taken for a writable layer"
                );
                self.default_size
            }
        };
        let size = format!("X-containerd.mkfs.size={size}");
        recipe(
            "mkfs/ext4",
            self.tree(s.id).join(WRITABLE).to_string_lossy(),
            texts(&["X-containerd.mkfs.fs=ext4", &size, access, "loop"]),
        )
    }

    fn image(&self, blob: &Image) -> Result<Mount> {
        if self.verity && blob.owned && !seal::has_verity(&blob.path)? {
            return Err(Error::precondition(format!(
                "fsverity is not enabled on {}",
                blob.path.display()
            )));
        }
        let mut options = texts(&["ro", "loop"]);
        let data = sidecar(&blob.path);
        if self.dmverity && data.exists() {
            options.push(format!("X-containerd.dmverity={}", data.display()));
        }
        Ok(recipe("erofs", blob.path.to_string_lossy(), options))
    }

    fn blob(&self, id: u64) -> Result<Image> {
        let tree = self.tree(id);
        image::find(&tree)?
            .ok_or_else(|| Error::not_found(format!("{}: no erofs layer blob", tree.display())))
    }

    fn layer(&self, id: u64) -> Result<Mount> {
        self.image(&self.blob(id)?)
    }

    /// One mount for each parent, nearest first; merged metadata stand for all below them.
    fn lower(&self, parents: &[u64]) -> Result<Vec<Mount>> {
        let mut out = Vec::with_capacity(parents.len());
        for (i, id) in parents.iter().enumerate() {
            let merged = self.tree(*id).join(MERGED);
            if std::fs::metadata(&merged).is_ok_and(|m| m.len() > 0) {
                let mut options = texts(&["ro", "loop"]);
                for below in parents[i..].iter().rev() {
                    options.push(format!("device={}", self.blob(*below)?.path.display()));
                }
                out.push(recipe("erofs", merged.to_string_lossy(), options));
                return Ok(out);
            }
            out.push(self.layer(*id)?);
        }
        Ok(out)
    }

    fn stack(&self, s: &Snapshot) -> Result<Vec<Mount>> {
        let mut mounts = Vec::new();
        let mut options = Vec::new();
        let own = match s.kind {
            SnapshotKind::Active => image::find(&self.tree(s.id))?.filter(|blob| !blob.owned),
            _ => None,
        };
        let writable = s.kind == SnapshotKind::Active && own.is_none();
        if writable && self.default_size > 0 {
            mounts.push(self.writable(s, "rw"));
            options.extend(texts(&[
                "X-containerd.mkdir.path={{ mount 0 }}/upper:0755",
                "X-containerd.mkdir.path={{ mount 0 }}/work:0755",
                "workdir={{ mount 0 }}/work",
                "upperdir={{ mount 0 }}/upper",
            ]));
        } else if writable {
            let tree = self.tree(s.id);
            options.push(format!("workdir={}", tree.join("work").display()));
            options.push(format!("upperdir={}", tree.join("fs").display()));
        }
        let first = mounts.len();
        if let Some(blob) = own {
            // A layer that is already whole: nothing in it can be written, and callers see that by the option.
            mounts.push(self.image(&blob)?);
            options.push("ro".into());
        }
        mounts.extend(self.lower(&s.parents)?);
        if self.remap_ids {
            for (label, option) in [(UID_MAP, "uidmap"), (GID_MAP, "gidmap")] {
                options.extend(s.labels.get(label).map(|map| format!("{option}={map}")));
            }
        }
        let last = mounts.len() - 1;
        if first == last && !writable {
            // An overlay of one layer is no overlay.
            options.extend(texts(&["ro", "rbind"]));
            let source = format!("{{{{ mount {first} }}}}");
            mounts.push(recipe("format/bind", source, options));
            return Ok(mounts);
        }
        options.push(if first == last {
            format!("lowerdir={{{{ mount {first} }}}}")
        } else {
            format!("lowerdir={{{{ overlay {first} {last} }}}}")
        });
        options.extend(self.options.iter().cloned());
        mounts.push(recipe("format/mkdir/overlay", "overlay", options));
        Ok(mounts)
    }
}

/// Where the dm-verity data of an image are.
fn sidecar(blob: &Path) -> PathBuf {
    let mut name = blob.as_os_str().to_owned();
    name.push(".dmverity");
    name.into()
}

#[cfg(test)]
mod tests;
