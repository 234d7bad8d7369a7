//! Looks for everything that a container may leave behind, and clears it away by force.
//!
//! The check of a test looks only at what carries the test's namespace (unique in the process), so
//! tests may run side by side; the check of a daemon runs when all its tests are over.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

use crate::daemon::Daemon;
use crate::peers::Kind;
use crate::process::{eventually, exits_within};

const CGROUPS: &str = "/sys/fs/cgroup";
/// Where the stock shim keeps runc's state, whatever the daemon's own state directory is.
const RUNC_STATE: &str = "/run/containerd/runc";
/// Where shims listen whose daemon names no other place.
const SOCKETS: &str = "/run/containerd/s";
const BUNDLES: &str = "io.containerd.runtime.v2.task";

/// What namespace `ns` has left on the machine: processes, mounts, cgroups, bundles, FIFOs, files.
#[must_use]
pub fn of_namespace(daemon: &Daemon, ns: &str, own: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for (pid, line) in processes_naming(ns) {
        found.push(format!("process {pid}: {line}"));
    }
    for mount in mounts_containing(&format!("/{ns}/")) {
        found.push(format!("mount {mount}"));
    }
    for cgroup in cgroups_named(ns) {
        found.extend(children(&cgroup, true).map(|p| format!("cgroup {}", p.display())));
    }
    let places = [
        ("bundle", daemon.state().join(BUNDLES).join(ns)),
        ("work directory", daemon.root().join(BUNDLES).join(ns)),
        ("runc state", Path::new(RUNC_STATE).join(ns)),
        ("fifo directory", own.join("fifo")),
        ("temporary file", own.join("tmp")),
    ];
    for (what, place) in places {
        found.extend(children(&place, false).map(|p| format!("{what} {}", p.display())));
    }
    found
}

/// What a daemon with no namespace left still holds.
#[must_use]
pub fn of_daemon(daemon: &Daemon) -> Vec<String> {
    let mut found = Vec::new();
    let base = daemon.base.to_str().expect("our own path is text");
    for (pid, line) in processes_naming(&format!("{base}/")) {
        if pid != daemon.pid() {
            found.push(format!("process {pid}: {line}"));
        }
    }
    found.extend(
        mounts_containing(base)
            .into_iter()
            .map(|m| format!("mount {m}")),
    );
    let places = [
        ("temporary file", daemon.base.join("t")),
        ("temporary mount", daemon.root().join("tmpmounts")),
        ("shim socket", daemon.state().join("s")),
        (
            "ingest",
            daemon
                .root()
                .join("io.containerd.content.v1.content/ingest"),
        ),
        (
            "blob",
            daemon
                .root()
                .join("io.containerd.content.v1.content/blobs/sha256"),
        ),
        (
            "snapshot",
            daemon
                .root()
                .join("io.containerd.snapshotter.v1.overlayfs/snapshots"),
        ),
        (
            "snapshot",
            daemon
                .root()
                .join("io.containerd.snapshotter.v1.native/snapshots"),
        ),
    ];
    for (what, place) in places {
        found.extend(children(&place, false).map(|p| format!("{what} {}", p.display())));
    }
    found
}

/// What a pod or container has left on the machine and in the daemon's folders, by its id.
#[must_use]
pub fn of_id(daemon: &Daemon, id: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (pid, line) in processes_naming(id) {
        found.push(format!("process {pid}: {line}"));
    }
    for mount in mounts_containing(id) {
        found.push(format!("mount {mount}"));
    }
    let named = |top: PathBuf| below(top, |name| name.contains(id));
    found.extend(
        named(CGROUPS.into())
            .iter()
            .map(|p| format!("cgroup {}", p.display())),
    );
    for place in [daemon.root(), daemon.state(), daemon.base.join("t")] {
        found.extend(named(place).iter().map(|p| format!("file {}", p.display())));
    }
    found
}

/// What all daemons share and none may add to. Of runc's state only what namespaces of this process have there: programs
/// may run side by side.
#[must_use]
pub fn shared_places() -> BTreeSet<PathBuf> {
    let ours = format!("cit{}x", std::process::id());
    let state = children(Path::new(RUNC_STATE), true)
        .filter(|p| p.to_string_lossy().contains(&ours))
        .collect();
    [
        "/run/containerd/fifo",
        SOCKETS,
        "/run/netns",
        "/run/docker/netns",
    ]
    .iter()
    .map(|place| children(Path::new(place), false).collect::<Vec<_>>())
    .chain([state])
    .flatten()
    .collect()
}

/// What is in those places that was not `before`. Of it goes what nobody uses: sockets without a listener, as killed stock
/// shims leave them, and runc's state.
#[must_use]
pub fn clear_shared_places(before: &BTreeSet<PathBuf>) -> Vec<String> {
    let mut found = Vec::new();
    for place in shared_places().difference(before) {
        if place.starts_with(SOCKETS) && is_dead(place) {
            let _ = fs::remove_file(place);
            if Kind::under_test() != Kind::Corten {
                continue;
            }
        }
        if place.starts_with(RUNC_STATE) {
            let _ = fs::remove_dir_all(place);
        }
        found.push(format!("file {}", place.display()));
    }
    found
}

