//! The client with plugins that are shell scripts: what they are told, and what is made of what they say.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test program")]

mod support;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use corten_cni::cache::Attachment;
use corten_cni::{Capabilities, Cni, Options, Pod};
use corten_core::Kind;
use serde_json::{Value, json};
use support::{Ground, inside, script};
use tokio::time::timeout;

/// A plugin that notes what it was told and does what files beside it say.
const PLUGIN: &str = r#"#!/bin/sh
me=$(basename "$0"); at=$(dirname "$0")/../said; how=$at/$me.$CNI_COMMAND
cat >"$at/$me.$CNI_COMMAND.stdin"
echo "$CNI_COMMAND $me $CNI_CONTAINERID $CNI_IFNAME ${CNI_NETNS:-none} [$CNI_ARGS]" >>"$at/log"
[ -e "$how.stderr" ] && cat "$how.stderr" >&2
[ -e "$how.sleep" ] && { echo $$ >"$at/pid"; sleep 1000 & wait; }
[ -e "$how.fail" ] && { cat "$how.fail"; exit 1; }
[ -e "$how.say" ] && { cat "$how.say"; exit 0; }
case $CNI_COMMAND in
ADD) echo '{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.7/24"}]}' ;;
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}' ;;
esac
"#;

struct Fixture {
    ground: Ground,
    cni: Arc<Cni>,
    pod: Pod,
}

impl Fixture {
    async fn new(conf: &[(&str, Value)], change: impl FnOnce(&mut Options)) -> Option<Self> {
        let mut ground = Ground::new()?;
        let at = ground.path().to_owned();
        for dir in ["bin", "said", "net.d"] {
            std::fs::create_dir(at.join(dir)).unwrap();
        }
        for name in ["one", "two", "three"] {
            script(&at.join("bin").join(name), PLUGIN);
        }
        for (name, text) in conf {
            std::fs::write(at.join("net.d").join(name), text.to_string()).unwrap();
        }
        let mut options = Options {
            bin_dirs: vec![at.join("bin")],
            conf_dir: at.join("net.d"),
            cache_dir: at.join("cache"),
            timeout: Duration::from_secs(20),
            ..Options::default()
        };
        change(&mut options);
        let pod = Pod {
            id: "pod-1".into(),
            netns: ground.namespace("ns"),
            args: vec![
                ("IgnoreUnknown".into(), "1".into()),
                ("K8S_POD_NAME".into(), "p".into()),
            ],
            capabilities: Capabilities::new().mac("aa:bb").cgroup_path("/x"),
        };
        let cni = Cni::open(options).await.unwrap();
        Some(Self { ground, cni, pod })
    }

    fn said(&self, name: &str) -> PathBuf {
        self.ground.path().join("said").join(name)
    }

    fn how(&self, name: &str, text: &str) {
        std::fs::write(self.said(name), text).unwrap();
    }

    /// What the plugins were called with since the last time.
    fn log(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.said("log")).unwrap_or_default();
        let _ = std::fs::remove_file(self.said("log"));
        log.lines().map(str::to_owned).collect()
    }

    fn stdin(&self, name: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.said(name)).unwrap()).unwrap()
    }

    fn conf(&self, name: &str, value: &Value) {
        let path = self.ground.path().join("net.d").join(name);
        std::fs::write(path, value.to_string()).unwrap();
    }
}

fn list(name: &str, version: &str, plugins: &[&str]) -> Value {
    let plugins: Vec<_> = plugins
        .iter()
        .map(|p| json!({"type": p, "capabilities": {"mac": true, "cgroupPath": false}}))
        .collect();
    json!({"name": name, "cniVersion": version, "plugins": plugins})
}

