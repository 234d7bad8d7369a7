//! Owns `process`: identity, limits, capabilities, environment, executable. The last part of every plan.

use crate::caps;
use crate::spec::{Linux, Process};
use crate::{Error, Result};
use corten_launch::{Exec, Fd, Op, Plan, Rlimit, Sched, cstr};
use std::path::Path;

/// /proc/self/setgroups of a user namespace that forbids it is the caller's matter.
const RLIMITS: [&str; 16] = [
    "RLIMIT_CPU",
    "RLIMIT_FSIZE",
    "RLIMIT_DATA",
    "RLIMIT_STACK",
    "RLIMIT_CORE",
    "RLIMIT_RSS",
    "RLIMIT_NPROC",
    "RLIMIT_NOFILE",
    "RLIMIT_MEMLOCK",
    "RLIMIT_AS",
    "RLIMIT_LOCKS",
    "RLIMIT_SIGPENDING",
    "RLIMIT_MSGQUEUE",
    "RLIMIT_NICE",
    "RLIMIT_RTPRIO",
    "RLIMIT_RTTIME",
];
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A compiled filter and its flags.
#[derive(Debug, Clone)]
pub(crate) struct Filter {
    pub(crate) program: Vec<u8>,
    pub(crate) flags: u32,
}

/// What the tail of a plan needs.
pub(crate) struct Tail<'a> {
    pub(crate) process: &'a Process,
    pub(crate) linux: &'a Linux,
    pub(crate) filter: Option<Filter>,
    /// Look the home directory up in the container when the environment has none.
    pub(crate) find_home: bool,
    /// Make a missing working directory (init only).
    pub(crate) make_cwd: bool,
    pub(crate) exec: bool,
}

/// Refuses what cannot be done, before anything is done.
pub(crate) fn check(process: &Process) -> Result<()> {
    if process.args.first().is_none_or(String::is_empty) {
        return Err(Error::invalid("args must not be empty"));
    }
    if !process.cwd.starts_with('/') {
        return Err(Error::invalid(format!(
            "cwd {:?} must be an absolute path",
            process.cwd
        )));
    }
    let strings = process
        .args
        .iter()
        .chain(&process.env)
        .chain([&process.cwd]);
    if strings.into_iter().any(|s| s.contains('\0')) {
        return Err(Error::invalid("NUL byte in args, env or cwd"));
    }
    for id in [process.user.uid, process.user.gid] {
        if i32::try_from(id).is_err() {
            return Err(Error::invalid(format!("id {id} is out of range")));
        }
    }
    Ok(())
}

/// Written while /proc is still the host's; takes effect at the exec.
pub(crate) fn lsm(process: &Process, plan: &mut Plan) -> Result<()> {
    let profile = &process.apparmor_profile;
    if !profile.is_empty() {
        let on = std::fs::read("/sys/module/apparmor/parameters/enabled");
        if on.is_ok_and(|v| v.first() == Some(&b'Y')) {
            let own = "/proc/thread-self/attr/apparmor/exec";
            let path = if Path::new(own).exists() {
                own
            } else {
                "/proc/thread-self/attr/exec"
            };
            let data = format!("exec {profile}").into_bytes();
            let label = format!("unable to apply apparmor profile: {profile}");
            plan.push(
                Op::WriteProc {
                    path: cstr(path),
                    data,
                },
                label,
            );
        } else if profile != "unconfined" {
            return Err(Error::unsupported(
                "unable to apply apparmor profile: apparmor: config provided but apparmor not supported",
            ));
        }
    }
    if !process.selinux_label.is_empty() {
        if !Path::new("/sys/fs/selinux/enforce").exists() {
            return Err(Error::unsupported(
                "selinux label is specified in config, but selinux is disabled or not supported",
            ));
        }
        let data = process.selinux_label.clone().into_bytes();
        let path = cstr("/proc/thread-self/attr/exec");
        plan.push(Op::WriteProc { path, data }, "set the SELinux exec label");
    }
    Ok(())
}

