//! A relay and plugins on its socket, in one process.

mod fake;

use std::collections::BTreeSet;
use std::time::Duration;

use corten_core::nri::{ContainerEviction, ContainerUpdate, Nri};
use corten_protos::nri::pkg::api::v1alpha1 as api;
use corten_protos::ttrpc::runtime::Context;
use tokio::net::UnixStream;

use self::fake::{Set, container, cpus, env, pod, resources, until};
use crate::config::DefaultValidator;

#[tokio::test]
async fn plugins_are_told_in_the_order_of_their_indices_of_what_they_want() {
    let set = Set::new(|_| {}).await;
    assert!(set.relay.enabled() && !set.relay.active());
    let _b = set.join(set.fake("20", "b")).await;
    let mut quiet = set.fake("15", "quiet");
    quiet.events = 1 << (api::Event::CreateContainer as i32 - 1);
    let _quiet = set.join(quiet).await;
    let _a = set.join(set.fake("10", "a")).await;
    assert_eq!(set.relay.plugins(), ["10-a", "15-quiet", "20-b"]);
    let heard = set.heard();
    assert_eq!(
        heard[..2],
        ["20-b Configure containerd", "20-b Synchronize 1+1"]
    );
    set.relay.run_pod_sandbox(pod("p1")).await.unwrap();
    assert_eq!(
        set.heard(),
        ["10-a RunPodSandbox p1", "20-b RunPodSandbox p1"]
    );
    // Told once, whoever tells.
    set.relay.stop_pod_sandbox(pod("p1")).await.unwrap();
    set.relay.stop_pod_sandbox(pod("p1")).await.unwrap();
    assert_eq!(set.heard().len(), 2);
    // Known by synchronization.
    set.relay.notify_container_exit(pod("p0"), container("c0"));
    until(|| set.log.lock().len() == 2).await;
    set.relay
        .remove_container(pod("p0"), container("c0"))
        .await
        .unwrap();
    set.relay
        .remove_container(pod("p0"), container("c0"))
        .await
        .unwrap();
    let heard: BTreeSet<String> = set.heard().into_iter().collect();
    assert_eq!(heard.len(), 4);
    assert!(heard.contains("10-a RemoveContainer c0"));
}

#[tokio::test]
async fn wishes_are_merged_and_conflicts_fail_the_creation() {
    let set = Set::new(|_| {}).await;
    let mut a = set.fake("10", "a");
    a.adjust = env("A", "1");
    a.update = vec![cpus("c0", "3"), cpus("unknown", "3")];
    a.evict = vec![ContainerEviction {
        container_id: "c0".into(),
        reason: "full".into(),
    }];
    let _a = set.join(a).await;
    let mut b = set.fake("20", "b");
    b.adjust = env("B", "2");
    let b = set.join(b).await;
    set.heard();
    let adjust = set
        .relay
        .create_container(pod("p0"), container("c1"))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(adjust.env.len(), 2);
    assert_eq!(
        set.heard(),
        [
            "10-a CreateContainer ",
            "20-b CreateContainer A=1",
            "evict c0 full",
            "update c0 Some(\"3\")"
        ]
    );
    let mut c = set.fake("30", "c");
    c.adjust = env("A", "3");
    let _c = set.join(c).await;
    let failed = set.relay.create_container(pod("p0"), container("c2")).await;
    assert_eq!(
        failed.unwrap_err().to_string(),
        "plugins \"30-c\" and \"10-a\" both tried to set Env A"
    );
    // A plugin that leaves is forgotten.
    b.mux.close();
    until(|| set.relay.plugins() == ["10-a", "30-c"]).await;
}

#[tokio::test]
async fn a_plugin_that_hangs_is_dropped_and_one_that_refuses_is_heeded() {
    let set = Set::new(|_| {}).await;
    let mut hangs = set.fake("10", "hangs");
    hangs.hangs = Some("RunPodSandbox");
    let hangs = set.join(hangs).await;
    let mut fails = set.fake("20", "fails");
    fails.fails = Some("CreateContainer");
    let _fails = set.join(fails).await;
    set.heard();
    set.relay.run_pod_sandbox(pod("p1")).await.unwrap();
    assert_eq!(
        set.heard(),
        ["10-hangs RunPodSandbox p1", "20-fails RunPodSandbox p1"]
    );
    hangs.mux.ended().await;
    until(|| set.relay.plugins() == ["20-fails"]).await;
    let refused = set.relay.create_container(pod("p1"), container("c1")).await;
    assert_eq!(
        refused.unwrap_err().to_string(),
        "rpc error: code = Unknown desc = no way"
    );
    assert_eq!(set.relay.plugins(), ["20-fails"]);
}

