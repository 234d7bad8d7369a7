//! Owns the system calls: one thin function each, usable between clone and exec (no allocation, no panic).
//!
//! Invariants: every pointer given to the kernel comes from a reference that outlives the call; errors
//! are errno values. Not here: when to call what.

use std::ffi::CStr;
use std::os::fd::RawFd;
use std::ptr;

pub(crate) const RESOLVE_NO_XDEV: u64 = 0x01;
pub(crate) const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
pub(crate) const RESOLVE_NO_SYMLINKS: u64 = 0x04;
pub(crate) const RESOLVE_IN_ROOT: u64 = 0x10;
/// `libc::CLONE_INTO_CGROUP` is an i32 that overflows to 0 on this target.
pub(crate) const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
pub(crate) const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const PTR: usize = size_of::<usize>();

/// An errno.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Errno(pub(crate) i32);

pub(crate) type Res<T> = Result<T, Errno>;

#[repr(C)]
#[derive(Default)]
pub(crate) struct CloneArgs {
    pub(crate) flags: u64,
    pub(crate) pidfd: u64,
    pub(crate) child_tid: u64,
    pub(crate) parent_tid: u64,
    pub(crate) exit_signal: u64,
    pub(crate) stack: u64,
    pub(crate) stack_size: u64,
    pub(crate) tls: u64,
    pub(crate) set_tid: u64,
    pub(crate) set_tid_size: u64,
    pub(crate) cgroup: u64,
}

#[repr(C)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}

#[repr(C)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// The one raw system call.
///
/// # Safety
/// Pointer arguments must be valid for what `nr` does with them for the duration of the call.
unsafe fn call(nr: libc::c_long, a: [usize; 6]) -> Res<usize> {
    // SAFETY: the caller vouches for pointer arguments; syscall(2) itself touches only registers.
    let ret = unsafe { libc::syscall(nr, a[0], a[1], a[2], a[3], a[4], a[5]) };
    if ret == -1 {
        Err(Errno(errno()))
    } else {
        Ok(ret as usize)
    }
}

/// errno of the last failed libc call of this thread.
pub(crate) fn errno() -> i32 {
    // SAFETY: glibc returns a valid pointer to this thread's errno, always.
    let p = unsafe { libc::__errno_location() };
    // SAFETY: as above; errno is a plain int nobody else writes.
    unsafe { *p }
}

/// System call without pointers.
fn plain(nr: libc::c_long, a: [usize; 6]) -> Res<usize> {
    // SAFETY: callers in this file pass integers only; the kernel dereferences none of them.
    unsafe { call(nr, a) }
}

fn fd(raw: RawFd) -> usize {
    raw as isize as usize
}

fn p<T: ?Sized>(r: &T) -> usize {
    ptr::from_ref(r).cast::<u8>() as usize
}

fn pm<T: ?Sized>(r: &mut T) -> usize {
    ptr::from_mut(r).cast::<u8>() as usize
}

/// System call whose pointer arguments come from live references made by [`p`] or [`pm`].
macro_rules! refs {
    ($nr:expr, $($a:expr),*) => {{
        #[allow(unused_mut)]
        let mut a = [0usize; 6];
        let given = [$($a),*];
        a[..given.len()].copy_from_slice(&given);
        // SAFETY: every pointer was made from a reference that lives past this call, with the
        // length or type this call expects.
        unsafe { call($nr, a) }
    }};
}

#[path = "sys_file.rs"]
mod file;
#[path = "sys_mount.rs"]
mod mount;
#[path = "sys_security.rs"]
mod security;
pub(crate) use file::*;
pub(crate) use mount::*;
pub(crate) use security::*;

pub(crate) fn clone3(args: &CloneArgs) -> Res<i32> {
    refs!(libc::SYS_clone3, p(args), size_of::<CloneArgs>()).map(|n| n as i32)
}

pub(crate) fn exit(code: i32) -> ! {
    loop {
        let _ = plain(libc::SYS_exit_group, [code as usize, 0, 0, 0, 0, 0]);
    }
}

pub(crate) fn close(raw: RawFd) {
    let _ = plain(libc::SYS_close, [fd(raw), 0, 0, 0, 0, 0]);
}

pub(crate) fn close_range(first: u32, last: u32) {
    if first > last {
        return;
    }
    if plain(
        libc::SYS_close_range,
        [first as usize, last as usize, 0, 0, 0, 0],
    )
    .is_err()
    {
        for n in first..=last.min(65_535) {
            close(n as RawFd);
        }
    }
}

pub(crate) fn dup2(from: RawFd, to: RawFd) -> Res<()> {
    if from == to {
        // Same number: only the close-on-exec flag must go.
        return plain(
            libc::SYS_fcntl,
            [fd(from), libc::F_SETFD as usize, 0, 0, 0, 0],
        )
        .map(drop);
    }
    plain(libc::SYS_dup3, [fd(from), fd(to), 0, 0, 0, 0]).map(drop)
}

