//! Owns the metrics message: the engine's numbers as `io.containerd.cgroups.v1.Metrics` or `v2.Metrics`.

use std::collections::BTreeMap;

use corten_oci::cgroup::{BlkioEntry, MemoryEntry, Pressure, PressureLine, Stats};
use corten_protos::any;
use corten_protos::google::protobuf::Any;
use corten_protos::io::containerd::cgroups::{v1, v2};

/// The message for the host's cgroup version.
pub(crate) fn metrics(stats: &Stats) -> Any {
    if stats.v2 {
        any::pack(&unified(stats))
    } else {
        any::pack(&legacy(stats))
    }
}

fn legacy(stats: &Stats) -> v1::Metrics {
    v1::Metrics {
        hugetlb: stats
            .hugetlb
            .iter()
            .map(|h| v1::HugetlbStat {
                usage: h.usage,
                max: h.max,
                failcnt: h.failcnt,
                pagesize: h.pagesize.clone(),
            })
            .collect(),
        pids: Some(v1::PidsStat {
            current: stats.pids.current,
            limit: stats.pids.limit,
        }),
        cpu: Some(v1::CpuStat {
            usage: Some(v1::CpuUsage {
                total: stats.cpu.usage_ns,
                kernel: stats.cpu.system_ns,
                user: stats.cpu.user_ns,
                per_cpu: stats.cpu.per_cpu_ns.clone(),
            }),
            throttling: Some(v1::Throttle {
                periods: stats.cpu.periods,
                throttled_periods: stats.cpu.throttled_periods,
                throttled_time: stats.cpu.throttled_ns,
            }),
        }),
        memory: Some(legacy_memory(stats)),
        blkio: Some(legacy_blkio(stats)),
        rdma: legacy_rdma(stats),
        network: Vec::new(),
        cgroup_stats: None,
        memory_oom_control: Some(v1::MemoryOomControl {
            oom_kill_disable: number(&stats.memory.oom_control, "oom_kill_disable"),
            under_oom: number(&stats.memory.oom_control, "under_oom"),
            oom_kill: number(&stats.memory.oom_control, "oom_kill"),
        }),
    }
}

/// Absent on hosts without the controller.
fn legacy_rdma(stats: &Stats) -> Option<v1::RdmaStat> {
    if stats.rdma_current.is_empty() && stats.rdma_max.is_empty() {
        return None;
    }
    let entry = |device, hca_handles, hca_objects| v1::RdmaEntry {
        device,
        hca_handles,
        hca_objects,
    };
    Some(v1::RdmaStat {
        current: rdma(&stats.rdma_current, entry),
        limit: rdma(&stats.rdma_max, entry),
    })
}

fn legacy_memory(stats: &Stats) -> v1::MemoryStat {
    let s = |key| number(&stats.memory.stat, key);
    let entry = |e: &MemoryEntry| {
        Some(v1::MemoryEntry {
            limit: e.limit,
            usage: e.usage,
            max: e.max,
            failcnt: e.failcnt,
        })
    };
    v1::MemoryStat {
        cache: s("cache"),
        rss: s("rss"),
        rss_huge: s("rss_huge"),
        mapped_file: s("mapped_file"),
        dirty: s("dirty"),
        writeback: s("writeback"),
        pg_pg_in: s("pgpgin"),
        pg_pg_out: s("pgpgout"),
        pg_fault: s("pgfault"),
        pg_maj_fault: s("pgmajfault"),
        inactive_anon: s("inactive_anon"),
        active_anon: s("active_anon"),
        inactive_file: s("inactive_file"),
        active_file: s("active_file"),
        unevictable: s("unevictable"),
        hierarchical_memory_limit: s("hierarchical_memory_limit"),
        hierarchical_swap_limit: s("hierarchical_memsw_limit"),
        total_cache: s("total_cache"),
        total_rss: s("total_rss"),
        total_rss_huge: s("total_rss_huge"),
        total_mapped_file: s("total_mapped_file"),
        total_dirty: s("total_dirty"),
        total_writeback: s("total_writeback"),
        total_pg_pg_in: s("total_pgpgin"),
        total_pg_pg_out: s("total_pgpgout"),
        total_pg_fault: s("total_pgfault"),
        total_pg_maj_fault: s("total_pgmajfault"),
        total_inactive_anon: s("total_inactive_anon"),
        total_active_anon: s("total_active_anon"),
        total_inactive_file: s("total_inactive_file"),
        total_active_file: s("total_active_file"),
        total_unevictable: s("total_unevictable"),
        usage: entry(&stats.memory.usage),
        swap: entry(&stats.memory.swap),
        kernel: entry(&stats.memory.kernel),
        kernel_tcp: entry(&stats.memory.kernel_tcp),
    }
}