#[tokio::test]
async fn a_refused_pod_is_taken_back() {
    let set = Set::new(|_| {}).await;
    let mut a = set.fake("10", "a");
    a.fails = Some("RunPodSandbox");
    let _a = set.join(a).await;
    set.heard();
    assert!(set.relay.run_pod_sandbox(pod("p1")).await.is_err());
    let heard = set.heard();
    assert_eq!(heard[0], "10-a RunPodSandbox p1");
    assert_eq!(heard[1], "10-a StopPodSandbox p1");
    assert_eq!(heard[2], "10-a StateChange REMOVE_POD_SANDBOX");
    set.relay.stop_pod_sandbox(pod("p1")).await.unwrap();
    assert_eq!(set.heard().len(), 0);
}

#[tokio::test]
async fn a_plugin_may_update_containers_at_any_time() {
    let set = Set::new(|_| {}).await;
    let mut a = set.fake("10", "a");
    a.asks = true;
    let a = set.join(a).await;
    set.heard();
    set.relay
        .create_container(pod("p0"), container("c1"))
        .await
        .unwrap();
    assert_eq!(
        set.heard(),
        ["10-a CreateContainer ", "update c0 Some(\"5\")"]
    );
    let ask = async |update: Vec<ContainerUpdate>| {
        let evict = vec![ContainerEviction {
            container_id: "c0".into(),
            reason: "r".into(),
        }];
        let request = api::UpdateContainersRequest { update, evict };
        let runtime = &a.runtime;
        runtime
            .update_containers(Context::default(), &request)
            .await
    };
    ask(vec![cpus("c0", "1"), cpus("gone", "bad")])
        .await
        .unwrap();
    assert_eq!(set.heard(), ["evict c0 r", "update c0 Some(\"1\")"]);
    let mut tolerant = cpus("c0", "bad");
    tolerant.ignore_failure = true;
    ask(vec![tolerant]).await.unwrap();
    let failed = ask(vec![cpus("c0", "bad")]).await.unwrap_err();
    assert!(
        failed
            .to_string()
            .contains("NRI update of some containers failed"),
        "{failed}"
    );
    assert_eq!(a.fake.name, "a");
}

#[tokio::test]
async fn plugins_correct_what_a_client_wants() {
    let set = Set::new(|_| {}).await;
    let plain = set.join(set.fake("10", "plain")).await;
    let update = |cpus: &str| {
        let wanted = resources(cpus);
        set.relay
            .update_container(pod("p0"), container("c0"), wanted)
    };
    assert_eq!(update("0").await.unwrap(), None);
    let mut a = set.fake("20", "a");
    a.resources = Some(resources("7"));
    a.update = vec![cpus("c0", "7")];
    let _a = set.join(a).await;
    let conflict = update("0").await.unwrap_err().to_string();
    assert_eq!(
        conflict,
        "plugins \"20-a\" and \"20-a\" both tried to set CPUSetCPUs"
    );
    drop(plain);
    let set = Set::new(|_| {}).await;
    let mut a = set.fake("20", "a");
    a.resources = Some(resources("7"));
    let _a = set.join(a).await;
    let wanted = set
        .relay
        .update_container(pod("p0"), container("c0"), resources("0"));
    assert_eq!(wanted.await.unwrap().unwrap().cpu.unwrap().cpus, "7");
}

#[tokio::test]
async fn old_plugins_hear_state_changes_and_cannot_be_told_in_parts() {
    let set = Set::new(|_| {}).await;
    let mut old = set.fake("10", "old");
    old.old = true;
    let _old = set.join(old).await;
    set.heard();
    set.relay.run_pod_sandbox(pod("p1")).await.unwrap();
    set.relay.stop_pod_sandbox(pod("p1")).await.unwrap();
    assert_eq!(
        set.heard(),
        [
            "10-old StateChange RUN_POD_SANDBOX",
            "10-old StateChange STOP_POD_SANDBOX"
        ]
    );
    let large = "x".repeat(3 << 20);
    for id in ["c2", "c3"] {
        let mut c = container(id);
        c.args = vec![large.clone()];
        set.node.containers.lock().push(c);
    }
    let _new = set.join(set.fake("20", "new")).await;
    assert_eq!(
        set.heard()[1..],
        ["20-new Synchronize 1+2", "20-new Synchronize 0+1"]
    );
    let mut old = set.fake("30", "old");
    old.old = true;
    let (old, registered) = old.connect(&set.socket()).await;
    registered.unwrap();
    old.mux.ended().await;
    assert_eq!(set.relay.plugins(), ["10-old", "20-new"]);
}

