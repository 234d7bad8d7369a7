//! Owns the reading of numbers.

use super::file::{keyed, number, text};
use super::{
    BlkioEntry, CpuStats, HugetlbStats, MemoryEntry, MemoryStats, PidsStats, Pressure,
    PressureLine, Stats,
};
use std::path::Path;

/// v1 file -> containerd's list.
const BLKIO: [(&str, &str); 8] = [
    (
        "io_service_bytes_recursive",
        "blkio.throttle.io_service_bytes_recursive",
    ),
    (
        "io_serviced_recursive",
        "blkio.throttle.io_serviced_recursive",
    ),
    ("io_queued_recursive", "blkio.bfq.io_queued_recursive"),
    (
        "io_service_time_recursive",
        "blkio.bfq.io_service_time_recursive",
    ),
    ("io_wait_time_recursive", "blkio.bfq.io_wait_time_recursive"),
    ("io_merged_recursive", "blkio.bfq.io_merged_recursive"),
    ("io_time_recursive", "blkio.bfq.time_recursive"),
    ("sectors_recursive", "blkio.bfq.sectors_recursive"),
];

pub(crate) fn v1_cpu(dir: &Path, s: &mut CpuStats) {
    let stat = keyed(dir, "cpu.stat");
    let get = |key: &str| stat.get(key).copied().unwrap_or(0);
    s.periods = get("nr_periods");
    s.throttled_periods = get("nr_throttled");
    s.throttled_ns = get("throttled_time");
    s.stat = stat;
}

pub(crate) fn v1_cpuacct(dir: &Path, s: &mut CpuStats) {
    s.usage_ns = number(dir, "cpuacct.usage").unwrap_or(0);
    s.user_ns = number(dir, "cpuacct.usage_user").unwrap_or(0);
    s.system_ns = number(dir, "cpuacct.usage_sys").unwrap_or(0);
    let per_cpu = text(dir, "cpuacct.usage_percpu").unwrap_or_default();
    s.per_cpu_ns = per_cpu
        .split_whitespace()
        .filter_map(|n| n.parse().ok())
        .collect();
}

pub(crate) fn v1_memory(dir: &Path) -> MemoryStats {
    let entry = |prefix: &str| {
        let read = |name: &str| number(dir, &format!("{prefix}.{name}")).unwrap_or(0);
        MemoryEntry {
            usage: read("usage_in_bytes"),
            limit: read("limit_in_bytes"),
            max: read("max_usage_in_bytes"),
            failcnt: read("failcnt"),
        }
    };
    MemoryStats {
        usage: entry("memory"),
        swap: entry("memory.memsw"),
        kernel: entry("memory.kmem"),
        kernel_tcp: entry("memory.kmem.tcp"),
        stat: keyed(dir, "memory.stat"),
        oom_control: keyed(dir, "memory.oom_control"),
        ..MemoryStats::default()
    }
}

pub(crate) fn pids(dir: &Path) -> PidsStats {
    PidsStats {
        current: number(dir, "pids.current").unwrap_or(0),
        limit: number(dir, "pids.max").unwrap_or(0),
    }
}

pub(crate) fn v1_blkio(dir: &Path) -> Vec<(String, Vec<BlkioEntry>)> {
    let mut lists = Vec::new();
    for (list, name) in BLKIO {
        let text = text(dir, name).unwrap_or_default();
        let mut entries = Vec::new();
        for line in text.lines() {
            let fields: Vec<&str> = line.split_whitespace().collect();
            // `8:0 Read 4096`, or `8:0 4096` where there is no operation; the sum has no device.
            let (device, op, value) = match fields.as_slice() {
                [device, op, value] => (*device, *op, *value),
                [device, value] if device.contains(':') => (*device, "", *value),
                _ => continue,
            };
            entries.extend(blkio_entry(device, op, value));
        }
        lists.push((list.to_owned(), entries));
    }
    lists
}

fn blkio_entry(device: &str, op: &str, value: &str) -> Option<BlkioEntry> {
    let (major, minor) = device.split_once(':')?;
    let (major, minor) = (major.parse().ok()?, minor.parse().ok()?);
    Some(BlkioEntry {
        op: op.to_owned(),
        device: String::new(),
        major,
        minor,
        value: value.parse().ok()?,
    })
}

/// Both versions: `hugetlb.2MB.*`.
pub(crate) fn hugetlb(dir: &Path, v2: bool) -> Vec<HugetlbStats> {
    let mut list = Vec::new();
    let suffix = if v2 { ".current" } else { ".usage_in_bytes" };
    let Ok(entries) = std::fs::read_dir(dir) else {
        return list;
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(size) = name
            .strip_prefix("hugetlb.")
            .and_then(|n| n.strip_suffix(suffix))
        else {
            continue;
        };
        if size.contains('.') {
            continue;
        }
        let read = |what: &str| number(dir, &format!("hugetlb.{size}.{what}")).unwrap_or(0);
        let (max, failcnt) = if v2 {
            let events = keyed(dir, &format!("hugetlb.{size}.events"));
            (read("max"), events.get("max").copied().unwrap_or(0))
        } else {
            (read("max_usage_in_bytes"), read("failcnt"))
        };
        list.push(HugetlbStats {
            pagesize: size.into(),
            usage: read("current").max(read("usage_in_bytes")),
            max,
            failcnt,
        });
    }
    list.sort_by(|a, b| a.pagesize.cmp(&b.pagesize));
    list
}

