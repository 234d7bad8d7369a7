//! containerd-shim-corten-v2: the process beside each pod, runtime `io.containerd.corten.v2`.
//!
//! It is shim and OCI runtime in one: it answers containerd's task API on a unix socket, makes namespaces, mounts,
//! cgroups and processes in-process (corten-oci plans, corten-launch executes), carries stdio, and outlives daemons.
//!
//! - **One thread.** State lives in `Rc`s behind short `RefCell` borrows and is touched by local tasks only; there are
//!   no locks to order and the engine may clone at any time. Nothing here may use tokio's blocking pool.
//! - **RPCs are messages.** The ttrpc crate drops a handler at its await point when a connection goes away; so a handler
//!   only forwards the request to a local task of its own, which always runs to its end (`service`).
//! - **Own shell instead of the containerd-shim crate.** That crate answers task v3 only (no 1.6/1.7 daemons), reaps with
//!   `waitpid(-1)`, changes directories in mounts, has no hook for a second service, and brings 190 crates; what it would
//!   save is `flags`, `bootstrap` and `events`. The ttrpc crate itself carries the protocol.
//! - **Disk before word.** exit.json and init.pid are written before the event that announces them.

#![cfg_attr(fuzzing, no_main)]

mod bootstrap;
mod bundle;
mod cleanup;
mod criu;
mod engine;
mod error;
mod events;
mod flags;
#[cfg(fuzzing)]
#[path = "../../integration/fuzz/shim.rs"]
mod fuzz;
mod hooks;
mod idmap;
mod info;
mod io;
mod log;
mod oom;
mod options;
mod readiness;
mod reaper;
mod rootfs;
mod sandbox;
mod server;
mod service;
mod socket;
mod stats;
mod systemd;
mod task;

use std::io::Write;
use std::process::ExitCode;

use flags::{Action, Flags};

fn main() -> ExitCode {
    let outcome = Flags::parse(std::env::args().skip(1)).and_then(|flags| run(&flags));
    match outcome {
        Ok(answer) => match std::io::stdout().write_all(&answer) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        Err(text) => {
            // The daemon shows what `start` and `delete` leave on stderr.
            let _ = writeln!(std::io::stderr(), "{}: {text}", info::NAME);
            ExitCode::FAILURE
        }
    }
}

/// Does what the flags ask for; the bytes are the answer on stdout.
fn run(flags: &Flags) -> Result<Vec<u8>, String> {
    match flags.action {
        Action::Version => Ok(info::version().into_bytes()),
        Action::Info => info::runtime_info(),
        Action::Start => bootstrap::start(flags).map_err(|e| e.to_string()),
        Action::Delete => cleanup::delete(flags).map_err(|e| e.to_string()),
        Action::Serve => server::serve(flags)
            .map(|()| Vec::new())
            .map_err(|e| e.to_string()),
    }
}
