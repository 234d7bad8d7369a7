//! Owns the rootfs mount of a bundle: the mounts of a Create request onto `<bundle>/rootfs`, and their removal.
//!
//! mount(2) takes one page of options, which an overlay of many layers exceeds. Then the paths are made relative to
//! their common parent, and this process, being one thread, stands there for the length of the call.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use corten_protos::containerd::types::Mount;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive,
    mount_change, mount_remount, unmount as umount2,
};

use crate::error::{Context, Error, Result};
use crate::idmap::{self, Layers};

/// One page, less the final NUL and what the kernel keeps for itself.
const MAX_DATA: usize = 4000;
const LOWER: &str = "lowerdir=";

/// Mount options sorted by what they mean to the kernel.
#[derive(Debug, Clone, PartialEq)]
struct Parsed {
    flags: MountFlags,
    bind: bool,
    recursive: bool,
    propagation: Option<MountPropagationFlags>,
    uids: String,
    gids: String,
    data: Vec<String>,
}

/// Mounts everything in order; undoes itself on error. No mounts means the rootfs is ready as it is.
pub(crate) fn mount_all(mounts: &[Mount], rootfs: &Path) -> Result<()> {
    for one in mounts {
        if let Err(e) = mount_one(one, rootfs) {
            let _ = unmount(rootfs);
            return Err(e.context("failed to mount rootfs component"));
        }
    }
    Ok(())
}

/// Detaches whatever is mounted there, all layers of it. A path without a mount is fine.
pub(crate) fn unmount(rootfs: &Path) -> io::Result<()> {
    loop {
        match umount2(rootfs, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
    }
}

fn mount_one(one: &Mount, rootfs: &Path) -> Result<()> {
    let parsed = Parsed::from_options(&one.options)?;
    let what = || {
        format!(
            "mount source: {:?}, target: {:?}, fstype: {}",
            one.source, rootfs, one.r#type
        )
    };
    if parsed.bind || matches!(one.r#type.as_str(), "bind" | "rbind") {
        mount_bound(one, &parsed, rootfs).map_err(|e| e.context(what()))?;
    } else if one.r#type.starts_with("fuse") {
        return Err(Error::unimplemented(format!(
            "{}: mount helpers are not run by this shim",
            what()
        )));
    } else {
        mount_fs(one, parsed.clone(), rootfs).map_err(|e| e.context(what()))?;
    }
    match parsed.propagation {
        Some(flags) => {
            let mounted = Place::find(rootfs, &one.target)?;
            mount_change(mounted.path(), flags).context(what())
        }
        None => Ok(()),
    }
}

fn mount_bound(one: &Mount, parsed: &Parsed, rootfs: &Path) -> Result<()> {
    let place = Place::find(rootfs, &one.target)?;
    let target = place.path();
    let recursive = parsed.recursive || one.r#type == "rbind";
    match parsed.user_namespace()? {
        Some(userns) => idmap::bind(Path::new(&one.source), &target, &userns, recursive)?,
        None if recursive => mount_bind_recursive(&one.source, &target)?,
        None => mount_bind(&one.source, &target)?,
    }
    // A bind takes its flags in a second step only.
    if !parsed.flags.is_empty() {
        let mounted = Place::find(rootfs, &one.target)?;
        mount_remount(mounted.path(), MountFlags::BIND | parsed.flags, "")?;
    }
    Ok(())
}

fn mount_fs(one: &Mount, mut parsed: Parsed, rootfs: &Path) -> Result<()> {
    let place = Place::find(rootfs, &one.target)?;
    let target = place.path();
    // Kept until the overlay has its own copies.
    let _layers = match parsed.user_namespace()? {
        None => None,
        Some(userns) if one.r#type == "overlay" => {
            let dir = rootfs.with_file_name("lower");
            let layers = Layers::mount(&parsed.lower(), &userns, &dir)?;
            let paths: Option<Vec<&str>> = layers.paths.iter().map(|p| p.to_str()).collect();
            let paths = paths.ok_or_else(|| Error::invalid("the bundle's path is not UTF-8"))?;
            parsed.set_lower(&paths.join(":"));
            Some(layers)
        }
        Some(_) => {
            return Err(Error::unimplemented(format!(
                "an idmapped mount of type {:?}",
                one.r#type
            )));
        }
    };
    let data = parsed.data.join(",");
    if data.len() <= MAX_DATA {
        Ok(raw_mount(
            &one.source,
            &target,
            &one.r#type,
            parsed.flags,
            &data,
        )?)
    } else {
        mount_from_parent(one, parsed, &target)
    }
}

fn raw_mount(
    source: &str,
    target: &Path,
    fstype: &str,
    flags: MountFlags,
    data: &str,
) -> rustix::io::Result<()> {
    let data = CString::new(data).map_err(|_| Errno::INVAL)?;
    mount(source, target, fstype, flags, Some(data.as_c_str()))
}

