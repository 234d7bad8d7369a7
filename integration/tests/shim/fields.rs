//! The table of `shim/README.md`, tried: what config.json asks for can be seen in the container, or is refused.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use corten_protos::any;
use corten_protos::containerd::runc::v1::Options;
use corten_protos::google::protobuf::Any;
use corten_protos::runtimeoptions::v1::Options as Generic;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::{Value, json};

use crate::container::{Io, Recipe};
use crate::host::{Host, is_reference};

/// A field, what it is set to, and a script that prints what came of it.
type Row = (&'static str, Value, &'static str, &'static str);

/// Fields that one container may have together.
fn of_root() -> Vec<Row> {
    vec![
        ("/hostname", json!("box"), "hostname", "box"),
        (
            "/domainname",
            json!("example.org"),
            "cat /proc/sys/kernel/domainname",
            "example.org",
        ),
        ("/process/cwd", json!("/made/here"), "pwd", "/made/here"),
        (
            "/process/rlimits",
            json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]),
            "ulimit -n; ulimit -Hn",
            "100 200",
        ),
        (
            "/process/capabilities/bounding",
            json!(["CAP_KILL", "CAP_NET_RAW"]),
            "grep CapBnd /proc/self/status | cut -f2",
            "0000000000002020",
        ),
        (
            "/process/noNewPrivileges",
            json!(false),
            "grep NoNewPrivs /proc/self/status | cut -f2",
            "0",
        ),
        (
            "/process/oomScoreAdj",
            json!(321),
            "cat /proc/self/oom_score_adj",
            "321",
        ),
        (
            "/process/scheduler",
            json!({"policy": "SCHED_BATCH", "nice": 5}),
            "cut -d' ' -f19,41 /proc/self/stat",
            "5 3",
        ),
        (
            "/process/ioPriority",
            json!({"class": "IOPRIO_CLASS_BE", "priority": 6}),
            "ionice -p $$",
            "best-effort: prio 6",
        ),
        (
            "/process/user",
            json!({"uid": 0, "gid": 0, "umask": 63, "additionalGids": [7, 8]}),
            "umask; id -G",
            "0077 0 7 8",
        ),
        (
            "/linux/personality",
            json!({"domain": "LINUX32"}),
            "cat /proc/self/personality",
            "00000008",
        ),
        (
            "/linux/memoryPolicy",
            json!({"mode": "MPOL_INTERLEAVE", "nodes": "0"}),
            "head -n 1 /proc/self/numa_maps | cut -d' ' -f2",
            "interleave:0",
        ),
        (
            "/linux/sysctl",
            json!({"net.ipv4.ip_unprivileged_port_start": "77", "kernel.shm_rmid_forced": "1"}),
            "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced",
            "77 1",
        ),
        (
            "/linux/devices",
            json!([{"path": "/dev/mine", "type": "c", "major": 1, "minor": 3,
                    "fileMode": 416, "uid": 7, "gid": 8}]),
            "stat -c '%a %u %g %t:%T' /dev/mine",
            "640 7 8 1:3",
        ),
        (
            "/linux/maskedPaths",
            json!(["/proc/version"]),
            "wc -c </proc/version",
            "0",
        ),
        (
            "/linux/readonlyPaths",
            json!(["/root"]),
            "touch /root/x 2>/dev/null || echo refused",
            "refused",
        ),
        (
            "/linux/namespaces/-",
            json!({"type": "time"}),
            "readlink /proc/self/ns/time | cut -c1-6",
            "time:[",
        ),
        (
            "/linux/timeOffsets",
            json!({"boottime": {"secs": 1_000_000_000, "nanosecs": 0}}),
            "cut -c1-4 /proc/uptime",
            "1000",
        ),
        (
            "/mounts/-",
            json!({"destination": "/data", "type": "tmpfs", "source": "tmpfs",
                   "options": ["noexec", "size=64k", "mode=700"]}),
            "grep ' /data ' /proc/mounts | grep -c 'noexec.*size=64k'; stat -c %a /data",
            "1 700",
        ),
        (
            "/mounts/-",
            json!({"destination": "/etc", "type": "tmpfs", "source": "tmpfs",
                   "options": ["tmpcopyup"]}),
            "head -c 4 /etc/passwd; echo; grep ' /etc ' /proc/mounts | cut -d' ' -f3",
            "root tmpfs",
        ),
        (
            "/mounts/-",
            json!({"destination": "/ro", "type": "bind", "source": "/tmp",
                   "options": ["rbind", "rro"]}),
            "touch /ro/x 2>&1 | grep -o Read-only",
            "Read-only",
        ),
    ]
}

