//! Owns the system calls on keyrings, capabilities and filters, under the same rules as `sys.rs`.

use super::{Errno, Res, call, p, plain, pm};
use std::ffi::CStr;

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Default, Clone, Copy)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// A new session keyring. Like runc's, its user may search it: a process that changes its user finds the keys of the
/// session it was born into.
pub(crate) fn join_session_keyring(name: &CStr) -> Res<()> {
    const JOIN_SESSION_KEYRING: usize = 1;
    const SETPERM: usize = 5;
    /// All for the possessor; view, read, search and link for the user.
    const PERMISSIONS: usize = 0x3f1b_0000;
    let id = refs!(libc::SYS_keyctl, JOIN_SESSION_KEYRING, p(name))?;
    // Somebody else's keyring of that name keeps what it has.
    let _ = plain(libc::SYS_keyctl, [SETPERM, id, PERMISSIONS, 0, 0, 0]);
    Ok(())
}

const CAP_VERSION_3: u32 = 0x2008_0522;

/// Permitted set of this thread.
pub(crate) fn cap_permitted() -> Res<u64> {
    let mut header = CapHeader {
        version: CAP_VERSION_3,
        pid: 0,
    };
    let mut data = [CapData::default(); 2];
    refs!(libc::SYS_capget, pm(&mut header), pm(&mut data))?;
    Ok(u64::from(data[0].permitted) | u64::from(data[1].permitted) << 32)
}

pub(crate) fn capset(effective: u64, permitted: u64, inheritable: u64) -> Res<()> {
    let mut header = CapHeader {
        version: CAP_VERSION_3,
        pid: 0,
    };
    let half = |shift: u32| CapData {
        effective: (effective >> shift) as u32,
        permitted: (permitted >> shift) as u32,
        inheritable: (inheritable >> shift) as u32,
    };
    let data = [half(0), half(32)];
    refs!(libc::SYS_capset, pm(&mut header), p(&data)).map(drop)
}

/// Installs a filter given as the bytes of an array of `struct sock_filter`; the listener's number when `flags` ask
/// for one, else 0.
pub(crate) fn seccomp(program: &[u8], flags: u32) -> Res<i32> {
    #[repr(C)]
    struct Program {
        len: u16,
        filter: usize,
    }
    let Ok(len) = u16::try_from(program.len() / 8) else {
        return Err(Errno(libc::EINVAL));
    };
    let program = Program {
        len,
        filter: p(program),
    };
    const SET_MODE_FILTER: usize = 1;
    refs!(
        libc::SYS_seccomp,
        SET_MODE_FILTER,
        flags as usize,
        p(&program)
    )
    .map(|n| n as i32)
}