/// Plans everything from limits to the exec.
pub(crate) fn plan(t: Tail<'_>, plan: &mut Plan, warnings: &mut Vec<String>) -> Result<()> {
    let p = t.process;
    if t.find_home && !has_home(p) {
        // The working directory is the container's root here.
        let (root, uid) = (Fd::Cwd, p.user.uid);
        plan.push(Op::Home { root, uid }, "look up the home directory");
    }
    sched(&t, plan)?;
    for limit in &p.rlimits {
        let resource = RLIMITS
            .iter()
            .position(|n| *n == limit.kind)
            .ok_or_else(|| Error::invalid(format!("unknown rlimit {:?}", limit.kind)))?;
        if p.rlimits.iter().filter(|l| l.kind == limit.kind).count() > 1 {
            return Err(Error::invalid(format!("duplicate rlimit {:?}", limit.kind)));
        }
        let limit_of = Rlimit {
            resource: resource as u32,
            soft: limit.soft,
            hard: limit.hard,
        };
        plan.push(
            Op::SetRlimit(limit_of),
            format!("error setting rlimit {}", limit.kind),
        );
    }
    plan.push(Op::CloseFds, "close descriptors");
    if p.no_new_privileges {
        plan.push(Op::NoNewPrivs, "set no_new_privs");
    }
    let (early, late) = if p.no_new_privileges {
        (None, t.filter)
    } else {
        (t.filter, None)
    };
    // Without no_new_privs a filter needs CAP_SYS_ADMIN: before the capabilities go.
    if let Some(f) = early {
        plan.push(
            Op::Seccomp {
                program: f.program,
                flags: f.flags,
            },
            "error loading seccomp filter",
        );
    }
    credentials(p, t.make_cwd, plan, warnings);
    plan.push(Op::FindExe, "find the executable");
    plan.push(Op::Gate, "wait for start");
    if let Some(f) = late {
        plan.push(
            Op::Seccomp {
                program: f.program,
                flags: f.flags,
            },
            "error loading seccomp filter",
        );
    }
    plan.exec = Some(executable(p, t.find_home));
    Ok(())
}

/// Order as in runc: bounding set, then ids under keepcaps, then the sets.
fn credentials(p: &Process, make_cwd: bool, plan: &mut Plan, warnings: &mut Vec<String>) {
    let caps = caps::sets(p.capabilities.as_ref(), warnings);
    let cwd = cstr(&p.cwd);
    let label = format!("chdir to cwd ({:?}) set in config.json failed", p.cwd);
    plan.push(Op::BoundingSet(caps.bounding), "drop the bounding set");
    plan.push(Op::KeepCaps(true), "set keep caps");
    plan.push(
        Op::Chdir {
            path: cwd,
            make: make_cwd,
        },
        label.clone(),
    );
    plan.push(Op::SetGroups(p.user.additional_gids.clone()), "setgroups");
    plan.push(Op::SetGid(p.user.gid), format!("setgid {}", p.user.gid));
    plan.push(Op::SetUid(p.user.uid), format!("setuid {}", p.user.uid));
    plan.push(
        Op::VerifyCwd,
        format!("{label}: current working directory is outside of container mount namespace root"),
    );
    plan.push(Op::KeepCaps(false), "clear keep caps");
    plan.push(Op::SetCaps(caps), "unable to apply caps");
    plan.push(Op::Umask(p.user.umask.unwrap_or(0o022)), "umask");
}

