//! Owns limits on v1 hierarchies: one function per controller, each given its directory.

use super::file::{Writer, number, raw, text, write};
use super::host::Hierarchy;
use super::v2;
use crate::spec::{BlockIo, Cpu, DeviceRule, Hugepage, Memory, Resources};
use crate::{Error, Result};
use std::path::Path;

/// Memory in use.
pub(crate) const USAGE: &str = "memory.usage_in_bytes";

/// Rules every container gets after its own: making nodes, and the harmless devices.
pub(crate) const DEVICES: [&str; 10] = [
    "c *:* m",
    "b *:* m",
    "c 1:3 rwm",
    "c 1:8 rwm",
    "c 1:7 rwm",
    "c 5:0 rwm",
    "c 1:5 rwm",
    "c 1:9 rwm",
    "c 136:* rwm",
    "c 5:2 rwm",
];

/// Applies what concerns the controllers of one hierarchy. `new` = the cgroup was just made.
pub(crate) fn apply(h: &Hierarchy, dir: &Path, r: &Resources, new: bool) -> Result<()> {
    if let Some(m) = r.memory.as_ref().filter(|_| h.has("memory")) {
        memory(dir, m)?;
    }
    if let Some(c) = &r.cpu {
        if h.has("cpu") {
            cpu(dir, c)?;
        }
        if h.has("cpuset") {
            cpuset(dir, c)?;
        }
    }
    if let Some(limit) = r
        .pids
        .as_ref()
        .and_then(|p| p.limit)
        .filter(|_| h.has("pids"))
    {
        let value = if limit < 0 {
            "max".to_owned()
        } else {
            limit.to_string()
        };
        write(dir, "pids.max", value)?;
    }
    if let Some(io) = r.block_io.as_ref().filter(|_| h.has("blkio")) {
        blkio(dir, io)?;
    }
    if h.has("hugetlb") {
        hugepages(dir, &r.hugepage_limits)?;
    }
    if let Some(n) = &r.network {
        if let Some(class) = n.class_id.filter(|_| h.has("net_cls")) {
            write(dir, "net_cls.classid", class.to_string())?;
        }
        for p in n.priorities.iter().filter(|_| h.has("net_prio")) {
            write(
                dir,
                "net_prio.ifpriomap",
                format!("{} {}", p.name, p.priority),
            )?;
        }
    }
    if h.has("rdma") {
        super::rdma(dir, &r.rdma)?;
    }
    if h.has("devices") && new {
        devices(dir, &r.devices)?;
    }
    Ok(())
}

/// A limit somebody asked for on a host that has not got the controller is an error.
/// `unified` = the container's group of a hybrid host.
pub(crate) fn missing(
    hierarchies: &[&Hierarchy],
    unified: Option<&Path>,
    r: &Resources,
) -> Result<()> {
    let has = |c: &str| {
        hierarchies.iter().any(|h| h.has(c))
            || matches!(c, "hugetlb" | "rdma") && unified.is_some_and(|dir| v2::offers(dir, c))
    };
    let memory = r.memory.as_ref().is_some_and(memory_asked);
    let cpu = r.cpu.as_ref().is_some_and(cpu_asked);
    let cpuset = r
        .cpu
        .as_ref()
        .is_some_and(|c| !c.cpus.is_empty() || !c.mems.is_empty());
    let pids = r.pids.as_ref().and_then(|p| p.limit).is_some_and(|l| l > 0);
    let io = r.block_io.as_ref().is_some_and(block_io_asked);
    let hugetlb = !r.hugepage_limits.is_empty();
    let network = r.network.as_ref();
    let class = network.is_some_and(|n| n.class_id.is_some_and(|c| c != 0));
    let priorities = network.is_some_and(|n| !n.priorities.is_empty());
    if r.memory
        .as_ref()
        .is_some_and(|m| m.kernel.is_some_and(|k| k > 0))
    {
        return Err(Error::unsupported(
            "kernel memory limit: no longer in the kernel",
        ));
    }
    for (asked, controller, what) in [
        (memory, "memory", "memory limit"),
        (cpu, "cpu", "CPU limits"),
        (cpuset, "cpuset", "CPU set"),
        (pids, "pids", "pids limit"),
        (io, "blkio", "block I/O limits"),
        (hugetlb, "hugetlb", "hugepage limits"),
        (class, "net_cls", "network class"),
        (priorities, "net_prio", "network priorities"),
        (!r.rdma.is_empty(), "rdma", "RDMA limits"),
    ] {
        if asked && !has(controller) {
            return Err(Error::unsupported(format!(
                "cannot set {what}: container could not join or create cgroup"
            )));
        }
    }
    if !r.unified.is_empty() {
        return Err(Error::invalid(
            "invalid configuration: cannot use unified on cgroup v1",
        ));
    }
    Ok(())
}

