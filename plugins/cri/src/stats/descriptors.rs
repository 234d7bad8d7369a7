//! The metrics that there are: cAdvisor's names, so that what reads the kubelet's /metrics/cadvisor reads on.
//!
//! Every descriptor has samples, as cAdvisor's do: pressure is 0 on the first hierarchy, which does not measure it. Only
//! huge pages need a kernel that has some.

use corten_protos::runtime::v1::{MetricDescriptor, MetricType};

/// Labels of all metrics.
pub const BASE: [&str; 5] = ["pod", "namespace", "container", "id", "image"];
const NONE: &[&str] = &[];
const DEVICE: &[&str] = &["device"];
const INTERFACE: &[&str] = &["interface"];
const FAILURE: &[&str] = &["failure_type", "scope"];
const BLKIO: &[&str] = &["device", "major", "minor", "operation"];
const ULIMIT: &[&str] = &["ulimit"];
const PAGESIZE: &[&str] = &["pagesize"];

/// What a host must have for a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    Nothing,
    HugePages,
}

/// A metric.
#[derive(Debug)]
pub struct Descriptor {
    pub name: &'static str,
    pub help: &'static str,
    /// After [`BASE`].
    pub labels: &'static [&'static str],
    pub kind: MetricType,
    pub needs: Needs,
}

macro_rules! descriptors {
    ($($id:ident $kind:ident $needs:ident $labels:ident $name:literal $help:literal;)*) => {
        $(pub static $id: Descriptor = Descriptor {
            name: $name,
            help: $help,
            labels: $labels,
            kind: MetricType::$kind,
            needs: Needs::$needs,
        };)*
        /// All of them.
        pub static ALL: &[&Descriptor] = &[$(&$id),*];
    };
}