fn sched(t: &Tail<'_>, plan: &mut Plan) -> Result<()> {
    let p = t.process;
    if let Some(s) = &p.scheduler {
        plan.push(Op::Scheduler(scheduler(s)?), "set scheduler");
    }
    if let Some(io) = &p.io_priority {
        let class = match io.class.as_str() {
            "IOPRIO_CLASS_RT" => 1u32,
            "IOPRIO_CLASS_BE" => 2,
            "IOPRIO_CLASS_IDLE" => 3,
            other => {
                return Err(Error::invalid(format!(
                    "unknown ioPriority class {other:?}"
                )));
            }
        };
        let level = u32::try_from(io.priority)
            .ok()
            .filter(|n| *n < 8)
            .ok_or_else(|| {
                Error::invalid(format!("ioPriority {} is not within 0 to 7", io.priority))
            })?;
        plan.push(Op::IoPriority(class << 13 | level), "set I/O priority");
    }
    if let Some(m) = &t.linux.memory_policy {
        plan.push(memory_policy(m)?, "set memory policy");
    }
    if let Some(persona) = &t.linux.personality {
        let domain = match persona.domain.as_str() {
            "LINUX" => 0u64,
            "LINUX32" => 8,
            other => {
                return Err(Error::invalid(format!(
                    "unknown personality domain {other:?}"
                )));
            }
        };
        if let Some(flag) = persona.flags.first() {
            // runtime-spec 1.3 config-linux.md: there are no flags yet.
            return Err(Error::invalid(format!("unknown personality flag {flag:?}")));
        }
        plan.push(Op::Personality(domain), "set personality");
    }
    // Whatever this process is bound to must not leak: all CPUs the cpuset allows, or those asked for.
    let affinity = p.exec_cpu_affinity.as_ref().filter(|_| t.exec);
    let mask = match affinity.map(|a| (a.initial.as_str(), a.last.as_str())) {
        None | Some(("", "")) => vec![u64::MAX; 1024],
        // The first one stays, as far as the cpuset lets it.
        Some((_, "")) => return Ok(()),
        Some((_, list)) => bits(list)?,
    };
    plan.push(Op::Affinity(mask), "set CPU affinity");
    Ok(())
}

/// CPUs an exec is bound to before it joins the container's cgroup.
pub(crate) fn initial_affinity(p: &Process) -> Result<Option<Vec<u64>>> {
    let list = p.exec_cpu_affinity.as_ref().map(|a| &a.initial);
    list.filter(|l| !l.is_empty()).map(|l| bits(l)).transpose()
}

fn scheduler(s: &crate::spec::Scheduler) -> Result<Sched> {
    const POLICIES: [(&str, u32); 7] = [
        ("SCHED_OTHER", 0),
        ("SCHED_FIFO", 1),
        ("SCHED_RR", 2),
        ("SCHED_BATCH", 3),
        ("SCHED_ISO", 4),
        ("SCHED_IDLE", 5),
        ("SCHED_DEADLINE", 6),
    ];
    const FLAGS: [(&str, u64); 7] = [
        ("SCHED_FLAG_RESET_ON_FORK", 0x01),
        ("SCHED_FLAG_RECLAIM", 0x02),
        ("SCHED_FLAG_DL_OVERRUN", 0x04),
        ("SCHED_FLAG_KEEP_POLICY", 0x08),
        ("SCHED_FLAG_KEEP_PARAMS", 0x10),
        ("SCHED_FLAG_UTIL_CLAMP_MIN", 0x20),
        ("SCHED_FLAG_UTIL_CLAMP_MAX", 0x40),
    ];
    let wrong = |what: &str, value: &str| Error::invalid(format!("unknown {what} {value:?}"));
    let find = POLICIES.iter().find(|(n, _)| *n == s.policy);
    let (_, policy) = *find.ok_or_else(|| wrong("scheduler policy", &s.policy))?;
    let mut flags = 0;
    for name in &s.flags {
        let find = FLAGS.iter().find(|(n, _)| n == name);
        flags |= find.ok_or_else(|| wrong("scheduler flag", name))?.1;
    }
    let priority = u32::try_from(s.priority)
        .map_err(|_| Error::invalid(format!("scheduler priority {} is negative", s.priority)))?;
    Ok(Sched {
        policy,
        flags,
        nice: s.nice,
        priority,
        runtime: s.runtime,
        deadline: s.deadline,
        period: s.period,
    })
}

fn memory_policy(m: &crate::spec::MemoryPolicy) -> Result<Op> {
    const MODES: [&str; 7] = [
        "MPOL_DEFAULT",
        "MPOL_PREFERRED",
        "MPOL_BIND",
        "MPOL_INTERLEAVE",
        "MPOL_LOCAL",
        "MPOL_PREFERRED_MANY",
        "MPOL_WEIGHTED_INTERLEAVE",
    ];
    let wrong = |what: &str, value: &str| Error::invalid(format!("unknown {what} {value:?}"));
    let found = MODES.iter().position(|n| *n == m.mode);
    let mut mode = found.ok_or_else(|| wrong("memory policy mode", &m.mode))? as u32;
    for flag in &m.flags {
        mode |= match flag.as_str() {
            "MPOL_F_STATIC_NODES" => 1 << 15,
            "MPOL_F_RELATIVE_NODES" => 1 << 14,
            "MPOL_F_NUMA_BALANCING" => 1 << 13,
            other => return Err(wrong("memory policy flag", other)),
        };
    }
    Ok(Op::MemPolicy {
        mode,
        nodes: if m.nodes.is_empty() {
            Vec::new()
        } else {
            bits(&m.nodes)?
        },
    })
}

