//! From a cgroup's figures to the CRI's usage messages.

use corten_core::protos::io::containerd::cgroups::{v1, v2};
use corten_protos::runtime::v1::{
    CpuUsage, IoUsage, MemoryUsage, PsiData, PsiStats, SwapUsage, UInt64Value,
};

use super::cgroup::Cgroup;

/// A limit above it is none; the kernel rounds the largest number down.
const UNLIMITED: u64 = 1 << 62;

/// A value that is there.
pub(super) fn value(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}

impl Cgroup {
    /// CPU time and pressure; the rate is somebody else's to add. `at` in nanoseconds since 1970.
    pub fn cpu(&self, at: i64) -> Option<CpuUsage> {
        let psi = match self {
            Self::V1(_) => None,
            Self::V2(m) => pressure(m.cpu.as_ref()?.psi.as_ref()),
        };
        Some(CpuUsage {
            timestamp: at,
            usage_core_nano_seconds: value(self.cpu_time()?),
            usage_nano_cores: None,
            psi,
        })
    }

    /// Memory and its pressure.
    pub fn memory(&self, at: i64) -> Option<MemoryUsage> {
        let usage = |limit: u64, used: u64, working: u64| MemoryUsage {
            timestamp: at,
            working_set_bytes: value(working),
            available_bytes: value(left(limit, working)),
            usage_bytes: value(used),
            ..MemoryUsage::default()
        };
        match self {
            Self::V1(m) => {
                let m = m.memory.as_ref()?;
                let now = m.usage.as_ref()?;
                Some(MemoryUsage {
                    rss_bytes: value(m.total_rss),
                    page_faults: value(m.total_pg_fault),
                    major_page_faults: value(m.total_pg_maj_fault),
                    ..usage(now.limit, now.usage, working_set_v1(m))
                })
            }
            Self::V2(m) => {
                let m = m.memory.as_ref()?;
                Some(MemoryUsage {
                    rss_bytes: value(m.anon),
                    page_faults: value(m.pgfault),
                    major_page_faults: value(m.pgmajfault),
                    psi: pressure(m.psi.as_ref()),
                    ..usage(m.usage_limit, m.usage, working_set_v2(m))
                })
            }
        }
    }

    /// Swap; none where the kernel does not account for it.
    pub fn swap(&self, at: i64) -> Option<SwapUsage> {
        let (used, limit) = match self {
            Self::V1(m) => {
                let m = m.memory.as_ref()?;
                let (memory, both) = (m.usage.as_ref()?, m.swap.as_ref()?);
                if both.limit == 0 {
                    return None;
                }
                // memory.memsw counts memory and swap together.
                let limit = match both.limit {
                    l if l > UNLIMITED => l,
                    l => l.saturating_sub(memory.limit),
                };
                (both.usage.saturating_sub(memory.usage), limit)
            }
            Self::V2(m) => {
                let m = m.memory.as_ref()?;
                (m.swap_usage, m.swap_limit)
            }
        };
        Some(SwapUsage {
            timestamp: at,
            swap_available_bytes: value(left(limit, used)),
            swap_usage_bytes: value(used),
        })
    }

    /// Pressure of I/O; none on the first hierarchy.
    pub fn io(&self, at: i64) -> Option<IoUsage> {
        match self {
            Self::V1(_) => None,
            Self::V2(m) => Some(IoUsage {
                timestamp: at,
                psi: Some(pressure(m.io.as_ref()?.psi.as_ref())?),
            }),
        }
    }
}

/// What is in use and cannot be dropped at once.
pub(super) fn working_set_v1(m: &v1::MemoryStat) -> u64 {
    let used = m.usage.as_ref().map_or(0, |u| u.usage);
    used.saturating_sub(m.total_inactive_file)
}

/// What is in use and cannot be dropped at once.
pub(super) fn working_set_v2(m: &v2::MemoryStat) -> u64 {
    m.usage.saturating_sub(m.inactive_file)
}

