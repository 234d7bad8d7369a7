//! Whole documents, compared with what containerd 2.4.2 stored for the same calls (`tests/golden.json`).
//!
//! The file has one document of a pod and one of a container, and per case the calls and what is different then (as JSON
//! merge patches). Mounts are kept by destination there, and their order beside them; of the default filter only the
//! number of rules, whose effect the tests of [`super::seccomp`] hold. `@D` is the folder of a run, `@POD` and `@CTR`
//! are ids, 7 is the pod's process.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use corten_protos::runtime::v1::{ContainerConfig, PodSandboxConfig};
use serde_json::{Map, Value, json};

use super::*;

const GOLDEN: &str = include_str!("tests/golden.json");
const PAUSE: &str = "example.com/pause:1";
const STATE: &str = "state/io.containerd.grpc.v1.cri/sandboxes/@POD";
const ROOT: &str = "root/io.containerd.grpc.v1.cri";
const CDI: &str = r#"{"cdiVersion":"0.7.0","kind":"vendor.com/gpu","containerEdits":{"env":["COMMON=1"]},
"devices":[{"name":"0","containerEdits":{"env":["A=2","PATH=/gpu"],"additionalGids":[44],
"deviceNodes":[{"path":"/dev/gpu","hostPath":"/dev/null","permissions":"rw"}],
"mounts":[{"hostPath":"/lib/x","containerPath":"/lib/x","options":["ro","rbind"]}],
"hooks":[{"hookName":"createContainer","path":"/bin/hook","args":["hook"]}]}}]}"#;

/// A folder as the recording had it, and what makes documents there.
struct Lab {
    dir: tempfile::TempDir,
    specs: Specs,
    handler: config::Handler,
    files: PodFiles,
}

// === impl Lab ===

impl Lab {
    fn new(capabilities: &Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        for folder in ["vol/real", "cdi", "rootfs/etc"] {
            fs::create_dir_all(at(folder)).unwrap();
        }
        symlink(at("vol/real"), at("vol/link")).unwrap();
        symlink("/dev/null", at("vol/nulllink")).unwrap();
        fs::write(at("vol/hosts"), "x").unwrap();
        let filter = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_ERRNO","errnoRet":1}]}"#;
        fs::write(at("vol/seccomp.json"), filter).unwrap();
        fs::write(at("cdi/a.json"), CDI).unwrap();
        let passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/:/bin/sh\n";
        fs::write(at("rootfs/etc/passwd"), passwd).unwrap();
        let group = "root:x:0:root\nweb:x:34:web\ndisk:x:6:root,web\ntape:x:26:web\n";
        fs::write(at("rootfs/etc/group"), group).unwrap();
        let config = config::Runtime {
            cdi_spec_dirs: vec![at("cdi")],
            ..config::Runtime::default()
        };
        let host = Host {
            swap: true,
            seccomp: true,
            capabilities: serde_json::from_value(capabilities.clone()).unwrap(),
            masked_paths: defaults::MASKED.map(String::from).to_vec(),
            kernel: (6, 1),
            ..Host::default()
        };
        let make = |path: String| -> Option<PathBuf> {
            let path = at(&path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "").unwrap();
            Some(path)
        };
        let files = PodFiles {
            hostname: make(format!("{ROOT}/sandboxes/@POD/hostname")),
            hosts: make(format!("{ROOT}/sandboxes/@POD/hosts")),
            resolv_conf: make(format!("{ROOT}/sandboxes/@POD/resolv.conf")),
            shm: make(format!("{STATE}/shm")),
        };
        let handler = config::Handler {
            pod_annotations: vec!["pass.me/*".into(), "io.kubernetes.*".into()],
            container_annotations: vec!["own/*".into()],
            ..config::Handler::default()
        };
        Self {
            specs: Specs::on(host, &config).unwrap(),
            dir,
            handler,
            files,
        }
    }

    fn path(&self) -> String {
        paths::text(self.dir.path())
    }

    /// A message of the file, with this folder in it.
    fn message<M: serde::de::DeserializeOwned>(&self, message: &Value) -> M {
        let text = message.to_string().replace("@D", &self.path());
        let mut value = serde_json::from_str(&text).unwrap();
        in_our_words(&mut value);
        serde_json::from_value(value).unwrap()
    }

    fn sandbox(&self, pod: &PodSandboxConfig) -> Result<Built> {
        let pinned = self.dir.path().join(STATE).join("pinned-namespaces/user");
        self.specs.sandbox(&SandboxInput {
            id: "@POD",
            config: pod,
            image: &ImageConfig {
                user: "65535:65535".into(),
                env: vec!["PATH=/bin".into()],
                entrypoint: vec!["/pause".into()],
                working_dir: "/".into(),
                ..ImageConfig::default()
            },
            image_name: PAUSE,
            netns_path: "@NETNS",
            userns_path: Some(&pinned),
            files: &self.files,
            handler: &self.handler,
            rootfs: None,
        })
    }

