//! Owns the Plan: everything a new process will do, as data, computed before the clone.
//!
//! Invariants: a Plan holds no closure and no borrowed memory; each descriptor the child may use is
//! owned by `Plan::fds` and named by `Fd::Given`; each step carries a label for its error text.
//! Not here: the meaning of the steps (`child.rs`), where they come from (corten-oci).

use std::borrow::Cow;
use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// Number of descriptor registers the child has.
pub const SLOTS: usize = 16;

/// A descriptor as the child's steps name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fd {
    /// Opened by the parent: index into [`Plan::fds`].
    Given(usize),
    /// Opened by an earlier step in the child: register number below [`SLOTS`].
    Slot(u8),
    /// The working directory; with an absolute path it is ignored.
    Cwd,
}

/// What [`Op::Resolve`] makes when the path does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Make {
    /// Nothing: a missing path is an error.
    Nothing,
    /// The directory and its parents, mode 0755.
    Dir,
    /// The parents, and an empty regular file.
    File,
    /// A directory when the object behind the descriptor is one, else an empty file.
    Like(Fd),
}

/// One resource limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rlimit {
    pub resource: u32,
    pub soft: u64,
    pub hard: u64,
}

/// Capability sets as bit masks, capability N is bit N.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Caps {
    pub bounding: u64,
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
    pub ambient: u64,
}

/// A key of a new-API mount: `fsconfig(SET_FLAG)` without a value, `SET_STRING` with one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FsOption {
    pub key: CString,
    pub value: Option<CString>,
}

/// One step of the child. Paths of steps with a `root` are resolved inside that directory
/// (`RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS`); plain `path`s are host paths, used before the pivot.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Op {
    /// Reports `Status::Rendezvous(n)` and waits for [`crate::Parked::proceed`].
    Rendezvous(u32),
    /// Reports `Status::Ready` and waits for [`crate::Parked::open_gate`].
    Gate,
    /// `setns(fd, flags)`; `flags` may name several kinds when the fd is a pidfd.
    SetNs {
        ns: Fd,
        flags: u32,
    },
    Unshare(u32),
    /// Continues in a sibling (CLONE_PARENT), so that a pid namespace made by `Unshare` takes effect.
    Refork,
    /// Writes `0` to an open v1 `tasks` or v2 `cgroup.procs` file.
    JoinCgroup(Fd),
    /// Writes `data` to the host file `path` in one write(2).
    Write {
        path: CString,
        data: Vec<u8>,
    },
    /// The same below /proc; fails unless the file is on procfs.
    WriteProc {
        path: CString,
        data: Vec<u8>,
    },
    SetSid,
    /// Host path to register, O_PATH.
    Open {
        path: CString,
        directory: bool,
        out: u8,
    },
    /// Changes propagation of the mount at `path` (mount(2) MS_SHARED.. with MS_REC).
    Propagation {
        path: CString,
        flags: u64,
    },
    /// Makes the mount that holds `path` private or slave, without MS_REC: pivot_root's condition.
    ParentPropagation {
        path: CString,
        flags: u64,
    },
    /// Detached copy of the tree at `path`.
    CloneTree {
        dir: Fd,
        path: CString,
        recursive: bool,
        out: u8,
    },
    /// New detached mount of a file system; falls back to mount(2) data when fsconfig has no such key.
    FsMount {
        fstype: CString,
        options: Vec<FsOption>,
        attrs: u64,
        out: u8,
    },
    /// mount_setattr on the mount behind `fd`.
    SetAttr {
        fd: Fd,
        set: u64,
        clear: u64,
        propagation: u64,
        userns: Option<Fd>,
        recursive: bool,
    },
    /// Sets the file-system flags of a bind the way mount(2) does: keeps locked flags on EPERM.
    SetAttrKeep {
        fd: Fd,
        set: u64,
        clear: u64,
    },
    /// Attaches a detached mount on the object behind `to`.
    Attach {
        mount: Fd,
        to: Fd,
    },
    /// Attaches a detached mount at a host path.
    AttachAt {
        mount: Fd,
        path: CString,
    },
    /// mount(2) on the object behind `to` through /proc/self/fd, for what the new API cannot do.
    MountOn {
        fstype: CString,
        source: CString,
        to: Fd,
        flags: u64,
        data: CString,
    },
    /// Resolves `path` in `root` to a register, O_PATH. `real` refuses a symlink as last component.
    Resolve {
        root: Fd,
        path: CString,
        make: Make,
        real: bool,
        out: u8,
    },
    /// The same; a missing path stores nothing and skips the next `skip` steps.
    ResolveOr {
        root: Fd,
        path: CString,
        skip: u32,
        out: u8,
    },
    /// Skips `skip` steps when the object behind `fd` is not a directory.
    UnlessDir {
        fd: Fd,
        skip: u32,
    },
    Skip(u32),
    Close(u8),
    /// Fails unless `fd` is the character device `major:minor`.
    VerifyDevice {
        fd: Fd,
        major: u32,
        minor: u32,
    },
    /// mknodat below `root` with exact mode and owner; an equal node may exist already.
    Mknod {
        root: Fd,
        path: CString,
        mode: u32,
        major: u32,
        minor: u32,
        uid: u32,
        gid: u32,
    },
    /// symlinkat below `root`; an existing entry is left alone.
    Symlink {
        root: Fd,
        target: CString,
        path: CString,
    },
    /// mkdirat below `root` (parents too).
    Mkdir {
        root: Fd,
        path: CString,
    },
    /// Copies the directory tree `from` into `to` (tmpcopyup): files, links, modes, owners.
    CopyTree {
        from: Fd,
        to: Fd,
    },
    /// Opens a pty on the devpts behind `ptmx_dir`/ptmx, sends the master to the parent,
    /// keeps the peer in `out`. `Fd::Cwd` + absolute path = the container's /dev/pts of an exec.
    OpenPty {
        root: Fd,
        path: CString,
        rows: u16,
        cols: u16,
        uid: u32,
        out: u8,
    },
    /// Makes `fd` stdin, stdout, stderr and the controlling terminal.
    Console(Fd),
    /// Descriptor to 0, 1 or 2.
    Stdio {
        fd: Fd,
        target: u8,
    },
    /// Opens the container's /dev/null for a standard stream that still names the host's.
    PivotRoot {
        root: Fd,
    },
    /// MS_MOVE onto / and chroot: the way of a ramdisk root.
    MoveRoot {
        root: Fd,
    },
    Chroot {
        root: Fd,
    },
    SetHostname(Vec<u8>),
    SetDomainname(Vec<u8>),
    /// New session keyring with this name; ENOSYS is fine.
    Keyring(CString),
    Personality(u64),
    Scheduler {
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
    },
    IoPriority(u32),
    /// set_mempolicy(mode | flags, nodes).
    MemPolicy {
        mode: u32,
        nodes: Vec<u64>,
    },
    /// sched_setaffinity(self, mask).
    Affinity(Vec<u64>),
    /// Without `strict`, EPERM on the hard limit clamps to the current one.
    SetRlimit {
        limit: Rlimit,
        strict: bool,
    },
    Umask(u32),
    BoundingSet(u64),
    KeepCaps(bool),
    SetGroups(Vec<u32>),
    SetGid(u32),
    SetUid(u32),
    SetCaps(Caps),
    NoNewPrivs,
    Seccomp {
        program: Vec<u8>,
        flags: u32,
    },
    /// chdir inside the root; made with parents when missing and `make`.
    Chdir {
        path: CString,
        make: bool,
    },
    /// Fails when getcwd(2) is outside the root.
    VerifyCwd,
    Dumpable(bool),
    PdeathSig(i32),
    /// Picks the executable among `Plan::exec` candidates, with the credentials set so far.
    FindExe,
    /// Closes everything above stderr but the status channel.
    CloseFds,
    /// Brings the loopback interface up.
    LoopbackUp,
    /// Sleeps until a signal ends it; the holder process of a pod.
    Hold,
}

