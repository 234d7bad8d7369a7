//! What runs inside the demo's container: says where it finds itself, and exits with the code it is given.

use std::fs;

fn main() {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        status
            .lines()
            .find_map(|l| l.strip_prefix(name))
            .map_or(String::new(), |v| v.trim().replace('\t', " "))
    };
    let hostname = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    println!("hello from pid {} on host {}", std::process::id(), hostname.trim());
    println!("uid/gid      {} / {}", field("Uid:"), field("Gid:"));
    println!("capabilities {} effective, no_new_privs {}, seccomp {}", field("CapEff:"), field("NoNewPrivs:"), field("Seccomp:"));
    for name in ["mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        if let Ok(link) = fs::read_link(format!("/proc/self/ns/{name}")) {
            println!("namespace    {}", link.display());
        }
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let root = mounts
        .lines()
        .find(|l| l.split(' ').nth(4) == Some("/"))
        .and_then(|l| l.split(" - ").nth(1))
        .unwrap_or_default();
    println!("root         {} ({} mounts)", root.split(' ').next().unwrap_or_default(), mounts.lines().count());
    let processes = fs::read_dir("/proc").map_or(0, |d| {
        d.filter_map(Result::ok)
            .filter(|e| e.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit()))
            .count()
    });
    println!("processes    {processes} visible");
    let code = std::env::args().nth(1).and_then(|a| a.parse().ok()).unwrap_or(0);
    std::process::exit(code);
}