#[tokio::test]
async fn validators_see_the_whole_and_may_reject_it() {
    let set = Set::new(|c| {
        c.default_validator = DefaultValidator {
            enable: true,
            required_plugins: vec!["a".into()],
            ..Default::default()
        };
    })
    .await;
    assert!(set.relay.active());
    let create = || set.relay.create_container(pod("p0"), container("c1"));
    assert_eq!(
        create().await.unwrap_err().to_string(),
        "validator \"00-default-validator\" rejected container adjustment, reason: \
         validation error: required plugin \"a\" not present"
    );
    let mut a = set.fake("10", "a");
    // All.
    a.events = 0;
    let a = set.join(a).await;
    set.heard();
    create().await.unwrap();
    assert_eq!(
        set.heard(),
        ["10-a CreateContainer ", "10-a Validate default-validator,a"]
    );
    let mut b = set.fake("20", "b");
    b.events = 0;
    b.rejects = Some("");
    let _b = set.join(b).await;
    assert_eq!(
        create().await.unwrap_err().to_string(),
        "validator \"20-b\" rejected container adjustment, reason: unknown rejection reason"
    );
    drop(a);
}

#[tokio::test]
async fn who_does_not_introduce_itself_properly_is_not_admitted() {
    let set = Set::new(|_| {}).await;
    let (bad, answer) = set.fake("1", "a").connect(&set.socket()).await;
    let text = answer.unwrap_err().to_string();
    assert!(text.contains("invalid plugin index \\\"1\\\""), "{text}");
    bad.mux.ended().await;
    let mut greedy = set.fake("10", "greedy");
    greedy.events = 1 << 20;
    let (greedy, _) = greedy.connect(&set.socket()).await;
    greedy.mux.ended().await;
    // One that says nothing.
    let mut silent = UnixStream::connect(set.socket()).await.unwrap();
    let mut byte = [0];
    let end = tokio::io::AsyncReadExt::read(&mut silent, &mut byte);
    let end = tokio::time::timeout(Duration::from_secs(5), end).await;
    assert_eq!(end.unwrap().unwrap(), 0);
    let _good = set.join(set.fake("10", "good")).await;
    assert_eq!(set.relay.plugins(), ["10-good"]);
}

#[tokio::test]
async fn a_request_keeps_newcomers_waiting_and_stop_ends_all() {
    let set = Set::new(|_| {}).await;
    let block = set.relay.block_sync().await;
    let (a, registered) = set.fake("10", "a").connect(&set.socket()).await;
    registered.unwrap();
    until(|| set.log.lock().len() == 1).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(set.heard(), ["10-a Configure containerd"]);
    drop(block);
    until(|| set.relay.active()).await;
    set.relay.stop().await;
    a.mux.ended().await;
    assert!(!set.socket().exists());
}

#[tokio::test]
async fn the_configuration_turns_it_off() {
    let off = Set::new(|c| c.disable = true).await;
    assert!(!off.relay.enabled() && !off.relay.active() && !off.socket().exists());
    off.relay.run_pod_sandbox(pod("p1")).await.unwrap();
    let adjust = off.relay.create_container(pod("p1"), container("c1")).await;
    assert_eq!(adjust.unwrap(), None);
    let closed = Set::new(|c| c.disable_connections = true).await;
    assert!(closed.relay.enabled() && !closed.socket().exists());
}

#[tokio::test]
async fn installed_plugins_are_launched_and_broken_ones_left_out() {
    use std::os::unix::fs::PermissionsExt;
    let seen = tempfile::NamedTempFile::new().unwrap();
    let set = Set::new(|c| {
        std::fs::create_dir_all(&c.plugin_path).unwrap();
        let script = format!(
            "#!/bin/sh\n{{ env; test -S /proc/self/fd/3 && echo socket; }} > {}\nexit 1\n",
            seen.path().display()
        );
        let path = c.plugin_path.join("10-broken");
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    })
    .await;
    assert_eq!(set.relay.plugins().len(), 0);
    let text = std::fs::read_to_string(seen.path()).unwrap();
    for line in [
        "NRI_PLUGIN_NAME=broken",
        "NRI_PLUGIN_IDX=10",
        "NRI_PLUGIN_SOCKET=3",
        "socket",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} in {text}");
    }
}
