//! Owns the default filter, equal in effect to containerd's: what is not listed fails with EPERM.
//!
//! What a container may call besides the plain list depends on the architecture, the kernel and its bounding set. Without
//! CAP_SYS_ADMIN, clone makes no namespaces; clone3, whose flags no filter can see, does not exist (ENOSYS), so that
//! libraries go on with clone. `socketcall` of 32-bit programs cannot be filtered by family.
//!
//! libseccomp takes several conditions on one argument of a call as alternatives only in separate rules, so a range of
//! families is one rule "less than" from AF_UNIX on (AF_UNSPEC below it makes no socket), and what follows its first
//! gap is one rule each.

use super::super::oci::{Seccomp, Syscall, SyscallArg};
use super::table;

const ALLOW: &str = "SCMP_ACT_ALLOW";
const ERRNO: &str = "SCMP_ACT_ERRNO";
const EQUAL: &str = "SCMP_CMP_EQ";
const LESS: &str = "SCMP_CMP_LT";
const MASKED: &str = "SCMP_CMP_MASKED_EQ";
const ENOSYS: u32 = 38;
/// CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET.
const NEW_NAMESPACES: u64 = 0x7e02_0000;

/// The filter for a bounding set on an architecture (Rust's name of it) and kernel.
pub(super) fn filter(bounding: &[String], arch: &str, kernel: (u32, u32)) -> Seccomp {
    let mut syscalls = vec![allow(table::ALWAYS)];
    syscalls.extend(sockets());
    let domains = table::PERSONALITIES;
    syscalls.extend(domains.map(|domain| allow_if("personality", 0, EQUAL, domain)));
    if kernel >= table::TRACING_SINCE {
        syscalls.push(allow(table::TRACING));
    }
    let own = table::BY_ARCH
        .iter()
        .find(|(names, _)| names.contains(&arch));
    syscalls.extend(own.map(|(_, calls)| allow(calls)));
    let has = |capability: &str| bounding.iter().any(|c| c == capability);
    let brought = table::BY_CAPABILITY
        .iter()
        .filter(|(capability, _)| has(capability));
    syscalls.extend(brought.map(|(_, calls)| allow(calls)));
    if !has("CAP_SYS_ADMIN") {
        // s390x has the flags second.
        let flags = u32::from(arch == "s390x");
        syscalls.push(allow_if("clone", flags, MASKED, NEW_NAMESPACES));
        syscalls.push(Syscall {
            names: vec!["clone3".into()],
            action: ERRNO.into(),
            errno_ret: Some(ENOSYS),
            ..Syscall::default()
        });
    }
    Seccomp {
        default_action: ERRNO.into(),
        architectures: architectures(arch),
        syscalls,
        ..Seccomp::default()
    }
}

/// The rules of `socket`.
fn sockets() -> Vec<Syscall> {
    let families: Vec<u64> = table::families().collect();
    let run = families
        .windows(2)
        .take_while(|pair| pair[0] + 1 == pair[1]);
    let run = run.count() + 1;
    let range = allow_if("socket", 0, LESS, families[run - 1] + 1);
    let single = families[run..].iter();
    let single = single.map(|&family| allow_if("socket", 0, EQUAL, family));
    std::iter::once(range).chain(single).collect()
}

fn allow(calls: &str) -> Syscall {
    Syscall {
        names: calls.split_whitespace().map(str::to_owned).collect(),
        action: ALLOW.into(),
        ..Syscall::default()
    }
}

/// `value_two` of a masked comparison is 0: none of the bits.
fn allow_if(call: &str, index: u32, op: &str, value: u64) -> Syscall {
    Syscall {
        args: vec![SyscallArg {
            index,
            value,
            op: op.into(),
            ..SyscallArg::default()
        }],
        ..allow(call)
    }
}

