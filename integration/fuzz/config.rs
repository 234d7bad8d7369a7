//! Fuzz target: any bytes as config.json, planned as a container, an exec in it, and a pod's holder; as resources; as
//! the text of a systemd property. Errors are fine; a panic or an overflow is a finding.
#![no_main]

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::OnceLock;

use corten_oci::{
    Cgroup, ExecParams, InitParams, Process, Resources, Spec, Stdio, cgroup, plan_exec,
    plan_holder, plan_init,
};
use libfuzzer_sys::fuzz_target;

/// In no hierarchy: this process shares its cgroup with itself.
fn cgroup() -> &'static Cgroup {
    static CGROUP: OnceLock<Cgroup> = OnceLock::new();
    CGROUP.get_or_init(|| Cgroup::of(own_pid()).expect("procfs is mounted"))
}

fn own_pid() -> i32 {
    i32::try_from(std::process::id()).expect("pids are small")
}

fuzz_target!(|bytes: &[u8]| {
    if let Ok(resources) = Resources::parse(bytes) {
        let _ = cgroup().update(&resources);
        let _ = cgroup::systemd::postponed(&resources);
    }
    if let Ok(process) = Process::parse(bytes) {
        exec(&Spec::default(), &process);
    }
    let Ok(mut spec) = Spec::parse(bytes) else {
        return;
    };
    // Another root could be any directory of this machine, slow ones too.
    if let Some(root) = &mut spec.root {
        "/nowhere".clone_into(&mut root.path);
        if Path::new(ROOT).exists() {
            ROOT.clone_into(&mut root.path);
        }
    }
    for systemd in [false, true] {
        let _ = Cgroup::open(&spec, "fuzz", &cgroup::Options { systemd });
    }
    if let Ok(scope) = cgroup::systemd::Scope::of(&spec, "fuzz") {
        let none = Resources::default();
        let resources = spec.linux.resources.as_ref().unwrap_or(&none);
        if let Ok(call) = scope.start(resources, 1, 252) {
            call.encode(1);
        }
    }
    let _ = plan_init(
        &spec,
        InitParams {
            id: "fuzz",
            bundle: Path::new(ROOT),
            stdio: Stdio::Null,
            cgroup: cgroup(),
            no_pivot_root: false,
            no_new_keyring: false,
            cache: None,
        },
    );
    let _ = plan_holder(&spec, None, None);
    if let Some(process) = &spec.process {
        exec(&spec, process);
    }
});

/// Empty, and there: see run.sh.
const ROOT: &str = "/tmp/corten-fuzz-root";

fn exec(spec: &Spec, process: &Process) {
    let pid = rustix::process::getpid();
    let Ok(own) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else {
        return;
    };
    let _ = plan_exec(
        spec,
        process,
        ExecParams {
            id: "fuzz",
            init_pid: own_pid(),
            init_pidfd: own.as_fd(),
            stdio: Stdio::Null,
            cgroup: cgroup(),
            no_new_keyring: false,
            cache: None,
        },
    );
}
