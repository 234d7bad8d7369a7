//! Builds the guest of `cortend demo`: a small static program, so that the demo needs no image from anywhere.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=guest/hello.rs");
    println!("cargo:rerun-if-changed=build.rs");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("hello");
    let rustc = env::var_os("RUSTC").expect("cargo sets RUSTC");
    let target = env::var("TARGET").expect("cargo sets TARGET");
    let status = Command::new(rustc)
        .args(["--edition=2024", "--crate-name=hello", "--crate-type=bin"])
        .args([
            "-Ctarget-feature=+crt-static",
            "-Copt-level=s",
            "-Cpanic=abort",
            "-Clto=fat",
        ])
        .args(["-Cstrip=symbols", "--target", &target, "-o"])
        .arg(&out)
        .arg("guest/hello.rs")
        .status()
        .expect("run rustc");
    assert!(status.success(), "the demo's guest does not compile");
}
