//! Adjustments as data: a specification, what is wanted of it, what becomes of it.

use super::*;

struct Plain;

impl Host for Plain {
    fn hugetlb(&self) -> bool {
        true
    }
    fn block_io(&self, class: &str) -> Result<Option<Value>> {
        match class {
            "slow" => Ok(Some(json!({"weight": 10}))),
            other => Err(Error::not_found(format!("class {other:?}"))),
        }
    }
    fn inject_cdi(&self, spec: &mut Value, devices: &[String]) -> Result<()> {
        spec["cdi"] = json!(devices);
        Ok(())
    }
    fn propagation(&self, path: &str) -> Result<Option<&'static str>> {
        Ok(match path {
            "/shared" => Some("rshared"),
            "/slave" => Some("rslave"),
            _ => None,
        })
    }
}

fn done(mut spec: Value, wanted: &api::ContainerAdjustment) -> Value {
    adjust(&mut spec, wanted, &Plain).unwrap();
    spec
}

fn with_linux(l: api::LinuxContainerAdjustment) -> api::ContainerAdjustment {
    api::ContainerAdjustment {
        linux: Some(l),
        ..Default::default()
    }
}

fn pairs(all: &[(&str, &str)]) -> BTreeMap<String, String> {
    let own = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
    all.iter().map(own).collect()
}

#[test]
fn nothing_wanted_changes_nothing() {
    let spec = json!({"process": {"env": ["odd"]}, "mounts": [{"destination": "/b"}, {"destination": "/a"}]});
    assert_eq!(done(spec.clone(), &Default::default()), spec);
    assert_eq!(done(spec.clone(), &with_linux(Default::default())), spec);
}

#[test]
fn env_is_replaced_in_place_removed_and_appended() {
    let env = |all: &[(&str, &str)]| api::ContainerAdjustment {
        env: all
            .iter()
            .map(|(k, v)| api::KeyValue {
                key: (*k).into(),
                value: (*v).into(),
            })
            .collect(),
        ..Default::default()
    };
    let check = |wanted: &[(&str, &str)], want: Value| {
        let spec = json!({"process": {"env": ["A=1", "B=2=3", "C=", "A=4"]}});
        let got = done(spec, &env(wanted));
        assert_eq!(got["process"]["env"], want, "{wanted:?}");
    };
    check(&[("B", "x")], json!(["A=1", "B=x", "C=", "A=4"]));
    check(&[("A", "x")], json!(["A=x", "B=2=3", "C="]));
    check(&[("-A", ""), ("D", "4")], json!(["B=2=3", "C=", "D=4"]));
    check(&[("-A", ""), ("A", "5")], json!(["A=5", "B=2=3", "C="]));
    check(&[("", "x")], json!(["A=1", "B=2=3", "C=", "A=4"]));
}

#[test]
fn maps_lose_what_is_marked_and_gain_the_rest() {
    let spec =
        json!({"annotations": {"a": "1", "b": "2"}, "linux": {"sysctl": {"x": "1", "y": "2"}}});
    let mut wanted = with_linux(api::LinuxContainerAdjustment {
        sysctl: pairs(&[("-x", ""), ("z", "3")]),
        ..Default::default()
    });
    // Taken over from another plugin: removed and set.
    wanted.annotations = pairs(&[("-a", ""), ("a", "9"), ("-b", "")]);
    let got = done(spec, &wanted);
    assert_eq!(got["annotations"], json!({"a": "9"}));
    assert_eq!(got["linux"]["sysctl"], json!({"y": "2", "z": "3"}));
}

