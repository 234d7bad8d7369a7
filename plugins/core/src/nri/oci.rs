//! What plugins are told of a container, read from its OCI specification.
//!
//! Reads documents of any age and maker: what is missing or of another type than expected counts as absent.

use std::collections::BTreeMap;

use corten_protos::nri::pkg::api::v1alpha1 as api;
use serde_json::Value;

/// The parts of a container's message that its specification holds; identity, state, labels and image are the caller's.
pub fn container(spec: &Value) -> api::Container {
    let process = &spec["process"];
    api::Container {
        annotations: strings_map(&spec["annotations"]),
        args: strings(&process["args"]),
        env: strings(&process["env"]),
        mounts: each(&spec["mounts"], mount),
        hooks: spec["hooks"].as_object().map(|_| hooks(&spec["hooks"])),
        linux: Some(linux(spec)),
        rlimits: each(&process["rlimits"], |r| api::PosixRlimit {
            r#type: text(&r["type"]),
            hard: r["hard"].as_u64().unwrap_or_default(),
            soft: r["soft"].as_u64().unwrap_or_default(),
        }),
        user: process.as_object().map(|_| user(&process["user"])),
        ..Default::default()
    }
}

/// The parts of a pod's message that the specification of its first process holds.
pub fn pod_linux(spec: &Value) -> api::LinuxPodSandbox {
    let linux = &spec["linux"];
    api::LinuxPodSandbox {
        cgroups_path: text(&linux["cgroupsPath"]),
        namespaces: each(&linux["namespaces"], namespace),
        resources: present(&linux["resources"], resources),
        ..Default::default()
    }
}

/// `linux.resources`.
pub fn resources(r: &Value) -> api::LinuxResources {
    api::LinuxResources {
        memory: present(&r["memory"], |m| api::LinuxMemory {
            limit: int64(&m["limit"]),
            reservation: int64(&m["reservation"]),
            swap: int64(&m["swap"]),
            kernel: int64(&m["kernel"]),
            kernel_tcp: int64(&m["kernelTCP"]),
            swappiness: uint64(&m["swappiness"]),
            disable_oom_killer: boolean(&m["disableOOMKiller"]),
            use_hierarchy: boolean(&m["useHierarchy"]),
        }),
        cpu: present(&r["cpu"], |c| api::LinuxCpu {
            shares: uint64(&c["shares"]),
            quota: int64(&c["quota"]),
            period: uint64(&c["period"]),
            realtime_runtime: int64(&c["realtimeRuntime"]),
            realtime_period: uint64(&c["realtimePeriod"]),
            cpus: text(&c["cpus"]),
            mems: text(&c["mems"]),
        }),
        hugepage_limits: each(&r["hugepageLimits"], |l| api::HugepageLimit {
            page_size: text(&l["pageSize"]),
            limit: l["limit"].as_u64().unwrap_or_default(),
        }),
        unified: strings_map(&r["unified"]),
        devices: each(&r["devices"], |d| api::LinuxDeviceCgroup {
            allow: d["allow"].as_bool().unwrap_or_default(),
            r#type: text(&d["type"]),
            major: int64(&d["major"]),
            minor: int64(&d["minor"]),
            access: text(&d["access"]),
        }),
        pids: present(&r["pids"], |p| api::LinuxPids {
            limit: p["limit"].as_i64().unwrap_or_default(),
        }),
        ..Default::default()
    }
}

fn linux(spec: &Value) -> api::LinuxContainer {
    let (process, linux) = (&spec["process"], &spec["linux"]);
    api::LinuxContainer {
        namespaces: each(&linux["namespaces"], namespace),
        devices: each(&linux["devices"], device),
        resources: present(&linux["resources"], resources),
        oom_score_adj: process["oomScoreAdj"]
            .as_i64()
            .map(|value| api::OptionalInt { value }),
        cgroups_path: text(&linux["cgroupsPath"]),
        io_priority: present(&process["ioPriority"], |p| api::LinuxIoPriority {
            class: named(&p["class"], api::IoPrioClass::from_str_name),
            priority: narrow(&p["priority"]),
        }),
        seccomp_profile: None,
        seccomp_policy: present(&linux["seccomp"], seccomp),
        sysctl: strings_map(&linux["sysctl"]),
        net_devices: entries(&linux["netDevices"], |d| api::LinuxNetDevice {
            name: text(&d["name"]),
        }),
        scheduler: present(&process["scheduler"], scheduler),
        rdt: present(&linux["intelRdt"], rdt),
    }
}

