//! Owns `linux.seccomp`: a profile becomes the bytes of a BPF program, kept in a cache by its text.
//!
//! libseccomp compiles; then a stub goes in front (runc's rule): system calls newer than any the
//! profile knows answer ENOSYS, not the default action, so that libraries fall back as they should.

use crate::process::Filter;
use crate::spec::{Seccomp, Syscall};
use crate::{Error, Result};
use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
};
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

const FLAG_LOG: u32 = 2;
const FLAG_SPEC_ALLOW: u32 = 4;
const FLAG_NEW_LISTENER: u32 = 8;
const FLAG_WAIT_KILLABLE: u32 = 32;
const NOTIFY: &str = "SCMP_ACT_NOTIFY";
/// Version of what is cached: raise it when compiling changes.
const CACHE_VERSION: u32 = 2;

/// Filter of a profile, from the cache folder when it is there.
pub(crate) fn filter(profile: &Seccomp, cache: Option<&Path>) -> Result<Filter> {
    let flags = flags(profile)? | listener(profile)?;
    let key = serde_json::to_vec(&(CACHE_VERSION, profile))
        .map_err(|e| Error::invalid(format!("seccomp profile: {e}")))?;
    let file = cache.map(|dir| cache_file(dir, &key));
    if let Some(program) = file.as_deref().and_then(|f| cached(f, &key)) {
        return Ok(Filter { program, flags });
    }
    let program = compile(profile)?;
    if let Some(file) = file {
        // Best effort: without the cache it is compiled again.
        let _ = store(&file, &key, &program);
    }
    Ok(Filter { program, flags })
}

fn cache_file(dir: &Path, key: &[u8]) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    dir.join(format!("seccomp-{:016x}", hasher.finish()))
}

/// Layout: length of the key, key, program. The key is compared, the hash only names the file.
fn cached(file: &Path, key: &[u8]) -> Option<Vec<u8>> {
    let bytes = std::fs::read(file).ok()?;
    let (len, rest) = bytes.split_first_chunk::<8>()?;
    let len = usize::try_from(u64::from_ne_bytes(*len)).ok()?;
    let (stored, program) = rest.split_at_checked(len)?;
    let whole = !program.is_empty() && program.len().is_multiple_of(8);
    (stored == key && whole).then(|| program.to_vec())
}

fn store(file: &Path, key: &[u8], program: &[u8]) -> std::io::Result<()> {
    let mut bytes = (key.len() as u64).to_ne_bytes().to_vec();
    bytes.extend_from_slice(key);
    bytes.extend_from_slice(program);
    let temporary = file.with_extension(format!("{}", std::process::id()));
    std::fs::write(&temporary, bytes)?;
    std::fs::rename(&temporary, file)
}

fn flags(profile: &Seccomp) -> Result<u32> {
    if profile.flags.is_empty() {
        return Ok(FLAG_SPEC_ALLOW);
    }
    let mut flags = 0;
    for name in &profile.flags {
        flags |= match name.as_str() {
            // One thread installs it: there is nothing to synchronise.
            "SECCOMP_FILTER_FLAG_TSYNC" => 0,
            // Only a listener's calls wait.
            "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" if notifies(profile) => FLAG_WAIT_KILLABLE,
            "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" => 0,
            "SECCOMP_FILTER_FLAG_LOG" => FLAG_LOG,
            "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => FLAG_SPEC_ALLOW,
            other => return Err(Error::invalid(format!("unknown seccomp flag {other:?}"))),
        };
    }
    Ok(flags)
}

fn notifies(profile: &Seccomp) -> bool {
    profile.syscalls.iter().any(|s| s.action == NOTIFY)
}

/// The flag for a listener, when there is somebody to listen.
fn listener(profile: &Seccomp) -> Result<u32> {
    let wrong = |what: &str| Err(Error::invalid(format!("seccomp: {what}")));
    let path = &profile.listener_path;
    if path.is_empty() && !profile.listener_metadata.is_empty() {
        return wrong("listenerMetadata without listenerPath");
    }
    if profile.default_action == NOTIFY {
        return wrong("SCMP_ACT_NOTIFY cannot be the default action");
    }
    if !notifies(profile) {
        return Ok(0);
    }
    if path.is_empty() {
        return wrong("SCMP_ACT_NOTIFY without listenerPath");
    }
    if path.contains('\0') {
        return wrong("NUL byte in listenerPath");
    }
    let mut names = profile.syscalls.iter().filter(|s| s.action == NOTIFY);
    // The listener's number is told by write(2), which nobody could answer before that.
    if names.any(|s| s.names.iter().any(|n| n == "write")) {
        return wrong("SCMP_ACT_NOTIFY cannot be used for the write system call");
    }
    Ok(FLAG_NEW_LISTENER)
}