/// Those of another user's container.
fn of_a_user() -> Vec<Row> {
    vec![
        (
            "/process/user",
            json!({"uid": 1000, "gid": 1001}),
            "id -u; id -g",
            "1000 1001",
        ),
        (
            "/process/capabilities",
            json!({"bounding": ["CAP_NET_RAW"], "permitted": ["CAP_NET_RAW"],
                   "effective": ["CAP_NET_RAW"], "inheritable": ["CAP_NET_RAW"],
                   "ambient": ["CAP_NET_RAW"]}),
            "grep -E 'Cap(Amb|Eff)' /proc/self/status | cut -f2",
            "0000000000002000 0000000000002000",
        ),
        (
            "/root/readonly",
            json!(true),
            "touch /tmp/x 2>&1 | grep -o Read-only",
            "Read-only",
        ),
        (
            "/linux/rootfsPropagation",
            json!("shared"),
            "awk '$5 == \"/\"' /proc/self/mountinfo | grep -c shared:",
            "1",
        ),
        (
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
                {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]}),
            "mkdir /tmp/d 2>&1 | grep -o 'not supported'",
            "not supported",
        ),
    ]
}

async fn try_rows(h: &Arc<Host>, id: &str, rows: &[Row]) {
    let scripts: Vec<String> = rows
        .iter()
        .map(|(_, _, script, _)| format!("echo $({script})"))
        .collect();
    let script = scripts.join("\n");
    let out = h.base.join(format!("{id}-out"));
    let mut recipe = h.container(id, &["sh", "-c", &script]);
    for (field, value, ..) in rows {
        recipe = recipe.set(field, value.clone());
    }
    let c = recipe.make().await;
    let io = Io::file(&out);
    c.create_with(&io).await.unwrap();
    c.start().await.unwrap();
    assert_eq!(c.wait().await, 0);
    assert_eq!(c.delete().await, 0);
    let text = fs::read_to_string(&out).unwrap();
    let seen: Vec<&str> = text.lines().collect();
    assert_eq!(seen.len(), rows.len(), "{text}");
    for ((field, value, _, wanted), line) in rows.iter().zip(seen) {
        assert_eq!(line, *wanted, "{field} = {value}");
    }
}

pub(crate) async fn what_is_supported_takes_effect(h: Arc<Host>) {
    try_rows(&h, "root", &of_root()).await;
    try_rows(&h, "user", &of_a_user()).await;
}

