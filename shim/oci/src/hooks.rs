//! Owns hooks: the state document they read and the plan that runs one. Waiting is the shim's.

use crate::Result;
use crate::spec::Hook;
use corten_launch::Plan;
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

/// One hook, ready to `corten_launch::spawn`. It parks at a gate like any plan: open it at once.
/// Success is exit status 0 before `timeout`; else kill it by pidfd and report `stderr`.
#[derive(Debug)]
pub struct HookRun {
    pub plan: Plan,
    /// Read end: what the hook wrote to stderr (and stdout), for the error text.
    pub output: OwnedFd,
    pub timeout: Option<Duration>,
    pub path: String,
}

/// Prepares a hook. `inside` is the pidfd of init for createContainer and startContainer hooks,
/// which run in the container's namespaces; `None` for the others.
pub fn prepare(hook: &Hook, state: &State<'_>, inside: Option<BorrowedFd<'_>>) -> Result<HookRun> {
    let _ = (hook, state, inside);
    unimplemented!()
}

fn is_zero(n: &i32) -> bool {
    *n == 0
}
