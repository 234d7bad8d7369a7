//! What a pod uses: its cgroup's CPU and memory, as containerd tells it of pods with a pause container.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use corten_core::{Any, Error, Result};
use corten_protos::any;
use corten_protos::io::containerd::cgroups::{v1, v2};
use corten_sys::mountinfo;

/// Of the kernel's times in `cpuacct.stat`: 1/100 s on every architecture of ours.
const TICK: u64 = 10_000_000;

/// Fills a message from the numbers of those names; `partly`: all that are named.
macro_rules! fill {
    ($numbers:expr, $message:ident { $($field:ident = $name:literal),* $(,)? }) => {{
        let numbers = &$numbers;
        let get = |name: &str| numbers.get(name).copied().unwrap_or(0);
        $message { $($field: get($name),)* }
    }};
    (partly $numbers:expr, $message:ident { $($field:ident = $name:literal),* $(,)? }) => {{
        let numbers = &$numbers;
        let get = |name: &str| numbers.get(name).copied().unwrap_or(0);
        $message { $($field: get($name),)* ..Default::default() }
    }};
}

/// Reads the cgroup `parent` of whichever hierarchy this host has. Blocks.
///
/// # Errors
/// NotFound: no such cgroup.
pub fn read(parent: &str) -> Result<Any> {
    let missing = || Error::not_found(format!("cgroup {parent:?}"));
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        let dir = below(Path::new("/sys/fs/cgroup"), parent);
        if !dir.is_dir() {
            return Err(missing());
        }
        return Ok(any::pack(&unified(&dir)));
    }
    let find = |controller: &str| {
        let dir = below(&hierarchy(controller)?, parent);
        dir.is_dir().then_some(dir)
    };
    let (cpu, memory) = (find("cpuacct"), find("memory"));
    if cpu.is_none() && memory.is_none() {
        return Err(missing());
    }
    Ok(any::pack(&v1::Metrics {
        cpu: cpu.map(|dir| cpu_of(&dir, find("cpu").as_deref())),
        memory: memory.as_deref().map(memory_of),
        memory_oom_control: memory.as_deref().map(|dir| {
            use v1::MemoryOomControl;
            let numbers = keyed(&dir.join("memory.oom_control"));
            fill!(numbers, MemoryOomControl {
                oom_kill_disable = "oom_kill_disable",
                under_oom = "under_oom",
                oom_kill = "oom_kill",
            })
        }),
        pids: find("pids").map(|dir| v1::PidsStat {
            current: number(&dir.join("pids.current")),
            limit: number(&dir.join("pids.max")),
        }),
        ..Default::default()
    }))
}

/// A path that the kubelet gave, which names no folder above.
fn below(root: &Path, parent: &str) -> PathBuf {
    let parts = parent.split('/').filter(|p| !matches!(*p, "" | "." | ".."));
    parts.fold(root.to_owned(), |path, part| path.join(part))
}

