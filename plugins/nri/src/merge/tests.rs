//! Merging as data: what each plugin wants, what comes out.

use super::*;

fn creation() -> Creation {
    let container = api::Container {
        id: "c".into(),
        env: vec!["A=0".into(), "B=0".into()],
        mounts: vec![mount("/m", "old")],
        annotations: pairs(&[("k", "0")]),
        linux: Some(api::LinuxContainer {
            namespaces: vec![namespace("pid", "")],
            ..Default::default()
        }),
        ..Default::default()
    };
    Creation::new(api::PodSandbox::default(), container)
}

fn mount(destination: &str, source: &str) -> api::Mount {
    api::Mount {
        destination: destination.into(),
        source: source.into(),
        ..Default::default()
    }
}

fn namespace(kind: &str, path: &str) -> api::LinuxNamespace {
    api::LinuxNamespace {
        r#type: kind.into(),
        path: path.into(),
    }
}

fn pairs(all: &[(&str, &str)]) -> BTreeMap<String, String> {
    let own = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
    all.iter().map(own).collect()
}

fn env(all: &[(&str, &str)]) -> Vec<api::KeyValue> {
    let own = |(k, v): &(&str, &str)| api::KeyValue {
        key: (*k).into(),
        value: (*v).into(),
    };
    all.iter().map(own).collect()
}

fn wants(adjust: api::ContainerAdjustment) -> api::CreateContainerResponse {
    api::CreateContainerResponse {
        adjust: Some(adjust),
        ..Default::default()
    }
}

fn linux(l: api::LinuxContainerAdjustment) -> api::CreateContainerResponse {
    wants(api::ContainerAdjustment {
        linux: Some(l),
        ..Default::default()
    })
}

fn update(id: &str, limit: i64, ignore_failure: bool) -> api::ContainerUpdate {
    api::ContainerUpdate {
        container_id: id.into(),
        linux: Some(api::LinuxContainerUpdate {
            resources: Some(memory(limit)),
        }),
        ignore_failure,
    }
}

