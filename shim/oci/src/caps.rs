//! Owns capability names.

use crate::spec::Capabilities;
use corten_launch::Caps;

/// In the kernel's order: the index is the number.
pub const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// The five sets as masks; unknown names are left out with a warning.
pub(crate) fn sets(caps: Option<&Capabilities>, warnings: &mut Vec<String>) -> Caps {
    let Some(caps) = caps else {
        return Caps::default();
    };
    let mut unknown: Vec<String> = Vec::new();
    let mut mask = |names: &[String]| {
        let mut mask = 0u64;
        for name in names {
            match NAMES.iter().position(|n| n == name) {
                Some(n) => mask |= 1 << n,
                None if unknown.contains(name) => {}
                None => unknown.push(name.clone()),
            }
        }
        mask
    };
    let sets = Caps {
        bounding: mask(&caps.bounding),
        effective: mask(&caps.effective),
        permitted: mask(&caps.permitted),
        inheritable: mask(&caps.inheritable),
        ambient: mask(&caps.ambient),
    };
    if !unknown.is_empty() {
        warnings.push(format!(
            "ignoring unknown or unavailable capabilities: {}",
            unknown.join(" ")
        ));
    }
    sets
}
