//! What a pod costs: memory, held against the budgets, and times, which are only printed.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use corten_protos::containerd::runtime::sandbox::v1::{
    CreateSandboxRequest, ShutdownSandboxRequest, StartSandboxRequest, StopSandboxRequest,
};
use corten_protos::ttrpc::SandboxClient;

use crate::container::{Container, Io, Shim, context, within};
use crate::host::{Host, is_reference};

/// kB per pod, of everything that it needs beside its containers, on a node with a few of them: the pages of the program
/// are there once.
const PSS: u64 = 1500;
const PRIVATE_DIRTY: u64 = 800;
/// So many are a few.
const PODS: usize = 8;

/// PSS and private dirty memory of a process in kB.
fn memory(pid: u32) -> (u64, u64) {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let field = |name: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(name));
        let number = line.and_then(|l| l.split_whitespace().next());
        number
            .and_then(|n| n.parse().ok())
            .unwrap_or_else(|| panic!("no {name} in {path}"))
    };
    (field("Pss:"), field("Private_Dirty:"))
}

/// The sums of some processes.
fn sum(pids: &[u32]) -> (u64, u64) {
    let each: Vec<_> = pids.iter().map(|pid| memory(*pid)).collect();
    (
        each.iter().map(|m| m.0).sum(),
        each.iter().map(|m| m.1).sum(),
    )
}

/// Holds the memory of `pods` pods, served by these processes, against the budget.
fn check(what: &str, pids: &[u32], pods: usize) {
    let (pss, dirty) = sum(pids);
    let (pss, dirty) = (pss / pods as u64, dirty / pods as u64);
    println!("{what}: PSS {pss} kB of {PSS}, private dirty {dirty} kB of {PRIVATE_DIRTY}");
    if is_reference() {
        println!("Corten only: the budgets are not the stock shim's");
        return;
    }
    assert!(pss <= PSS, "{what}: PSS {pss} kB");
    assert!(dirty <= PRIVATE_DIRTY, "{what}: private dirty {dirty} kB");
}

pub(crate) async fn shims_keep_their_budget(h: Arc<Host>) {
    let (mut containers, mut shims) = (Vec::new(), Vec::new());
    for number in 0..PODS {
        let c = h
            .running(&format!("c{number}"), &["sleep", "1000000"])
            .await;
        shims.push(c.connect().await.shim_pid);
        if number == 0 {
            let (pss, dirty) = sum(&shims);
            println!("the first shim of a node: PSS {pss} kB, private dirty {dirty} kB");
        }
        containers.push(c);
    }
    check("shim of a container", &shims, PODS);
    for number in 0..50 {
        assert_eq!(containers[0].run(&format!("e{number}"), &["true"]).await, 0);
    }
    check("the same after 50 execs", &shims[..1], 1);
    for c in &containers {
        assert_eq!(c.kill_and_delete().await, 137);
    }
}

/// A sandbox that its shim holds, and what runs in it.
struct Pod {
    id: String,
    sandbox: SandboxClient,
    shim: u32,
    holder: u32,
    containers: Vec<Container>,
}

// === impl Pod ===

impl Pod {
    async fn start(h: &Arc<Host>, id: &str) -> Self {
        let bundle = h.bundle(id);
        fs::create_dir_all(&bundle).unwrap();
        let answer = h.start(id, None).await;
        let connection = Shim::connect(&answer.address).await;
        let sandbox = SandboxClient::new(connection.client);
        let create = CreateSandboxRequest {
            sandbox_id: id.to_owned(),
            bundle_path: bundle.display().to_string(),
            ..CreateSandboxRequest::default()
        };
        within("CreateSandbox", sandbox.create_sandbox(context(), &create))
            .await
            .unwrap();
        let start = StartSandboxRequest {
            sandbox_id: id.to_owned(),
        };
        let started = within("StartSandbox", sandbox.start_sandbox(context(), &start)).await;
        Self {
            id: id.to_owned(),
            sandbox,
            shim: 0,
            holder: started.unwrap().pid,
            containers: Vec::new(),
        }
    }

    async fn add(&mut self, h: &Arc<Host>) {
        let id = format!("{}c{}", self.id, self.containers.len());
        let c = h
            .container(&id, &["sleep", "1000000"])
            .pod(&self.id)
            .make()
            .await;
        c.create().await.unwrap();
        c.start().await.unwrap();
        self.shim = c.connect().await.shim_pid;
        self.containers.push(c);
    }

    async fn stop(self) {
        for c in &self.containers {
            assert_eq!(c.kill_and_delete().await, 137);
        }
        let stop = StopSandboxRequest {
            sandbox_id: self.id.clone(),
            timeout_secs: 5,
        };
        within("StopSandbox", self.sandbox.stop_sandbox(context(), &stop))
            .await
            .unwrap();
        let shutdown = ShutdownSandboxRequest {
            sandbox_id: self.id,
        };
        // The shim may be gone before it answers.
        let _ = within(
            "ShutdownSandbox",
            self.sandbox.shutdown_sandbox(context(), &shutdown),
        )
        .await;
    }
}

pub(crate) async fn pods_keep_their_budget(h: Arc<Host>) {
    if is_reference() {
        println!("Corten only: the stock shim has no sandbox service");
        return;
    }
    let mut pods = Vec::new();
    for number in 0..PODS {
        let mut pod = Pod::start(&h, &format!("p{number}")).await;
        pod.add(&h).await;
        pods.push(pod);
    }
    let pids: Vec<_> = pods.iter().flat_map(|pod| [pod.shim, pod.holder]).collect();
    check("shim and holder of a pod with one container", &pids, PODS);
    for _ in 0..4 {
        pods[0].add(&h).await;
    }
    check("the same with five", &[pods[0].shim, pods[0].holder], 1);
    for pod in pods {
        pod.stop().await;
    }
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e3
}

/// Prints; a machine that is busy with something else is no failure.
pub(crate) async fn times_are_told(h: Arc<Host>) {
    let stages = [
        "start of a shim",
        "Create",
        "Start",
        "exec, Start to Wait",
        "Delete",
    ];
    let mut times = vec![Vec::new(); stages.len()];
    for number in 0..15 {
        let recipe = h.container(&format!("c{number}"), &["sleep", "1000000"]);
        let mut begun = Instant::now();
        let mut take = |stage: usize, begun: &mut Instant| {
            times[stage].push(begun.elapsed());
            *begun = Instant::now();
        };
        let c = recipe.make().await;
        take(0, &mut begun);
        c.create().await.unwrap();
        take(1, &mut begun);
        c.start().await.unwrap();
        take(2, &mut begun);
        c.exec("e", &["true"], &Io::default()).await.unwrap();
        c.start_exec("e").await.unwrap();
        c.wait_exec("e").await.unwrap();
        take(3, &mut begun);
        c.delete_exec("e").await.unwrap();
        c.kill(9).await.unwrap();
        c.wait().await;
        begun = Instant::now();
        c.delete_exec("").await.unwrap();
        take(4, &mut begun);
        c.shutdown().await;
        c.remove_bundle();
    }
    for (stage, times) in stages.into_iter().zip(times) {
        println!("{stage}: {:.1} ms (median of 15)", median(times));
    }
}
