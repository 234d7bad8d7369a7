//! Owns a container's cgroup: made, limited, measured, frozen, emptied and removed, on v1, v2 and hybrid hosts.

use crate::{Resources, Result, Spec};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// Options of [`Cgroup::create`].
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The systemd driver was asked for (`slice:prefix:name`).
    pub systemd: bool,
}

/// Directories of one container's cgroup.
#[derive(Debug)]
pub struct Cgroup {
    path: String,
}

/// Which way to learn of OOM kills.
#[derive(Debug)]
pub enum OomWatch {
    /// v1: an eventfd, readable (8 bytes) for each OOM.
    EventFd(OwnedFd),
    /// v2: `memory.events`; watch it with inotify (IN_MODIFY) and compare `Cgroup::oom_kills`.
    Events(PathBuf),
}

/// Numbers of both versions; zero or empty where the host has none.
#[derive(Debug, Clone, Default)]
pub struct Stats {
    pub v2: bool,
    pub cpu: CpuStats,
    pub memory: MemoryStats,
    pub pids: PidsStats,
    pub blkio: Vec<(String, Vec<BlkioEntry>)>,
    pub hugetlb: Vec<HugetlbStats>,
    /// name -> (handles, objects)
    pub rdma_current: BTreeMap<String, (u32, u32)>,
    pub rdma_max: BTreeMap<String, (u32, u32)>,
}

/// Nanoseconds on v1; v2's microseconds are kept in `stat` and converted here.
#[derive(Debug, Clone, Default)]
pub struct CpuStats {
    pub usage_ns: u64,
    pub user_ns: u64,
    pub system_ns: u64,
    pub per_cpu_ns: Vec<u64>,
    pub periods: u64,
    pub throttled_periods: u64,
    pub throttled_ns: u64,
    /// cpu.stat as is
    pub stat: BTreeMap<String, u64>,
}

#[derive(Debug, Clone, Default)]
pub struct MemoryStats {
    pub usage: MemoryEntry,
    pub swap: MemoryEntry,
    pub kernel: MemoryEntry,
    pub kernel_tcp: MemoryEntry,
    /// memory.stat as is
    pub stat: BTreeMap<String, u64>,
    /// v2 memory.events
    pub events: BTreeMap<String, u64>,
    /// v1 memory.oom_control: oom_kill_disable, under_oom, oom_kill
    pub oom_control: BTreeMap<String, u64>,
}

#[derive(Debug, Clone, Default)]
pub struct MemoryEntry {
    pub usage: u64,
    pub limit: u64,
    pub max: u64,
    pub failcnt: u64,
}

#[derive(Debug, Clone, Default)]
pub struct PidsStats {
    pub current: u64,
    /// 0 = unlimited
    pub limit: u64,
}

/// One line of a blkio file: key of `Stats::blkio` is containerd's list name, such as
/// `io_service_bytes_recursive`; on v2 the ops are rbytes, wbytes, rios, wios.
#[derive(Debug, Clone, Default)]
pub struct BlkioEntry {
    pub op: String,
    pub device: String,
    pub major: u64,
    pub minor: u64,
    pub value: u64,
}

#[derive(Debug, Clone, Default)]
pub struct HugetlbStats {
    pub pagesize: String,
    pub usage: u64,
    pub max: u64,
    pub failcnt: u64,
}

impl Cgroup {
    /// Makes the cgroup of a new container and applies `linux.resources`. Undoes itself on error.
    pub fn create(spec: &Spec, id: &str, options: &Options) -> Result<Self> {
        let _ = (spec, id, options);
        unimplemented!()
    }

    /// The cgroup of an existing container, by the same rules; nothing is made.
    pub fn open(spec: &Spec, id: &str, options: &Options) -> Result<Self> {
        let _ = (spec, id, options);
        unimplemented!()
    }

    /// Path below each hierarchy's mount point, such as `/default/web`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// True when the resource controllers are on the unified hierarchy (choose the v2 Metrics message).
    pub fn is_v2(&self) -> bool {
        unimplemented!()
    }

    /// Applies new limits (Task Update); absent fields stay.
    pub fn update(&self, resources: &Resources) -> Result<()> {
        let _ = resources;
        unimplemented!()
    }

    /// Every pid in it and below it.
    pub fn pids(&self) -> Result<Vec<i32>> {
        unimplemented!()
    }

    pub fn freeze(&self) -> Result<()> {
        unimplemented!()
    }

    pub fn thaw(&self) -> Result<()> {
        unimplemented!()
    }

    /// SIGKILL to everything in it; `cgroup.kill` where there is one.
    pub fn kill(&self) -> Result<()> {
        unimplemented!()
    }

    /// Any signal to everything in it.
    pub fn signal(&self, signal: i32) -> Result<()> {
        let _ = signal;
        unimplemented!()
    }

    /// Removes it with its children; missing is fine. `Ok(false)` = still busy, call again later
    /// (never sleeps).
    pub fn delete(&self) -> Result<bool> {
        unimplemented!()
    }

    pub fn stats(&self) -> Result<Stats> {
        unimplemented!()
    }

    pub fn watch_oom(&self) -> Result<OomWatch> {
        unimplemented!()
    }

    /// Counter of OOM kills so far.
    pub fn oom_kills(&self) -> u64 {
        unimplemented!()
    }
}