fn legacy_blkio(stats: &Stats) -> v1::BlkIoStat {
    let list = |name: &str| -> Vec<v1::BlkIoEntry> {
        entries(stats, name)
            .iter()
            .map(|e| v1::BlkIoEntry {
                op: e.op.clone(),
                device: e.device.clone(),
                major: e.major,
                minor: e.minor,
                value: e.value,
            })
            .collect()
    };
    v1::BlkIoStat {
        io_service_bytes_recursive: list("io_service_bytes_recursive"),
        io_serviced_recursive: list("io_serviced_recursive"),
        io_queued_recursive: list("io_queued_recursive"),
        io_service_time_recursive: list("io_service_time_recursive"),
        io_wait_time_recursive: list("io_wait_time_recursive"),
        io_merged_recursive: list("io_merged_recursive"),
        io_time_recursive: list("io_time_recursive"),
        sectors_recursive: list("sectors_recursive"),
    }
}

fn unified(stats: &Stats) -> v2::Metrics {
    let events = |key| number(&stats.memory.events, key);
    v2::Metrics {
        pids: Some(v2::PidsStat {
            current: stats.pids.current,
            limit: stats.pids.limit,
        }),
        cpu: Some(unified_cpu(stats)),
        memory: Some(unified_memory(stats)),
        rdma: Some(v2::RdmaStat {
            current: rdma(&stats.rdma_current, |device, hca_handles, hca_objects| {
                v2::RdmaEntry {
                    device,
                    hca_handles,
                    hca_objects,
                }
            }),
            limit: rdma(&stats.rdma_max, |device, hca_handles, hca_objects| {
                v2::RdmaEntry {
                    device,
                    hca_handles,
                    hca_objects,
                }
            }),
        }),
        io: Some(v2::IoStat {
            usage: unified_io(stats),
            psi: stats.io_pressure.map(pressure),
        }),
        hugetlb: stats
            .hugetlb
            .iter()
            .map(|h| v2::HugeTlbStat {
                current: h.usage,
                max: h.max,
                pagesize: h.pagesize.clone(),
                failcnt: h.failcnt,
            })
            .collect(),
        memory_events: Some(v2::MemoryEvents {
            low: events("low"),
            high: events("high"),
            max: events("max"),
            oom: events("oom"),
            oom_kill: events("oom_kill"),
            oom_group_kill: events("oom_group_kill"),
        }),
        network: Vec::new(),
    }
}

fn unified_cpu(stats: &Stats) -> v2::CpuStat {
    let s = |key| number(&stats.cpu.stat, key);
    v2::CpuStat {
        usage_usec: s("usage_usec"),
        user_usec: s("user_usec"),
        system_usec: s("system_usec"),
        nr_periods: s("nr_periods"),
        nr_throttled: s("nr_throttled"),
        throttled_usec: s("throttled_usec"),
        psi: stats.cpu_pressure.map(pressure),
        nr_bursts: s("nr_bursts"),
        burst_usec: s("burst_usec"),
    }
}

