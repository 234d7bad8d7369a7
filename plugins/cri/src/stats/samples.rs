//! From figures to samples. Each has as many label values as its descriptor has keys.

use corten_core::protos::io::containerd::cgroups::{v1, v2};
use corten_protos::runtime::v1::Metric;

use super::cgroup::Cgroup;
use super::descriptors::{self as d, Descriptor};
use super::limits::Limits;
use super::network::Counters;
use super::usage::{limited, value, working_set_v1, working_set_v2};

const NANOS: u64 = 1_000_000_000;
const MICROS: u64 = 1_000_000;

/// The samples of one pod or container.
#[derive(Debug)]
pub struct Samples {
    base: Vec<String>,
    /// Nanoseconds since 1970.
    at: i64,
    out: Vec<Metric>,
}

/// What is not the cgroup's.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Seconds since 1970.
    pub seen: u64,
    pub started: u64,
    pub processes: u64,
    pub files: u64,
    pub sockets: u64,
    pub open_files_limit: Option<u64>,
    /// Of the writable layer.
    pub used_bytes: u64,
    /// Of its file system.
    pub size_bytes: u64,
    pub inodes: u64,
    pub inodes_free: u64,
}

// === impl Samples ===

impl Samples {
    /// Samples at `at`, labelled with a pod's name and namespace, a container's name, an id, an image.
    pub fn new(at: i64, base: [&str; 5]) -> Self {
        Self {
            base: base.map(str::to_owned).to_vec(),
            at,
            out: Vec::new(),
        }
    }

    /// All samples.
    pub fn done(self) -> Vec<Metric> {
        self.out
    }

    fn add(&mut self, of: &Descriptor, n: u64) {
        self.add_of(of, &[], n);
    }

    fn add_of(&mut self, of: &Descriptor, labels: &[&str], n: u64) {
        debug_assert_eq!(of.labels.len(), labels.len(), "{}", of.name);
        let mut values = self.base.clone();
        values.extend(labels.iter().map(|l| (*l).to_owned()));
        self.out.push(Metric {
            name: of.name.into(),
            timestamp: self.at,
            metric_type: of.kind.into(),
            label_values: values,
            value: value(n),
        });
    }

    /// An interface of a pod.
    pub fn interface(&mut self, c: &Counters) {
        let name = [c.name.as_str()];
        for (of, n) in [
            (&d::NETWORK_RX_BYTES, c.rx_bytes),
            (&d::NETWORK_RX_PACKETS, c.rx_packets),
            (&d::NETWORK_RX_DROPPED, c.rx_dropped),
            (&d::NETWORK_RX_ERRORS, c.rx_errors),
            (&d::NETWORK_TX_BYTES, c.tx_bytes),
            (&d::NETWORK_TX_PACKETS, c.tx_packets),
            (&d::NETWORK_TX_DROPPED, c.tx_dropped),
            (&d::NETWORK_TX_ERRORS, c.tx_errors),
        ] {
            self.add_of(of, &name, n);
        }
    }

    /// The cgroup of a container; `device` names block devices by their numbers.
    pub fn cgroup(&mut self, cgroup: &Cgroup, device: &dyn Fn(u64, u64) -> String) {
        match cgroup {
            Cgroup::V1(m) => self.first(m, device),
            Cgroup::V2(m) => self.unified(m, device),
        }
    }

