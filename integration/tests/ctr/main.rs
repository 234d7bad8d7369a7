//! What users see through `ctr`, as tests that stock containerd passes as well.
//!
//! A file is a subject, a test a sentence. Facts that hold for Corten alone are guarded by
//! `is_reference()` and say so in the output.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "test code")]

mod containers;
mod content;
mod daemon;
mod errors;
mod events;
mod images;
mod limits;
mod matrix;
mod parallel;
mod pull;
mod restart;
mod run;
mod security;
mod snapshots;
mod tasks;
mod terminal;

use std::process::ExitCode;

fn main() -> ExitCode {
    corten_integration::runner::run(vec![
        ("images", images::tests()),
        ("pull", pull::tests()),
        ("content", content::tests()),
        ("snapshots", snapshots::tests()),
        ("run", run::tests()),
        ("limits", limits::tests()),
        ("security", security::tests()),
        ("terminal", terminal::tests()),
        ("tasks", tasks::tests()),
        ("containers", containers::tests()),
        ("events", events::tests()),
        ("errors", errors::tests()),
        ("daemon", daemon::tests()),
        ("restart", restart::tests()),
        ("parallel", parallel::tests()),
        ("matrix", matrix::tests()),
    ])
}
