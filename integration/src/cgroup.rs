//! Reads the cgroup settings of a process, whichever cgroup version holds them on this host.

use std::fs;
use std::path::{Path, PathBuf};

/// The cgroup directory of `pid` for a controller, and whether it is a v2 one.
#[must_use]
pub fn directory(pid: u32, controller: &str) -> (PathBuf, bool) {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("the process lives");
    let root = Path::new("/sys/fs/cgroup");
    for line in text.lines() {
        let mut fields = line.splitn(3, ':');
        let (_, names, path) = (fields.next(), fields.next(), fields.next());
        let path = path.unwrap_or_default().trim_start_matches('/');
        if names.is_some_and(|n| n.split(',').any(|name| name == controller)) {
            return (root.join(controller).join(path), false);
        }
    }
    let unified = text
        .lines()
        .find_map(|l| l.strip_prefix("0::/"))
        .expect("a v2 hierarchy");
    (root.join(unified), true)
}

/// A setting of `pid`'s cgroup: `v1` is `controller/file`, `v2` the file's name there.
#[must_use]
pub fn setting(pid: u32, v1: &str, v2: &str) -> String {
    let (controller, file) = v1.split_once('/').expect("controller/file");
    let (dir, is_v2) = directory(pid, controller);
    let path = dir.join(if is_v2 { v2 } else { file });
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.trim().to_owned()
}

/// A line `key: value` of /proc/<pid>/status.
#[must_use]
pub fn status_of(pid: u32, key: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix(key)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {key} in the status of {pid}"))
        .trim()
        .to_owned()
}
