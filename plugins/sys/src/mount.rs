//! Mounting containerd's mount recipes, and undoing it.
//!
//! Overlays go to [`crate::overlay`]; everything else is mount(2). Extended types (`format/`, `mkfs/`, `mkdir/`) belong
//! to a mount manager and are refused here.

use std::ffi::CString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use corten_core::{Context, Error, Mount, Result};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::idmap::{self, UserNs};
use crate::options::{self, Parsed};
use crate::root::{Root, magic_path};
use crate::{image, mountinfo, overlay, userns};

static TEMP_BASE: OnceLock<PathBuf> = OnceLock::new();

/// Sets the folder for temporary mounts (the daemon's `temp` key); the first call wins.
pub fn set_temp_base(dir: &Path) {
    // A second caller is a test in the same process: keeping the first folder is right for both.
    let _ = TEMP_BASE.set(dir.to_owned());
}

/// The folder for temporary mounts.
pub fn temp_base() -> PathBuf {
    TEMP_BASE.get().cloned().unwrap_or_else(std::env::temp_dir)
}

/// Mounts all recipes at `target`, one over the other. When one fails, those before it are unmounted again.
///
/// # Errors
/// InvalidArgument and NotImplemented for recipes that are not for this place; the kernel's errors.
pub fn mount_all(mounts: &[Mount], target: &Path) -> Result<()> {
    for (done, m) in mounts.iter().enumerate() {
        if let Err(e) = mount_one(m, target) {
            for _ in 0..done {
                // The first error is the one worth telling.
                let _ = unmount(target, true);
            }
            return Err(e);
        }
    }
    Ok(())
}

/// Mounts one recipe at `target`, or below it when the recipe names a sub-folder (`target` of the message), which is
/// resolved without ever leaving `target`.
///
/// # Errors
/// See [`mount_all`].
pub fn mount_one(m: &Mount, target: &Path) -> Result<()> {
    let what = || {
        format!(
            "mount source: {:?}, target: {:?}, fstype: {}, flags: {:?}",
            m.source, target, m.r#type, m.options
        )
    };
    let place;
    let mut at = target.to_owned();
    if !m.target.is_empty() {
        place = Root::open(target)
            .and_then(|root| root.resolve(Path::new(&m.target)))
            .with_context(|| format!("resolve mount target {:?}", m.target))?;
        at = magic_path(&place);
    }
    if m.r#type.starts_with("fuse.") || m.r#type.starts_with("fuse3.") {
        return Err(Error::not_implemented(format!(
            "mount of type {:?}",
            m.r#type
        )));
    }
    if m.r#type.contains('/') {
        return Err(Error::not_implemented(format!(
            "mount type {:?} needs the mount manager",
            m.r#type
        )));
    }
    let parsed = options::parse(&m.options)?;
    if parsed.loop_device {
        return image::mount(m, &parsed, &at).with_context(what);
    }
    if m.r#type == "overlay" {
        return overlay::mount(&m.source, &parsed, &at).with_context(what);
    }
    plain(m, &parsed, &at).with_context(what)
}

fn plain(m: &Mount, parsed: &Parsed, target: &Path) -> Result<()> {
    let propagation = propagation(&parsed.data)?;
    let data: Vec<&str> = parsed
        .data
        .iter()
        .map(String::as_str)
        .filter(|d| propagation_flag(d).is_none())
        .collect();
    let text = CString::new(data.join(","))
        .map_err(|_| Error::invalid("mount options with a NUL byte"))?;
    let data = (!data.is_empty()).then_some(text.as_c_str());
    if parsed.binds() && parsed.remaps() {
        let ns = UserNs::new(&parsed.uidmap, &parsed.gidmap)?;
        let tree = idmap::clone_mapped(Path::new(&m.source), &ns, false).context("map ids")?;
        idmap::attach(tree, target).context("attach")?;
    } else {
        rustix::mount::mount(
            m.source.as_str(),
            target,
            m.r#type.as_str(),
            parsed.flags,
            data,
        )
        .map_err(io::Error::from)?;
    }
    if let Some(flags) = propagation {
        rustix::mount::mount_change(target, flags).map_err(io::Error::from)?;
    }
    // A bind takes its flags only in a second step.
    let beyond = parsed.flags.difference(MountFlags::BIND | MountFlags::REC);
    if parsed.binds() && !beyond.is_empty() {
        let flags = MountFlags::BIND | beyond | locked_flags(target)?;
        rustix::mount::mount_remount(target, flags, "")
            .map_err(io::Error::from)
            .context("remount bind")?;
    }
    Ok(())
}

