//! `make bench-cri`: the CRI of Corten beside that of stock containerd, in one table.
//!
//! `integration/cri/bench.sh` makes the machine (CNI bridge, images) and starts both daemons; this is their kubelet. The
//! two take turns; each time is the median of all calls, two of them at a time. It measures and never judges: a figure
//! that could not be taken shows as `-`, and the exit code is 0.
//!
//! `CORTEN_BENCH_CYCLES` (40) is how many pods each of the two lanes runs on each side, `CORTEN_BENCH_PODS` (50) how many
//! idle pods are weighed.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::needless_pass_by_value,
    reason = "a program for people to read"
)]

mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::future::Future;
use std::time::{Duration, Instant};

use corten_protos::runtime::v1::image_service_client::ImageServiceClient;
use corten_protos::runtime::v1::runtime_service_client::RuntimeServiceClient;
use corten_protos::runtime::v1::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, ExecSyncRequest, ImageSpec,
    LinuxContainerConfig, LinuxPodSandboxConfig, PodSandboxConfig, PodSandboxMetadata,
    PullImageRequest, RemoveContainerRequest, RemovePodSandboxRequest, RunPodSandboxRequest,
    StartContainerRequest, StatusRequest, StopContainerRequest, StopPodSandboxRequest,
};
use table::{Row, Table, number, rollup};
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

const IMAGE: &str = "ghcr.io/containerd/busybox:1.36";
/// On the machine that was made for this.
const LOGS: &str = "/run/bench-logs";
/// Calls at a time.
const LANES: u64 = 2;
/// Pods that a lane runs before the other side has its turn.
const TURN: u64 = 5;
const DEADLINE: Duration = Duration::from_secs(60);

/// What is timed, in the order of a pod's life.
const CALLS: [&str; 8] = [
    "RunPodSandbox",
    "CreateContainer",
    "StartContainer",
    "ExecSync true",
    "StopContainer, SIGKILL",
    "RemoveContainer",
    "StopPodSandbox",
    "RemovePodSandbox",
];

type Times = [Vec<Duration>; CALLS.len()];
type Failed = Box<dyn std::error::Error + Send + Sync>;

/// One of the two.
#[derive(Clone)]
struct Side {
    name: String,
    /// The daemon.
    pid: u32,
    runtime: RuntimeServiceClient<Channel>,
}

/// What the idle pods of a side weigh, in KiB.
#[derive(Default)]
struct Weight {
    daemon: [Option<f64>; 2],
    shims: Group,
    /// What keeps the pods' namespaces.
    keepers: Group,
    all_pss: f64,
}

#[derive(Default)]
struct Group {
    count: f64,
    rss: f64,
    pss: f64,
}

#[tokio::main(worker_threads = 2)]
async fn main() {
    let mut sides = [None, None];
    for (side, argument) in sides.iter_mut().zip(std::env::args().skip(1)) {
        match open(&argument).await {
            Ok(opened) => *side = Some(opened),
            Err(error) => println!("# {argument}: {error}"),
        }
    }
    // As the kubelet makes the folder of a pod's logs.
    if let Err(error) = fs::create_dir_all(LOGS) {
        println!("# {LOGS}: {error}");
    }
    let mut rows = Table::begin();
    Box::pin(times(&sides, &mut rows)).await;
    Box::pin(memory(&sides, &mut rows)).await;
}

/// NAME=SOCKET=PID.
async fn open(argument: &str) -> Result<Side, Failed> {
    let mut parts = argument.split('=');
    let (Some(name), Some(socket), Some(pid)) = (parts.next(), parts.next(), parts.next()) else {
        return Err("usage: corten-bench-cri Corten=SOCKET=PID containerd=SOCKET=PID".into());
    };
    let endpoint = Endpoint::try_from(format!("unix:{socket}"))?.timeout(DEADLINE);
    let channel = endpoint.connect().await?;
    let mut runtime = RuntimeServiceClient::new(channel.clone());
    runtime.status(StatusRequest::default()).await?;
    let pull = PullImageRequest {
        image: Some(image()),
        ..PullImageRequest::default()
    };
    ImageServiceClient::new(channel).pull_image(pull).await?;
    Ok(Side {
        name: name.to_owned(),
        pid: pid.parse()?,
        runtime,
    })
}

fn image() -> ImageSpec {
    ImageSpec {
        image: IMAGE.into(),
        ..ImageSpec::default()
    }
}

