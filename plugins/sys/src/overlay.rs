//! overlayfs: any number of layers, any length of path, id-mapped layers, and what the host can do.
//!
//! Options that fit the one page of mount(2) go that way: it is one system call, and mountinfo then shows
//! `lowerdir=a:b` as tools expect. Longer ones go through fsopen(2), one `lowerdir+` for each layer (Linux 6.7); where
//! the kernel does not know that, through short `/proc/self/fd` names in mount(2).

use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use corten_core::{Context, Error, Result};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_fd, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
};

use crate::idmap::{self, UserNs};
use crate::mount::{temp_base, temp_dir};
use crate::options::Parsed;
use crate::root::magic_path;
use crate::userns;

/// Bytes that mount(2) takes of options, less what containerd keeps free too.
const PAGE: usize = 4096 - 512;
/// Longest string fsconfig(2) takes.
const CONFIG_STRING: usize = 255;

/// Mounts an overlay at `target`.
///
/// # Errors
/// InvalidArgument without lowerdir; the kernel's errors.
pub fn mount(source: &str, options: &Parsed, target: &Path) -> Result<()> {
    let mut layers = Layers::of(options)?;
    // Until the overlay holds the mapped layers itself.
    let _mapped = if options.remaps() {
        let ns = UserNs::new(&options.uidmap, &options.gidmap)?;
        Some(layers.map_ids(&ns)?)
    } else {
        None
    };
    let data = layers.data(&layers.lower);
    if data.len() < PAGE {
        return classic(source, &data, options, target);
    }
    match detached(source, &layers, options, target) {
        Err(e) if matches!(Errno::from_io_error(&e), Some(Errno::NOSYS | Errno::INVAL)) => {
            let (names, _open) = layers.short_names().context("open layers")?;
            classic(source, &layers.data(&names), options, target)
        }
        other => Ok(other?),
    }
}

/// The options of an overlay, the layers apart.
struct Layers {
    /// Topmost first.
    lower: Vec<PathBuf>,
    rest: Vec<String>,
}

impl Layers {
    fn of(options: &Parsed) -> Result<Self> {
        let mut lower = Vec::new();
        let mut rest = Vec::new();
        // An option may itself be a comma-joined list; paths with commas come in their own option and are escaped.
        for o in &options.data {
            match o.strip_prefix("lowerdir=") {
                Some(list) => lower = split_layers(list),
                None => rest.push(o.clone()),
            }
        }
        if lower.is_empty() {
            return Err(Error::invalid("overlay without lowerdir"));
        }
        Ok(Self { lower, rest })
    }

    fn data(&self, lower: &[PathBuf]) -> String {
        let list: Vec<String> = lower
            .iter()
            .map(|p| {
                p.to_string_lossy()
                    .replace('\\', "\\\\")
                    .replace(':', "\\:")
            })
            .collect();
        let mut data = self.rest.clone();
        data.push(format!("lowerdir={}", list.join(":")));
        data.join(",")
    }

    /// Replaces the layers by id-mapped read-only views of them.
    fn map_ids(&mut self, ns: &UserNs) -> Result<MappedLayers> {
        let parent = common_parent(&self.lower)
            .ok_or_else(|| Error::invalid("overlay layers without a common folder"))?;
        let dir = temp_dir(&temp_base(), "ovl-idmapped")?;
        let mapped = MappedLayers { dir: dir.clone() };
        if self.lower.iter().any(|l| !same_mount(l, &parent)) {
            // Layers that are mounts of their own are not in a view of their parent.
            let tmpfs = MountFlags::NOSUID | MountFlags::NODEV;
            rustix::mount::mount("tmpfs", &dir, "tmpfs", tmpfs, None)
                .map_err(io::Error::from)
                .context("mount folder of id-mapped layers")?;
            for (i, layer) in self.lower.iter_mut().enumerate() {
                let at = dir.join(i.to_string());
                std::fs::create_dir(&at).context("make folder of id-mapped layer")?;
                let tree = idmap::clone_mapped(layer, ns, true)
                    .with_context(|| format!("map ids of {}", layer.display()))?;
                idmap::attach(tree, &at).context("attach id-mapped layer")?;
                *layer = at;
            }
            return Ok(mapped);
        }
        let tree = idmap::clone_mapped(&parent, ns, true)
            .with_context(|| format!("map ids of {}", parent.display()))?;
        idmap::attach(tree, &dir).context("attach id-mapped layers")?;
        for layer in &mut self.lower {
            if let Ok(inner) = layer.strip_prefix(&parent) {
                *layer = dir.join(inner);
            }
        }
        Ok(mapped)
    }