/// Where a version 1 hierarchy is mounted.
fn hierarchy(controller: &str) -> Option<PathBuf> {
    let mounts = mountinfo::all().ok()?;
    let has = |m: &&mountinfo::MountPoint| {
        m.kind == "cgroup" && m.super_options.split(',').any(|o| o == controller)
    };
    mounts.iter().find(has).map(|m| m.path.clone())
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// 0 for what is not there; no limit is the largest number.
fn number(path: &Path) -> u64 {
    match text(path).trim() {
        "max" => u64::MAX,
        n => n.parse().unwrap_or(0),
    }
}

/// Lines of a name and a number.
fn keyed(path: &Path) -> HashMap<String, u64> {
    let text = text(path);
    let pairs = text.lines().filter_map(|line| {
        let (name, value) = line.split_once(' ')?;
        Some((name.to_owned(), value.trim().parse().ok()?))
    });
    pairs.collect()
}

fn cpu_of(dir: &Path, limits: Option<&Path>) -> v1::CpuStat {
    use v1::Throttle;
    let times = keyed(&dir.join("cpuacct.stat"));
    let ticks = |name: &str| times.get(name).copied().unwrap_or(0).saturating_mul(TICK);
    let per_cpu = text(&dir.join("cpuacct.usage_percpu"));
    let throttled = keyed(&limits.unwrap_or(dir).join("cpu.stat"));
    v1::CpuStat {
        usage: Some(v1::CpuUsage {
            total: number(&dir.join("cpuacct.usage")),
            kernel: ticks("system"),
            user: ticks("user"),
            per_cpu: per_cpu
                .split_whitespace()
                .filter_map(|n| n.parse().ok())
                .collect(),
        }),
        throttling: Some(fill!(throttled, Throttle {
            periods = "nr_periods",
            throttled_periods = "nr_throttled",
            throttled_time = "throttled_time",
        })),
    }
}

fn memory_of(dir: &Path) -> v1::MemoryStat {
    use v1::MemoryStat;
    let numbers = keyed(&dir.join("memory.stat"));
    let entry = |infix: &str| {
        let file = |what: &str| dir.join(format!("memory.{infix}{what}"));
        file("usage_in_bytes").exists().then(|| v1::MemoryEntry {
            limit: number(&file("limit_in_bytes")),
            usage: number(&file("usage_in_bytes")),
            max: number(&file("max_usage_in_bytes")),
            failcnt: number(&file("failcnt")),
        })
    };
    MemoryStat {
        usage: entry(""),
        swap: entry("memsw."),
        kernel: entry("kmem."),
        kernel_tcp: entry("kmem.tcp."),
        ..fill!(partly numbers, MemoryStat {
            cache = "cache",
            rss = "rss",
            rss_huge = "rss_huge",
            mapped_file = "mapped_file",
            dirty = "dirty",
            writeback = "writeback",
            pg_pg_in = "pgpgin",
            pg_pg_out = "pgpgout",
            pg_fault = "pgfault",
            pg_maj_fault = "pgmajfault",
            inactive_anon = "inactive_anon",
            active_anon = "active_anon",
            inactive_file = "inactive_file",
            active_file = "active_file",
            unevictable = "unevictable",
            hierarchical_memory_limit = "hierarchical_memory_limit",
            hierarchical_swap_limit = "hierarchical_memsw_limit",
            total_cache = "total_cache",
            total_rss = "total_rss",
            total_rss_huge = "total_rss_huge",
            total_mapped_file = "total_mapped_file",
            total_dirty = "total_dirty",
            total_writeback = "total_writeback",
            total_pg_pg_in = "total_pgpgin",
            total_pg_pg_out = "total_pgpgout",
            total_pg_fault = "total_pgfault",
            total_pg_maj_fault = "total_pgmajfault",
            total_inactive_anon = "total_inactive_anon",
            total_active_anon = "total_active_anon",
            total_inactive_file = "total_inactive_file",
            total_active_file = "total_active_file",
            total_unevictable = "total_unevictable",
        })
    }
}

fn unified(dir: &Path) -> v2::Metrics {
    use v2::{CpuStat, MemoryEvents, MemoryStat};
    let (cpu, memory) = (
        keyed(&dir.join("cpu.stat")),
        keyed(&dir.join("memory.stat")),
    );
    let events = keyed(&dir.join("memory.events"));
    v2::Metrics {
        pids: Some(v2::PidsStat {
            current: number(&dir.join("pids.current")),
            limit: number(&dir.join("pids.max")),
        }),
        cpu: Some(fill!(partly cpu, CpuStat {
            usage_usec = "usage_usec",
            user_usec = "user_usec",
            system_usec = "system_usec",
            nr_periods = "nr_periods",
            nr_throttled = "nr_throttled",
            throttled_usec = "throttled_usec",
            nr_bursts = "nr_bursts",
            burst_usec = "burst_usec",
        })),
        memory: Some(MemoryStat {
            usage: number(&dir.join("memory.current")),
            usage_limit: number(&dir.join("memory.max")),
            swap_usage: number(&dir.join("memory.swap.current")),
            swap_limit: number(&dir.join("memory.swap.max")),
            max_usage: number(&dir.join("memory.peak")),
            swap_max_usage: number(&dir.join("memory.swap.peak")),
            ..fill!(partly memory, MemoryStat {
                anon = "anon",
                file = "file",
                kernel_stack = "kernel_stack",
                slab = "slab",
                sock = "sock",
                shmem = "shmem",
                file_mapped = "file_mapped",
                file_dirty = "file_dirty",
                file_writeback = "file_writeback",
                anon_thp = "anon_thp",
                inactive_anon = "inactive_anon",
                active_anon = "active_anon",
                inactive_file = "inactive_file",
                active_file = "active_file",
                unevictable = "unevictable",
                slab_reclaimable = "slab_reclaimable",
                slab_unreclaimable = "slab_unreclaimable",
                pgfault = "pgfault",
                pgmajfault = "pgmajfault",
            })
        }),
        memory_events: Some(fill!(events, MemoryEvents {
            low = "low",
            high = "high",
            max = "max",
            oom = "oom",
            oom_kill = "oom_kill",
            oom_group_kill = "oom_group_kill",
        })),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_both_versions_are_read() {
        let temp = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| std::fs::write(temp.path().join(name), text).unwrap();
        put("cpuacct.usage", "123\n");
        put("cpuacct.stat", "user 2\nsystem 3\n");
        put("memory.stat", "rss 5\ntotal_inactive_file 7\nanon 9\n");
        put("memory.usage_in_bytes", "4096\n");
        put("memory.current", "8192\n");
        put("memory.max", "max\n");
        put("cpu.stat", "usage_usec 11\nnr_throttled 2\n");
        let cpu = cpu_of(temp.path(), None);
        let usage = cpu.usage.unwrap();
        assert_eq!((usage.total, usage.user), (123, 2 * TICK));
        assert_eq!(cpu.throttling.unwrap().throttled_periods, 2);
        let memory = memory_of(temp.path());
        assert_eq!((memory.rss, memory.total_inactive_file), (5, 7));
        assert_eq!(memory.usage.unwrap().usage, 4096);
        assert!(memory.swap.is_none());
        let v2 = unified(temp.path());
        assert_eq!(v2.cpu.unwrap().usage_usec, 11);
        let memory = v2.memory.unwrap();
        assert_eq!(
            (memory.usage, memory.anon, memory.usage_limit),
            (8192, 9, u64::MAX)
        );
    }

    #[test]
    fn no_path_leaves_the_hierarchy() {
        let root = Path::new("/r");
        assert_eq!(below(root, "/a/../../b/./c"), Path::new("/r/a/b/c"));
        assert!(read("/no/such/cgroup-of-corten").is_err());
    }
}
