//! The folder `snapshots/`: trees by id, trees being made, trees being deleted.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use corten_core::{Context, Result};
use parking_lot::Mutex;

const NEW: &str = "new-";
const REMOVED: &str = "rm-";
/// So often two removals of one tree may meet.
const RACES: usize = 100;

/// The trees of one snapshotter.
#[derive(Debug)]
pub(crate) struct Trees {
    dir: PathBuf,
    next: AtomicU64,
    /// Names of the trees being made: a sweep spares them.
    making: Arc<Mutex<HashSet<String>>>,
}

/// A tree being made; removed when dropped before [`NewTree::place`].
#[derive(Debug)]
pub(crate) struct NewTree {
    path: PathBuf,
    name: String,
    making: Arc<Mutex<HashSet<String>>>,
    placed: bool,
}

impl Trees {
    /// Makes the folder; both it and the root are closed to other users.
    pub(crate) fn open(root: &Path) -> Result<Self> {
        let dir = root.join("snapshots");
        for d in [root, dir.as_path()] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(d)
                .with_context(|| format!("make {}", d.display()))?;
        }
        Ok(Self {
            dir,
            next: AtomicU64::new(0),
            making: Arc::default(),
        })
    }

    /// Where the tree of `id` is.
    pub(crate) fn path(&self, id: u64) -> PathBuf {
        self.dir.join(id.to_string())
    }

    /// An empty tree under a temporary name.
    pub(crate) fn start(&self) -> Result<NewTree> {
        loop {
            let n = self.next.fetch_add(1, Ordering::Relaxed);
            let name = format!("{NEW}{}-{n}", std::process::id());
            let path = self.dir.join(&name);
            self.making.lock().insert(name.clone());
            let tree = NewTree {
                path,
                name,
                making: self.making.clone(),
                placed: false,
            };
            match fs::DirBuilder::new().mode(0o755).create(&tree.path) {
                Ok(()) => return Ok(tree),
                // Left by an earlier daemon of our pid; dropping `tree` removes it.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e).context("failed to create temp dir"),
            }
        }
    }

    /// Takes the tree of `id` out of its place; None when there was none.
    pub(crate) fn displace(&self, id: u64) -> Result<Option<PathBuf>> {
        self.displace_named(&id.to_string())
    }

    fn displace_named(&self, name: &str) -> Result<Option<PathBuf>> {
        let aside = self.dir.join(format!("{REMOVED}{name}"));
        match fs::rename(self.dir.join(name), &aside) {
            Ok(()) => Ok(Some(aside)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).with_context(|| format!("failed to rename snapshot {name}")),
        }
    }

    /// Puts a displaced tree back, when its removal was not committed.
    pub(crate) fn restore(&self, id: u64, aside: &Path) {
        if let Err(error) = fs::rename(aside, self.path(id)) {
            tracing::error!(id, %error, "put snapshot back after a failed removal");
        }
    }

    /// Displaces every tree that no id in `used` names and returns them with those displaced before. The caller keeps
    /// others from adding ids meanwhile.
    pub(crate) fn sweep(&self, used: &HashSet<u64>) -> Result<Vec<PathBuf>> {
        let mut out = Vec::new();
        let entries = fs::read_dir(&self.dir).context("list snapshots")?;
        for entry in entries {
            let entry = entry.context("list snapshots")?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let in_use = name.parse().is_ok_and(|id: u64| used.contains(&id))
                || self.making.lock().contains(&name);
            if in_use {
                continue;
            }
            if name.starts_with(REMOVED) {
                out.push(entry.path());
            } else {
                out.extend(self.displace_named(&name)?);
            }
        }
        Ok(out)
    }
}

/// Deletes displaced trees; what fails is logged and left for the next sweep.
pub(crate) fn delete(trees: Vec<PathBuf>) {
    for tree in trees {
        let mut done = corten_sys::tree::remove(&tree);
        for _ in 0..RACES {
            // A sweep found what a removal in the background was at: each took entries from under the other.
            let raced = |e: &io::Error| {
                matches!(
                    e.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
                )
            };
            if !done.as_ref().is_err_and(raced) {
                break;
            }
            done = corten_sys::tree::remove(&tree);
        }
        if let Err(error) = done {
            tracing::warn!(path = %tree.display(), %error, "remove directory");
        }
    }
}

impl NewTree {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the tree its final name.
    pub(crate) fn place(&mut self, at: &Path) -> Result<()> {
        fs::rename(&self.path, at).context("failed to rename")?;
        self.placed = true;
        // From now on dropping must not delete; if the record fails, the tree has no record and is swept.
        at.clone_into(&mut self.path);
        Ok(())
    }
}

impl Drop for NewTree {
    fn drop(&mut self) {
        if !self.placed
            && let Err(error) = corten_sys::tree::remove(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "remove unfinished snapshot");
        }
        self.making.lock().remove(&self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_may_be_deleted_twice_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("rm-1");
        for i in 0..40 {
            let sub = tree.join(format!("{i}/a/b"));
            fs::create_dir_all(&sub).unwrap();
            for j in 0..20 {
                fs::write(sub.join(j.to_string()), "").unwrap();
            }
        }
        std::thread::scope(|s| {
            for _ in 0..2 {
                s.spawn(|| delete(vec![tree.clone()]));
            }
        });
        assert!(!tree.exists());
    }
}