    fn short_names(&self) -> io::Result<(Vec<PathBuf>, Vec<OwnedFd>)> {
        let open: Vec<OwnedFd> = self
            .lower
            .iter()
            .map(|l| open_dir(l))
            .collect::<Result<_, _>>()?;
        Ok((open.iter().map(magic_path).collect(), open))
    }
}

/// Takes the temporary id-mapped view away: the overlay has private copies of it.
struct MappedLayers {
    dir: PathBuf,
}

impl Drop for MappedLayers {
    fn drop(&mut self) {
        // Not mounted when attaching failed; remove_dir never takes data with it.
        let _ = rustix::mount::unmount(&self.dir, UnmountFlags::DETACH);
        if let Err(error) = std::fs::remove_dir(&self.dir) {
            tracing::warn!(%error, dir = %self.dir.display(), "remove id-mapped layers");
        }
    }
}

/// Whether both are in one mount; what cannot be told fails later.
fn same_mount(a: &Path, b: &Path) -> bool {
    let mount = |p: &Path| {
        let found = rustix::fs::statx(CWD, p, AtFlags::empty(), StatxFlags::MNT_ID);
        found.map(|found| found.stx_mnt_id).ok()
    };
    mount(a) == mount(b)
}

/// The deepest folder that holds all layers' folders; never the root.
fn common_parent(layers: &[PathBuf]) -> Option<PathBuf> {
    let mut common = layers.first()?.parent()?.to_owned();
    while !layers
        .iter()
        .all(|l| l.starts_with(&common) && *l != common)
    {
        common = common.parent()?.to_owned();
    }
    (common.parent().is_some()).then_some(common)
}

fn split_layers(list: &str) -> Vec<PathBuf> {
    let mut out = Vec::new();
    let mut path = String::new();
    let mut chars = list.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => path.extend(chars.next()),
            ':' => out.push(std::mem::take(&mut path)),
            c => path.push(c),
        }
    }
    out.push(path);
    out.into_iter()
        .filter(|p| !p.is_empty())
        .map(PathBuf::from)
        .collect()
}

fn classic(source: &str, data: &str, options: &Parsed, target: &Path) -> Result<()> {
    let data = CString::new(data).map_err(|_| Error::invalid("mount options with a NUL byte"))?;
    rustix::mount::mount(source, target, "overlay", options.flags, data.as_c_str())
        .map_err(io::Error::from)?;
    Ok(())
}

fn detached(source: &str, layers: &Layers, options: &Parsed, target: &Path) -> io::Result<()> {
    let fs = configure(source, layers)?;
    if let Err(e) = fsconfig_create(&fs) {
        return Err(explain(&fs, e));
    }
    let mount = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, options.attributes())?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_SYMLINKS;
    Ok(rustix::mount::move_mount(&mount, "", CWD, target, flags)?)
}

fn configure(source: &str, layers: &Layers) -> io::Result<OwnedFd> {
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&fs, "source", source)?;
    for layer in &layers.lower {
        set_path(&fs, "lowerdir+", &layer.to_string_lossy())?;
    }
    for option in layers.rest.iter().flat_map(|o| split_options(o)) {
        match option.split_once('=') {
            Some((key @ ("upperdir" | "workdir"), path)) => set_path(&fs, key, path)?,
            Some((key, value)) => {
                let value = value.trim_matches('"');
                fsconfig_set_string(&fs, key, value).map_err(|e| explain(&fs, e))?;
            }
            None => fsconfig_set_flag(&fs, option).map_err(|e| explain(&fs, e))?,
        }
    }
    Ok(fs)
}