/// In a user namespace, a remount must repeat the flags that the mount below has locked.
fn locked_flags(target: &Path) -> Result<MountFlags> {
    if !userns::running_in_user_ns() {
        return Ok(MountFlags::empty());
    }
    let found = rustix::fs::statvfs(target)
        .map_err(io::Error::from)
        .context("statvfs")?;
    let all = MountFlags::RDONLY
        | MountFlags::NODEV
        | MountFlags::NOEXEC
        | MountFlags::NOSUID
        | MountFlags::NOATIME
        | MountFlags::NODIRATIME;
    // The ST_ flags have the values of the MS_ flags for these.
    Ok(MountFlags::from_bits_truncate(found.f_flag.bits() as u32) & all)
}

fn propagation_flag(option: &str) -> Option<rustix::mount::MountPropagationFlags> {
    use rustix::mount::MountPropagationFlags as P;
    Some(match option {
        "private" => P::PRIVATE,
        "rprivate" => P::PRIVATE | P::REC,
        "slave" => P::DOWNSTREAM,
        "rslave" => P::DOWNSTREAM | P::REC,
        "shared" => P::SHARED,
        "rshared" => P::SHARED | P::REC,
        "unbindable" => P::UNBINDABLE,
        "runbindable" => P::UNBINDABLE | P::REC,
        _ => return None,
    })
}

fn propagation(data: &[String]) -> Result<Option<rustix::mount::MountPropagationFlags>> {
    let mut found = data.iter().filter_map(|d| propagation_flag(d));
    let first = found.next();
    if found.next().is_some() {
        return Err(Error::invalid("more than one propagation option"));
    }
    Ok(first)
}

/// Unmounts the topmost mount at `target`; nothing mounted, or no such path, is fine.
///
/// # Errors
/// The kernel's: EBUSY when in use and not `lazy`.
pub fn unmount(target: &Path, lazy: bool) -> Result<()> {
    unmount_once(target, lazy).map(|_| ())
}

/// Unmounts everything stacked at `target`.
///
/// # Errors
/// See [`unmount`].
pub fn unmount_all(target: &Path, lazy: bool) -> Result<()> {
    while unmount_once(target, lazy)? {}
    Ok(())
}

/// Unmounts everything at and below `dir`, deepest first. Goes on after an error and returns the first.
///
/// # Errors
/// See [`unmount`].
pub fn unmount_recursive(dir: &Path, lazy: bool) -> Result<()> {
    // mountinfo speaks of real paths.
    let real = match std::fs::canonicalize(dir) {
        Ok(real) => real,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e).with_context(|| format!("resolve {}", dir.display())),
    };
    let mut first = Ok(());
    for m in mountinfo::below(&real)?.iter().rev() {
        if let Err(e) = unmount_once(&m.path, lazy)
            && first.is_ok()
        {
            first = Err(e);
        }
    }
    first
}

/// False when nothing was mounted there.
fn unmount_once(target: &Path, lazy: bool) -> Result<bool> {
    let mut flags = UnmountFlags::NOFOLLOW;
    if lazy {
        flags |= UnmountFlags::DETACH;
    }
    match rustix::mount::unmount(target, flags) {
        Ok(()) => Ok(true),
        Err(Errno::INVAL | Errno::NOENT) => Ok(false),
        Err(e) => Err(io::Error::from(e)).with_context(|| format!("unmount {}", target.display())),
    }
}

