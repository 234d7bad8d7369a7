//! Owns the order of steps of a container's first process and of an exec.
//!
//! ```text
//! init: cgroup, namespaces, session, host name, sysctl, LSM | mounts, devices, pty | HOOKS
//!       | pivot, read-only and masked paths | limits, close fds, ids, caps, find exe | GATE | exec
//! exec: cgroup, setns(pidfd), session, LSM, pty | limits, close fds, ids, caps, find exe | GATE | exec
//! ```

use crate::namespaces::{
    self, Kinds, NEWCGROUP, NEWIPC, NEWNET, NEWNS, NEWPID, NEWTIME, NEWUSER, NEWUTS,
};
use crate::process::{self, Tail};
use crate::spec::IdMapping;
use crate::{Cgroup, Error, Process, Result, Spec, devices, mounts, netdev, rootfs, seccomp};
use corten_launch::{Fd, IdMaps, Make, Op, Plan, cstr};
use rustix::fs::{FileType, Gid, Mode, OFlags, Uid, fchown, fstat, makedev, open};
use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// `Status::Rendezvous(HOOKS)`: namespaces and mounts exist, the root is not yet switched. The shim
/// moves `linux.netDevices` in, runs the prestart, createRuntime and createContainer hooks, then calls
/// `proceed`. Only reported when the spec has any of these.
pub const HOOKS: u32 = 1;

/// Registers of the child.
pub(crate) const ROOT: Fd = Fd::Slot(0);
pub(crate) const MOUNT: u8 = 1;
pub(crate) const TARGET: u8 = 2;
pub(crate) const NULL: u8 = 3;
pub(crate) const MASK: u8 = 4;
pub(crate) const PTY: u8 = 5;
pub(crate) const EXTRA: u8 = 6;

/// Standard streams of a new process.
#[derive(Debug)]
pub enum Stdio {
    /// stdin, stdout, stderr.
    Fds(OwnedFd, OwnedFd, OwnedFd),
    /// A pty made inside the container; its master arrives by `Parked::take_console`. Zero means the
    /// size the spec asks for, if any.
    Terminal { rows: u16, cols: u16 },
    /// /dev/null thrice.
    Null,
}

/// What `plan_init` needs beside the spec.
#[derive(Debug)]
pub struct InitParams<'a> {
    pub id: &'a str,
    /// Base of a relative `root.path`.
    pub bundle: &'a Path,
    pub stdio: Stdio,
    pub cgroup: &'a Cgroup,
    pub no_pivot_root: bool,
    pub no_new_keyring: bool,
    /// Root-only folder for compiled seccomp programs; `None` compiles each time.
    pub cache: Option<&'a Path>,
}

/// What `plan_exec` needs beside the process.
#[derive(Debug)]
pub struct ExecParams<'a> {
    pub id: &'a str,
    pub init_pid: i32,
    pub init_pidfd: BorrowedFd<'a>,
    pub stdio: Stdio,
    pub cgroup: &'a Cgroup,
    pub no_new_keyring: bool,
    pub cache: Option<&'a Path>,
}

/// A launchable plan, and what the shim should log.
#[derive(Debug)]
pub struct InitPlan {
    pub plan: Plan,
    /// House rule: degrade with a warning where the host refuses.
    pub warnings: Vec<String>,
}

/// A plan of an init in the making.
#[derive(Debug)]
pub(crate) struct Builder<'a> {
    pub(crate) spec: &'a Spec,
    pub(crate) plan: Plan,
    pub(crate) warnings: Vec<String>,
    pub(crate) kinds: Kinds,
    pub(crate) userns: bool,
    pub(crate) bundle: &'a Path,
    pub(crate) rootfs: PathBuf,
    /// O_PATH handle of the root directory on the host.
    pub(crate) handle: OwnedFd,
    pub(crate) cgroup: &'a Cgroup,
    /// User namespaces made for idmapped mounts.
    pub(crate) idmaps: Vec<(IdMaps, OwnedFd)>,
    /// Mounts that turn read-only once everything is in place.
    pub(crate) sealed: Vec<String>,
}