/// An option as given, or the parts of a comma-joined list of options.
fn split_options(option: &str) -> Vec<&str> {
    if option.starts_with("upperdir=") || option.starts_with("workdir=") || option.contains('"') {
        return vec![option];
    }
    option.split(',').filter(|o| !o.is_empty()).collect()
}

fn set_path(fs: &OwnedFd, key: &str, path: &str) -> io::Result<()> {
    if path.len() <= CONFIG_STRING {
        return fsconfig_set_string(fs, key, path).map_err(|e| explain(fs, e));
    }
    let dir = open_dir(Path::new(path))?;
    match fsconfig_set_fd(fs, key, &dir) {
        // Linux < 6.13 takes no fds here.
        Err(Errno::INVAL) => {
            Ok(fsconfig_set_string(fs, key, magic_path(&dir)).map_err(|e| explain(fs, e))?)
        }
        other => other.map_err(|e| explain(fs, e)),
    }
}

/// The kernel's own words, when it left some in the context's log.
fn explain(fs: &OwnedFd, e: Errno) -> io::Error {
    let mut text = [0; 1024];
    match rustix::io::read(fs, &mut text) {
        Ok(n) if n > 2 && e != Errno::INVAL && e != Errno::NOSYS => {
            let text = String::from_utf8_lossy(&text[2..n]);
            io::Error::new(
                io::Error::from(e).kind(),
                format!("{} ({e})", text.trim_end()),
            )
        }
        _ => e.into(),
    }
}

fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, path, flags, Mode::empty())?)
}

// === what the host can do ===

/// Whether an overlay can have its layers in `dir`; the error says why not.
///
/// # Errors
/// The kernel's refusal.
pub fn probe(dir: &Path) -> Result<()> {
    let base = temp_dir(dir, ".overlay-probe")?;
    let probed = probe_in(&base);
    let removed = crate::tree::remove(&base);
    probed?;
    removed.with_context(|| format!("remove {}", base.display()))
}

fn probe_in(base: &Path) -> Result<()> {
    for sub in ["lower1", "lower2", "upper", "work", "merged"] {
        std::fs::create_dir(base.join(sub)).with_context(|| format!("make {sub}"))?;
    }
    let path = |sub: &str| base.join(sub).to_string_lossy().into_owned();
    let mut options = vec![
        format!("lowerdir={}:{}", path("lower2"), path("lower1")),
        format!("upperdir={}", path("upper")),
        format!("workdir={}", path("work")),
    ];
    if userns::running_in_user_ns() {
        options.push("userxattr".into());
    }
    let target = base.join("merged");
    mount("overlay", &crate::options::parse(&options)?, &target)?;
    crate::mount::unmount(&target, true)
}

/// Whether overlays need `userxattr`: in a user namespace, where `trusted.*` is out of reach.
pub fn needs_userxattr() -> bool {
    userns::running_in_user_ns()
}

