//! Owns what the parent needs of its children beyond a launch and safe crates do not offer: signals of any number
//! through a pidfd, a look at exited children, and giving heap back to the system.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Sends `signal` (real-time ones too, 0 only probes) to the process behind `pidfd`; ESRCH once it is gone.
pub fn signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let info: *const libc::siginfo_t = std::ptr::null();
    // SAFETY: the descriptor is borrowed for the call, and a null siginfo means "as kill(2)".
    let ret = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            info,
            0,
        )
    };
    if ret < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Number of the process behind `pidfd`, as this process sees it; ESRCH once it is gone.
pub fn pid_of(pidfd: BorrowedFd<'_>) -> io::Result<i32> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    info.lines()
        .find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok())
        .filter(|pid| *pid > 0)
        .ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))
}

/// Where the command line of this process lies in its memory; an empty range when the kernel does not say.
pub fn arguments() -> (usize, usize) {
    let Ok(stat) = std::fs::read_to_string("/proc/self/stat") else {
        return (0, 0);
    };
    // proc(5): after the name in parentheses come state as field 3, arg_start as 48 and arg_end as 49.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let mut numbers = fields.split_whitespace().skip(48 - 3).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(start)), Some(Ok(end))) if start < end => (start, end),
        _ => (0, 0),
    }
}

/// The user namespace that owns the namespace behind `ns`.
pub fn owner_of(ns: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    const NS_GET_USERNS: libc::Ioctl = 0xb701;
    // SAFETY: the descriptor is borrowed for the call, and this request takes no argument.
    let raw = unsafe { libc::ioctl(ns.as_raw_fd(), NS_GET_USERNS) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel returned this descriptor just now and nobody else holds it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Pid of some child that has exited and was not collected; it stays uncollected. `None` without one.
pub fn peek_child() -> io::Result<Option<i32>> {
    // SAFETY: siginfo_t is plain data, valid when zero.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: `info` is owned here and outlives the call.
    let ret = unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, options) };
    if ret < 0 {
        let e = io::Error::last_os_error();
        return match e.raw_os_error() {
            Some(libc::ECHILD) => Ok(None),
            _ => Err(e),
        };
    }
    // SAFETY: waitid filled the SIGCHLD variant, or left the zeroes above.
    let pid = unsafe { info.si_pid() };
    Ok((pid > 0).then_some(pid))
}

/// Returns free heap pages to the system, for a process that stays small for long after a burst.
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointer; glibc locks its arenas itself.
    unsafe {
        libc::malloc_trim(0)
    };
}
