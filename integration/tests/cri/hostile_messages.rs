//! Messages and streams that try to bring the daemon down, each named by what it tries. Numbers in brackets are those of
//! the invariants that the project keeps a list of.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpStream;

use corten_integration::leaks;
use corten_integration::process::{DEADLINE, eventually};
use corten_protos::runtime::v1;
use corten_protos::runtime::v1::image_service_client::ImageServiceClient;
use corten_protos::runtime::v1::runtime_service_client::RuntimeServiceClient;
use tonic::Code;

use crate::cri::{Cri, refused};
use crate::runner::Test;
use crate::{image_rpc, rpc, tests};

pub(crate) fn tests() -> Vec<Test> {
    let mut all = tests![
        empty_requests,
        numbers_out_of_range,
        ids_that_are_paths,
        commands_that_leave_a_child,
        tokens_to_be_guessed,
    ];
    let own = |test: Vec<Test>, extra| test.into_iter().map(move |t| t.own_daemon(extra));
    all.extend(own(
        tests![clients_that_hang_up, streams_that_nobody_ends],
        "",
    ));
    all.extend(own(tests![the_services_over_the_network], TCP));
    all
}

/// The TCP listener, which has none of the CRI's services.
const TCP: &str = "tcp_address = \"127.0.0.1:10011\"\n";

/// [S27] Every method, with a request that says nothing.
fn empty_requests(cri: &Cri) {
    macro_rules! all {
        ($client:ident: $($method:ident($request:ident)),+) => {
            $(let _ = cri.wait($client.$method(v1::$request::default()));)+
        };
    }
    let mut c: RuntimeServiceClient<_> = cri.runtime();
    all!(c: version(VersionRequest), status(StatusRequest), runtime_config(RuntimeConfigRequest),
        update_runtime_config(UpdateRuntimeConfigRequest), run_pod_sandbox(RunPodSandboxRequest),
        stop_pod_sandbox(StopPodSandboxRequest), remove_pod_sandbox(RemovePodSandboxRequest),
        pod_sandbox_status(PodSandboxStatusRequest), list_pod_sandbox(ListPodSandboxRequest),
        update_pod_sandbox_resources(UpdatePodSandboxResourcesRequest), create_container(CreateContainerRequest),
        start_container(StartContainerRequest), stop_container(StopContainerRequest),
        remove_container(RemoveContainerRequest), list_containers(ListContainersRequest),
        container_status(ContainerStatusRequest), update_container_resources(UpdateContainerResourcesRequest),
        reopen_container_log(ReopenContainerLogRequest), exec_sync(ExecSyncRequest), exec(ExecRequest),
        attach(AttachRequest), port_forward(PortForwardRequest), checkpoint_container(CheckpointContainerRequest),
        container_stats(ContainerStatsRequest), list_container_stats(ListContainerStatsRequest),
        pod_sandbox_stats(PodSandboxStatsRequest), list_pod_sandbox_stats(ListPodSandboxStatsRequest),
        list_metric_descriptors(ListMetricDescriptorsRequest), list_pod_sandbox_metrics(ListPodSandboxMetricsRequest),
        stream_pod_sandboxes(StreamPodSandboxesRequest), stream_containers(StreamContainersRequest));
    let mut c: ImageServiceClient<_> = cri.images();
    all!(c: list_images(ListImagesRequest), image_status(ImageStatusRequest), pull_image(PullImageRequest),
        remove_image(RemoveImageRequest), image_fs_info(ImageFsInfoRequest), stream_images(StreamImagesRequest));
    let pod = cri.pod();
    let request = v1::CreateContainerRequest {
        pod_sandbox_id: pod.id.clone(),
        ..Default::default()
    };
    assert!(rpc!(cri, create_container(request)).is_err());
    rpc!(cri, version(v1::VersionRequest::default())).unwrap();
}

/// [S27]
fn numbers_out_of_range(cri: &Cri) {
    let (pod, id) = cri.sleeper();
    for timeout in [-1, i64::MIN, i64::MAX] {
        let request = v1::ExecSyncRequest {
            container_id: id.clone(),
            cmd: vec!["true".into()],
            timeout,
        };
        let _ = rpc!(cri, exec_sync(request));
    }
    for port in [0, -1, 65_536, i32::MIN, i32::MAX] {
        let request = v1::PortForwardRequest {
            pod_sandbox_id: pod.id.clone(),
            port: vec![port],
        };
        let answer = rpc!(cri, port_forward(request));
        assert!(answer.is_err() || cri.is_reference(), "{port}");
    }
    let mut config = cri.container_config("odd", &["true"]);
    config.stop_signal = 1000;
    assert!(cri.create(&pod, &config).is_err());
    for limit in [i64::MIN, -2, 1] {
        let request = v1::UpdateContainerResourcesRequest {
            container_id: id.clone(),
            linux: Some(v1::LinuxContainerResources {
                memory_limit_in_bytes: limit,
                cpu_quota: i64::MIN,
                oom_score_adj: i64::MAX,
                ..Default::default()
            }),
            ..Default::default()
        };
        let _ = rpc!(cri, update_container_resources(request));
    }
    let mut config = cri.cni_config("ports");
    config.port_mappings = vec![v1::PortMapping {
        container_port: 70_000,
        host_port: 70_000,
        protocol: 99,
        ..Default::default()
    }];
    if let Ok(pod) = cri.try_run(&config) {
        assert!(cri.is_reference(), "a port that is none");
        cri.remove_pod(&pod.id);
    }
    cri.stop(&id, -1);
    cri.stop(&id, i64::MIN);
}