fn memory(limit: i64) -> api::LinuxResources {
    api::LinuxResources {
        memory: Some(api::LinuxMemory {
            limit: Some(api::OptionalInt64 { value: limit }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

#[test]
fn the_next_plugin_sees_what_the_last_one_left() {
    let mut c = creation();
    let mut first = api::ContainerAdjustment {
        env: env(&[("A", "1"), ("-B", ""), ("C", "1")]),
        mounts: vec![mount("/m", "new"), mount("-/gone", "")],
        annotations: pairs(&[("-k", ""), ("l", "1")]),
        args: vec!["x".into()],
        ..Default::default()
    };
    first.linux = Some(api::LinuxContainerAdjustment {
        namespaces: vec![namespace("-pid", ""), namespace("network", "/n")],
        resources: Some(memory(5)),
        ..Default::default()
    });
    c.add(wants(first), "00-a").unwrap();
    let seen = c.container().clone();
    assert_eq!(seen.env, ["A=1", "C=1"]);
    assert_eq!(seen.mounts, [mount("/m", "new")]);
    assert_eq!(seen.annotations, pairs(&[("l", "1")]));
    assert_eq!(seen.args, ["x"]);
    let seen = seen.linux.unwrap();
    assert_eq!(seen.namespaces, [namespace("network", "/n")]);
    assert_eq!(seen.resources, Some(memory(5)));
    let all = c.adjust.clone().unwrap();
    // Removals are passed on, for what the specification itself has.
    assert_eq!(all.env, env(&[("A", "1"), ("C", "1"), ("-B", "")]));
    assert_eq!(all.mounts, [mount("/m", "new"), mount("-/gone", "")]);
    assert_eq!(all.annotations, pairs(&[("-k", ""), ("l", "1")]));
    assert_eq!(all.linux.unwrap().namespaces.len(), 2);
}

#[test]
fn what_is_taken_away_first_may_be_set_anew() {
    let mut c = creation();
    let first = api::ContainerAdjustment {
        env: env(&[("A", "1")]),
        mounts: vec![mount("/x", "1")],
        annotations: pairs(&[("k", "1")]),
        args: vec!["x".into()],
        ..Default::default()
    };
    c.add(wants(first.clone()), "00-a").unwrap();
    let second = api::ContainerAdjustment {
        env: env(&[("-A", ""), ("A", "2")]),
        mounts: vec![mount("-/x", ""), mount("/x", "2")],
        annotations: pairs(&[("-k", ""), ("k", "2")]),
        args: vec![String::new(), "y".into()],
        ..Default::default()
    };
    c.add(wants(second), "00-b").unwrap();
    let all = c.adjust.clone().unwrap();
    assert_eq!(all.env, env(&[("A", "2")]));
    assert_eq!(all.mounts, [mount("/x", "2")]);
    assert_eq!(all.annotations, pairs(&[("-k", ""), ("k", "2")]));
    assert_eq!(all.args, ["y"]);
    // But not again.
    for one in [
        api::ContainerAdjustment {
            env: first.env,
            ..Default::default()
        },
        api::ContainerAdjustment {
            mounts: first.mounts,
            ..Default::default()
        },
        api::ContainerAdjustment {
            annotations: first.annotations,
            ..Default::default()
        },
        api::ContainerAdjustment {
            args: first.args,
            ..Default::default()
        },
    ] {
        let e = c.add(wants(one), "00-c").unwrap_err().to_string();
        assert!(
            e.starts_with("plugins \"00-c\" and \"00-b\" both tried to set"),
            "{e}"
        );
    }
}

#[test]
fn each_single_field_has_one_owner() {
    let fields: Vec<(&str, api::LinuxContainerAdjustment)> = vec![
        (
            "CgroupsPath",
            api::LinuxContainerAdjustment {
                cgroups_path: "/c".into(),
                ..Default::default()
            },
        ),
        (
            "OomScoreAdj",
            api::LinuxContainerAdjustment {
                oom_score_adj: Some(api::OptionalInt { value: 1 }),
                ..Default::default()
            },
        ),
        (
            "IoPriority",
            api::LinuxContainerAdjustment {
                io_priority: Some(api::LinuxIoPriority::default()),
                ..Default::default()
            },
        ),
        (
            "SeccompPolicy",
            api::LinuxContainerAdjustment {
                seccomp_policy: Some(api::LinuxSeccomp::default()),
                ..Default::default()
            },
        ),
        (
            "LinuxSched",
            api::LinuxContainerAdjustment {
                scheduler: Some(api::LinuxScheduler::default()),
                ..Default::default()
            },
        ),
        (
            "MemoryPolicy",
            api::LinuxContainerAdjustment {
                memory_policy: Some(api::LinuxMemoryPolicy::default()),
                ..Default::default()
            },
        ),
        (
            "MemLimit",
            api::LinuxContainerAdjustment {
                resources: Some(memory(1)),
                ..Default::default()
            },
        ),
        (
            "Namespace pid",
            api::LinuxContainerAdjustment {
                namespaces: vec![namespace("pid", "")],
                ..Default::default()
            },
        ),
        (
            "Sysctl a.b",
            api::LinuxContainerAdjustment {
                sysctl: pairs(&[("a.b", "1")]),
                ..Default::default()
            },
        ),
        (
            "LinuxNetDevices eth1",
            api::LinuxContainerAdjustment {
                net_devices: [("eth1".to_owned(), api::LinuxNetDevice::default())].into(),
                ..Default::default()
            },
        ),
        (
            "Devices /dev/x",
            api::LinuxContainerAdjustment {
                devices: vec![api::LinuxDevice {
                    path: "/dev/x".into(),
                    ..Default::default()
                }],
                ..Default::default()
            },
        ),
        (
            "RdtClosID",
            api::LinuxContainerAdjustment {
                rdt: Some(api::LinuxRdt {
                    clos_id: Some(api::OptionalString::default()),
                    ..Default::default()
                }),
                ..Default::default()
            },
        ),
    ];
    for (name, wanted) in fields {
        let mut c = creation();
        c.add(linux(wanted.clone()), "00-a").unwrap();
        let e = c.add(linux(wanted), "10-b").unwrap_err().to_string();
        assert_eq!(
            e,
            format!("plugins \"10-b\" and \"00-a\" both tried to set {name}")
        );
    }
}

#[test]
fn hooks_accumulate_and_rdt_can_be_dropped() {
    let mut c = creation();
    let hooks = |path: &str| {
        wants(api::ContainerAdjustment {
            hooks: Some(api::Hooks {
                poststop: vec![api::Hook {
                    path: path.into(),
                    ..Default::default()
                }],
                ..Default::default()
            }),
            ..Default::default()
        })
    };
    c.add(hooks("/1"), "00-a").unwrap();
    c.add(hooks("/2"), "10-b").unwrap();
    let rdt = |remove: bool, class: Option<&str>| {
        linux(api::LinuxContainerAdjustment {
            rdt: Some(api::LinuxRdt {
                clos_id: class.map(|c| api::OptionalString { value: c.into() }),
                remove,
                ..Default::default()
            }),
            ..Default::default()
        })
    };
    c.add(rdt(false, Some("gold")), "00-a").unwrap();
    c.add(rdt(true, Some("lead")), "10-b").unwrap();
    assert!(c.add(rdt(false, Some("tin")), "20-c").is_err());
    let all = c.adjust.unwrap();
    assert_eq!(all.hooks.unwrap().poststop.len(), 2);
    let rdt = all.linux.unwrap().rdt.unwrap();
    assert_eq!(
        (rdt.remove, rdt.clos_id.unwrap().value.as_str()),
        (true, "lead")
    );
}

#[test]
fn updates_of_others_conflict_unless_that_does_not_matter() {
    let answer = |updates: Vec<api::ContainerUpdate>| api::CreateContainerResponse {
        update: updates,
        ..Default::default()
    };
    let mut c = creation();
    c.add(
        answer(vec![update("o", 1, true), update("p", 1, false)]),
        "00-a",
    )
    .unwrap();
    c.add(answer(vec![update("o", 2, true)]), "10-b").unwrap();
    assert!(c.add(answer(vec![update("p", 2, false)]), "10-b").is_err());
    let e = c.add(answer(vec![update("c", 2, true)]), "10-b");
    assert_eq!(
        e.unwrap_err().to_string(),
        "plugin \"10-b\" asked update of \"c\" during creation"
    );
    let merged = c.updates.take();
    assert_eq!(merged, [update("o", 1, true), update("p", 1, false)]);
}

#[test]
fn a_change_of_a_client_is_corrected_in_turn() {
    let mut change = Change::new(
        api::PodSandbox::default(),
        api::Container {
            id: "c".into(),
            ..Default::default()
        },
        memory(1),
    );
    let answer = |updates: Vec<api::ContainerUpdate>| api::UpdateContainerResponse {
        update: updates,
        evict: vec![],
    };
    assert!(!change.changed);
    change
        .add(answer(vec![update("o", 9, false)]), "00-a")
        .unwrap();
    assert!(!change.changed);
    change
        .add(answer(vec![update("c", 5, false)]), "00-a")
        .unwrap();
    assert!(change.changed);
    assert_eq!(change.request.linux_resources, Some(memory(5)));
    change
        .add(answer(vec![update("c", 6, true)]), "10-b")
        .unwrap();
    assert_eq!(change.request.linux_resources, Some(memory(5)));
    assert!(
        change
            .add(answer(vec![update("c", 6, false)]), "10-b")
            .is_err()
    );
    assert_eq!(change.others.take(), [update("o", 9, false)]);
}
