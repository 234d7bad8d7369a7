//! Owns hooks: the state document they read and the plan that runs one. Waiting is the shim's.

use crate::namespaces::{NEWCGROUP, NEWIPC, NEWNET, NEWNS, NEWPID, NEWUSER, NEWUTS};
use crate::process::{self, Tail};
use crate::spec::{Hook, Hooks};
use crate::{Cgroup, Error, Result, Spec, init};
use corten_launch::{Exec, Op, Plan, cstr};
use rustix::fs::{MemfdFlags, SeekFrom, memfd_create, seek};
use rustix::pipe::{PipeFlags, pipe_with};
use serde::Serialize;
use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

/// The OCI state document (what hooks get on stdin).
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct State<'a> {
    pub oci_version: &'a str,
    pub id: &'a str,
    /// creating | created | running | stopped
    pub status: &'a str,
    #[serde(skip_serializing_if = "is_zero")]
    pub pid: i32,
    pub bundle: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: &'a BTreeMap<String, String>,
}

/// Where a hook runs, and as whom.
#[derive(Debug, Clone, Copy)]
pub enum Place<'a> {
    /// prestart, createRuntime, poststart, poststop.
    Runtime,
    /// createContainer: a program of the host in the namespaces of init (its pidfd).
    Namespaces(BorrowedFd<'a>),
    /// startContainer: a program of the image, so it is confined as init's own will be.
    Container {
        init: BorrowedFd<'a>,
        cgroup: &'a Cgroup,
        spec: &'a Spec,
    },
}

/// One hook, ready to `corten_launch::spawn`. It parks at a gate like any plan: open it at once.
/// Success is exit status 0 before `timeout`; else kill it by pidfd and report `output`.
#[derive(Debug)]
pub struct HookRun {
    pub plan: Plan,
    /// Read end, non-blocking: what the hook wrote to stdout and stderr, for the error text. Drop
    /// `plan` after the spawn, or its end never comes.
    pub output: OwnedFd,
    pub timeout: Option<Duration>,
    pub path: String,
}

/// Refuses what no hook may be, long before the last one runs.
pub(crate) fn check_all(hooks: &Hooks) -> Result<()> {
    let lists = [
        &hooks.prestart,
        &hooks.create_runtime,
        &hooks.create_container,
        &hooks.start_container,
        &hooks.poststart,
        &hooks.poststop,
    ];
    lists
        .into_iter()
        .flatten()
        .try_for_each(|hook| check(hook).map(drop))
}

fn check(hook: &Hook) -> Result<Option<Duration>> {
    if !hook.path.starts_with('/') {
        return Err(Error::invalid(format!(
            "hook path {:?} is not absolute",
            hook.path
        )));
    }
    let Some(asked) = hook.timeout else {
        return Ok(None);
    };
    let seconds = u64::try_from(asked).ok().filter(|n| *n > 0);
    let seconds = seconds.ok_or_else(|| {
        let path = &hook.path;
        Error::invalid(format!("hook {path}: timeout {asked} is not positive"))
    })?;
    Ok(Some(Duration::from_secs(seconds)))
}