fn pod(name: &str) -> PodSandboxConfig {
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: name.into(),
            uid: name.into(),
            namespace: "bench".into(),
            attempt: 0,
        }),
        log_directory: LOGS.into(),
        linux: Some(LinuxPodSandboxConfig::default()),
        ..PodSandboxConfig::default()
    }
}

// === impl Side ===

impl Side {
    async fn run_pod(&mut self, name: &str) -> Result<String, Status> {
        let request = RunPodSandboxRequest {
            config: Some(pod(name)),
            ..RunPodSandboxRequest::default()
        };
        let made = self.runtime.run_pod_sandbox(request).await?;
        Ok(made.into_inner().pod_sandbox_id)
    }

    async fn stop_pod(&mut self, id: &str) -> Result<(), Status> {
        let request = StopPodSandboxRequest {
            pod_sandbox_id: id.into(),
        };
        self.runtime.stop_pod_sandbox(request).await.map(drop)
    }

    async fn remove_pod(&mut self, id: &str) -> Result<(), Status> {
        let request = RemovePodSandboxRequest {
            pod_sandbox_id: id.into(),
        };
        self.runtime.remove_pod_sandbox(request).await.map(drop)
    }

    async fn create(&mut self, pod_id: &str, name: &str) -> Result<String, Status> {
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: "c".into(),
                attempt: 0,
            }),
            image: Some(image()),
            command: vec!["sleep".into(), "1000".into()],
            log_path: format!("{name}.log"),
            linux: Some(LinuxContainerConfig::default()),
            ..ContainerConfig::default()
        };
        let request = CreateContainerRequest {
            pod_sandbox_id: pod_id.into(),
            config: Some(config),
            sandbox_config: Some(pod(name)),
        };
        let made = Box::pin(self.runtime.create_container(request)).await?;
        Ok(made.into_inner().container_id)
    }

    /// The life of a pod with a container.
    async fn cycle(&mut self, name: &str, times: &mut Times) -> Result<(), Status> {
        let [run, create, start, exec, stop, remove, stop_pod, remove_pod] = times;
        let pod_id = timed(run, self.run_pod(name)).await?;
        let container_id = timed(create, self.create(&pod_id, name)).await?;
        let request = StartContainerRequest {
            container_id: container_id.clone(),
        };
        timed(start, self.runtime.start_container(request)).await?;
        let request = ExecSyncRequest {
            container_id: container_id.clone(),
            cmd: vec!["true".into()],
            timeout: 10,
        };
        timed(exec, self.runtime.exec_sync(request)).await?;
        let request = StopContainerRequest {
            container_id: container_id.clone(),
            timeout: 0,
        };
        timed(stop, self.runtime.stop_container(request)).await?;
        let request = RemoveContainerRequest { container_id };
        let removed: Response<_> = timed(remove, self.runtime.remove_container(request)).await?;
        drop(removed);
        timed(stop_pod, self.stop_pod(&pod_id)).await?;
        timed(remove_pod, self.remove_pod(&pod_id)).await
    }
}

async fn timed<T>(
    times: &mut Vec<Duration>,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    let began = Instant::now();
    let answer = call.await?;
    times.push(began.elapsed());
    Ok(answer)
}

async fn times(sides: &[Option<Side>; 2], rows: &mut Table) {
    let mut taken: [Times; 2] = Default::default();
    let cycles = number("CORTEN_BENCH_CYCLES", 40);
    for first in (0..cycles).step_by(TURN as usize) {
        for (side, taken) in sides.iter().zip(&mut taken) {
            let Some(side) = side else { continue };
            let names = first..cycles.min(first + TURN);
            for (all, some) in taken.iter_mut().zip(turn(side, names).await) {
                all.extend(some);
            }
        }
    }
    let [mut ours, mut theirs] = taken;
    for (n, what) in CALLS.into_iter().enumerate() {
        rows.push(&Row {
            what,
            values: [median(&mut ours[n]), median(&mut theirs[n])],
            unit: "ms",
        });
    }
}

