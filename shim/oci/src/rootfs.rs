//! Owns the root file system: attached, entered, made read-only, its forbidden paths covered.

use crate::init::{Builder, MASK, MOUNT, NULL, ROOT, TARGET};
use crate::mounts::{MS_PRIVATE, MS_REC, MS_SHARED, MS_SLAVE, MS_UNBINDABLE, RDONLY, clean};
use crate::{Error, Result, Spec};
use corten_launch::{Fd, Make, Op, cstr, mounts as launch};
use rustix::fs::{Mode, OFlags, ResolveFlags, fstat, openat2};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Absolute path of the root directory, free of links.
pub(crate) fn path(spec: &Spec, bundle: &Path) -> Result<PathBuf> {
    let root = spec.root.as_ref().filter(|r| !r.path.is_empty());
    let root = root.ok_or_else(|| Error::invalid("spec has no root.path"))?;
    let path = bundle.join(&root.path);
    path.canonicalize()
        .map_err(|e| Error::system(format!("resolve rootfs {}", path.display()), e))
}

/// Cuts propagation, makes the rootfs a mount of its own and keeps a handle of it.
pub(crate) fn attach(b: &mut Builder<'_>) -> Result<()> {
    let wanted = propagation(b.spec)?;
    let flags = wanted.unwrap_or(MS_SLAVE | MS_REC);
    let path = cstr(b.rootfs.as_os_str().as_bytes());
    let label = "prepare rootfs";
    b.plan.push(
        Op::Propagation {
            path: cstr("/"),
            flags,
        },
        "set propagation of /",
    );
    let holder = if flags & MS_SLAVE != 0 {
        MS_SLAVE
    } else {
        MS_PRIVATE
    };
    b.plan.push(
        Op::HolderPropagation {
            path: path.clone(),
            flags: holder,
        },
        label,
    );
    let mount = if b.userns {
        // The child may not reach the path; the copy is made with the host's privilege.
        let tree = launch::clone_tree(&path, true)
            .map_err(|e| Error::system("clone the rootfs mount", e))?;
        // A copy made over there would be no peer of the host's mounts, which pivot_root(2) refuses as well.
        launch::enslave(tree.as_fd())
            .map_err(|e| Error::system("cut the propagation of the rootfs mount", e))?;
        b.plan.give(tree)
    } else {
        b.plan.push(
            Op::CloneTree {
                path: path.clone(),
                recursive: true,
                out: MOUNT,
            },
            label,
        );
        Fd::Slot(MOUNT)
    };
    b.plan.push(Op::AttachAt { mount, path }, label);
    // The descriptor of the copy is the handle of the root: no path is walked again.
    let op = Op::Resolve {
        root: mount,
        path: cstr("."),
        make: Make::Nothing,
        real: false,
        out: 0,
    };
    b.plan.push(op, label);
    Ok(())
}

/// Enters the rootfs for good and closes what must not be open to the container.
pub(crate) fn switch(b: &mut Builder<'_>, no_pivot_root: bool) -> Result<()> {
    if no_pivot_root {
        hide_host(b)?;
        b.plan
            .push(Op::MoveRoot { root: ROOT }, "move the root mount");
    } else {
        b.plan.push(Op::PivotRoot { root: ROOT }, "pivot_root");
    }
    if let Some(flags) = propagation(b.spec)? {
        b.plan.push(
            Op::Propagation {
                path: cstr("/"),
                flags,
            },
            "set rootfs propagation",
        );
    }
    for dest in std::mem::take(&mut b.sealed) {
        let path = cstr(&dest);
        let op = Op::Resolve {
            root: ROOT,
            path,
            make: Make::Nothing,
            real: false,
            out: TARGET,
        };
        let label = format!("make {dest} read-only");
        b.plan.push(op, label.clone());
        let op = Op::SetAttr {
            fd: Fd::Slot(TARGET),
            set: RDONLY,
            clear: 0,
            propagation: 0,
            recursive: false,
        };
        b.plan.push(op, label);
    }
    if b.spec.root.as_ref().is_some_and(|r| r.readonly) {
        let op = Op::SetAttr {
            fd: ROOT,
            set: RDONLY,
            clear: 0,
            propagation: 0,
            recursive: false,
        };
        b.plan.push(op, "make rootfs read-only");
    }
    let linux = &b.spec.linux;
    for path in &linux.readonly_paths {
        let op = Op::ReadonlyPath {
            root: ROOT,
            path: cstr(clean(path)),
        };
        b.plan.push(op, format!("make {path} read-only"));
    }
    let mut seen: Vec<String> = Vec::new();
    for path in &linux.masked_paths {
        let path = clean(path);
        if path == "/" || seen.contains(&path) {
            continue;
        }
        if seen.is_empty() {
            let null = cstr("/dev/null");
            let label = "mask paths: the container's /dev/null is not the null device";
            let make = Make::Nothing;
            b.plan.push(
                Op::Resolve {
                    root: ROOT,
                    path: null,
                    make,
                    real: false,
                    out: NULL,
                },
                label,
            );
            b.plan.push(
                Op::VerifyDevice {
                    fd: Fd::Slot(NULL),
                    major: 1,
                    minor: 3,
                },
                label,
            );
        }
        let op = Op::Mask {
            root: ROOT,
            path: cstr(&path),
            null: Fd::Slot(NULL),
            tmpfs: MASK,
        };
        b.plan.push(op, format!("mask {path}"));
        seen.push(path);
    }
    Ok(())
}

