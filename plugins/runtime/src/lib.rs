//! corten-runtime: tasks in shims. The daemon's half of containerd's shim protocol.
//!
//! ```text
//! manager    io.containerd.shim.v1 "manager": what every shim is started with
//! discovery  runtime name -> binary              bundle     a task's folders
//! command    start, delete, -info                bootstrap  what `start` is told and answers
//! connection one watched connection              client     the services of a shim over it
//! shim       one container's shim: the Task trait
//! task       io.containerd.runtime.v2 "task": create, delete      end   what the end of a shim means
//! restore    shims of a previous daemon          log        the shim's log FIFO
//! sandbox    io.containerd.sandbox.controller.v1 "shim": sandboxes, each in a shim that tasks may join
//! mounts     a task's root file system through the mount manager
//! opt        io.containerd.internal.v1 "opt": the folder of `ctr install`
//! features   what must be asked of the runtime before a spec is handed to it
//! ```
//! The daemon keeps no state of a container that its shim has: it asks.

mod bootstrap;
mod bundle;
mod client;
mod command;
mod connection;
mod discovery;
mod end;
#[cfg(test)]
mod fake;
mod features;
mod log;
pub mod manager;
mod mounts;
pub mod opt;
mod restore;
pub mod sandbox;
mod shim;
pub mod task;