/// Plan of the container's first process.
pub fn plan_init(spec: &Spec, params: InitParams<'_>) -> Result<InitPlan> {
    let process = spec
        .process
        .as_ref()
        .ok_or_else(|| Error::invalid("spec has no process"))?;
    process::check(process)?;
    refuse(spec)?;
    let rootfs = rootfs::path(spec, params.bundle)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let handle = open(&rootfs, flags, Mode::empty())
        .map_err(|e| Error::system(format!("open rootfs {}", rootfs.display()), e))?;
    let mut plan = Plan {
        oom_score_adj: process.oom_score_adj,
        ..Plan::default()
    };
    params.cgroup.join(&mut plan)?;
    let kinds = namespaces::plan(spec, &mut plan)?;
    netdev::check(spec, kinds)?;
    // Its making and joining is the shim's; here it is only refused.
    crate::Rdt::open(spec, params.id)?;
    let mut b = Builder {
        spec,
        plan,
        warnings: Vec::new(),
        kinds,
        userns: kinds.has(NEWUSER),
        bundle: params.bundle,
        rootfs,
        handle,
        cgroup: params.cgroup,
        idmaps: Vec::new(),
        sealed: Vec::new(),
    };
    let targets = nulls(&params.stdio)?;
    let terminal = stdio(params.stdio, process, &spec.linux.uid_mappings, &mut b.plan)?;
    session(params.id, params.no_new_keyring, process, &mut b.plan);
    names(&mut b)?;
    namespaces::sysctl(spec, kinds, &mut b.plan)?;
    process::lsm(process, &mut b.plan)?;
    if kinds.has(NEWNS) {
        rootfs::attach(&mut b)?;
        mounts::plan(&mut b)?;
        devices::plan(spec, ROOT, b.userns, &mut b.plan)?;
        if targets != 0 {
            let op = Op::OwnNull {
                root: ROOT,
                targets,
            };
            b.plan.push(op, "open the container's /dev/null");
        }
        if let Some((rows, cols)) = terminal {
            console(ROOT, rows, cols, process.user.uid, &mut b.plan);
            bind_console(&mut b.plan);
        }
        rendezvous(&mut b);
        rootfs::switch(&mut b, params.no_pivot_root)?;
    } else {
        rootfs::chroot(&mut b, terminal)?;
    }
    if terminal.is_some() {
        b.plan.push(
            Op::Console(Fd::Slot(PTY)),
            "make the pty the controlling terminal",
        );
    }
    let tail = Tail {
        process,
        linux: &spec.linux,
        filter: filter(spec, params.cache)?,
        find_home: true,
        make_cwd: true,
        exec: false,
    };
    process::plan(tail, &mut b.plan, &mut b.warnings)?;
    Ok(InitPlan {
        plan: b.plan,
        warnings: b.warnings,
    })
}