/// Ids are looked up, never put together with a folder.
fn ids_that_are_paths(cri: &Cri) {
    for id in ["../../../etc", "/", ".", "..", "%2e%2e", "\0", "*", "a/b"] {
        refused(cri.pod_status(id), Code::NotFound, "");
        let request = v1::ContainerStatusRequest {
            container_id: id.into(),
            verbose: true,
        };
        refused(rpc!(cri, container_status(request)), Code::NotFound, "");
        cri.stop_pod(id);
        cri.remove_pod(id);
        let image = v1::ImageStatusRequest {
            image: Some(crate::cri::spec(id)),
            verbose: true,
        };
        assert!(
            image_rpc!(cri, image_status(image)).map_or(true, |a| a.image.is_none()),
            "{id}"
        );
        assert!(cri.pull(id).is_err(), "{id}");
    }
}

/// [S29] A child that holds the streams open holds up nobody for ever.
fn commands_that_leave_a_child(cri: &Cri) {
    let (_, id) = cri.sleeper();
    let request = v1::ExecSyncRequest {
        container_id: id.clone(),
        cmd: ["sh", "-c", "sleep 500 & echo $! >/child; echo out"]
            .map(str::to_owned)
            .into(),
        timeout: 2,
    };
    // Every call has a deadline.
    let _ = rpc!(cri, exec_sync(request));
    cri.shell(&id, "kill -9 $(cat /child)");
}

/// [S28] Clients that come and go leave nothing in the daemon.
fn clients_that_hang_up(cri: &Cri) {
    let (pod, id) = cri.sleeper();
    let count = || {
        let dir = format!("/proc/{}/fd", cri.machine.daemon.pid());
        fs::read_dir(dir).unwrap().count()
    };
    let url = |argv: &[&str]| {
        let request = v1::ExecRequest {
            container_id: id.clone(),
            cmd: argv.iter().map(|&a| a.to_owned()).collect(),
            stdin: true,
            stdout: true,
            ..Default::default()
        };
        rpc!(cri, exec(request)).unwrap().url
    };
    let upgrade = "POST PATH HTTP/1.1\r\nHost: HOST\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
                   X-Stream-Protocol-Version: v4.channel.k8s.io\r\nContent-Length: 0\r\n\r\n";
    let churn = || {
        for _ in 0..20 {
            // Upgraded, and gone before there is a stream.
            crate::streams::raw(&url(&["cat"]), upgrade);
            // Half of a request, and nothing at all.
            let place = url(&["cat"]);
            let host = place
                .strip_prefix("http://")
                .unwrap()
                .split('/')
                .next()
                .unwrap()
                .to_owned();
            drop(TcpStream::connect(&host).unwrap());
            crate::streams::raw(&place, "GET PATH HTTP/1.1\r\nHost: HOST\r\n\r\n");
            // Forwarded, and gone.
            let request = v1::PortForwardRequest {
                pod_sandbox_id: pod.id.clone(),
                port: vec![1],
            };
            let place = rpc!(cri, port_forward(request)).unwrap().url;
            crate::streams::raw(
                &place,
                &upgrade.replace("v4.channel.k8s.io", "portforward.k8s.io"),
            );
        }
        for _ in 0..3 {
            let mut client = cri
                .streams("run -transport spdy -stdin -stderr=false")
                .arg(url(&["cat"]))
                .stdin("")
                .start();
            client.send(b"x\n");
            client.wait_output("x");
            client.kill();
            let done = cri
                .streams("run -transport spdy -stdin -stderr=false")
                .arg(url(&["/no/such"]))
                .stdin("")
                .run();
            assert_ne!(done.code(), 0);
        }
    };
    churn();
    let settled = || {
        let gone = cri.shell(&id, "ps | grep -c '[c]at$' || true");
        gone.trim() == "0"
    };
    // What the daemon keeps for good it has by now.
    assert!(
        eventually(DEADLINE, || settled().then_some(())).is_some(),
        "{}",
        cri.shell(&id, "ps")
    );
    let before = count();
    churn();
    assert!(
        eventually(DEADLINE, || settled().then_some(())).is_some(),
        "{}",
        cri.shell(&id, "ps")
    );
    if cri.is_reference() {
        println!("stock containerd keeps some: {before} became {}", count());
        return;
    }
    // One of each kind would be twenty.
    let after = eventually(DEADLINE, || (count() < before + 15).then_some(()));
    assert!(after.is_some(), "{before} descriptors became {}", count());
}