/// A close-on-exec duplicate numbered `min` or above.
pub(crate) fn dup_above(from: RawFd, min: i32) -> Res<RawFd> {
    let op = libc::F_DUPFD_CLOEXEC as usize;
    plain(libc::SYS_fcntl, [fd(from), op, min as usize, 0, 0, 0]).map(|n| n as RawFd)
}

pub(crate) fn read(raw: RawFd, buf: &mut [u8]) -> Res<usize> {
    loop {
        match refs!(libc::SYS_read, fd(raw), pm(buf), buf.len()) {
            Err(Errno(libc::EINTR)) => {}
            r => return r,
        }
    }
}

pub(crate) fn write(raw: RawFd, data: &[u8]) -> Res<usize> {
    loop {
        match refs!(libc::SYS_write, fd(raw), p(data), data.len()) {
            Err(Errno(libc::EINTR)) => {}
            r => return r,
        }
    }
}

/// Sends one packet with one descriptor.
pub(crate) fn send_fd(raw: RawFd, data: &[u8], pass: RawFd) -> Res<()> {
    #[repr(C)]
    struct Control {
        header: libc::cmsghdr,
        pass: RawFd,
        pad: u32,
    }
    let control = Control {
        header: libc::cmsghdr {
            cmsg_len: size_of::<libc::cmsghdr>() + size_of::<RawFd>(),
            cmsg_level: libc::SOL_SOCKET,
            cmsg_type: libc::SCM_RIGHTS,
        },
        pass,
        pad: 0,
    };
    let iov = libc::iovec {
        iov_base: data.as_ptr().cast_mut().cast(),
        iov_len: data.len(),
    };
    // struct msghdr as the kernel has it on 64-bit: name, namelen, iov, iovlen, control, len, flags.
    let header: [usize; 7] = [0, 0, p(&iov), 1, p(&control), size_of::<Control>(), 0];
    refs!(
        libc::SYS_sendmsg,
        fd(raw),
        p(&header),
        libc::MSG_NOSIGNAL as usize
    )
    .map(drop)
}

pub(crate) fn open(path: &CStr, flags: i32) -> Res<RawFd> {
    openat(libc::AT_FDCWD, path, flags)
}

pub(crate) fn openat(dir: RawFd, path: &CStr, flags: i32) -> Res<RawFd> {
    let flags = (flags | libc::O_CLOEXEC) as usize;
    refs!(libc::SYS_openat, fd(dir), p(path), flags, 0).map(|n| n as RawFd)
}

/// openat2(2); asks again when a concurrent rename made the kernel give up.
pub(crate) fn openat2(dir: RawFd, path: &CStr, flags: i32, mode: u32, resolve: u64) -> Res<RawFd> {
    let how = OpenHow {
        flags: (flags | libc::O_CLOEXEC) as u32 as u64,
        mode: u64::from(mode),
        resolve,
    };
    let mut tries = 0;
    loop {
        match refs!(
            libc::SYS_openat2,
            fd(dir),
            p(path),
            p(&how),
            size_of::<OpenHow>()
        ) {
            Err(Errno(libc::EAGAIN)) if tries < 128 => tries += 1,
            r => return r.map(|n| n as RawFd),
        }
    }
}

pub(crate) fn mkdirat(dir: RawFd, path: &CStr, mode: u32) -> Res<()> {
    refs!(libc::SYS_mkdirat, fd(dir), p(path), mode as usize).map(drop)
}

pub(crate) fn mknodat(dir: RawFd, path: &CStr, mode: u32, dev: u64) -> Res<()> {
    refs!(
        libc::SYS_mknodat,
        fd(dir),
        p(path),
        mode as usize,
        dev as usize
    )
    .map(drop)
}

pub(crate) fn symlinkat(target: &CStr, dir: RawFd, path: &CStr) -> Res<()> {
    refs!(libc::SYS_symlinkat, p(target), fd(dir), p(path)).map(drop)
}

pub(crate) fn readlinkat(dir: RawFd, path: &CStr, buf: &mut [u8]) -> Res<usize> {
    refs!(libc::SYS_readlinkat, fd(dir), p(path), pm(buf), buf.len())
}

/// Owner of the object behind an O_PATH descriptor.
pub(crate) fn chown(raw: RawFd, uid: u32, gid: u32) -> Res<()> {
    let flags = libc::AT_EMPTY_PATH as usize;
    refs!(
        libc::SYS_fchownat,
        fd(raw),
        p(c""),
        uid as usize,
        gid as usize,
        flags
    )
    .map(drop)
}

