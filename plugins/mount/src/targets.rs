//! The folder of activations, which is also their store: it lies on the volatile state, as mounts do.
//!
//! ```text
//! t/<id>/000, 001, …     mount points, or what a handler makes in their place
//!        000-type, …     how each is undone; written before it is mounted
//!        activation      the record, written when all is mounted and removed before anything is undone
//! ```
//! A folder without record is an activation that a crash cut short, or whose undoing failed: it is undone at the next
//! start, or with the next garbage. After a reboot records may be left of mounts that are gone; these are undone too.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use corten_core::mounts::Handler;
use corten_core::{Context, Error, Kind, Mount, Result};
use corten_protos::containerd::types::{ActivationInfo, ActiveMount};
use corten_sys::mount;
use prost::Message;

use crate::handlers::{active, is_mounted};
use crate::plan::{Plan, chain};

const RECORD: &str = "activation";
const TYPE: &str = "-type";

/// An activation as stored.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Activation {
    #[prost(string, tag = "1")]
    pub(crate) namespace: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) info: Option<ActivationInfo>,
    /// Empty = none.
    #[prost(string, tag = "3")]
    pub(crate) lease: String,
}

/// Handlers by mount type.
pub(crate) type Handlers = BTreeMap<String, Arc<dyn Handler>>;

/// The folder, and all that mounting in it takes.
pub(crate) struct Targets {
    dir: PathBuf,
    /// Where images and folders may be made; the folder itself is the first.
    roots: Vec<PathBuf>,
    pub(crate) handlers: Handlers,
}

/// What is mounted, and what is left to the caller.
pub(crate) type Made = (Vec<ActiveMount>, Vec<Mount>);