/// [S28] What holds the streams open holds nothing of the daemon's or of the shim's: terminals of programs that do not
/// start, clients that attach and go, children that outlive their command and its client.
fn streams_that_nobody_ends(cri: &Cri) {
    let (pod, id) = cri.sleeper();
    let shims = leaks::processes_naming(&pod.id).into_iter();
    let shim = shims
        .filter(|(_, line)| line.contains("shim"))
        .map(|(pid, _)| pid)
        .next();
    let pids = [cri.machine.daemon.pid(), shim.expect("the pod has a shim")];
    let count = || pids.map(|pid| fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count());
    let url = |argv: &[&str], tty: bool| {
        let request = v1::ExecRequest {
            container_id: id.clone(),
            cmd: argv.iter().map(|&a| a.to_owned()).collect(),
            tty,
            stdin: true,
            stdout: true,
            ..Default::default()
        };
        rpc!(cri, exec(request)).unwrap().url
    };
    let round = || {
        let failed = cri
            .streams("run -transport spdy -stdin -tty -sizes 80x24")
            .arg(url(&["/no/such"], true))
            .stdin("")
            .run();
        assert_ne!(failed.code(), 0);
        let request = v1::AttachRequest {
            container_id: id.clone(),
            stdout: true,
            ..Default::default()
        };
        let place = rpc!(cri, attach(request)).unwrap().url;
        let mut attached = cri
            .streams("run -transport spdy -stderr=false")
            .arg(place)
            .start();
        let mut left = cri
            .streams("run -transport spdy -stdin -stderr=false")
            .arg(url(
                &["sh", "-c", "sleep 1000 & echo $! >>/children; echo left"],
                false,
            ))
            .stdin("")
            .start();
        left.wait_output("left");
        left.kill();
        attached.kill();
    };
    let churn = || {
        for _ in 0..12 {
            round();
        }
        cri.shell(&id, "kill -9 $(cat /children); rm /children");
    };
    churn();
    // What both keep for good they have by now, and what is on its way out goes: the least is what counts.
    let mut before = count();
    churn();
    let settled = eventually(DEADLINE, || {
        let now = count();
        for (least, now) in before.iter_mut().zip(now) {
            *least = now.min(*least);
        }
        // One of each kind would be twelve.
        (0..2).all(|n| now[n] < before[n] + 8).then_some(())
    });
    if settled.is_none() {
        let open = fs::read_dir(format!("/proc/{}/fd", pids[1])).unwrap();
        let open: Vec<_> = open.flatten().map(|e| fs::read_link(e.path())).collect();
        let text = format!(
            "daemon and shim: {before:?} descriptors became {:?}: {open:?}",
            count()
        );
        assert!(cri.is_reference(), "{text}");
        println!("stock containerd keeps some: {text}");
    }
}

/// [S28, S30] Who cannot read the answer cannot join: tokens are of chance, and the server is of this machine only.
fn tokens_to_be_guessed(cri: &Cri) {
    let (_, id) = cri.sleeper();
    let request = v1::AttachRequest {
        container_id: id.clone(),
        stdout: true,
        ..Default::default()
    };
    let urls: Vec<_> = (0..50)
        .map(|_| rpc!(cri, attach(request.clone())).unwrap().url)
        .collect();
    let tokens: BTreeSet<_> = urls
        .iter()
        .map(|url| {
            assert!(url.starts_with("http://127.0.0.1:"), "{url}");
            url.rsplit_once('/').expect("a URL has a path").1
        })
        .collect();
    assert_eq!(tokens.len(), urls.len());
    // Stock containerd's have 48 bits.
    let short = |t: &&str| t.len() < 32 || !t.bytes().all(|b| b.is_ascii_hexdigit());
    assert!(
        cri.is_reference() || !tokens.iter().any(short),
        "{tokens:?}"
    );
    // No two have more in common than chance gives them.
    let tokens: Vec<_> = tokens.into_iter().collect();
    for pair in tokens.windows(2) {
        let same = pair[0]
            .bytes()
            .zip(pair[1].bytes())
            .take_while(|(a, b)| a == b)
            .count();
        assert!(same * 2 < pair[0].len(), "{pair:?}");
    }
}

/// [S30] Who can reach a port of the machine does not get at the kubelet's socket.
fn the_services_over_the_network(cri: &Cri) {
    rpc!(cri, version(v1::VersionRequest::default())).unwrap();
    if cri.is_reference() {
        // Without a service for it there is no listener.
        assert!(TcpStream::connect(("127.0.0.1", 10011)).is_err());
        return;
    }
    let connected = eventually(DEADLINE, || TcpStream::connect(("127.0.0.1", 10011)).ok());
    assert!(connected.is_some(), "the daemon listens");
    let error = cri.block(async {
        let channel = tonic::transport::Endpoint::from_static("http://127.0.0.1:10011")
            .connect()
            .await
            .unwrap();
        let mut client = RuntimeServiceClient::new(channel);
        client
            .version(v1::VersionRequest::default())
            .await
            .unwrap_err()
    });
    assert_eq!(error.code(), Code::Unimplemented, "{error}");
}
