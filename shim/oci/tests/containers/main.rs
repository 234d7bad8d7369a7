//! Starts real containers: root only, from a busybox rootfs in a temporary folder.
//!
//! No test harness: the engine wants a process with one thread. Each case is a function; what cannot
//! run on a host is printed with its reason. `containers FILTER` runs the cases whose name contains it.

#![allow(
    clippy::print_stdout,
    reason = "a test program without harness reports itself"
)]

mod cgroups;
mod common;
mod filesystem;
mod namespaces;
mod process;
mod rarities;

type Case = (&'static str, fn());

const CASES: &[Case] = &[
    ("basics", process::basics),
    ("hello_exit_code", process::exit_codes),
    ("mounts_and_masks", filesystem::mounts_and_masks),
    ("identity_and_caps", process::identity_and_caps),
    ("no_new_privs_and_rlimits", process::limits),
    ("seccomp", process::seccomp),
    ("missing_executables", process::missing_executables),
    ("cwd_made_and_confined", filesystem::cwd),
    ("hostile_links", filesystem::hostile_links),
    ("descriptors_do_not_leak", process::descriptors),
    ("binds", filesystem::binds),
    ("readonly_root", filesystem::readonly_root),
    ("device_owner_and_mode", filesystem::device_owner),
    ("exec", process::exec),
    ("terminal", process::terminal),
    ("hooks", process::hooks),
    ("start_hook_is_confined", process::start_hook),
    ("cgroup_limits", cgroups::cgroup_limits),
    ("foreign_cgroup", cgroups::foreign),
    ("bare_document", cgroups::bare_document),
    ("freeze", cgroups::freeze),
    ("oom", cgroups::oom),
    ("user_namespace", namespaces::user_namespace),
    ("joined_namespaces", namespaces::joined_namespaces),
    ("time_namespace", namespaces::time_namespace),
    ("on_a_shared_root", namespaces::on_a_shared_root),
    ("no_pivot", filesystem::no_pivot),
    ("host_pid_namespace_kill", cgroups::host_pid_kill),
    ("killed_at_the_gate", process::killed_at_gate),
    ("idmapped_bind", filesystem::idmapped_bind),
    ("cgroup_mount", filesystem::cgroup_mount),
    ("swapped_mount_target", filesystem::swapped_target),
    ("propagation", filesystem::propagation),
    ("v2_device_rules", cgroups::v2_devices),
    ("sealed_exe", process::sealed_exe),
    ("tmpcopyup", rarities::tmpcopyup),
    ("readonly_dev", rarities::readonly_dev),
    ("nothing_beneath_a_moved_root", rarities::beneath),
    ("home", rarities::home),
    ("seccomp_listener", rarities::seccomp_listener),
    ("net_devices", rarities::net_devices),
    ("scheduling", rarities::scheduling),
    ("exec_affinity", rarities::exec_affinity),
    ("hybrid_hugepages", rarities::hybrid_hugepages),
    ("any_signal", rarities::any_signal),
    ("keyring", rarities::keyring),
    ("speed", cgroups::speed),
];

fn main() {
    if !rustix_is_root() {
        println!("skipped: needs root");
        return;
    }
    let filter = std::env::args()
        .skip(1)
        .find(|a| !a.starts_with('-'))
        .unwrap_or_default();
    let before = common::Leaks::now();
    for (name, case) in CASES.iter().filter(|(name, _)| name.contains(&filter)) {
        println!("case {name}");
        case();
    }
    before.check();
    println!("ok");
}

fn rustix_is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0)
}
