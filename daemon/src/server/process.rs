//! What the kernel says of our own process, for the metrics and debug endpoints.

use std::fs;

/// Figures of this process; zero where procfs does not tell.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Process {
    pub(super) cpu_seconds: f64,
    /// Seconds since 1970.
    pub(super) started: f64,
    pub(super) resident_bytes: u64,
    pub(super) virtual_bytes: u64,
    pub(super) threads: u64,
    pub(super) open_fds: u64,
    pub(super) max_fds: u64,
}

impl Process {
    /// Reads procfs.
    pub(super) fn now() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let mut p = stat(
            &read("/proc/self/stat"),
            &read("/proc/stat"),
            rustix::param::clock_ticks_per_second() as f64,
            rustix::param::page_size() as u64,
        )
        .unwrap_or_default();
        // One of them is the fd of the folder that is being read.
        p.open_fds =
            fs::read_dir("/proc/self/fd").map_or(0, |d| (d.count() as u64).saturating_sub(1));
        p.max_fds = max_fds(&read("/proc/self/limits")).unwrap_or_default();
        p
    }
}

fn stat(own: &str, host: &str, ticks: f64, page: u64) -> Option<Process> {
    // The name in the second field may hold blanks and brackets: count from the last bracket.
    let fields: Vec<&str> = own.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |man_page: usize| fields.get(man_page - 3)?.parse::<u64>().ok();
    let boot: f64 = host
        .lines()
        .find_map(|l| l.strip_prefix("btime "))?
        .trim()
        .parse()
        .ok()?;
    Some(Process {
        cpu_seconds: (number(14)? + number(15)?) as f64 / ticks,
        threads: number(20)?,
        started: boot + number(22)? as f64 / ticks,
        virtual_bytes: number(23)?,
        resident_bytes: number(24)? * page,
        ..Process::default()
    })
}

fn max_fds(limits: &str) -> Option<u64> {
    let soft = limits
        .lines()
        .find_map(|l| l.strip_prefix("Max open files"))?;
    soft.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn procfs_text_becomes_figures() {
        let own = "7 (a) b) S 1 7 7 0 -1 4194560 9 9 9 9 250 50 9 9 20 0 6 0 1000 4096 3 18446744073709551615 1";
        let p = stat(own, "cpu 1 2\nbtime 1700000000\nprocesses 5\n", 100.0, 4096).unwrap();
        assert_eq!(p.cpu_seconds, 3.0);
        assert_eq!(p.started, 1_700_000_010.0);
        assert_eq!(
            (p.threads, p.virtual_bytes, p.resident_bytes),
            (6, 4096, 12288)
        );
        assert_eq!(stat("", "", 100.0, 1), None);
        let limits = "Limit  Soft Limit  Hard Limit  Units\nMax open files            1024                 524288               files     \n";
        assert_eq!(max_fds(limits), Some(1024));
    }

    #[test]
    fn this_process_has_figures() {
        let p = Process::now();
        assert!(
            p.resident_bytes > 0 && p.threads > 0 && p.open_fds > 2 && p.max_fds > 0,
            "{p:?}"
        );
        assert!(p.started > 1_600_000_000.0);
    }
}
