//! Pods: made, listed, told of, stopped and removed, again and again.

use corten_integration::process::{DEADLINE, eventually, exits_within};
use corten_protos::runtime::v1::{self, NamespaceMode, PodSandboxState};
use rustix::process::{Pid, Signal, kill_process};
use tonic::Code;

use crate::cri::{Cri, fails, refused};
use crate::runner::Test;
use crate::{rpc, tests};

pub(crate) fn tests() -> Vec<Test> {
    let mut all = tests![
        runs_stops_and_removes_a_pod,
        stops_and_removes_what_is_not_there,
        reserves_the_name_of_a_pod,
        lists_by_label_state_and_id,
        knows_a_pod_by_a_part_of_its_id,
        takes_containers_down_with_their_pod,
        gives_pods_their_host_names,
        refuses_an_unknown_handler,
        runs_a_pod_of_each_handler,
        updates_the_resources_of_a_pod,
        gives_pods_namespaces_of_their_own,
        shares_the_namespaces_of_the_host,
    ];
    all.extend(
        tests![keeps_pods_and_containers_when_killed]
            .into_iter()
            .map(|t| t.own_daemon("")),
    );
    all
}

fn state(cri: &Cri, id: &str) -> PodSandboxState {
    cri.pod_status(id).unwrap().status.unwrap().state()
}

fn runs_stops_and_removes_a_pod(cri: &Cri) {
    let pod = cri.pod();
    let answer = cri.pod_status(&pod.id).unwrap();
    let status = answer.status.unwrap();
    assert_eq!(status.state(), PodSandboxState::SandboxReady);
    assert_eq!(status.metadata, pod.config.metadata);
    assert_eq!(status.labels, pod.config.labels);
    assert!(status.created_at > 1_700_000_000_000_000_000);
    let info: serde_json::Value = serde_json::from_str(&answer.info["info"]).unwrap();
    assert!(info["pid"].as_u64().is_some_and(|pid| pid > 1), "{info}");
    cri.stop_pod(&pod.id);
    assert_eq!(state(cri, &pod.id), PodSandboxState::SandboxNotready);
    cri.stop_pod(&pod.id);
    cri.remove_pod(&pod.id);
    refused(cri.pod_status(&pod.id), Code::NotFound, "");
    assert!(cri.pods().is_empty());
}

fn stops_and_removes_what_is_not_there(cri: &Cri) {
    let nobody = "0".repeat(64);
    cri.stop_pod(&nobody);
    cri.remove_pod(&nobody);
    cri.stop(&nobody, 0);
    cri.remove(&nobody);
    let pod = cri.pod();
    cri.remove_pod(&pod.id);
    cri.remove_pod(&pod.id);
}

fn reserves_the_name_of_a_pod(cri: &Cri) {
    let config = cri.pod_config("one");
    let pod = cri.run(&config);
    fails(cri.try_run(&config), "is reserved for");
    let mut next = config.clone();
    next.metadata.as_mut().unwrap().attempt = 1;
    cri.run(&next);
    cri.stop_pod(&pod.id);
    cri.remove_pod(&pod.id);
    cri.run(&config);
}

fn listed(cri: &Cri, mut filter: v1::PodSandboxFilter) -> Vec<String> {
    filter
        .label_selector
        .insert("test".into(), cri.name.clone());
    let request = v1::ListPodSandboxRequest {
        filter: Some(filter),
    };
    let list = rpc!(cri, list_pod_sandbox(request)).unwrap().items;
    list.into_iter().map(|p| p.id).collect()
}

fn lists_by_label_state_and_id(cri: &Cri) {
    let one = cri.run(&cri.pod_config("one"));
    let mut config = cri.pod_config("two");
    config.labels.insert("color".into(), "blue".into());
    let two = cri.run(&config);
    cri.stop_pod(&one.id);
    let in_state = |state: PodSandboxState| v1::PodSandboxFilter {
        state: Some(v1::PodSandboxStateValue {
            state: state.into(),
        }),
        ..Default::default()
    };
    assert_eq!(
        listed(cri, in_state(PodSandboxState::SandboxReady)),
        [&*two.id]
    );
    assert_eq!(
        listed(cri, in_state(PodSandboxState::SandboxNotready)),
        [&*one.id]
    );
    let of = |id: &str| v1::PodSandboxFilter {
        id: id.into(),
        ..Default::default()
    };
    assert_eq!(listed(cri, of(&one.id)), [&*one.id]);
    assert!(listed(cri, of(&"0".repeat(64))).is_empty());
    let blue = v1::PodSandboxFilter {
        label_selector: [("color".to_owned(), "blue".to_owned())].into(),
        ..Default::default()
    };
    assert_eq!(listed(cri, blue), [&*two.id]);
    let both = v1::PodSandboxFilter {
        id: one.id.clone(),
        ..in_state(PodSandboxState::SandboxReady)
    };
    assert!(listed(cri, both).is_empty(), "conditions are ANDed");
    assert_eq!(listed(cri, v1::PodSandboxFilter::default()).len(), 2);
}