#[test]
fn mounts_are_replaced_and_ordered_by_depth() {
    let mount = |destination: &str, source: &str, options: &[&str]| api::Mount {
        destination: destination.into(),
        r#type: "bind".into(),
        source: source.into(),
        options: options.iter().map(|o| (*o).to_owned()).collect(),
    };
    let spec = json!({"mounts": [
        {"destination": "/sys/fs/cgroup"}, {"destination": "/proc"}, {"destination": "/gone"}]});
    let with = |mounts: Vec<api::Mount>| api::ContainerAdjustment {
        mounts,
        ..Default::default()
    };
    let got = done(
        spec.clone(),
        &with(vec![
            mount("-/gone", "", &[]),
            mount("/proc", "/p", &["rbind", "ro"]),
            mount("/a/b", "/shared", &["rshared"]),
        ]),
    );
    let places: Vec<&str> = got["mounts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["destination"].as_str().unwrap())
        .collect();
    assert_eq!(places, ["/proc", "/a/b", "/sys/fs/cgroup"]);
    assert_eq!(got["mounts"][0]["options"], json!(["rbind", "ro"]));
    assert_eq!(got["linux"]["rootfsPropagation"], "rshared");

    let got = done(
        spec.clone(),
        &with(vec![mount("/x", "/slave", &["rslave"])]),
    );
    assert_eq!(got["linux"]["rootfsPropagation"], "rslave");
    let e = adjust(
        &mut spec.clone(),
        &with(vec![mount("/x", "/slave", &["rshared"])]),
        &Plain,
    );
    assert_eq!(
        e.unwrap_err().to_string(),
        "failed to adjust mounts in OCI Spec: path \"/slave\" mount propagation is \"rslave\", not \"rshared\""
    );
}

#[test]
fn devices_bring_their_cgroup_rules() {
    let device = |path: &str, kind: &str| api::LinuxDevice {
        path: path.into(),
        r#type: kind.into(),
        major: 1,
        minor: 3,
        file_mode: Some(api::OptionalFileMode { value: 0o600 }),
        ..Default::default()
    };
    let spec = json!({"linux": {"devices": [{"path": "/dev/a"}, {"path": "/dev/b"}]}});
    let got = done(
        spec,
        &with_linux(api::LinuxContainerAdjustment {
            devices: vec![
                device("-/dev/a", "c"),
                device("/dev/b", "c"),
                device("/dev/d", "b"),
            ],
            ..Default::default()
        }),
    );
    assert_eq!(
        got["linux"]["devices"],
        json!([
            {"path": "/dev/b", "type": "c", "major": 1, "minor": 3, "fileMode": 384},
            {"path": "/dev/d", "type": "b", "major": 1, "minor": 3, "fileMode": 384}])
    );
    let rules = &got["linux"]["resources"]["devices"];
    assert_eq!(
        (&rules[0]["access"], &rules[1]["access"]),
        (&json!("rw"), &json!("rwm"))
    );
}

#[test]
fn resources_replace_what_they_name() {
    let spec = json!({"linux": {"resources": {
        "cpu": {"shares": 2, "cpus": "0-3"}, "memory": {"limit": 5, "swappiness": 1},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 1}], "pids": {"limit": 10}, "blockIO": {}}, "intelRdt": {"closID": "a"}}});
    let r = api::LinuxResources {
        cpu: Some(api::LinuxCpu {
            cpus: "1".into(),
            ..Default::default()
        }),
        memory: Some(api::LinuxMemory {
            limit: Some(api::OptionalInt64 { value: 7 }),
            ..Default::default()
        }),
        hugepage_limits: vec![api::HugepageLimit {
            page_size: "2MB".into(),
            limit: 3,
        }],
        unified: pairs(&[("memory.high", "max")]),
        pids: Some(api::LinuxPids { limit: -1 }),
        blockio_class: Some(api::OptionalString {
            value: "slow".into(),
        }),
        rdt_class: Some(api::OptionalString::default()),
        ..Default::default()
    };
    let wanted = with_linux(api::LinuxContainerAdjustment {
        resources: Some(r.clone()),
        ..Default::default()
    });
    let got = done(spec.clone(), &wanted);
    assert_eq!(
        got["linux"],
        json!({"resources": {
            "cpu": {"shares": 2, "cpus": "1"}, "memory": {"limit": 7, "swap": 7, "swappiness": 1},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 3}], "pids": {"limit": -1},
            "unified": {"memory.high": "max"}, "blockIO": {"weight": 10}}})
    );
    let mut unknown = r;
    unknown.blockio_class = Some(api::OptionalString { value: "no".into() });
    let wanted = with_linux(api::LinuxContainerAdjustment {
        resources: Some(unknown),
        ..Default::default()
    });
    let e = adjust(&mut spec.clone(), &wanted, &Plain).unwrap_err();
    assert_eq!(
        e.to_string(),
        "failed to adjust BlockIO class in OCI Spec: class \"no\": not found"
    );
}

