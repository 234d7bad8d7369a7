//! Owns what specs depend on of the host: read once at start, given to everything else as a value, so that a test can
//! be any host.

use std::fs;
use std::path::Path;

use corten_core::{Context, Error, Kind, Result};
use corten_protos::runtime::v1::PodSandboxConfig;

use super::defaults::MASKED;

/// statfs(2)'s word for cgroup v2.
const CGROUP2_MAGIC: u64 = 0x6367_7270;

/// Facts of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Host {
    /// /sys/fs/cgroup is cgroup v2.
    pub unified_cgroups: bool,
    /// Swap can be limited.
    pub swap: bool,
    /// Huge pages can be limited.
    pub hugetlb: bool,
    /// AppArmor is on, and apparmor_parser is there to load profiles with.
    pub apparmor: bool,
    /// The kernel filters system calls.
    pub seccomp: bool,
    /// The daemon runs in a user namespace.
    pub in_user_ns: bool,
    /// The daemon's effective capabilities: what "all" of them are.
    pub capabilities: Vec<String>,
    /// containerd's default list of masked paths, with the throttle counters of this host's processors.
    pub masked_paths: Vec<String>,
    /// Major and minor version of the kernel.
    pub kernel: (u32, u32),
}

// === impl Host ===

impl Host {
    /// Looks at the host.
    ///
    /// # Errors
    /// procfs is not readable.
    pub fn probe() -> Result<Self> {
        let status = fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
        let unified = is_cgroup2(Path::new("/sys/fs/cgroup"));
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Ok(Self {
            unified_cgroups: unified,
            swap: swap(unified),
            hugetlb: hugetlb(unified),
            apparmor: apparmor(),
            seccomp: Path::new("/proc/sys/kernel/seccomp/actions_avail").exists(),
            in_user_ns: corten_sys::userns::running_in_user_ns(),
            capabilities: effective(&status),
            masked_paths: masked_paths(),
            kernel: version(&release),
        })
    }

    /// The kernel has mount_setattr(2), by which mounts are made read-only with all below them.
    pub fn mounts_trees_read_only(&self) -> bool {
        self.kernel >= (5, 12)
    }
}

/// What a pod is called: by its own name, or by the host's. It is a line of files and an entry of environments.
pub(super) fn name_of(pod: &PodSandboxConfig) -> Result<String> {
    match pod.hostname.as_str() {
        "" => hostname(),
        name if name.chars().any(char::is_control) => {
            Err(Error::invalid(format!("hostname {name:?}")))
        }
        name => Ok(name.to_owned()),
    }
}

/// The host's name.
pub(super) fn hostname() -> Result<String> {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").context("read the host's name")?;
    Ok(name.trim().to_owned())
}

/// What the daemon itself is worth to the OOM killer.
pub(super) fn oom_score_adj() -> Result<i64> {
    let text = fs::read_to_string("/proc/self/oom_score_adj")
        .context("could not get the daemon oom_score_adj")?;
    text.trim().parse().map_err(|e| {
        Error::new(
            Kind::Internal,
            format!("could not get the daemon oom_score_adj: {e}"),
        )
    })
}

fn is_cgroup2(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|stat| {
        #[allow(clippy::cast_sign_loss, reason = "a magic number")]
        let kind = stat.f_type as u64;
        kind & 0xffff_ffff == CGROUP2_MAGIC
    })
}

fn swap(unified: bool) -> bool {
    if !unified {
        return Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists();
    }
    // The root has no such file: ours does, wherever we are.
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"));
    own.is_some_and(|own| {
        Path::new("/sys/fs/cgroup")
            .join(own)
            .join("memory.swap.max")
            .exists()
    })
}

fn hugetlb(unified: bool) -> bool {
    if !unified {
        return Path::new("/sys/fs/cgroup/hugetlb").is_dir();
    }
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    controllers.split_whitespace().any(|name| name == "hugetlb")
}

/// containerd's question: not in a container, parser installed, module on.
fn apparmor() -> bool {
    Path::new("/sys/kernel/security/apparmor").exists()
        && std::env::var_os("container").is_none_or(|name| name.is_empty())
        && Path::new("/sbin/apparmor_parser").exists()
        && fs::read_to_string("/sys/module/apparmor/parameters/enabled")
            .is_ok_and(|on| on.starts_with('Y'))
}

fn effective(status: &str) -> Vec<String> {
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    super::caps::names(mask)
}

fn masked_paths() -> Vec<String> {
    let possible = fs::read_to_string("/sys/devices/system/cpu/possible").unwrap_or_default();
    let throttled = cpus(possible.trim())
        .into_iter()
        .map(|cpu| format!("/sys/devices/system/cpu/cpu{cpu}/thermal_throttle"))
        .filter(|path| Path::new(path).exists());
    MASKED
        .iter()
        .map(|&path| path.to_owned())
        .chain(throttled)
        .collect()
}

/// Numbers of a list like `0-3,8`; nothing of one that is not such a list.
fn cpus(list: &str) -> Vec<u32> {
    /// More than any machine has.
    const MOST: u32 = 1 << 16;
    let mut all = Vec::new();
    for range in list.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        match (first.parse::<u32>(), last.parse::<u32>()) {
            (Ok(first), Ok(last)) if first <= last && last < MOST => all.extend(first..=last),
            _ => return Vec::new(),
        }
    }
    all
}

fn version(release: &str) -> (u32, u32) {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|n| n.parse().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    (next(), next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_are_read_only_since_5_12() {
        for (kernel, want) in [((5, 11), false), ((5, 12), true), ((6, 0), true)] {
            let host = Host {
                kernel,
                ..Host::default()
            };
            assert_eq!(host.mounts_trees_read_only(), want, "{kernel:?}");
        }
    }

    #[test]
    fn lists_and_versions_are_read() {
        assert_eq!(cpus("0-2,5"), [0, 1, 2, 5]);
        assert!(cpus("").is_empty() && cpus("3-1").is_empty() && cpus("0-4294967295").is_empty());
        assert_eq!(version("6.12.3-arch1\n"), (6, 12));
        assert_eq!(version("rubbish"), (0, 0));
        assert_eq!(
            effective("CapInh:\t0\nCapEff:\t0000000000000021\n"),
            ["CAP_CHOWN", "CAP_KILL"]
        );
    }

    #[test]
    fn this_host_can_be_looked_at() {
        let host = Host::probe().unwrap();
        assert!(host.kernel.0 > 0);
        assert!(host.masked_paths.len() >= MASKED.len());
        assert!(!hostname().unwrap().is_empty());
        assert!(oom_score_adj().unwrap().abs() <= 1000);
        let named = |hostname: &str| {
            name_of(&PodSandboxConfig {
                hostname: hostname.into(),
                ..PodSandboxConfig::default()
            })
        };
        assert_eq!(named("").unwrap(), hostname().unwrap());
        assert_eq!(named("web").unwrap(), "web");
        assert!(named("web\nroot::0:0").is_err() && named("a\0").is_err());
    }
}