/// `0-3,7` as a bit mask.
fn bits(list: &str) -> Result<Vec<u64>> {
    let wrong = || Error::invalid(format!("malformed list {list:?}"));
    let mut mask: Vec<u64> = Vec::new();
    for part in list.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let from: usize = from.trim().parse().map_err(|_| wrong())?;
        let to: usize = to.trim().parse().map_err(|_| wrong())?;
        if from > to || to >= 65_536 {
            return Err(wrong());
        }
        if mask.len() <= to / 64 {
            mask.resize(to / 64 + 1, 0);
        }
        for n in from..=to {
            if let Some(word) = mask.get_mut(n / 64) {
                *word |= 1 << (n % 64);
            }
        }
    }
    if mask.is_empty() {
        Err(wrong())
    } else {
        Ok(mask)
    }
}

fn has_home(p: &Process) -> bool {
    let last = p.env.iter().rev().find_map(|e| e.strip_prefix("HOME="));
    last.is_some_and(|home| !home.is_empty())
}

fn executable(p: &Process, find_home: bool) -> Exec {
    // The last value of a name wins and keeps the place of the first.
    let mut env: Vec<(&str, &str)> = Vec::new();
    for entry in &p.env {
        let (key, value) = entry.split_once('=').unwrap_or((entry, ""));
        match env.iter_mut().find(|(k, _)| *k == key) {
            Some(place) => place.1 = value,
            None => env.push((key, value)),
        }
    }
    let find_home = find_home && !has_home(p);
    if find_home {
        env.retain(|(k, _)| *k != "HOME");
    }
    let path = env
        .iter()
        .find(|(k, _)| *k == "PATH")
        .map_or(DEFAULT_PATH, |(_, v)| v);
    let name = p.args.first().cloned().unwrap_or_default();
    let searched = !name.contains('/');
    let candidates = if searched {
        path.split(':')
            .filter(|dir| !dir.is_empty())
            .map(|dir| cstr(format!("{}/{name}", dir.trim_end_matches('/'))))
            .collect()
    } else {
        vec![cstr(&name)]
    };
    Exec {
        candidates,
        searched,
        argv: p.args.iter().map(cstr).collect(),
        envp: env.iter().map(|(k, v)| cstr(format!("{k}={v}"))).collect(),
        name,
        find_home,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(args: &[&str], env: &[&str]) -> Process {
        Process {
            args: args.iter().map(|s| (*s).into()).collect(),
            env: env.iter().map(|s| (*s).into()).collect(),
            cwd: "/".into(),
            ..Process::default()
        }
    }

    #[test]
    fn path_search_and_home() {
        let e = executable(
            &process(&["sh"], &["PATH=/a:/b/", "X=1", "HOME=", "X=2"]),
            true,
        );
        assert_eq!(e.candidates, [cstr("/a/sh"), cstr("/b/sh")]);
        assert_eq!(e.envp, [cstr("PATH=/a:/b/"), cstr("X=2")]);
        assert!(e.find_home);
        let e = executable(&process(&["./x"], &["HOME=/h"]), true);
        assert_eq!((e.candidates, e.searched), (vec![cstr("./x")], false));
        assert_eq!((e.envp, e.find_home), (vec![cstr("HOME=/h")], false));
    }

    #[test]
    fn ids_out_of_range_are_errors() {
        let mut p = process(&["sh"], &[]);
        p.user.uid = 0x8000_0000;
        assert!(check(&p).is_err());
        assert!(check(&process(&[], &[])).is_err());
    }

    #[test]
    fn lists_become_masks() {
        assert_eq!(bits("0-2,65").ok(), Some(vec![7, 2]));
        assert!(bits("3-1").is_err() && bits("99999999").is_err() && bits("a").is_err());
    }
}