/// Mounts with relative lower directories, so that hundreds of layers fit.
fn mount_from_parent(one: &Mount, mut parsed: Parsed, target: &Path) -> Result<()> {
    let lower = parsed.lower();
    let parent = common_parent(&lower)
        .ok_or_else(|| Error::invalid("mount options are longer than one page"))?;
    let relative = |dir: &&str| {
        Path::new(dir)
            .strip_prefix(&parent)
            .ok()
            .and_then(Path::to_str)
            .map(str::to_owned)
    };
    let lower: Option<Vec<String>> = lower.iter().map(relative).collect();
    let lower = lower.ok_or_else(|| Error::invalid("a layer's path is not UTF-8"))?;
    parsed.set_lower(&lower.join(":"));
    let data = parsed.data.join(",");
    if data.len() > MAX_DATA {
        return Err(Error::invalid("mount options are longer than one page"));
    }
    rustix::process::chdir(&parent).context(format!("chdir {}", parent.display()))?;
    let outcome = raw_mount(&one.source, target, &one.r#type, parsed.flags, &data);
    // The server lives in "/"; staying elsewhere would pin that file system.
    rustix::process::chdir("/").context("chdir /")?;
    outcome.map_err(Error::from)
}

/// The deepest directory all paths are strictly below.
fn common_parent(paths: &[&str]) -> Option<PathBuf> {
    let mut common = Path::new(paths.first()?).parent()?.to_owned();
    for path in paths {
        while !Path::new(path).starts_with(&common) || Path::new(path) == common {
            common = common.parent()?.to_owned();
        }
    }
    common.is_absolute().then_some(common)
}

/// The place of a mount: the rootfs, or something inside it.
#[derive(Debug)]
enum Place {
    Rootfs(PathBuf),
    /// By its handle: names inside may be changed by others at any time.
    Inside(OwnedFd),
}

// === impl Place ===

impl Place {
    /// Resolves what is mounted last at `inside`, without leaving the rootfs.
    fn find(rootfs: &Path, inside: &str) -> Result<Self> {
        let inside = inside.trim_matches('/');
        if inside.is_empty() {
            return Ok(Self::Rootfs(rootfs.to_owned()));
        }
        let root = rustix::fs::open(
            rootfs,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .context(format!("open {}", rootfs.display()))?;
        let place = rustix::fs::openat2(
            &root,
            inside,
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        );
        let place = place.context(format!("open mount target {inside:?}"))?;
        Ok(Self::Inside(place))
    }

    /// A path for mount(2) that leads to the handle and nowhere else.
    fn path(&self) -> PathBuf {
        match self {
            Self::Rootfs(path) => path.clone(),
            Self::Inside(place) => PathBuf::from(format!("/proc/self/fd/{}", place.as_raw_fd())),
        }
    }
}

// === impl Parsed ===

impl Parsed {
    /// The lower layers of an overlay.
    fn lower(&self) -> Vec<&str> {
        let lower = self.data.iter().find_map(|o| o.strip_prefix(LOWER));
        lower
            .map(|dirs| dirs.split(':').collect())
            .unwrap_or_default()
    }

    fn set_lower(&mut self, dirs: &str) {
        for option in &mut self.data {
            if option.starts_with(LOWER) {
                *option = format!("{LOWER}{dirs}");
            }
        }
    }

    /// Whose owners the mount is to show, where it says so.
    fn user_namespace(&self) -> Result<Option<OwnedFd>> {
        if self.uids.is_empty() && self.gids.is_empty() {
            return Ok(None);
        }
        idmap::user_namespace(&self.uids, &self.gids).map(Some)
    }

    fn from_options(options: &[String]) -> Result<Self> {
        let mut parsed = Self {
            flags: MountFlags::empty(),
            bind: false,
            recursive: false,
            propagation: None,
            uids: String::new(),
            gids: String::new(),
            data: Vec::new(),
        };
        for option in options {
            if let Some((set, flag)) = flag(option) {
                parsed.flags.set(flag, set);
                continue;
            }
            match option.as_str() {
                "" | "defaults" => {}
                "bind" => parsed.bind = true,
                "rbind" => (parsed.bind, parsed.recursive) = (true, true),
                map if map.starts_with("uidmap=") => parsed.uids = map["uidmap=".len()..].into(),
                map if map.starts_with("gidmap=") => parsed.gids = map["gidmap=".len()..].into(),
                other => match propagation(other) {
                    Some(flags) => parsed.propagation = Some(flags),
                    None if is_foreign(other) => {
                        return Err(Error::unimplemented(format!(
                            "mount option {other:?} is not supported by this shim"
                        )));
                    }
                    None => parsed.data.push(other.to_owned()),
                },
            }
        }
        Ok(parsed)
    }
}

/// Options that mean something to containerd's mount library, not to the kernel.
fn is_foreign(option: &str) -> bool {
    option == "loop" || option.starts_with("X-containerd.")
}

fn flag(option: &str) -> Option<(bool, MountFlags)> {
    Some(match option {
        "ro" => (true, MountFlags::RDONLY),
        "rw" => (false, MountFlags::RDONLY),
        "nosuid" => (true, MountFlags::NOSUID),
        "suid" => (false, MountFlags::NOSUID),
        "nodev" => (true, MountFlags::NODEV),
        "dev" => (false, MountFlags::NODEV),
        "noexec" => (true, MountFlags::NOEXEC),
        "exec" => (false, MountFlags::NOEXEC),
        "sync" => (true, MountFlags::SYNCHRONOUS),
        "async" => (false, MountFlags::SYNCHRONOUS),
        "dirsync" => (true, MountFlags::DIRSYNC),
        "noatime" => (true, MountFlags::NOATIME),
        "atime" => (false, MountFlags::NOATIME),
        "nodiratime" => (true, MountFlags::NODIRATIME),
        "diratime" => (false, MountFlags::NODIRATIME),
        "relatime" => (true, MountFlags::RELATIME),
        "norelatime" => (false, MountFlags::RELATIME),
        "strictatime" => (true, MountFlags::STRICTATIME),
        "nostrictatime" => (false, MountFlags::STRICTATIME),
        "lazytime" => (true, MountFlags::LAZYTIME),
        "silent" => (true, MountFlags::SILENT),
        "loud" => (false, MountFlags::SILENT),
        _ => return None,
    })
}

fn propagation(option: &str) -> Option<MountPropagationFlags> {
    let (recursive, name) = match option.strip_prefix('r') {
        Some(name) => (MountPropagationFlags::REC, name),
        None => (MountPropagationFlags::empty(), option),
    };
    let kind = match name {
        "private" => MountPropagationFlags::PRIVATE,
        "shared" => MountPropagationFlags::SHARED,
        "slave" => MountPropagationFlags::DOWNSTREAM,
        "unbindable" => MountPropagationFlags::UNBINDABLE,
        _ => return None,
    };
    Some(kind | recursive)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str]) -> Result<Parsed> {
        let options: Vec<String> = options.iter().map(|o| (*o).to_owned()).collect();
        Parsed::from_options(&options)
    }

    #[test]
    fn options_go_where_the_kernel_wants_them() {
        let got = parse(&["rbind", "ro", "nosuid", "rprivate", "index=off"]).unwrap();
        assert!(got.bind && got.recursive);
        assert_eq!(got.flags, MountFlags::RDONLY | MountFlags::NOSUID);
        assert_eq!(
            got.propagation,
            Some(MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        );
        assert_eq!(got.data, ["index=off"]);
        assert_eq!(
            parse(&["ro", "rw"]).unwrap().flags,
            MountFlags::empty(),
            "the last one wins"
        );
        assert!(parse(&["loop"]).is_err());
        assert_eq!(parse(&["uidmap=0:1:1"]).unwrap().uids, "0:1:1");
    }

    #[test]
    fn mounts_inside_cannot_be_led_out() {
        let dir = std::env::temp_dir().join(format!("corten-rootfs-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("root/data")).unwrap();
        std::fs::create_dir_all(dir.join("data")).unwrap();
        std::os::unix::fs::symlink("../../data", dir.join("root/out")).unwrap();
        let mount = |target: &str, options: &[&str]| Mount {
            r#type: "tmpfs".into(),
            source: "tmpfs".into(),
            target: target.into(),
            options: options.iter().map(|o| (*o).to_owned()).collect(),
        };
        let bind = Mount {
            r#type: "bind".into(),
            source: "/proc".into(),
            ..mount("/data", &["bind", "ro"])
        };
        let root = dir.join("root");
        let mounted = mount_all(&[mount("/out", &["rprivate"]), bind], &root);
        let inside = |name: &str| root.join(name).exists();
        match mounted {
            Err(e) => println!("skipped: {e} (needs root)"),
            // The link leads to root/data: IN_ROOT keeps it inside.
            Ok(()) => {
                assert!(inside("data/version") && !dir.join("data/version").exists());
                assert!(
                    std::fs::write(root.join("data/x"), "").is_err(),
                    "read-only"
                );
            }
        }
        let _ = unmount(&root.join("data"));
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn layers_share_a_parent() {
        let parent = common_parent(&["/a/b/1/fs", "/a/b/22/fs"]).unwrap();
        assert_eq!(parent, Path::new("/a/b"));
        assert_eq!(common_parent(&["/a/1"]).unwrap(), Path::new("/a"));
        assert_eq!(common_parent(&["/a/b", "/a"]).unwrap(), Path::new("/"));
        assert_eq!(common_parent(&["a/b"]), None);
        assert_eq!(common_parent(&[]), None);
    }
}