fn memory_asked(m: &Memory) -> bool {
    let amounts = [m.limit, m.reservation, m.swap, m.kernel_tcp];
    amounts.iter().any(|n| n.is_some_and(|n| n > 0))
        || m.swappiness.is_some()
        || m.disable_oom_killer == Some(true)
}

/// A period alone limits nothing.
fn cpu_asked(c: &Cpu) -> bool {
    let given = |n: Option<u64>| n.is_some_and(|n| n > 0);
    let counts = |n: Option<i64>| n.is_some_and(|n| n > 0);
    counts(c.quota)
        || counts(c.realtime_runtime)
        || counts(c.idle)
        || [c.shares, c.burst, c.realtime_period]
            .into_iter()
            .any(given)
}

fn block_io_asked(io: &BlockIo) -> bool {
    let given = |w: Option<u16>| w.is_some_and(|w| w != 0);
    let lists = [
        &io.throttle_read_bps_device,
        &io.throttle_write_bps_device,
        &io.throttle_read_iops_device,
        &io.throttle_write_iops_device,
    ];
    given(io.weight)
        || given(io.leaf_weight)
        || !io.weight_device.is_empty()
        || lists.iter().any(|l| !l.is_empty())
}

/// A new cpuset has no CPUs and no memory nodes: take the parent's, from the top down.
pub(crate) fn inherit_cpuset(mount: &Path, dir: &Path) -> Result<()> {
    let mut chain: Vec<&Path> = dir.ancestors().take_while(|d| *d != mount).collect();
    chain.reverse();
    for dir in chain {
        let Some(parent) = dir.parent() else { continue };
        for name in ["cpuset.cpus", "cpuset.mems"] {
            if text(dir, name).is_some_and(|t| t.is_empty())
                && let Some(value) = text(parent, name).filter(|t| !t.is_empty())
            {
                write(dir, name, value)?;
            }
        }
    }
    Ok(())
}

/// A limit of reservations, where the kernel has one, makes mmap(2) fail; the other one kills with SIGBUS.
fn hugepages(dir: &Path, limits: &[Hugepage]) -> Result<()> {
    for h in limits {
        let value = h.limit.to_string();
        write(
            dir,
            &format!("hugetlb.{}.limit_in_bytes", h.page_size),
            &value,
        )?;
        let reserved = format!("hugetlb.{}.rsvd.limit_in_bytes", h.page_size);
        if dir.join(&reserved).exists() {
            write(dir, &reserved, &value)?;
        }
    }
    Ok(())
}

fn memory(dir: &Path, m: &Memory) -> Result<()> {
    const LIMIT: &str = "memory.limit_in_bytes";
    const SWAP: &str = "memory.memsw.limit_in_bytes";
    super::check_usage(dir, USAGE, m)?;
    let limit = m.limit.filter(|l| *l != 0);
    let mut swap = m.swap.filter(|s| *s != 0);
    let accounted = dir.join(SWAP).exists();
    if limit == Some(-1) && swap.is_none() && accounted {
        swap = Some(-1);
    }
    if swap.is_some() && !accounted {
        // Without swap accounting the combined limit is out of reach; -1 asks for nothing.
        if swap != Some(-1) && swap != limit {
            return Err(Error::unsupported(
                "cannot set swap limit: no swap accounting on this host",
            ));
        }
        swap = None;
    }
    // The combined limit may never be below the memory limit, not even between two writes.
    let now = number(dir, LIMIT).unwrap_or(u64::MAX);
    let raise = swap.is_some_and(|s| s < 0 || s as u64 > now);
    let steps = if raise {
        [(SWAP, swap), (LIMIT, limit)]
    } else {
        [(LIMIT, limit), (SWAP, swap)]
    };
    for (name, value) in steps {
        if let Some(value) = value {
            set_memory(dir, name, value)?;
        }
    }
    if let Some(r) = m.reservation.filter(|r| *r != 0) {
        write(dir, "memory.soft_limit_in_bytes", r.to_string())?;
    }
    if let Some(k) = m.kernel_tcp.filter(|k| *k != 0) {
        write(dir, "memory.kmem.tcp.limit_in_bytes", k.to_string())?;
    }
    if m.disable_oom_killer == Some(true) {
        write(dir, "memory.oom_control", "1")?;
    }
    match m.swappiness {
        None => {}
        Some(s) if s <= 100 => write(dir, "memory.swappiness", s.to_string())?,
        Some(s) => {
            return Err(Error::invalid(format!(
                "invalid memory swappiness value: {s} (valid range is 0-100)"
            )));
        }
    }
    Ok(())
}