fn knows_a_pod_by_a_part_of_its_id(cri: &Cri) {
    let (pod, id) = cri.sleeper();
    let found = cri.pod_status(&pod.id[..13]).unwrap().status.unwrap();
    assert_eq!(found.id, pod.id);
    assert_eq!(cri.status(&id[..13]).id, id);
    let filter = v1::PodSandboxFilter {
        id: pod.id[..13].into(),
        ..Default::default()
    };
    assert_eq!(listed(cri, filter), [&*pod.id]);
    assert_eq!(cri.shell(&id[..13], "echo hello"), "hello\n");
    refused(cri.pod_status("zzzz"), Code::NotFound, "");
    cri.stop_pod(&pod.id[..13]);
    cri.remove_pod(&pod.id[..13]);
    assert!(cri.pods().is_empty());
}

fn takes_containers_down_with_their_pod(cri: &Cri) {
    let (pod, id) = cri.sleeper();
    let config = cri.container_config("only-created", &["sleep", "1000"]);
    let created = cri.create(&pod, &config).unwrap();
    cri.stop_pod(&pod.id);
    assert_eq!(cri.status(&id).exit_code, 137);
    cri.remove_pod(&pod.id);
    for id in [id, created] {
        let request = v1::ContainerStatusRequest {
            container_id: id.clone(),
            verbose: false,
        };
        refused(rpc!(cri, container_status(request)), Code::NotFound, "");
    }
}

fn gives_pods_their_host_names(cri: &Cri) {
    let mut config = cri.cni_config("named");
    config.hostname = "a-name-of-its-own".into();
    let pod = cri.run(&config);
    let id = cri.started(&pod, &cri.container_config("one", &["sleep", "1000"]));
    assert_eq!(cri.shell(&id, "hostname"), "a-name-of-its-own\n");
    assert_eq!(cri.shell(&id, "cat /etc/hostname"), "a-name-of-its-own\n");
    assert_eq!(cri.shell(&id, "echo $HOSTNAME"), "a-name-of-its-own\n");
}

fn refuses_an_unknown_handler(cri: &Cri) {
    let config = cri.pod_config("one");
    fails(
        cri.try_run_with(&config, "no-such-handler"),
        "no-such-handler",
    );
    assert!(cri.pods().is_empty());
    // The name is free again.
    cri.run(&config);
}

fn runs_a_pod_of_each_handler(cri: &Cri) {
    let handlers: &[&str] = if cri.is_reference() {
        &["", "runc"]
    } else {
        &["", "corten", "runc"]
    };
    for handler in handlers {
        let name = format!("of{handler}");
        let pod = cri.try_run_with(&cri.pod_config(&name), handler).unwrap();
        let status = cri.pod_status(&pod.id).unwrap().status.unwrap();
        assert_eq!(status.runtime_handler, *handler);
        let config = cri.container_config(&name, &["sh", "-c", "echo hello; exit 3"]);
        let (ended, output) = cri.outcome(&pod, &config);
        assert_eq!((ended.exit_code, &*output), (3, "hello\n"), "{handler}");
        assert_eq!(ended.reason, "Error");
    }
}

fn updates_the_resources_of_a_pod(cri: &Cri) {
    let pod = cri.pod();
    let request = v1::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: pod.id.clone(),
        resources: Some(v1::LinuxContainerResources {
            cpu_shares: 512,
            memory_limit_in_bytes: 64 << 20,
            ..Default::default()
        }),
        ..Default::default()
    };
    rpc!(cri, update_pod_sandbox_resources(request.clone())).unwrap();
    let info = &cri.pod_status(&pod.id).unwrap().info["info"];
    assert!(info.contains("67108864"), "{info}");
    let nobody = v1::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: "0".repeat(64),
        ..request
    };
    refused(
        rpc!(cri, update_pod_sandbox_resources(nobody)),
        Code::NotFound,
        "",
    );
}

/// The namespaces of a container's first process.
fn namespaces(cri: &Cri, id: &str) -> Vec<String> {
    let script = "for n in net pid ipc uts mnt; do readlink /proc/self/ns/$n; done";
    cri.shell(id, script).lines().map(str::to_owned).collect()
}

fn own_namespaces() -> Vec<String> {
    ["net", "pid", "ipc", "uts", "mnt"]
        .iter()
        .map(|n| {
            let link = std::fs::read_link(format!("/proc/self/ns/{n}")).unwrap();
            link.to_string_lossy().into_owned()
        })
        .collect()
}