/// Calls `f` with a private folder that has `mounts` on it, and takes both away again, also when `f` panics.
/// Without mounts `f` sees an empty folder. `volatile` is left out of overlays: such an upper dir could not be
/// mounted again.
///
/// # Errors
/// Those of the mounts, of `f`, then of the clean-up.
pub fn with_temp_mount<T>(
    mounts: &[Mount],
    base: Option<&Path>,
    f: impl FnOnce(&Path) -> Result<T>,
) -> Result<T> {
    let dir = temp_dir(
        &base.map_or_else(temp_base, Path::to_owned),
        "containerd-mount",
    )?;
    let mut guard = TempMount {
        dir: Some(dir.clone()),
    };
    mount_all(&without_volatile(mounts), &dir)?;
    let out = f(&dir);
    let cleaned = guard.clean();
    let out = out?;
    cleaned?;
    Ok(out)
}

struct TempMount {
    dir: Option<PathBuf>,
}

impl TempMount {
    fn clean(&mut self) -> Result<()> {
        let Some(dir) = self.dir.take() else {
            return Ok(());
        };
        // Lazily: another thread may have forked with a file of ours open, for a moment.
        unmount_recursive(&dir, true)?;
        // Never recursively: if a mount were left, its data would go.
        std::fs::remove_dir(&dir).with_context(|| format!("remove {}", dir.display()))
    }
}

impl Drop for TempMount {
    fn drop(&mut self) {
        if let Err(error) = self.clean() {
            tracing::warn!(%error, "clean up a temporary mount");
        }
    }
}

/// A new private folder `<base>/<prefix><unique>`.
pub(crate) fn temp_dir(base: &Path, prefix: &str) -> Result<PathBuf> {
    use std::os::unix::fs::DirBuilderExt;
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = base.join(format!("{prefix}{}-{n}", std::process::id()));
        match std::fs::DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => return Ok(dir),
            // Left by an earlier process of our pid.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e).with_context(|| format!("make {}", dir.display())),
        }
    }
}

fn without_volatile(mounts: &[Mount]) -> Vec<Mount> {
    let mut mounts = mounts.to_vec();
    for m in mounts.iter_mut().filter(|m| m.r#type == "overlay") {
        m.options
            .retain(|o| o != "volatile" && o != "fsync=volatile");
    }
    mounts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(source: &Path, options: &[&str]) -> Mount {
        Mount {
            r#type: "bind".into(),
            source: source.to_string_lossy().into_owned(),
            options: options.iter().map(|o| (*o).to_owned()).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn recipes_for_the_mount_manager_are_refused() {
        let m = Mount {
            r#type: "format/overlay".into(),
            ..Default::default()
        };
        let e = mount_one(&m, Path::new("/nonexistent")).unwrap_err();
        assert_eq!(e.kind(), corten_core::Kind::NotImplemented);
    }

    #[test]
    fn a_temporary_bind_is_read_only_and_goes_away() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: mounts need root");
            return;
        }
        let source = temp_dir(&std::env::temp_dir(), "corten-bind").unwrap();
        std::fs::write(source.join("f"), "x").unwrap();
        std::fs::create_dir(source.join("sub")).unwrap();
        let mut at = PathBuf::new();
        with_temp_mount(&[bind(&source, &["rbind", "ro"])], None, |root| {
            at = root.to_owned();
            assert_eq!(std::fs::read(root.join("f")).unwrap(), b"x");
            let e = std::fs::write(root.join("g"), "x").unwrap_err();
            assert_eq!(e.raw_os_error(), Some(libc::EROFS));
            Ok(())
        })
        .unwrap();
        assert!(!at.exists());
        let mut inner = bind(&source, &["rbind", "rw"]);
        inner.target = "/../sub".into();
        with_temp_mount(&[bind(&source, &["rbind", "rw"]), inner], None, |root| {
            assert!(root.join("sub/f").exists());
            Ok(())
        })
        .unwrap();
        std::fs::remove_dir_all(source).unwrap();
    }

    #[test]
    fn a_failed_stack_leaves_nothing_mounted() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: mounts need root");
            return;
        }
        let dir = temp_dir(&std::env::temp_dir(), "corten-fail").unwrap();
        let good = bind(&dir, &["bind"]);
        let bad = bind(Path::new("/nonexistent/x"), &["bind"]);
        assert!(mount_all(&[good, bad], &dir).is_err());
        assert!(mountinfo::below(&dir).unwrap().is_empty());
        std::fs::remove_dir(dir).unwrap();
    }
}