    fn first(&mut self, m: &v1::Metrics, device: &dyn Fn(u64, u64) -> String) {
        let cpu = m.cpu.clone().unwrap_or_default();
        let usage = cpu.usage.unwrap_or_default();
        let throttling = cpu.throttling.unwrap_or_default();
        self.add(&d::CPU_USER, usage.user / NANOS);
        self.add(&d::CPU_SYSTEM, usage.kernel / NANOS);
        self.add(&d::CPU_USAGE, usage.total / NANOS);
        self.add(&d::CFS_PERIODS, throttling.periods);
        self.add(&d::CFS_THROTTLED_PERIODS, throttling.throttled_periods);
        self.add(&d::CFS_THROTTLED_SECONDS, throttling.throttled_time / NANOS);
        let default = v1::MemoryStat::default();
        let memory = m.memory.as_ref().unwrap_or(&default);
        let now = memory.usage.unwrap_or_default();
        let both = memory.swap.unwrap_or_default();
        let kernel = memory.kernel.unwrap_or_default();
        for (of, n) in [
            (&d::MEMORY_CACHE, memory.total_cache),
            (&d::MEMORY_RSS, memory.total_rss),
            (&d::MEMORY_KERNEL, kernel.usage),
            (&d::MEMORY_MAPPED, memory.total_mapped_file),
            (&d::MEMORY_SWAP, both.usage.saturating_sub(now.usage)),
            (&d::MEMORY_FAILCNT, now.failcnt),
            (&d::MEMORY_USAGE, now.usage),
            (&d::MEMORY_MAX_USAGE, now.max),
            (&d::MEMORY_WORKING_SET, working_set_v1(memory)),
            (&d::MEMORY_ACTIVE_FILE, memory.total_active_file),
            (&d::MEMORY_INACTIVE_FILE, memory.total_inactive_file),
            (
                &d::OOM_EVENTS,
                m.memory_oom_control.as_ref().map_or(0, |o| o.oom_kill),
            ),
        ] {
            self.add(of, n);
        }
        self.failures(
            (memory.pg_fault, memory.pg_maj_fault),
            (memory.total_pg_fault, memory.total_pg_maj_fault),
        );
        for h in &m.hugetlb {
            // On hybrid hosts it is the limit that is told there.
            self.huge_pages(&h.pagesize, h.usage, limited(h.max).max(h.usage));
        }
        let pids = m.pids.unwrap_or_default();
        self.threads(pids.current, pids.limit);
        self.pressure(None, None, None);
        let blkio = m.blkio.clone().unwrap_or_default();
        for e in &blkio.io_service_bytes_recursive {
            self.io(device, (e.major, e.minor), &e.op, Some(e.value), None);
        }
        for e in &blkio.io_serviced_recursive {
            self.io(device, (e.major, e.minor), &e.op, None, Some(e.value));
        }
    }

    fn unified(&mut self, m: &v2::Metrics, device: &dyn Fn(u64, u64) -> String) {
        let cpu = m.cpu.unwrap_or_default();
        self.add(&d::CPU_USER, cpu.user_usec / MICROS);
        self.add(&d::CPU_SYSTEM, cpu.system_usec / MICROS);
        self.add(&d::CPU_USAGE, cpu.usage_usec / MICROS);
        self.add(&d::CFS_PERIODS, cpu.nr_periods);
        self.add(&d::CFS_THROTTLED_PERIODS, cpu.nr_throttled);
        self.add(&d::CFS_THROTTLED_SECONDS, cpu.throttled_usec / MICROS);
        let default = v2::MemoryStat::default();
        let memory = m.memory.as_ref().unwrap_or(&default);
        for (of, n) in [
            (&d::MEMORY_CACHE, memory.file),
            (&d::MEMORY_RSS, memory.anon),
            (
                &d::MEMORY_KERNEL,
                memory.kernel_stack + memory.slab + memory.sock,
            ),
            (&d::MEMORY_MAPPED, memory.file_mapped),
            (&d::MEMORY_SWAP, memory.swap_usage),
            (&d::MEMORY_FAILCNT, 0),
            (&d::MEMORY_USAGE, memory.usage),
            (&d::MEMORY_MAX_USAGE, memory.max_usage.max(memory.usage)),
            (&d::MEMORY_WORKING_SET, working_set_v2(memory)),
            (&d::MEMORY_ACTIVE_FILE, memory.active_file),
            (&d::MEMORY_INACTIVE_FILE, memory.inactive_file),
            (
                &d::OOM_EVENTS,
                m.memory_events.as_ref().map_or(0, |e| e.oom_kill),
            ),
        ] {
            self.add(of, n);
        }
        let faults = (memory.pgfault, memory.pgmajfault);
        self.failures(faults, faults);
        for h in &m.hugetlb {
            // The kernel does not tell the most.
            self.huge_pages(&h.pagesize, h.current, h.current);
        }
        let pids = m.pids.unwrap_or_default();
        self.threads(pids.current, pids.limit);
        let io = m.io.clone().unwrap_or_default();
        self.pressure(cpu.psi.as_ref(), memory.psi.as_ref(), io.psi.as_ref());
        for e in &io.usage {
            let of = (e.major, e.minor);
            self.io(device, of, "Read", Some(e.rbytes), Some(e.rios));
            self.io(device, of, "Write", Some(e.wbytes), Some(e.wios));
        }
    }