/// All lanes of a side at once.
async fn turn(side: &Side, names: std::ops::Range<u64>) -> Times {
    let lanes: Vec<_> = (0..LANES)
        .map(|lane| {
            let (mut side, names) = (side.clone(), names.clone());
            tokio::spawn(async move {
                let mut times = Times::default();
                for n in names {
                    let name = format!("{}-{lane}-{n}", side.name);
                    if let Err(error) = Box::pin(side.cycle(&name, &mut times)).await {
                        println!("# {name}: {error}");
                    }
                }
                times
            })
        })
        .collect();
    let mut taken = Times::default();
    for lane in lanes {
        for (all, some) in taken.iter_mut().zip(lane.await.unwrap_or_default()) {
            all.extend(some);
        }
    }
    taken
}

fn median(times: &mut [Duration]) -> Option<f64> {
    times.sort_unstable();
    let middle = times.get(times.len() / 2)?;
    Some(middle.as_secs_f64() * 1000.0)
}

async fn memory(sides: &[Option<Side>; 2], rows: &mut Table) {
    let pods = number("CORTEN_BENCH_PODS", 50);
    let mut weights = [None, None];
    for (side, weight) in sides.iter().zip(&mut weights) {
        let Some(side) = side else { continue };
        match Box::pin(idle(side, pods)).await {
            Ok(weighed) => *weight = Some(weighed),
            Err(error) => println!("# {}, idle pods: {error}", side.name),
        }
    }
    println!("# {pods} idle pods");
    let both = |read: &dyn Fn(&Weight) -> Option<f64>| {
        [
            weights[0].as_ref().and_then(read),
            weights[1].as_ref().and_then(read),
        ]
    };
    let mut row = |what, unit, read: &dyn Fn(&Weight) -> Option<f64>| {
        let values = both(read);
        rows.push(&Row { what, values, unit });
    };
    row("daemon RSS", "KiB", &|w| w.daemon[0]);
    row("daemon PSS", "KiB", &|w| w.daemon[1]);
    row("shims", "", &|w| Some(w.shims.count));
    row("shims RSS, sum", "KiB", &|w| Some(w.shims.rss));
    row("shims PSS, sum", "KiB", &|w| Some(w.shims.pss));
    row("holders or pauses", "", &|w| Some(w.keepers.count));
    row("holders or pauses RSS, sum", "KiB", &|w| {
        Some(w.keepers.rss)
    });
    row("holders or pauses PSS, sum", "KiB", &|w| {
        Some(w.keepers.pss)
    });
    row("everything but the daemon, PSS", "KiB", &|w| {
        Some(w.all_pss)
    });
}

/// Runs pods, weighs them, and takes them down.
async fn idle(side: &Side, pods: u64) -> Result<Weight, Status> {
    let before: BTreeSet<u32> = processes().into_keys().collect();
    let mut side = side.clone();
    let mut ids = Vec::new();
    for n in 0..pods {
        ids.push(side.run_pod(&format!("{}-idle-{n}", side.name)).await?);
    }
    let weight = weigh(side.pid, &before);
    for id in ids {
        side.stop_pod(&id).await?;
        side.remove_pod(&id).await?;
    }
    Ok(weight)
}

fn weigh(daemon: u32, before: &BTreeSet<u32>) -> Weight {
    let mut weight = Weight {
        daemon: [rollup(daemon, "Rss"), rollup(daemon, "Pss")],
        ..Weight::default()
    };
    let made: BTreeMap<_, _> = processes()
        .into_iter()
        .filter(|(pid, _)| !before.contains(pid))
        .collect();
    for (pid, process) in &made {
        let of_shim = made.get(&process.parent).is_some_and(|p| p.is_shim);
        let group = match (process.is_shim, of_shim) {
            (_, true) => &mut weight.keepers,
            (true, false) => &mut weight.shims,
            (false, false) => continue,
        };
        // One that ended just now weighs nothing.
        let (Some(rss), Some(pss)) = (rollup(*pid, "Rss"), rollup(*pid, "Pss")) else {
            continue;
        };
        group.count += 1.0;
        group.rss += rss;
        group.pss += pss;
        weight.all_pss += pss;
    }
    weight
}

struct Process {
    parent: u32,
    is_shim: bool,
}

/// All of this pid namespace.
fn processes() -> BTreeMap<u32, Process> {
    let all = fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let status = fs::read_to_string(entry.path().join("status")).ok()?;
        let line = status.lines().find_map(|l| l.strip_prefix("PPid:"))?;
        let program = fs::read_link(entry.path().join("exe")).unwrap_or_default();
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        let process = Process {
            parent: line.trim().parse().ok()?,
            is_shim: name.starts_with("containerd-shim"),
        };
        Some((pid, process))
    })
    .collect()
}