    fn container(
        &self,
        image: &str,
        pod: &PodSandboxConfig,
        config: &ContainerConfig,
    ) -> Result<Built> {
        let name = format!("example.com/{image}:1");
        let image = image_config(image);
        let root = self.dir.path().join(ROOT).join("containers/@CTR");
        self.specs.container(&ContainerInput {
            id: "@CTR",
            config,
            pod,
            image: &image,
            image_name: &name,
            sandbox_id: "@POD",
            sandbox_pid: 7,
            sandbox_label: "",
            target_pid: None,
            files: &self.files,
            extra_mounts: &volumes(&root, config, &image),
            handler: &self.handler,
            rro: true,
            rootfs: Some(&self.dir.path().join("rootfs")),
        })
    }

    /// A document as the file has it.
    fn normal(&self, spec: &oci::Spec, ordered: bool) -> Value {
        let host = format!("HOSTNAME={}", host::hostname().unwrap());
        let text = serde_json::to_string(spec).unwrap();
        let text = text
            .replace(&self.path(), "@D")
            .replace(&host, "HOSTNAME=@HOST");
        let mut value: Value = serde_json::from_str(&text).unwrap();
        let mounts = value["mounts"].take();
        let mut by_place = Map::new();
        let mut order = Vec::new();
        for mut mount in mounts.as_array().cloned().unwrap_or_default() {
            let source = mount["source"].as_str().unwrap().to_owned();
            if let Some((parent, _)) = source.split_once("/volumes/") {
                mount["source"] = format!("{parent}/volumes/@VOL").into();
            }
            order.push(mount["destination"].clone());
            let place = mount["destination"].as_str().unwrap().to_owned();
            by_place.insert(place, mount);
        }
        value["mounts"] = by_place.into();
        if ordered {
            value["order"] = order.into();
        }
        count_rules(&mut value["linux"]);
        value
    }
}

fn image_config(name: &str) -> ImageConfig {
    let plain = json!({"Cmd": ["/pause"]});
    let rich = json!({"Entrypoint": ["/pause"], "Cmd": ["-x"], "User": "web",
        "Env": ["PATH=/a", "A=1", "NOVALUE", "HOSTNAME"], "WorkingDir": "/w",
        "Volumes": {"/vol": {}, "data": {}}});
    let config = if name == "rich" { rich } else { plain };
    ImageConfig::from_value(&config).unwrap()
}

/// Three names of the CRI have capitals; says them as our messages do too.
fn in_our_words(value: &mut Value) {
    if let Some(list) = value.as_array_mut() {
        list.iter_mut().for_each(in_our_words);
    }
    let Some(object) = value.as_object_mut() else {
        return;
    };
    object.values_mut().for_each(in_our_words);
    for (theirs, ours) in [
        ("uidMappings", "uid_mappings"),
        ("gidMappings", "gid_mappings"),
        ("CDI_devices", "cdi_devices"),
    ] {
        if let Some(value) = object.get(theirs).cloned() {
            object.insert(ours.into(), value);
        }
    }
}

/// Puts the number of different rules in the place of a long filter.
fn count_rules(linux: &mut Value) {
    let Some(rules) = linux["seccomp"]["syscalls"].as_array() else {
        let linux = linux.as_object_mut().unwrap();
        linux.retain(|_, v| !v.is_null());
        return;
    };
    let mut pairs = BTreeSet::new();
    for rule in rules {
        for name in rule["names"].as_array().unwrap() {
            let none = vec![Value::Null];
            for arg in rule["args"].as_array().unwrap_or(&none) {
                pairs.insert(json!([name, rule["action"], rule["errnoRet"], arg]).to_string());
            }
        }
    }
    if pairs.len() > 50 {
        linux["seccomp"]["syscalls"] = pairs.len().into();
    }
}

/// RFC 7396.
fn patched(base: &Value, patch: &Value) -> Value {
    let Some(patch) = patch.as_object() else {
        return patch.clone();
    };
    let mut out = base.as_object().cloned().unwrap_or_default();
    for (key, value) in patch {
        if value.is_null() {
            out.remove(key);
        } else {
            let under = out.get(key).cloned().unwrap_or(Value::Null);
            out.insert(key.clone(), patched(&under, value));
        }
    }
    out.into()
}

/// What two documents differ in, for people.
fn differences(path: &str, got: &Value, want: &Value, out: &mut Vec<String>) {
    match (got.as_object(), want.as_object()) {
        (Some(a), Some(b)) => {
            let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for key in keys {
                let at = format!("{path}/{key}");
                differences(&at, &got[key.as_str()], &want[key.as_str()], out);
            }
        }
        _ if got != want => out.push(format!("{path}: {got}, not {want}")),
        _ => {}
    }
}

