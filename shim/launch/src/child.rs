//! Owns the child between clone and exec: an interpreter of the Plan's steps.
//!
//! Invariants: no allocation, no lock, no panic path, no return. The memory is a copy of the parent's,
//! so the Plan is read in place. Descriptors: the Plan's, the channel and what the steps open; all
//! others are closed before the first step. Not here: mount and path steps (`fs.rs`).

use crate::plan::{Caps, Exec, Fd, Op, Plan, Rlimit, SLOTS};
use crate::sys::{self, Errno, Res};
use crate::wire::{Message, Tag};
use std::cell::Cell;
use std::ffi::CStr;
use std::os::fd::RawFd;

/// Details of a failed `FindExe`, in `Message::detail`.
pub(crate) const EXE_SEARCH: i32 = 1;
pub(crate) const EXE_STAT: i32 = 2;
pub(crate) const EXE_ACCESS: i32 = 3;
/// What a clamped step was, in `Message::detail` of a note.
pub(crate) const NOTE_RLIMIT: i32 = 1;
pub(crate) const NOTE_CAPS: i32 = 2;
const SECCOMP_NEW_LISTENER: u32 = 8;
const SECCOMP_WAIT_KILLABLE: u32 = 32;

/// State of the interpreter.
pub(crate) struct Child<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) channel: RawFd,
    /// Null-terminated arrays made by the parent.
    pub(crate) argv: &'a [*const libc::c_char],
    pub(crate) envp: &'a [*const libc::c_char],
    /// The environment's HOME, for `Op::Home` to fill in; in `envp` when the Plan asks for it.
    pub(crate) home: &'a [Cell<u8>],
    /// The Plan's descriptors and the channel, sorted.
    pub(crate) keep: &'a [RawFd],
    pub(crate) slots: [RawFd; SLOTS],
    /// Step whose chdir is to be tried again.
    pub(crate) pending_cwd: Option<usize>,
    /// Candidate that `FindExe` chose.
    pub(crate) chosen: usize,
}

// === impl Child ===

