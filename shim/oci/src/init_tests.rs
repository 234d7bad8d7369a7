//! Golden plans, hostile documents, and the oci-spec crate as an oracle.

use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};

/// A document like containerd's default one for `ctr run`.
fn document() -> Value {
    json!({
        "ociVersion": "1.3.0",
        "root": {"path": "rootfs"},
        "hostname": "box",
        "process": {
            "args": ["sh"], "cwd": "/", "env": ["PATH=/usr/bin:/bin", "HOME=/root"],
            "user": {"uid": 0, "gid": 0, "additionalGids": [0, 10]},
            "capabilities": {
                "bounding": ["CAP_CHOWN", "CAP_KILL"], "effective": ["CAP_CHOWN", "CAP_KILL"],
                "permitted": ["CAP_CHOWN", "CAP_KILL"],
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true,
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/data", "type": "bind", "source": "/srv", "options": ["rbind", "ro"]},
        ],
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}], "pids": {"limit": 5}},
            "cgroupsPath": "/default/box",
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}],
            "sysctl": {"net.ipv4.ip_unprivileged_port_start": "0"},
            "maskedPaths": ["/proc/kcore", "/proc/kcore", "/sys/firmware"],
            "readonlyPaths": ["/proc/sys"],
        },
    })
}

fn plan_of(document: &Value, bundle: &Path) -> Result<InitPlan> {
    let spec = Spec::parse(document.to_string().as_bytes())?;
    let cgroup = Cgroup::none();
    let params = InitParams {
        id: "box",
        bundle,
        stdio: Stdio::Null,
        cgroup: &cgroup,
        no_pivot_root: false,
        no_new_keyring: false,
        cache: None,
    };
    plan_init(&spec, params)
}

fn bundle() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("temp dir");
    std::fs::create_dir_all(dir.path().join("rootfs/etc")).expect("mkdir");
    dir
}

/// One step per line, without what differs between runs.
fn text(plan: &InitPlan, bundle: &Path) -> String {
    let mut text = format!("clone {:#x}\n", plan.plan.namespaces);
    for op in plan.plan.ops() {
        let line = match op {
            Op::Affinity(mask) => format!("Affinity({} words)", mask.len()),
            op => format!("{op:?}"),
        };
        text.push_str(&line.replace(
            &bundle.canonicalize().expect("path").display().to_string(),
            "BUNDLE",
        ));
        text.push('\n');
    }
    let exec = plan.plan.exec.as_ref().expect("something to execute");
    text.push_str(&format!(
        "exec {:?} {:?} {:?}\n",
        exec.candidates, exec.argv, exec.envp
    ));
    text
}

#[test]
fn golden_ctr_run() {
    let bundle = bundle();
    let plan = plan_of(&document(), bundle.path()).expect("a plan");
    golden("ctr-run", &text(&plan, bundle.path()));
}

fn golden(name: &str, got: &str) {
    let file = format!("{}/tests/golden/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&file, got).expect("write golden file");
    }
    let want = std::fs::read_to_string(&file).expect("golden file");
    assert!(
        got == want,
        "run with UPDATE_GOLDEN=1 after checking:\n{got}"
    );
}

/// What few documents ask for, each as its steps.
#[test]
fn golden_rarities() {
    let bundle = bundle();
    std::fs::create_dir(bundle.path().join("rootfs/var")).expect("mkdir");
    let mut d = document();
    d["process"]["env"] = json!(["PATH=/bin"]);
    d["process"]["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 5});
    d["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 6});
    d["domainname"] = json!("example.org");
    d["mounts"][1]["options"] = json!(["ro", "mode=755"]);
    d["mounts"].as_array_mut().expect("list").push(
        json!({"destination": "/var", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "rnoexec"]}),
    );
    let linux = &mut d["linux"];
    linux["personality"] = json!({"domain": "LINUX32"});
    linux["memoryPolicy"] =
        json!({"mode": "MPOL_INTERLEAVE", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]});
    linux["netDevices"] = json!({"eth0": {"name": "net0"}, "eth1": {}});
    linux["rootfsPropagation"] = json!("rslave");
    let plan = plan_of(&d, bundle.path()).expect("a plan");
    assert!(plan.plan.exec.as_ref().is_some_and(|e| e.find_home));
    golden("rarities", &text(&plan, bundle.path()));
}

