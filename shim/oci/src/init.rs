//! Owns the order of steps of a container's first process and of an exec.

use crate::{Cgroup, Process, Result, Spec};
use corten_launch::Plan;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

/// `Status::Rendezvous(HOOKS)`: namespaces and mounts exist, the root is not yet switched. The shim
/// runs the prestart, createRuntime and createContainer hooks, then calls `proceed`.
pub const HOOKS: u32 = 1;

/// Standard streams of a new process.
#[derive(Debug)]
pub enum Stdio {
    /// stdin, stdout, stderr.
    Fds(OwnedFd, OwnedFd, OwnedFd),
    /// A pty made inside the container; its master arrives by `Parked::take_console`.
    Terminal { rows: u16, cols: u16 },
    /// /dev/null thrice.
    Null,
}

/// What `plan_init` needs beside the spec.
#[derive(Debug)]
pub struct InitParams<'a> {
    pub id: &'a str,
    /// Base of a relative `root.path`.
    pub bundle: &'a Path,
    pub stdio: Stdio,
    pub cgroup: &'a Cgroup,
    pub no_pivot_root: bool,
    pub no_new_keyring: bool,
    /// Folder for compiled seccomp programs; `None` keeps them in memory only.
    pub cache: Option<&'a Path>,
}

/// What `plan_exec` needs beside the process.
#[derive(Debug)]
pub struct ExecParams<'a> {
    pub id: &'a str,
    pub init_pid: i32,
    pub init_pidfd: BorrowedFd<'a>,
    pub stdio: Stdio,
    pub cgroup: &'a Cgroup,
    pub no_new_keyring: bool,
    pub cache: Option<&'a Path>,
}

/// A launchable plan, and what the shim should log.
#[derive(Debug)]
pub struct InitPlan {
    pub plan: Plan,
    /// House rule: degrade with a warning where the host refuses.
    pub warnings: Vec<String>,
}

/// Plan of the container's first process.
pub fn plan_init(spec: &Spec, params: InitParams<'_>) -> Result<InitPlan> {
    let _ = (spec, params);
    unimplemented!()
}

/// Plan of a further process; it joins every namespace and the cgroup of init.
pub fn plan_exec(spec: &Spec, process: &Process, params: ExecParams<'_>) -> Result<InitPlan> {
    let _ = (spec, process, params);
    unimplemented!()
}