impl Child<'_> {
    /// Runs every step, then execs. Never returns.
    pub(crate) fn run(mut self) -> ! {
        self.close_others();
        let _ = sys::prctl(libc::PR_SET_DUMPABLE, 0, 0);
        sys::default_signals();
        sys::umask(0);
        if self.plan.id_maps.is_some() && self.plan.namespaces & libc::CLONE_NEWUSER as u64 != 0 {
            self.await_byte();
        }
        let steps = &self.plan.steps;
        let mut at = 0;
        while let Some(step) = steps.get(at) {
            if let Err((e, detail)) = self.step(at, &step.op) {
                self.fail(at, e, detail);
            }
            at += 1;
        }
        let Some(exec) = self.plan.exec.as_ref() else {
            sys::exit(0)
        };
        let error = match exec.candidates.get(self.chosen) {
            // SAFETY: the parent built both arrays from this Plan's strings, null at the end.
            Some(path) => unsafe { sys::execve(path, self.argv.as_ptr(), self.envp.as_ptr()) },
            None => Errno(libc::ENOENT),
        };
        self.fail(at, error, 0)
    }

    fn step(&mut self, at: usize, op: &Op) -> Result<(), (Errno, i32)> {
        match op {
            Op::FindExe => self.find_exe(),
            Op::SetRlimit(limit) => self.rlimit(at, limit).map_err(|e| (e, 0)),
            Op::SetCaps(caps) => self.caps(at, caps).map_err(|e| (e, 0)),
            Op::Chdir { path, make } => self.chdir(at, path, *make).map_err(|e| (e, 0)),
            Op::VerifyCwd => self.verify_cwd().map_err(|e| (e, 0)),
            _ if is_process_op(op) => self.process_step(op).map_err(|e| (e, 0)),
            _ => self.fs_step(op).map_err(|e| (e, 0)),
        }
    }

    fn process_step(&mut self, op: &Op) -> Res<()> {
        match op {
            Op::Rendezvous(n) => {
                self.tell(Tag::Rendezvous, *n as usize, 0, 0);
                self.await_byte();
                Ok(())
            }
            Op::Gate => {
                self.tell(Tag::Ready, 0, 0, 0);
                self.await_byte();
                Ok(())
            }
            Op::SetNs { ns, flags } => sys::setns(self.fd(*ns), *flags),
            Op::Unshare(flags) => sys::unshare(*flags),
            Op::Refork { flags } => self.refork(*flags),
            Op::SetSid => sys::setsid(),
            Op::SetHostname(name) => sys::sethostname(name),
            Op::SetDomainname(name) => sys::setdomainname(name),
            Op::Keyring(name) => match sys::join_session_keyring(name) {
                Err(Errno(libc::ENOSYS)) => Ok(()),
                r => r,
            },
            Op::Personality(p) => sys::personality(*p),
            Op::Scheduler(s) => sys::sched_setattr(s),
            Op::IoPriority(value) => sys::ioprio_set(*value),
            Op::MemPolicy { mode, nodes } => sys::set_mempolicy(*mode, nodes),
            Op::Affinity(mask) => sys::sched_setaffinity(mask),
            Op::Umask(mask) => {
                sys::umask(*mask);
                Ok(())
            }
            Op::BoundingSet(keep) => bounding_set(*keep),
            Op::KeepCaps(on) => sys::prctl(libc::PR_SET_KEEPCAPS, usize::from(*on), 0).map(drop),
            Op::SetGroups(groups) => sys::setgroups(groups),
            Op::SetGid(gid) => sys::setgid(*gid),
            Op::SetUid(uid) => sys::setuid(*uid),
            Op::NoNewPrivs => sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).map(drop),
            Op::Seccomp { program, flags } => self.seccomp(program, *flags),
            Op::Home { root, uid } => self.find_home(*root, *uid),
            Op::CloseFds => {
                let channel = self.channel as u32;
                sys::close_range(3, channel.saturating_sub(1));
                sys::close_range(channel.saturating_add(1), u32::MAX);
                Ok(())
            }
            Op::LoopbackUp => sys::loopback_up(),
            Op::Hold { arguments } => self.hold(*arguments),
            Op::Console(fd) => self.console(self.fd(*fd)),
            Op::Stdio { fd, target } => sys::dup2(self.fd(*fd), i32::from(*target)),
            _ => Err(Errno(libc::ENOSYS)),
        }
    }

    /// Number behind a name; -1 (EBADF for the kernel) when there is none.
    pub(crate) fn fd(&self, fd: Fd) -> RawFd {
        match fd {
            Fd::Given(n) => self.plan.raw(n),
            Fd::Slot(n) => self.slots.get(usize::from(n)).copied().unwrap_or(-1),
            Fd::Cwd => libc::AT_FDCWD,
        }
    }

    /// Puts a new descriptor in a register, closing what was there.
    pub(crate) fn set(&mut self, slot: u8, fd: RawFd) -> Res<()> {
        // 0 to 2 are replaced by the standard streams later: a register must not name them.
        let fd = if fd < 3 {
            let moved = sys::dup_above(fd, 3);
            sys::close(fd);
            moved?
        } else {
            fd
        };
        let Some(place) = self.slots.get_mut(usize::from(slot)) else {
            return Err(Errno(libc::EBADF));
        };
        if *place >= 0 {
            sys::close(*place);
        }
        *place = fd;
        Ok(())
    }

    fn close_others(&self) {
        let mut from = 3u32;
        for fd in self.keep {
            let fd = *fd as u32;
            if fd > from {
                sys::close_range(from, fd - 1);
            }
            from = from.max(fd.saturating_add(1));
        }
        sys::close_range(from, u32::MAX);
    }

    pub(crate) fn tell(&self, tag: Tag, a: usize, b: i32, c: i32) {
        let message = Message {
            tag,
            at: a as u32,
            errno: b,
            detail: c,
        };
        // write(2), for a filter's listener may answer every other call, and is not there yet.
        if sys::write(self.channel, &message.encode()).is_err() {
            // Nobody is left who could open the gate.
            sys::exit(1);
        }
    }

    fn fail(&self, at: usize, e: Errno, detail: i32) -> ! {
        self.tell(Tag::Failed, at, e.0, detail);
        sys::exit(1)
    }

    /// Waits for the parent's byte; a parent that is gone ends the child.
    fn await_byte(&self) {
        let mut byte = [0u8; 1];
        match sys::read(self.channel, &mut byte) {
            Ok(1) => {}
            _ => sys::exit(1),
        }
    }

    fn hold(&self, arguments: (usize, usize)) -> ! {
        sys::rename(arguments, c"pod");
        sys::ignore_children();
        // A kernel without seccomp is fine: there is nothing here that anybody could call.
        let _ = sys::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_STRICT as usize, 0);
        let ready = Message {
            tag: Tag::Ready,
            at: 0,
            errno: 0,
            detail: 0,
        };
        // By write(2), which is allowed still. Without a parent the read below ends it.
        let _ = sys::write(self.channel, &ready.encode());
        loop {
            self.await_byte();
        }
    }

    /// Continues in a sibling of this process; this one passes its pidfd and ends.
    fn refork(&self, flags: u64) -> Res<()> {
        let mut pidfd: RawFd = -1;
        let args = sys::CloneArgs {
            flags: flags | (libc::CLONE_PARENT | libc::CLONE_PIDFD) as u64,
            pidfd: std::ptr::from_mut(&mut pidfd) as u64,
            ..sys::CloneArgs::default()
        };
        if sys::clone3(&args)? != 0 {
            // Named by descriptor: in a joined pid namespace the number means something else.
            let message = Message {
                tag: Tag::Forked,
                at: 0,
                errno: 0,
                detail: 0,
            };
            let told = sys::send_fd(self.channel, &message.encode(), pidfd);
            sys::exit(i32::from(told.is_err()));
        }
        // The parent opens the new pidfd, writes id maps where there are any, then says go.
        self.await_byte();
        Ok(())
    }

    /// Installs a filter. A listener is named by its number, for the parent to fetch: a message that carries it could
    /// be what the filter holds up.
    fn seccomp(&self, program: &[u8], flags: u32) -> Res<()> {
        let listener = match sys::seccomp(program, flags) {
            // Older than 5.19.
            Err(Errno(libc::EINVAL)) if flags & SECCOMP_WAIT_KILLABLE != 0 => {
                sys::seccomp(program, flags & !SECCOMP_WAIT_KILLABLE)?
            }
            r => r?,
        };
        if flags & SECCOMP_NEW_LISTENER != 0 {
            self.tell(Tag::Listener, 0, 0, listener);
            self.await_byte();
        }
        Ok(())
    }

    fn console(&self, fd: RawFd) -> Res<()> {
        for target in 0..3 {
            sys::dup2(fd, target)?;
        }
        sys::ioctl_int(0, libc::TIOCSCTTY, 0).map(drop)
    }

    fn rlimit(&self, at: usize, limit: &Rlimit) -> Res<()> {
        match sys::rlimit(limit.resource, Some([limit.soft, limit.hard])) {
            Err(Errno(libc::EPERM)) => {
                let [_, hard] = sys::rlimit(limit.resource, None)?;
                let clamped = [limit.soft.min(hard), limit.hard.min(hard)];
                sys::rlimit(limit.resource, Some(clamped))?;
                self.tell(Tag::Note, at, libc::EPERM, NOTE_RLIMIT);
                Ok(())
            }
            r => r.map(drop),
        }
    }

    fn caps(&self, at: usize, caps: &Caps) -> Res<()> {
        let have = sys::cap_permitted()?;
        let (permitted, effective) = (caps.permitted & have, caps.effective & have);
        if permitted != caps.permitted {
            self.tell(Tag::Note, at, libc::EPERM, NOTE_CAPS);
        }
        let inheritable = caps.inheritable & have;
        sys::capset(effective & permitted, permitted, inheritable)?;
        let action =
            |what: i32, cap: usize| sys::prctl(libc::PR_CAP_AMBIENT, what as usize, cap).map(drop);
        action(libc::PR_CAP_AMBIENT_CLEAR_ALL, 0)?;
        let ambient = caps.ambient & permitted & inheritable;
        for cap in (0..64).filter(|cap| ambient >> cap & 1 == 1) {
            action(libc::PR_CAP_AMBIENT_RAISE, cap)?;
        }
        Ok(())
    }

    fn verify_cwd(&mut self) -> Res<()> {
        if let Some(at) = self.pending_cwd.take()
            && let Some(Op::Chdir { path, .. }) = self.plan.steps.get(at).map(|s| &s.op)
        {
            sys::chdir(path)?;
        }
        // A directory outside the root reads "(unreachable)..", or ENOENT on old kernels.
        let mut buf = [0u8; 4096];
        sys::getcwd(&mut buf)?;
        if buf.first() == Some(&b'/') {
            Ok(())
        } else {
            Err(Errno(libc::ENOENT))
        }
    }

    fn find_exe(&mut self) -> Result<(), (Errno, i32)> {
        let Some(exec) = self.plan.exec.as_ref() else {
            return Ok(());
        };
        let mut error = (Errno(libc::ENOENT), EXE_SEARCH);
        for (n, path) in exec.candidates.iter().enumerate() {
            match runnable(path) {
                Ok(()) => {
                    self.chosen = n;
                    return Ok(());
                }
                Err(e) if !exec.searched => error = e,
                Err(_) => {}
            }
        }
        Err(error)
    }
}

