//! Many short lives at once: no event is lost, doubled or out of order, nothing hangs, no zombie stays.
//!
//! `CORTEN_TRUES` says how many containers and execs each test makes; a few by default.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use tokio::task::JoinSet;

use crate::container::{Container, Io};
use crate::host::{Host, is_reference};

/// How many are under way at once.
const LANES: usize = 8;

fn trues() -> usize {
    let given = std::env::var("CORTEN_TRUES").ok();
    given.map_or(24, |n| n.parse().expect("CORTEN_TRUES is a number"))
}

/// Calls `one` for every number below `count`, in [`LANES`] at once.
async fn in_lanes<F>(count: usize, one: impl Fn(usize) -> F + Clone + Send + Sync + 'static)
where
    F: Future<Output = ()> + Send + 'static,
{
    let next = Arc::new(AtomicUsize::new(0));
    let mut lanes = JoinSet::new();
    for _ in 0..LANES {
        let (next, one) = (next.clone(), one.clone());
        lanes.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return;
                }
                one(number).await;
            }
        });
    }
    while let Some(lane) = lanes.join_next().await {
        if let Err(e) = lane {
            std::panic::resume_unwind(e.into_panic());
        }
    }
}

fn say(what: &str, count: usize, since: Instant) {
    let each = since.elapsed().as_secs_f64() * 1e3 / count as f64;
    println!("{count} {what}, {LANES} in parallel: {each:.1} ms each");
}

/// A container's whole life.
async fn life(c: Container) {
    c.create().await.unwrap();
    c.start().await.unwrap();
    assert_eq!(c.wait().await, 0, "{}", c.id);
    assert_eq!(c.delete().await, 0, "{}", c.id);
}

/// Checks the events of the `true` containers.
async fn check_lives(h: &Host, count: usize) {
    if is_reference() {
        let full = |id: &usize| h.events.of(&format!("t{id}")).len() == 4;
        let lost = count - (0..count).filter(full).count();
        println!("the stock shim ended before its last event had left in {lost} of {count}");
        return;
    }
    for number in 0..count {
        let seen = h.events.wait(&format!("t{number}"), "delete 0").await;
        assert_eq!(seen, ["create", "start", "exit 0", "delete 0"], "t{number}");
    }
}

pub(crate) async fn true_containers(h: Arc<Host>) {
    let (count, since) = (trues(), Instant::now());
    let host = h.clone();
    in_lanes(count, move |number| {
        let host = host.clone();
        async move {
            let made = host.container(&format!("t{number}"), &["true"]);
            life(made.make().await).await;
        }
    })
    .await;
    say("containers with a shim of their own", count, since);
    check_lives(&h, count).await;
}

pub(crate) async fn true_containers_of_one_shim(h: Arc<Host>) {
    let keeper = h.running("keeper", &["sleep", "1000000"]).await;
    let (count, since) = (trues(), Instant::now());
    let host = h.clone();
    in_lanes(count, move |number| {
        let host = host.clone();
        async move {
            let recipe = host.container(&format!("t{number}"), &["true"]);
            life(recipe.group("keeper").make().await).await;
        }
    })
    .await;
    say("containers in one shim", count, since);
    check_lives(&h, count).await;
    let pid = keeper.connect().await.shim_pid;
    // The keeper, and nobody who has ended.
    assert_eq!(children(pid), 1, "children of the shim");
    assert_eq!(keeper.kill_and_delete().await, 137);
}

pub(crate) async fn true_execs(h: Arc<Host>) {
    let c = Arc::new(h.running("c", &["sleep", "1000000"]).await);
    let (count, since) = (trues(), Instant::now());
    let container = c.clone();
    in_lanes(count, move |number| {
        let container = container.clone();
        async move { assert_eq!(container.run(&format!("e{number}"), &["true"]).await, 0) }
    })
    .await;
    say("execs in one container", count, since);
    let pid = c.connect().await.shim_pid;
    assert_eq!(children(pid), 1, "children of the shim");
    // A doubled event of an exec would come before this.
    c.kill(9).await.unwrap();
    let seen = h.events.wait("c", "exit 137").await;
    assert_eq!(c.delete().await, 137);
    for number in 0..count {
        let exec = format!("e{number}");
        let mine: Vec<_> = seen
            .iter()
            .filter(|t| t.split(' ').nth(1) == Some(exec.as_str()))
            .collect();
        let all = [
            format!("exec-added {exec}"),
            format!("exec-started {exec}"),
            format!("exit {exec} 0"),
        ];
        assert_eq!(mine, all.iter().collect::<Vec<_>>());
    }
    let lives = seen
        .iter()
        .filter(|t| !t.contains(" e"))
        .collect::<Vec<_>>();
    assert!(
        lives.starts_with(&[&"create".to_owned(), &"start".to_owned()]),
        "{lives:?}"
    );
}

