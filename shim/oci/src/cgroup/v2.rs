//! Owns limits on the unified hierarchy, and the conversions from v1's units.

use super::file::{raw, text, write};
use crate::spec::{BlockIo, Cpu, Hugepage, Memory, Resources};
use crate::{Error, Result};
use std::path::Path;

/// Memory in use.
pub(crate) const USAGE: &str = "memory.current";

/// Turns on every controller the parent offers, from the mount down to the parent of `dir`.
pub(crate) fn enable_controllers(mount: &Path, dir: &Path) -> Result<()> {
    let mut chain: Vec<&Path> = dir
        .ancestors()
        .skip(1)
        .take_while(|d| *d != mount)
        .collect();
    chain.push(mount);
    chain.reverse();
    for dir in chain {
        let offered = text(dir, "cgroup.controllers").unwrap_or_default();
        let on = text(dir, "cgroup.subtree_control").unwrap_or_default();
        let missing: Vec<String> = offered
            .split_whitespace()
            .filter(|c| !on.split_whitespace().any(|o| o == *c))
            .map(|c| format!("+{c}"))
            .collect();
        if missing.is_empty() || raw(dir, "cgroup.subtree_control", &missing.join(" ")).is_ok() {
            continue;
        }
        // One refused controller must not take the others with it.
        for one in &missing {
            let _ = raw(dir, "cgroup.subtree_control", one);
        }
    }
    Ok(())
}

/// Applies all resources but devices.
pub(crate) fn apply(dir: &Path, r: &Resources) -> Result<()> {
    if let Some(m) = &r.memory {
        memory(dir, m)?;
    }
    if let Some(c) = &r.cpu {
        cpu(dir, c)?;
    }
    if let Some(limit) = r.pids.as_ref().and_then(|p| p.limit) {
        write(
            dir,
            "pids.max",
            if limit < 0 {
                "max".into()
            } else {
                limit.to_string()
            },
        )?;
    }
    if let Some(io) = &r.block_io {
        block_io(dir, io)?;
    }
    hugepages(dir, &r.hugepage_limits)?;
    if r.network
        .as_ref()
        .is_some_and(|n| n.class_id.is_some() || !n.priorities.is_empty())
    {
        return Err(Error::unsupported(
            "network class and priorities do not exist on cgroup v2",
        ));
    }
    super::rdma(dir, &r.rdma)?;
    for (name, value) in &r.unified {
        if name.contains('/') || name.is_empty() {
            return Err(Error::invalid(format!(
                "unified resource {name:?} must be a file name"
            )));
        }
        for line in value.lines() {
            write(dir, name, line)?;
        }
    }
    Ok(())
}

/// Applies what a hybrid host counts on the unified hierarchy: controllers that no v1 hierarchy took.
pub(crate) fn apply_hybrid(dir: &Path, r: &Resources) -> Result<()> {
    if offers(dir, "hugetlb") {
        hugepages(dir, &r.hugepage_limits)?;
    }
    if offers(dir, "rdma") {
        super::rdma(dir, &r.rdma)?;
    }
    Ok(())
}

/// Whether the group has a controller.
pub(crate) fn offers(dir: &Path, controller: &str) -> bool {
    let list = text(dir, "cgroup.controllers").unwrap_or_default();
    list.split_whitespace().any(|c| c == controller)
}

fn hugepages(dir: &Path, limits: &[Hugepage]) -> Result<()> {
    for h in limits {
        let value = h.limit.to_string();
        write(dir, &format!("hugetlb.{}.max", h.page_size), &value)?;
        let reserved = format!("hugetlb.{}.rsvd.max", h.page_size);
        if dir.join(&reserved).exists() {
            write(dir, &reserved, &value)?;
        }
    }
    Ok(())
}

/// What only v1 has. Not asked for, or asked not to be, is fine.
fn gone(m: &Memory) -> Result<()> {
    let asked = |n: Option<i64>| n.is_some_and(|n| n > 0);
    let what = if asked(m.kernel) || asked(m.kernel_tcp) {
        "kernel memory limits"
    } else if m.swappiness.is_some() {
        "memory swappiness"
    } else if m.disable_oom_killer == Some(true) {
        "disabling the OOM killer"
    } else {
        return Ok(());
    };
    Err(Error::unsupported(format!("{what}: not on cgroup v2")))
}

fn amount(n: i64) -> String {
    if n < 0 { "max".into() } else { n.to_string() }
}

fn memory(dir: &Path, m: &Memory) -> Result<()> {
    gone(m)?;
    super::check_usage(dir, USAGE, m)?;
    if let Some(swap) = swap(m)? {
        // Setting nothing is always possible, even without the file.
        if swap != "max" || dir.join("memory.swap.max").exists() {
            write(dir, "memory.swap.max", swap)?;
        }
    }
    if let Some(limit) = m.limit.filter(|l| *l != 0) {
        write(dir, "memory.max", amount(limit))?;
    }
    if let Some(low) = m.reservation.filter(|r| *r != 0) {
        write(dir, "memory.low", amount(low))?;
    }
    Ok(())
}