/// What to execute at the end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Exec {
    /// argv[0] as given, for error texts.
    pub name: String,
    /// Absolute (or cwd relative) paths to try in order; more than one only after a PATH search.
    pub candidates: Vec<CString>,
    pub argv: Vec<CString>,
    pub envp: Vec<CString>,
}

/// A step and the text put before its errno.
#[derive(Debug)]
pub struct Step {
    pub op: Op,
    pub label: Cow<'static, str>,
}

/// Maps of a new user namespace, as the text of the proc files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdMaps {
    pub uid_map: Vec<u8>,
    pub gid_map: Vec<u8>,
    pub deny_setgroups: bool,
}

/// Everything about one new process. Built by corten-oci; may be printed, compared and tested.
#[derive(Debug, Default)]
pub struct Plan {
    /// Descriptors of the child; everything else is closed before the first step.
    pub fds: Vec<OwnedFd>,
    /// CLONE_NEW* of the clone itself.
    pub namespaces: u64,
    /// CLONE_INTO_CGROUP.
    pub cgroup: Option<Fd>,
    /// Existing pid namespace (nsfs fd or pidfd) the child is born into.
    pub pid_namespace: Option<Fd>,
    /// Text of /proc/self/timens_offsets: asks for a new time namespace.
    pub time_offsets: Option<Vec<u8>>,
    /// With CLONE_NEWUSER: written by the parent before the first step runs.
    pub id_maps: Option<IdMaps>,
    /// Written by the parent before the first step runs; refusal to lower it is a warning.
    pub oom_score_adj: Option<i32>,
    pub steps: Vec<Step>,
    pub exec: Option<Exec>,
}

// === impl Plan ===

impl Plan {
    /// Appends a step. The label says what is attempted, errno text is added: `mount "proc" at "/proc"`.
    pub fn push(&mut self, op: Op, label: impl Into<Cow<'static, str>>) {
        self.steps.push(Step {
            op,
            label: label.into(),
        });
    }

    /// Hands a descriptor to the child.
    pub fn give(&mut self, fd: impl Into<OwnedFd>) -> Fd {
        self.fds.push(fd.into());
        Fd::Given(self.fds.len() - 1)
    }

    /// The steps without labels, for golden tests.
    pub fn ops(&self) -> impl Iterator<Item = &Op> {
        self.steps.iter().map(|s| &s.op)
    }

    pub(crate) fn raw(&self, index: usize) -> RawFd {
        self.fds.get(index).map_or(-1, AsRawFd::as_raw_fd)
    }
}

/// A C string from bytes, cut at the first NUL: only for text this program wrote itself.
pub fn cstr(text: impl AsRef<[u8]>) -> CString {
    let bytes = text.as_ref();
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    CString::new(&bytes[..end]).unwrap_or_else(|_| CStr::to_owned(c""))
}
