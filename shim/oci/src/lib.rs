//! config.json in, [`corten_launch::Plan`] out; cgroups beside it. The OCI runtime of the shim, in-process.
//!
//! Whole life of a container, as the shim drives it:
//! ```text
//! let spec   = Spec::parse(&bytes)?;
//! let cgroup = Cgroup::create(&spec, id, &options)?;          // made, limits applied, empty
//! let init   = plan_init(&spec, InitParams { .. })?;          // warnings to log
//! let mut p  = corten_launch::spawn(&init.plan)?;             // status_fd -> Rendezvous(HOOKS)? -> Ready
//! //   at Rendezvous(HOOKS): netdev::attach, hooks prestart, createRuntime, createContainer, then p.proceed()
//! //   at Listener: Agent::hand_over(p.take_listener()), then p.proceed()
//! //   start: hooks startContainer, p.open_gate() -> Running; then hooks poststart
//! //   exec:  plan_exec(&spec, &process, ExecParams { .. }) -> spawn -> Ready -> open_gate
//! //   exit:  pidfd readable -> corten_launch::reap; cgroup.kill() for a shared pid namespace
//! //   delete: cgroup.delete(); hooks poststop
//! ```
//! Pure but for cgroupfs, resctrl, netlink, and opening of descriptors for the child.
//! Anything in the document this engine cannot do is an error, never ignored.

mod caps;
pub mod cgroup;
mod devices;
mod error;
mod holder;
pub mod hooks;
mod init;
mod listener;
mod mounts;
mod namespaces;
pub mod netdev;
mod process;
mod rdt;
pub mod restore;
mod rootfs;
mod seccomp;
pub mod spec;

pub use caps::NAMES as CAPABILITIES;
pub use cgroup::Cgroup;
pub use error::{Error, Kind, Result};
pub use holder::plan_holder;
pub use hooks::{HookRun, Place, State};
pub use init::{ExecParams, HOOKS, InitParams, InitPlan, Stdio, plan_exec, plan_init};
pub use listener::Agent;
pub use mounts::known_options;
pub use rdt::Rdt;
pub use spec::{Process, Resources, Spec};