fn compile(profile: &Seccomp) -> Result<Vec<u8>> {
    let fail = |what: &str, e: libseccomp::error::SeccompError| {
        Error::invalid(format!("seccomp: {what}: {e}"))
    };
    let default = action(&profile.default_action, profile.default_errno_ret)?;
    let mut ctx = ScmpFilterContext::new(default).map_err(|e| fail("new filter", e))?;
    ctx.set_ctl_nnp(false)
        .map_err(|e| fail("clear no_new_privs", e))?;
    // Binary tree instead of a list; an old library does without.
    let _ = ctx.set_ctl_optimize(2);
    let mut archs = vec![ScmpArch::native()];
    for name in &profile.architectures {
        let arch = arch(name)?;
        ctx.add_arch(arch).map_err(|e| fail(name, e))?;
        if !archs.contains(&arch) {
            archs.push(arch);
        }
    }
    for rule in &profile.syscalls {
        add(&mut ctx, rule, default)?;
    }
    let mut file = File::from(
        memfd_create("seccomp", MemfdFlags::CLOEXEC)
            .map_err(|e| Error::system("memfd for a seccomp program", e))?,
    );
    ctx.export_bpf(&mut file).map_err(|e| fail("export", e))?;
    let mut program = stub(profile, default, &archs);
    file.seek(SeekFrom::Start(0))
        .and_then(|_| file.read_to_end(&mut program))
        .map_err(|e| Error::system("read a seccomp program", e))?;
    Ok(program)
}

fn add(ctx: &mut ScmpFilterContext, rule: &Syscall, default: ScmpAction) -> Result<()> {
    let action = action(&rule.action, rule.errno_ret)?;
    if action == default {
        return Ok(());
    }
    let mut compares = Vec::with_capacity(rule.args.len());
    for arg in &rule.args {
        let op = match arg.op.as_str() {
            "SCMP_CMP_NE" => ScmpCompareOp::NotEqual,
            "SCMP_CMP_LT" => ScmpCompareOp::Less,
            "SCMP_CMP_LE" => ScmpCompareOp::LessOrEqual,
            "SCMP_CMP_EQ" => ScmpCompareOp::Equal,
            "SCMP_CMP_GE" => ScmpCompareOp::GreaterEqual,
            "SCMP_CMP_GT" => ScmpCompareOp::Greater,
            "SCMP_CMP_MASKED_EQ" => ScmpCompareOp::MaskedEqual(arg.value),
            other => {
                return Err(Error::invalid(format!(
                    "unknown seccomp operator {other:?}"
                )));
            }
        };
        if arg.index > 5 {
            return Err(Error::invalid(format!(
                "seccomp argument index {}",
                arg.index
            )));
        }
        let datum = if arg.op == "SCMP_CMP_MASKED_EQ" {
            arg.value_two
        } else {
            arg.value
        };
        compares.push((arg.index, ScmpArgCompare::new(arg.index, op, datum)));
    }
    // libseccomp takes one condition per argument: several on the same one are alternatives.
    let repeated = compares
        .iter()
        .enumerate()
        .any(|(n, (index, _))| compares.iter().skip(n + 1).any(|(other, _)| other == index));
    let groups: Vec<Vec<ScmpArgCompare>> = if repeated {
        compares.into_iter().map(|(_, c)| vec![c]).collect()
    } else {
        vec![compares.into_iter().map(|(_, c)| c).collect()]
    };
    for name in &rule.names {
        // A name this library does not know cannot be called by a number it knows.
        let Ok(call) = ScmpSyscall::from_name(name) else {
            continue;
        };
        for group in &groups {
            ctx.add_rule_conditional(action, call, group)
                .map_err(|e| Error::invalid(format!("seccomp: rule for {name}: {e}")))?;
        }
    }
    Ok(())
}

