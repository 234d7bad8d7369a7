//! Requests that try to get out, each named by what it tries. Numbers in brackets are those of the invariants that the
//! project keeps a list of.

use std::fs;
use std::os::unix::fs::symlink;

use corten_protos::runtime::v1::security_profile::ProfileType;
use corten_protos::runtime::v1::{self, NamespaceMode};
use serde_json::Value;

use crate::cri::{Cri, Pod, fails};
use crate::runner::Test;
use crate::{rpc, tests};

pub(crate) fn tests() -> Vec<Test> {
    tests![
        log_paths_with_dots,
        logs_that_are_links,
        logs_that_are_fifos,
        names_with_slashes,
        host_names_with_line_ends,
        sysctls_of_the_host,
        sysctls_with_dots_and_line_ends,
        annotations_for_the_runtime,
        annotations_of_a_megabyte,
        seccomp_profiles_by_path,
        apparmor_profiles_that_are_none,
        processors_by_the_billion,
        users_out_of_range,
        privileges_in_a_pod_without,
        mounts_of_nothing,
        devices_out_of_a_link,
    ]
}

fn security(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerSecurityContext {
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default()
}

/// Creates and starts a container, and removes it; why it is not to be.
fn attempt(cri: &Cri, pod: &Pod, config: &v1::ContainerConfig) -> Result<(), String> {
    let id = cri
        .create(pod, config)
        .map_err(|e| e.message().to_owned())?;
    let started = cri.start(&id).map_err(|e| e.message().to_owned());
    cri.stop(&id, 0);
    cri.remove(&id);
    started
}

// --- files

/// [S21] A log is in the folder of its pod.
fn log_paths_with_dots(cri: &Cri) {
    let pod = cri.pod();
    let logs = cri.dir.join("logs");
    fs::create_dir(logs.join("deeper")).unwrap();
    for (number, path) in [
        "../escaped.log",
        "deeper/../../escaped.log",
        "/../escaped.log",
        "..",
    ]
    .into_iter()
    .enumerate()
    {
        let mut config = cri.container_config(&format!("c{number}"), &["echo", "hello"]);
        config.log_path = path.into();
        let answer = attempt(cri, &pod, &config);
        if cri.is_reference() {
            // Stock containerd writes wherever it is told to.
            continue;
        }
        assert!(answer.is_err(), "{path}");
        assert!(!cri.dir.join("escaped.log").exists(), "{path}");
    }
    // Down is fine.
    let mut config = cri.container_config("deep", &["echo", "hello"]);
    config.log_path = "deeper/deep.log".into();
    assert_eq!(cri.outcome(&pod, &config).1, "hello\n");
}

/// [S21] Whoever can write to the folder must not choose where the daemon writes.
fn logs_that_are_links(cri: &Cri) {
    let pod = cri.pod();
    let secret = cri.dir.join("secret");
    fs::write(&secret, "of the host").unwrap();
    symlink(&secret, cri.dir.join("logs/linked.log")).unwrap();
    let config = cri.container_config("linked", &["echo", "injected"]);
    let answer = attempt(cri, &pod, &config);
    if cri.is_reference() {
        println!("stock containerd follows the link: {answer:?}");
        return;
    }
    assert!(answer.is_err());
    assert_eq!(fs::read_to_string(&secret).unwrap(), "of the host");
    // Neither when it is opened again.
    let script = "while :; do echo line; sleep 0.05; done";
    let config = cri.container_config("swapped", &["sh", "-c", script]);
    let id = cri.started(&pod, &config);
    let log = cri.dir.join("logs/swapped.log");
    fs::remove_file(&log).unwrap();
    symlink(&secret, &log).unwrap();
    let request = v1::ReopenContainerLogRequest {
        container_id: id.clone(),
    };
    assert!(rpc!(cri, reopen_container_log(request)).is_err());
    assert_eq!(fs::read_to_string(&secret).unwrap(), "of the host");
    cri.stop(&id, 0);
    assert_eq!(fs::read_to_string(&secret).unwrap(), "of the host");
}

/// [S21] Nobody reads from it: who opens it must not wait.
fn logs_that_are_fifos(cri: &Cri) {
    if cri.is_reference() {
        println!("stock containerd waits for a reader for ever");
        return;
    }
    let pod = cri.pod();
    let path = cri.dir.join("logs/fifo.log");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    assert!(attempt(cri, &pod, &cri.container_config("fifo", &["echo", "hello"])).is_err());
}

/// [S21] Names are no paths.
fn names_with_slashes(cri: &Cri) {
    let mut config = cri.pod_config("pod");
    let metadata = config.metadata.as_mut().unwrap();
    metadata.name = "../../../../tmp/evil".into();
    metadata.namespace = "../..".into();
    let Ok(pod) = cri.try_run(&config) else {
        return;
    };
    let mut config = cri.container_config("one", &["echo", "hello"]);
    config.metadata.as_mut().unwrap().name = "../../../../../tmp/evil".into();
    if cri.create(&pod, &config).is_ok() {
        assert!(!std::path::Path::new("/tmp/evil").exists());
    }
}

/// [S17] A host name goes into files that have lines.
fn host_names_with_line_ends(cri: &Cri) {
    for (number, name) in ["a\nb", "a\0b", "a b\n10.0.0.1 registry"]
        .into_iter()
        .enumerate()
    {
        let mut config = cri.cni_config(&format!("pod{number}"));
        config.hostname = name.into();
        let Ok(pod) = cri.try_run(&config) else {
            continue;
        };
        assert!(cri.is_reference(), "{name:?} is a host name");
        cri.remove_pod(&pod.id);
    }
    let mut config = cri.cni_config("long");
    config.hostname = "x".repeat(65);
    assert!(cri.try_run(&config).is_err());
}

// --- kernel

/// [S20] What belongs to the host is not a pod's to set.
fn sysctls_of_the_host(cri: &Cri) {
    let read = |name: &str| fs::read_to_string(format!("/proc/sys/{name}")).unwrap_or_default();
    let names = [
        "kernel/core_pattern",
        "vm/swappiness",
        "fs/protected_symlinks",
        "net/ipv4/ip_forward",
    ];
    let before = names.map(read);
    for (number, (key, value)) in [
        ("kernel.core_pattern", "|/tmp/evil"),
        ("vm.swappiness", "1"),
        ("fs.protected_symlinks", "0"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut config = cri.cni_config(&format!("pod{number}"));
        let sysctls = &mut config.linux.as_mut().unwrap().sysctls;
        sysctls.insert(key.into(), value.into());
        assert!(cri.try_run(&config).is_err(), "{key}");
    }
    // On the host's network its settings are the host's.
    let mut config = cri.pod_config("host");
    let sysctls = &mut config.linux.as_mut().unwrap().sysctls;
    sysctls.insert("net.ipv4.ip_forward".into(), "0".into());
    assert!(cri.try_run(&config).is_err());
    let mut config = cri.cni_config("ipc");
    cri.security(&mut config).namespace_options = Some(v1::NamespaceOption {
        ipc: NamespaceMode::Node.into(),
        ..Default::default()
    });
    let sysctls = &mut config.linux.as_mut().unwrap().sysctls;
    sysctls.insert("kernel.shm_rmid_forced".into(), "1".into());
    assert!(cri.try_run(&config).is_err());
    assert_eq!(names.map(read), before);
}

/// [S20]
fn sysctls_with_dots_and_line_ends(cri: &Cri) {
    let before = fs::read_to_string("/proc/sys/vm/swappiness").unwrap();
    for (number, key) in [
        "net/../vm/swappiness",
        "net....vm.swappiness",
        "net.ipv4.conf.all/../../../../vm/swappiness",
        "/proc/sys/vm/swappiness",
        "net.ipv4.ip_forward\nvm.swappiness",
        "net",
        "",
    ]
    .into_iter()
    .enumerate()
    {
        let mut config = cri.cni_config(&format!("pod{number}"));
        let sysctls = &mut config.linux.as_mut().unwrap().sysctls;
        sysctls.insert(key.into(), "1".into());
        assert!(cri.try_run(&config).is_err(), "{key:?}");
    }
    assert_eq!(
        fs::read_to_string("/proc/sys/vm/swappiness").unwrap(),
        before
    );
}

/// [S19] Who may set annotations must not choose what the runtime does.
fn annotations_for_the_runtime(cri: &Cri) {
    let annotations = || {
        [
            ("run.oci.handler", "wasm"),
            ("io.containerd.runc.v2.group", "other"),
            ("org.criu.config", "/tmp/evil"),
            ("io.kubernetes.cri.container-type", "sandbox"),
            ("io.kubernetes.cri.sandbox-id", "other"),
            ("cdi.example", "x"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
    };
    let mut config = cri.pod_config("pod");
    config.annotations.extend(annotations());
    let pod = cri.run(&config);
    let mut config = cri.container_config("one", &["sleep", "1000"]);
    config.annotations.extend(annotations());
    let id = cri.started(&pod, &config);
    let info: Value = serde_json::from_str(&cri.pod_status(&pod.id).unwrap().info["info"]).unwrap();
    for (spec, kind) in [
        (&info["runtimeSpec"], "sandbox"),
        (&cri.runtime_spec(&id), "container"),
    ] {
        let seen = &spec["annotations"];
        assert_eq!(seen["io.kubernetes.cri.container-type"], kind, "{seen}");
        assert_eq!(seen["io.kubernetes.cri.sandbox-id"], *pod.id, "{seen}");
        for key in [
            "run.oci.handler",
            "io.containerd.runc.v2.group",
            "org.criu.config",
            "cdi.example",
        ] {
            assert!(seen[key].is_null(), "{seen}");
        }
    }
    // To those who ask, they are what they were.
    assert_eq!(cri.status(&id).annotations["run.oci.handler"], "wasm");
}

/// More than Kubernetes lets anybody write.
fn annotations_of_a_megabyte(cri: &Cri) {
    let mut config = cri.pod_config("pod");
    config
        .annotations
        .insert("long".into(), "x".repeat(1 << 20));
    let pod = cri.run(&config);
    let status = cri.pod_status(&pod.id).unwrap().status.unwrap();
    assert_eq!(status.annotations["long"].len(), 1 << 20);
    let config = cri.container_config("one", &["echo", "hello"]);
    assert_eq!(cri.outcome(&pod, &config).1, "hello\n");
}

/// A profile is a file of the node, by its whole name, and nothing else.
fn seccomp_profiles_by_path(cri: &Cri) {
    let pod = cri.pod();
    let fifo = cri.dir.join("fifo");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    fs::write(cri.dir.join("broken"), "{\"defaultAction\": 7}").unwrap();
    let path = |name: &str| cri.dir.join(name).to_string_lossy().into_owned();
    let mut asked = vec![
        "../../../../etc/passwd".to_owned(),
        "/etc/passwd".into(),
        "relative".into(),
        String::new(),
        path("broken"),
        path("missing"),
        cri.dir.to_string_lossy().into_owned(),
    ];
    // Stock containerd waits for who writes to it.
    if !cri.is_reference() {
        asked.extend([path("fifo"), "/dev/zero".into()]);
    }
    for (number, name) in asked.into_iter().enumerate() {
        let mut config = cri.container_config(&format!("c{number}"), &["true"]);
        security(&mut config).seccomp = Some(v1::SecurityProfile {
            profile_type: ProfileType::Localhost.into(),
            localhost_ref: name.clone(),
        });
        let error = cri.create(&pod, &config).expect_err(&name);
        assert!(!error.message().contains("root:"), "{error}");
    }
}

fn apparmor_profiles_that_are_none(cri: &Cri) {
    if fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|t| t.trim() == "Y")
    {
        println!("this kernel has AppArmor: the second kernel's tests are for it");
        return;
    }
    let pod = cri.pod();
    for (number, name) in ["no-such", "../../../etc/passwd", "a\nb"]
        .into_iter()
        .enumerate()
    {
        let mut config = cri.container_config(&format!("c{number}"), &["true"]);
        security(&mut config).apparmor = Some(v1::SecurityProfile {
            profile_type: ProfileType::Localhost.into(),
            localhost_ref: name.into(),
        });
        assert!(attempt(cri, &pod, &config).is_err(), "{name:?}");
    }
}

/// [S38] A range is not a list of its members.
fn processors_by_the_billion(cri: &Cri) {
    let pod = cri.pod();
    let cases = [
        "0-4294967295",
        "0-18446744073709551616",
        "-1",
        "3-1",
        "a",
        "0-1-2",
    ];
    for (number, cpus) in cases.into_iter().enumerate() {
        let mut config = cri.container_config(&format!("c{number}"), &["true"]);
        config.linux.as_mut().unwrap().resources = Some(v1::LinuxContainerResources {
            cpuset_cpus: cpus.into(),
            ..Default::default()
        });
        assert!(attempt(cri, &pod, &config).is_err(), "{cpus}");
    }
    let mut config = cri.container_config("pages", &["true"]);
    config.linux.as_mut().unwrap().resources = Some(v1::LinuxContainerResources {
        hugepage_limits: (0..10_000)
            .map(|n| v1::HugepageLimit {
                page_size: format!("{n}MB"),
                limit: u64::MAX,
            })
            .collect(),
        ..Default::default()
    });
    // Pages of sizes that the kernel does not have are passed over or an error.
    let _ = attempt(cri, &pod, &config);
}

/// [S12]
fn users_out_of_range(cri: &Cri) {
    let pod = cri.pod();
    let ids = [
        -1,
        i64::from(i32::MAX) + 1,
        i64::from(u32::MAX),
        i64::from(u32::MAX) + 1,
        i64::MIN,
    ];
    for (number, id) in ids.into_iter().enumerate() {
        let mut config = cri.container_config(&format!("u{number}"), &["id"]);
        security(&mut config).run_as_user = crate::cri::number(id);
        assert!(attempt(cri, &pod, &config).is_err(), "user {id}");
        let mut config = cri.container_config(&format!("g{number}"), &["id"]);
        security(&mut config).run_as_user = crate::cri::number(1000);
        security(&mut config).run_as_group = crate::cri::number(id);
        assert!(attempt(cri, &pod, &config).is_err(), "group {id}");
    }
    let mut config = cri.container_config("lone", &["id"]);
    security(&mut config).run_as_group = crate::cri::number(1000);
    fails(cri.create(&pod, &config), "is specified without user");
    let mut config = cri.container_config("extra", &["id"]);
    security(&mut config).supplemental_groups = vec![i64::from(u32::MAX) + 1];
    // Truncated it would be root's group.
    match cri.create(&pod, &config) {
        Err(_) => {}
        Ok(id) => assert!(
            cri.is_reference(),
            "{}",
            cri.runtime_spec(&id)["process"]["user"]
        ),
    }
}

fn privileges_in_a_pod_without(cri: &Cri) {
    let pod = cri.pod();
    let mut config = cri.container_config("privileged", &["true"]);
    security(&mut config).privileged = true;
    fails(cri.create(&pod, &config), "no privileged container allowed");

    // The processes of a container of another pod.
    let other = cri.run(&cri.pod_config("other"));
    let target = cri.started(&other, &cri.container_config("target", &["sleep", "1000"]));
    let mut config = cri.container_config("peeping", &["true"]);
    security(&mut config).namespace_options = Some(v1::NamespaceOption {
        pid: NamespaceMode::Target.into(),
        target_id: target,
        ..Default::default()
    });
    assert!(cri.create(&pod, &config).is_err());
}

fn mounts_of_nothing(cri: &Cri) {
    let pod = cri.pod();
    let mount = |host: &str, inside: &str| v1::Mount {
        host_path: host.into(),
        container_path: inside.into(),
        ..Default::default()
    };
    let zero = format!("{}\0x", cri.dir.display());
    for (number, bad) in [
        mount("", "/mnt"),
        mount("/proc/self/no/such", "/mnt"),
        mount(&zero, "/mnt"),
        v1::Mount {
            recursive_read_only: true,
            ..mount("/tmp", "/mnt")
        },
    ]
    .into_iter()
    .enumerate()
    {
        let mut config = cri.container_config(&format!("c{number}"), &["true"]);
        config.mounts = vec![bad.clone()];
        assert!(attempt(cri, &pod, &config).is_err(), "{bad:?}");
    }
    // A link of the host is followed once, when it is mounted: what is behind it later does not matter.
    let (first, second) = (cri.dir.join("first"), cri.dir.join("second"));
    fs::create_dir_all(&first).unwrap();
    fs::create_dir_all(&second).unwrap();
    fs::write(second.join("secret"), "").unwrap();
    let link = cri.dir.join("swapped");
    symlink(&first, &link).unwrap();
    let mut config = cri.container_config("link", &["ls", "/mnt"]);
    config.mounts = vec![mount(&link.to_string_lossy(), "/mnt")];
    let id = cri.create(&pod, &config).unwrap();
    fs::remove_file(&link).unwrap();
    symlink(&second, &link).unwrap();
    cri.start(&id).unwrap();
    cri.ended(&id);
    assert!(!cri.logged("link.log").contains("secret"));
}

fn devices_out_of_a_link(cri: &Cri) {
    let pod = cri.pod();
    for (number, path) in ["/no/such/device", "/etc/passwd", "/dev/../etc/passwd"]
        .into_iter()
        .enumerate()
    {
        let mut config = cri.container_config(&format!("c{number}"), &["true"]);
        config.devices = vec![v1::Device {
            host_path: path.into(),
            container_path: "/dev/x".into(),
            permissions: "rwm".into(),
        }];
        assert!(attempt(cri, &pod, &config).is_err(), "{path}");
    }
    let mut config = cri.container_config("cdi", &["true"]);
    config.cdi_devices = vec![v1::CdiDevice {
        name: "vendor.example/../../x=y".into(),
    }];
    assert!(cri.create(&pod, &config).is_err());
}