/// Whether execve(2) can work: a file that is no directory, with a right to execute.
fn runnable(path: &CStr) -> Result<(), (Errno, i32)> {
    let st = sys::stat(libc::AT_FDCWD, path, 0).map_err(|e| (e, EXE_STAT))?;
    if st.st_mode & libc::S_IFMT == libc::S_IFDIR {
        return Err((Errno(libc::EISDIR), EXE_ACCESS));
    }
    match sys::executable(path) {
        // A filter that knows no faccessat2 answers so: judge by the mode.
        Err(Errno(libc::ENOSYS | libc::EPERM)) if st.st_mode & 0o111 != 0 => Ok(()),
        Err(Errno(libc::ENOSYS | libc::EPERM)) => Err((Errno(libc::EACCES), EXE_ACCESS)),
        r => r.map_err(|e| (e, EXE_ACCESS)),
    }
}

fn bounding_set(keep: u64) -> Res<()> {
    for cap in 0..64usize {
        if keep >> cap & 1 == 0 {
            match sys::prctl(libc::PR_CAPBSET_DROP, cap, 0) {
                // Past the last capability of this kernel.
                Err(Errno(libc::EINVAL)) => return Ok(()),
                r => r?,
            };
        }
    }
    Ok(())
}

fn is_process_op(op: &Op) -> bool {
    !matches!(
        op,
        Op::JoinCgroup(_)
            | Op::WriteProc { .. }
            | Op::Propagation { .. }
            | Op::HolderPropagation { .. }
            | Op::CloneTree { .. }
            | Op::CloneFd { .. }
            | Op::FsMount { .. }
            | Op::SetAttr { .. }
            | Op::Attach { .. }
            | Op::AttachAt { .. }
            | Op::MountOn { .. }
            | Op::Resolve { .. }
            | Op::Close(_)
            | Op::VerifyDevice { .. }
            | Op::Mask { .. }
            | Op::ReadonlyPath { .. }
            | Op::Mknod { .. }
            | Op::Symlink { .. }
            | Op::OpenPty { .. }
            | Op::OwnNull { .. }
            | Op::PivotRoot { .. }
            | Op::MoveRoot { .. }
            | Op::Chroot { .. }
            | Op::CopyUp { .. }
            | Op::Hide { .. }
            | Op::Label { .. }
    )
}

/// Null-terminated pointer arrays of an [`Exec`], built before the clone. `home` is the entry `Op::Home` fills.
pub(crate) fn pointers(
    exec: &Exec,
    home: &[Cell<u8>],
) -> (Vec<*const libc::c_char>, Vec<*const libc::c_char>) {
    let array = |list: &[std::ffi::CString], more: Option<*const libc::c_char>| {
        list.iter()
            .map(|s| s.as_ptr())
            .chain(more)
            .chain([std::ptr::null()])
            .collect::<Vec<_>>()
    };
    let home = exec.find_home.then(|| home.as_ptr().cast());
    (array(&exec.argv, None), array(&exec.envp, home))
}
