//! Shims that speak gRPC with their daemon. There is none to be had, so one is here: the test program itself, called
//! by another name. It runs what its container asks for on the machine, without a container.
//!
//! Stock containerd 2.4.2 means to speak gRPC with shims, and cannot: it takes the connection that it has just made,
//! which is idle, for one that has ended, and deletes the shim (`grpcDialContext` in its core/runtime/v2/shim.go).

#[path = "grpc/shim.rs"]
pub(crate) mod shim;

use std::path::Path;

use corten_integration::case::Case;
use corten_integration::process::{Cmd, exits_within, program};
use corten_integration::runner::Test;
use corten_integration::tests;
use rustix::process::{Pid, Signal, kill_process};

pub(crate) fn tests() -> Vec<Test> {
    let mut all = tests![hands_on_output_and_exit_code, tells_what_the_shim_refuses];
    let own = tests![
        is_found_again_after_a_restart,
        is_cleaned_up_when_it_was_killed
    ];
    all.extend(own.into_iter().map(Test::quiet_daemon));
    all
}

/// Whether the daemon under test can have such shims at all.
fn speaks_grpc(c: &Case) -> bool {
    if c.is_reference() {
        println!("    stock containerd 2.4.2 takes an idle gRPC connection for a lost one");
    }
    !c.is_reference()
}

/// The same program, with a word before the shim's own arguments.
fn make_shim(path: &Path) {
    let this = std::env::current_exe().unwrap();
    let text = format!(
        "#!/bin/sh\nexec '{}' {} \"$@\"\n",
        this.display(),
        shim::WORD
    );
    program(path, &text);
}

fn run(c: &Case, flags: &str, id: &str, argv: &[&str]) -> Cmd {
    let path = c.dir.join("containerd-shim-grpc-v1");
    if !path.exists() {
        make_shim(&path);
    }
    c.run(&format!("{flags} --runtime {}", path.display()), id, argv)
}

fn hands_on_output_and_exit_code(c: &Case) {
    if !speaks_grpc(c) {
        return;
    }
    let done = run(c, "--rm", "a", &["sh", "-c", "echo over gRPC; exit 7"]).run();
    assert_eq!(done.code(), 7, "{}", done.report());
    assert_eq!(done.out(), "over gRPC\n", "{}", done.report());
}

fn tells_what_the_shim_refuses(c: &Case) {
    if !speaks_grpc(c) {
        return;
    }
    run(c, "-d --null-io", "a", &["sleep", "1000"]).ok();
    assert_eq!(c.status("a").as_deref(), Some("RUNNING"));
    c.ctr("task pause a").fails("nobody pauses here");
    c.ctr("task kill -s SIGKILL a").ok();
    c.wait_stopped("a");
    c.remove("a");
}

fn is_found_again_after_a_restart(c: &Case) {
    if !speaks_grpc(c) {
        return;
    }
    run(c, "-d --null-io", "a", &["sleep", "1000"]).ok();
    let pid = c.pid("a");
    c.daemon.crash_and_restart();
    assert_eq!(c.pid("a"), pid);
    assert_eq!(c.status("a").as_deref(), Some("RUNNING"));
    c.ctr("task kill -s SIGTERM a").ok();
    c.wait_stopped("a");
    let done = c.ctr("task delete a").run();
    assert!(
        done.err().contains("143") || done.code() == 143,
        "{}",
        done.report()
    );
    c.ctr("containers rm a").ok();
}

fn is_cleaned_up_when_it_was_killed(c: &Case) {
    if !speaks_grpc(c) {
        return;
    }
    run(c, "-d --null-io", "a", &["sleep", "1000"]).ok();
    let mut events = c.events();
    let pid = c.pid("a");
    let shim = Pid::from_raw(shim::parent(pid).cast_signed()).unwrap();
    kill_process(shim, Signal::KILL).unwrap();
    events.wait_output("/tasks/exit");
    assert!(
        exits_within(pid, corten_integration::process::DEADLINE),
        "`delete` ends it"
    );
    assert_eq!(c.status("a"), None);
    c.ctr("containers rm a").ok();
}
