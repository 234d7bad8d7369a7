//! Owns limits: the CRI's resources in the document, merged into it at create and at every update, and read back for
//! a container's status.
//!
//! Zero means "not said" for all but the OOM score. Without a word about swap, swap is what memory is, so that nothing
//! is swapped: only where the host can limit it. `memory_swap_limit_in_bytes` counts memory too; engines subtract for
//! cgroup v2. `unified` goes through as it is: the kubelet sends memory.min and memory.low with every container.

use corten_core::{Error, Result};
use corten_protos::google::protobuf::Any;
use corten_protos::runtime::v1::{ContainerResources, HugepageLimit, LinuxContainerResources};
use tracing::warn;

use super::host::{self, Host};
use super::oci;
use super::oci::Spec;
use super::paths;
use crate::config;

/// The kernel's least: a pod's keeper does nothing.
const KEEPER_SHARES: u64 = 2;

/// Where the cgroup of `id` is: below the parent, or in systemd's form `slice:prefix:name` when that is a slice.
pub fn cgroups_path(parent: &str, id: &str) -> String {
    let clean = paths::clean(parent);
    let last = clean.rsplit('/').next().unwrap_or_default();
    if last.ends_with(".slice") {
        return format!("{last}:cri-containerd:{id}");
    }
    paths::join(parent, id)
}

/// What an update of a running task carries: the resources of `spec`.
pub fn task_resources(spec: &Spec) -> Any {
    let resources = spec
        .linux
        .as_ref()
        .and_then(|linux| linux.resources.as_ref());
    match resources {
        Some(resources) => oci::resources_any(resources),
        None => oci::resources_any(&oci::Resources::default()),
    }
}

/// What a container's status says of its resources.
pub fn status_resources(spec: &Spec) -> ContainerResources {
    let Some(linux) = &spec.linux else {
        return ContainerResources::default();
    };
    let process = spec.process.as_ref();
    let mut out = LinuxContainerResources {
        oom_score_adj: process.and_then(|p| p.oom_score_adj).unwrap_or(0).into(),
        ..LinuxContainerResources::default()
    };
    if let Some(resources) = &linux.resources {
        let signed = |n: Option<u64>| n.and_then(|n| i64::try_from(n).ok()).unwrap_or(0);
        if let Some(cpu) = &resources.cpu {
            out.cpu_period = signed(cpu.period);
            out.cpu_quota = cpu.quota.unwrap_or(0);
            out.cpu_shares = signed(cpu.shares);
            out.cpuset_cpus.clone_from(&cpu.cpus);
            out.cpuset_mems.clone_from(&cpu.mems);
        }
        if let Some(memory) = &resources.memory {
            out.memory_limit_in_bytes = memory.limit.unwrap_or(0);
            out.memory_swap_limit_in_bytes = memory.swap.unwrap_or(0);
        }
        let pages = resources.hugepage_limits.iter();
        out.hugepage_limits = pages
            .map(|page| HugepageLimit {
                page_size: page.page_size.clone(),
                limit: page.limit,
            })
            .collect();
        out.unified.clone_from(&resources.unified);
    }
    ContainerResources {
        linux: Some(out),
        windows: None,
    }
}

/// Merges what the CRI asks for into the document.
pub(super) fn apply(
    spec: &mut Spec,
    asked: Option<&LinuxContainerResources>,
    host: &Host,
    config: &config::Runtime,
) -> Result<()> {
    let Some(asked) = asked else {
        return Ok(());
    };
    let resources = spec.resources();
    let cpu = resources.cpu.get_or_insert_default();
    // containerd reinterprets a negative number; a limit of 2^64 microseconds is none.
    let unsigned = |n: i64, what: &str| {
        u64::try_from(n).map_err(|_| Error::invalid(format!("{what} {n} is negative")))
    };
    if asked.cpu_period != 0 {
        cpu.period = Some(unsigned(asked.cpu_period, "cpu_period")?);
    }
    if asked.cpu_quota != 0 {
        cpu.quota = Some(asked.cpu_quota);
    }
    if asked.cpu_shares != 0 {
        cpu.shares = Some(unsigned(asked.cpu_shares, "cpu_shares")?);
    }
    if !asked.cpuset_cpus.is_empty() {
        cpu.cpus.clone_from(&asked.cpuset_cpus);
    }
    if !asked.cpuset_mems.is_empty() {
        cpu.mems.clone_from(&asked.cpuset_mems);
    }
    let memory = resources.memory.get_or_insert_default();
    let (limit, swap) = (
        asked.memory_limit_in_bytes,
        asked.memory_swap_limit_in_bytes,
    );
    if limit != 0 {
        memory.limit = Some(limit);
    }
    if host.swap {
        match (limit, swap) {
            (0, 0) => {}
            (limit, 0) => memory.swap = Some(limit),
            (_, swap) => memory.swap = Some(swap),
        }
    }
    hugepages(resources, &asked.hugepage_limits, host, config)?;
    let unified = asked.unified.iter().map(|(k, v)| (k.clone(), v.clone()));
    resources.unified.extend(unified);
    Ok(())
}

fn hugepages(
    resources: &mut oci::Resources,
    asked: &[HugepageLimit],
    host: &Host,
    config: &config::Runtime,
) -> Result<()> {
    if config.disable_hugetlb_controller || asked.is_empty() {
        return Ok(());
    }
    if !host.hugetlb {
        if !config.tolerate_missing_hugetlb_controller {
            return Err(Error::precondition(
                "huge pages limits are specified but hugetlb cgroup controller is missing. \
                 Please set tolerate_missing_hugetlb_controller to `true` to ignore this error",
            ));
        }
        warn!("hugetlb cgroup controller is absent, huge page limits are not set");
        return Ok(());
    }
    for page in asked {
        let limits = &mut resources.hugepage_limits;
        match limits
            .iter_mut()
            .find(|known| known.page_size == page.page_size)
        {
            Some(known) => known.limit = page.limit,
            None => limits.push(oci::HugepageLimit {
                page_size: page.page_size.clone(),
                limit: page.limit,
                ..oci::HugepageLimit::default()
            }),
        }
    }
    Ok(())
}