fn action(name: &str, errno: Option<u32>) -> Result<ScmpAction> {
    const EPERM: u32 = 1;
    let value = errno.unwrap_or(EPERM);
    let takes_value = matches!(name, "SCMP_ACT_ERRNO" | "SCMP_ACT_TRACE");
    if errno.is_some() && !takes_value {
        return Err(Error::invalid(format!(
            "seccomp action {name} takes no errnoRet"
        )));
    }
    Ok(match name {
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => ScmpAction::KillThread,
        "SCMP_ACT_KILL_PROCESS" => ScmpAction::KillProcess,
        "SCMP_ACT_TRAP" => ScmpAction::Trap,
        "SCMP_ACT_ERRNO" => ScmpAction::Errno(value as i32),
        "SCMP_ACT_TRACE" => ScmpAction::Trace(value as u16),
        "SCMP_ACT_LOG" => ScmpAction::Log,
        "SCMP_ACT_ALLOW" => ScmpAction::Allow,
        NOTIFY => ScmpAction::Notify,
        other => return Err(Error::invalid(format!("unknown seccomp action {other:?}"))),
    })
}

fn arch(name: &str) -> Result<ScmpArch> {
    Ok(match name {
        "SCMP_ARCH_NATIVE" => ScmpArch::native(),
        "SCMP_ARCH_X86" => ScmpArch::X86,
        "SCMP_ARCH_X86_64" => ScmpArch::X8664,
        "SCMP_ARCH_X32" => ScmpArch::X32,
        "SCMP_ARCH_ARM" => ScmpArch::Arm,
        "SCMP_ARCH_AARCH64" => ScmpArch::Aarch64,
        "SCMP_ARCH_MIPS" => ScmpArch::Mips,
        "SCMP_ARCH_MIPS64" => ScmpArch::Mips64,
        "SCMP_ARCH_MIPS64N32" => ScmpArch::Mips64N32,
        "SCMP_ARCH_MIPSEL" => ScmpArch::Mipsel,
        "SCMP_ARCH_MIPSEL64" => ScmpArch::Mipsel64,
        "SCMP_ARCH_MIPSEL64N32" => ScmpArch::Mipsel64N32,
        "SCMP_ARCH_PPC" => ScmpArch::Ppc,
        "SCMP_ARCH_PPC64" => ScmpArch::Ppc64,
        "SCMP_ARCH_PPC64LE" => ScmpArch::Ppc64Le,
        "SCMP_ARCH_S390" => ScmpArch::S390,
        "SCMP_ARCH_S390X" => ScmpArch::S390X,
        "SCMP_ARCH_PARISC" => ScmpArch::Parisc,
        "SCMP_ARCH_PARISC64" => ScmpArch::Parisc64,
        "SCMP_ARCH_RISCV64" => ScmpArch::Riscv64,
        other => {
            return Err(Error::invalid(format!(
                "unknown seccomp architecture {other:?}"
            )));
        }
    })
}

/// AUDIT_ARCH_* as the kernel reports it to filters.
fn audit(arch: ScmpArch) -> Option<u32> {
    Some(match arch {
        ScmpArch::X86 => 0x4000_0003,
        ScmpArch::X8664 => 0xc000_003e,
        ScmpArch::Arm => 0x4000_0028,
        ScmpArch::Aarch64 => 0xc000_00b7,
        ScmpArch::Ppc64Le => 0xc000_0015,
        ScmpArch::S390X => 0x8000_0016,
        ScmpArch::Riscv64 => 0xc000_00f3,
        _ => return None,
    })
}