fn set_memory(dir: &Path, name: &str, value: i64) -> Result<()> {
    match raw(dir, name, &value.to_string()) {
        Err(e) if e.raw_os_error() == Some(16) => {
            let read = |name: &str| number(dir, name).unwrap_or(0);
            let (usage, peak) = (
                read("memory.usage_in_bytes"),
                read("memory.max_usage_in_bytes"),
            );
            Err(Error::system(
                format!(
                    "unable to set memory limit to {value} (current usage: {usage}, peak usage: {peak})"
                ),
                e,
            ))
        }
        Err(e) => Err(Error::system(
            format!("write {value} to {}", dir.join(name).display()),
            e,
        )),
        Ok(()) => Ok(()),
    }
}

fn cpu(dir: &Path, c: &Cpu) -> Result<()> {
    if let Some(shares) = c.shares.filter(|s| *s != 0) {
        write(dir, "cpu.shares", shares.to_string())?;
        // The kernel clamps in silence: say so.
        let got = number(dir, "cpu.shares").unwrap_or(shares);
        if shares > got {
            return Err(Error::invalid(format!(
                "the maximum allowed cpu-shares is {got}"
            )));
        }
        if shares < got {
            return Err(Error::invalid(format!(
                "the minimum allowed cpu-shares is {got}"
            )));
        }
    }
    if let Some(period) = c.realtime_period.filter(|p| *p != 0) {
        write(dir, "cpu.rt_period_us", period.to_string())?;
    }
    if let Some(runtime) = c.realtime_runtime.filter(|r| *r != 0) {
        write(dir, "cpu.rt_runtime_us", runtime.to_string())?;
    }
    let period = c.period.filter(|p| *p != 0);
    let quota = c.quota.filter(|q| *q != 0);
    let put_burst = |b: u64| write(dir, "cpu.cfs_burst_us", b.to_string());
    // A burst may not exceed the quota at any moment: one that falls comes first, one that rises last.
    let early = c.burst.is_some_and(|b| put_burst(b).is_ok());
    let put_period = |p: u64| raw(dir, "cpu.cfs_period_us", &p.to_string());
    let put_quota = |q: i64| write(dir, "cpu.cfs_quota_us", q.to_string());
    // A nested group may not exceed its parent at any moment: the order depends on the old values.
    match (period, quota) {
        (Some(p), quota) => {
            let first = put_period(p);
            if let Some(q) = quota {
                put_quota(q)?;
            }
            if let Err(e) = first {
                let again = if quota.is_some() && e.raw_os_error() == Some(22) {
                    put_period(p)
                } else {
                    Err(e)
                };
                again.map_err(|e| Error::system(format!("set CPU period {p}"), e))?;
            }
        }
        (None, Some(q)) => put_quota(q)?,
        (None, None) => {}
    }
    if let Some(burst) = c.burst.filter(|_| !early) {
        put_burst(burst)?;
    }
    if let Some(idle) = c.idle {
        write(dir, "cpu.idle", idle.to_string())?;
    }
    Ok(())
}

fn cpuset(dir: &Path, c: &Cpu) -> Result<()> {
    if !c.cpus.is_empty() {
        write(dir, "cpuset.cpus", &c.cpus)?;
    }
    if !c.mems.is_empty() {
        write(dir, "cpuset.mems", &c.mems)?;
    }
    Ok(())
}

