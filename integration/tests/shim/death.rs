//! What others do to a shim or its containers, and what becomes of the rest.

use std::fs::{self, File};
use std::sync::Arc;
use std::time::Instant;

use corten_integration::process::{DEADLINE, exits_within};
use corten_protos::containerd::v1::types::Status;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Pid, Signal, kill_process};

use crate::container::{Container, Io, Shim};
use crate::host::{Host, is_reference, until};

pub(crate) fn kill(pid: u32) {
    let raw = Pid::from_raw(pid.cast_signed()).expect("pids are positive");
    kill_process(raw, Signal::KILL).unwrap();
    assert!(exits_within(pid, DEADLINE), "{pid} lives on");
}

/// What a daemon does with what is left of a shim.
pub(crate) async fn clean_up(c: &Container) -> u32 {
    let exit = c.delete_command().await;
    // Cleaning up twice is fine.
    assert_eq!(c.delete_command().await.exit_status, exit.exit_status);
    c.remove_bundle();
    exit.exit_status
}

pub(crate) async fn a_killed_shim_leaves_nothing(h: Arc<Host>) {
    let c = h
        .running("c", &["sh", "-c", "sleep 1000000 & sleep 1000001"])
        .await;
    let init = c.state().await.unwrap().pid;
    kill(c.connect().await.shim_pid);
    assert_eq!(clean_up(&c).await, 137);
    assert!(exits_within(init, DEADLINE), "the container lives on");
}

pub(crate) async fn exit_codes_outlive_the_shim(h: Arc<Host>) {
    let ended = h.running("ended", &["sh", "-c", "exit 7"]).await;
    let running = h
        .container("running", &["sleep", "1000000"])
        .group("ended")
        .make()
        .await;
    assert_eq!(running.address, ended.address);
    running.create().await.unwrap();
    running.start().await.unwrap();
    let created = h
        .container("created", &["true"])
        .group("ended")
        .make()
        .await;
    created.create().await.unwrap();
    assert_eq!(ended.wait().await, 7);
    kill(running.connect().await.shim_pid);
    assert_eq!(clean_up(&running).await, 137);
    assert_eq!(clean_up(&created).await, 137);
    // Its exit was written down before anybody was told of it.
    assert_eq!(clean_up(&ended).await, 7);
}

/// Daemons before 2.4 run no `delete` but that of the id a group is named after.
pub(crate) async fn a_group_ends_with_the_delete_of_its_first(h: Arc<Host>) {
    if is_reference() {
        println!("Corten only: the stock shim leaves the others to their own delete");
        return;
    }
    let first = h.running("first", &["sleep", "1000000"]).await;
    let mut others = Vec::new();
    for id in ["second", "third"] {
        let recipe = h.container(id, &["sleep", "1000000"]).group("first");
        let c = recipe.make().await;
        c.create().await.unwrap();
        let pid = c.start().await.unwrap();
        others.push((c, pid));
    }
    // Of another group, and none of their business.
    let stranger = h.running("stranger", &["sleep", "1000000"]).await;
    kill(first.connect().await.shim_pid);
    assert_eq!(first.delete_command().await.exit_status, 137);
    for (c, pid) in &others {
        assert!(exits_within(*pid, DEADLINE), "{} lives on", c.id);
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let rootfs = c.bundle.join("rootfs").display().to_string();
        assert!(!mounts.contains(&rootfs), "{rootfs} is mounted");
        assert_eq!(clean_up(c).await, 137);
    }
    first.remove_bundle();
    assert_eq!(stranger.run("e", &["true"]).await, 0);
    assert_eq!(stranger.kill_and_delete().await, 137);
}

/// `State`, `Connect` and `Wait` of others do not wait for a Create that takes its time.
pub(crate) async fn a_slow_create_holds_up_nobody(h: Arc<Host>) {
    let first = h.running("first", &["sleep", "1000000"]).await;
    let (entered, gate) = (h.base.join("entered"), h.base.join("gate"));
    let script = format!(
        "> {}; until [ -e {} ]; do sleep 0.05; done",
        entered.display(),
        gate.display()
    );
    let recipe = h.container("slow", &["true"]).group("first");
    let slow = Arc::new(recipe.hook("createRuntime", &script).make().await);
    let creating = tokio::spawn({
        let slow = slow.clone();
        async move { slow.create().await }
    });
    until("the hook runs", move || entered.exists()).await;
    let other = Shim::connect(&first.address).await;
    let since = Instant::now();
    let wait = tokio::spawn({
        let task = other.task.clone();
        let request = corten_protos::containerd::task::v3::WaitRequest {
            id: "first".to_owned(),
            ..Default::default()
        };
        async move { task.wait(crate::container::context(), &request).await }
    });
    assert_eq!(first.state().await.unwrap().status, Status::Running as i32);
    assert!(first.connect().await.task_pid > 0);
    assert_eq!(first.run("e", &["true"]).await, 0);
    // What is being made is not there yet.
    assert!(slow.state().await.is_err());
    first.kill(9).await.unwrap();
    assert_eq!(wait.await.unwrap().unwrap().exit_status, 137);
    // Nobody opens the gate before this line: all of that was answered meanwhile.
    assert!(!creating.is_finished(), "the hook did not hold it up");
    let took = since.elapsed();
    println!("State, Connect, exec, Kill and Wait beside a slow Create: {took:?}");
    File::create(gate).unwrap();
    creating.await.unwrap().unwrap();
    slow.start().await.unwrap();
    assert_eq!(slow.wait().await, 0);
    assert_eq!(slow.delete().await, 0);
    assert_eq!(first.delete().await, 137);
}

