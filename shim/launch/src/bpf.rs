//! Owns the bpf(2) calls for a cgroup's device program, run by the parent.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const CGROUP_DEVICE_PROGRAM: u32 = 15;
const CGROUP_DEVICE_ATTACH: u32 = 6;
const ALLOW_MULTI: u32 = 2;
const REPLACE: u32 = 4;

/// One eBPF instruction.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    code: u8,
    /// Source in the high nibble, destination in the low one.
    registers: u8,
    offset: i16,
    value: i32,
}

// === impl Instruction ===

impl Instruction {
    const fn new(code: u8, to: u8, from: u8, offset: i16, value: i32) -> Self {
        Self {
            code,
            registers: from << 4 | to,
            offset,
            value,
        }
    }

    /// `to = *(u32 *)(from + offset)`
    pub const fn load(to: u8, from: u8, offset: i16) -> Self {
        Self::new(0x61, to, from, offset, 0)
    }

    /// 32-bit `to &= value`
    pub const fn and(to: u8, value: i32) -> Self {
        Self::new(0x54, to, 0, 0, value)
    }

    /// 32-bit `to >>= value`
    pub const fn shift_right(to: u8, value: i32) -> Self {
        Self::new(0x74, to, 0, 0, value)
    }

    /// 32-bit `to = from`
    pub const fn copy(to: u8, from: u8) -> Self {
        Self::new(0xbc, to, from, 0, 0)
    }

    /// `to = value`
    pub const fn set(to: u8, value: i32) -> Self {
        Self::new(0xb7, to, 0, 0, value)
    }

    /// Jump when the register is not `value`.
    pub const fn skip_unless(register: u8, value: i32) -> Self {
        Self::new(0x55, register, 0, 0, value)
    }

    /// Jump when the register is `value`.
    pub const fn skip_if(register: u8, value: i32) -> Self {
        Self::new(0x15, register, 0, 0, value)
    }

    pub const fn exit() -> Self {
        Self::new(0x95, 0, 0, 0, 0)
    }

    /// Sets the distance of a jump; other instructions stay as they are.
    pub fn jump_by(&mut self, offset: i16) {
        if self.code & 0x07 == 0x05 && self.code != 0x95 {
            self.offset = offset;
        }
    }
}

#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
    replace: u32,
    pad: [u32; 3],
}

/// The whole struct of current kernels: some write to its last field whatever size they are told.
#[repr(C)]
#[derive(Default)]
struct Query {
    target: u32,
    kind: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    pad: u32,
    program_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// Attaches a program to a cgroup, replacing the one that is there.
pub fn attach_device_program(cgroup: BorrowedFd<'_>, program: &[Instruction]) -> io::Result<()> {
    let target = cgroup.as_raw_fd() as u32;
    let old = attached(target)?;
    let new = load(program)?;
    let mut attach = Attach {
        target,
        program: new.as_raw_fd() as u32,
        kind: CGROUP_DEVICE_ATTACH,
        flags: ALLOW_MULTI,
        ..Attach::default()
    };
    // Exactly one, and ours to see: replaced in one step. Else the new one is added, and as all of
    // several must allow, the rules can only get narrower until the old ones are detached.
    if let [Some(one)] = old.as_slice() {
        attach.flags |= REPLACE;
        attach.replace = one.as_raw_fd() as u32;
        return bpf(8, &mut attach).map(drop);
    }
    bpf(8, &mut attach)?;
    for program in old.into_iter().flatten() {
        let mut detach = Attach {
            target,
            program: program.as_raw_fd() as u32,
            kind: CGROUP_DEVICE_ATTACH,
            ..Attach::default()
        };
        bpf(9, &mut detach)?;
    }
    Ok(())
}

/// Programs of a cgroup; `None` for one this process may not open.
fn attached(target: u32) -> io::Result<Vec<Option<OwnedFd>>> {
    let mut ids = [0u32; 64];
    let mut query = Query {
        target,
        kind: CGROUP_DEVICE_ATTACH,
        ids: ids.as_mut_ptr() as u64,
        count: ids.len() as u32,
        ..Query::default()
    };
    bpf(16, &mut query)?;
    let mut programs = Vec::new();
    for id in ids.into_iter().take_while(|id| *id != 0) {
        let mut by_id = [id, 0, 0, 0];
        match bpf(13, &mut by_id) {
            Ok(raw) => {
                // SAFETY: BPF_PROG_GET_FD_BY_ID returned this descriptor just now, nobody else has it.
                programs.push(Some(unsafe { OwnedFd::from_raw_fd(raw) }));
            }
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => programs.push(None),
            Err(e) => return Err(e),
        }
    }
    Ok(programs)
}

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    let mut load = Load {
        kind: CGROUP_DEVICE_PROGRAM,
        count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..Load::default()
    };
    let mut tries = 0;
    let raw = loop {
        match bpf(5, &mut load) {
            // The verifier was interrupted by a signal.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && tries < 30 => tries += 1,
            r => break r?,
        }
    };
    // SAFETY: BPF_PROG_LOAD returned this descriptor just now and nobody else holds it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

fn bpf<T>(command: i32, attr: &mut T) -> io::Result<i32> {
    let attr = std::ptr::from_mut(attr);
    // SAFETY: attr is a live, fully initialised bpf_attr variant of the given size; the addresses in
    // it belong to slices the callers in this file keep alive across the call.
    let ret = unsafe { libc::syscall(libc::SYS_bpf, command, attr, size_of::<T>()) };
    if ret < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(ret as i32)
    }
}