fn unified_memory(stats: &Stats) -> v2::MemoryStat {
    let s = |key| number(&stats.memory.stat, key);
    v2::MemoryStat {
        anon: s("anon"),
        file: s("file"),
        kernel_stack: s("kernel_stack"),
        slab: s("slab"),
        sock: s("sock"),
        shmem: s("shmem"),
        file_mapped: s("file_mapped"),
        file_dirty: s("file_dirty"),
        file_writeback: s("file_writeback"),
        anon_thp: s("anon_thp"),
        inactive_anon: s("inactive_anon"),
        active_anon: s("active_anon"),
        inactive_file: s("inactive_file"),
        active_file: s("active_file"),
        unevictable: s("unevictable"),
        slab_reclaimable: s("slab_reclaimable"),
        slab_unreclaimable: s("slab_unreclaimable"),
        pgfault: s("pgfault"),
        pgmajfault: s("pgmajfault"),
        // Split by kind of page since kernel 5.9; the message knows the sum only.
        workingset_refault: s("workingset_refault")
            + s("workingset_refault_anon")
            + s("workingset_refault_file"),
        workingset_activate: s("workingset_activate")
            + s("workingset_activate_anon")
            + s("workingset_activate_file"),
        workingset_nodereclaim: s("workingset_nodereclaim"),
        pgrefill: s("pgrefill"),
        pgscan: s("pgscan"),
        pgsteal: s("pgsteal"),
        pgactivate: s("pgactivate"),
        pgdeactivate: s("pgdeactivate"),
        pglazyfree: s("pglazyfree"),
        pglazyfreed: s("pglazyfreed"),
        thp_fault_alloc: s("thp_fault_alloc"),
        thp_collapse_alloc: s("thp_collapse_alloc"),
        usage: stats.memory.usage.usage,
        usage_limit: stats.memory.usage.limit,
        swap_usage: stats.memory.swap.usage,
        swap_limit: stats.memory.swap.limit,
        max_usage: stats.memory.usage.max,
        swap_max_usage: stats.memory.swap.max,
        psi: stats.memory_pressure.map(pressure),
    }
}

fn pressure(p: Pressure) -> v2::PsiStats {
    let line = |l: PressureLine| v2::PsiData {
        avg10: l.avg10,
        avg60: l.avg60,
        avg300: l.avg300,
        total: l.total,
    };
    v2::PsiStats {
        some: p.some.map(line),
        full: p.full.map(line),
    }
}

/// v2 has a line per device; the engine keeps an entry per number.
fn unified_io(stats: &Stats) -> Vec<v2::IoEntry> {
    let mut devices: BTreeMap<(u64, u64), v2::IoEntry> = BTreeMap::new();
    for entry in entries(stats, "io_service_bytes_recursive")
        .iter()
        .chain(entries(stats, "io_serviced_recursive"))
    {
        let device = devices
            .entry((entry.major, entry.minor))
            .or_insert_with(|| v2::IoEntry {
                major: entry.major,
                minor: entry.minor,
                ..v2::IoEntry::default()
            });
        match entry.op.as_str() {
            "rbytes" => device.rbytes = entry.value,
            "wbytes" => device.wbytes = entry.value,
            "rios" => device.rios = entry.value,
            "wios" => device.wios = entry.value,
            _ => {}
        }
    }
    devices.into_values().collect()
}

fn entries<'a>(stats: &'a Stats, name: &str) -> &'a [BlkioEntry] {
    stats
        .blkio
        .iter()
        .find(|(list, _)| list == name)
        .map_or(&[], |(_, entries)| entries)
}

fn rdma<E>(map: &BTreeMap<String, (u32, u32)>, make: impl Fn(String, u32, u32) -> E) -> Vec<E> {
    map.iter()
        .map(|(device, (handles, objects))| make(device.clone(), *handles, *objects))
        .collect()
}

fn number(map: &BTreeMap<String, u64>, key: &str) -> u64 {
    map.get(key).copied().unwrap_or(0)
}
