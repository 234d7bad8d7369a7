//! cortend: the daemon. Arguments, then config, then boot, then serve, then drain.
//!
//! It knows every plugin (see `builtins`) and is known by none. `main` is the only place that ends the process.

mod boot;
mod builtins;
mod check;
mod cli;
mod config;
mod demo;
mod hook;
mod host;
mod manual;
mod publish;
mod server;

use std::process::ExitCode;

fn main() -> ExitCode {
    // A client that goes away must show up as EPIPE, and rustls wants its provider named once.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    match cli::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "the last word of a program that fails")]
            {
                eprintln!("cortend: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}
