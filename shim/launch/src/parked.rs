//! Owns the parent's half of a launch: clone, the status channel, the gate, and reaping.

use crate::child::{self, Child};
use crate::plan::{Fd, IdMaps, Op, Plan, SLOTS};
use crate::sys::{self, CloneArgs};
use crate::wire::{self, Message, Tag};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketFlags,
    SocketType, recvmsg, send, socketpair,
};
use rustix::process::{
    PidfdGetfdFlags, Signal, WaitId, WaitIdOptions, pidfd_getfd, pidfd_send_signal, waitid,
};
use std::borrow::Cow;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Where the child is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// Nothing new: poll [`Parked::status_fd`] for reading.
    Pending,
    /// Waits in `Op::Rendezvous(n)` for [`Parked::proceed`].
    Rendezvous(u32),
    /// A seccomp filter has a listener: [`Parked::take_listener`], then [`Parked::proceed`].
    Listener,
    /// Waits at its gate for [`Parked::open_gate`]: the OCI state "created".
    Ready,
    /// The exec happened: the OCI state "running".
    Running,
    /// The child has ended or is about to; reap it by its pidfd.
    Failed(Failure),
}

/// Why a launch failed, in a form a caller can branch on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub kind: Kind,
    /// Index of the step; `steps.len()` for the exec itself.
    pub op: usize,
    pub errno: i32,
    /// Complete message, worded as runc's clients expect it.
    pub text: String,
}

/// Class of a [`Failure`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A step failed: the container could not be set up.
    Setup,
    /// The executable is missing (exit status 127 by convention).
    NotFound,
    /// The executable may not be executed (exit status 126 by convention).
    NotExecutable,
    /// The child ended without a word, for instance by SIGKILL.
    Died,
}

/// A process that has not executed its program yet.
#[derive(Debug)]
pub struct Parked {
    pid: i32,
    pidfd: OwnedFd,
    channel: OwnedFd,
    /// The last descriptor the child sent: the console once the program is ready.
    passed: Option<OwnedFd>,
    listener: Option<OwnedFd>,
    warnings: Vec<String>,
    /// Text of each step, and of the executable, for errors.
    labels: Vec<Cow<'static, str>>,
    exe: Exe,
    gate_open: bool,
    last: Option<Status>,
}

#[derive(Debug, Default)]
struct Exe {
    name: String,
    searched: bool,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Exit status, or 128 + signal.
    pub code: u32,
    pub signal: Option<i32>,
}

/// Clones the child of `plan` and lets it run to its first rendezvous or its gate. Does not block,
/// save for the moment a re-fork needs. Call it from a single-threaded process: the child is a copy of
/// the calling thread alone.
pub fn spawn(plan: &Plan) -> io::Result<Parked> {
    let kind = SocketType::SEQPACKET;
    let (channel, theirs) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    let (pid, pidfd) = clone(plan, &theirs)?;
    drop(theirs);
    let mut parked = Parked {
        pid,
        pidfd,
        channel,
        passed: None,
        listener: None,
        warnings: Vec::new(),
        labels: plan.steps.iter().map(|s| s.label.clone()).collect(),
        exe: plan
            .exec
            .as_ref()
            .map(|e| Exe {
                name: e.name.clone(),
                searched: e.searched,
            })
            .unwrap_or_default(),
        gate_open: false,
        last: None,
    };
    match parked.attend(plan) {
        Ok(()) => Ok(parked),
        Err(e) => {
            let _ = parked.kill();
            let _ = waitid(WaitId::PidFd(parked.pidfd()), WaitIdOptions::EXITED);
            Err(e)
        }
    }
}

/// Collects the exit of a child whose pidfd is readable; `None` while it still runs.
pub fn reap(pidfd: BorrowedFd<'_>) -> io::Result<Option<Exit>> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    let Some(status) = waitid(WaitId::PidFd(pidfd), options)? else {
        return Ok(None);
    };
    let signal = status.terminating_signal();
    let code = match signal {
        Some(signal) => 128 + signal,
        None => status.exit_status().unwrap_or(255),
    };
    Ok(Some(Exit {
        code: code as u32,
        signal,
    }))
}