fn mount(m: &Value) -> api::Mount {
    api::Mount {
        destination: text(&m["destination"]),
        r#type: text(&m["type"]),
        source: text(&m["source"]),
        options: strings(&m["options"]),
    }
}

fn hooks(h: &Value) -> api::Hooks {
    let of = |name: &str| {
        each(&h[name], |h| api::Hook {
            path: text(&h["path"]),
            args: strings(&h["args"]),
            env: strings(&h["env"]),
            timeout: h["timeout"]
                .as_i64()
                .map(|value| api::OptionalInt { value }),
        })
    };
    api::Hooks {
        prestart: of("prestart"),
        create_runtime: of("createRuntime"),
        create_container: of("createContainer"),
        start_container: of("startContainer"),
        poststart: of("poststart"),
        poststop: of("poststop"),
    }
}

fn user(u: &Value) -> api::User {
    api::User {
        uid: narrow(&u["uid"]),
        gid: narrow(&u["gid"]),
        additional_gids: each(&u["additionalGids"], narrow),
    }
}

fn namespace(n: &Value) -> api::LinuxNamespace {
    api::LinuxNamespace {
        r#type: text(&n["type"]),
        path: text(&n["path"]),
    }
}

fn device(d: &Value) -> api::LinuxDevice {
    let id = |v: &Value| v.as_u64().map(|_| api::OptionalUInt32 { value: narrow(v) });
    api::LinuxDevice {
        path: text(&d["path"]),
        r#type: text(&d["type"]),
        major: d["major"].as_i64().unwrap_or_default(),
        minor: d["minor"].as_i64().unwrap_or_default(),
        file_mode: d["fileMode"].as_u64().map(|_| api::OptionalFileMode {
            value: narrow(&d["fileMode"]),
        }),
        uid: id(&d["uid"]),
        gid: id(&d["gid"]),
    }
}

fn seccomp(s: &Value) -> api::LinuxSeccomp {
    let errno = |v: &Value| v.as_u64().map(|_| api::OptionalUInt32 { value: narrow(v) });
    api::LinuxSeccomp {
        default_action: text(&s["defaultAction"]),
        default_errno: errno(&s["defaultErrnoRet"]),
        architectures: strings(&s["architectures"]),
        flags: strings(&s["flags"]),
        listener_path: text(&s["listenerPath"]),
        listener_metadata: text(&s["listenerMetadata"]),
        syscalls: each(&s["syscalls"], |c| api::LinuxSyscall {
            names: strings(&c["names"]),
            action: text(&c["action"]),
            errno_ret: errno(&c["errnoRet"]),
            args: each(&c["args"], |a| api::LinuxSeccompArg {
                index: narrow(&a["index"]),
                value: a["value"].as_u64().unwrap_or_default(),
                value_two: a["valueTwo"].as_u64().unwrap_or_default(),
                op: text(&a["op"]),
            }),
        }),
    }
}

fn scheduler(s: &Value) -> api::LinuxScheduler {
    api::LinuxScheduler {
        policy: named(&s["policy"], api::LinuxSchedulerPolicy::from_str_name),
        nice: narrow(&s["nice"]),
        priority: narrow(&s["priority"]),
        flags: each(&s["flags"], |f| {
            named(f, api::LinuxSchedulerFlag::from_str_name)
        }),
        runtime: s["runtime"].as_u64().unwrap_or_default(),
        deadline: s["deadline"].as_u64().unwrap_or_default(),
        period: s["period"].as_u64().unwrap_or_default(),
    }
}

fn rdt(r: &Value) -> api::LinuxRdt {
    api::LinuxRdt {
        clos_id: Some(api::OptionalString {
            value: text(&r["closID"]),
        }),
        schemata: Some(api::OptionalRepeatedString {
            value: strings(&r["schemata"]),
        }),
        enable_monitoring: Some(api::OptionalBool {
            value: r["enableMonitoring"].as_bool().unwrap_or_default(),
        }),
        remove: false,
    }
}

// === pieces of JSON ===

fn text(v: &Value) -> String {
    v.as_str().unwrap_or_default().to_owned()
}

fn strings(v: &Value) -> Vec<String> {
    each(v, text)
}

fn strings_map(v: &Value) -> BTreeMap<String, String> {
    entries(v, text)
}

fn each<T>(v: &Value, of: impl Fn(&Value) -> T) -> Vec<T> {
    v.as_array().into_iter().flatten().map(of).collect()
}

fn entries<T>(v: &Value, of: impl Fn(&Value) -> T) -> BTreeMap<String, T> {
    let all = v.as_object().into_iter().flatten();
    all.map(|(k, v)| (k.clone(), of(v))).collect()
}

