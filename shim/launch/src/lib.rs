//! The fence: all code that runs between clone and exec, and every `unsafe` of the shim.
//!
//! A [`Plan`] is a list of steps ([`Op`]) computed beforehand; [`spawn`] clones once and the child
//! interprets the list with raw system calls only (no allocation, no panic, no library state),
//! then parks at its gate until [`Parked::open_gate`], then execs.
//!
//! ```text
//! spawn --> Pending --> Rendezvous(n) --proceed()--> Pending --> Ready --open_gate()--> Pending --> Running
//!              ^   \--> Listener --proceed()--> Pending (before or after the gate, with a filter that notifies)
//!               \______________________ Failed(op, errno, text) _______________________/
//! ```
//! `status_fd` becomes readable for each change. After `Running` the pidfd is all that is left.
//!
//! Not here: what a container is (corten-oci), waiting and async (the shim).

#![allow(unsafe_code)]

pub mod bpf;
mod child;
mod children;
mod copy;
pub mod exe;
mod fs;
mod home;
pub mod mounts;
pub mod net;
mod parked;
mod plan;
mod sys;
mod wire;

pub use children::{arguments, owner_of, peek_child, pid_of, signal, trim_heap};
pub use parked::{Exit, Failure, Kind, Parked, Status, reap, spawn, user_namespace};
pub use plan::{
    Caps, Exec, Fd, FsOption, IdMaps, Make, Node, Op, Plan, Rlimit, SLOTS, Sched, Step, cstr,
};