pub(crate) async fn a_container_out_of_memory_goes_alone(h: Arc<Host>) {
    let first = h.running("first", &["sleep", "1000000"]).await;
    let shim = first.connect().await.shim_pid;
    for round in 0..3 {
        let id = format!("hog{round}");
        let args = ["sh", "-c", "exec tail -c 100000000 /dev/zero"];
        let hog = h
            .container(&id, &args)
            .memory(16 << 20)
            .group("first")
            .make()
            .await;
        hog.create().await.unwrap();
        hog.start().await.unwrap();
        assert_eq!(hog.wait().await, 137);
        let seen = h.events.wait(&id, "exit 137").await;
        if !is_reference() {
            // The cause comes before the effect.
            assert_eq!(seen, ["create", "start", "oom", "exit 137"]);
        }
        assert_eq!(hog.delete().await, 137);
    }
    assert_eq!(first.connect().await.shim_pid, shim);
    assert_eq!(first.run("e", &["true"]).await, 0);
    assert_eq!(first.kill_and_delete().await, 137);
}

pub(crate) async fn a_frozen_container_can_be_killed(h: Arc<Host>) {
    let first = h.running("first", &["sleep", "1000000"]).await;
    let recipe = h.container("ice", &["sleep", "1000000"]).group("first");
    let ice = recipe.make().await;
    ice.create().await.unwrap();
    ice.start().await.unwrap();
    ice.pause().await;
    assert_eq!(ice.state().await.unwrap().status, Status::Paused as i32);
    assert_eq!(first.run("e", &["true"]).await, 0);
    ice.resume().await;
    ice.pause().await;
    ice.kill(9).await.unwrap();
    assert_eq!(ice.wait().await, 137);
    assert_eq!(ice.delete().await, 137);
    assert_eq!(first.run("f", &["true"]).await, 0);
    assert_eq!(first.kill_and_delete().await, 137);
}

/// A frozen one whose shim dies is cleaned up, too.
pub(crate) async fn a_frozen_container_of_a_dead_shim_goes(h: Arc<Host>) {
    let ice = h.running("ice", &["sleep", "1000000"]).await;
    ice.pause().await;
    kill(ice.connect().await.shim_pid);
    assert_eq!(clean_up(&ice).await, 137);
}

pub(crate) async fn a_full_disk_costs_nobody_an_exit(h: Arc<Host>) {
    // The bundles' own disk, and so that of exit.json.
    let disk = h.bundle("");
    mount(
        "corten-test",
        &disk,
        "tmpfs",
        MountFlags::empty(),
        Some(c"size=4m"),
    )
    .unwrap();
    let first = h.running("first", &["sleep", "1000000"]).await;
    let full = h.bundle("full");
    fs::create_dir_all(&full).unwrap();
    let script = "cat /dev/zero > /full/x; exit 5";
    let mut recipe = h.container("c", &["sh", "-c", script]).group("first");
    let bind = serde_json::json!({
        "destination": "/full", "type": "bind", "source": full, "options": ["rbind", "rw"],
    });
    recipe.spec["mounts"]
        .as_array_mut()
        .expect("a list")
        .push(bind);
    let c = recipe.make().await;
    c.create().await.unwrap();
    c.start().await.unwrap();
    assert_eq!(c.wait().await, 5);
    assert_eq!(
        h.events.wait("c", "exit 5").await,
        ["create", "start", "exit 5"]
    );
    assert_eq!(first.state().await.unwrap().status, Status::Running as i32);
    // An exec has its pid file there.
    first.exec("e", &["true"], &Io::default()).await.unwrap();
    let refused = first.start_exec("e").await;
    assert!(refused.is_err(), "the disk is full");
    let _ = first.delete_exec("e").await;
    fs::remove_file(full.join("x")).unwrap();
    assert_eq!(first.run("f", &["true"]).await, 0);
    assert_eq!(c.delete().await, 5);
    assert_eq!(first.kill_and_delete().await, 137);
    unmount(&disk, UnmountFlags::DETACH).unwrap();
}
