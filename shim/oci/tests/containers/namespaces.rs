//! Cases about namespaces that are new, joined, or of another user.

use crate::common::{Container, Outcome, check, exec_with, output, skip, spec};
use serde_json::json;
use std::process::Command;

fn userns(s: &mut serde_json::Value) {
    s["linux"]["namespaces"]
        .as_array_mut()
        .expect("list")
        .push(json!({"type": "user"}));
    for key in ["uidMappings", "gidMappings"] {
        s["linux"][key] = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    }
}

pub(crate) fn user_namespace() {
    let mut s = spec(
        "id -u; cat /proc/self/uid_map | awk '{print $2}'; echo x > /dev/null && echo null; touch /tmp/f && stat -c %u /tmp/f; cat /proc/self/oom_score_adj",
    );
    userns(&mut s);
    s["process"]["oomScoreAdj"] = json!(5);
    let own = |root: &std::path::Path| {
        for dir in ["tmp", "dev", "proc", "sys", "etc", "."] {
            let path = root.join(dir);
            let _ = std::fs::create_dir_all(&path);
            std::os::unix::fs::chown(&path, Some(100_000), Some(100_000)).expect("chown");
        }
    };
    let c = Container::prepared(s, own);
    let o = c.finish();
    assert_eq!(o.stdout, "0\n100000\nnull\n0\n5\n", "{o:?}");
    // The host's node of that path is another device.
    let mut s = spec("true");
    userns(&mut s);
    s["linux"]["devices"] = json!([{"path": "/dev/zero", "type": "c", "major": 1, "minor": 3}]);
    let Outcome::Failed(f) = Container::prepared(s, own).start() else {
        panic!("another device was bound")
    };
    assert!(f.text.contains("bind device /dev/zero 1:3"), "{f:?}");
}

pub(crate) fn joined_namespaces() {
    let mut a = spec("sleep 30");
    a["hostname"] = json!("pod");
    userns(&mut a);
    let own = |root: &std::path::Path| {
        for dir in ["tmp", "dev", "proc", "sys", "etc", "."] {
            let _ = std::fs::create_dir_all(root.join(dir));
            std::os::unix::fs::chown(root.join(dir), Some(100_000), Some(100_000)).expect("chown");
        }
    };
    let mut c = Container::prepared(a, own);
    let mut p = c.running();
    let pid = p.pid();
    let path = |ns: &str| format!("/proc/{pid}/ns/{ns}");
    // A pod's second container: same user, uts, net, ipc; own pid and mount.
    let mut s = spec("hostname; id -u; echo $$; cat /proc/1/comm");
    s["linux"]["namespaces"] = json!([
        {"type": "pid"}, {"type": "mount"}, {"type": "user", "path": path("user")},
        {"type": "uts", "path": path("uts")}, {"type": "ipc", "path": path("ipc")},
        {"type": "network", "path": path("net")},
    ]);
    for key in ["uidMappings", "gidMappings"] {
        s["linux"][key] = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    }
    let o = Container::prepared(s, own).finish();
    assert_eq!(o.stdout, "pod\n0\n1\ncat\n", "{o:?}");
    // Shared pid namespace.
    let mut s = spec("cat /proc/1/comm; test $$ -gt 1 && echo later");
    s["linux"]["namespaces"] = json!([{"type": "pid", "path": path("pid")}, {"type": "mount"}]);
    let o = output(s);
    assert_eq!(o.stdout, "sleep\nlater\n", "{o:?}");
    // With a user namespace of its own: the numbers in the shared pid namespace are not ours.
    let mut s =
        spec("id -u; cat /proc/self/uid_map | awk '{print $2}'; test $$ -gt 1 && echo later");
    s["linux"]["namespaces"] = json!([
        {"type": "pid", "path": path("pid")}, {"type": "uts", "path": path("uts")},
        {"type": "mount"},
    ]);
    s["mounts"] =
        json!([{"destination": "/proc", "type": "bind", "source": "/proc", "options": ["rbind"]}]);
    userns(&mut s);
    let o = Container::prepared(s, own).finish();
    assert_eq!(o.stdout, "0\n100000\nlater\n", "{o:?}");
    let (code, out, err) = exec_with(&c, &p, "id -u; hostname; echo $$", |_| {});
    assert_eq!(
        (code, out.lines().take(2).collect::<Vec<_>>()),
        (0, vec!["0", "pod"]),
        "{err}"
    );
    p.kill().expect("kill");
    check::exit(&mut p);
    c.clean();
}

pub(crate) fn time_namespace() {
    let mut s = spec("cut -d. -f1 /proc/uptime");
    s["linux"]["namespaces"]
        .as_array_mut()
        .expect("list")
        .push(json!({"type": "time"}));
    s["linux"]["timeOffsets"] = json!({"boottime": {"secs": 1_000_000_000, "nanosecs": 0}});
    let o = output(s);
    assert!(
        o.stdout
            .trim()
            .parse::<u64>()
            .is_ok_and(|n| n >= 1_000_000_000),
        "{o:?}"
    );
    let own = std::fs::read_to_string("/proc/uptime").expect("uptime");
    assert!(
        own.split('.')
            .next()
            .and_then(|n| n.parse::<u64>().ok())
            .is_some_and(|n| n < 1_000_000_000)
    );
}

/// On most hosts `/` is shared, and every mount with it; where these cases run it need not be. pivot_root(2) refuses a
/// root whose mount is shared, however it came to be.
pub(crate) fn on_a_shared_root() {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let root = |l: &&str| l.split(' ').nth(4) == Some("/");
    if mounts.lines().filter(root).any(|l| l.contains(" shared:")) {
        return skip("a shared root", "all cases here have one");
    }
    let own = std::env::current_exe().expect("this program has a path");
    for case in [
        "basics",
        "user_namespace",
        "joined_namespaces",
        "idmapped_bind",
    ] {
        let mut again = Command::new("unshare");
        again.args(["-m", "--propagation", "shared"]).arg(&own);
        let done = again.arg(case).output().expect("run unshare(1)");
        let text = String::from_utf8_lossy(&done.stdout);
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(
            done.status.success() && text.ends_with("ok\n"),
            "{case}: {}: {text}{said}",
            done.status
        );
    }
}