/// Plan of a further process; it joins every namespace and the cgroup of init.
pub fn plan_exec(spec: &Spec, process: &Process, params: ExecParams<'_>) -> Result<InitPlan> {
    let process = &inherit(spec, process);
    process::check(process)?;
    let kinds = Kinds::of(&spec.linux)?;
    let mut plan = Plan {
        oom_score_adj: process.oom_score_adj,
        ..Plan::default()
    };
    let mut warnings = Vec::new();
    let initial = process::initial_affinity(process)?;
    // The first affinity is that of a process not yet in the cgroup.
    let outside = initial.is_some();
    if let Some(mask) = initial {
        plan.push(Op::Affinity(mask), "set initial CPU affinity");
    }
    let init = params.init_pid;
    params.cgroup.join_with(init, outside, &mut plan)?;
    let pidfd = params
        .init_pidfd
        .try_clone_to_owned()
        .map_err(|e| Error::system("duplicate the pidfd of init", e))?;
    let terminal = stdio(params.stdio, process, &spec.linux.uid_mappings, &mut plan)?;
    session(params.id, params.no_new_keyring, process, &mut plan);
    process::lsm(process, &mut plan)?;
    let pidfd = plan.give(pidfd);
    if kinds.has(NEWPID) {
        plan.pid_namespace = Some(pidfd);
    }
    let mut flags = kinds.new | kinds.joined;
    flags &= NEWNS | NEWUTS | NEWIPC | NEWUSER | NEWNET | NEWCGROUP | NEWTIME;
    if flags != 0 {
        let flags = flags as u32;
        plan.push(
            Op::SetNs { ns: pidfd, flags },
            "join the container's namespaces",
        );
    }
    if kinds.has(NEWUSER) {
        plan.push(Op::SetGid(0), "become group 0 of the user namespace");
        plan.push(Op::SetUid(0), "become user 0 of the user namespace");
    }
    if !kinds.has(NEWNS) {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = open(format!("/proc/{init}/root"), flags, Mode::empty())
            .map_err(|e| Error::system("open the container's root", e))?;
        let root = plan.give(root);
        plan.push(Op::Chroot { root }, "change root");
    }
    if let Some((rows, cols)) = terminal {
        console(Fd::Cwd, rows, cols, process.user.uid, &mut plan);
        plan.push(
            Op::Console(Fd::Slot(PTY)),
            "make the pty the controlling terminal",
        );
    }
    let filter = filter(spec, params.cache)?;
    let tail = Tail {
        process,
        linux: &spec.linux,
        filter,
        find_home: true,
        make_cwd: false,
        exec: true,
    };
    process::plan(tail, &mut plan, &mut warnings)?;
    Ok(InitPlan { plan, warnings })
}

/// What confines init confines an exec that does not say otherwise, as in runc.
fn inherit(spec: &Spec, process: &Process) -> Process {
    let mut process = process.clone();
    if let Some(init) = &spec.process {
        if process.capabilities.is_none() {
            process.capabilities.clone_from(&init.capabilities);
        }
        if process.apparmor_profile.is_empty() {
            process.apparmor_profile.clone_from(&init.apparmor_profile);
        }
        if process.selinux_label.is_empty() {
            process.selinux_label.clone_from(&init.selinux_label);
        }
    }
    process
}

/// What this engine does not do is an error, whatever the document's author expects of it.
fn refuse(spec: &Spec) -> Result<()> {
    let linux = &spec.linux;
    let no = |what: &str| Err(Error::unsupported(format!("{what} is not supported")));
    // Its owner could lay anything over the /proc that sysctls and labels are written through.
    if linux
        .namespaces
        .iter()
        .any(|n| n.kind == "mount" && !n.path.is_empty())
    {
        return no("a mount namespace joined by path");
    }
    crate::hooks::check_all(&spec.hooks)
}

pub(crate) fn filter(spec: &Spec, cache: Option<&Path>) -> Result<Option<process::Filter>> {
    spec.linux
        .seccomp
        .as_ref()
        .map(|s| seccomp::filter(s, cache))
        .transpose()
}

pub(crate) fn session(id: &str, no_new_keyring: bool, process: &Process, plan: &mut Plan) {
    plan.push(Op::SetSid, "setsid");
    if no_new_keyring {
        return;
    }
    let keyring = Op::Keyring(cstr(format!("_ses.{id}")));
    let text = "unable to join session keyring";
    if process.selinux_label.is_empty() {
        plan.push(keyring, text);
        return;
    }
    // The keyring is to carry the process' label; the label of later keys is the process' own business.
    let label = |data: &[u8]| Op::WriteProc {
        path: cstr("/proc/thread-self/attr/keycreate"),
        data: data.to_vec(),
    };
    plan.push(
        label(process.selinux_label.as_bytes()),
        "set the SELinux key label",
    );
    plan.push(keyring, text);
    plan.push(label(b""), "clear the SELinux key label");
}

fn names(b: &mut Builder<'_>) -> Result<()> {
    for (name, field) in [
        (&b.spec.hostname, "hostname"),
        (&b.spec.domainname, "domainname"),
    ] {
        if name.is_empty() {
            continue;
        }
        if !b.kinds.has(NEWUTS) {
            return Err(Error::invalid(format!(
                "unable to set {field} without a private UTS namespace"
            )));
        }
        let bytes = name.clone().into_bytes();
        let op = if field == "hostname" {
            Op::SetHostname(bytes)
        } else {
            Op::SetDomainname(bytes)
        };
        b.plan.push(op, format!("set {field}"));
    }
    Ok(())
}