/// The ENOSYS stub: for each architecture, numbers above the profile's highest get ENOSYS.
fn stub(profile: &Seccomp, default: ScmpAction, archs: &[ScmpArch]) -> Vec<u8> {
    const ENOSYS: i32 = 38;
    let lenient = matches!(
        default,
        ScmpAction::Allow | ScmpAction::Log | ScmpAction::Trace(_)
    );
    if lenient || default == ScmpAction::Errno(ENOSYS) {
        return Vec::new();
    }
    const LOAD: u16 = 0x20;
    const JEQ: u16 = 0x15;
    const JGE: u16 = 0x35;
    const JGT: u16 = 0x25;
    const RET: u16 = 0x06;
    const X32_BIT: u32 = 0x4000_0000;
    let mut program = Vec::new();
    let mut instruction = |code: u16, yes: u8, no: u8, k: u32| {
        program.extend_from_slice(&code.to_ne_bytes());
        program.extend_from_slice(&[yes, no]);
        program.extend_from_slice(&k.to_ne_bytes());
    };
    for arch in archs {
        let Some(token) = audit(*arch) else { continue };
        let numbers = profile
            .syscalls
            .iter()
            .flat_map(|s| &s.names)
            .filter_map(|name| {
                let call = ScmpSyscall::from_name_by_arch(name, *arch).ok()?;
                // Pseudo numbers are negative.
                u32::try_from(i32::from(call)).ok()
            });
        let Some(last) = numbers.max() else { continue };
        // Offset 4 is the architecture, 0 the number. x32 numbers have a bit of their own.
        instruction(LOAD, 0, 0, 4);
        if *arch == ScmpArch::X8664 {
            instruction(JEQ, 0, 4, token);
            instruction(LOAD, 0, 0, 0);
            instruction(JGE, 2, 0, X32_BIT);
        } else {
            instruction(JEQ, 0, 3, token);
            instruction(LOAD, 0, 0, 0);
        }
        instruction(JGT, 0, 1, last);
        instruction(RET, 0, 0, 0x0005_0000 | ENOSYS as u32);
    }
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile() -> Seccomp {
        Seccomp {
            default_action: "SCMP_ACT_ERRNO".into(),
            architectures: vec!["SCMP_ARCH_X86_64".into(), "SCMP_ARCH_X86".into()],
            syscalls: vec![Syscall {
                names: vec!["read".into(), "write".into(), "no_such_call".into()],
                action: "SCMP_ACT_ALLOW".into(),
                ..Syscall::default()
            }],
            ..Seccomp::default()
        }
    }

    #[test]
    fn compiles_and_caches() {
        let dir = tempfile::tempdir().expect("temp dir");
        let first = filter(&profile(), Some(dir.path())).expect("compiles");
        assert!(first.program.len() > 64 && first.program.len().is_multiple_of(8));
        assert_eq!(first.flags, FLAG_SPEC_ALLOW);
        assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 1);
        let again = filter(&profile(), Some(dir.path())).expect("cached");
        assert_eq!(first.program, again.program);
    }

    #[test]
    fn refuses_unknown_words() {
        let mut p = profile();
        p.default_action = "SCMP_ACT_MAYBE".into();
        assert!(compile(&p).is_err());
        let mut p = profile();
        p.flags = vec!["SECCOMP_FILTER_FLAG_X".into()];
        assert!(filter(&p, None).is_err());
    }

    /// Runs a filter as the kernel would, on a call without arguments.
    fn run(program: &[u8], arch: u32, nr: u32) -> u32 {
        let code: Vec<(u16, u8, u8, u32)> = program
            .chunks_exact(8)
            .map(|c| {
                let code = u16::from_ne_bytes([c[0], c[1]]);
                (
                    code,
                    c[2],
                    c[3],
                    u32::from_ne_bytes([c[4], c[5], c[6], c[7]]),
                )
            })
            .collect();
        let (mut a, mut at) = (0u32, 0usize);
        loop {
            let (op, yes, no, k) = code[at];
            at += 1;
            let mut jump = |hit: bool| at += usize::from(if hit { yes } else { no });
            match op {
                0x20 => a = [nr, arch].get(k as usize / 4).copied().unwrap_or(0),
                0x05 => at += k as usize,
                0x15 => jump(a == k),
                0x25 => jump(a > k),
                0x35 => jump(a >= k),
                0x45 => jump(a & k != 0),
                0x54 => a &= k,
                0x06 => return k,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn newer_calls_get_enosys() {
        const ALLOW: u32 = 0x7fff_0000;
        const ERRNO: u32 = 0x0005_0000;
        let mut p = profile();
        p.syscalls.push(Syscall {
            names: vec!["openat2".into()],
            action: "SCMP_ACT_ALLOW".into(),
            ..Syscall::default()
        });
        let program = compile(&p).expect("compiles");
        let (x86_64, x86, arm) = (0xc000_003e, 0x4000_0003, 0xc000_00b7);
        // read, mkdir, openat2, and the number after it.
        assert_eq!(run(&program, x86_64, 0), ALLOW);
        assert_eq!(run(&program, x86_64, 83), ERRNO | 1);
        assert_eq!(run(&program, x86_64, 437), ALLOW);
        assert_eq!(run(&program, x86_64, 438), ERRNO | 38);
        assert_eq!(run(&program, x86, 3), ALLOW);
        assert_eq!(run(&program, x86, 9999), ERRNO | 38);
        // An architecture the profile does not list is killed.
        assert_eq!(run(&program, arm, 0), 0);
        p.default_action = "SCMP_ACT_ALLOW".into();
        p.syscalls[0].action = "SCMP_ACT_ERRNO".into();
        assert_eq!(run(&compile(&p).expect("compiles"), x86_64, 9999), ALLOW);
    }
}
