//! What the daemon says of itself, and the streams of lists and events.

use std::collections::BTreeSet;
use std::fs;

use corten_integration::process::{DEADLINE, eventually};
use corten_protos::runtime::v1::{self, ContainerEventType};
use futures::StreamExt;

use crate::cri::Cri;
use crate::runner::Test;
use crate::{image_rpc, rpc, tests};

/// What the daemon of `writes_a_network_for_the_pods_addresses` is told, beside the others.
const TEMPLATE: &str =
    "[plugins.'io.containerd.cri.v1.runtime'.containerd]\ndefault_runtime_name = \"runc\"\n";

pub(crate) fn tests() -> Vec<Test> {
    let mut all = tests![
        tells_its_version,
        tells_its_conditions_and_features,
        tells_the_cgroup_driver,
        takes_the_pods_addresses,
        streams_every_list,
        tells_events_in_order,
    ];
    all.extend(tests![runs_pods_of_the_handler_that_config_names].map_own(TEMPLATE));
    all
}

/// Gives tests a daemon of their own.
trait Own {
    fn map_own(self, extra: &'static str) -> Vec<Test>;
}

impl Own for Vec<Test> {
    fn map_own(self, extra: &'static str) -> Vec<Test> {
        self.into_iter().map(|t| t.own_daemon(extra)).collect()
    }
}

fn tells_its_version(cri: &Cri) {
    let request = v1::VersionRequest {
        version: "0.1.0".into(),
    };
    let version = rpc!(cri, version(request)).unwrap();
    assert_eq!(version.version, "0.1.0");
    assert_eq!(version.runtime_api_version, "v1");
    // crictl and the kubelet know runtimes by this name.
    assert_eq!(version.runtime_name, "containerd");
    assert!(!version.runtime_version.is_empty());
}

fn tells_its_conditions_and_features(cri: &Cri) {
    let ready = eventually(DEADLINE, || {
        let status = rpc!(cri, status(v1::StatusRequest { verbose: true })).unwrap();
        let conditions = status.status.clone().unwrap().conditions;
        let ready = |name: &str| conditions.iter().any(|c| c.r#type == name && c.status);
        (ready("RuntimeReady") && ready("NetworkReady")).then_some(status)
    });
    let status = ready.expect("runtime and network become ready");
    for key in ["config", "cniconfig", "lastCNILoadStatus"] {
        assert!(status.info.contains_key(key), "{:?}", status.info.keys());
    }
    let config: serde_json::Value = serde_json::from_str(&status.info["config"]).unwrap();
    assert!(config.is_object());
    let handlers: BTreeSet<_> = status.runtime_handlers.iter().map(|h| &*h.name).collect();
    assert!(
        handlers.contains("") && handlers.contains("runc"),
        "{handlers:?}"
    );
    assert_eq!(handlers.contains("corten"), !cri.is_reference());
    assert!(status.features.unwrap().supplemental_groups_policy);
    // Only who asks gets the long answer.
    let status = rpc!(cri, status(v1::StatusRequest { verbose: false })).unwrap();
    assert!(status.info.is_empty());
}

fn tells_the_cgroup_driver(cri: &Cri) {
    let config = rpc!(cri, runtime_config(v1::RuntimeConfigRequest {})).unwrap();
    let systemd = std::path::Path::new("/run/systemd/system").exists();
    let driver = config.linux.unwrap().cgroup_driver();
    assert_eq!(driver == v1::CgroupDriver::Systemd, systemd);
}

fn takes_the_pods_addresses(cri: &Cri) {
    let dir = cri.machine.world.dir.join("cni");
    let before: Vec<_> = fs::read_dir(&dir)
        .unwrap()
        .flatten()
        .map(|e| e.file_name())
        .collect();
    let request = v1::UpdateRuntimeConfigRequest {
        runtime_config: Some(v1::RuntimeConfig {
            network_config: Some(v1::NetworkConfig {
                pod_cidr: "10.78.0.0/24".into(),
            }),
        }),
    };
    rpc!(cri, update_runtime_config(request)).unwrap();
    // Without a template nothing is written.
    let after: Vec<_> = fs::read_dir(&dir)
        .unwrap()
        .flatten()
        .map(|e| e.file_name())
        .collect();
    assert_eq!(before, after);
}

fn runs_pods_of_the_handler_that_config_names(cri: &Cri) {
    let pod = cri.pod();
    let status = cri.pod_status(&pod.id).unwrap();
    let info: serde_json::Value = serde_json::from_str(&status.info["info"]).unwrap();
    assert_eq!(info["runtimeType"], "io.containerd.runc.v2", "{info}");
    let config = cri.container_config("one", &["echo", "hello"]);
    let (ended, output) = cri.outcome(&pod, &config);
    assert_eq!((ended.exit_code, &*output), (0, "hello\n"));
}

/// Every item of a server stream that ends.
macro_rules! all_of {
    ($cri:expr, $method:ident($request:expr), $items:ident) => {{
        let mut stream = rpc!($cri, $method($request)).unwrap();
        $cri.block(async {
            let mut all = Vec::new();
            while let Some(part) = stream.next().await {
                all.extend(part.unwrap().$items);
            }
            all
        })
    }};
}

fn streams_every_list(cri: &Cri) {
    if cri.is_reference() {
        let answer = rpc!(
            cri,
            stream_containers(v1::StreamContainersRequest::default())
        );
        let code = match answer {
            Err(e) => Some(e.code()),
            Ok(mut stream) => cri
                .block(stream.next())
                .and_then(|part| part.err().map(|e| e.code())),
        };
        if code == Some(tonic::Code::Unimplemented) {
            println!("stock containerd has no list streams");
            return;
        }
    }
    let (pod, id) = cri.sleeper();
    let mine =
        |label: &std::collections::BTreeMap<String, String>| label.get("test") == Some(&cri.name);
    let pods = all_of!(
        cri,
        stream_pod_sandboxes(v1::StreamPodSandboxesRequest::default()),
        pod_sandboxes
    );
    let pods: Vec<_> = pods
        .into_iter()
        .filter(|p| mine(&p.labels))
        .map(|p| p.id)
        .collect();
    assert_eq!(pods, [&*pod.id]);
    let containers = all_of!(
        cri,
        stream_containers(v1::StreamContainersRequest::default()),
        containers
    );
    let containers: Vec<_> = containers
        .into_iter()
        .filter(|c| mine(&c.labels))
        .map(|c| c.id)
        .collect();
    assert_eq!(containers, [&*id]);
    let only = v1::ContainerFilter {
        pod_sandbox_id: "0".repeat(64),
        ..Default::default()
    };
    let request = v1::StreamContainersRequest { filter: Some(only) };
    assert!(all_of!(cri, stream_containers(request), containers).is_empty());
    let stats = all_of!(
        cri,
        stream_container_stats(v1::StreamContainerStatsRequest::default()),
        container_stats
    );
    assert!(
        stats
            .iter()
            .any(|s| s.attributes.as_ref().unwrap().id == id)
    );
    let stats = all_of!(
        cri,
        stream_pod_sandbox_stats(v1::StreamPodSandboxStatsRequest::default()),
        pod_sandbox_stats
    );
    assert!(
        stats
            .iter()
            .any(|s| s.attributes.as_ref().unwrap().id == pod.id)
    );
    let metrics = all_of!(
        cri,
        stream_pod_sandbox_metrics(v1::StreamPodSandboxMetricsRequest {}),
        pod_sandbox_metrics
    );
    assert!(metrics.iter().any(|m| m.pod_sandbox_id == pod.id));
    let mut images = image_rpc!(cri, stream_images(v1::StreamImagesRequest::default())).unwrap();
    let found = cri.block(async {
        let mut found = Vec::new();
        while let Some(part) = images.next().await {
            found.extend(part.unwrap().images);
        }
        found
    });
    let busybox = cri.busybox();
    assert!(found.iter().any(|i| i.repo_tags.contains(&busybox)));
}

fn tells_events_in_order(cri: &Cri) {
    let mut events = rpc!(cri, get_container_events(v1::GetEventsRequest {})).unwrap();
    let (pod, id) = cri.sleeper();
    cri.stop(&id, 0);
    cri.remove(&id);
    cri.stop_pod(&pod.id);
    cri.remove_pod(&pod.id);
    let seen = cri.block(async {
        let mut seen = Vec::new();
        loop {
            let event = events.next().await.expect("events go on").unwrap();
            let kind = event.container_event_type();
            let status = event.pod_sandbox_status;
            if event.container_id == id {
                // The kubelet goes by these instead of asking.
                if kind != ContainerEventType::ContainerDeletedEvent {
                    assert_eq!(status.expect("the pod's status").id, pod.id);
                }
                seen.push(("container", kind));
            } else if event.container_id == pod.id {
                seen.push(("pod", kind));
                if kind == ContainerEventType::ContainerDeletedEvent {
                    return seen;
                }
            }
        }
    });
    let of = |what| {
        let kinds = seen.iter().filter(move |(w, _)| *w == what);
        kinds.map(|&(_, kind)| kind).collect::<Vec<_>>()
    };
    use ContainerEventType::{
        ContainerCreatedEvent, ContainerDeletedEvent, ContainerStartedEvent, ContainerStoppedEvent,
    };
    let life = [
        ContainerCreatedEvent,
        ContainerStartedEvent,
        ContainerStoppedEvent,
        ContainerDeletedEvent,
    ];
    assert_eq!(of("container"), life, "{seen:?}");
    assert_eq!(of("pod"), life, "{seen:?}");
}
