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

/// A device node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Node {
    pub path: CString,
    /// Type bits and permissions.
    pub mode: u32,
    pub major: u32,
    pub minor: u32,
    pub uid: u32,
    pub gid: u32,
}

/// Arguments of sched_setattr(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Sched {
    pub policy: u32,
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
}

/// One step of the child. Paths of steps with a `root` are resolved inside that directory
/// (`RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS`), a `fd` is used as it is; plain `path`s are host
/// paths and belong before the change of root.
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
    /// `unshare(flags)`.
    Unshare(u32),
    /// Goes on in a sibling made with these CLONE_NEW* flags: a pid namespace inside a joined user
    /// namespace, or a new user namespace after namespaces were joined by path.
    Refork {
        flags: u64,
    },
    /// Writes `0` to an open v1 `tasks` or v2 `cgroup.procs` file.
    JoinCgroup(Fd),
    /// Writes `data` to a file below /proc in one write(2); fails unless the file is on procfs.
    WriteProc {
        path: CString,
        data: Vec<u8>,
    },
    SetSid,
    /// Changes propagation (MS_SHARED.. with or without MS_REC) of the mount that holds `path`.
    Propagation {
        path: CString,
        flags: u64,
    },
    /// Changes the propagation of the mount that holds `path`, whether or not `path` is its root:
    /// pivot_root(2) wants it unshared.
    HolderPropagation {
        path: CString,
        flags: u64,
    },
    /// Detached copy of the tree at a host path.
    CloneTree {
        path: CString,
        recursive: bool,
        out: u8,
    },
    /// Detached copy of the mount behind `fd`.
    CloneFd {
        fd: Fd,
        recursive: bool,
        out: u8,
    },
    /// New detached mount of a file system.
    FsMount {
        fstype: CString,
        options: Vec<FsOption>,
        attrs: u64,
        out: u8,
    },
    /// mount_setattr(2) on the mount behind `fd`.
    SetAttr {
        fd: Fd,
        set: u64,
        clear: u64,
        propagation: u64,
        recursive: bool,
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
    /// mount(2) on the object behind `to`, for data fsconfig(2) cannot carry.
    MountOn {
        fstype: CString,
        source: CString,
        to: Fd,
        flags: u64,
        data: CString,
    },
    /// Resolves `path` to a register, O_PATH. `real` refuses symbolic links.
    Resolve {
        root: Fd,
        path: CString,
        make: Make,
        real: bool,
        out: u8,
    },
    Close(u8),
    /// Fails unless `fd` is the character device `major:minor`.
    VerifyDevice {
        fd: Fd,
        major: u32,
        minor: u32,
    },
    /// Hides `path` when it exists: a file behind `null`, a directory behind one shared empty
    /// read-only tmpfs kept in register `tmpfs` (empty at first).
    Mask {
        root: Fd,
        path: CString,
        null: Fd,
        tmpfs: u8,
    },
    /// Makes `path` read-only when it exists.
    ReadonlyPath {
        root: Fd,
        path: CString,
    },
    /// Device node with exact mode and owner; an equal node may exist already.
    Mknod {
        root: Fd,
        node: Node,
    },
    /// Symbolic link; an existing entry is left alone.
    Symlink {
        root: Fd,
        target: CString,
        path: CString,
    },
    /// Opens a pty through the devpts multiplexer at `path`, sends the master to the parent and
    /// keeps the peer, owned by `uid`, in `out`.
    OpenPty {
        root: Fd,
        path: CString,
        rows: u16,
        cols: u16,
        uid: u32,
        out: u8,
    },
    /// Makes `fd` the controlling terminal and all three standard streams.
    Console(Fd),
    /// The container's own null device in place of the host's, which a checkpoint could not name. Bit N of `targets` is
    /// descriptor N. Where the container has none they stay as they are.
    OwnNull {
        root: Fd,
        targets: u8,
    },
    /// Descriptor to 0, 1 or 2.
    Stdio {
        fd: Fd,
        target: u8,
    },
    /// pivot_root(2) into the mount behind `root`; the old root is gone afterwards.
    PivotRoot {
        root: Fd,
    },
    /// MS_MOVE onto / and chroot: for a host whose root is a ramdisk. The old root stays beneath it.
    MoveRoot {
        root: Fd,
    },
    /// Takes away, or covers, a mount of the host that must not stay beneath a moved root.
    Hide {
        path: CString,
    },
    /// SELinux label of the object behind a descriptor; a file system without labels is fine.
    Label {
        fd: Fd,
        value: Vec<u8>,
    },
    /// Copies the content of the directory behind `from` into the one behind `to`.
    CopyUp {
        from: Fd,
        to: Fd,
    },
    Chroot {
        root: Fd,
    },
    SetHostname(Vec<u8>),
    SetDomainname(Vec<u8>),
    /// New session keyring with this name; a kernel without keyrings is fine.
    Keyring(CString),
    Personality(u64),
    Scheduler(Sched),
    IoPriority(u32),
    /// set_mempolicy(2).
    MemPolicy {
        mode: u32,
        nodes: Vec<u64>,
    },
    /// sched_setaffinity(2) of itself.
    Affinity(Vec<u64>),
    /// On EPERM the hard limit is clamped to the present one, with a warning.
    SetRlimit(Rlimit),
    Umask(u32),
    /// Drops what is not in the mask.
    BoundingSet(u64),
    KeepCaps(bool),
    SetGroups(Vec<u32>),
    SetGid(u32),
    SetUid(u32),
    /// Capabilities this process does not have are left out, with a warning.
    SetCaps(Caps),
    NoNewPrivs,
    /// Installs a filter; with SECCOMP_FILTER_FLAG_NEW_LISTENER it reports `Status::Listener` and waits for
    /// [`crate::Parked::proceed`].
    Seccomp {
        program: Vec<u8>,
        flags: u32,
    },
    /// Looks a user's home up in `/etc/passwd` of `root`, for [`Exec::find_home`].
    Home {
        root: Fd,
        uid: u32,
    },
    /// chdir inside the present root, made with parents when missing if `make`. EACCES is tried
    /// again by `VerifyCwd`, with the credentials of then.
    Chdir {
        path: CString,
        make: bool,
    },
    /// Fails when getcwd(2) is outside the root.
    VerifyCwd,
    /// Picks the executable among `Plan::exec` candidates, with the credentials set so far.
    FindExe,
    /// Closes everything above stderr but the status channel.
    CloseFds,
    /// Brings the loopback interface up.
    LoopbackUp,
    /// The end of a plan without a program: reports `Status::Ready`, then does nothing but hold its namespaces until
    /// the parent is gone. Orphans it inherits are not kept as zombies; seccomp leaves it read and write.
    Hold {
        /// Where the parent's command line lies, see [`crate::arguments`]: not for the pod to read.
        arguments: (usize, usize),
    },
}

/// What to execute at the end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Exec {
    /// argv[0] as given, for error texts.
    pub name: String,
    /// Paths to try in order.
    pub candidates: Vec<CString>,
    /// The candidates come from a search of PATH.
    pub searched: bool,
    pub argv: Vec<CString>,
    pub envp: Vec<CString>,
    /// Adds HOME as `Op::Home` finds it, `/` without that.
    pub find_home: bool,
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