/// Fields that no host can have, or that this one lacks what they need; and a word of the answer.
fn refusals() -> Vec<(&'static str, Value, &'static str)> {
    let is_v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let seccomp = |rule: Value| json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]});
    let on = |list: Value| json!([{"type": "mount"}, {"type": "pid"}, list]);
    let map = json!([{"containerID": 0, "hostID": 1000, "size": 1}]);
    let bind = |key: &str, value: Value| json!({"destination": "/x", "type": "bind", "source": "/tmp", key: value});
    vec![
        ("/ociVersion", json!("2.0.0"), "ociVersion"),
        ("/process/args", json!([]), "args"),
        ("/process/cwd", json!("relative"), "cwd"),
        ("/process/user/uid", json!(4_000_000_000_u32), "4000000000"),
        (
            "/process/rlimits",
            json!([{"type": "RLIMIT_X", "soft": 1, "hard": 1}]),
            "RLIMIT_X",
        ),
        (
            "/process/selinuxLabel",
            json!("system_u:system_r:x:s0"),
            "selinux",
        ),
        (
            "/process/scheduler",
            json!({"policy": "SCHED_NEVER"}),
            "SCHED_NEVER",
        ),
        (
            "/process/ioPriority",
            json!({"class": "IOPRIO_CLASS_BE", "priority": 9}),
            "priority",
        ),
        (
            "/hooks",
            json!({"poststop": [{"path": "relative"}]}),
            "absolute",
        ),
        (
            "/hooks",
            json!({"poststop": [{"path": "/bin/true", "timeout": 0}]}),
            "timeout",
        ),
        ("/linux/namespaces", on(json!({"type": "mount"})), "mount"),
        ("/linux/namespaces", on(json!({"type": "astral"})), "astral"),
        (
            "/linux/namespaces",
            on(json!({"type": "network", "path": "/proc/self/ns/ipc"})),
            "network",
        ),
        (
            "/linux/namespaces",
            json!([{"type": "mount", "path": "/proc/1/ns/mnt"}]),
            "mount",
        ),
        ("/linux/uidMappings", map.clone(), "Mappings"),
        ("/linux/gidMappings", map.clone(), "Mappings"),
        (
            "/linux/timeOffsets",
            json!({"boottime": {"secs": 1, "nanosecs": 0}}),
            "time",
        ),
        (
            "/linux/sysctl",
            json!({"kernel.core_pattern": "|/x"}),
            "core_pattern",
        ),
        ("/linux/sysctl", json!({"vm.swappiness": "1"}), "swappiness"),
        (
            "/linux/netDevices",
            json!({"no-such-dev": {}}),
            "no-such-dev",
        ),
        ("/linux/rootfsPropagation", json!("sideways"), "sideways"),
        (
            "/linux/mountLabel",
            json!("system_u:object_r:x:s0"),
            "selinux",
        ),
        ("/linux/personality", json!({"domain": "BSD"}), "BSD"),
        (
            "/linux/personality",
            json!({"domain": "LINUX", "flags": ["X"]}),
            "flag",
        ),
        (
            "/linux/memoryPolicy",
            json!({"mode": "MPOL_MAGIC", "nodes": "0"}),
            "MPOL_MAGIC",
        ),
        (
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_NEVER"}),
            "SCMP_ACT_NEVER",
        ),
        (
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["X"]}),
            "flag",
        ),
        (
            "/linux/seccomp",
            seccomp(json!({"names": ["mkdir"], "action": "SCMP_ACT_ALLOW", "errnoRet": 1})),
            "errnoRet",
        ),
        (
            "/linux/seccomp",
            seccomp(json!({"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"})),
            "listenerPath",
        ),
        (
            "/linux/devices",
            json!([{"path": "/dev/x", "type": "z", "major": 1, "minor": 3}]),
            "type",
        ),
        (
            "/linux/resources/devices",
            json!([{"allow": true, "type": "c", "access": "rwx"}]),
            "access",
        ),
        (
            "/linux/resources/rdma",
            json!({"no_such": {"hcaHandles": 1}}),
            "rdma",
        ),
        (
            "/linux/resources/hugepageLimits",
            json!([{"pageSize": "3MB", "limit": 1}]),
            "3MB",
        ),
        (
            "/linux/resources/unified",
            json!({"no.such.file": "1"}),
            if is_v2 { "no.such.file" } else { "unified" },
        ),
        (
            "/linux/resources/memory",
            json!({"kernel": 1_000_000}),
            "kernel memory",
        ),
        ("/linux/intelRdt", json!({"closID": "x"}), "resctrl"),
        (
            "/mounts/-",
            json!({"destination": "/x", "type": "tmpfs", "options": ["idmap"]}),
            "id mappings",
        ),
        ("/mounts/-", bind("gidMappings", map), "gidMappings"),
        (
            "/mounts/-",
            bind("options", json!(["bind", "tmpcopyup"])),
            "tmpcopyup",
        ),
        (
            "/mounts/-",
            json!({"destination": "/proc/self", "type": "tmpfs"}),
            "/proc",
        ),
    ]
}

/// Whether this host has what most lack.
fn can_have(field: &str) -> bool {
    let needed = match field {
        "/process/selinuxLabel" | "/linux/mountLabel" => "/sys/fs/selinux/enforce",
        "/linux/intelRdt" => "/sys/fs/resctrl/schemata",
        _ => return false,
    };
    Path::new(needed).exists()
}

pub(crate) async fn what_is_not_supported_is_refused(h: Arc<Host>) {
    let keeper = h.running("keeper", &["sleep", "1000000"]).await;
    for (number, (field, value, word)) in refusals().into_iter().enumerate() {
        if is_reference() && field == "/hooks" {
            println!("Corten only: runc finds {value} at the very end");
            continue;
        }
        if can_have(field) {
            println!("not tried: this host has what {field} needs");
            continue;
        }
        let recipe = h
            .container(&format!("c{number}"), &["true"])
            .set(field, value.clone());
        let c = recipe.group("keeper").make().await;
        match c.create().await {
            Err(ttrpc::Error::RpcStatus(status)) => {
                let text = status.message().to_owned();
                if !is_reference() {
                    let known = text.to_lowercase().contains(&word.to_lowercase());
                    assert!(known, "{field} = {value}: {text}");
                }
                c.give_up().await;
            }
            Err(other) => panic!("{field} = {value}: {other}"),
            Ok(_) => {
                assert!(is_reference(), "{field} = {value} is ignored");
                println!("the stock shim takes {field} = {value}");
                assert_eq!(c.kill_and_delete().await, 137);
            }
        }
    }
    // None of them cost the others anything.
    assert_eq!(keeper.run("e", &["true"]).await, 0);
    assert_eq!(keeper.kill_and_delete().await, 137);
}