    fn failures(&mut self, own: (u64, u64), hierarchy: (u64, u64)) {
        for (scope, (minor, major)) in [("container", own), ("hierarchy", hierarchy)] {
            self.add_of(&d::MEMORY_FAILURES, &["pgfault", scope], minor);
            self.add_of(&d::MEMORY_FAILURES, &["pgmajfault", scope], major);
        }
    }

    fn threads(&mut self, current: u64, limit: u64) {
        self.add(&d::THREADS, current);
        self.add(&d::THREADS_MAX, limited(limit));
    }

    // 0 where it is not measured, as cAdvisor says it.
    fn pressure(
        &mut self,
        cpu: Option<&v2::PsiStats>,
        memory: Option<&v2::PsiStats>,
        io: Option<&v2::PsiStats>,
    ) {
        let seconds = |data: Option<&v2::PsiData>| data.map_or(0, |d| d.total / MICROS);
        for (psi, waiting, stalled) in [
            (cpu, &d::PRESSURE_CPU_WAITING, &d::PRESSURE_CPU_STALLED),
            (
                memory,
                &d::PRESSURE_MEMORY_WAITING,
                &d::PRESSURE_MEMORY_STALLED,
            ),
            (io, &d::PRESSURE_IO_WAITING, &d::PRESSURE_IO_STALLED),
        ] {
            self.add(waiting, seconds(psi.and_then(|p| p.some.as_ref())));
            self.add(stalled, seconds(psi.and_then(|p| p.full.as_ref())));
        }
    }

    fn huge_pages(&mut self, size: &str, used: u64, most: u64) {
        self.add_of(&d::HUGETLB_USAGE, &[size], used);
        self.add_of(&d::HUGETLB_MAX_USAGE, &[size], most);
    }

    /// Nothing is in use of the huge pages of these sizes: the cgroup knows none.
    pub fn no_huge_pages(&mut self, sizes: &[String]) {
        let told = |s: &Self, size| {
            let mut huge = s.out.iter().filter(|m| m.name == d::HUGETLB_USAGE.name);
            huge.any(|m| m.label_values.last() == Some(size))
        };
        for size in sizes {
            if !told(self, size) {
                self.huge_pages(size, 0, 0);
            }
        }
    }

    // Bytes, or how often, of an operation on a device.
    fn io(
        &mut self,
        device: &dyn Fn(u64, u64) -> String,
        (major, minor): (u64, u64),
        op: &str,
        bytes: Option<u64>,
        times: Option<u64>,
    ) {
        let name = device(major, minor);
        let (of_bytes, of_times) = match op.to_ascii_lowercase().as_str() {
            "read" => (Some(&d::FS_READS_BYTES), Some(&d::FS_READS)),
            "write" => (Some(&d::FS_WRITES_BYTES), Some(&d::FS_WRITES)),
            _ => (None, None),
        };
        if let Some(n) = bytes {
            let (major, minor) = (major.to_string(), minor.to_string());
            self.add_of(&d::BLKIO_USAGE, &[&name, &major, &minor, op], n);
        }
        for (of, n) in [(of_bytes, bytes), (of_times, times)] {
            if let (Some(of), Some(n)) = (of, n) {
                self.add_of(of, &[&name], n);
            }
        }
    }

    /// What is not the cgroup's.
    pub fn facts(&mut self, f: &Facts) {
        for (of, n) in [
            (&d::LAST_SEEN, f.seen),
            (&d::START_TIME, f.started),
            (&d::PROCESSES, f.processes),
            (&d::FILE_DESCRIPTORS, f.files),
            (&d::SOCKETS, f.sockets),
        ] {
            self.add(of, n);
        }
        if let Some(n) = f.open_files_limit {
            self.add_of(&d::ULIMITS_SOFT, &["max_open_files"], n);
        }
        for (of, n) in [
            (&d::FS_USAGE, f.used_bytes),
            (&d::FS_LIMIT, f.size_bytes),
            (&d::FS_INODES_TOTAL, f.inodes),
            (&d::FS_INODES_FREE, f.inodes_free),
        ] {
            self.add_of(of, &["/"], n);
        }
    }

