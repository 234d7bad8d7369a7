//! What a pod costs: memory, held against the budgets, and times, which are only printed.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::container::Io;
use crate::host::{Host, is_reference};
use crate::pod::Pod;

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

pub(crate) async fn pods_keep_their_budget(h: Arc<Host>) {
    if is_reference() {
        println!("Corten only: the stock shim has no sandbox service");
        return;
    }
    let mut pods = Vec::new();
    for number in 0..PODS {
        let mut pod = Pod::start(&h, &format!("p{number}"), None, None).await;
        pod.add("").await;
        pods.push(pod);
    }
    let pids: Vec<_> = pods.iter().flat_map(|pod| [pod.shim, pod.holder]).collect();
    check("shim and holder of a pod with one container", &pids, PODS);
    for _ in 0..4 {
        pods[0].add("").await;
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