fn blkio(dir: &Path, io: &BlockIo) -> Result<()> {
    let bfq = |name: &str, other: &'static str| {
        if dir.join(name).exists() {
            name.to_owned()
        } else {
            other.to_owned()
        }
    };
    let weight = bfq("blkio.bfq.weight", "blkio.weight");
    let device = bfq("blkio.bfq.weight_device", "blkio.weight_device");
    if let Some(w) = io.weight.filter(|w| *w != 0) {
        write(dir, &weight, w.to_string())?;
    }
    if let Some(w) = io.leaf_weight.filter(|w| *w != 0) {
        write(dir, "blkio.leaf_weight", w.to_string())?;
    }
    for d in &io.weight_device {
        if let Some(w) = d.weight.filter(|w| *w != 0) {
            write(dir, &device, format!("{}:{} {w}", d.major, d.minor))?;
        }
        if let Some(w) = d.leaf_weight.filter(|w| *w != 0) {
            write(
                dir,
                "blkio.leaf_weight_device",
                format!("{}:{} {w}", d.major, d.minor),
            )?;
        }
    }
    for (name, list) in [
        (
            "blkio.throttle.read_bps_device",
            &io.throttle_read_bps_device,
        ),
        (
            "blkio.throttle.write_bps_device",
            &io.throttle_write_bps_device,
        ),
        (
            "blkio.throttle.read_iops_device",
            &io.throttle_read_iops_device,
        ),
        (
            "blkio.throttle.write_iops_device",
            &io.throttle_write_iops_device,
        ),
    ] {
        for d in list {
            write(dir, name, format!("{}:{} {}", d.major, d.minor, d.rate))?;
        }
    }
    Ok(())
}

/// A new group denies everything first, whatever the list says; the kernel's own default is to
/// inherit the parent's. Rules act in order, like a chain of exceptions.
fn devices(dir: &Path, rules: &[DeviceRule]) -> Result<()> {
    let mut lines: Vec<(bool, String)> = Vec::with_capacity(rules.len());
    for rule in rules {
        let line = line(rule)?;
        if line == "a" {
            // All of it: what came before no longer matters.
            lines.clear();
        }
        lines.push((rule.allow, line));
    }
    if lines.first().is_none_or(|(_, line)| line != "a") {
        lines.insert(0, (false, "a".to_owned()));
    }
    // An "allow all" already has them.
    if lines != [(true, "a".to_owned())] {
        lines.extend(DEVICES.iter().map(|d| (true, (*d).to_owned())));
    }
    // Both files stay open: a default list has a dozen lines.
    let (allow, deny) = (
        Writer::open(dir, "devices.allow")?,
        Writer::open(dir, "devices.deny")?,
    );
    for (allowed, line) in &lines {
        let file = if *allowed { &allow } else { &deny };
        file.write(line)?;
    }
    Ok(())
}

/// One rule as the kernel reads it; `a` covers every type, number and access.
pub(crate) fn line(rule: &DeviceRule) -> Result<String> {
    let wrong = |what: &str| Error::invalid(format!("device rule: {what}"));
    let number = |n: Option<i64>| match n {
        None | Some(-1) => Ok("*".to_owned()),
        Some(n) if n >= 0 => Ok(n.to_string()),
        Some(n) => Err(wrong(&format!("number {n}"))),
    };
    let (major, minor) = (number(rule.major)?, number(rule.minor)?);
    if rule.access.chars().any(|c| !"rwm".contains(c)) {
        return Err(wrong(&format!("access {:?}", rule.access)));
    }
    let access = if rule.access.is_empty() {
        "rwm"
    } else {
        &rule.access
    };
    match rule.kind.as_str() {
        "" | "a" if major == "*" && minor == "*" => Ok("a".into()),
        "c" | "b" => Ok(format!("{} {major}:{minor} {access}", rule.kind)),
        other => Err(wrong(&format!("type {other:?} with numbers"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huge_pages_are_limited_before_they_are_touched() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(format!("hugetlb.{name}.limit_in_bytes"));
        // Older kernels do not count reservations.
        for name in ["2MB", "2MB.rsvd", "1GB"] {
            std::fs::write(at(name), "").unwrap();
        }
        let limits = ["2MB", "1GB"].map(|size| Hugepage {
            page_size: size.into(),
            limit: 4096,
        });
        hugepages(dir.path(), &limits).unwrap();
        for name in ["2MB", "2MB.rsvd", "1GB"] {
            assert_eq!(std::fs::read_to_string(at(name)).unwrap(), "4096", "{name}");
        }
        assert!(!at("1GB.rsvd").exists());
    }
}
