//! From what is known of pods and containers to NRI's messages, and resources both ways.

use std::collections::BTreeMap;

use corten_core::nri::{Container, ContainerState, LinuxResources, PodSandbox, oci};
use corten_protos::nri::pkg::api::v1alpha1 as api;
use corten_protos::runtime::v1 as cri;
use serde_json::Value;

use crate::store::{container, pod};

type Strings = BTreeMap<String, String>;

/// A pod; `labels` are those of its record.
pub(super) fn pod(
    metadata: &pod::Metadata,
    status: &pod::Status,
    labels: &Strings,
    spec: &Value,
) -> PodSandbox {
    let config = &metadata.config;
    let of = config.metadata.clone().unwrap_or_default();
    let linux = config.linux.clone().unwrap_or_default();
    // The last word of the kubelet.
    let overhead = status.overhead.clone().or(linux.overhead);
    let wanted = status.resources.clone().or(linux.resources);
    let first = Some(&metadata.ip).filter(|ip| !ip.is_empty());
    let more = metadata.additional_ips.iter().flatten();
    PodSandbox {
        id: metadata.id.clone(),
        name: of.name,
        uid: of.uid,
        namespace: of.namespace,
        labels: merged(&config.labels, labels),
        annotations: merged(&config.annotations, &oci::container(spec).annotations),
        runtime_handler: metadata.runtime_handler.clone(),
        pid: status.pid,
        ips: first
            .into_iter()
            .chain(more.filter(|_| first.is_some()))
            .cloned()
            .collect(),
        linux: Some(api::LinuxPodSandbox {
            pod_overhead: overhead.as_ref().map(resources),
            pod_resources: wanted.as_ref().map(resources),
            cgroup_parent: linux.cgroup_parent,
            ..oci::pod_linux(spec)
        }),
    }
}

/// A container; `labels` are those of its record.
pub(super) fn container(
    metadata: &container::Metadata,
    status: &container::Status,
    labels: &Strings,
    spec: &Value,
) -> Container {
    let config = &metadata.config;
    let mut out = oci::container(spec);
    let security = config
        .linux
        .as_ref()
        .and_then(|l| l.security_context.as_ref());
    let seccomp = security.and_then(|s| s.seccomp.as_ref());
    out.linux.get_or_insert_default().seccomp_profile = seccomp.map(|p| api::SecurityProfile {
        profile_type: p.profile_type,
        localhost_ref: p.localhost_ref.clone(),
    });
    let state = match status.state() {
        cri::ContainerState::ContainerCreated => ContainerState::ContainerCreated,
        cri::ContainerState::ContainerRunning => ContainerState::ContainerRunning,
        cri::ContainerState::ContainerExited => ContainerState::ContainerStopped,
        cri::ContainerState::ContainerUnknown => ContainerState::ContainerUnknown,
    };
    let names = [
        &metadata.image_name,
        &metadata.image_digest,
        &metadata.image_ref,
    ];
    let image = names.iter().any(|n| !n.is_empty()).then(|| api::Image {
        name: metadata.image_name.clone(),
        digest: metadata.image_digest.clone(),
        config_digest: metadata.image_ref.clone(),
    });
    let devices = config.cdi_devices.iter();
    Container {
        id: metadata.id.clone(),
        pod_sandbox_id: metadata.sandbox_id.clone(),
        name: config.metadata.clone().unwrap_or_default().name,
        state: state.into(),
        labels: merged(labels, &config.labels),
        annotations: merged(&out.annotations, &config.annotations),
        pid: status.pid,
        created_at: status.created_at,
        started_at: status.started_at,
        finished_at: status.finished_at,
        exit_code: status.exit_code,
        status_reason: status.reason.clone(),
        status_message: status.message.clone(),
        cdi_devices: devices
            .map(|d| api::CdiDevice {
                name: d.name.clone(),
            })
            .collect(),
        image,
        ..out
    }
}

/// Resources as a client of the CRI gives them.
pub(super) fn resources(r: &cri::LinuxContainerResources) -> LinuxResources {
    let int = |value: i64| Some(api::OptionalInt64 { value });
    let uint = |value: i64| {
        Some(api::OptionalUInt64 {
            value: u64::try_from(value).unwrap_or_default(),
        })
    };
    LinuxResources {
        cpu: Some(api::LinuxCpu {
            shares: uint(r.cpu_shares),
            quota: int(r.cpu_quota),
            period: uint(r.cpu_period),
            cpus: r.cpuset_cpus.clone(),
            mems: r.cpuset_mems.clone(),
            ..Default::default()
        }),
        memory: Some(api::LinuxMemory {
            limit: int(r.memory_limit_in_bytes),
            ..Default::default()
        }),
        hugepage_limits: r
            .hugepage_limits
            .iter()
            .map(|l| api::HugepageLimit {
                page_size: l.page_size.clone(),
                limit: l.limit,
            })
            .collect(),
        unified: r.unified.clone(),
        ..Default::default()
    }
}