/// Everything of a pure v2 host.
pub(crate) fn v2(dir: &Path, s: &mut Stats) {
    let stat = keyed(dir, "cpu.stat");
    let get = |key: &str| stat.get(key).copied().unwrap_or(0);
    s.cpu = CpuStats {
        usage_ns: get("usage_usec") * 1000,
        user_ns: get("user_usec") * 1000,
        system_ns: get("system_usec") * 1000,
        periods: get("nr_periods"),
        throttled_periods: get("nr_throttled"),
        throttled_ns: get("throttled_usec") * 1000,
        per_cpu_ns: Vec::new(),
        stat: stat.clone(),
    };
    let read = |name: &str| number(dir, name).unwrap_or(0);
    let limit = |name: &str| match text(dir, name).as_deref() {
        Some("max") => u64::MAX,
        Some(n) => n.parse().unwrap_or(0),
        None => 0,
    };
    s.memory = MemoryStats {
        usage: MemoryEntry {
            usage: read("memory.current"),
            limit: limit("memory.max"),
            max: read("memory.peak"),
            failcnt: 0,
        },
        swap: MemoryEntry {
            usage: read("memory.swap.current"),
            limit: limit("memory.swap.max"),
            max: read("memory.swap.peak"),
            failcnt: 0,
        },
        stat: keyed(dir, "memory.stat"),
        events: keyed(dir, "memory.events"),
        ..MemoryStats::default()
    };
    s.pids = pids(dir);
    let mut entries = Vec::new();
    for line in text(dir, "io.stat").unwrap_or_default().lines() {
        let mut fields = line.split_whitespace();
        let Some(device) = fields.next() else {
            continue;
        };
        for field in fields {
            if let Some((op, value)) = field.split_once('=') {
                entries.extend(blkio_entry(device, op, value));
            }
        }
    }
    let (bytes, times): (Vec<_>, Vec<_>) =
        entries.into_iter().partition(|e| e.op.ends_with("bytes"));
    s.blkio = vec![
        ("io_service_bytes_recursive".into(), bytes),
        ("io_serviced_recursive".into(), times),
    ];
    s.hugetlb = hugetlb(dir, true);
    let pressure = |name: &str| text(dir, name).map(|t| parse_pressure(&t));
    s.cpu_pressure = pressure("cpu.pressure");
    s.memory_pressure = pressure("memory.pressure");
    s.io_pressure = pressure("io.pressure");
}

// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, and the same for `full`.
fn parse_pressure(text: &str) -> Pressure {
    let line = |name: &str| {
        let fields = text
            .lines()
            .find_map(|l| l.strip_prefix(name)?.strip_prefix(' '))?;
        let mut out = PressureLine::default();
        for (key, value) in fields.split_whitespace().filter_map(|f| f.split_once('=')) {
            match key {
                "avg10" => out.avg10 = value.parse().ok()?,
                "avg60" => out.avg60 = value.parse().ok()?,
                "avg300" => out.avg300 = value.parse().ok()?,
                "total" => out.total = value.parse().ok()?,
                _ => {}
            }
        }
        Some(out)
    };
    Pressure {
        some: line("some"),
        full: line("full"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unified_io_and_pressure() {
        let dir = std::env::temp_dir().join(format!("corten-cgroup-stats-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let put = |name: &str, text: &str| std::fs::write(dir.join(name), text).unwrap();
        put(
            "io.stat",
            "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n",
        );
        put(
            "cpu.pressure",
            "some avg10=1.50 avg60=0.20 avg300=0.00 total=77\n",
        );
        put("io.pressure", "some total=1\nfull avg10=x\n");
        let mut s = Stats::default();
        v2(&dir, &mut s);
        let ops = |i: usize| {
            s.blkio[i]
                .1
                .iter()
                .map(|e| e.op.as_str())
                .collect::<Vec<_>>()
        };
        assert_eq!(s.blkio[0].0, "io_service_bytes_recursive");
        assert_eq!(ops(0), ["rbytes", "wbytes", "dbytes"]);
        assert_eq!(ops(1), ["rios", "wios", "dios"]);
        let cpu = s.cpu_pressure.unwrap();
        let some = cpu.some.unwrap();
        assert_eq!((some.avg10, some.avg60, some.total), (1.5, 0.2, 77));
        assert_eq!(cpu.full, None);
        assert_eq!(s.io_pressure.unwrap().full, None);
        assert_eq!(s.memory_pressure, None);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
