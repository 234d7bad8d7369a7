//! Privileges: who we are and which capabilities are missing.

use super::kernel::field;
use super::{Line, Verdict, read};

/// Capabilities by number (linux/capability.h), without the prefix.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What the daemon and its shims do with each, and what fails without it.
const NEEDED: [(&str, Verdict, &str); 14] = [
    ("SYS_ADMIN", Verdict::Fatal, "no mounts and no namespaces"),
    (
        "SETUID",
        Verdict::Fatal,
        "processes cannot become their container's user",
    ),
    (
        "SETGID",
        Verdict::Fatal,
        "processes cannot become their container's group",
    ),
    (
        "CHOWN",
        Verdict::Limited,
        "image files keep the daemon's owner",
    ),
    (
        "DAC_OVERRIDE",
        Verdict::Limited,
        "files of other users in an image cannot be unpacked",
    ),
    (
        "FOWNER",
        Verdict::Limited,
        "modes of other users' files cannot be set",
    ),
    (
        "FSETID",
        Verdict::Limited,
        "set-id bits are lost when an image is unpacked",
    ),
    (
        "SETFCAP",
        Verdict::Limited,
        "file capabilities of an image are lost",
    ),
    (
        "MKNOD",
        Verdict::Limited,
        "devices are bind mounted instead of made; whiteouts cannot be made",
    ),
    (
        "SETPCAP",
        Verdict::Limited,
        "containers keep the bounding set of the daemon",
    ),
    (
        "SYS_CHROOT",
        Verdict::Limited,
        "joining a mount namespace for exec fails",
    ),
    (
        "KILL",
        Verdict::Limited,
        "processes of other users cannot be signalled",
    ),
    (
        "NET_ADMIN",
        Verdict::Limited,
        "loopback and pod networks cannot be set up",
    ),
    (
        "SYS_RESOURCE",
        Verdict::Limited,
        "a lower oom_score_adj and higher rlimits are refused; they are clamped with a warning",
    ),
];

/// What containers get by default, of which the bounding set may hold back some.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

pub(super) fn lines() -> Vec<Line> {
    let status = read("/proc/self/status").unwrap_or_default();
    let set = |name: &str| field(&status, name).and_then(mask).unwrap_or(0);
    let mut lines = vec![user(&status)];
    lines.extend(capabilities(set("CapEff")));
    lines.push(bounding(set("CapBnd")));
    lines.push(no_new_privs(&status));
    lines.push(open_files(&read("/proc/self/limits").unwrap_or_default()));
    lines
}

/// `000001ffffffffff`.
fn mask(hex: &str) -> Option<u64> {
    u64::from_str_radix(hex, 16).ok()
}

fn holds(set: u64, name: &str) -> bool {
    NAMES
        .iter()
        .position(|n| *n == name)
        .is_some_and(|bit| set >> bit & 1 == 1)
}

fn user(status: &str) -> Line {
    let uid = field(status, "Uid")
        .and_then(|u| u.split_whitespace().nth(1))
        .unwrap_or("?");
    if uid == "0" {
        Line::ok("user", "root")
    } else {
        Line::limited(
            "user",
            format!("uid {uid}, not root: only what the capabilities below allow"),
        )
    }
}

fn capabilities(effective: u64) -> Vec<Line> {
    let mut lines: Vec<Line> = NEEDED
        .iter()
        .filter(|(name, _, _)| !holds(effective, name))
        .map(|(name, verdict, consequence)| Line {
            topic: "capabilities",
            verdict: *verdict,
            text: format!("CAP_{name} is missing: {consequence}"),
        })
        .collect();
    if lines.is_empty() {
        lines.push(Line::ok(
            "capabilities",
            "all that the daemon and its shims use",
        ));
    }
    lines
}

fn bounding(set: u64) -> Line {
    let topic = "bounding set";
    let lost: Vec<&str> = DEFAULT.into_iter().filter(|n| !holds(set, n)).collect();
    if lost.is_empty() {
        Line::ok(
            topic,
            "containers can get all capabilities of their default set",
        )
    } else {
        Line::limited(topic, format!("containers run without {}", lost.join(", ")))
    }
}

fn no_new_privs(status: &str) -> Line {
    if field(status, "NoNewPrivs") == Some("1") {
        Line::limited(
            "no_new_privs",
            "set on this process: set-uid programs in containers have no effect",
        )
    } else {
        Line::ok("no_new_privs", "not set: each container decides")
    }
}

fn open_files(limits: &str) -> Line {
    let topic = "open files";
    let numbers = limits
        .lines()
        .find_map(|l| l.strip_prefix("Max open files"));
    let hard = numbers
        .and_then(|n| n.split_whitespace().nth(1))
        .unwrap_or("?");
    match hard.parse::<u64>() {
        Ok(n) if n < 65536 => Line::limited(
            topic,
            format!("hard limit {n}: a busy daemon may run out; set LimitNOFILE"),
        ),
        _ => Line::ok(topic, format!("hard limit {hard}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_at_their_numbers() {
        for (name, bit) in [
            ("CHOWN", 0),
            ("SYS_ADMIN", 21),
            ("SYS_RESOURCE", 24),
            ("BPF", 39),
        ] {
            assert!(holds(1 << bit, name) && !holds(!(1 << bit), name), "{name}");
        }
        assert!(!holds(u64::MAX, "NO_SUCH"));
        for name in NEEDED.iter().map(|n| n.0).chain(DEFAULT) {
            assert!(NAMES.contains(&name), "{name}");
        }
    }

    #[test]
    fn a_missing_capability_has_a_consequence() {
        let lines = capabilities(mask("000001fffeffffff").unwrap());
        assert_eq!(lines.len(), 1);
        assert!(
            lines[0].text.starts_with("CAP_SYS_RESOURCE is missing: "),
            "{lines:?}"
        );
        assert_eq!(lines[0].verdict, Verdict::Limited);
        assert_eq!(
            capabilities(mask("1ffffffffff").unwrap())[0].verdict,
            Verdict::Ok
        );
        assert!(capabilities(0).iter().any(|l| l.verdict == Verdict::Fatal));
        assert_eq!(mask("zz"), None);
    }

    #[test]
    fn status_and_limits_parse() {
        let status = "Name:\tx\nUid:\t1000\t0\t1000\t1000\nNoNewPrivs:\t1\n";
        assert_eq!(user(status).verdict, Verdict::Ok);
        assert_eq!(no_new_privs(status).verdict, Verdict::Limited);
        assert_eq!(user("Uid:\t5\t5\t5\t5\n").verdict, Verdict::Limited);
        let limits =
            "Max open files            1024                 4096                 files     \n";
        assert!(open_files(limits).text.contains("4096"));
        assert_eq!(
            open_files("Max open files   unlimited unlimited files\n").verdict,
            Verdict::Ok
        );
        assert!(bounding(0).text.contains("AUDIT_WRITE"));
    }
}