/// v1 counts memory and swap together, v2 apart.
pub(crate) fn swap(m: &Memory) -> Result<Option<String>> {
    let (limit, swap) = (m.limit.unwrap_or(0), m.swap.unwrap_or(0));
    match (limit, swap) {
        (-1, 0) => Ok(Some("max".into())),
        (_, 0) => Ok(None),
        (_, s) if s < 0 => Ok(Some("max".into())),
        (l, _) if l <= 0 => Err(Error::invalid(
            "unable to set swap limit without memory limit",
        )),
        (l, s) if s < l => Err(Error::invalid(
            "memory+swap limit should be >= memory limit",
        )),
        (l, s) => Ok(Some((s - l).to_string())),
    }
}

fn cpu(dir: &Path, c: &Cpu) -> Result<()> {
    if c.realtime_runtime.is_some_and(|r| r != 0) || c.realtime_period.is_some_and(|p| p != 0) {
        return Err(Error::unsupported(
            "realtime CPU limits do not exist on cgroup v2",
        ));
    }
    if let Some(idle) = c.idle {
        write(dir, "cpu.idle", idle.to_string())?;
    }
    if let Some(weight) = c.shares.and_then(weight).filter(|_| c.idle != Some(1)) {
        write(dir, "cpu.weight", weight.to_string())?;
    }
    let put_burst = |b: u64| write(dir, "cpu.max.burst", b.to_string());
    // A burst may not exceed the quota at any moment: one that falls comes first, one that rises last.
    let early = c.burst.is_some_and(|b| put_burst(b).is_ok());
    let quota = c.quota.filter(|q| *q != 0);
    let period = c.period.filter(|p| *p != 0);
    if quota.is_some() || period.is_some() {
        let quota = match quota {
            Some(q) if q > 0 => q.to_string(),
            Some(_) => "max".into(),
            // Only the period changes.
            None => text(dir, "cpu.max")
                .and_then(|t| t.split(' ').next().map(str::to_owned))
                .unwrap_or_else(|| "max".into()),
        };
        write(
            dir,
            "cpu.max",
            format!("{quota} {}", period.unwrap_or(100_000)),
        )?;
    }
    if let Some(burst) = c.burst.filter(|_| !early) {
        put_burst(burst)?;
    }
    if !c.cpus.is_empty() {
        write(dir, "cpuset.cpus", &c.cpus)?;
    }
    if !c.mems.is_empty() {
        write(dir, "cpuset.mems", &c.mems)?;
    }
    Ok(())
}

/// Shares (2 to 262144, default 1024) to weight (1 to 10000, default 100): a quadratic in the
/// logarithm that meets minimum, default and maximum, as runc and crun have it now.
pub(crate) fn weight(shares: u64) -> Option<u64> {
    match shares {
        0 => None,
        1..=2 => Some(1),
        262_144.. => Some(10_000),
        _ => {
            let l = (shares as f64).log2();
            let exponent = (l * l + 125.0 * l) / 612.0 - 7.0 / 34.0;
            Some(10f64.powf(exponent).ceil() as u64)
        }
    }
}

/// blkio weight (10 to 1000) to io.weight (1 to 10000).
pub(crate) fn io_weight(weight: u16) -> u64 {
    1 + u64::from(weight.saturating_sub(10)) * 9_999 / 990
}

fn block_io(dir: &Path, io: &BlockIo) -> Result<()> {
    let leaf = |w: Option<u16>| w.is_some_and(|w| w != 0);
    if leaf(io.leaf_weight) || io.weight_device.iter().any(|d| leaf(d.leaf_weight)) {
        return Err(Error::unsupported("leaf weights: not on cgroup v2"));
    }
    let bfq = dir.join("io.bfq.weight").exists();
    let name = if bfq { "io.bfq.weight" } else { "io.weight" };
    let convert = |w: u16| if bfq { u64::from(w) } else { io_weight(w) };
    if let Some(w) = io.weight.filter(|w| *w != 0) {
        write(dir, name, convert(w).to_string())?;
    }
    for d in &io.weight_device {
        if let Some(w) = d.weight.filter(|w| *w != 0) {
            write(dir, name, format!("{}:{} {}", d.major, d.minor, convert(w)))?;
        }
    }
    for (key, list) in [
        ("rbps", &io.throttle_read_bps_device),
        ("wbps", &io.throttle_write_bps_device),
        ("riops", &io.throttle_read_iops_device),
        ("wiops", &io.throttle_write_iops_device),
    ] {
        for d in list {
            let rate = if d.rate == 0 {
                "max".into()
            } else {
                d.rate.to_string()
            };
            write(
                dir,
                "io.max",
                format!("{}:{} {key}={rate}", d.major, d.minor),
            )?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversions_meet_their_corners() {
        assert_eq!(weight(0), None);
        assert_eq!(
            [2, 1024, 262_144].map(weight),
            [Some(1), Some(100), Some(10_000)]
        );
        assert_eq!([10, 1000].map(io_weight), [1, 10_000]);
    }

    #[test]
    fn swap_is_apart_from_memory() {
        let swap_of = |limit, swap| {
            super::swap(&Memory {
                limit: Some(limit),
                swap: Some(swap),
                ..Memory::default()
            })
            .ok()
        };
        assert_eq!(swap_of(100, 150), Some(Some("50".into())));
        assert_eq!(swap_of(100, 100), Some(Some("0".into())));
        assert_eq!(swap_of(100, -1), Some(Some("max".into())));
        assert_eq!(swap_of(100, 50), None);
        assert_eq!(swap_of(0, 50), None);
        assert_eq!(swap_of(-1, 0), Some(Some("max".into())));
    }
}
