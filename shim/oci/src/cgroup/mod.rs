//! Owns a container's cgroup: made, limited, measured, frozen, emptied and removed, on v1, v2 and hybrid hosts.

//!
//! Path rules are runc's for the cgroupfs driver: an absolute `cgroupsPath` starts at each mount, a
//! relative one (or the bare id) at this process's own cgroup. Processes join by themselves: on v1 the
//! child writes `0` to `tasks`, which spares the kernel's wait for all CPUs; on v2 by the clone.

mod devices;
mod file;
mod freezer;
mod host;
pub(crate) mod mount;
mod stats;
pub mod systemd;
mod v1;
mod v2;

use crate::spec::{Memory, Rdma};
use crate::{Error, Resources, Result, Spec};
use corten_launch::{Op, Plan};
use host::{Hierarchy, Host};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

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
    /// The unit, when systemd made it.
    unit: Option<String>,
    parts: Vec<Part>,
}

/// Directory in one hierarchy.
#[derive(Debug)]
struct Part {
    hierarchy: &'static Hierarchy,
    dir: PathBuf,
}

const SIGKILL: i32 = 9;

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
    /// v2, where the kernel measures it.
    pub cpu_pressure: Option<Pressure>,
    pub memory_pressure: Option<Pressure>,
    pub io_pressure: Option<Pressure>,
}

/// A `*.pressure` file: when some tasks waited, and when all did.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressure {
    pub some: Option<PressureLine>,
    pub full: Option<PressureLine>,
}

/// Shares of the last 10, 60 and 300 seconds in percent; microseconds since ever.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PressureLine {
    pub avg10: f64,
    pub avg60: f64,
    pub avg300: f64,
    pub total: u64,
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

// === impl Cgroup ===

impl Cgroup {
    /// Makes the cgroup of a new container and applies `linux.resources`. Undoes itself on error.
    /// The systemd driver's are started first: see [`systemd`].
    pub fn create(spec: &Spec, id: &str, options: &Options) -> Result<Self> {
        if options.systemd {
            return Err(Error::unsupported("a cgroup of systemd's without its unit"));
        }
        let cgroup = Self::open(spec, id, options)?;
        let none = Resources::default();
        let resources = spec.linux.resources.as_ref().unwrap_or(&none);
        let mut made = Vec::new();
        match cgroup.make(resources, &mut made) {
            Ok(()) => Ok(cgroup),
            Err(e) => {
                // What was there before may be somebody else's.
                for dir in made {
                    let _ = remove(dir);
                }
                Err(e)
            }
        }
    }