/// Mode of what `name` in `dir` leads to; follows links.
pub(crate) fn chmodat(dir: RawFd, name: &CStr, mode: u32) -> Res<()> {
    refs!(libc::SYS_fchmodat, fd(dir), p(name), mode as usize).map(drop)
}

/// stat(2) of `path` from `dir`, or of `dir` itself with an empty path.
pub(crate) fn stat(dir: RawFd, path: &CStr, flags: i32) -> Res<libc::stat> {
    // SAFETY: struct stat is plain integers, for which all zeroes is a value.
    let mut st: libc::stat = unsafe { std::mem::zeroed() };
    let flags = (flags | libc::AT_EMPTY_PATH) as usize;
    refs!(libc::SYS_newfstatat, fd(dir), p(path), pm(&mut st), flags)?;
    Ok(st)
}

/// Magic number of the file system behind a descriptor.
pub(crate) fn fs_magic(raw: RawFd) -> Res<i64> {
    // SAFETY: struct statfs is plain integers, for which all zeroes is a value.
    let mut st: libc::statfs = unsafe { std::mem::zeroed() };
    refs!(libc::SYS_fstatfs, fd(raw), pm(&mut st))?;
    Ok(st.f_type)
}

pub(crate) fn executable(path: &CStr) -> Res<()> {
    let (mode, flags) = (libc::X_OK as usize, libc::AT_EACCESS as usize);
    refs!(
        libc::SYS_faccessat2,
        fd(libc::AT_FDCWD),
        p(path),
        mode,
        flags
    )
    .map(drop)
}

pub(crate) fn chdir(path: &CStr) -> Res<()> {
    refs!(libc::SYS_chdir, p(path)).map(drop)
}

pub(crate) fn fchdir(raw: RawFd) -> Res<()> {
    plain(libc::SYS_fchdir, [fd(raw), 0, 0, 0, 0, 0]).map(drop)
}

pub(crate) fn chroot(path: &CStr) -> Res<()> {
    refs!(libc::SYS_chroot, p(path)).map(drop)
}

pub(crate) fn getcwd(buf: &mut [u8]) -> Res<usize> {
    refs!(libc::SYS_getcwd, pm(buf), buf.len())
}

pub(crate) fn setsid() -> Res<()> {
    plain(libc::SYS_setsid, [0; 6]).map(drop)
}

pub(crate) fn umask(mask: u32) {
    let _ = plain(libc::SYS_umask, [mask as usize, 0, 0, 0, 0, 0]);
}

pub(crate) fn sethostname(name: &[u8]) -> Res<()> {
    refs!(libc::SYS_sethostname, p(name), name.len()).map(drop)
}

pub(crate) fn setdomainname(name: &[u8]) -> Res<()> {
    refs!(libc::SYS_setdomainname, p(name), name.len()).map(drop)
}

pub(crate) fn personality(persona: u64) -> Res<()> {
    plain(libc::SYS_personality, [persona as usize, 0, 0, 0, 0, 0]).map(drop)
}

pub(crate) fn sched_setattr(s: &crate::Sched) -> Res<()> {
    let attr = SchedAttr {
        size: size_of::<SchedAttr>() as u32,
        policy: s.policy,
        flags: s.flags,
        nice: s.nice,
        priority: s.priority,
        runtime: s.runtime,
        deadline: s.deadline,
        period: s.period,
    };
    refs!(libc::SYS_sched_setattr, 0, p(&attr), 0).map(drop)
}

pub(crate) fn ioprio_set(value: u32) -> Res<()> {
    const WHO_PROCESS: usize = 1;
    plain(
        libc::SYS_ioprio_set,
        [WHO_PROCESS, 0, value as usize, 0, 0, 0],
    )
    .map(drop)
}

pub(crate) fn set_mempolicy(mode: u32, nodes: &[u64]) -> Res<()> {
    let bits = nodes.len() * 64 + 1;
    let ptr = if nodes.is_empty() { 0 } else { p(nodes) };
    refs!(
        libc::SYS_set_mempolicy,
        mode as usize,
        ptr,
        if nodes.is_empty() { 0 } else { bits }
    )
    .map(drop)
}

pub(crate) fn sched_setaffinity(mask: &[u64]) -> Res<()> {
    refs!(libc::SYS_sched_setaffinity, 0, size_of_val(mask), p(mask)).map(drop)
}

/// prlimit64(2) of itself: sets when `new` is given, returns the previous limit (soft, hard).
pub(crate) fn rlimit(resource: u32, new: Option<[u64; 2]>) -> Res<[u64; 2]> {
    let mut old = [0u64; 2];
    let ptr = new.as_ref().map_or(0, p);
    refs!(libc::SYS_prlimit64, 0, resource as usize, ptr, pm(&mut old))?;
    Ok(old)
}