/// A moved root lies on top of the host's, which whoever may mount can uncover: without procfs and sysfs, at least.
fn hide_host(b: &mut Builder<'_>) -> Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")
        .map_err(|e| Error::system("read /proc/self/mountinfo", e))?;
    for line in mounts.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let Some(path) = left.split(' ').nth(4).map(unescape) else {
            continue;
        };
        let kind = right.split(' ').next().unwrap_or_default();
        if matches!(kind, "proc" | "sysfs") && !Path::new(&path).starts_with(&b.rootfs) {
            let op = Op::Hide { path: cstr(&path) };
            b.plan.push(op, format!("take away the host's {path}"));
        }
    }
    Ok(())
}

/// A path of mountinfo: blanks, newlines and backslashes are octal.
fn unescape(text: &str) -> String {
    [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ]
    .into_iter()
    .fold(text.to_owned(), |t, (from, to)| t.replace(from, to))
}

/// Without a mount namespace nothing may be mounted: the rootfs is entered as it is.
pub(crate) fn chroot(b: &mut Builder<'_>, terminal: Option<(u16, u16)>) -> Result<()> {
    let linux = &b.spec.linux;
    let asks = !b.spec.mounts.is_empty()
        || !linux.masked_paths.is_empty()
        || !linux.readonly_paths.is_empty()
        || b.spec.root.as_ref().is_some_and(|r| r.readonly)
        || terminal.is_some();
    if asks {
        return Err(Error::invalid(
            "mounts, masked or read-only paths, or a terminal without a private mount namespace",
        ));
    }
    if b.spec.has_create_hooks() || !b.spec.linux.net_devices.is_empty() {
        b.plan.push(Op::Rendezvous(crate::HOOKS), "wait for hooks");
    }
    let root = b
        .handle
        .try_clone()
        .map_err(|e| Error::system("duplicate the rootfs handle", e))?;
    let root = b.plan.give(root);
    b.plan.push(Op::Chroot { root }, "change root");
    Ok(())
}

fn propagation(spec: &Spec) -> Result<Option<u64>> {
    Ok(Some(match spec.linux.rootfs_propagation.as_str() {
        "" => return Ok(None),
        "shared" => MS_SHARED,
        "rshared" => MS_SHARED | MS_REC,
        "slave" => MS_SLAVE,
        "rslave" => MS_SLAVE | MS_REC,
        "private" => MS_PRIVATE,
        "rprivate" => MS_PRIVATE | MS_REC,
        "unbindable" => MS_UNBINDABLE,
        "runbindable" => MS_UNBINDABLE | MS_REC,
        other => {
            return Err(Error::invalid(format!(
                "unknown rootfsPropagation {other:?}"
            )));
        }
    }))
}

// === impl Builder ===

impl Builder<'_> {
    /// Permissions of a directory the image already has.
    pub(crate) fn mode_in_rootfs(&self, path: &str) -> Option<u32> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let fd = openat2(&self.handle, path, flags, Mode::empty(), resolve).ok()?;
        fstat(&fd).ok().map(|st| st.st_mode & 0o7777)
    }

    /// SELinux `context=` of a file system that takes one.
    pub(crate) fn mount_context(&self, kind: &str) -> Result<Option<String>> {
        let label = &self.spec.linux.mount_label;
        if label.is_empty() {
            return Ok(None);
        }
        if !Path::new("/sys/fs/selinux/enforce").exists() {
            return Err(Error::unsupported(
                "mountLabel is specified in config, but selinux is disabled or not supported",
            ));
        }
        // These are labelled by the policy, or after the fact (mqueue).
        let own = ["proc", "sysfs", "mqueue", "cgroup", "cgroup2"].contains(&kind);
        Ok((!own).then(|| label.clone()))
    }
}