/// A user namespace with these maps, held by its descriptor alone: for idmapped mounts.
pub fn user_namespace(maps: &IdMaps) -> io::Result<OwnedFd> {
    let mut plan = Plan {
        namespaces: libc::CLONE_NEWUSER as u64,
        id_maps: Some(maps.clone()),
        ..Plan::default()
    };
    plan.push(Op::Gate, "");
    let mut parked = spawn(&plan)?;
    let status = parked.wait_status()?;
    let opened = std::fs::File::open(format!("/proc/{}/ns/user", parked.pid));
    let _ = parked.kill();
    let _ = waitid(WaitId::PidFd(parked.pidfd()), WaitIdOptions::EXITED);
    match status {
        Status::Ready => Ok(opened?.into()),
        other => Err(io::Error::other(format!(
            "hold a user namespace: {other:?}"
        ))),
    }
}

// === impl Parked ===

impl Parked {
    /// Pid as this process sees it.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Readable once the process has exited; valid for its whole life.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Readable whenever [`Parked::try_status`] has news. Register it once with the event loop.
    pub fn status_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }

    /// Takes the next news without blocking. `Running`, `Failed` are final and repeat.
    pub fn try_status(&mut self) -> io::Result<Status> {
        if let Some(last) = &self.last {
            return Ok(last.clone());
        }
        loop {
            let message = match self.receive() {
                Ok(message) => message,
                Err(Errno::AGAIN) => return Ok(Status::Pending),
                Err(Errno::CONNRESET) => None,
                Err(e) => return Err(e.into()),
            };
            let status = match message {
                None => self.ended(),
                Some(m) => match m.tag {
                    Tag::Rendezvous => Status::Rendezvous(m.at),
                    Tag::Ready => Status::Ready,
                    Tag::Failed => Status::Failed(self.failure(m)),
                    Tag::Note => {
                        self.note(m);
                        continue;
                    }
                    Tag::Listener => {
                        let flags = PidfdGetfdFlags::empty();
                        self.listener = Some(pidfd_getfd(&self.pidfd, m.detail, flags)?);
                        Status::Listener
                    }
                    Tag::Console | Tag::Forked => continue,
                },
            };
            if matches!(status, Status::Running | Status::Failed(_)) {
                self.last = Some(status.clone());
            }
            return Ok(status);
        }
    }

    /// Blocks until there is news. For tests and one-shot commands.
    pub fn wait_status(&mut self) -> io::Result<Status> {
        loop {
            match self.try_status()? {
                Status::Pending => self.await_news()?,
                status => return Ok(status),
            }
        }
    }

    /// Lets a child go on from `Status::Rendezvous`.
    pub fn proceed(&mut self) -> io::Result<()> {
        send(&self.channel, b"\n", SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Lets a child exec from `Status::Ready`. The news is `Running` or `Failed`.
    pub fn open_gate(&mut self) -> io::Result<()> {
        self.gate_open = true;
        self.proceed()
    }

    /// The pty master, when the plan asked for a terminal: there from `Status::Ready` on.
    pub fn take_console(&mut self) -> Option<OwnedFd> {
        self.passed.take()
    }

    /// The listener of a seccomp filter, at `Status::Listener`.
    pub fn take_listener(&mut self) -> Option<OwnedFd> {
        self.listener.take()
    }

    /// What was clamped on the way instead of failing.
    pub fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }

    /// SIGKILL through the pidfd.
    pub fn kill(&self) -> io::Result<()> {
        pidfd_send_signal(&self.pidfd, Signal::KILL)?;
        Ok(())
    }

    /// Keeps only the identity, once `Running` or failed.
    pub fn into_pidfd(self) -> OwnedFd {
        self.pidfd
    }

    /// The parent's own part: id maps, oom_score_adj, and following a re-fork.
    fn attend(&mut self, plan: &Plan) -> io::Result<()> {
        let direct = plan.namespaces & libc::CLONE_NEWUSER as u64 != 0;
        if let Some(maps) = plan.id_maps.as_ref().filter(|_| direct) {
            write_maps(self.pid, maps)?;
            self.proceed()?;
        }
        if plan.steps.iter().any(|s| matches!(s.op, Op::Refork { .. })) {
            self.follow(plan)?;
        }
        if let Some(value) = plan.oom_score_adj {
            self.oom_score_adj(value)?;
        }
        Ok(())
    }

    /// Waits for the re-forked process and takes it for the child; reaps the first one.
    fn follow(&mut self, plan: &Plan) -> io::Result<()> {
        loop {
            self.await_news()?;
            match self.receive()? {
                Some(m) if m.tag == Tag::Forked => {}
                Some(m) if m.tag == Tag::Note => {
                    self.note(m);
                    continue;
                }
                Some(m) if m.tag == Tag::Failed => {
                    self.last = Some(Status::Failed(self.failure(m)));
                    return Ok(());
                }
                _ => return Err(io::Error::other("first child ended before it forked")),
            }
            let pidfd = self.passed.take().ok_or(Errno::PROTO)?;
            let pid = crate::children::pid_of(pidfd.as_fd())?;
            let first = std::mem::replace(&mut self.pidfd, pidfd);
            self.pid = pid;
            waitid(WaitId::PidFd(first.as_fd()), WaitIdOptions::EXITED)?;
            if let Some(maps) = &plan.id_maps {
                write_maps(pid, maps)?;
            }
            return self.proceed();
        }
    }

    fn oom_score_adj(&mut self, value: i32) -> io::Result<()> {
        let path = format!("/proc/{}/oom_score_adj", self.pid);
        let Err(e) = std::fs::write(&path, value.to_string()) else {
            return Ok(());
        };
        if !matches!(e.raw_os_error(), Some(libc::EACCES | libc::EPERM)) {
            return Err(e);
        }
        // House rule: a host that refuses to lower it gets the lowest it allows, which is ours.
        self.warnings.push(format!(
            "oom_score_adj {value} refused by the host: left unchanged"
        ));
        Ok(())
    }

    fn await_news(&self) -> io::Result<()> {
        let mut fds = [PollFd::new(&self.channel, PollFlags::IN)];
        loop {
            match poll(&mut fds, None) {
                Err(Errno::INTR) => {}
                r => return r.map(drop).map_err(Into::into),
            }
        }
    }

    /// One packet; `None` at the end.
    fn receive(&mut self) -> Result<Option<Message>, Errno> {
        let mut bytes = [0u8; wire::SIZE];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let got = loop {
            let mut iov = [io::IoSliceMut::new(&mut bytes)];
            match recvmsg(&self.channel, &mut iov, &mut control, flags) {
                Err(Errno::INTR) => {}
                r => break r?,
            }
        };
        for item in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = item {
                self.passed = fds.last();
            }
        }
        if got.bytes == 0 {
            return Ok(None);
        }
        Message::decode(bytes).map(Some).ok_or(Errno::PROTO)
    }

    /// The channel closed: by the exec, or by death.
    fn ended(&self) -> Status {
        if self.gate_open {
            return Status::Running;
        }
        Status::Failed(Failure {
            kind: Kind::Died,
            op: 0,
            errno: 0,
            text: "unable to start container process: \
                   process ended unexpectedly before it was started"
                .into(),
        })
    }

    fn failure(&self, m: Message) -> Failure {
        let op = m.at as usize;
        let name = &self.exe.name;
        let why = strerror(m.errno);
        let exe = |text: String| format!("unable to start container process: {text}");
        let access = match m.errno {
            libc::ENOENT | libc::ENOTDIR => Kind::NotFound,
            _ => Kind::NotExecutable,
        };
        let (kind, text) = match (m.detail, self.labels.get(op)) {
            (child::EXE_SEARCH, _) if self.exe.searched => {
                let text = format!("exec: {name:?}: executable file not found in $PATH");
                (Kind::NotFound, exe(text))
            }
            (child::EXE_STAT | child::EXE_SEARCH, _) => {
                (access, exe(format!("exec: {name:?}: stat {name}: {why}")))
            }
            (child::EXE_ACCESS, _) => (access, exe(format!("exec: {name:?}: {why}"))),
            (_, None) => (access, exe(format!("exec {name}: {why}"))),
            (_, Some(label)) => (
                Kind::Setup,
                exe(format!("error during container init: {label}: {why}")),
            ),
        };
        Failure {
            kind,
            op,
            errno: m.errno,
            text,
        }
    }

    fn note(&mut self, m: Message) {
        let label = self.labels.get(m.at as usize).map_or("", |l| l);
        self.warnings.push(match m.detail {
            child::NOTE_RLIMIT => format!("{label}: refused by the host, hard limit clamped"),
            _ => format!("{label}: capabilities this host does not grant are left out"),
        });
    }
}