#[test]
fn what_is_not_done_is_refused() {
    let bundle = bundle();
    let refused = |path: &str, value: Value| {
        let mut d = document();
        *d.pointer_mut(path.rsplit_once('/').expect("a path").0)
            .expect("parent")
            .as_object_mut()
            .expect("object")
            .entry(path.rsplit('/').next().expect("a name"))
            .or_insert(Value::Null) = value;
        match plan_of(&d, bundle.path()) {
            Ok(_) => panic!("{path} is ignored"),
            Err(e) => e.to_string(),
        }
    };
    assert_eq!(
        refused("/ociVersion", json!("2.0.0")),
        "unsupported ociVersion \"2.0.0\": major version must be 1"
    );
    refused("/linux/intelRdt", json!({"closID": "x"}));
    refused("/linux/netDevices", json!({"eth0": {"name": "a/b"}}));
    refused(
        "/linux/netDevices",
        json!({"eth0": {"name": "x"}, "eth1": {"name": "x"}}),
    );
    refused("/linux/rootfsPropagation", json!("sideways"));
    refused("/linux/namespaces", json!([{"type": "astral"}]));
    refused(
        "/linux/namespaces",
        json!([{"type": "pid"}, {"type": "pid"}]),
    );
    refused("/linux/timeOffsets", json!({"boottime": {"secs": 1}}));
    refused("/linux/sysctl", json!({"kernel.core_pattern": "|/x"}));
    refused("/linux/personality", json!({"domain": "BSD"}));
    refused("/linux/mountLabel", json!("system_u:object_r:x"));
    refused(
        "/linux/seccomp",
        json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerMetadata": "x"}),
    );
    refused(
        "/linux/seccomp",
        json!({"defaultAction": "SCMP_ACT_NOTIFY", "listenerPath": "/x"}),
    );
    let notify = |name: &str, path: &str| {
        json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": path,
            "syscalls": [{"names": [name], "action": "SCMP_ACT_NOTIFY"}]})
    };
    refused("/linux/seccomp", notify("mkdir", ""));
    refused("/linux/seccomp", notify("write", "/x"));
    refused("/process/args", json!([]));
    refused("/process/cwd", json!("relative"));
    refused("/process/env", json!(["A=b\0c"]));
    refused("/process/user", json!({"uid": 2147483648u32}));
    refused("/process/rlimits", json!([{"type": "RLIMIT_X"}]));
    refused(
        "/process/apparmorProfile",
        json!("cri-containerd.apparmor.d-not-there"),
    );
    refused("/process/selinuxLabel", json!("system_u:system_r:x"));
    refused(
        "/process/ioPriority",
        json!({"class": "IOPRIO_CLASS_BE", "priority": 9}),
    );
    refused("/process/scheduler", json!({"policy": "SCHED_NEVER"}));
    refused(
        "/mounts",
        json!([{"destination": "/x", "type": "bind", "source": "/", "options": ["tmpcopyup"]}]),
    );
    refused(
        "/mounts",
        json!([{"destination": "/x", "type": "tmpfs", "options": ["idmap"]}]),
    );
    refused(
        "/linux/personality",
        json!({"domain": "LINUX", "flags": ["X"]}),
    );
    refused(
        "/mounts",
        json!([{"destination": "/proc/self", "type": "tmpfs"}]),
    );
    let one = json!([{"containerID": 0, "hostID": 1, "size": 1}]);
    refused("/linux/gidMappings", one.clone());
    refused(
        "/mounts",
        json!([{"destination": "/x", "type": "bind", "source": "/", "gidMappings": one}]),
    );
    for kind in ["prestart", "startContainer", "poststop"] {
        refused("/hooks", json!({kind: [{"path": "true"}]}));
        refused(
            "/hooks",
            json!({kind: [{"path": "/bin/true", "timeout": 0}]}),
        );
    }
}

#[test]
fn null_is_absent_and_unknown_fields_are_ignored() {
    let bundle = bundle();
    let mut d = document();
    d["hooks"] = Value::Null;
    d["annotations"] = Value::Null;
    d["linux"]["devices"] = Value::Null;
    d["process"]["oomScoreAdj"] = Value::Null;
    d["somethingNew"] = json!({"x": 1});
    plan_of(&d, bundle.path()).expect("a plan");
}