/// Execs until the container's first process ends, and some beyond.
pub(crate) async fn execs_while_init_exits(h: Arc<Host>) {
    for round in 0..(trues() / 8).max(3) {
        let id = format!("f{round}");
        // At another moment of an exec's life each time.
        let nap = format!("sleep 0.0{}; exit 3", 2 + round % 8);
        let c = Arc::new(h.running(&id, &["sh", "-c", &nap]).await);
        let mut lanes = JoinSet::new();
        for lane in 0..LANES {
            let c = c.clone();
            lanes.spawn(async move { flood(&c, lane).await });
        }
        let mut started = Vec::new();
        while let Some(lane) = lanes.join_next().await {
            started.extend(lane.expect("a lane of the flood"));
        }
        assert_eq!(c.wait().await, 3);
        let _ = h.events.wait(&id, "exit 3").await;
        assert_eq!(c.delete().await, 3);
        if !is_reference() {
            let _ = h.events.wait(&id, "delete 3").await;
        }
        let seen = h.events.of(&id);
        let end = seen.iter().position(|t| t == "exit 3").unwrap();
        let late: Vec<_> = seen[end + 1..]
            .iter()
            .filter(|t| *t != "delete 3")
            .collect();
        assert!(late.is_empty(), "after init's exit: {late:?}");
        for exec in &started {
            let exits = seen
                .iter()
                .filter(|t| t.starts_with(&format!("exit {exec} ")));
            assert_eq!(exits.count(), 1, "exits of {exec} in {seen:?}");
        }
        let exits = seen.iter().filter(|t| t.starts_with("exit e")).count();
        let begun = seen
            .iter()
            .filter(|t| t.starts_with("exec-started "))
            .count();
        assert_eq!(exits, begun, "{seen:?}");
        assert!(begun >= started.len(), "{seen:?}");
    }
}

/// Execs until one is refused; gives those that were started.
async fn flood(c: &Container, lane: usize) -> Vec<String> {
    let mut started = Vec::new();
    for number in 0.. {
        let exec = format!("e{lane}x{number}");
        if c.exec(&exec, &["true"], &Io::default()).await.is_err() {
            break;
        }
        let begun = c.start_exec(&exec).await;
        if begun.is_ok() {
            let code = c.wait_exec(&exec).await.unwrap();
            assert!(code == 0 || code == 137, "{exec} ended with {code}");
            started.push(exec.clone());
        }
        // An exec that init's end came before can be deleted like any other.
        let deleted = c.delete_exec(&exec).await;
        assert!(deleted.is_ok() || begun.is_err(), "{exec}: {deleted:?}");
        if begun.is_err() {
            break;
        }
    }
    started
}

/// How many children a process has, zombies too.
fn children(pid: u32) -> usize {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the shim lives");
    let lists = tasks
        .flatten()
        .map(|t| fs::read_to_string(t.path().join("children")));
    lists
        .flatten()
        .map(|list| list.split_whitespace().count())
        .sum()
}

/// Events wait for a daemon that is away, in order.
pub(crate) async fn events_outlive_the_daemon(h: Arc<Host>) {
    if is_reference() {
        println!("Corten only: the stock shim gives an event up after some attempts");
        return;
    }
    let c = h.running("c", &["sleep", "1000000"]).await;
    h.events.wait("c", "start").await;
    h.close_events().await;
    for number in 0..20 {
        assert_eq!(c.run(&format!("e{number}"), &["true"]).await, 0);
    }
    let state = c.state().await.unwrap();
    assert!(state.pid > 0 && h.events.of("c").len() == 2);
    h.open_events().await;
    let seen = h.events.wait("c", "exit e19 0").await;
    assert_eq!(seen.len(), 2 + 3 * 20, "{seen:?}");
    for (number, three) in seen[2..].chunks(3).enumerate() {
        let words = [
            format!("exec-added e{number}"),
            format!("exec-started e{number}"),
            format!("exit e{number} 0"),
        ];
        assert_eq!(three, words);
    }
    assert_eq!(c.kill_and_delete().await, 137);
}