/// The clone itself, with the caller's namespaces for children put back afterwards.
fn clone(plan: &Plan, theirs: &OwnedFd) -> io::Result<(i32, OwnedFd)> {
    let home = crate::home::entry();
    let pointers = |exec| child::pointers(exec, &home);
    let (argv, envp) = plan.exec.as_ref().map(pointers).unwrap_or_default();
    let channel = theirs.as_raw_fd();
    let mut keep: Vec<i32> = plan.fds.iter().map(|f| f.as_raw_fd()).collect();
    keep.push(channel);
    keep.sort_unstable();
    let mut pidfd: i32 = -1;
    let mut args = CloneArgs {
        flags: plan.namespaces | libc::CLONE_PIDFD as u64 | sys::CLONE_CLEAR_SIGHAND,
        pidfd: std::ptr::from_mut(&mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    if let Some(Fd::Given(n)) = plan.cgroup {
        args.flags |= sys::CLONE_INTO_CGROUP;
        args.cgroup = plan.raw(n) as u64;
    }
    let _back = Restore::enter(plan)?;
    let cloned = sys::clone3(&args).map_err(|e| io::Error::from_raw_os_error(e.0))?;
    if cloned == 0 {
        let slots = [-1; SLOTS];
        Child {
            plan,
            channel,
            argv: &argv,
            envp: &envp,
            home: &home,
            keep: &keep,
            slots,
            pending_cwd: None,
            chosen: 0,
        }
        .run();
    }
    // SAFETY: clone3 stored this descriptor just now for CLONE_PIDFD and nobody else holds it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok((cloned, pidfd))
}

/// Puts back what pid and time namespace future children of this process are born into. Only the
/// namespace *for children* is ever changed, so this process itself never moves.
struct Restore {
    pid: Option<OwnedFd>,
    time: Option<OwnedFd>,
}

// === impl Restore ===

impl Restore {
    fn enter(plan: &Plan) -> io::Result<Self> {
        let mut back = Self {
            pid: None,
            time: None,
        };
        let to_io = |e: sys::Errno| io::Error::from_raw_os_error(e.0);
        if let Some(Fd::Given(n)) = plan.pid_namespace {
            back.pid = Some(std::fs::File::open("/proc/self/ns/pid")?.into());
            sys::setns(plan.raw(n), libc::CLONE_NEWPID as u32).map_err(to_io)?;
        }
        if let Some(offsets) = &plan.time_offsets {
            back.time = Some(std::fs::File::open("/proc/self/ns/time")?.into());
            sys::unshare(libc::CLONE_NEWTIME as u32).map_err(to_io)?;
            if !offsets.is_empty() {
                std::fs::write("/proc/self/timens_offsets", offsets)?;
            }
        }
        Ok(back)
    }
}

impl Drop for Restore {
    fn drop(&mut self) {
        if let Some(fd) = &self.pid {
            let _ = sys::setns(fd.as_raw_fd(), libc::CLONE_NEWPID as u32);
        }
        if let Some(fd) = &self.time {
            let _ = sys::setns(fd.as_raw_fd(), libc::CLONE_NEWTIME as u32);
        }
    }
}

fn write_maps(pid: i32, maps: &IdMaps) -> io::Result<()> {
    let write = |file: &str, data: &[u8]| {
        std::fs::write(format!("/proc/{pid}/{file}"), data)
            .map_err(|e| io::Error::new(e.kind(), format!("write {file}: {e}")))
    };
    if maps.deny_setgroups {
        write("setgroups", b"deny")?;
    }
    write("uid_map", &maps.uid_map)?;
    write("gid_map", &maps.gid_map)
}

/// Text of an errno as Go prints it.
fn strerror(errno: i32) -> String {
    let text = io::Error::from_raw_os_error(errno).to_string();
    text.split(" (os error")
        .next()
        .unwrap_or_default()
        .to_lowercase()
}