fn check(case: &str, kind: &str, got: &Value, want: &Value) {
    let mut out = Vec::new();
    differences("", got, want, &mut out);
    assert!(out.is_empty(), "{case}, {kind}:\n{}", out.join("\n"));
}

#[test]
fn documents_are_containerd_s() {
    let golden: Value = serde_json::from_str(GOLDEN).unwrap();
    let lab = Lab::new(&golden["capabilities"]);
    for case in golden["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let image = case["image"].as_str().unwrap();
        let pod: PodSandboxConfig = lab.message(&case["pod"]);
        let config: ContainerConfig = lab.message(&case["container"]);
        let made = lab.sandbox(&pod).unwrap();
        let want = patched(&golden["sandbox"], &case["sandbox_patch"]);
        check(name, "pod", &lab.normal(&made.spec, true), &want);
        match (lab.container(image, &pod, &config), case["error"].as_str()) {
            (Ok(made), None) => {
                let want = patched(&golden["container"], &case["container_patch"]);
                let mut got = lab.normal(&made.spec, image != "rich");
                if name == "privileged" {
                    assert!(got["linux"]["devices"].as_array().unwrap().len() > 5);
                    got["linux"]["devices"] = "@ALL".into();
                }
                check(name, "container", &got, &want);
            }
            (Err(e), Some(want)) => assert!(e.to_string().contains(want), "{name}: {e}"),
            // Where this folder is on a private mount.
            (Err(e), None) if name == "propagation" => {
                assert!(e.to_string().contains("it is not a shared"), "{e}");
            }
            (got, want) => panic!("{name}: {got:?}, not {want:?}"),
        }
    }
}

fn lab() -> Lab {
    Lab::new(&json!(["CAP_CHOWN", "CAP_SYS_ADMIN"]))
}

#[test]
fn a_handler_s_own_document_is_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("base.json");
    let mut base = defaults::spec("x", &[]);
    base.process().rlimits = vec![oci::Rlimit {
        kind: "RLIMIT_NOFILE".into(),
        hard: 9,
        soft: 9,
        ..oci::Rlimit::default()
    }];
    base.extra.insert("future".into(), json!(1));
    base.mounts
        .push(oci::Mount::new("/run", "tmpfs", "tmpfs", &[]));
    fs::write(&file, serde_json::to_string(&base).unwrap()).unwrap();
    let mut lab = lab();
    lab.handler.base_runtime_spec = paths::text(&file);
    let mut config = config::Runtime::default();
    let handlers = &mut config.containerd.runtimes;
    handlers.insert("base".into(), lab.handler.clone());
    lab.specs = Specs::on(Host::default(), &config).unwrap();
    let pod = PodSandboxConfig::default();
    let made = lab
        .container("plain", &pod, &ContainerConfig::default())
        .unwrap();
    let mut spec = made.spec;
    assert_eq!(spec.process().rlimits[0].hard, 9);
    assert_eq!(spec.extra["future"], 1);
    assert_eq!(spec.linux().cgroups_path, "/k8s.io/@CTR");
    assert!(!spec.mounts.iter().any(|m| m.destination == "/run"));
    fs::remove_file(&file).unwrap();
    let e = Specs::on(Host::default(), &config).unwrap_err().to_string();
    assert!(e.contains("unable to load base OCI spec"), "{e}");
}

#[test]
fn privileged_containers_need_privileged_pods() {
    let mut lab = lab();
    let mut config = ContainerConfig::default();
    let security = config.linux.get_or_insert_default();
    security.security_context.get_or_insert_default().privileged = true;
    let mut pod = PodSandboxConfig::default();
    let e = lab
        .container("plain", &pod, &config)
        .unwrap_err()
        .to_string();
    assert!(
        e.contains("no privileged container allowed in sandbox"),
        "{e}"
    );
    let linux = pod.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().privileged = true;
    lab.handler.privileged_without_host_devices = true;
    let mut spec = lab.container("plain", &pod, &config).unwrap().spec;
    assert!(spec.linux().devices.is_empty());
    assert!(!spec.resources().devices[0].allow);
    lab.handler
        .privileged_without_host_devices_all_devices_allowed = true;
    let mut spec = lab.container("plain", &pod, &config).unwrap().spec;
    assert!(spec.linux().devices.is_empty() && spec.resources().devices[0].allow);
    assert_eq!(
        spec.process().capabilities.as_ref().unwrap().bounding.len(),
        2
    );
}