/// The security context of a container's config.
fn security(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerSecurityContext {
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default()
}

fn gives_pods_namespaces_of_their_own(cri: &Cri) {
    let pod = cri.run(&cri.cni_config("own"));
    let mut config = cri.container_config("one", &["sleep", "1000"]);
    let one = namespaces(cri, &cri.started(&pod, &config));
    config.metadata.as_mut().unwrap().name = "two".into();
    config.log_path = "two.log".into();
    security(&mut config).namespace_options = Some(v1::NamespaceOption {
        pid: NamespaceMode::Container.into(),
        ..Default::default()
    });
    let two = namespaces(cri, &cri.started(&pod, &config));
    let host = own_namespaces();
    assert!(
        one.iter().zip(&host).all(|(a, b)| a != b),
        "{one:?} {host:?}"
    );
    assert_eq!((&one[0], &one[2], &one[3]), (&two[0], &two[2], &two[3]));
    assert_ne!(one[1], two[1], "a pid namespace of its own");
    assert_ne!(one[4], two[4]);
}

fn shares_the_namespaces_of_the_host(cri: &Cri) {
    let node = v1::NamespaceOption {
        network: NamespaceMode::Node.into(),
        pid: NamespaceMode::Node.into(),
        ipc: NamespaceMode::Node.into(),
        ..Default::default()
    };
    let mut config = cri.cni_config("host");
    cri.security(&mut config).namespace_options = Some(node.clone());
    let pod = cri.run(&config);
    let mut config = cri.container_config("one", &["sleep", "1000"]);
    security(&mut config).namespace_options = Some(node);
    let found = namespaces(cri, &cri.started(&pod, &config));
    let host = own_namespaces();
    assert_eq!(found[..3], host[..3]);
    assert_ne!(found[4], host[4]);
}

/// The process of a container, as the verbose answer has it.
fn pid(cri: &Cri, id: &str) -> u32 {
    let request = v1::ContainerStatusRequest {
        container_id: id.into(),
        verbose: true,
    };
    let answer = rpc!(cri, container_status(request)).unwrap();
    let info: serde_json::Value = serde_json::from_str(&answer.info["info"]).unwrap();
    u32::try_from(info["pid"].as_u64().expect("a pid")).unwrap()
}

fn keeps_pods_and_containers_when_killed(cri: &Cri) {
    let pod = cri.run(&cri.cni_config("kept"));
    let script = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.1; done";
    let id = cri.started(&pod, &cri.container_config("talks", &["sh", "-c", script]));
    let script = "trap 'exit 5' TERM; echo ready; while :; do sleep 0.1; done";
    let ends = cri.started(&pod, &cri.container_config("ends", &["sh", "-c", script]));
    let ready = || (cri.logged("ends.log") == "ready\n").then_some(());
    eventually(DEADLINE, ready).expect("it is ready");
    let before = cri.pod_status(&pod.id).unwrap().status.unwrap();
    let (spec, process) = (cri.runtime_spec(&ends), pid(cri, &ends));
    cri.machine.daemon.kill();
    // One ends while nobody looks; the other goes on talking, and our shim goes on writing it down.
    let raw = Pid::from_raw(process.cast_signed()).unwrap();
    kill_process(raw, Signal::TERM).unwrap();
    assert!(exits_within(process, DEADLINE));
    let lines = || cri.logged("talks.log").lines().count();
    if !cri.is_reference() {
        let seen = lines();
        eventually(DEADLINE, || (lines() > seen + 5).then_some(())).expect("the log grows");
    }
    cri.machine.daemon.start();
    let back = eventually(DEADLINE, || cri.pod_status(&pod.id).ok()).expect("the daemon answers");
    let after = back.status.unwrap();
    assert_eq!(after.state(), PodSandboxState::SandboxReady);
    assert_eq!(
        (after.created_at, after.network),
        (before.created_at, before.network)
    );
    assert_eq!(cri.runtime_spec(&ends), spec);
    // Stock containerd forgets what its shim would have told.
    let code = cri.ended(&ends).exit_code;
    assert!(code == 5 || cri.is_reference() && code == 255, "{code}");
    assert_eq!(cri.shell(&id, "echo hello"), "hello\n");
    let seen = lines();
    eventually(DEADLINE, || (lines() > seen + 3).then_some(())).expect("the log grows");
    if !cri.is_reference() {
        for (number, line) in cri.logged("talks.log").lines().enumerate() {
            assert_eq!(
                line,
                format!("line {}", number + 1),
                "no line is lost or doubled"
            );
        }
    }
}
