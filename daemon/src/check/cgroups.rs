//! cgroups: version, controllers, and whether they may be used.

use std::collections::BTreeSet;
use std::path::Path;

use corten_sys::mountinfo::{self, MountPoint};
use rustix::fs::Access;

use super::{Line, read};

/// What a container loses without each controller, by the names that both versions can be asked for.
const CONTROLLERS: [(&str, &str); 7] = [
    ("cpu", "CPU shares and quotas are refused"),
    ("cpuset", "containers cannot be pinned to CPUs"),
    (
        "memory",
        "memory limits are refused and OOM kills are not told apart",
    ),
    ("pids", "a fork bomb is not contained"),
    ("io", "block I/O limits are refused"),
    ("devices", "device rules do not apply"),
    ("freezer", "pause and resume fail"),
];

/// How the host mounts its hierarchies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// Version 2 alone.
    Unified,
    /// Version 1 with controllers, version 2 beside it.
    Hybrid,
    /// Version 1 alone.
    Legacy,
    None,
}

/// What the mounts say.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    layout: Layout,
    v1: BTreeSet<String>,
    v2: BTreeSet<String>,
    /// Where containers' cgroups would be made.
    mounts: Vec<String>,
    read_only: Vec<String>,
}

pub(super) fn lines() -> Vec<Line> {
    let mounts = mountinfo::all().unwrap_or_default();
    let found = found(&mounts, |dir| {
        read(Path::new(dir).join("cgroup.controllers"))
    });
    let mut lines = vec![version(&found)];
    if found.layout == Layout::None {
        return lines;
    }
    lines.push(controllers(&found));
    lines.push(writable(&found));
    if let Some(line) = swap(&found) {
        lines.push(line);
    }
    lines
}

fn found(mounts: &[MountPoint], v2_controllers: impl Fn(&str) -> Option<String>) -> Found {
    let mut f = Found {
        layout: Layout::None,
        v1: BTreeSet::new(),
        v2: BTreeSet::new(),
        mounts: Vec::new(),
        read_only: Vec::new(),
    };
    let mut unified = false;
    for m in mounts
        .iter()
        .filter(|m| m.kind == "cgroup" || m.kind == "cgroup2")
    {
        let path = m.path.to_string_lossy().into_owned();
        if m.kind == "cgroup2" {
            unified = true;
            let list = v2_controllers(&path).unwrap_or_default();
            f.v2.extend(list.split_whitespace().map(str::to_owned));
        } else {
            let names = m.super_options.split(',').filter(|o| is_controller(o));
            f.v1.extend(names.map(str::to_owned));
        }
        if m.options.split(',').any(|o| o == "ro") {
            f.read_only.push(path.clone());
        }
        f.mounts.push(path);
    }
    f.layout = match (unified, f.v1.is_empty()) {
        (true, true) => Layout::Unified,
        (true, false) => Layout::Hybrid,
        (false, false) => Layout::Legacy,
        (false, true) => Layout::None,
    };
    f
}

/// The other mount options of version 1 are `rw`, `name=systemd`, `xattr`, `clone_children`, `release_agent=`.
fn is_controller(option: &str) -> bool {
    !option.contains('=')
        && !matches!(
            option,
            "rw" | "ro" | "xattr" | "clone_children" | "noprefix"
        )
}

fn version(found: &Found) -> Line {
    let topic = "version";
    match found.layout {
        Layout::Unified => Line::ok(topic, "2 (unified)"),
        Layout::Hybrid => Line::ok(
            topic,
            "hybrid: the controllers of version 1, version 2 beside them",
        ),
        Layout::Legacy => Line::limited(
            topic,
            "1: no cgroup.kill and no freezer that works with signals",
        ),
        Layout::None => Line::fatal(
            topic,
            "no cgroup hierarchy is mounted: mount one at /sys/fs/cgroup",
        ),
    }
}

fn has(found: &Found, name: &str) -> bool {
    match name {
        "io" => found.v1.contains("blkio") || found.v2.contains("io"),
        // Version 2 has them without a controller: BPF programs and cgroup.freeze.
        "devices" | "freezer" => found.layout == Layout::Unified || found.v1.contains(name),
        _ => found.v1.contains(name) || found.v2.contains(name),
    }
}