#[tokio::test]
async fn a_chain_hands_results_on_and_is_undone_backwards() {
    let conf = [("10-a.conflist", list("net", "1.0.0", &["one", "two"]))];
    let Some(f) = Fixture::new(&conf, |_| {}).await else {
        return;
    };
    let said = r#"{"cniVersion":"0.4.0","interfaces":[{"name":"eth0","sandbox":"/ns"}],
        "ips":[{"version":"4","address":"10.0.0.9/24","gateway":"10.0.0.1","interface":0}]}"#;
    f.how("two.ADD.say", said);
    let setup = f.cni.setup(&f.pod).await.unwrap();
    assert_eq!(setup.ips("eth0")[0].to_string(), "10.0.0.9");
    assert_eq!(setup.ips("lo").len(), 2);
    assert!(inside(&f.pod.netns, &["ip", "-o", "addr", "show", "lo"]).contains("127.0.0.1/8"));
    let ns = &f.pod.netns;
    let args = "[IgnoreUnknown=1;K8S_POD_NAME=p]";
    assert_eq!(
        f.log(),
        [
            format!("ADD one pod-1 eth0 {ns} {args}"),
            format!("ADD two pod-1 eth0 {ns} {args}")
        ]
    );
    let stdin = f.stdin("two.ADD.stdin");
    assert_eq!(stdin["name"], "net");
    assert_eq!(stdin["cniVersion"], "1.0.0");
    assert_eq!(stdin["runtimeConfig"], json!({"mac": "aa:bb"}));
    assert_eq!(stdin["prevResult"]["ips"][0]["address"], "10.0.0.7/24");
    assert!(f.stdin("one.ADD.stdin").get("prevResult").is_none());

    f.cni.check(&f.pod).await.unwrap();
    assert_eq!(f.log().len(), 2);
    // The last plugin's result, in the network's version.
    let previous = f.stdin("one.CHECK.stdin")["prevResult"].clone();
    assert_eq!(previous["cniVersion"], "1.0.0");
    assert_eq!(
        previous["ips"][0],
        json!({"address": "10.0.0.9/24", "gateway": "10.0.0.1", "interface": 0})
    );

    f.cni.remove(&f.pod).await.unwrap();
    let verbs: Vec<_> = f.log().iter().map(|l| l[..7].to_owned()).collect();
    assert_eq!(verbs, ["DEL two", "DEL one"]);
    assert_eq!(f.stdin("one.DEL.stdin")["prevResult"], previous);
    assert!(f.cni.attachments(None).await.unwrap().is_empty());
    assert_eq!(
        f.cni.check(&f.pod).await.unwrap_err().kind(),
        Kind::NotFound
    );
}

#[tokio::test]
async fn what_was_attached_is_detached_after_the_configuration_changed() {
    let conf = [("10-a.conflist", list("old", "0.3.1", &["one"]))];
    let Some(f) = Fixture::new(&conf, |_| {}).await else {
        return;
    };
    f.cni.setup(&f.pod).await.unwrap();
    f.log();
    f.conf("10-a.conflist", &list("new", "1.0.0", &["three"]));
    f.cni.load().await.unwrap();
    // Another daemon, after a reboot: no namespace, and arguments that nobody remembers.
    f.ground.reboot(&f.pod.netns);
    let cni = Cni::open(f.cni.options().clone()).await.unwrap();
    let pod = Pod {
        id: f.pod.id.clone(),
        netns: f.pod.netns.clone(),
        ..Pod::default()
    };
    cni.remove(&pod).await.unwrap();
    assert_eq!(
        f.log(),
        ["DEL one pod-1 eth0 none [IgnoreUnknown=1;K8S_POD_NAME=p]"]
    );
    let stdin = f.stdin("one.DEL.stdin");
    assert_eq!(stdin["name"], "old");
    assert_eq!(stdin["runtimeConfig"], json!({"mac": "aa:bb"}));
    // Before 0.4.0 DEL was not told the result.
    assert!(stdin.get("prevResult").is_none());
    // Nothing is recorded any more: the current network is asked, to be sure.
    cni.remove(&pod).await.unwrap();
    assert_eq!(f.log(), ["DEL three pod-1 eth0 none []"]);
    // And without any network there is nobody to ask.
    std::fs::remove_file(f.ground.path().join("net.d/10-a.conflist")).unwrap();
    assert!(cni.load().await.is_err());
    cni.remove(&pod).await.unwrap();
}