/// Whether the kernel knows `index=`.
pub fn knows_index() -> bool {
    Path::new("/sys/module/overlay/parameters/index").exists()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{mount, mountinfo};

    #[test]
    fn layers_split_and_find_their_parent() {
        assert_eq!(
            split_layers(r"/a\:b:/c::"),
            [PathBuf::from("/a:b"), "/c".into()]
        );
        let layers = ["/r/s/1/fs", "/r/s/22/fs", "/r/s/1"].map(PathBuf::from);
        assert_eq!(common_parent(&layers).unwrap(), Path::new("/r/s"));
        assert_eq!(common_parent(&["/a/x".into(), "/b/y".into()]), None);
    }

    #[test]
    fn many_long_layers_mount_and_the_top_one_wins() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: mounts need root");
            return;
        }
        let base = temp_dir(&std::env::temp_dir(), "corten-overlay").unwrap();
        if let Err(e) = probe(&base) {
            eprintln!("skipped: {e}");
            crate::tree::remove(&base).unwrap();
            return;
        }
        let long = "l".repeat(200);
        let mut lower = Vec::new();
        for i in 0..60 {
            let layer = base.join(&long).join(&long).join(i.to_string());
            std::fs::create_dir_all(&layer).unwrap();
            std::fs::write(layer.join("who"), i.to_string()).unwrap();
            std::fs::write(layer.join(format!("only{i}")), "").unwrap();
            lower.push(layer.to_string_lossy().into_owned());
        }
        let m = corten_core::Mount {
            r#type: "overlay".into(),
            source: "overlay".into(),
            options: vec![format!("lowerdir={}", lower.join(":")), "index=off".into()],
            ..Default::default()
        };
        mount::with_temp_mount(std::slice::from_ref(&m), Some(&base), |root| {
            assert_eq!(std::fs::read_to_string(root.join("who")).unwrap(), "0");
            assert!(root.join("only59").exists());
            Ok(())
        })
        .unwrap();
        // The way of old kernels gives the same.
        let parsed = crate::options::parse(&m.options).unwrap();
        let layers = Layers::of(&parsed).unwrap();
        let (names, _open) = layers.short_names().unwrap();
        let target = temp_dir(&base, "m").unwrap();
        classic("overlay", &layers.data(&names), &parsed, &target).unwrap();
        assert!(target.join("only59").exists());
        mount::unmount_all(&target, false).unwrap();
        assert!(mountinfo::below(&base).unwrap().is_empty());
        crate::tree::remove(&base).unwrap();
    }

    #[test]
    fn id_mapped_layers_show_mapped_owners_and_write_mapped_ones() {
        let base = temp_dir(&std::env::temp_dir(), "corten-ovl-map").unwrap();
        if !rustix::process::geteuid().is_root() || !idmap::supported(&base) {
            eprintln!("skipped: needs root and id-mapped mounts");
            std::fs::remove_dir(base).unwrap();
            return;
        }
        for sub in ["s/1/fs", "s/2/fs", "s/3/fs", "s/3/work"] {
            std::fs::create_dir_all(base.join(sub)).unwrap();
        }
        std::fs::write(base.join("s/1/fs/f"), "x").unwrap();
        let path = |sub: &str| base.join(sub).to_string_lossy().into_owned();
        let m = corten_core::Mount {
            r#type: "overlay".into(),
            source: "overlay".into(),
            options: vec![
                "uidmap=0:100000:65536".into(),
                "gidmap=0:200000:65536".into(),
                format!("workdir={}", path("s/3/work")),
                format!("upperdir={}", path("s/3/fs")),
                format!("lowerdir={}:{}", path("s/2/fs"), path("s/1/fs")),
            ],
            ..Default::default()
        };
        let check = || {
            mount::with_temp_mount(std::slice::from_ref(&m), Some(&base), |root| {
                use std::os::unix::fs::MetadataExt;
                let f = std::fs::metadata(root.join("f")).unwrap();
                assert_eq!((f.uid(), f.gid()), (100_000, 200_000));
                Ok(())
            })
            .unwrap();
        };
        check();
        // A layer that is a mount of its own, as images are.
        let own = corten_core::Mount {
            r#type: "bind".into(),
            source: path("apart"),
            options: vec!["bind".into()],
            ..Default::default()
        };
        std::fs::create_dir(base.join("apart")).unwrap();
        std::fs::rename(base.join("s/1/fs/f"), base.join("apart/f")).unwrap();
        mount::mount_one(&own, &base.join("s/2/fs")).unwrap();
        check();
        mount::unmount_recursive(&base, true).unwrap();
        assert!(
            mountinfo::all()
                .unwrap()
                .iter()
                .all(|m| !m.path.starts_with(&base))
        );
        let left = std::fs::read_dir(std::env::temp_dir()).unwrap();
        let prefix = format!("ovl-idmapped{}-", std::process::id());
        assert!(
            left.flatten()
                .all(|e| !e.file_name().to_string_lossy().starts_with(&prefix))
        );
        crate::tree::remove(&base).unwrap();
    }
}