#[test]
fn pids_limit_zero_is_not_absence() {
    let limit = |text: &str| {
        Resources::parse(text.as_bytes())
            .expect("valid")
            .pids
            .expect("pids")
            .limit
    };
    assert_eq!(limit(r#"{"pids":{"limit":0}}"#), Some(0));
    assert_eq!(limit(r#"{"pids":{}}"#), None);
}

use crate::Resources;

/// The oci-spec crate reads the same out of its own default document.
#[test]
fn oracle_agrees() {
    let theirs = oci_spec::runtime::Spec::default();
    let bytes = serde_json::to_vec(&theirs).expect("json");
    let ours = Spec::parse(&bytes).expect("readable");
    let process = theirs.process().as_ref().expect("process");
    let own = ours.process.as_ref().expect("process");
    assert_eq!(process.args().as_ref().expect("args"), &own.args);
    assert_eq!(process.env().as_ref().expect("env"), &own.env);
    assert_eq!(
        process.rlimits().as_ref().map_or(0, Vec::len),
        own.rlimits.len()
    );
    assert_eq!(
        theirs.mounts().as_ref().expect("mounts").len(),
        ours.mounts.len()
    );
    let linux = theirs.linux().as_ref().expect("linux");
    assert_eq!(
        linux.masked_paths().as_ref().expect("paths"),
        &ours.linux.masked_paths
    );
    assert_eq!(
        linux.namespaces().as_ref().expect("namespaces").len(),
        ours.linux.namespaces.len()
    );
    let again: Value = serde_json::to_value(&ours).expect("json");
    assert_eq!(
        Spec::parse(again.to_string().as_bytes()).expect("readable"),
        ours
    );
    // A full resources document keeps every number.
    let text = r#"{"memory":{"limit":1,"swap":2,"kernelTCP":3,"disableOOMKiller":true},
        "cpu":{"shares":4,"quota":5,"period":6,"cpus":"0","idle":1},"pids":{"limit":7},
        "blockIO":{"weight":8,"throttleReadBpsDevice":[{"major":1,"minor":2,"rate":9}],
        "throttleWriteIOPSDevice":[{"major":1,"minor":2,"rate":10}]},
        "hugepageLimits":[{"pageSize":"2MB","limit":11}],"network":{"classID":12},
        "unified":{"memory.high":"13"},"rdma":{"mlx":{"hcaHandles":14}}}"#;
    let theirs: oci_spec::runtime::LinuxResources = serde_json::from_str(text).expect("valid");
    let own = Resources::parse(text.as_bytes()).expect("valid");
    let (memory, cpu) = (own.memory.expect("memory"), own.cpu.expect("cpu"));
    assert_eq!(
        theirs.memory().as_ref().and_then(|m| m.limit()),
        memory.limit
    );
    assert_eq!(
        (memory.kernel_tcp, memory.disable_oom_killer),
        (Some(3), Some(true))
    );
    assert_eq!(theirs.cpu().as_ref().and_then(|c| c.shares()), cpu.shares);
    let io = own.block_io.expect("blockIO");
    assert_eq!(
        (
            io.throttle_read_bps_device.len(),
            io.throttle_write_iops_device.len()
        ),
        (1, 1)
    );
    assert_eq!(own.network.and_then(|n| n.class_id), Some(12));
    assert_eq!(
        (own.unified.len(), own.rdma.len(), own.hugepage_limits.len()),
        (1, 1, 1)
    );
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        "\\PC{0,20}".prop_map(Value::from),
        "(/|\\.|\\.\\.|[a-z]|:|=|,|-|[0-9]){0,12}".prop_map(Value::from),
        Just(json!("\0")),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-zA-Z]{1,10}", inner, 0..4)
                .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

/// Replaces the n-th node of a document.
fn replace(value: &mut Value, n: &mut usize, by: &Value) {
    if *n == 0 {
        *value = by.clone();
        *n = usize::MAX;
        return;
    }
    *n -= 1;
    let children: Vec<&mut Value> = match value {
        Value::Array(list) => list.iter_mut().collect(),
        Value::Object(map) => map.values_mut().collect(),
        _ => return,
    };
    for child in children {
        if *n == usize::MAX {
            return;
        }
        replace(child, n, by);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_an_error_or_a_spec(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Spec::parse(&bytes);
        let _ = Process::parse(&bytes);
        let _ = Resources::parse(&bytes);
    }

    #[test]
    fn a_damaged_document_does_not_panic(at in 0usize..120, by in any_json()) {
        let bundle = bundle();
        let mut d = document();
        let mut n = at;
        replace(&mut d, &mut n, &by);
        let _ = plan_of(&d, bundle.path());
    }
}
