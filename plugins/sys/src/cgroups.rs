//! Which cgroups this host has.

/// Where they are mounted.
const ROOT: &str = "/sys/fs/cgroup";

/// Whether everything is on version 2. A host with controllers of both versions, or with none, is not.
pub fn are_unified() -> bool {
    // CGROUP2_SUPER_MAGIC of linux/magic.h.
    rustix::fs::statfs(ROOT).is_ok_and(|s| s.f_type == 0x6367_7270)
}