/// What a process is worth to the OOM killer. `restrict` keeps it from being worth more than the daemon.
pub(super) fn oom_score_adj(spec: &mut Spec, score: i64, restrict: bool) -> Result<()> {
    let score = match restrict {
        true => score.max(host::oom_score_adj()?),
        false => score,
    };
    let score = i32::try_from(score)
        .map_err(|_| Error::invalid(format!("oom_score_adj {score} is out of range")))?;
    spec.process().oom_score_adj = Some(score);
    Ok(())
}

/// The least of the processor, for a pod's keeper.
pub(super) fn keeper(spec: &mut Spec) {
    spec.resources().cpu.get_or_insert_default().shares = Some(KEEPER_SHARES);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn host() -> Host {
        Host {
            swap: true,
            hugetlb: true,
            ..Host::default()
        }
    }

    fn after(asked: &LinuxContainerResources, host: &Host) -> Spec {
        let mut spec = Spec::default();
        let config = config::Runtime {
            disable_hugetlb_controller: false,
            ..config::Runtime::default()
        };
        apply(&mut spec, Some(asked), host, &config).unwrap();
        spec
    }

    #[test]
    fn cgroups_are_named_for_either_driver() {
        for (parent, want) in [
            ("/kubepods/pod1/", "/kubepods/pod1/c"),
            ("kubepods", "kubepods/c"),
            (
                "/kubepods.slice/kubepods-pod1.slice",
                "kubepods-pod1.slice:cri-containerd:c",
            ),
            ("a.slice/", "a.slice:cri-containerd:c"),
        ] {
            assert_eq!(cgroups_path(parent, "c"), want);
        }
    }

    #[test]
    fn swap_is_memory_unless_said_otherwise() {
        let check = |limit, swap, available, want: Option<i64>| {
            let asked = LinuxContainerResources {
                memory_limit_in_bytes: limit,
                memory_swap_limit_in_bytes: swap,
                ..LinuxContainerResources::default()
            };
            let host = Host {
                swap: available,
                ..host()
            };
            let mut spec = after(&asked, &host);
            let memory = spec.resources().memory.clone().unwrap();
            assert_eq!(memory.limit, (limit != 0).then_some(limit));
            assert_eq!(memory.swap, want);
        };
        check(100, 0, true, Some(100));
        check(100, 300, true, Some(300));
        check(0, 300, true, Some(300));
        check(0, 0, true, None);
        check(100, 300, false, None);
    }

    #[test]
    fn an_update_keeps_what_it_does_not_name() {
        let first = LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: -1,
            cpu_shares: 512,
            cpuset_cpus: "0-1".into(),
            unified: BTreeMap::from([("memory.low".into(), "0".into())]),
            hugepage_limits: vec![HugepageLimit {
                page_size: "2MB".into(),
                limit: 1,
            }],
            ..LinuxContainerResources::default()
        };
        let mut spec = after(&first, &host());
        let second = LinuxContainerResources {
            cpu_shares: 1024,
            unified: BTreeMap::from([("memory.high".into(), "max".into())]),
            hugepage_limits: vec![HugepageLimit {
                page_size: "2MB".into(),
                limit: 2,
            }],
            ..LinuxContainerResources::default()
        };
        let config = config::Runtime {
            disable_hugetlb_controller: false,
            ..config::Runtime::default()
        };
        apply(&mut spec, Some(&second), &host(), &config).unwrap();
        let status = status_resources(&spec).linux.unwrap();
        assert_eq!(
            (status.cpu_period, status.cpu_quota, status.cpu_shares),
            (100_000, -1, 1024)
        );
        assert_eq!(
            (status.cpuset_cpus.as_str(), status.unified.len()),
            ("0-1", 2)
        );
        assert_eq!(status.hugepage_limits, second.hugepage_limits);
        let any = task_resources(&spec);
        let json: serde_json::Value = serde_json::from_slice(&any.value).unwrap();
        assert_eq!(json["cpu"]["shares"], 1024);
    }

    #[test]
    fn missing_controllers_are_an_error_or_not() {
        let asked = LinuxContainerResources {
            hugepage_limits: vec![HugepageLimit {
                page_size: "2MB".into(),
                limit: 1,
            }],
            ..LinuxContainerResources::default()
        };
        let mut config = config::Runtime {
            disable_hugetlb_controller: false,
            ..config::Runtime::default()
        };
        let host = Host::default();
        let mut spec = Spec::default();
        apply(&mut spec, Some(&asked), &host, &config).unwrap();
        assert!(spec.resources().hugepage_limits.is_empty());
        config.tolerate_missing_hugetlb_controller = false;
        assert!(apply(&mut spec, Some(&asked), &host, &config).is_err());
        config.disable_hugetlb_controller = true;
        apply(&mut spec, Some(&asked), &host, &config).unwrap();
    }

    #[test]
    fn nobody_is_worth_more_than_the_daemon_if_restricted() {
        let own = host::oom_score_adj().unwrap();
        let mut spec = Spec::default();
        oom_score_adj(&mut spec, -1000, true).unwrap();
        assert_eq!(i64::from(spec.process().oom_score_adj.unwrap()), own);
        oom_score_adj(&mut spec, -999, false).unwrap();
        assert_eq!(spec.process().oom_score_adj, Some(-999));
        assert!(oom_score_adj(&mut spec, i64::MAX, false).is_err());
    }
}