    /// What the container was given.
    pub fn limits(&mut self, l: &Limits) {
        for (of, n) in [
            (&d::SPEC_CPU_PERIOD, l.cpu_period),
            (&d::SPEC_CPU_QUOTA, l.cpu_quota),
            (&d::SPEC_CPU_SHARES, l.cpu_shares),
            (&d::SPEC_MEMORY_LIMIT, l.memory),
            (&d::SPEC_MEMORY_RESERVATION, l.memory_reservation),
            (&d::SPEC_MEMORY_SWAP, l.memory_and_swap),
        ] {
            self.add(of, n);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::stats::descriptors::{ALL, BASE, Needs};

    const POD: [&str; 5] = ["pod", "ns", "c", "id", "image"];

    // Every descriptor has a sample, and every sample the labels of its descriptor.
    fn check(cgroup: &Cgroup, needs: &[Needs]) {
        let mut samples = Samples::new(1, POD);
        samples.cgroup(cgroup, &|a, b| format!("{a}:{b}"));
        samples.no_huge_pages(&["2MB".into()]);
        samples.facts(&Facts {
            open_files_limit: Some(1),
            ..Facts::default()
        });
        samples.limits(&Limits::of_spec(b""));
        samples.interface(&Counters::default());
        let samples = samples.done();
        let names: BTreeSet<&str> = samples.iter().map(|s| s.name.as_str()).collect();
        for of in ALL.iter().filter(|d| needs.contains(&d.needs)) {
            assert!(names.contains(of.name), "no sample of {}", of.name);
        }
        for s in &samples {
            let of = ALL.iter().find(|d| d.name == s.name).unwrap();
            assert_eq!(
                s.label_values.len(),
                BASE.len() + of.labels.len(),
                "{}",
                s.name
            );
            assert_eq!(s.label_values[..5], POD);
        }
    }

    #[test]
    fn both_hierarchies_have_everything() {
        let io = |op: &str| v1::BlkIoEntry {
            op: op.into(),
            ..v1::BlkIoEntry::default()
        };
        let first = v1::Metrics {
            blkio: Some(v1::BlkIoStat {
                io_service_bytes_recursive: vec![io("Read"), io("Write"), io("Total")],
                io_serviced_recursive: vec![io("Read"), io("Write")],
                ..v1::BlkIoStat::default()
            }),
            ..v1::Metrics::default()
        };
        check(
            &Cgroup::V1(Box::new(first)),
            &[Needs::Nothing, Needs::HugePages],
        );
        let unified = v2::Metrics {
            cpu: Some(v2::CpuStat {
                psi: Some(v2::PsiStats::default()),
                ..v2::CpuStat::default()
            }),
            memory: Some(v2::MemoryStat {
                psi: Some(v2::PsiStats::default()),
                ..v2::MemoryStat::default()
            }),
            io: Some(v2::IoStat {
                psi: Some(v2::PsiStats::default()),
                usage: vec![v2::IoEntry::default()],
            }),
            hugetlb: vec![v2::HugeTlbStat::default()],
            ..v2::Metrics::default()
        };
        let all = [Needs::Nothing, Needs::HugePages];
        check(&Cgroup::V2(Box::new(unified)), &all);
    }

    #[test]
    fn seconds_are_whole_and_no_limit_is_zero() {
        let m = v2::Metrics {
            cpu: Some(v2::CpuStat {
                usage_usec: 2_999_999,
                ..v2::CpuStat::default()
            }),
            pids: Some(v2::PidsStat {
                current: 3,
                limit: u64::MAX,
            }),
            ..v2::Metrics::default()
        };
        let mut samples = Samples::new(7, POD);
        samples.cgroup(&Cgroup::V2(Box::new(m)), &|_, _| String::new());
        let samples = samples.done();
        let of = |name: &str| samples.iter().find(|s| s.name == name).unwrap().value;
        assert_eq!(of(d::CPU_USAGE.name), value(2));
        assert_eq!(of(d::THREADS_MAX.name), value(0));
        assert_eq!(samples[0].timestamp, 7);
    }

    #[test]
    fn huge_pages_are_told_once() {
        let m = v1::Metrics {
            hugetlb: vec![v1::HugetlbStat {
                usage: 5,
                max: u64::MAX >> 1,
                pagesize: "2MB".into(),
                ..v1::HugetlbStat::default()
            }],
            ..v1::Metrics::default()
        };
        let mut samples = Samples::new(7, POD);
        samples.cgroup(&Cgroup::V1(Box::new(m)), &|_, _| String::new());
        samples.no_huge_pages(&["1GB".into(), "2MB".into()]);
        let mut huge = samples.done();
        huge.retain(|m| m.name == d::HUGETLB_MAX_USAGE.name);
        let told: Vec<_> = huge
            .iter()
            .map(|m| (m.label_values[5].as_str(), m.value))
            .collect();
        assert_eq!(told, [("2MB", value(5)), ("1GB", value(0))]);
    }
}