    /// The cgroup of an existing container, by the same rules; nothing is made.
    pub fn open(spec: &Spec, id: &str, options: &Options) -> Result<Self> {
        let scope = options.systemd.then(|| systemd::Scope::of(spec, id));
        let scope = scope.transpose()?;
        let asked = &spec.linux.cgroups_path;
        let path = match asked.as_str() {
            _ if scope.is_some() => scope.as_ref().map_or(Ok(String::new()), |s| s.path())?,
            "" if matches!(id, "" | "." | "..") || id.contains('/') => {
                return Err(Error::invalid(format!("cgroup name {id:?}")));
            }
            "" => id.to_owned(),
            p if p.starts_with('/') => crate::mounts::clean(p),
            // Cleaned as if absolute, so that it cannot climb above its base.
            p => crate::mounts::clean(p).trim_start_matches('/').to_owned(),
        };
        if path.contains('\0') || path.trim_matches('/').is_empty() {
            return Err(Error::invalid(format!("cgroupsPath {asked:?}")));
        }
        let host = Host::get()?;
        let part = |h: &'static Hierarchy| Part {
            hierarchy: h,
            dir: h.dir(&path),
        };
        let parts = host.hierarchies.iter().map(part).collect();
        let unit = scope.map(|s| s.name().to_owned());
        Ok(Self { path, unit, parts })
    }

    /// Path below each hierarchy's mount point, such as `/default/web`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// True when the resource controllers are on the unified hierarchy (choose the v2 Metrics message).
    pub fn is_v2(&self) -> bool {
        Host::get().is_ok_and(Host::unified)
    }

    /// The cgroup a process is in, whoever made it; where it shares one with this process, it has none.
    pub fn of(pid: i32) -> Result<Self> {
        let path = format!("/proc/{pid}/cgroup");
        let text =
            std::fs::read_to_string(&path).map_err(|e| Error::system(format!("read {path}"), e))?;
        let parts: Vec<Part> = Host::get()?
            .hierarchies
            .iter()
            .map(|hierarchy| Part {
                hierarchy,
                dir: hierarchy.dir_of(&text),
            })
            .filter(|p| p.dir != p.hierarchy.own_dir())
            .collect();
        let below = |p: &Part| {
            let below = p.dir.strip_prefix(&p.hierarchy.mount).ok()?;
            Some(format!("/{}", below.display()))
        };
        Ok(Self {
            path: parts.first().and_then(below).unwrap_or_else(|| "/".into()),
            unit: None,
            parts,
        })
    }

    /// Applies new limits (Task Update); absent fields stay. Device rules are not limits: clients send the container's
    /// whole document, and runc leaves the rules as they are, too.
    pub fn update(&self, resources: &Resources) -> Result<()> {
        self.apply(resources, false)
    }

    /// Every pid in it and below it.
    pub fn pids(&self) -> Result<Vec<i32>> {
        let mut pids = Vec::new();
        let Some(part) = self
            .v2()
            .filter(|_| self.is_v2())
            .or_else(|| self.counting())
        else {
            return Ok(pids);
        };
        collect(&part.dir, &mut pids)
            .map_err(|e| Error::system(format!("list processes of {}", part.dir.display()), e))?;
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// SIGKILL to everything in it; `cgroup.kill` where there is one.
    pub fn kill(&self) -> Result<()> {
        let whole = self
            .v2()
            .is_some_and(|p| file::raw(&p.dir, "cgroup.kill", "1").is_ok());
        // On a hybrid host some process may have left the unified group, but not the others.
        if !whole || !self.is_v2() {
            // A fork bomb needs more than one pass; the exit of init ends the rest.
            for _ in 0..8 {
                if self.signal_all(SIGKILL)? == 0 {
                    break;
                }
                self.thaw()?;
            }
        }
        Ok(())
    }

    /// Any signal to everything in it; 0 only asks whether that would be allowed.
    pub fn signal(&self, signal: i32) -> Result<()> {
        if !(0..=64).contains(&signal) {
            return Err(Error::invalid(format!("signal {signal}")));
        }
        self.signal_all(signal).map(drop)
    }

    /// Removes it with its children; missing is fine. `Ok(false)` = still busy, call again later
    /// (never sleeps).
    pub fn delete(&self) -> Result<bool> {
        let mut gone = true;
        let mut first = None;
        for part in &self.parts {
            match remove(&part.dir) {
                Ok(()) => {}
                Err(e) if e.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => gone = false,
                Err(e) => {
                    let text = format!("remove cgroup {}", part.dir.display());
                    first.get_or_insert_with(|| Error::system(text, e));
                }
            }
        }
        first.map_or(Ok(gone), Err)
    }

    pub fn stats(&self) -> Result<Stats> {
        let mut s = Stats {
            v2: self.is_v2(),
            ..Stats::default()
        };
        if s.v2 {
            if let Some(part) = self.v2() {
                stats::v2(&part.dir, &mut s);
            }
            return Ok(s);
        }
        for Part { hierarchy: h, dir } in &self.parts {
            if h.has("cpu") {
                stats::v1_cpu(dir, &mut s.cpu);
            }
            if h.has("cpuacct") {
                stats::v1_cpuacct(dir, &mut s.cpu);
            }
            if h.has("memory") {
                s.memory = stats::v1_memory(dir);
            }
            if h.has("pids") {
                s.pids = stats::pids(dir);
            }
            if h.has("blkio") {
                s.blkio = stats::v1_blkio(dir);
            }
            if h.has("hugetlb") || h.v2 {
                s.hugetlb.extend(stats::hugetlb(dir, h.v2));
            }
        }
        Ok(s)
    }

    /// How to learn of OOM kills; `NotFound` when the host counts no memory.
    pub fn watch_oom(&self) -> Result<OomWatch> {
        if let Some(part) = self.v2().filter(|_| self.is_v2()) {
            return Ok(OomWatch::Events(part.dir.join("memory.events")));
        }
        let fail = |e: io::Error| Error::system("watch for OOM kills", e);
        let part = self
            .with("memory")
            .ok_or_else(|| fail(io::ErrorKind::NotFound.into()))?;
        let control = File::open(part.dir.join("memory.oom_control")).map_err(fail)?;
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| fail(e.into()))?;
        let text = format!("{} {}", event.as_raw_fd(), control.as_raw_fd());
        file::raw(&part.dir, "cgroup.event_control", &text).map_err(fail)?;
        Ok(OomWatch::EventFd(event))
    }

    /// Counter of OOM kills so far.
    pub fn oom_kills(&self) -> u64 {
        let (part, name) = match self.v2().filter(|_| self.is_v2()) {
            Some(part) => (Some(part), "memory.events"),
            None => (self.with("memory"), "memory.oom_control"),
        };
        let keys = part.map(|p| file::keyed(&p.dir, name)).unwrap_or_default();
        keys.get("oom_kill").copied().unwrap_or(0)
    }

    /// A cgroup in no hierarchy.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self {
            path: "/golden".into(),
            unit: None,
            parts: Vec::new(),
        }
    }

    /// `made` gets the directories that did not exist.
    fn make<'a>(&'a self, resources: &Resources, made: &mut Vec<&'a Path>) -> Result<()> {
        for Part { hierarchy: h, dir } in &self.parts {
            let fail = |e| Error::system(format!("make cgroup {}", dir.display()), e);
            match std::fs::create_dir(dir) {
                Ok(()) => made.push(dir),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    std::fs::create_dir_all(dir).map_err(fail)?;
                    made.push(dir);
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                    let mut pids = Vec::new();
                    collect(dir, &mut pids).map_err(fail)?;
                    if !pids.is_empty() {
                        return Err(Error::invalid(format!(
                            "container's cgroup is not empty: {} process(es) found",
                            pids.len()
                        )));
                    }
                }
                Err(e) => return Err(fail(e)),
            }
            prepare(h, dir)?;
        }
        self.apply(resources, true)
    }

    /// What systemd does not make of a group that it has made: hierarchies it knows nothing of, and limits.
    fn settle(&self, resources: &Resources) -> Result<()> {
        for Part { hierarchy: h, dir } in &self.parts {
            std::fs::create_dir_all(dir)
                .map_err(|e| Error::system(format!("make cgroup {}", dir.display()), e))?;
            prepare(h, dir)?;
        }
        self.apply(resources, true)
    }

    /// Refuses a memory limit below what is in use, if the limit says so.
    fn check(&self, r: &Resources) -> Result<()> {
        let (part, file) = match self.v2().filter(|_| self.is_v2()) {
            Some(part) => (Some(part), v2::USAGE),
            None => (self.with("memory"), v1::USAGE),
        };
        match part.zip(r.memory.as_ref()) {
            Some((part, memory)) => check_usage(&part.dir, file, memory),
            None => Ok(()),
        }
    }

    fn apply(&self, r: &Resources, new: bool) -> Result<()> {
        if self.is_v2() {
            let Some(part) = self.v2() else { return Ok(()) };
            if new {
                devices::apply(&part.dir, &r.devices)?;
            }
            return v2::apply(&part.dir, r);
        }
        let all: Vec<&Hierarchy> = self.parts.iter().map(|p| p.hierarchy).collect();
        let unified = self.v2().map(|p| p.dir.as_path());
        v1::missing(&all, unified, r)?;
        for part in &self.parts {
            if part.hierarchy.v2 {
                v2::apply_hybrid(&part.dir, r)?;
            } else {
                v1::apply(part.hierarchy, &part.dir, r, new)?;
            }
        }
        Ok(())
    }

    /// Lets the process of a plan be born in, or move into, this cgroup.
    pub fn join(&self, plan: &mut Plan) -> Result<()> {
        join_parts(
            self.parts.iter().map(|p| (p.hierarchy, p.dir.clone())),
            false,
            plan,
        )
    }

    /// The same for an exec: where the configured group is gone or is an inner node (a container that
    /// manages its own groups), the group init really is in. `outside` = the process is born outside and moves.
    pub(crate) fn join_with(&self, init: i32, outside: bool, plan: &mut Plan) -> Result<()> {
        let mut real: Option<String> = None;
        let mut parts = Vec::with_capacity(self.parts.len());
        for part in &self.parts {
            let inner = part.hierarchy.v2
                && file::text(&part.dir, "cgroup.subtree_control").is_some_and(|t| !t.is_empty());
            let mut dir = part.dir.clone();
            if inner || !dir.exists() {
                let path = format!("/proc/{init}/cgroup");
                let text = match real.take() {
                    Some(text) => text,
                    None => std::fs::read_to_string(&path)
                        .map_err(|e| Error::system(format!("read {path}"), e))?,
                };
                dir = part.hierarchy.dir_of(&text);
                real = Some(text);
            }
            parts.push((part.hierarchy, dir));
        }
        join_parts(parts.into_iter(), outside, plan)
    }

    fn v2(&self) -> Option<&Part> {
        self.parts.iter().find(|p| p.hierarchy.v2)
    }

    fn with(&self, controller: &str) -> Option<&Part> {
        self.parts.iter().find(|p| p.hierarchy.has(controller))
    }

    /// The v1 group whose processes count as the container's.
    fn counting(&self) -> Option<&Part> {
        let known = ["devices", "freezer", "pids", "memory", "cpu"];
        known
            .iter()
            .find_map(|c| self.with(c))
            .or_else(|| self.parts.first())
    }

    fn signal_all(&self, signal: i32) -> Result<usize> {
        let pids = match self.pids() {
            Err(e) if e.kind == crate::Kind::NotFound => return Ok(0),
            pids => pids?,
        };
        for pid in pids.iter().filter_map(|p| Pid::from_raw(*p)) {
            let fd = match pidfd_open(pid, PidfdFlags::empty()) {
                Err(Errno::SRCH) => continue,
                fd => fd.map_err(io::Error::from),
            };
            match fd.and_then(|fd| corten_launch::signal(fd.as_fd(), signal)) {
                Err(e) if e.raw_os_error() != Some(Errno::SRCH.raw_os_error()) => {
                    return Err(Error::system(format!("signal {}", pid.as_raw_pid()), e));
                }
                _ => {}
            }
        }
        Ok(pids.len())
    }
}

