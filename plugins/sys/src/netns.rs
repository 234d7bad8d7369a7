//! Network namespaces that outlive their processes: made, pinned by a bind mount, entered, removed.
//!
//! A namespace is its file, e.g. `/run/netns/cni-…`. A file that is no namespace (any more) is a mount point whose
//! namespace went with a reboot or with somebody's `umount`; it counts as closed, and so does no file at all.

#![expect(
    unsafe_code,
    reason = "unshare(2) and the ioctl for a namespace's owner have no safe wrapper"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use corten_core::{Context, Error, Result};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use crate::idmap;

/// `statfs` type of namespace files.
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// Makes a network namespace and pins it at `path`, which must not exist. The folder is made if need be.
///
/// # Errors
/// AlreadyExists; the kernel's.
pub fn create(path: &Path) -> Result<()> {
    pin_at(path, |at| {
        // A thread of its own: it ends in the new namespace and serves nobody else.
        let at = at.to_owned();
        on_a_thread(move || {
            // SAFETY: only this thread's network namespace changes; its descriptors stay shared with the others.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }
                .map_err(io::Error::from)?;
            rustix::mount::mount_bind("/proc/thread-self/ns/net", &at).map_err(io::Error::from)?;
            Ok(())
        })
    })
    .with_context(|| format!("make network namespace {}", path.display()))
}

/// The same, owned by a new user namespace with these maps (`container:host:size`), so that who is root in there may
/// change it. The user namespace lives as long as the network namespace.
///
/// # Errors
/// AlreadyExists; InvalidArgument for a malformed map; the kernel's.
pub fn create_owned(path: &Path, uidmap: &str, gidmap: &str) -> Result<()> {
    pin_at(path, |at| {
        idmap::with_network(uidmap, gidmap, |file| {
            Ok(rustix::mount::mount_bind(file, at).map_err(io::Error::from)?)
        })
    })
    .with_context(|| format!("make network namespace {}", path.display()))
}

/// Whether there is a namespace at `path`.
///
/// # Errors
/// Of looking at it.
pub fn is_open(path: &Path) -> Result<bool> {
    Ok(open(path)?.is_some())
}

/// Unpins the namespace at `path`; nothing there is fine. It goes once no process is in it.
///
/// # Errors
/// The kernel's.
pub fn remove(path: &Path) -> Result<()> {
    let what = || format!("remove network namespace {}", path.display());
    loop {
        // As often as it is mounted: a restart of `ip netns` may have put one mount over another.
        match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => break,
            Err(e) => return Err(io::Error::from(e)).with_context(what),
        }
    }
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e).with_context(what),
        _ => Ok(()),
    }
}

/// Pins the user namespace that owns the network namespace `network` at `path`.
///
/// # Errors
/// NotFound when there is no such network namespace; AlreadyExists; the kernel's.
pub fn pin_owner(network: &Path, path: &Path) -> Result<()> {
    const NS_GET_USERNS: libc::Ioctl = 0xb701;
    let namespace = open(network)?
        .ok_or_else(|| Error::not_found(format!("network namespace {}", network.display())))?;
    // SAFETY: the descriptor is open for as long as `namespace` is, and this request takes no argument.
    let raw = unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_USERNS) };
    if raw < 0 {
        return Err(io::Error::last_os_error())
            .with_context(|| format!("find the owner of {}", network.display()));
    }
    // SAFETY: the kernel returned this descriptor just now and nobody else holds it.
    let owner = unsafe { OwnedFd::from_raw_fd(raw) };
    let source = format!("/proc/self/fd/{}", owner.as_raw_fd());
    pin_at(path, |at| {
        Ok(rustix::mount::mount_bind(source.as_str(), at).map_err(io::Error::from)?)
    })
    .with_context(|| format!("pin the user namespace of {}", network.display()))
}

/// Runs `work` on a thread of its own in the namespace at `path`. Sockets that it makes stay in there.
///
/// # Errors
/// NotFound without a namespace; those of `work`.
pub fn within<T, F>(path: &Path, work: F) -> Result<T>
where
    F: FnOnce() -> Result<T> + Send + 'static,
    T: Send + 'static,
{
    let namespace = open(path)?
        .ok_or_else(|| Error::not_found(format!("network namespace {}", path.display())))?;
    on_a_thread(move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(io::Error::from)
            .context("enter network namespace")?;
        work()
    })
}

fn open(path: &Path) -> Result<Option<OwnedFd>> {
    let what = || format!("open network namespace {}", path.display());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(e) => return Err(io::Error::from(e)).with_context(what),
    };
    let stat = rustix::fs::fstatfs(&fd)
        .map_err(io::Error::from)
        .with_context(what)?;
    #[allow(
        clippy::unnecessary_cast,
        reason = "the field's type differs between architectures"
    )]
    let magic = stat.f_type as i64;
    Ok((magic == NSFS_MAGIC).then_some(fd))
}

fn on_a_thread<T, F>(work: F) -> Result<T>
where
    F: FnOnce() -> Result<T> + Send + 'static,
    T: Send + 'static,
{
    let thread = std::thread::Builder::new()
        .name("netns".into())
        .spawn(work)
        .context("start a thread")?;
    thread
        .join()
        .unwrap_or_else(|_| Err(Error::internal("a thread in a network namespace panicked")))
}

/// Makes the mount point, and takes it away again when `mount` fails.
fn pin_at(path: &Path, mount: impl FnOnce(&PathBuf) -> Result<()>) -> Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    std::fs::File::options()
        .write(true)
        .create_new(true)
        .open(path)?;
    let path = path.to_owned();
    mount(&path).inspect_err(|_| {
        // The first error is the one worth telling.
        let _ = std::fs::remove_file(&path);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_namespace_is_closed() {
        let dir = std::env::temp_dir().join(format!("corten-netns-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let plain = dir.join("plain");
        assert!(!is_open(&plain).unwrap());
        std::fs::write(&plain, "").unwrap();
        assert!(!is_open(&plain).unwrap());
        assert!(is_open(Path::new("/proc/self/ns/net")).unwrap());
        remove(&plain).unwrap();
        remove(&plain).unwrap();
        assert!(within(&plain, || Ok(())).is_err());
        std::fs::remove_dir(dir).unwrap();
    }

    #[test]
    fn a_namespace_is_made_entered_and_removed() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let dir = std::env::temp_dir().join(format!("corten-netns-made-{}", std::process::id()));
        let path = dir.join("a");
        if let Err(e) = create(&path) {
            eprintln!("skipped: {e}");
            return;
        }
        assert!(is_open(&path).unwrap());
        assert!(create(&path).is_err());
        let links = || Ok(std::fs::read_to_string("/proc/thread-self/net/dev")?);
        let inside = within(&path, links).unwrap();
        assert!(
            inside.contains("lo:") && !inside.contains("eth0:"),
            "{inside}"
        );
        let owned = dir.join("b");
        if create_owned(&owned, "0:100000:10", "0:100000:10").is_ok() {
            let user = dir.join("user");
            pin_owner(&owned, &user).unwrap();
            assert!(is_open(&user).unwrap());
            remove(&user).unwrap();
            remove(&owned).unwrap();
        }
        remove(&path).unwrap();
        assert!(!path.exists());
        std::fs::remove_dir(dir).unwrap();
    }
}
