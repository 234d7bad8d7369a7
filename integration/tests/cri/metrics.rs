//! Stats and metrics of pods and containers.

use std::collections::BTreeSet;

use corten_integration::process::{DEADLINE, eventually};
use corten_protos::runtime::v1;
use tonic::Code;

use crate::cri::{Cri, refused};
use crate::runner::Test;
use crate::{rpc, tests};

pub(crate) fn tests() -> Vec<Test> {
    tests![
        measures_a_container,
        measures_a_pod,
        describes_what_it_measures
    ]
}

fn busy(cri: &Cri) -> (crate::cri::Pod, String) {
    let pod = cri.run(&cri.cni_config("busy"));
    let config = cri.container_config("busy", &["sh", "-c", "echo x >/file; while :; do :; done"]);
    let id = cri.started(&pod, &config);
    (pod, id)
}

fn measures_a_container(cri: &Cri) {
    let (pod, id) = busy(cri);
    let of = |id: &str| {
        let request = v1::ContainerStatsRequest {
            container_id: id.into(),
        };
        rpc!(cri, container_stats(request)).unwrap().stats.unwrap()
    };
    let stats = || of(&id);
    let first = of(&id[..13]);
    let attributes = first.attributes.unwrap();
    assert_eq!(
        (&attributes.id, &attributes.metadata.unwrap().name),
        (&id, &"busy".to_owned())
    );
    let used = |s: &v1::ContainerStats| {
        let cpu = s.cpu.as_ref().unwrap();
        cpu.usage_core_nano_seconds.as_ref().map_or(0, |v| v.value)
    };
    let before = used(&stats());
    let grown = eventually(DEADLINE, || {
        let now = stats();
        // The rate is known after two looks of the collector.
        // Stock containerd tells it of pods only.
        let rate = now
            .cpu
            .as_ref()
            .unwrap()
            .usage_nano_cores
            .is_some_and(|v| v.value > 0);
        let rate = rate || cri.is_reference();
        (used(&now) > before && rate).then_some(now)
    });
    let now = grown.expect("it uses the processor");
    let memory = now.memory.unwrap();
    assert!(memory.working_set_bytes.unwrap().value > 0);
    let layer = eventually(DEADLINE, || {
        let layer = stats().writable_layer?;
        (layer.used_bytes.as_ref()?.value > 0 && layer.inodes_used.as_ref()?.value > 0)
            .then_some(layer)
    });
    assert!(
        !layer
            .expect("its layer is measured")
            .fs_id
            .unwrap()
            .mountpoint
            .is_empty()
    );

    let listed = |filter: v1::ContainerStatsFilter| {
        let request = v1::ListContainerStatsRequest {
            filter: Some(filter),
        };
        let list = rpc!(cri, list_container_stats(request)).unwrap().stats;
        list.into_iter()
            .map(|s| s.attributes.unwrap().id)
            .collect::<Vec<_>>()
    };
    let of_pod = v1::ContainerStatsFilter {
        pod_sandbox_id: pod.id.clone(),
        ..Default::default()
    };
    assert_eq!(listed(of_pod), [&*id]);
    let mine = v1::ContainerStatsFilter {
        label_selector: [("test".to_owned(), cri.name.clone())].into(),
        ..Default::default()
    };
    assert_eq!(listed(mine), [&*id]);
    let nobody = v1::ContainerStatsFilter {
        id: "0".repeat(64),
        ..Default::default()
    };
    assert!(listed(nobody).is_empty());
    let request = v1::ContainerStatsRequest {
        container_id: "0".repeat(64),
    };
    refused(rpc!(cri, container_stats(request)), Code::NotFound, "");
}

fn measures_a_pod(cri: &Cri) {
    let (pod, id) = busy(cri);
    let stats = eventually(DEADLINE, || {
        let request = v1::PodSandboxStatsRequest {
            pod_sandbox_id: pod.id.clone(),
        };
        let linux = rpc!(cri, pod_sandbox_stats(request))
            .unwrap()
            .stats?
            .linux?;
        let rate = linux.cpu.as_ref()?.usage_nano_cores.as_ref()?.value;
        (rate > 0).then_some(linux)
    });
    let stats = stats.expect("it uses the processor");
    assert_eq!(stats.containers.len(), 1);
    assert_eq!(stats.containers[0].attributes.as_ref().unwrap().id, id);
    let network = stats.network.unwrap().default_interface.unwrap();
    assert_eq!(network.name, "eth0");
    assert!(stats.process.unwrap().process_count.unwrap().value >= 1);
    let request = v1::ListPodSandboxStatsRequest {
        filter: Some(v1::PodSandboxStatsFilter {
            label_selector: [("test".to_owned(), cri.name.clone())].into(),
            ..Default::default()
        }),
    };
    let list = rpc!(cri, list_pod_sandbox_stats(request)).unwrap().stats;
    assert_eq!(list.len(), 1);
    assert_eq!(list[0].attributes.as_ref().unwrap().id, pod.id);
}

fn describes_what_it_measures(cri: &Cri) {
    let (pod, id) = busy(cri);
    let request = v1::ListMetricDescriptorsRequest {};
    let descriptors = rpc!(cri, list_metric_descriptors(request))
        .unwrap()
        .descriptors;
    let known: BTreeSet<_> = descriptors.iter().map(|d| d.name.clone()).collect();
    for name in [
        "container_cpu_usage_seconds_total",
        "container_memory_working_set_bytes",
        "container_network_receive_bytes_total",
        "container_fs_usage_bytes",
        "container_start_time_seconds",
    ] {
        assert!(known.contains(name), "{name} of {known:?}");
    }
    let metrics = eventually(DEADLINE, || {
        let request = v1::ListPodSandboxMetricsRequest {};
        let all = rpc!(cri, list_pod_sandbox_metrics(request))
            .unwrap()
            .pod_metrics;
        let mine = all.into_iter().find(|m| m.pod_sandbox_id == pod.id)?;
        (!mine.container_metrics.is_empty()).then_some(mine)
    });
    let metrics = metrics.expect("the pod is measured");
    assert_eq!(metrics.container_metrics[0].container_id, id);
    let labels = |name: &str| {
        let one = descriptors.iter().find(|d| d.name == name);
        one.unwrap_or_else(|| panic!("{name} is not described"))
            .label_keys
            .len()
    };
    let all = metrics
        .metrics
        .iter()
        .chain(&metrics.container_metrics[0].metrics);
    let mut names = BTreeSet::new();
    for metric in all {
        assert_eq!(
            metric.label_values.len(),
            labels(&metric.name),
            "{metric:?}"
        );
        names.insert(metric.name.clone());
    }
    assert!(
        names.contains("container_cpu_usage_seconds_total"),
        "{names:?}"
    );
    assert!(
        names.contains("container_network_receive_bytes_total"),
        "{names:?}"
    );
}
