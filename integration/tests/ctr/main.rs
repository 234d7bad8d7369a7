//! What users see through `ctr`, as tests that stock containerd passes as well.
//!
//! A file is a subject, a test a sentence. Facts that hold for Corten alone are guarded by
//! `is_reference()` and say so in the output.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "test code")]

mod archives;
mod checkpoint;
mod commands;
mod config;
mod containers;
mod content;
mod corners;
mod daemon;
mod drop_in;
mod errors;
mod events;
mod grpc;
mod images;
mod kernel;
mod limits;
mod matrix;
mod parallel;
mod plugins;
mod policy;
mod pull;
mod registries;
mod reliability;
mod restart;
mod run;
mod security;
mod snapshots;
mod spec;
mod tasks;
mod terminal;
mod traces;
mod verify;

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|a| a == grpc::shim::WORD) {
        return grpc::shim::main(&args[1..]);
    }
    corten_integration::runner::run(vec![
        ("commands", commands::tests()),
        ("images", images::tests()),
        ("archives", archives::tests()),
        ("pull", pull::tests()),
        ("registries", registries::tests()),
        ("content", content::tests()),
        ("snapshots", snapshots::tests()),
        ("run", run::tests()),
        ("spec", spec::tests()),
        ("limits", limits::tests()),
        ("security", security::tests()),
        ("kernel", kernel::tests()),
        ("terminal", terminal::tests()),
        ("tasks", tasks::tests()),
        ("checkpoint", checkpoint::tests()),
        ("containers", containers::tests()),
        ("events", events::tests()),
        ("corners", corners::tests()),
        ("errors", errors::tests()),
        ("daemon", daemon::tests()),
        ("plugins", plugins::tests()),
        ("config", config::tests()),
        ("drop_in", drop_in::tests()),
        ("verify", verify::tests()),
        ("traces", traces::tests()),
        ("restart", restart::tests()),
        ("policy", policy::tests()),
        ("parallel", parallel::tests()),
        ("reliability", reliability::tests()),
        ("matrix", matrix::tests()),
        ("grpc", grpc::tests()),
    ])
}