/// A limit, or 0 where there is none.
pub(super) fn limited(limit: u64) -> u64 {
    if limit > UNLIMITED { 0 } else { limit }
}

fn left(limit: u64, used: u64) -> u64 {
    limited(limit).saturating_sub(used)
}

// The kernel counts microseconds, the CRI nanoseconds.
fn pressure(psi: Option<&v2::PsiStats>) -> Option<PsiStats> {
    let data = |d: &v2::PsiData| PsiData {
        total: d.total.saturating_mul(1000),
        avg10: d.avg10,
        avg60: d.avg60,
        avg300: d.avg300,
    };
    let psi = psi?;
    Some(PsiStats {
        full: psi.full.as_ref().map(data),
        some: psi.some.as_ref().map(data),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(usage: u64, limit: u64) -> Option<v1::MemoryEntry> {
        Some(v1::MemoryEntry {
            usage,
            limit,
            ..v1::MemoryEntry::default()
        })
    }

    #[test]
    fn first_hierarchy() {
        let m = v1::Metrics {
            cpu: Some(v1::CpuStat {
                usage: Some(v1::CpuUsage {
                    total: 7,
                    ..v1::CpuUsage::default()
                }),
                throttling: None,
            }),
            memory: Some(v1::MemoryStat {
                usage: entry(100, 1000),
                swap: entry(130, 1200),
                total_inactive_file: 40,
                total_rss: 3,
                ..v1::MemoryStat::default()
            }),
            ..v1::Metrics::default()
        };
        let c = Cgroup::V1(Box::new(m));
        assert_eq!(c.cpu(1).unwrap().usage_core_nano_seconds, value(7));
        let memory = c.memory(1).unwrap();
        assert_eq!(memory.working_set_bytes, value(60));
        assert_eq!(memory.available_bytes, value(940));
        let swap = c.swap(1).unwrap();
        assert_eq!(
            (swap.swap_usage_bytes, swap.swap_available_bytes),
            (value(30), value(170))
        );
        assert!(c.io(1).is_none());
        let empty = Cgroup::V1(Box::default());
        assert!(empty.cpu(1).is_none() && empty.memory(1).is_none() && empty.swap(1).is_none());
    }

    #[test]
    fn unified_hierarchy() {
        let psi = |total| {
            let data = v2::PsiData {
                total,
                avg10: 0.5,
                ..v2::PsiData::default()
            };
            Some(v2::PsiStats {
                some: Some(data),
                full: None,
            })
        };
        let m = v2::Metrics {
            cpu: Some(v2::CpuStat {
                usage_usec: 2,
                psi: psi(3),
                ..v2::CpuStat::default()
            }),
            memory: Some(v2::MemoryStat {
                usage: 10,
                inactive_file: 40,
                usage_limit: u64::MAX,
                swap_limit: u64::MAX,
                swap_usage: 5,
                ..v2::MemoryStat::default()
            }),
            io: Some(v2::IoStat {
                psi: psi(4),
                ..v2::IoStat::default()
            }),
            ..v2::Metrics::default()
        };
        let c = Cgroup::V2(Box::new(m));
        let cpu = c.cpu(1).unwrap();
        assert_eq!(cpu.usage_core_nano_seconds, value(2000));
        assert_eq!(cpu.psi.unwrap().some.unwrap().total, 3000);
        let memory = c.memory(1).unwrap();
        assert_eq!(
            (memory.working_set_bytes, memory.available_bytes),
            (value(0), value(0))
        );
        assert!(memory.psi.is_none());
        let swap = c.swap(1).unwrap();
        assert_eq!(
            (swap.swap_usage_bytes, swap.swap_available_bytes),
            (value(5), value(0))
        );
        assert_eq!(c.io(1).unwrap().psi.unwrap().some.unwrap().avg10, 0.5);
    }
}