fn controllers(found: &Found) -> Line {
    let topic = "controllers";
    let lost: Vec<String> = CONTROLLERS
        .iter()
        .filter(|(name, _)| !has(found, name))
        .map(|(name, consequence)| format!("no {name}: {consequence}"))
        .collect();
    let all: BTreeSet<&str> = found
        .v1
        .iter()
        .chain(&found.v2)
        .map(String::as_str)
        .collect();
    let all = all.into_iter().collect::<Vec<_>>().join(" ");
    if lost.is_empty() {
        Line::ok(topic, all)
    } else {
        Line::limited(topic, format!("{all}; {}", lost.join("; ")))
    }
}

fn writable(found: &Found) -> Line {
    let topic = "cgroup access";
    let closed: Vec<&str> = found
        .mounts
        .iter()
        .filter(|m| {
            found.read_only.contains(m)
                || rustix::fs::access(m.as_str(), Access::WRITE_OK | Access::EXEC_OK).is_err()
        })
        .map(String::as_str)
        .collect();
    if closed.is_empty() {
        Line::ok(topic, "cgroups can be made in every hierarchy")
    } else if closed.len() == found.mounts.len() {
        Line::fatal(
            topic,
            "no hierarchy is writable: a container has no cgroup to be in",
        )
    } else {
        Line::limited(
            topic,
            format!("not writable: {}: their limits fail", closed.join(", ")),
        )
    }
}

/// Version 1 counts swap only with `swapaccount=1` or a kernel that does so by itself.
fn swap(found: &Found) -> Option<Line> {
    if !found.v1.contains("memory") {
        return None;
    }
    let dir = found
        .mounts
        .iter()
        .find(|m| m.rsplit('/').next().is_some_and(|n| n.contains("memory")))?;
    let counted = Path::new(dir).join("memory.memsw.limit_in_bytes").exists();
    Some(if counted {
        Line::ok("swap limits", "memory.memsw is there")
    } else {
        Line::limited(
            "swap limits",
            "swap is not accounted (boot with swapaccount=1): its limits are ignored",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    fn mount(path: &str, kind: &str, options: &str, super_options: &str) -> MountPoint {
        MountPoint {
            id: 1,
            parent: 1,
            path: path.into(),
            kind: kind.into(),
            source: kind.into(),
            options: options.into(),
            super_options: super_options.into(),
            optional: String::new(),
        }
    }

    #[test]
    fn unified() {
        let mounts = [mount(
            "/sys/fs/cgroup",
            "cgroup2",
            "rw,nosuid",
            "rw,nsdelegate",
        )];
        let f = found(&mounts, |_| {
            Some("cpuset cpu io memory hugetlb pids rdma misc".into())
        });
        assert_eq!(f.layout, Layout::Unified);
        assert_eq!(controllers(&f).verdict, Verdict::Ok);
        assert!(swap(&f).is_none());
    }

    #[test]
    fn hybrid_and_legacy() {
        let v1 = [
            mount(
                "/sys/fs/cgroup/systemd",
                "cgroup",
                "rw",
                "rw,xattr,name=systemd",
            ),
            mount(
                "/sys/fs/cgroup/cpu,cpuacct",
                "cgroup",
                "rw",
                "rw,cpu,cpuacct",
            ),
            mount(
                "/sys/fs/cgroup/memory",
                "cgroup",
                "ro,relatime",
                "rw,memory",
            ),
        ];
        let f = found(&v1, |_| None);
        assert_eq!(f.layout, Layout::Legacy);
        assert_eq!(
            f.v1.iter().map(String::as_str).collect::<Vec<_>>(),
            ["cpu", "cpuacct", "memory"]
        );
        assert_eq!(f.read_only, ["/sys/fs/cgroup/memory"]);
        assert!(controllers(&f).text.contains("no pids: a fork bomb"));
        let mut both = v1.to_vec();
        both.push(mount("/sys/fs/cgroup/unified", "cgroup2", "rw", "rw"));
        let f = found(&both, |_| Some("hugetlb".into()));
        assert_eq!(f.layout, Layout::Hybrid);
        assert!(!has(&f, "devices") && f.v2.contains("hugetlb"));
    }

    #[test]
    fn a_host_without_cgroups_runs_nothing() {
        let f = found(&[mount("/", "ext4", "rw", "rw")], |_| None);
        assert_eq!(version(&f).verdict, Verdict::Fatal);
    }
}