#[tokio::test]
async fn a_failed_setup_is_undone_and_says_why() {
    let conf = [
        ("10-a.conflist", list("a", "1.0.0", &["one"])),
        ("20-b.conflist", list("b", "1.0.0", &["two", "three"])),
    ];
    let Some(f) = Fixture::new(&conf, |o| (o.max_conf_num, o.serial) = (0, true)).await else {
        return;
    };
    f.how(
        "three.ADD.fail",
        r#"{"cniVersion":"1.0.0","code":7,"msg":"bad net","details":"no subnet"}"#,
    );
    let e = f.cni.setup(&f.pod).await.unwrap_err();
    assert_eq!(e.kind(), Kind::InvalidArgument);
    assert_eq!(
        e.to_string(),
        r#"plugin type="three" failed (add): bad net; no subnet"#
    );
    let log: Vec<_> = f
        .log()
        .iter()
        .map(|l| l[..l.find(" /").unwrap()].to_owned())
        .collect();
    let wanted = [
        "ADD one pod-1 eth0",
        "ADD two pod-1 eth1",
        "ADD three pod-1 eth1",
        "DEL one pod-1 eth0",
        "DEL three pod-1 eth1",
        "DEL two pod-1 eth1",
    ];
    assert_eq!(log, wanted);
    assert!(f.cni.attachments(None).await.unwrap().is_empty());

    // What cannot be undone stays recorded, and the others are undone all the same.
    f.how("three.DEL.fail", r#"{"code":999,"msg":"stuck"}"#);
    f.cni.setup(&f.pod).await.unwrap_err();
    let left = f.cni.attachments(None).await.unwrap();
    assert_eq!((left.len(), left[0].network.as_str()), (1, "b"));
    let e = f.cni.remove(&f.pod).await.unwrap_err();
    assert_eq!(
        e.to_string(),
        r#"plugin type="three" failed (delete): stuck"#
    );
    std::fs::remove_file(f.said("three.DEL.fail")).unwrap();
    f.cni.remove(&f.pod).await.unwrap();
    assert!(f.cni.attachments(None).await.unwrap().is_empty());
}

#[tokio::test]
async fn plugins_fail_in_many_ways() {
    let conf = [("10-a.conflist", list("net", "1.0.0", &["one"]))];
    let Some(f) = Fixture::new(&conf, |_| {}).await else {
        return;
    };
    let big = "x".repeat(2 * 1024 * 1024);
    let cases = [
        ("one.ADD.say", "nonsense", "result of a CNI plugin"),
        (
            "one.ADD.say",
            r#"{"ips":[{"address":"10.0.0.1"}]}"#,
            "CIDR address",
        ),
        ("one.ADD.say", &big, "plugin wrote more than 1048576 bytes"),
        (
            "one.ADD.fail",
            "",
            "netplugin failed with no error message: exit status 1",
        ),
        (
            "one.ADD.fail",
            "oops",
            "error parsing its diagnostic message \"oops\"",
        ),
    ];
    for (how, text, wanted) in cases {
        f.how(how, text);
        let e = f.cni.setup(&f.pod).await.unwrap_err();
        assert!(e.to_string().contains(wanted), "{e}");
        std::fs::remove_file(f.said(how)).unwrap();
    }
    f.how("one.ADD.stderr", &format!("{}why", "y".repeat(200_000)));
    f.how("one.ADD.fail", "");
    let e = f.cni.setup(&f.pod).await.unwrap_err().to_string();
    assert!(
        e.contains("netplugin failed: \"yyy") && e.len() < 5000,
        "{e}"
    );
    std::fs::remove_file(f.said("one.ADD.fail")).unwrap();
    // Much on stderr is no failure.
    f.cni.setup(&f.pod).await.unwrap();
    f.cni.remove(&f.pod).await.unwrap();

    f.conf("10-a.conflist", &list("net", "1.0.0", &["absent"]));
    f.cni.load().await.unwrap();
    let e = f.cni.setup(&f.pod).await.unwrap_err().to_string();
    assert!(
        e.contains(r#"failed to find plugin "absent" in path ["#),
        "{e}"
    );
    let bad = Pod {
        args: vec![("A".into(), "b;C=d".into())],
        ..f.pod.clone()
    };
    f.conf("10-a.conflist", &list("net", "1.0.0", &["one"]));
    f.cni.load().await.unwrap();
    assert_eq!(
        f.cni.setup(&bad).await.unwrap_err().kind(),
        Kind::InvalidArgument
    );
    let bad = Pod {
        id: "../x".into(),
        ..f.pod.clone()
    };
    assert_eq!(
        f.cni.setup(&bad).await.unwrap_err().kind(),
        Kind::InvalidArgument
    );
    let bad = Pod {
        id: "fresh".into(),
        netns: "/absent".into(),
        ..f.pod.clone()
    };
    assert_eq!(
        f.cni.setup(&bad).await.unwrap_err().kind(),
        Kind::FailedPrecondition
    );
}

/// The pid that the hanging plugin noted.
async fn hanging(f: &Fixture) -> i32 {
    let pid = async {
        loop {
            let pid = std::fs::read_to_string(f.said("pid")).unwrap_or_default();
            if let Ok(pid) = pid.trim().parse() {
                return pid;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(10), pid)
        .await
        .expect("the plugin hangs")
}

/// Waits until nobody of the plugin's process group is left.
async fn dead(group: i32) {
    let group = rustix::process::Pid::from_raw(group).unwrap();
    let gone = async {
        while rustix::process::test_kill_process_group(group).is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(10), gone)
        .await
        .expect("the plugin is killed");
}

#[tokio::test]
async fn a_plugin_that_hangs_is_killed_with_its_children() {
    let conf = [("10-a.conflist", list("net", "1.0.0", &["one"]))];
    let Some(f) = Fixture::new(&conf, |o| o.timeout = Duration::from_millis(1500)).await else {
        return;
    };
    f.how("one.ADD.sleep", "");
    let (done, group) = tokio::join!(f.cni.setup(&f.pod), hanging(&f));
    let e = done.unwrap_err();
    assert_eq!(e.kind(), Kind::DeadlineExceeded, "{e}");
    dead(group).await;

    // A caller that goes away.
    std::fs::remove_file(f.said("pid")).unwrap();
    f.log();
    let group = tokio::select! {
        _ = f.cni.setup(&f.pod) => panic!("the plugin hangs"),
        group = hanging(&f) => group,
    };
    dead(group).await;
    // It is recorded, so the plugin's part can be taken back.
    assert!(f.cni.attachments(None).await.unwrap()[0].result.is_none());
    f.cni.remove(&f.pod).await.unwrap();
    assert!(f.log().iter().any(|l| l.starts_with("DEL one pod-1")));
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_do_not_wait_for_each_other_and_one_pod_takes_turns() {
    let conf = [("10-a.conflist", list("net", "1.0.0", &["one", "two"]))];
    let Some(mut f) = Fixture::new(&conf, |_| {}).await else {
        return;
    };
    let pods: Vec<_> = (0..12)
        .map(|n| Pod {
            id: format!("p{n}"),
            netns: f.ground.namespace(&format!("n{n}")),
            ..f.pod.clone()
        })
        .collect();
    f.how("one.ADD.say.unused", "");
    let all = pods.iter().map(|p| f.cni.setup(p));
    for done in futures::future::join_all(all).await {
        done.unwrap();
    }
    assert_eq!(f.cni.attachments(None).await.unwrap().len(), 12);
    f.log();
    // Eight removals of one pod at once: one does it, the others find the current network only.
    let same = (0..8).map(|_| f.cni.remove(&pods[0]));
    for done in futures::future::join_all(same).await {
        done.unwrap();
    }
    let verbs: Vec<_> = f.log().iter().map(|l| l[4..7].to_owned()).collect();
    assert_eq!(verbs, ["two", "one"].repeat(8));

    // Garbage: what the caller says, and was not made by this process.
    let cni = Cni::open(f.cni.options().clone()).await.unwrap();
    cni.gc(|_| false).await.unwrap();
    f.cni.gc(|_| true).await.unwrap();
    assert_eq!(cni.attachments(None).await.unwrap().len(), 11);
    let mine =
        |a: &Attachment| a.container != "p1" && a.args.iter().any(|(k, _)| k == "K8S_POD_NAME");
    cni.gc(mine).await.unwrap();
    let left = cni.attachments(None).await.unwrap();
    assert_eq!((left.len(), left[0].container.as_str()), (1, "p1"));
}

#[tokio::test]
async fn versions_are_negotiated_and_new_verbs_used_where_they_exist() {
    let mut conf = list("net", "0.4.0", &["one"]);
    conf["cniVersions"] = json!(["0.4.0", "1.0.0", "1.1.0"]);
    let Some(f) = Fixture::new(&[("10-a.conflist", conf.clone())], |_| {}).await else {
        return;
    };
    f.cni.setup(&f.pod).await.unwrap();
    assert_eq!(f.stdin("one.ADD.stdin")["cniVersion"], "1.0.0");
    // 1.0.0 has no STATUS and no GC.
    f.cni.status().await.unwrap();
    f.cni.gc(|_| true).await.unwrap();
    assert!(!f.said("one.STATUS.stdin").exists() && !f.said("one.GC.stdin").exists());

    f.how(
        "one.VERSION.say",
        r#"{"cniVersion":"1.1.0","supportedVersions":["1.1.0"]}"#,
    );
    f.how("one.STATUS.fail", r#"{"code":50,"msg":"not now"}"#);
    let e = f.cni.status().await.unwrap_err();
    assert_eq!(
        (e.kind(), e.to_string().as_str()),
        (Kind::Unavailable, "not now")
    );
    std::fs::remove_file(f.said("one.STATUS.fail")).unwrap();
    f.cni.status().await.unwrap();
    f.cni.gc(|_| true).await.unwrap();
    let wanted = json!([{"containerID": "pod-1", "ifname": "eth0"}]);
    assert_eq!(f.stdin("one.GC.stdin")["cni.dev/valid-attachments"], wanted);
    assert_eq!(f.stdin("one.GC.stdin")["cni.dev/attachments"], wanted);
    std::fs::remove_file(f.said("one.GC.stdin")).unwrap();
    conf["disableGC"] = true.into();
    conf["disableCheck"] = true.into();
    f.conf("10-a.conflist", &conf);
    f.cni.load().await.unwrap();
    f.cni.gc(|_| true).await.unwrap();
    assert!(!f.said("one.GC.stdin").exists());

    f.how(
        "one.VERSION.say",
        r#"{"cniVersion":"0.2.0","supportedVersions":["0.2.0"]}"#,
    );
    let e = f
        .cni
        .setup(&Pod {
            id: "other".into(),
            ..f.pod.clone()
        })
        .await
        .unwrap_err();
    assert_eq!(e.kind(), Kind::FailedPrecondition, "{e}");
}

#[tokio::test]
async fn the_folder_is_watched() {
    let Some(f) = Fixture::new(&[], |_| {}).await else {
        return;
    };
    let not_ready = f.cni.status().await.unwrap_err();
    assert_eq!(not_ready.to_string(), "cni plugin not initialized");
    let folder = f.ground.path().join("net.d");
    assert_eq!(
        f.cni.load_error().unwrap(),
        format!(
            "cni config load failed: no network config found in {}: cni plugin not initialized: failed to load cni config",
            folder.display()
        )
    );
    let watch = tokio::spawn(f.cni.clone().watch());
    let becomes = async |ready: bool| {
        let wait = async {
            while f.cni.status().await.is_ok() != ready {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(10), wait)
            .await
            .expect("the change is seen");
    };
    f.conf("10-a.conflist", &list("net", "1.0.0", &["one"]));
    becomes(true).await;
    assert_eq!(f.cni.describe()["Networks"][1]["Config"]["Name"], "net");
    f.conf("05-broken.conf", &json!("{"));
    becomes(false).await;
    std::fs::remove_file(folder.join("05-broken.conf")).unwrap();
    becomes(true).await;
    std::fs::remove_dir_all(&folder).unwrap();
    becomes(false).await;
    let back = async {
        while !folder.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(10), back)
        .await
        .expect("the folder is made again");
    let draft = f.ground.path().join("draft");
    std::fs::write(&draft, list("net", "1.0.0", &["one"]).to_string()).unwrap();
    std::fs::rename(&draft, folder.join("10-a.conflist")).unwrap();
    becomes(true).await;
    watch.abort();
}