fn is_dead(socket: &Path) -> bool {
    UnixStream::connect(socket).is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused)
}

/// Removes runc's folder of a namespace, which it leaves when its last container goes.
pub fn remove_runc_state(ns: &str) {
    let _ = fs::remove_dir_all(Path::new(RUNC_STATE).join(ns));
}

/// Waits for `look` to find nothing; gives what it still finds when time is up.
pub fn settle(within: Duration, look: impl Fn() -> Vec<String>) -> Vec<String> {
    let mut last = Vec::new();
    let _ = eventually(within, || {
        last = look();
        last.is_empty().then_some(())
    });
    last
}

/// Kills, by pid, every process of namespace `ns` and removes its mounts, cgroups and runc state.
pub fn clear_namespace(ns: &str) {
    for cgroup in cgroups_named(ns) {
        kill_members(&cgroup);
    }
    for (pid, _) in processes_naming(ns) {
        kill_and_wait(pid);
    }
    unmount_under(&format!("/{ns}/"));
    for cgroup in cgroups_named(ns) {
        remove_cgroup(&cgroup);
    }
    remove_runc_state(ns);
}

/// Kills what a daemon's directory names on its command line, unmounts below it and removes it.
pub fn clear_away(base: &Path) {
    let text = base.to_str().expect("our own path is text");
    for entry in children(&base.join("n"), false) {
        if let Some(ns) = entry.file_name().and_then(|n| n.to_str()) {
            clear_namespace(ns);
        }
    }
    for (pid, _) in processes_naming(&format!("{text}/")) {
        kill_and_wait(pid);
    }
    unmount_under(text);
    let _ = fs::remove_dir_all(base);
}

/// Processes with `word` on their command line, other than ourselves.
#[must_use]
pub fn processes_naming(word: &str) -> Vec<(u32, String)> {
    let mut found = Vec::new();
    for entry in children(Path::new("/proc"), true) {
        let Some(pid) = entry
            .file_name()
            .and_then(|n| n.to_str()?.parse::<u32>().ok())
        else {
            continue;
        };
        let Ok(bytes) = fs::read(entry.join("cmdline")) else {
            continue;
        };
        let line = String::from_utf8_lossy(&bytes).replace('\0', " ");
        if line.contains(word) && pid != std::process::id() {
            found.push((pid, line));
        }
    }
    found
}

fn kill_and_wait(pid: u32) {
    if let Some(raw) = Pid::from_raw(pid.cast_signed()) {
        let _ = kill_process(raw, Signal::KILL);
        let _ = exits_within(pid, Duration::from_secs(3));
    }
}

fn mounts_containing(part: &str) -> Vec<String> {
    fs::read_to_string("/proc/self/mountinfo")
        .unwrap_or_default()
        .lines()
        .filter_map(|l| l.split(' ').nth(4))
        .filter(|point| point.contains(part))
        .map(str::to_owned)
        .collect()
}

fn unmount_under(part: &str) {
    // The latest mount first: it may sit on an earlier one.
    for point in mounts_containing(part).iter().rev() {
        let _ = unmount(point.as_str(), UnmountFlags::DETACH);
    }
}

/// Every cgroup directory called `ns`, in every hierarchy and at any depth.
fn cgroups_named(ns: &str) -> Vec<PathBuf> {
    below(CGROUPS.into(), |name| name == ns)
}

/// Every directory below `top`, at any depth, whose name is `wanted`; not what is in it.
fn below(top: PathBuf, wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![top];
    while let Some(dir) = open.pop() {
        for child in children(&dir, true) {
            let name = child.file_name().and_then(|n| n.to_str());
            if name.is_some_and(&wanted) {
                found.push(child);
            } else {
                open.push(child);
            }
        }
    }
    found
}

fn kill_members(cgroup: &Path) {
    for child in children(cgroup, true) {
        kill_members(&child);
    }
    // A frozen or paused process does not die before it is thawed.
    let _ = fs::write(cgroup.join("freezer.state"), "THAWED");
    let _ = fs::write(cgroup.join("cgroup.freeze"), "0");
    for pid in fs::read_to_string(cgroup.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
    {
        if let Ok(pid) = pid.parse() {
            kill_and_wait(pid);
        }
    }
}

fn remove_cgroup(cgroup: &Path) {
    for child in children(cgroup, true) {
        remove_cgroup(&child);
    }
    let _ = fs::remove_dir(cgroup);
}

/// Removes the cgroup of a namespace, which daemons leave when its last container goes.
pub fn remove_namespace_cgroups(ns: &str) {
    for cgroup in cgroups_named(ns) {
        remove_cgroup(&cgroup);
    }
}

fn children(dir: &Path, directories: bool) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter(move |e| !directories || e.file_type().is_ok_and(|t| t.is_dir()))
        .map(|e| e.path())
}
