//! The figures of cgroup version 1, under containerd's names.

use corten_protos::io::containerd::cgroups::v1::{BlkIoEntry, BlkIoStat, HugetlbStat, Metrics};

use crate::figures::{Figure, Sample, Values, one};

const DEVICE: &[&str] = &["op", "device", "major", "minor"];

/// All of them.
#[expect(clippy::too_many_lines, reason = "a table")]
pub(crate) fn figures() -> Vec<Figure<Metrics>> {
    vec![
        one("pids_limit", "pids.max", |m| Some(m.pids.as_ref()?.limit)),
        one("pids_current", "pids.current", |m| {
            Some(m.pids.as_ref()?.current)
        }),
        one("cpu_total_nanoseconds", "cpuacct.usage", |m| {
            Some(m.cpu.as_ref()?.usage.as_ref()?.total)
        }),
        one("cpu_kernel_nanoseconds", "cpuacct.stat system", |m| {
            Some(m.cpu.as_ref()?.usage.as_ref()?.kernel)
        }),
        one("cpu_user_nanoseconds", "cpuacct.stat user", |m| {
            Some(m.cpu.as_ref()?.usage.as_ref()?.user)
        }),
        Figure {
            name: "per_cpu_nanoseconds",
            source: "cpuacct.usage_percpu",
            labels: &["cpu"],
            values: Values::Many(per_cpu),
        },
        one("cpu_throttle_periods_total", "cpu.stat nr_periods", |m| {
            Some(m.cpu.as_ref()?.throttling.as_ref()?.periods)
        }),
        one(
            "cpu_throttled_periods_total",
            "cpu.stat nr_throttled",
            |m| Some(m.cpu.as_ref()?.throttling.as_ref()?.throttled_periods),
        ),
        one(
            "cpu_throttled_time_nanoseconds",
            "cpu.stat throttled_time",
            |m| Some(m.cpu.as_ref()?.throttling.as_ref()?.throttled_time),
        ),
        one("memory_cache_bytes", "memory.stat cache", |m| {
            Some(m.memory.as_ref()?.cache)
        }),
        one("memory_rss_bytes", "memory.stat rss", |m| {
            Some(m.memory.as_ref()?.rss)
        }),
        one("memory_rss_huge_bytes", "memory.stat rss_huge", |m| {
            Some(m.memory.as_ref()?.rss_huge)
        }),
        one("memory_mapped_file_bytes", "memory.stat mapped_file", |m| {
            Some(m.memory.as_ref()?.mapped_file)
        }),
        one("memory_dirty_bytes", "memory.stat dirty", |m| {
            Some(m.memory.as_ref()?.dirty)
        }),
        one("memory_writeback_bytes", "memory.stat writeback", |m| {
            Some(m.memory.as_ref()?.writeback)
        }),
        one("memory_pgpgin_bytes", "memory.stat pgpgin", |m| {
            Some(m.memory.as_ref()?.pg_pg_in)
        }),
        one("memory_pgpgout_bytes", "memory.stat pgpgout", |m| {
            Some(m.memory.as_ref()?.pg_pg_out)
        }),
        one("memory_pgfault_bytes", "memory.stat pgfault", |m| {
            Some(m.memory.as_ref()?.pg_fault)
        }),
        one("memory_pgmajfault_bytes", "memory.stat pgmajfault", |m| {
            Some(m.memory.as_ref()?.pg_maj_fault)
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
        one(
            "memory_hierarchical_memory_limit_bytes",
            "memory.stat hierarchical_memory_limit",
            |m| Some(m.memory.as_ref()?.hierarchical_memory_limit),
        ),
        one(
            "memory_hierarchical_memsw_limit_bytes",
            "memory.stat hierarchical_memsw_limit",
            |m| Some(m.memory.as_ref()?.hierarchical_swap_limit),
        ),
        one("memory_total_cache_bytes", "memory.stat total_cache", |m| {
            Some(m.memory.as_ref()?.total_cache)
        }),
        one("memory_total_rss_bytes", "memory.stat total_rss", |m| {
            Some(m.memory.as_ref()?.total_rss)
        }),
        one(
            "memory_total_rss_huge_bytes",
            "memory.stat total_rss_huge",
            |m| Some(m.memory.as_ref()?.total_rss_huge),
        ),
        one(
            "memory_total_mapped_file_bytes",
            "memory.stat total_mapped_file",
            |m| Some(m.memory.as_ref()?.total_mapped_file),
        ),
        one("memory_total_dirty_bytes", "memory.stat total_dirty", |m| {
            Some(m.memory.as_ref()?.total_dirty)
        }),
        one(
            "memory_total_writeback_bytes",
            "memory.stat total_writeback",
            |m| Some(m.memory.as_ref()?.total_writeback),
        ),
        one(
            "memory_total_pgpgin_bytes",
            "memory.stat total_pgpgin",
            |m| Some(m.memory.as_ref()?.total_pg_pg_in),
        ),
        one(
            "memory_total_pgpgout_bytes",
            "memory.stat total_pgpgout",
            |m| Some(m.memory.as_ref()?.total_pg_pg_out),
        ),
        one(
            "memory_total_pgfault_bytes",
            "memory.stat total_pgfault",
            |m| Some(m.memory.as_ref()?.total_pg_fault),
        ),
        one(
            "memory_total_pgmajfault_bytes",
            "memory.stat total_pgmajfault",
            |m| Some(m.memory.as_ref()?.total_pg_maj_fault),
        ),
        one(
            "memory_total_inactive_anon_bytes",
            "memory.stat total_inactive_anon",
            |m| Some(m.memory.as_ref()?.total_inactive_anon),
        ),
        one(
            "memory_total_active_anon_bytes",
            "memory.stat total_active_anon",
            |m| Some(m.memory.as_ref()?.total_active_anon),
        ),
        one(
            "memory_total_inactive_file_bytes",
            "memory.stat total_inactive_file",
            |m| Some(m.memory.as_ref()?.total_inactive_file),
        ),
        one(
            "memory_total_active_file_bytes",
            "memory.stat total_active_file",
            |m| Some(m.memory.as_ref()?.total_active_file),
        ),
        one(
            "memory_total_unevictable_bytes",
            "memory.stat total_unevictable",
            |m| Some(m.memory.as_ref()?.total_unevictable),
        ),
        one("memory_usage_failcnt_total", "memory.failcnt", |m| {
            Some(m.memory.as_ref()?.usage.as_ref()?.failcnt)
        }),
        one("memory_usage_limit_bytes", "memory.limit_in_bytes", |m| {
            Some(m.memory.as_ref()?.usage.as_ref()?.limit)
        }),
        one("memory_usage_max_bytes", "memory.max_usage_in_bytes", |m| {
            Some(m.memory.as_ref()?.usage.as_ref()?.max)
        }),
        one("memory_usage_usage_bytes", "memory.usage_in_bytes", |m| {
            Some(m.memory.as_ref()?.usage.as_ref()?.usage)
        }),
        one("memory_swap_failcnt_total", "memory.memsw.failcnt", |m| {
            Some(m.memory.as_ref()?.swap.as_ref()?.failcnt)
        }),
        one(
            "memory_swap_limit_bytes",
            "memory.memsw.limit_in_bytes",
            |m| Some(m.memory.as_ref()?.swap.as_ref()?.limit),
        ),
        one(
            "memory_swap_max_bytes",
            "memory.memsw.max_usage_in_bytes",
            |m| Some(m.memory.as_ref()?.swap.as_ref()?.max),
        ),
        one(
            "memory_swap_usage_bytes",
            "memory.memsw.usage_in_bytes",
            |m| Some(m.memory.as_ref()?.swap.as_ref()?.usage),
        ),
        one("memory_kernel_failcnt_total", "memory.kmem.failcnt", |m| {
            Some(m.memory.as_ref()?.kernel.as_ref()?.failcnt)
        }),
        one(
            "memory_kernel_limit_bytes",
            "memory.kmem.limit_in_bytes",
            |m| Some(m.memory.as_ref()?.kernel.as_ref()?.limit),
        ),
        one(
            "memory_kernel_max_bytes",
            "memory.kmem.max_usage_in_bytes",
            |m| Some(m.memory.as_ref()?.kernel.as_ref()?.max),
        ),
        one(
            "memory_kernel_usage_bytes",
            "memory.kmem.usage_in_bytes",
            |m| Some(m.memory.as_ref()?.kernel.as_ref()?.usage),
        ),
        one(
            "memory_kerneltcp_failcnt_total",
            "memory.kmem.tcp.failcnt",
            |m| Some(m.memory.as_ref()?.kernel_tcp.as_ref()?.failcnt),
        ),
        one(
            "memory_kerneltcp_limit_bytes",
            "memory.kmem.tcp.limit_in_bytes",
            |m| Some(m.memory.as_ref()?.kernel_tcp.as_ref()?.limit),
        ),
        one(
            "memory_kerneltcp_max_bytes",
            "memory.kmem.tcp.max_usage_in_bytes",
            |m| Some(m.memory.as_ref()?.kernel_tcp.as_ref()?.max),
        ),
        one(
            "memory_kerneltcp_usage_bytes",
            "memory.kmem.tcp.usage_in_bytes",
            |m| Some(m.memory.as_ref()?.kernel_tcp.as_ref()?.usage),
        ),
        Figure {
            name: "hugetlb_usage_bytes",
            source: "hugetlb.*.usage_in_bytes",
            labels: &["page"],
            values: Values::Many(|m| pages(m, |p| p.usage)),
        },
        Figure {
            name: "hugetlb_failcnt_total",
            source: "hugetlb.*.failcnt",
            labels: &["page"],
            values: Values::Many(|m| pages(m, |p| p.failcnt)),
        },
        Figure {
            name: "hugetlb_max_bytes",
            source: "hugetlb.*.max_usage_in_bytes",
            labels: &["page"],
            values: Values::Many(|m| pages(m, |p| p.max)),
        },
        Figure {
            name: "blkio_io_merged_recursive_total",
            source: "blkio.io_merged_recursive",
            labels: DEVICE,
            values: Values::Many(|m| devices(m, |b| &b.io_merged_recursive)),
        },
        Figure {
            name: "blkio_io_queued_recursive_total",
            source: "blkio.io_queued_recursive",
            labels: DEVICE,
            values: Values::Many(|m| devices(m, |b| &b.io_queued_recursive)),
        },
        Figure {
            name: "blkio_io_service_bytes_recursive_bytes",
            source: "blkio.io_service_bytes_recursive",
            labels: DEVICE,
            values: Values::Many(|m| devices(m, |b| &b.io_service_bytes_recursive)),
        },
        Figure {
            name: "blkio_io_service_time_recursive_total",
            source: "blkio.io_service_time_recursive",
            labels: DEVICE,
            values: Values::Many(|m| devices(m, |b| &b.io_service_time_recursive)),
        },
        Figure {
            name: "blkio_io_serviced_recursive_total",
            source: "blkio.io_serviced_recursive",
            labels: DEVICE,
            values: Values::Many(|m| devices(m, |b| &b.io_serviced_recursive)),
        },
        Figure {
            name: "blkio_io_time_recursive_total",
            source: "blkio.time_recursive",
            labels: DEVICE,
            values: Values::Many(|m| devices(m, |b| &b.io_time_recursive)),
        },
        Figure {
            name: "blkio_sectors_recursive_total",
            source: "blkio.sectors_recursive",
            labels: DEVICE,
            values: Values::Many(|m| devices(m, |b| &b.sectors_recursive)),
        },
    ]
}

fn per_cpu(m: &Metrics) -> Vec<Sample> {
    let usage = m.cpu.as_ref().and_then(|c| c.usage.as_ref());
    let all = usage.map(|u| u.per_cpu.as_slice()).unwrap_or_default();
    all.iter()
        .enumerate()
        .map(|(cpu, time)| (vec![cpu.to_string()], *time))
        .collect()
}

fn pages(m: &Metrics, value: impl Fn(&HugetlbStat) -> u64) -> Vec<Sample> {
    m.hugetlb
        .iter()
        .map(|p| (vec![p.pagesize.clone()], value(p)))
        .collect()
}

fn devices(m: &Metrics, entries: impl Fn(&BlkIoStat) -> &Vec<BlkIoEntry>) -> Vec<Sample> {
    let labels = |e: &BlkIoEntry| {
        vec![
            e.op.clone(),
            e.device.clone(),
            e.major.to_string(),
            e.minor.to_string(),
        ]
    };
    let all = m.blkio.as_ref().map(entries);
    all.into_iter()
        .flatten()
        .map(|e| (labels(e), e.value))
        .collect()
}