descriptors! {
    CPU_USER Counter Nothing NONE "container_cpu_user_seconds_total" "CPU time spent in user mode, in seconds.";
    CPU_SYSTEM Counter Nothing NONE "container_cpu_system_seconds_total" "CPU time spent in the kernel, in seconds.";
    CPU_USAGE Counter Nothing NONE "container_cpu_usage_seconds_total" "CPU time spent, in seconds.";
    CFS_PERIODS Counter Nothing NONE "container_cpu_cfs_periods_total" "Enforcement periods that passed.";
    CFS_THROTTLED_PERIODS Counter Nothing NONE "container_cpu_cfs_throttled_periods_total" "Enforcement periods in which the container was throttled.";
    CFS_THROTTLED_SECONDS Counter Nothing NONE "container_cpu_cfs_throttled_seconds_total" "Time for which the container was throttled, in seconds.";
    MEMORY_CACHE Gauge Nothing NONE "container_memory_cache" "Page cache, in bytes.";
    MEMORY_RSS Gauge Nothing NONE "container_memory_rss" "Anonymous memory, in bytes.";
    MEMORY_KERNEL Gauge Nothing NONE "container_memory_kernel_usage" "Memory of the kernel on behalf of the container, in bytes.";
    MEMORY_MAPPED Gauge Nothing NONE "container_memory_mapped_file" "Mapped files, in bytes.";
    MEMORY_SWAP Gauge Nothing NONE "container_memory_swap" "Swap in use, in bytes.";
    MEMORY_FAILCNT Counter Nothing NONE "container_memory_failcnt" "How often the memory limit was hit; 0 on the unified hierarchy.";
    MEMORY_USAGE Gauge Nothing NONE "container_memory_usage_bytes" "All memory in use, whenever it was touched last, in bytes.";
    MEMORY_MAX_USAGE Gauge Nothing NONE "container_memory_max_usage_bytes" "Most memory that was ever in use, in bytes.";
    MEMORY_WORKING_SET Gauge Nothing NONE "container_memory_working_set_bytes" "Memory in use that cannot be dropped at once, in bytes.";
    MEMORY_ACTIVE_FILE Gauge Nothing NONE "container_memory_total_active_file_bytes" "Active page cache of files, in bytes.";
    MEMORY_INACTIVE_FILE Gauge Nothing NONE "container_memory_total_inactive_file_bytes" "Inactive page cache of files, in bytes.";
    MEMORY_FAILURES Counter Nothing FAILURE "container_memory_failures_total" "Page faults.";
    OOM_EVENTS Counter Nothing NONE "container_oom_events_total" "Processes killed because memory ran out.";
    HUGETLB_USAGE Gauge HugePages PAGESIZE "container_hugetlb_usage_bytes" "Huge pages in use, in bytes.";
    HUGETLB_MAX_USAGE Gauge HugePages PAGESIZE "container_hugetlb_max_usage_bytes" "Most huge pages that were ever in use, in bytes.";
    PRESSURE_CPU_WAITING Counter Nothing NONE "container_pressure_cpu_waiting_seconds_total" "Time in which some task waited for CPU, in seconds.";
    PRESSURE_CPU_STALLED Counter Nothing NONE "container_pressure_cpu_stalled_seconds_total" "Time in which all tasks waited for CPU, in seconds.";
    PRESSURE_MEMORY_WAITING Counter Nothing NONE "container_pressure_memory_waiting_seconds_total" "Time in which some task waited for memory, in seconds.";
    PRESSURE_MEMORY_STALLED Counter Nothing NONE "container_pressure_memory_stalled_seconds_total" "Time in which all tasks waited for memory, in seconds.";
    PRESSURE_IO_WAITING Counter Nothing NONE "container_pressure_io_waiting_seconds_total" "Time in which some task waited for I/O, in seconds.";
    PRESSURE_IO_STALLED Counter Nothing NONE "container_pressure_io_stalled_seconds_total" "Time in which all tasks waited for I/O, in seconds.";
    NETWORK_RX_BYTES Counter Nothing INTERFACE "container_network_receive_bytes_total" "Bytes received.";
    NETWORK_RX_PACKETS Counter Nothing INTERFACE "container_network_receive_packets_total" "Packets received.";
    NETWORK_RX_DROPPED Counter Nothing INTERFACE "container_network_receive_packets_dropped_total" "Packets dropped when received.";
    NETWORK_RX_ERRORS Counter Nothing INTERFACE "container_network_receive_errors_total" "Errors when receiving.";
    NETWORK_TX_BYTES Counter Nothing INTERFACE "container_network_transmit_bytes_total" "Bytes sent.";
    NETWORK_TX_PACKETS Counter Nothing INTERFACE "container_network_transmit_packets_total" "Packets sent.";
    NETWORK_TX_DROPPED Counter Nothing INTERFACE "container_network_transmit_packets_dropped_total" "Packets dropped when sent.";
    NETWORK_TX_ERRORS Counter Nothing INTERFACE "container_network_transmit_errors_total" "Errors when sending.";
    FS_INODES_FREE Gauge Nothing DEVICE "container_fs_inodes_free" "Free inodes of the writable layer's file system.";
    FS_INODES_TOTAL Gauge Nothing DEVICE "container_fs_inodes_total" "Inodes of the writable layer's file system.";
    FS_LIMIT Gauge Nothing DEVICE "container_fs_limit_bytes" "Size of the writable layer's file system, in bytes.";
    FS_USAGE Gauge Nothing DEVICE "container_fs_usage_bytes" "The writable layer, in bytes.";
    FS_READS_BYTES Counter Nothing DEVICE "container_fs_reads_bytes_total" "Bytes read.";
    FS_READS Counter Nothing DEVICE "container_fs_reads_total" "Reads.";
    FS_WRITES_BYTES Counter Nothing DEVICE "container_fs_writes_bytes_total" "Bytes written.";
    FS_WRITES Counter Nothing DEVICE "container_fs_writes_total" "Writes.";
    BLKIO_USAGE Counter Nothing BLKIO "container_blkio_device_usage_total" "Bytes of I/O, by device and operation.";
    PROCESSES Gauge Nothing NONE "container_processes" "Processes.";
    FILE_DESCRIPTORS Gauge Nothing NONE "container_file_descriptors" "Open files.";
    SOCKETS Gauge Nothing NONE "container_sockets" "Open sockets.";
    THREADS_MAX Gauge Nothing NONE "container_threads_max" "Most threads allowed; 0 is no limit.";
    THREADS Gauge Nothing NONE "container_threads" "Threads.";
    ULIMITS_SOFT Gauge Nothing ULIMIT "container_ulimits_soft" "Soft limits of the first process.";
    LAST_SEEN Gauge Nothing NONE "container_last_seen" "When the container was looked at, in seconds since 1970.";
    START_TIME Gauge Nothing NONE "container_start_time_seconds" "When the container was started, in seconds since 1970.";
    SPEC_CPU_PERIOD Gauge Nothing NONE "container_spec_cpu_period" "CPU period given, in microseconds.";
    SPEC_CPU_QUOTA Gauge Nothing NONE "container_spec_cpu_quota" "CPU quota given, in microseconds per period; 0 is no limit.";
    SPEC_CPU_SHARES Gauge Nothing NONE "container_spec_cpu_shares" "CPU shares given.";
    SPEC_MEMORY_LIMIT Gauge Nothing NONE "container_spec_memory_limit_bytes" "Memory limit given; 0 is no limit.";
    SPEC_MEMORY_RESERVATION Gauge Nothing NONE "container_spec_memory_reservation_limit_bytes" "Memory reservation given; 0 is none.";
    SPEC_MEMORY_SWAP Gauge Nothing NONE "container_spec_memory_swap_limit_bytes" "Limit of memory and swap given; 0 is no limit.";
}

