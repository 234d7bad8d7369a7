//! Id-mapped mounts: a user namespace that exists only to carry a map, and the call that gives the map to a mount.
//!
//! All the daemon's `unsafe` is here: mount_setattr(2) and a bare clone(2) have no safe wrapper.

#![expect(
    unsafe_code,
    reason = "clone(2) and mount_setattr(2) have no safe wrapper"
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use corten_core::{Context, Error, Result};
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags};
use rustix::pipe::{PipeFlags, pipe_with};

/// A user namespace with a map and no process in it.
#[derive(Debug)]
pub struct UserNs {
    fd: File,
}

impl UserNs {
    /// Makes a namespace of the maps `container:host:size[,...]` of a snapshot's labels.
    ///
    /// # Errors
    /// InvalidArgument for a malformed map; the kernel's errors.
    pub fn new(uidmap: &str, gidmap: &str) -> Result<Self> {
        let holder = Holder::mapped(uidmap, gidmap, 0)?;
        let fd = File::open(holder.namespace("user")).context("open user namespace")?;
        Ok(Self { fd })
    }
}

/// Makes a user namespace and in it a network namespace, and shows `take` the latter's file; both go afterwards unless
/// it holds on to it.
///
/// # Errors
/// As [`UserNs::new`]; those of `take`.
pub(crate) fn with_network<T>(
    uidmap: &str,
    gidmap: &str,
    take: impl FnOnce(&Path) -> Result<T>,
) -> Result<T> {
    let holder = Holder::mapped(uidmap, gidmap, libc::CLONE_NEWNET)?;
    take(&holder.namespace("net"))
}

/// The child that holds the namespace open until its fd is taken. It runs nothing but read(2) and _exit(2).
struct Holder {
    pid: libc::pid_t,
    /// Closing it ends the child.
    write: Option<OwnedFd>,
}

impl Holder {
    /// One in a new user namespace with these maps, and in the namespaces `more`, which that one owns.
    fn mapped(uidmap: &str, gidmap: &str, more: libc::c_int) -> Result<Self> {
        let (uids, gids) = (map_file(uidmap)?, map_file(gidmap)?);
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)
            .map_err(io::Error::from)
            .context("pipe of a user namespace holder")?;
        let holder = Self::start(&read, write, more).context("clone into a new user namespace")?;
        let proc = format!("/proc/{}", holder.pid);
        std::fs::write(format!("{proc}/uid_map"), uids)
            .with_context(|| format!("map uids {uidmap}"))?;
        std::fs::write(format!("{proc}/gid_map"), gids)
            .with_context(|| format!("map gids {gidmap}"))?;
        Ok(holder)
    }

    /// The file of its namespace of type `kind`.
    fn namespace(&self, kind: &str) -> PathBuf {
        format!("/proc/{}/ns/{kind}", self.pid).into()
    }

    fn start(read: &OwnedFd, write: OwnedFd, more: libc::c_int) -> io::Result<Self> {
        let (r, w) = (read.as_raw_fd(), write.as_raw_fd());
        let flags = libc::c_long::from(libc::CLONE_NEWUSER | more | libc::SIGCHLD);
        let none: libc::c_long = 0;
        // SAFETY: clone without CLONE_VM or a stack is fork; the child's branch below makes only raw system calls,
        // which a child of a threaded process may do.
        let pid = unsafe { libc::syscall(libc::SYS_clone, flags, none, none, none, none) };
        if pid == 0 {
            let mut byte = 0u8;
            // SAFETY: in the child, closing its copy of the write end: then only the parent's is left, and the read
            // below ends when the parent closes it or dies.
            unsafe { libc::close(w) };
            // SAFETY: `byte` is one writable byte on this stack.
            unsafe { libc::read(r, std::ptr::from_mut(&mut byte).cast(), 1) };
            // SAFETY: ends the child without running any of the parent's exit handlers.
            unsafe { libc::_exit(0) };
        }
        if pid < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            pid: pid as libc::pid_t,
            write: Some(write),
        })
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.write = None;
        if let Some(pid) = rustix::process::Pid::from_raw(self.pid) {
            // Another child may hold a copy of the pipe for a moment; nothing waits for it.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
        }
    }
}