fn rendezvous(b: &mut Builder<'_>) {
    if b.spec.has_create_hooks() || !b.spec.linux.net_devices.is_empty() {
        b.plan.push(Op::Rendezvous(HOOKS), "wait for hooks");
    }
}

/// Bit N: stream N is the host's null device.
fn nulls(stdio: &Stdio) -> Result<u8> {
    let fds = match stdio {
        Stdio::Terminal { .. } => return Ok(0),
        Stdio::Null => return Ok(0b111),
        Stdio::Fds(stdin, stdout, stderr) => [stdin, stdout, stderr],
    };
    let mut targets = 0;
    for (n, fd) in fds.into_iter().enumerate() {
        let st = fstat(fd).map_err(|e| Error::system("stat a standard stream", e))?;
        let is_device = FileType::from_raw_mode(st.st_mode) == FileType::CharacterDevice;
        if is_device && st.st_rdev == makedev(1, 3) {
            targets |= 1 << n;
        }
    }
    Ok(targets)
}

/// Steps for the streams; for a terminal only its size is returned.
fn stdio(
    stdio: Stdio,
    process: &Process,
    maps: &[IdMapping],
    plan: &mut Plan,
) -> Result<Option<(u16, u16)>> {
    let fds = match stdio {
        Stdio::Terminal { rows, cols } => {
            let size = process
                .console_size
                .as_ref()
                .filter(|_| rows == 0 || cols == 0);
            let cut = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
            return Ok(Some(
                size.map_or((rows, cols), |s| (cut(s.height), cut(s.width))),
            ));
        }
        Stdio::Fds(stdin, stdout, stderr) => [stdin, stdout, stderr],
        Stdio::Null => {
            let open = || {
                let mut options = File::options();
                options
                    .read(true)
                    .write(true)
                    .open("/dev/null")
                    .map(OwnedFd::from)
            };
            let fail = |e| Error::system("open /dev/null", e);
            [
                open().map_err(fail)?,
                open().map_err(fail)?,
                open().map_err(fail)?,
            ]
        }
    };
    let uid = process.user.uid;
    let owner = if maps.is_empty() {
        Some(uid)
    } else {
        namespaces::host_id(maps, uid)
    };
    for (target, fd) in fds.into_iter().enumerate() {
        // Only pipes and sockets: they are ours, and /dev/stdout must be openable by their user.
        let st = fstat(&fd).map_err(|e| Error::system("stat a standard stream", e))?;
        let kind = FileType::from_raw_mode(st.st_mode);
        if let Some(owner) = owner
            && matches!(kind, FileType::Fifo | FileType::Socket)
            && st.st_uid != owner
        {
            let _ = fchown(&fd, Some(Uid::from_raw(owner)), None::<Gid>);
        }
        let fd = plan.give(fd);
        plan.push(
            Op::Stdio {
                fd,
                target: target as u8,
            },
            "set up standard streams",
        );
    }
    Ok(None)
}

/// The pty comes from the container's own devpts.
fn console(root: Fd, rows: u16, cols: u16, uid: u32, plan: &mut Plan) {
    let op = Op::OpenPty {
        root,
        path: cstr("/dev/pts/ptmx"),
        rows,
        cols,
        uid,
        out: PTY,
    };
    plan.push(op, "open a pty in the container's /dev/pts");
}

fn bind_console(plan: &mut Plan) {
    let label = "mount the pty at /dev/console";
    let path = cstr("/dev/console");
    plan.push(
        Op::CloneFd {
            fd: Fd::Slot(PTY),
            recursive: false,
            out: MOUNT,
        },
        label,
    );
    plan.push(
        Op::Resolve {
            root: ROOT,
            path,
            make: Make::File,
            real: true,
            out: TARGET,
        },
        label,
    );
    plan.push(
        Op::Attach {
            mount: Fd::Slot(MOUNT),
            to: Fd::Slot(TARGET),
        },
        label,
    );
}

#[cfg(test)]
#[path = "init_tests.rs"]
mod tests;