// === impl Descriptor ===

impl Descriptor {
    fn told(&self) -> MetricDescriptor {
        let labels = BASE.iter().chain(self.labels);
        MetricDescriptor {
            name: self.name.into(),
            help: self.help.into(),
            label_keys: labels.map(|l| (*l).to_owned()).collect(),
        }
    }
}

/// Those that this host can give. Blocks for a moment.
pub fn here() -> Vec<MetricDescriptor> {
    of(!page_sizes().is_empty())
}

fn of(huge_pages: bool) -> Vec<MetricDescriptor> {
    let can = |d: &&&Descriptor| d.needs == Needs::Nothing || huge_pages;
    ALL.iter().filter(can).map(|d| d.told()).collect()
}

/// The sizes of huge pages that the kernel has, as cgroups name them: `2MB`, `1GB`. Blocks for a moment.
pub fn page_sizes() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/sys/kernel/mm/hugepages") else {
        return Vec::new();
    };
    let mut out: Vec<_> = entries
        .filter_map(|e| page_size(e.ok()?.file_name().to_str()?))
        .collect();
    out.sort_unstable();
    out
}

fn page_size(folder: &str) -> Option<String> {
    let kib: u64 = folder
        .strip_prefix("hugepages-")?
        .strip_suffix("kB")?
        .parse()
        .ok()?;
    Some(match kib {
        k if k >= 1 << 20 => format!("{}GB", k >> 20),
        k if k >= 1 << 10 => format!("{}MB", k >> 10),
        k => format!("{k}KB"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_there_once_and_only_what_the_host_has() {
        let all = of(true);
        let mut names: Vec<_> = all.iter().map(|d| d.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!((all.len(), names.len()), (58, 58));
        assert_eq!(of(false).len(), 56);
        assert_eq!(page_size("hugepages-2048kB").unwrap(), "2MB");
        assert_eq!(page_size("hugepages-1048576kB").unwrap(), "1GB");
        assert_eq!(page_size("hugepages-64kB").unwrap(), "64KB");
        assert_eq!(page_size("x"), None);
        let blkio = all.iter().find(|d| d.name == BLKIO_USAGE.name).unwrap();
        assert_eq!(blkio.label_keys.len(), BASE.len() + 4);
    }
}