#[test]
fn the_process_gets_what_is_named() {
    let spec = json!({"process": {"args": ["a"], "rlimits": [{"type": "RLIMIT_CORE", "hard": 1, "soft": 1}],
        "ioPriority": {"class": "IOPRIO_CLASS_RT"}}, "hooks": {"poststop": [{"path": "/1"}]}});
    let mut wanted = with_linux(api::LinuxContainerAdjustment {
        oom_score_adj: Some(api::OptionalInt { value: -7 }),
        io_priority: Some(api::LinuxIoPriority::default()),
        scheduler: Some(api::LinuxScheduler {
            policy: api::LinuxSchedulerPolicy::SchedBatch as i32,
            nice: 5,
            flags: vec![api::LinuxSchedulerFlag::SchedFlagResetOnFork as i32],
            ..Default::default()
        }),
        memory_policy: Some(api::LinuxMemoryPolicy {
            mode: api::MpolMode::MpolInterleave as i32,
            nodes: "0,1".into(),
            flags: vec![],
        }),
        namespaces: vec![
            api::LinuxNamespace {
                r#type: "-user".into(),
                path: String::new(),
            },
            api::LinuxNamespace {
                r#type: "network".into(),
                path: "/n".into(),
            },
        ],
        rdt: Some(api::LinuxRdt {
            clos_id: Some(api::OptionalString {
                value: "gold".into(),
            }),
            remove: true,
            ..Default::default()
        }),
        ..Default::default()
    });
    wanted.args = vec!["b".into()];
    wanted.rlimits = vec![api::PosixRlimit {
        r#type: "RLIMIT_CORE".into(),
        hard: 2,
        soft: 2,
    }];
    wanted.hooks = Some(api::Hooks {
        poststop: vec![api::Hook {
            path: "/2".into(),
            timeout: Some(api::OptionalInt { value: 4 }),
            ..Default::default()
        }],
        ..Default::default()
    });
    wanted.cdi_devices = vec![api::CdiDevice {
        name: "v/c=d".into(),
    }];
    let got = done(spec, &wanted);
    assert_eq!(
        got,
        json!({
            "process": {
                "args": ["b"], "oomScoreAdj": -7, "rlimits": [{"type": "RLIMIT_CORE", "hard": 2, "soft": 2}],
                "scheduler": {"policy": "SCHED_BATCH", "nice": 5, "flags": ["SCHED_FLAG_RESET_ON_FORK"]}},
            "hooks": {"poststop": [{"path": "/1"}, {"path": "/2", "timeout": 4}]},
            "cdi": ["v/c=d"],
            "linux": {"namespaces": [{"type": "network", "path": "/n"}], "intelRdt": {"closID": "gold"},
                "memoryPolicy": {"mode": "MPOL_INTERLEAVE", "nodes": "0,1"}},
        })
    );
    let bad = with_linux(api::LinuxContainerAdjustment {
        namespaces: vec![api::LinuxNamespace {
            r#type: "moon".into(),
            path: String::new(),
        }],
        ..Default::default()
    });
    let e = adjust(&mut json!({}), &bad, &Plain).unwrap_err();
    assert_eq!(e.to_string(), "unrecognized namespace \"moon\"");
}

#[test]
fn a_seccomp_policy_is_taken_whole() {
    let wanted = with_linux(api::LinuxContainerAdjustment {
        seccomp_policy: Some(api::LinuxSeccomp {
            default_action: "SCMP_ACT_ERRNO".into(),
            default_errno: Some(api::OptionalUInt32 { value: 38 }),
            architectures: vec!["SCMP_ARCH_X86_64".into()],
            syscalls: vec![api::LinuxSyscall {
                names: vec!["read".into()],
                action: "SCMP_ACT_ALLOW".into(),
                args: vec![api::LinuxSeccompArg {
                    index: 1,
                    value: 2,
                    value_two: 0,
                    op: "SCMP_CMP_EQ".into(),
                }],
                ..Default::default()
            }],
            ..Default::default()
        }),
        ..Default::default()
    });
    let got = done(json!({"linux": {"seccomp": {"flags": ["OLD"]}}}), &wanted);
    assert_eq!(
        got["linux"]["seccomp"],
        json!({
            "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW",
                "args": [{"index": 1, "value": 2, "valueTwo": 0, "op": "SCMP_CMP_EQ"}]}]})
    );
}