/// `base` with what `r` sets, as far as the CRI has words for it.
pub(super) fn overlay(
    mut base: cri::LinuxContainerResources,
    r: &LinuxResources,
) -> cri::LinuxContainerResources {
    fn put<T: TryInto<i64>>(to: &mut i64, value: Option<T>) {
        if let Some(value) = value {
            *to = value.try_into().unwrap_or(i64::MAX);
        }
    }
    if let Some(c) = &r.cpu {
        put(&mut base.cpu_shares, c.shares.map(|v| v.value));
        put(&mut base.cpu_quota, c.quota.map(|v| v.value));
        put(&mut base.cpu_period, c.period.map(|v| v.value));
        for (to, from) in [
            (&mut base.cpuset_cpus, &c.cpus),
            (&mut base.cpuset_mems, &c.mems),
        ] {
            if !from.is_empty() {
                to.clone_from(from);
            }
        }
    }
    if let Some(m) = &r.memory {
        put(&mut base.memory_limit_in_bytes, m.limit.map(|v| v.value));
        put(
            &mut base.memory_swap_limit_in_bytes,
            m.swap.map(|v| v.value),
        );
    }
    for l in &r.hugepage_limits {
        base.hugepage_limits
            .retain(|old| old.page_size != l.page_size);
        base.hugepage_limits.push(cri::HugepageLimit {
            page_size: l.page_size.clone(),
            limit: l.limit,
        });
    }
    let unified = r.unified.iter().map(|(k, v)| (k.clone(), v.clone()));
    base.unified.extend(unified);
    base
}

/// `base` under `over`.
fn merged(base: &Strings, over: &Strings) -> Strings {
    let mut out = base.clone();
    out.extend(over.iter().map(|(k, v)| (k.clone(), v.clone())));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_container_is_told_with_its_image_and_state() {
        let metadata = container::Metadata {
            id: "c".into(),
            sandbox_id: "p".into(),
            image_ref: "sha256:config".into(),
            image_digest: "sha256:index".into(),
            image_name: "registry.example/a:1".into(),
            config: cri::ContainerConfig {
                metadata: Some(cri::ContainerMetadata {
                    name: "web".into(),
                    attempt: 1,
                }),
                labels: [("l".to_owned(), "config".to_owned())].into(),
                cdi_devices: vec![cri::CdiDevice {
                    name: "v/c=d".into(),
                }],
                ..Default::default()
            },
            ..Default::default()
        };
        let status = container::Status {
            created_at: 1,
            started_at: 2,
            finished_at: 3,
            exit_code: 4,
            ..Default::default()
        };
        let labels = [
            ("l".to_owned(), "record".to_owned()),
            ("m".into(), "record".into()),
        ]
        .into();
        let spec = json!({"process": {"args": ["sh"]}, "annotations": {"a": "spec"}});
        let c = container(&metadata, &status, &labels, &spec);
        assert_eq!(
            (c.id.as_str(), c.pod_sandbox_id.as_str(), c.name.as_str()),
            ("c", "p", "web")
        );
        assert_eq!(c.state(), ContainerState::ContainerStopped);
        assert_eq!(
            (c.labels["l"].as_str(), c.labels["m"].as_str()),
            ("config", "record")
        );
        assert_eq!(
            (c.args, c.annotations["a"].as_str()),
            (vec!["sh".to_owned()], "spec")
        );
        assert_eq!(c.cdi_devices[0].name, "v/c=d");
        let image = c.image.unwrap();
        assert_eq!(
            (image.name.as_str(), image.digest.as_str()),
            ("registry.example/a:1", "sha256:index")
        );
        assert_eq!(image.config_digest, "sha256:config");
        let none = container(
            &Default::default(),
            &Default::default(),
            &Strings::new(),
            &json!(null),
        );
        assert_eq!((none.image, none.state), (None, 0));
    }

    #[test]
    fn a_pod_is_told_with_the_kubelets_last_word() {
        let limit = |n| {
            Some(cri::LinuxContainerResources {
                memory_limit_in_bytes: n,
                ..Default::default()
            })
        };
        let metadata = pod::Metadata {
            ip: "10.0.0.2".into(),
            additional_ips: Some(vec!["fd00::2".into()]),
            config: cri::PodSandboxConfig {
                linux: Some(cri::LinuxPodSandboxConfig {
                    cgroup_parent: "/k".into(),
                    overhead: limit(1),
                    resources: limit(2),
                    ..Default::default()
                }),
                ..Default::default()
            },
            ..Default::default()
        };
        let status = pod::Status {
            pid: 7,
            resources: limit(9),
            ..Default::default()
        };
        let spec = json!({"annotations": {"k": "v"}, "linux": {"cgroupsPath": "/k/p"}});
        let p = pod(&metadata, &status, &Strings::new(), &spec);
        assert_eq!(
            (p.pid, p.ips.len(), p.annotations["k"].as_str()),
            (7, 2, "v")
        );
        let linux = p.linux.unwrap();
        assert_eq!(
            (linux.cgroup_parent.as_str(), linux.cgroups_path.as_str()),
            ("/k", "/k/p")
        );
        let limit = |r: Option<LinuxResources>| r.unwrap().memory.unwrap().limit.unwrap().value;
        assert_eq!(
            (limit(linux.pod_overhead), limit(linux.pod_resources)),
            (1, 9)
        );
    }

    #[test]
    fn resources_go_there_and_back() {
        let wanted = cri::LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: -1,
            cpu_shares: 2,
            memory_limit_in_bytes: 5,
            memory_swap_limit_in_bytes: 6,
            oom_score_adj: 7,
            cpuset_cpus: "0".into(),
            hugepage_limits: vec![cri::HugepageLimit {
                page_size: "2MB".into(),
                limit: 1,
            }],
            unified: [("a".to_owned(), "b".to_owned())].into(),
            ..Default::default()
        };
        let told = resources(&wanted);
        assert_eq!(overlay(wanted.clone(), &told), wanted);
        let set = LinuxResources {
            cpu: Some(api::LinuxCpu {
                cpus: "1".into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let over = overlay(wanted.clone(), &set);
        assert_eq!(
            (
                over.cpuset_cpus.as_str(),
                over.cpu_quota,
                over.oom_score_adj
            ),
            ("1", -1, 7)
        );
    }
}