pub(crate) fn setgroups(groups: &[u32]) -> Res<()> {
    refs!(libc::SYS_setgroups, groups.len(), p(groups)).map(drop)
}

pub(crate) fn setgid(gid: u32) -> Res<()> {
    let g = gid as usize;
    plain(libc::SYS_setresgid, [g, g, g, 0, 0, 0]).map(drop)
}

pub(crate) fn setuid(uid: u32) -> Res<()> {
    let u = uid as usize;
    plain(libc::SYS_setresuid, [u, u, u, 0, 0, 0]).map(drop)
}

pub(crate) fn prctl(option: i32, a: usize, b: usize) -> Res<usize> {
    plain(libc::SYS_prctl, [option as usize, a, b, 0, 0, 0])
}

/// SIG_DFL for every signal, and an empty mask.
pub(crate) fn default_signals() {
    let action = [0usize; 4];
    for signal in 1..65usize {
        if signal != libc::SIGKILL as usize && signal != libc::SIGSTOP as usize {
            let _ = refs!(libc::SYS_rt_sigaction, signal, p(&action), 0, 8);
        }
    }
    let none = 0u64;
    let set = libc::SIG_SETMASK as usize;
    let _ = refs!(libc::SYS_rt_sigprocmask, set, p(&none), 0, PTR);
}

/// Calls this process `name`; its command line, as /proc shows it, is at `arguments`.
pub(crate) fn rename((start, end): (usize, usize), name: &CStr) {
    for (at, address) in (start..end).enumerate() {
        let byte = name.to_bytes().get(at).copied().unwrap_or(0);
        let place = ptr::with_exposed_provenance_mut::<u8>(address);
        // SAFETY: the kernel named this range: the strings of execve(2), writable, read by nothing that runs from here on.
        unsafe { place.write_volatile(byte) };
    }
    let _ = refs!(libc::SYS_prctl, libc::PR_SET_NAME as usize, p(name));
}

/// From now on the kernel collects this process' children by itself.
pub(crate) fn ignore_children() {
    let action = [libc::SIG_IGN, 0, 0, 0];
    let signal = libc::SIGCHLD as usize;
    let _ = refs!(libc::SYS_rt_sigaction, signal, p(&action), 0, 8);
}

pub(crate) fn ioctl_int(raw: RawFd, request: u64, arg: usize) -> Res<usize> {
    plain(libc::SYS_ioctl, [fd(raw), request as usize, arg, 0, 0, 0])
}

pub(crate) fn unlock_pty(raw: RawFd) -> Res<()> {
    let zero = 0i32;
    refs!(
        libc::SYS_ioctl,
        fd(raw),
        libc::TIOCSPTLCK as usize,
        p(&zero)
    )
    .map(drop)
}

pub(crate) fn window_size(raw: RawFd, rows: u16, cols: u16) -> Res<()> {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    refs!(
        libc::SYS_ioctl,
        fd(raw),
        libc::TIOCSWINSZ as usize,
        p(&size)
    )
    .map(drop)
}

/// Sets IFF_UP on `lo` of the present network namespace.
pub(crate) fn loopback_up() -> Res<()> {
    #[repr(C)]
    struct Request {
        name: [u8; 16],
        flags: u16,
        pad: [u8; 22],
    }
    let mut request = Request {
        name: *b"lo\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        flags: 0,
        pad: [0; 22],
    };
    let kind = (libc::SOCK_DGRAM | libc::SOCK_CLOEXEC) as usize;
    let socket = plain(libc::SYS_socket, [libc::AF_INET as usize, kind, 0, 0, 0, 0])?;
    let get = libc::SIOCGIFFLAGS as usize;
    let mut done = refs!(libc::SYS_ioctl, socket, get, pm(&mut request));
    if done.is_ok() {
        request.flags |= libc::IFF_UP as u16;
        done = refs!(
            libc::SYS_ioctl,
            socket,
            libc::SIOCSIFFLAGS as usize,
            p(&request)
        );
    }
    close(socket as RawFd);
    done.map(drop)
}

/// execve(2) with pointer arrays the parent prepared; returns only on failure.
///
/// # Safety
/// `argv` and `envp` must point to null-terminated arrays of pointers to C strings.
pub(crate) unsafe fn execve(
    path: &CStr,
    argv: *const *const libc::c_char,
    envp: *const *const libc::c_char,
) -> Errno {
    let args = [
        path.as_ptr() as usize,
        argv as usize,
        envp as usize,
        0,
        0,
        0,
    ];
    // SAFETY: path is a live C string, the caller vouches for the arrays.
    match unsafe { call(libc::SYS_execve, args) } {
        Ok(_) => Errno(0),
        Err(e) => e,
    }
}