/// Prepares a hook.
pub fn prepare(hook: &Hook, state: &State<'_>, place: Place<'_>) -> Result<HookRun> {
    let timeout = check(hook)?;
    let text = serde_json::to_vec(state)
        .map_err(|e| Error::invalid(format!("hook {}: state: {e}", hook.path)))?;
    let fail = |e: rustix::io::Errno| Error::system(format!("prepare hook {}", hook.path), e);
    // A file in memory instead of a pipe: nobody has to feed it.
    let stdin = memfd_create("state", MemfdFlags::CLOEXEC).map_err(fail)?;
    rustix::io::write(&stdin, &text).map_err(fail)?;
    seek(&stdin, SeekFrom::Start(0)).map_err(fail)?;
    let (output, theirs) = pipe_with(PipeFlags::CLOEXEC).map_err(fail)?;
    rustix::io::ioctl_fionbio(&output, true).map_err(fail)?;
    let mut plan = Plan::default();
    let (stdin, theirs) = (plan.give(stdin), plan.give(theirs));
    for (fd, target) in [(stdin, 0), (theirs, 1), (theirs, 2)] {
        plan.push(Op::Stdio { fd, target }, "set up standard streams");
    }
    if let Place::Container { init, cgroup, spec } = place {
        confined(state.id, init, cgroup, spec, &mut plan)?;
    } else {
        if let Place::Namespaces(init) = place {
            join(init, &mut plan)?;
        }
        plan.push(Op::CloseFds, "close descriptors");
        plan.push(Op::Umask(0o022), "umask");
        plan.push(Op::FindExe, "find the hook");
        plan.push(Op::Gate, "wait for start");
    }
    let argv = if hook.args.is_empty() {
        vec![cstr(&hook.path)]
    } else {
        hook.args.iter().map(cstr).collect()
    };
    plan.exec = Some(Exec {
        name: hook.path.clone(),
        candidates: vec![cstr(&hook.path)],
        searched: false,
        argv,
        envp: hook.env.iter().map(cstr).collect(),
        find_home: false,
    });
    Ok(HookRun {
        plan,
        output,
        timeout,
        path: hook.path.clone(),
    })
}

/// Everything that confines init, down to the gate.
fn confined(
    id: &str,
    pidfd: BorrowedFd<'_>,
    cgroup: &Cgroup,
    spec: &Spec,
    plan: &mut Plan,
) -> Result<()> {
    let process = spec
        .process
        .as_ref()
        .ok_or_else(|| Error::invalid("spec has no process"))?;
    let pid = corten_launch::pid_of(pidfd).map_err(|e| Error::system("find init", e))?;
    plan.oom_score_adj = process.oom_score_adj;
    cgroup.join_with(pid, false, plan)?;
    // Never the engine's own keyring, whatever the container's is.
    init::session(id, false, process, plan);
    process::lsm(process, plan)?;
    join(pidfd, plan)?;
    if spec.linux.namespaces.iter().any(|n| n.kind == "user") {
        plan.push(Op::SetGid(0), "become group 0 of the user namespace");
        plan.push(Op::SetUid(0), "become user 0 of the user namespace");
    }
    let tail = Tail {
        process,
        linux: &spec.linux,
        filter: init::filter(spec, None)?,
        find_home: false,
        make_cwd: false,
        exec: true,
    };
    // init's plan has warned of the same already.
    process::plan(tail, plan, &mut Vec::new())
}

/// Joins every namespace of a process that is not this process's own. Its number comes from the pidfd:
/// the one in the state document is the container's.
fn join(pidfd: BorrowedFd<'_>, plan: &mut Plan) -> Result<()> {
    let pid = corten_launch::pid_of(pidfd).map_err(|e| Error::system("find init", e))?;
    const KINDS: [(&str, u64); 7] = [
        ("user", NEWUSER),
        ("mnt", NEWNS),
        ("net", NEWNET),
        ("ipc", NEWIPC),
        ("uts", NEWUTS),
        ("cgroup", NEWCGROUP),
        ("pid", NEWPID),
    ];
    let mut flags = 0;
    for (name, flag) in KINDS {
        let read = |who: &str| std::fs::read_link(format!("/proc/{who}/ns/{name}"));
        let theirs = read(&pid.to_string())
            .map_err(|e| Error::system(format!("read {name} namespace of {pid}"), e))?;
        if read("self").ok().as_ref() != Some(&theirs) {
            flags |= flag;
        }
    }
    let pidfd = pidfd
        .try_clone_to_owned()
        .map_err(|e| Error::system("duplicate the pidfd of init", e))?;
    let ns = plan.give(pidfd);
    if flags & NEWPID != 0 {
        plan.pid_namespace = Some(ns);
    }
    let flags = (flags & !NEWPID) as u32;
    if flags != 0 {
        plan.push(Op::SetNs { ns, flags }, "join the container's namespaces");
    }
    Ok(())
}

fn is_zero(n: &i32) -> bool {
    *n == 0
}