impl Targets {
    pub(crate) fn open(dir: PathBuf, roots: Vec<PathBuf>, handlers: Handlers) -> Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .with_context(|| format!("make {}", dir.display()))?;
        Ok(Self {
            roots: [dir.clone()].into_iter().chain(roots).collect(),
            dir,
            handlers,
        })
    }

    fn path(&self, id: u64) -> PathBuf {
        self.dir.join(id.to_string())
    }

    /// Ids of all folders.
    pub(crate) fn ids(&self) -> Result<Vec<u64>> {
        let mut ids = Vec::new();
        for entry in fs::read_dir(&self.dir).context("list activations")? {
            let name = entry.context("list activations")?.file_name();
            ids.extend(name.to_str().and_then(|n| n.parse::<u64>().ok()));
        }
        ids.sort_unstable();
        Ok(ids)
    }

    /// The record of an activation whose mounts are all there.
    pub(crate) fn load(&self, id: u64) -> Option<Activation> {
        let bytes = fs::read(self.path(id).join(RECORD)).ok()?;
        let record = Activation::decode(bytes.as_slice())
            .inspect_err(|error| tracing::warn!(id, %error, "record of an activation"))
            .ok()?;
        let alive = record.info.as_ref()?.active.iter().all(|a| {
            let at = Path::new(&a.mount_point);
            let kind = a.mount.as_ref().map_or("", |m| m.r#type.as_str());
            match self.handlers.get(kind) {
                Some(handler) => handler.is_active(at),
                None => is_mounted(at),
            }
        });
        alive.then_some(record)
    }

    /// Writes the record, as a whole.
    pub(crate) fn save(&self, id: u64, record: &Activation) -> Result<()> {
        let at = self.path(id).join(RECORD);
        let new = at.with_extension("new");
        fs::write(&new, record.encode_to_vec())
            .and_then(|()| fs::rename(&new, &at))
            .with_context(|| format!("write {}", at.display()))
    }

    /// From here on the activation is one to be undone.
    pub(crate) fn forget(&self, id: u64) -> Result<()> {
        match fs::remove_file(self.path(id).join(RECORD)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(e).context("remove the record of an activation")
            }
            _ => Ok(()),
        }
    }

    /// Carries out `plan`; on failure what was mounted is still there and to be undone.
    pub(crate) fn make(
        &self,
        id: u64,
        mounts: &[Mount],
        plan: &Plan,
        temporary: bool,
    ) -> Result<Made> {
        let dir = self.path(id);
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .with_context(|| format!("make {}", dir.display()))?;
        let mut done: Vec<ActiveMount> = Vec::new();
        for (i, m) in mounts.iter().take(plan.mounted).enumerate() {
            let (transforms, _) = chain(&m.r#type);
            let mut m = m.clone();
            for t in transforms {
                m = t.apply(m, &done, &self.roots)?;
            }
            done.push(self.mount(&dir, i, m, &done)?);
        }
        let mut left: Vec<Mount> = mounts.iter().skip(plan.mounted).cloned().collect();
        if let Some(first) = left.first_mut() {
            let (transforms, _) = chain(&first.r#type);
            for t in transforms.into_iter().take(plan.transforms) {
                *first = t.apply(first.clone(), &done, &self.roots)?;
            }
        }
        // Somebody has to find what was mounted: containerd adds the bind for temporary ones only, and hands an empty
        // recipe to the runtime for a lone erofs.
        if let Some(last) = done.last()
            && (temporary || left.is_empty())
        {
            left.push(Mount {
                r#type: "bind".into(),
                source: last.mount_point.clone(),
                options: vec!["rbind".into()],
                ..Default::default()
            });
        }
        Ok((done, left))
    }

    fn mount(
        &self,
        dir: &Path,
        index: usize,
        m: Mount,
        done: &[ActiveMount],
    ) -> Result<ActiveMount> {
        let name = format!("{index:03}");
        let at = dir.join(&name);
        fs::write(dir.join(name + TYPE), &m.r#type).context("write type of mount")?;
        if let Some(handler) = self.handlers.get(&m.r#type) {
            return handler
                .mount(&m, &at, done)
                .with_context(|| format!("mount handler failed {:?} {:?}", m.r#type, m.source));
        }
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&at)
            .with_context(|| format!("make {}", at.display()))?;
        mount::mount_one(&m, &at)
            .with_context(|| format!("mount failed {:?} {:?}", m.r#type, m.source))?;
        Ok(active(m, &at))
    }

    /// Unmounts all of a folder, last first, and removes it. Goes on after an error and returns the first. Never
    /// recursively: if a mount were left, its data would go.
    pub(crate) fn undo(&self, id: u64) -> Result<()> {
        let dir = self.path(id);
        let entries = match fs::read_dir(&dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.with_context(|| format!("list {}", dir.display()))?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.context("list mounts")?.file_name();
            names.extend(name.into_string().ok());
        }
        // By number; each mount before its type, which is needed again if the unmount fails.
        names.sort_unstable_by(|a, b| b.trim_end_matches(TYPE).cmp(a.trim_end_matches(TYPE)));
        let mut first = Ok(());
        for name in names.iter().filter(|n| n.ends_with(TYPE)) {
            let done = self.undo_one(&dir, name.trim_end_matches(TYPE));
            if done.is_err() && first.is_ok() {
                first = done;
            }
        }
        first?;
        for name in names.iter().filter(|n| n.starts_with(RECORD)) {
            fs::remove_file(dir.join(name)).with_context(|| format!("remove {name}"))?;
        }
        fs::remove_dir(&dir).with_context(|| format!("remove {}", dir.display()))
    }

    fn undo_one(&self, dir: &Path, name: &str) -> Result<()> {
        let (at, kind) = (dir.join(name), dir.join(format!("{name}{TYPE}")));
        let absent = |e: &io::Error| e.kind() == io::ErrorKind::NotFound;
        let handler = match fs::read_to_string(&kind) {
            Ok(kind) => self.handlers.get(&kind),
            Err(e) if absent(&e) => None,
            Err(e) => return Err(e).context("read type of mount"),
        };
        match handler {
            Some(handler) => handler.unmount(&at)?,
            None => mount::unmount_all(&at, false)?,
        }
        let removed = [fs::remove_dir(&at), fs::remove_file(&kind)];
        for e in removed.into_iter().filter_map(Result::err) {
            if !absent(&e) {
                let e = Error::new(Kind::Unknown, e.to_string());
                return Err(e.context(format!("remove {}", at.display())));
            }
        }
        Ok(())
    }
}