/// The architecture and those whose programs it runs too.
fn architectures(arch: &str) -> Vec<String> {
    let names: &[&str] = match arch {
        "x86_64" => &["X86_64", "X86", "X32"],
        "aarch64" => &["ARM", "AARCH64"],
        "s390x" => &["S390", "S390X"],
        "riscv64" => &["RISCV64"],
        "loongarch64" => &["LOONGARCH64"],
        "mips64" if cfg!(target_endian = "big") => &["MIPS", "MIPS64", "MIPS64N32"],
        "mips64" => &["MIPSEL", "MIPSEL64", "MIPSEL64N32"],
        _ => &[],
    };
    names
        .iter()
        .map(|name| format!("SCMP_ARCH_{name}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usual(extra: &[&str]) -> Seccomp {
        let mut bounding = super::super::super::defaults::CAPABILITIES
            .map(String::from)
            .to_vec();
        bounding.extend(extra.iter().map(|&c| c.to_owned()));
        filter(&bounding, "x86_64", (6, 12))
    }

    /// What the rules say of a call: allowed without condition, with conditions, or not.
    fn verdict(filter: &Seccomp, call: &str) -> (bool, Vec<(u32, u64, String)>) {
        let rules = filter
            .syscalls
            .iter()
            .filter(|rule| rule.names.iter().any(|n| n == call));
        let (mut plain, mut conditions) = (false, Vec::new());
        for rule in rules.filter(|rule| rule.action == ALLOW) {
            plain |= rule.args.is_empty();
            conditions.extend(rule.args.iter().map(|a| (a.index, a.value, a.op.clone())));
        }
        (plain, conditions)
    }

    #[test]
    fn dangerous_calls_need_their_capability() {
        let filter = usual(&[]);
        for call in [
            "unshare",
            "mount",
            "bpf",
            "keyctl",
            "userfaultfd",
            "io_uring_setup",
            "setns",
            "reboot",
            "kexec_load",
            "init_module",
            "open_by_handle_at",
            "perf_event_open",
            "clone3",
        ] {
            assert_eq!(verdict(&filter, call), (false, vec![]), "{call}");
        }
        for call in ["read", "chroot", "ptrace", "arch_prctl", "uretprobe"] {
            assert!(verdict(&filter, call).0, "{call}");
        }
        let admin = usual(&["CAP_SYS_ADMIN", "CAP_BPF"]);
        for call in ["unshare", "mount", "bpf", "clone", "clone3", "setns"] {
            assert!(verdict(&admin, call).0, "{call}");
        }
        assert!(!verdict(&admin, "keyctl").0);
    }

    #[test]
    fn clone_makes_no_namespaces_and_clone3_does_not_exist() {
        let filter = usual(&[]);
        let want = (0, 0x7e02_0000, MASKED.to_owned());
        assert_eq!(verdict(&filter, "clone"), (false, vec![want]));
        let clone3 = filter.syscalls.last().unwrap();
        assert_eq!(
            (clone3.names[0].as_str(), clone3.errno_ret),
            ("clone3", Some(38))
        );
        let s390x = super::filter(&[], "s390x", (6, 1));
        assert_eq!(verdict(&s390x, "clone").1[0].0, 1);
    }

    #[test]
    fn sockets_of_unknown_families_do_not_exist() {
        let (plain, rules) = verdict(&usual(&[]), "socket");
        let allowed = |family: u64| {
            rules.iter().any(|(_, value, op)| match op.as_str() {
                LESS => family < *value,
                _ => family == *value,
            })
        };
        assert!(!plain);
        assert_eq!(rules.len(), 7);
        for family in 1..=45 {
            assert_eq!(allowed(family), ![38, 40].contains(&family), "{family}");
        }
        assert!(!allowed(46) && !allowed(u64::MAX));
    }

    #[test]
    fn old_kernels_are_not_traced() {
        let old = super::filter(&[], "x86_64", (4, 7));
        assert!(!verdict(&old, "ptrace").0);
        assert!(verdict(&super::filter(&[], "x86_64", (4, 8)), "ptrace").0);
        assert_eq!(
            old.architectures,
            ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
        );
    }
}