fn present<T>(v: &Value, of: impl FnOnce(&Value) -> T) -> Option<T> {
    v.is_object().then(|| of(v))
}

fn int64(v: &Value) -> Option<api::OptionalInt64> {
    v.as_i64().map(|value| api::OptionalInt64 { value })
}

fn uint64(v: &Value) -> Option<api::OptionalUInt64> {
    v.as_u64().map(|value| api::OptionalUInt64 { value })
}

fn boolean(v: &Value) -> Option<api::OptionalBool> {
    v.as_bool().map(|value| api::OptionalBool { value })
}

/// A number that fits, else 0.
fn narrow<T: TryFrom<i64> + Default>(v: &Value) -> T {
    v.as_i64()
        .and_then(|n| T::try_from(n).ok())
        .unwrap_or_default()
}

/// The number of an enum's value by its name, else 0.
fn named<E: Into<i32>>(v: &Value, of: impl FnOnce(&str) -> Option<E>) -> i32 {
    v.as_str().and_then(of).map_or(0, Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_specification_is_told_whole() {
        let spec = json!({
            "process": {
                "args": ["sh"], "env": ["A=b"], "oomScoreAdj": -5,
                "user": {"uid": 1, "gid": 2, "additionalGids": [3]},
                "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 2, "soft": 1}],
                "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 4},
                "scheduler": {"policy": "SCHED_RR", "priority": 7, "flags": ["SCHED_FLAG_RECLAIM"]},
            },
            "mounts": [{"destination": "/d", "type": "bind", "source": "/s", "options": ["ro"]}],
            "hooks": {"poststop": [{"path": "/h", "timeout": 3}]},
            "annotations": {"k": "v"},
            "linux": {
                "namespaces": [{"type": "pid"}, {"type": "network", "path": "/n"}],
                "devices": [{"path": "/dev/x", "type": "c", "major": 1, "minor": 3, "fileMode": 438}],
                "cgroupsPath": "/p/c", "sysctl": {"a.b": "1"}, "netDevices": {"eth1": {"name": "e"}},
                "resources": {
                    "memory": {"limit": -1}, "cpu": {"shares": 2, "cpus": "0"}, "pids": {"limit": 9},
                    "hugepageLimits": [{"pageSize": "2MB", "limit": 4}], "unified": {"x": "y"},
                },
                "seccomp": {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
                    "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}]},
                "intelRdt": {"closID": "gold"},
            },
        });
        let c = container(&spec);
        assert_eq!((c.args.len(), c.env[0].as_str()), (1, "A=b"));
        assert_eq!(c.user.unwrap().additional_gids, [3]);
        assert_eq!(c.rlimits[0].hard, 2);
        assert_eq!(c.mounts[0].options, ["ro"]);
        assert_eq!(c.hooks.unwrap().poststop[0].timeout.unwrap().value, 3);
        assert_eq!(c.annotations["k"], "v");
        let l = c.linux.unwrap();
        assert_eq!(l.namespaces[1].path, "/n");
        assert_eq!(l.devices[0].file_mode.unwrap().value, 0o666);
        assert_eq!(l.oom_score_adj.unwrap().value, -5);
        assert_eq!(
            l.io_priority.unwrap().class,
            api::IoPrioClass::IoprioClassBe as i32
        );
        let s = l.scheduler.unwrap();
        assert_eq!(s.policy, api::LinuxSchedulerPolicy::SchedRr as i32);
        assert_eq!(s.flags, [api::LinuxSchedulerFlag::SchedFlagReclaim as i32]);
        assert_eq!(l.net_devices["eth1"].name, "e");
        assert_eq!(l.seccomp_policy.unwrap().default_errno.unwrap().value, 1);
        assert_eq!(l.rdt.unwrap().clos_id.unwrap().value, "gold");
        let r = l.resources.unwrap();
        assert_eq!(r.memory.unwrap().limit.unwrap().value, -1);
        assert_eq!(r.cpu.unwrap().cpus, "0");
        assert_eq!(r.pids.unwrap().limit, 9);
        let p = pod_linux(&spec);
        assert_eq!((p.namespaces.len(), p.cgroups_path.as_str()), (2, "/p/c"));
    }

    #[test]
    fn what_is_strange_is_absent() {
        for strange in [
            json!(null),
            json!([]),
            json!({"process": [], "linux": 3, "mounts": {}}),
            json!({"process": {"user": "root", "rlimits": [7]}, "linux": {"devices": [null]}}),
        ] {
            let c = container(&strange);
            assert!(c.args.is_empty() && c.mounts.is_empty(), "{strange}");
        }
    }
}
