//! Resources: each limit is a field of its own.

use corten_core::Result;
use corten_protos::nri::pkg::api::v1alpha1::{Field, LinuxResources};

use crate::owners::Owners;

/// Claims what `wanted` sets.
pub(super) fn claim(
    owners: &mut Owners,
    id: &str,
    wanted: &LinuxResources,
    plugin: &str,
) -> Result<()> {
    let mut set = |is: bool, field: Field| {
        if is {
            owners.claim(id, field, plugin)
        } else {
            Ok(())
        }
    };
    if let Some(m) = &wanted.memory {
        set(m.limit.is_some(), Field::MemLimit)?;
        set(m.reservation.is_some(), Field::MemReservation)?;
        set(m.swap.is_some(), Field::MemSwapLimit)?;
        set(m.kernel.is_some(), Field::MemKernelLimit)?;
        set(m.kernel_tcp.is_some(), Field::MemTcpLimit)?;
        set(m.swappiness.is_some(), Field::MemSwappiness)?;
        set(m.disable_oom_killer.is_some(), Field::MemDisableOomKiller)?;
        set(m.use_hierarchy.is_some(), Field::MemUseHierarchy)?;
    }
    if let Some(c) = &wanted.cpu {
        set(c.shares.is_some(), Field::CpuShares)?;
        set(c.quota.is_some(), Field::CpuQuota)?;
        set(c.period.is_some(), Field::CpuPeriod)?;
        set(c.realtime_runtime.is_some(), Field::CpuRealtimeRuntime)?;
        set(c.realtime_period.is_some(), Field::CpuRealtimePeriod)?;
        set(!c.cpus.is_empty(), Field::CpuSetCpUs)?;
        set(!c.mems.is_empty(), Field::CpuSetMems)?;
    }
    set(wanted.blockio_class.is_some(), Field::BlockioClass)?;
    set(wanted.rdt_class.is_some(), Field::RdtClass)?;
    set(wanted.pids.is_some(), Field::PidsLimit)?;
    for l in &wanted.hugepage_limits {
        owners.claim_entry(id, Field::HugepageLimits, &l.page_size, plugin)?;
    }
    for key in wanted.unified.keys() {
        owners.claim_entry(id, Field::CgroupsUnified, key, plugin)?;
    }
    Ok(())
}

/// Puts what `wanted` sets over `to`. Rules for devices are not taken: they are no limits.
pub(super) fn apply(wanted: &LinuxResources, to: &mut LinuxResources) {
    macro_rules! put {
        ($from:expr, $to:expr; $($field:ident)*) => {$(
            if $from.$field.is_some() {
                $to.$field.clone_from(&$from.$field);
            }
        )*};
    }
    if let Some(m) = &wanted.memory {
        let memory = to.memory.get_or_insert_default();
        put!(m, memory; limit reservation swap kernel kernel_tcp swappiness disable_oom_killer use_hierarchy);
    }
    if let Some(c) = &wanted.cpu {
        let cpu = to.cpu.get_or_insert_default();
        put!(c, cpu; shares quota period realtime_runtime realtime_period);
        for (from, to) in [(&c.cpus, &mut cpu.cpus), (&c.mems, &mut cpu.mems)] {
            if !from.is_empty() {
                to.clone_from(from);
            }
        }
    }
    put!(wanted, to; blockio_class rdt_class pids);
    for l in &wanted.hugepage_limits {
        to.hugepage_limits
            .retain(|old| old.page_size != l.page_size);
        to.hugepage_limits.push(l.clone());
    }
    let unified = wanted.unified.iter().map(|(k, v)| (k.clone(), v.clone()));
    to.unified.extend(unified);
}