fn join_parts(
    parts: impl Iterator<Item = (&'static Hierarchy, PathBuf)>,
    outside: bool,
    plan: &mut Plan,
) -> Result<()> {
    for (h, dir) in parts {
        let fail = |e| Error::system(format!("open cgroup {}", dir.display()), e);
        if h.v2 && !outside {
            let fd = plan.give(File::open(&dir).map_err(fail)?);
            plan.cgroup = Some(fd);
        } else {
            let mut options = File::options();
            let file = dir.join(if h.v2 { "cgroup.procs" } else { "tasks" });
            let fd = plan.give(options.write(true).open(file).map_err(fail)?);
            let name = h.controllers.join(",");
            plan.push(
                Op::JoinCgroup(fd),
                format!("join cgroup {name}:{}", dir.display()),
            );
        }
    }
    Ok(())
}

/// Makes a new directory fit for processes and limits.
fn prepare(h: &Hierarchy, dir: &Path) -> Result<()> {
    if h.has("cpuset") {
        v1::inherit_cpuset(&h.mount, dir)?;
    }
    if h.v2 {
        v2::enable_controllers(&h.mount, dir)?;
    }
    Ok(())
}

/// `file` counts what is in use.
pub(crate) fn check_usage(dir: &Path, file: &str, m: &Memory) -> Result<()> {
    let limit = m.limit.and_then(|l| u64::try_from(l).ok());
    if let Some(limit) = limit.filter(|l| *l > 0 && m.check_before_update == Some(true))
        && let Some(usage) = file::number(dir, file).filter(|u| *u > limit)
    {
        return Err(Error::invalid(format!(
            "rejecting memory limit {limit} < usage {usage}"
        )));
    }
    Ok(())
}

/// Replaces the device program of one v2 directory.
pub fn set_v2_devices(dir: &Path, rules: &[crate::spec::DeviceRule]) -> Result<()> {
    devices::apply(dir, rules)
}

/// Pids of a group and the groups below; a descendant that vanishes meanwhile is skipped.
fn collect(dir: &Path, pids: &mut Vec<i32>) -> io::Result<()> {
    let text = std::fs::read_to_string(dir.join("cgroup.procs"))?;
    pids.extend(
        text.lines()
            .filter_map(|l| l.parse::<i32>().ok())
            .filter(|p| *p > 0),
    );
    for entry in std::fs::read_dir(dir)?.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            match collect(&entry.path(), pids) {
                Err(e) if !vanished(&e) => return Err(e),
                _ => {}
            }
        }
    }
    Ok(())
}

fn vanished(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::NotFound
        || e.raw_os_error() == Some(Errno::NODEV.raw_os_error())
        // Threaded v2 groups have no process list.
        || e.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error())
}

fn remove(dir: &Path) -> io::Result<()> {
    match std::fs::remove_dir(dir) {
        Err(e) if e.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        r => return r,
    }
    for entry in std::fs::read_dir(dir)?.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove(&entry.path())?;
        }
    }
    match std::fs::remove_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        r => r,
    }
}

/// rdma.max is the same file on both versions.
pub(crate) fn rdma(dir: &Path, limits: &BTreeMap<String, Rdma>) -> Result<()> {
    for (device, limit) in limits {
        let show = |n: Option<u32>| n.map_or_else(|| "max".into(), |n| n.to_string());
        let (handles, objects) = (show(limit.hca_handles), show(limit.hca_objects));
        let line = format!("{device} hca_handle={handles} hca_object={objects}");
        file::write(dir, "rdma.max", line)?;
    }
    Ok(())
}