/// Each kind at its time, with the state of then on its stdin.
pub(crate) async fn hooks_run_in_their_order(h: Arc<Host>) {
    let bind =
        json!({"destination": "/host", "type": "bind", "source": h.base, "options": ["bind"]});
    let mut recipe = h
        .container("c", &["sleep", "1000000"])
        .set("/mounts/-", bind);
    let kinds = [
        ("prestart", "creating"),
        ("createRuntime", "creating"),
        ("createContainer", "creating"),
        ("startContainer", "created"),
        ("poststart", "running"),
        ("poststop", "stopped"),
    ];
    for (kind, _) in kinds {
        let base = match kind {
            "startContainer" => "/host".to_owned(),
            _ => h.base.display().to_string(),
        };
        let script = format!("cat >{base}/state-{kind}; echo {kind} >>{base}/order");
        recipe = recipe.hook(kind, &script);
    }
    let c = recipe.make().await;
    let order = || fs::read_to_string(h.base.join("order")).unwrap_or_default();
    c.create().await.unwrap();
    let begun = order();
    c.start().await.unwrap();
    let running = order();
    assert_eq!(c.kill_and_delete().await, 137);
    let create = "prestart\ncreateRuntime\ncreateContainer\n";
    assert!(begun.starts_with(create), "{begun}");
    assert!(order().ends_with("\npoststop\n"), "{}", order());
    if is_reference() {
        println!("Corten only: runc runs poststart before the start");
        return;
    }
    assert_eq!(begun, create);
    assert!(
        running.ends_with("\nstartContainer\npoststart\n"),
        "{running}"
    );
    for (kind, status) in kinds {
        let text = fs::read_to_string(h.base.join(format!("state-{kind}"))).unwrap();
        let state: Value = serde_json::from_str(&text).unwrap();
        let said = (&state["id"], &state["status"], &state["bundle"]);
        let bundle = json!(h.bundle("c"));
        assert_eq!(said, (&json!("c"), &json!(status), &bundle), "{kind}");
    }
}

pub(crate) async fn a_hook_that_takes_too_long_fails_the_create(h: Arc<Host>) {
    // Nobody ever writes there.
    let fifo = h.base.join("fifo");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let script = format!("read x <>{}", fifo.display());
    let recipe = h.container("c", &["true"]).hook("createRuntime", &script);
    let c = recipe
        .set("/hooks/createRuntime/0/timeout", json!(1))
        .make()
        .await;
    assert!(c.create().await.is_err());
    c.give_up().await;
}

/// Options come as runc's, or as a table of the CRI's; the owner of the pipes is one of them. Their user becomes the
/// process's own in any case.
pub(crate) async fn pipes_belong_to_whom_the_options_say(h: Arc<Host>) {
    let user = json!({"uid": 1000, "gid": 1000});
    let of = |id: &str, options: Option<Any>| {
        let recipe = h.container(id, &["sh", "-c", "stat -L -c '%u %g' /proc/self/fd/1"]);
        let recipe = recipe.set("/process/user", user.clone());
        match options {
            Some(options) => recipe.options(options),
            None => recipe,
        }
    };
    let runc = any::pack(&Options {
        io_uid: 7,
        io_gid: 1001,
        ..Options::default()
    });
    assert_eq!(printed(of("runc", Some(runc))).await, "1000 1001\n");
    assert_eq!(printed(of("none", None)).await, "1000 0\n");
    if is_reference() {
        println!("Corten only: the stock shim takes no table");
        return;
    }
    for (id, body) in [
        ("toml", "IoUid = 7\nIoGid = 1001\n"),
        ("json", r#"{"IoUid":7,"IoGid":1001}"#),
    ] {
        let table = any::pack(&Generic {
            config_body: body.as_bytes().to_vec(),
            ..Generic::default()
        });
        assert_eq!(printed(of(id, Some(table))).await, "1000 1001\n", "{id}");
    }
}

/// What a container prints until it ends.
async fn printed(recipe: Recipe) -> String {
    let c = recipe.make().await;
    let file = c.host.base.join(format!("{}-out", c.id));
    let io = Io::file(&file);
    c.create_with(&io).await.unwrap();
    c.start().await.unwrap();
    c.wait().await;
    c.delete().await;
    fs::read_to_string(file).unwrap_or_default()
}
