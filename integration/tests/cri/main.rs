//! What the kubelet and crictl see of the CRI: every RPC, the streams, the limits, and what hostile images and requests
//! get. Stock containerd passes the same tests (`CORTEN_UNDER_TEST=reference`); where it differs, the test says so.
//!
//! Each test has pods of its own, most of them on one daemon; [`machine`] is where they run.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "test code"
)]

mod apparmor;
mod classes;
mod containers;
mod cri;
mod handlers;
mod images;
mod info;
mod limits;
mod machine;
mod metrics;
mod networks;
mod pods;
mod runner;
mod secrecy;
mod streams;

mod hostile_images;
mod hostile_layers;
mod hostile_messages;
mod hostile_networks;
mod hostile_requests;

use std::process::ExitCode;

fn main() -> ExitCode {
    runner::run(vec![
        ("info", info::tests()),
        ("images", images::tests()),
        ("pods", pods::tests()),
        ("apparmor", apparmor::tests()),
        ("networks", networks::tests()),
        ("handlers", handlers::tests()),
        ("classes", classes::tests()),
        ("containers", containers::tests()),
        ("metrics", metrics::tests()),
        ("streams", streams::tests()),
        ("limits", limits::tests()),
        ("secrecy", secrecy::tests()),
        ("hostile_images", hostile_images::tests()),
        ("hostile_layers", hostile_layers::tests()),
        ("hostile_requests", hostile_requests::tests()),
        ("hostile_networks", hostile_networks::tests()),
        ("hostile_messages", hostile_messages::tests()),
    ])
}
