//! The figures of cgroup version 2, under containerd's names.

use corten_protos::io::containerd::cgroups::v2::{IoEntry, Metrics};

use crate::figures::{Figure, Sample, Values, one};

const DEVICE: &[&str] = &["major", "minor"];

/// All of them.
#[expect(clippy::too_many_lines, reason = "a table")]
pub(crate) fn figures() -> Vec<Figure<Metrics>> {
    vec![
        one("pids_limit", "pids.max", |m| Some(m.pids.as_ref()?.limit)),
        one("pids_current", "pids.current", |m| {
            Some(m.pids.as_ref()?.current)
        }),
        one("cpu_usage_usec_microseconds", "cpu.stat usage_usec", |m| {
            Some(m.cpu.as_ref()?.usage_usec)
        }),
        one("cpu_user_usec_microseconds", "cpu.stat user_usec", |m| {
            Some(m.cpu.as_ref()?.user_usec)
        }),
        one(
            "cpu_system_usec_microseconds",
            "cpu.stat system_usec",
            |m| Some(m.cpu.as_ref()?.system_usec),
        ),
        one("cpu_nr_periods_total", "cpu.stat nr_periods", |m| {
            Some(m.cpu.as_ref()?.nr_periods)
        }),
        one("cpu_nr_throttled_total", "cpu.stat nr_throttled", |m| {
            Some(m.cpu.as_ref()?.nr_throttled)
        }),
        one(
            "cpu_throttled_usec_microseconds",
            "cpu.stat throttled_usec",
            |m| Some(m.cpu.as_ref()?.throttled_usec),
        ),
        one("memory_usage_bytes", "memory.current", |m| {
            Some(m.memory.as_ref()?.usage)
        }),
        one("memory_usage_limit_bytes", "memory.max", |m| {
            Some(m.memory.as_ref()?.usage_limit)
        }),
        one("memory_swap_usage_bytes", "memory.swap.current", |m| {
            Some(m.memory.as_ref()?.swap_usage)
        }),
        one("memory_swap_limit_bytes", "memory.swap.max", |m| {
            Some(m.memory.as_ref()?.swap_limit)
        }),
        one("memory_file_mapped_bytes", "memory.stat file_mapped", |m| {
            Some(m.memory.as_ref()?.file_mapped)
        }),
        one("memory_file_dirty_bytes", "memory.stat file_dirty", |m| {
            Some(m.memory.as_ref()?.file_dirty)
        }),
        one(
            "memory_file_writeback_bytes",
            "memory.stat file_writeback",
            |m| Some(m.memory.as_ref()?.file_writeback),
        ),
        one("memory_pgactivate_bytes", "memory.stat pgactivate", |m| {
            Some(m.memory.as_ref()?.pgactivate)
        }),
        one(
            "memory_pgdeactivate_bytes",
            "memory.stat pgdeactivate",
            |m| Some(m.memory.as_ref()?.pgdeactivate),
        ),
        one("memory_pgfault_bytes", "memory.stat pgfault", |m| {
            Some(m.memory.as_ref()?.pgfault)
        }),
        one("memory_pgmajfault_bytes", "memory.stat pgmajfault", |m| {
            Some(m.memory.as_ref()?.pgmajfault)
        }),
        one("memory_pglazyfree_bytes", "memory.stat pglazyfree", |m| {
            Some(m.memory.as_ref()?.pglazyfree)
        }),
        one("memory_pgrefill_bytes", "memory.stat pgrefill", |m| {
            Some(m.memory.as_ref()?.pgrefill)
        }),
        one("memory_pglazyfreed_bytes", "memory.stat pglazyfreed", |m| {
            Some(m.memory.as_ref()?.pglazyfreed)
        }),
        one("memory_pgscan_bytes", "memory.stat pgscan", |m| {
            Some(m.memory.as_ref()?.pgscan)
        }),
        one("memory_pgsteal_bytes", "memory.stat pgsteal", |m| {
            Some(m.memory.as_ref()?.pgsteal)
        }),
        one(
            "memory_inactive_anon_bytes",
            "memory.stat inactive_anon",
            |m| Some(m.memory.as_ref()?.inactive_anon),
        ),
        one("memory_active_anon_bytes", "memory.stat active_anon", |m| {
            Some(m.memory.as_ref()?.active_anon)
        }),
        one(
            "memory_inactive_file_bytes",
            "memory.stat inactive_file",
            |m| Some(m.memory.as_ref()?.inactive_file),
        ),
        one("memory_active_file_bytes", "memory.stat active_file", |m| {
            Some(m.memory.as_ref()?.active_file)
        }),
        one("memory_unevictable_bytes", "memory.stat unevictable", |m| {
            Some(m.memory.as_ref()?.unevictable)
        }),
        one("memory_anon_bytes", "memory.stat anon", |m| {
            Some(m.memory.as_ref()?.anon)
        }),
        one("memory_file_bytes", "memory.stat file", |m| {
            Some(m.memory.as_ref()?.file)
        }),
        one(
            "memory_kernel_stack_bytes",
            "memory.stat kernel_stack",
            |m| Some(m.memory.as_ref()?.kernel_stack),
        ),
        one("memory_slab_bytes", "memory.stat slab", |m| {
            Some(m.memory.as_ref()?.slab)
        }),
        one("memory_sock_bytes", "memory.stat sock", |m| {
            Some(m.memory.as_ref()?.sock)
        }),
        one("memory_shmem_bytes", "memory.stat shmem", |m| {
            Some(m.memory.as_ref()?.shmem)
        }),
        one("memory_anon_thp_bytes", "memory.stat anon_thp", |m| {
            Some(m.memory.as_ref()?.anon_thp)
        }),
        one(
            "memory_slab_reclaimable_bytes",
            "memory.stat slab_reclaimable",
            |m| Some(m.memory.as_ref()?.slab_reclaimable),
        ),
        one(
            "memory_slab_unreclaimable_bytes",
            "memory.stat slab_unreclaimable",
            |m| Some(m.memory.as_ref()?.slab_unreclaimable),
        ),
        one(
            "memory_workingset_refault_bytes",
            "memory.stat workingset_refault",
            |m| Some(m.memory.as_ref()?.workingset_refault),
        ),
        one(
            "memory_workingset_activate_bytes",
            "memory.stat workingset_activate",
            |m| Some(m.memory.as_ref()?.workingset_activate),
        ),
        one(
            "memory_workingset_nodereclaim_bytes",
            "memory.stat workingset_nodereclaim",
            |m| Some(m.memory.as_ref()?.workingset_nodereclaim),
        ),
        one(
            "memory_thp_fault_alloc_bytes",
            "memory.stat thp_fault_alloc",
            |m| Some(m.memory.as_ref()?.thp_fault_alloc),
        ),
        one(
            "memory_thp_collapse_alloc_bytes",
            "memory.stat thp_collapse_alloc",
            |m| Some(m.memory.as_ref()?.thp_collapse_alloc),
        ),
        one("memory_oom_total", "memory.events oom", |m| {
            Some(m.memory_events.as_ref()?.oom)
        }),
        Figure {
            name: "io_rbytes_bytes",
            source: "io.stat rbytes",
            labels: DEVICE,
            values: Values::Many(|m| devices(m, |e| e.rbytes)),
        },
        Figure {
            name: "io_wbytes_bytes",
            source: "io.stat wbytes",
            labels: DEVICE,
            values: Values::Many(|m| devices(m, |e| e.wbytes)),
        },
        Figure {
            name: "io_rios_total",
            source: "io.stat rios",
            labels: DEVICE,
            values: Values::Many(|m| devices(m, |e| e.rios)),
        },
        Figure {
            name: "io_wios_total",
            source: "io.stat wios",
            labels: DEVICE,
            values: Values::Many(|m| devices(m, |e| e.wios)),
        },
    ]
}

fn devices(m: &Metrics, value: impl Fn(&IoEntry) -> u64) -> Vec<Sample> {
    let all = m.io.as_ref().map(|io| io.usage.as_slice());
    all.unwrap_or_default()
        .iter()
        .map(|e| (vec![e.major.to_string(), e.minor.to_string()], value(e)))
        .collect()
}
