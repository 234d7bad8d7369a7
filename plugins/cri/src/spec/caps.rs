//! Owns capabilities: which ones a container has, from what the CRI adds and drops.

use corten_protos::runtime::v1::Capability;

use super::oci::Capabilities;

/// Their names in the kernel's order.
const NAMES: [&str; 41] = [
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

const ALL: &str = "ALL";

/// Names of the capabilities in the kernel's mask.
pub(super) fn names(mask: u64) -> Vec<String> {
    let set = |(bit, _): &(usize, &&str)| mask >> bit & 1 == 1;
    let named = NAMES.iter().enumerate().filter(set);
    named.map(|(_, &name)| name.to_owned()).collect()
}

/// Changes `to` as the container asks; `all` is what ALL stands for. First ALL added, then ALL dropped, then single
/// ones added, then single ones dropped; ambient ones last.
pub(super) fn apply(to: &mut Capabilities, asked: &Capability, all: &[String]) {
    // containerd takes ALL in capitals only, and other spellings of it as nothing.
    if asked.add_capabilities.iter().any(|c| c == ALL) {
        set(to, all);
    }
    if asked.drop_capabilities.iter().any(|c| c == ALL) {
        set(to, &[]);
    }
    for name in single(&asked.add_capabilities) {
        for list in [&mut to.bounding, &mut to.effective, &mut to.permitted] {
            add(list, &name);
        }
    }
    for name in single(&asked.drop_capabilities) {
        let inheritable = &mut to.inheritable;
        for list in [
            &mut to.bounding,
            &mut to.effective,
            &mut to.permitted,
            inheritable,
        ] {
            list.retain(|c| *c != name);
        }
    }
    to.ambient.clear();
    // containerd 2.4 ignores these. The kernel wants them permitted and inheritable too.
    for name in single(&asked.add_ambient_capabilities) {
        for list in [
            &mut to.bounding,
            &mut to.effective,
            &mut to.permitted,
            &mut to.inheritable,
            &mut to.ambient,
        ] {
            add(list, &name);
        }
    }
}

/// Exactly these, inheritable none but these.
pub(super) fn set(to: &mut Capabilities, names: &[String]) {
    to.bounding = names.to_vec();
    to.effective = names.to_vec();
    to.permitted = names.to_vec();
    to.inheritable.retain(|c| names.contains(c));
}

fn single(asked: &[String]) -> impl Iterator<Item = String> + '_ {
    let upper = asked.iter().map(|c| c.to_ascii_uppercase());
    upper.filter(|c| c != ALL).map(|c| format!("CAP_{c}"))
}

fn add(list: &mut Vec<String>, name: &str) {
    if !list.iter().any(|c| c == name) {
        list.push(name.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(add: &[&str], drop: &[&str], ambient: &[&str]) -> Capabilities {
        let mut caps = Capabilities::default();
        let some = ["CAP_CHOWN", "CAP_KILL"].map(String::from);
        set(&mut caps, &some);
        let list = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect();
        let asked = Capability {
            add_capabilities: list(add),
            drop_capabilities: list(drop),
            add_ambient_capabilities: list(ambient),
        };
        apply(&mut caps, &asked, &names(0b111));
        assert_eq!(caps.effective, caps.bounding);
        assert_eq!(caps.permitted, caps.bounding);
        caps
    }

    #[test]
    fn all_first_then_single_ones() {
        assert_eq!(check(&[], &[], &[]).bounding, ["CAP_CHOWN", "CAP_KILL"]);
        assert_eq!(
            check(&["ALL"], &["CHOWN"], &[]).bounding,
            ["CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH"]
        );
        assert_eq!(
            check(&["net_admin"], &["ALL"], &[]).bounding,
            ["CAP_NET_ADMIN"]
        );
        assert_eq!(check(&["KILL"], &["KILL"], &[]).bounding, ["CAP_CHOWN"]);
        // containerd: neither all nor a capability of that name.
        assert_eq!(
            check(&["all"], &[], &[]).bounding,
            ["CAP_CHOWN", "CAP_KILL"]
        );
    }

    #[test]
    fn nothing_is_inheritable_unless_asked() {
        let caps = check(&["NET_RAW"], &[], &[]);
        assert!(caps.inheritable.is_empty() && caps.ambient.is_empty());
        let caps = check(&[], &["ALL"], &["NET_RAW"]);
        assert_eq!(caps.ambient, ["CAP_NET_RAW"]);
        assert_eq!(
            (&caps.inheritable, &caps.bounding),
            (&caps.ambient, &caps.ambient)
        );
    }

    #[test]
    fn masks_have_names() {
        assert_eq!(names(0), [""; 0]);
        assert_eq!(names(u64::MAX).len(), 41);
        assert_eq!(names(1 << 40), ["CAP_CHECKPOINT_RESTORE"]);
    }
}