/// `0:100000:65536,…` as the text of `/proc/PID/uid_map`.
fn map_file(map: &str) -> Result<String> {
    let mut out = String::new();
    for part in map.split(',') {
        let numbers: Option<Vec<u32>> = part.split(':').map(|n| n.parse().ok()).collect();
        match numbers.as_deref() {
            Some([inside, outside, size]) if *size > 0 => {
                out.push_str(&format!("{inside} {outside} {size}\n"));
            }
            _ => return Err(Error::invalid(format!("id mapping {map:?}"))),
        }
    }
    Ok(out)
}

/// Host ids of the namespace's root under the maps of a snapshot's labels.
///
/// # Errors
/// InvalidArgument when a map is malformed or maps no root.
pub fn root_pair(uidmap: &str, gidmap: &str) -> Result<(u32, u32)> {
    let root = |map: &str| {
        map_file(map)?
            .lines()
            .find_map(|l| l.strip_prefix("0 ")?.split(' ').next()?.parse().ok())
            .ok_or_else(|| Error::invalid(format!("id mapping {map:?} has no root")))
    };
    Ok((root(uidmap)?, root(gidmap)?))
}

/// A detached copy of the tree at `source` whose ids are mapped; `read_only` as well if asked.
///
/// # Errors
/// The kernel's: EINVAL when the file system cannot be id-mapped.
pub fn clone_mapped(source: &Path, ns: &UserNs, read_only: bool) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(CWD, source, flags)?;
    set_map(&tree, ns, read_only)?;
    Ok(tree)
}

/// Attaches a detached mount at `target`.
///
/// # Errors
/// The kernel's.
pub fn attach(tree: impl AsFd, target: &Path) -> io::Result<()> {
    Ok(rustix::mount::move_mount(
        tree,
        "",
        CWD,
        target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?)
}

fn set_map(tree: impl AsFd, ns: &UserNs, read_only: bool) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP
            | if read_only {
                libc::MOUNT_ATTR_RDONLY
            } else {
                0
            },
        attr_clr: 0,
        propagation: 0,
        userns_fd: ns.fd.as_raw_fd() as u64,
    };
    // SAFETY: the path is an empty C string, `attributes` lives through the call and the size is its own; both fds
    // are open for as long as `tree` and `ns` are borrowed.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH as libc::c_uint,
            std::ptr::from_ref(&attributes),
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Whether the file system of `dir` can be id-mapped and this kernel's overlay takes such layers (5.19).
pub fn supported(dir: &Path) -> bool {
    let release = rustix::system::uname();
    let mut numbers = release
        .release()
        .to_str()
        .unwrap_or_default()
        .split(['.', '-']);
    let mut next = || {
        numbers
            .next()
            .and_then(|n| n.parse::<u32>().ok())
            .unwrap_or(0)
    };
    if (next(), next()) < (5, 19) {
        return false;
    }
    UserNs::new("0:100000:1", "0:100000:1").is_ok_and(|ns| clone_mapped(dir, &ns, false).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_parse_strictly() {
        assert_eq!(
            map_file("0:100000:65536,65536:1:1").unwrap(),
            "0 100000 65536\n65536 1 1\n"
        );
        for bad in [
            "",
            "0:1",
            "0:1:0",
            "a:b:c",
            "0:1:2:3",
            "0:-1:2",
            "0:1:4294967296",
        ] {
            assert!(map_file(bad).is_err(), "{bad}");
        }
        assert_eq!(root_pair("0:7:1", "5:1:1,0:8:2").unwrap(), (7, 8));
        assert!(root_pair("1:7:1", "0:8:2").is_err());
    }

    #[test]
    fn a_mapped_copy_shows_shifted_owners() {
        if !rustix::process::geteuid().is_root() || !supported(&std::env::temp_dir()) {
            eprintln!("skipped: needs root and id-mapped mounts");
            return;
        }
        let file = std::env::temp_dir().join(format!("corten-idmap-{}", std::process::id()));
        std::fs::create_dir_all(&file).unwrap();
        let ns = UserNs::new("0:100000:10", "0:200000:10").unwrap();
        let tree = clone_mapped(&file, &ns, true).unwrap();
        let stat = rustix::fs::fstat(&tree).unwrap();
        assert_eq!((stat.st_uid, stat.st_gid), (100_000, 200_000));
        std::fs::remove_dir(file).unwrap();
    }
}