#[test]
fn the_cgroup_namespace_is_v2_s() {
    let mut lab = lab();
    lab.specs.host.unified_cgroups = true;
    lab.handler.cgroup_writable = true;
    let pod = PodSandboxConfig::default();
    let mut config = ContainerConfig::default();
    let mut spec = lab.container("plain", &pod, &config).unwrap().spec;
    let has = |spec: &mut oci::Spec| spec.linux().namespaces.iter().any(|ns| ns.kind == "cgroup");
    assert!(has(&mut spec));
    let cgroup = spec.mounts.iter().find(|m| m.kind == "cgroup").unwrap();
    assert!(cgroup.options.contains(&"rw".to_owned()));
    let mut pod = PodSandboxConfig::default();
    let linux = pod.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().privileged = true;
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().privileged = true;
    let mut spec = lab.container("plain", &pod, &config).unwrap().spec;
    assert!(!has(&mut spec));
}

#[test]
fn holders_have_what_a_pod_needs_of_the_kernel() {
    let lab = lab();
    let golden: Value = serde_json::from_str(GOLDEN).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    let of = |name: &str| {
        let case = cases.iter().find(|c| c["name"] == name).unwrap();
        let pod: PodSandboxConfig = lab.message(&case["pod"]);
        let made = lab
            .specs
            .holder("@POD", &pod, "@NETNS", &lab.handler)
            .unwrap();
        serde_json::to_value(&made.spec).unwrap()
    };
    let spec = of("sandbox with everything");
    assert_eq!(spec["hostname"], "web");
    assert_eq!(
        spec["linux"]["sysctl"]["net.ipv4.ip_unprivileged_port_start"],
        "80"
    );
    assert_eq!(
        spec["linux"]["sysctl"]["net.ipv4.ping_group_range"],
        "0 2147483647"
    );
    assert_eq!(spec["linux"]["cgroupsPath"], "/kubepods/pod2/@POD");
    assert_eq!(spec["linux"]["resources"]["cpu"]["shares"], 2);
    assert_eq!(spec["annotations"]["io.kubernetes.cri.sandbox-memory"], "4");
    let spec = of("userns");
    let namespaces = spec["linux"]["namespaces"].as_array().unwrap();
    assert!(
        namespaces.contains(&json!({"type": "user"})),
        "{namespaces:?}"
    );
    assert!(namespaces.contains(&json!({"type": "network", "path": "@NETNS"})));
    assert_eq!(spec["linux"]["uidMappings"][0]["hostID"], 1_000_000);
    assert!(spec["linux"]["sysctl"]["net.ipv4.ping_group_range"].is_null());
    let spec = of("node namespaces");
    // None, and that is said: our shim completes a document that does not speak of them.
    assert_eq!(spec["linux"]["namespaces"], json!([]));
    assert!(spec["hostname"].is_null());
}

#[test]
fn sysctls_are_names_and_lines() {
    let lab = lab();
    let with = |key: &str, value: &str| {
        let mut pod = PodSandboxConfig::default();
        let linux = pod.linux.get_or_insert_default();
        linux.sysctls.insert(key.into(), value.into());
        lab.sandbox(&pod).map(|_| ())
    };
    for (key, value) in [
        ("net.core.somaxconn", "1"),
        ("net/ipv4/conf/eth0.1/forwarding", "1"),
        ("net.ipv4.ip_local_port_range", "1024\t65535"),
        ("net.ipv4.conf.eth0@if3.forwarding", "0"),
    ] {
        with(key, value).unwrap();
    }
    for (key, value) in [
        ("../kernel/core_pattern", "|/x"),
        ("net..a", "1"),
        ("", "1"),
        ("kernel.shm+kernel.core_pattern", "1"),
        ("a=b", "1"),
        ("net.a b", "1"),
        ("net.a", "1\nkernel.core_pattern=x"),
        ("net.a", "1\0"),
    ] {
        assert!(with(key, value).is_err(), "{key:?} {value:?}");
    }
}

#[test]
fn updates_change_limits_and_nothing_else() {
    let lab = lab();
    let pod = PodSandboxConfig::default();
    let made = lab
        .container("plain", &pod, &ContainerConfig::default())
        .unwrap();
    let limits = cri::LinuxContainerResources {
        cpu_shares: 7,
        oom_score_adj: 3,
        ..cri::LinuxContainerResources::default()
    };
    let mut new = lab.specs.update(&made.spec, &limits).unwrap();
    assert_eq!(new.resources().cpu.as_ref().unwrap().shares, Some(7));
    assert_eq!(new.process().oom_score_adj, None);
    assert_eq!(status_resources(&new).linux.unwrap().cpu_shares, 7);
    new.linux().resources = made.spec.linux.as_ref().unwrap().resources.clone();
    assert_eq!(new, made.spec);
}
