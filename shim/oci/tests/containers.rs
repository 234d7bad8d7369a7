//! Starts real containers: root only, from a busybox rootfs in a temporary folder.
//!
//! No test harness: the engine wants a process with one thread. Each case is a function; what cannot
//! run on a host is printed with its reason. `containers FILTER` runs the cases whose name contains it.

mod common;

use common::{Container, Outcome, check, exec_with, output, skip, spec};
use corten_launch::{Kind, Status};
use corten_oci::Stdio;
use serde_json::json;
use std::os::unix::fs::{PermissionsExt, symlink};

type Case = (&'static str, fn());

const CASES: &[Case] = &[
    ("basics", basics),
    ("hello_exit_code", exit_codes),
    ("mounts_and_masks", mounts_and_masks),
    ("identity_and_caps", identity_and_caps),
    ("no_new_privs_and_rlimits", limits),
    ("seccomp", seccomp),
    ("missing_executables", missing_executables),
    ("cwd_made_and_confined", cwd),
    ("hostile_links", hostile_links),
    ("descriptors_do_not_leak", descriptors),
    ("binds", binds),
    ("readonly_root", readonly_root),
    ("exec", exec),
    ("terminal", terminal),
    ("hooks", hooks),
    ("cgroup_limits", cgroup_limits),
    ("freeze", freeze),
    ("oom", oom),
    ("user_namespace", user_namespace),
    ("joined_namespaces", joined_namespaces),
    ("time_namespace", time_namespace),
    ("no_pivot", no_pivot),
    ("host_pid_namespace_kill", host_pid_kill),
    ("killed_at_the_gate", killed_at_gate),
    ("idmapped_bind", idmapped_bind),
    ("cgroup_mount", cgroup_mount),
    ("speed", speed),
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

fn basics() {
    let mut s =
        spec("echo $$; hostname; cat /proc/1/comm; pwd; echo $HOME; ls /proc/self/fd | wc -l");
    s["hostname"] = json!("box");
    let o = output(s);
    assert_eq!(o.stdout, "1\nbox\nsh\n/\n/root\n4\n", "{}", o.stderr);
    assert_eq!(o.code, 0);
}

fn exit_codes() {
    assert_eq!(output(spec("exit 7")).code, 7);
    assert_eq!(output(spec("(sleep 0.02; true); exit 0")).code, 0);
    let mut s = spec("kill -9 $$; sleep 5");
    s["linux"]["namespaces"] = json!([{"type": "mount"}]);
    assert_eq!(output(s).code, 137);
}

fn mounts_and_masks() {
    let mut s = spec(
        "cat /proc/mounts | cut -d' ' -f2 | sort | tr '\\n' ' '; echo; \
         wc -c < /proc/timer_list; ls /proc/tty | wc -l; ls /sys/firmware | wc -l; \
         echo 1 > /proc/sys/kernel/printk_delay || echo ro; touch /proc/tty/x || echo masked; \
         stat -c '%a %t:%T' /dev/null; readlink /dev/ptmx; readlink /dev/fd; echo x > /dev/shm/y && echo shm",
    );
    s["linux"]["maskedPaths"] =
        json!(["/proc/timer_list", "/proc/tty", "/sys/firmware", "/no/such"]);
    s["linux"]["readonlyPaths"] = json!(["/proc/sys", "/proc/bus", "/nope"]);
    let o = output(s);
    let lines: Vec<&str> = o.stdout.lines().collect();
    let mounts = lines.first().copied().unwrap_or_default();
    for m in [
        "/",
        "/proc",
        "/dev",
        "/dev/pts",
        "/dev/shm",
        "/dev/mqueue",
        "/sys",
        "/proc/timer_list",
        "/proc/sys",
    ] {
        assert!(
            mounts.split(' ').any(|x| x == m),
            "{m} missing in {mounts}: {}",
            o.stderr
        );
    }
    assert_eq!(&lines[1..4], ["0", "0", "0"], "{o:?}");
    assert_eq!(
        &lines[4..],
        [
            "ro",
            "masked",
            "666 1:3",
            "pts/ptmx",
            "/proc/self/fd",
            "shm"
        ],
        "{o:?}"
    );
    assert!(
        !mounts.contains("/sys/fs/cgroup/cpu"),
        "the host's mounts are visible: {mounts}"
    );
}

fn identity_and_caps() {
    let mut s = spec("id -u; id -g; id -G; grep ^Cap /proc/self/status; umask");
    s["process"]["user"] =
        json!({"uid": 1000, "gid": 1001, "additionalGids": [1001, 7], "umask": 63});
    s["process"]["capabilities"] = json!({
        "bounding": ["CAP_KILL", "CAP_NET_RAW", "CAP_FROM_THE_FUTURE"],
        "effective": ["CAP_KILL"], "permitted": ["CAP_KILL", "CAP_NET_RAW"],
        "inheritable": ["CAP_NET_RAW"], "ambient": ["CAP_NET_RAW"],
    });
    let o = output(s);
    assert_eq!(
        o.stdout,
        "1000\n1001\n1001 7\nCapInh:\t0000000000002000\nCapPrm:\t0000000000002000\n\
         CapEff:\t0000000000002000\nCapBnd:\t0000000000002020\nCapAmb:\t0000000000002000\n0077\n",
        "{}",
        o.stderr
    );
    assert!(
        o.warnings.iter().any(|w| w.contains("CAP_FROM_THE_FUTURE")),
        "{:?}",
        o.warnings
    );
    let o = output(spec("grep -E '^Cap(Inh|Amb|Bnd)' /proc/self/status"));
    assert_eq!(
        o.stdout,
        "CapInh:\t0000000000000000\nCapBnd:\t00000000a80425fb\nCapAmb:\t0000000000000000\n"
    );
}

fn limits() {
    let mut s = spec(
        "grep NoNewPrivs /proc/self/status; ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj",
    );
    s["process"]["noNewPrivileges"] = json!(true);
    s["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]);
    s["process"]["oomScoreAdj"] = json!(321);
    assert_eq!(output(s).stdout, "NoNewPrivs:\t1\n100\n200\n321\n");
    let mut s = spec("ulimit -n");
    s["process"]["rlimits"] =
        json!([{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 1_073_741_816u64}]);
    s["process"]["oomScoreAdj"] = json!(-999);
    let o = output(s);
    assert_eq!(o.stdout, "1024\n", "{o:?}");
    if o.warnings.len() < 2 {
        skip("clamping", "this host grants CAP_SYS_RESOURCE");
    }
}

fn seccomp() {
    for nnp in [true, false] {
        let mut s = spec("mkdir /tmp/x; echo $?; chmod 700 /tmp; echo $?; sync; echo alive");
        s["process"]["noNewPrivileges"] = json!(nnp);
        s["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            "syscalls": [
                {"names": ["mkdir", "mkdirat", "nonsense"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95},
                {"names": ["chmod", "fchmodat", "fchmodat2"], "action": "SCMP_ACT_ERRNO"},
            ],
        });
        let o = output(s);
        assert_eq!(o.stdout, "1\n1\nalive\n", "{o:?}");
        assert!(
            o.stderr.contains("not supported") && o.stderr.contains("not permitted"),
            "{o:?}"
        );
    }
}

fn missing_executables() {
    let fail = |args: serde_json::Value| {
        let mut s = spec("");
        s["process"]["args"] = args;
        let failure = match Container::new(s).start() {
            Outcome::Failed(f) => f,
            Outcome::Ready(mut p, _) => {
                p.open_gate().expect("gate");
                let status = p.wait_status().expect("status");
                check::exit(&mut p);
                let Status::Failed(f) = status else {
                    panic!("{status:?}")
                };
                f
            }
        };
        (failure.kind, failure.text)
    };
    let pre = "unable to start container process: ";
    assert_eq!(
        fail(json!(["foo"])),
        (
            Kind::NotFound,
            format!("{pre}exec: \"foo\": executable file not found in $PATH")
        )
    );
    assert_eq!(
        fail(json!(["/foo"])),
        (
            Kind::NotFound,
            format!("{pre}exec: \"/foo\": stat /foo: no such file or directory")
        )
    );
    assert_eq!(
        fail(json!(["/etc/passwd"])),
        (
            Kind::NotExecutable,
            format!("{pre}exec: \"/etc/passwd\": permission denied")
        )
    );
    assert_eq!(
        fail(json!(["/etc"])),
        (
            Kind::NotExecutable,
            format!("{pre}exec: \"/etc\": is a directory")
        )
    );
    let (kind, text) = fail(json!(["/bin/garbage"]));
    assert_eq!(
        (kind, text),
        (
            Kind::NotExecutable,
            format!("{pre}exec /bin/garbage: exec format error")
        )
    );
}

fn cwd() {
    let mut s = spec("pwd");
    s["process"]["cwd"] = json!("/made/on/the/way");
    assert_eq!(output(s).stdout, "/made/on/the/way\n");
    for n in 3..40 {
        for form in ["/proc/self/fd", "/proc/thread-self/fd", "/dev/fd"] {
            let mut s = spec("pwd");
            s["process"]["cwd"] = json!(format!("{form}/{n}"));
            let c = Container::new(s);
            match c.start() {
                Outcome::Failed(_) => {}
                Outcome::Ready(mut p, _) => {
                    panic!("cwd {form}/{n} accepted: {:?}", p.wait_status())
                }
            }
        }
    }
}

fn hostile_links() {
    // /proc and /sys as links must be refused, /dev must not lead outside.
    for name in ["proc", "sys", "dev"] {
        let victim = tempfile::tempdir().expect("victim");
        let c = Container::prepared(spec("true"), |root| {
            std::fs::remove_dir(root.join(name)).expect("rmdir");
            symlink(victim.path(), root.join(name)).expect("symlink");
        });
        match c.start() {
            Outcome::Failed(f) => assert_eq!(f.kind, Kind::Setup, "{f:?}"),
            Outcome::Ready(..) => panic!("/{name} may be a symlink"),
        }
        assert_eq!(
            std::fs::read_dir(victim.path()).expect("readable").count(),
            0
        );
    }
    // Mount targets and device paths that are links stay inside.
    let victim = tempfile::tempdir().expect("victim");
    let path = victim.path().display().to_string();
    let mut s = spec("echo here > /mnt/file; ls -d /tmp/corten-inside 2>/dev/null; true");
    s["mounts"].as_array_mut().expect("list").push(json!({
        "destination": "/mnt", "type": "tmpfs", "source": "tmpfs", "options": []}));
    let c = Container::prepared(s, |root| {
        symlink(format!("../../../..{path}"), root.join("mnt")).expect("symlink");
    });
    let o = c.finish();
    assert_eq!((o.code, o.stderr.as_str()), (0, ""), "{o:?}");
    assert_eq!(
        std::fs::read_dir(victim.path()).expect("readable").count(),
        0
    );
    // A /dev/null that is not the null device must not be used for masking.
    let mut s = spec("true");
    s["mounts"] = json!([{"destination": "/proc", "type": "proc", "source": "proc"}]);
    s["linux"]["maskedPaths"] = json!(["/proc/timer_list"]);
    let c = Container::prepared(s, |root| {
        std::fs::create_dir_all(root.join("dev")).expect("mkdir");
        symlink("/etc/passwd", root.join("dev/null")).expect("symlink");
    });
    assert!(matches!(c.start(), Outcome::Failed(_)));
}

fn descriptors() {
    let o = output(spec("for f in /proc/1/fd/*; do echo ${f##*/}; done"));
    // 10 is the shell's own script descriptor when it has one.
    let odd: Vec<&str> = o
        .stdout
        .lines()
        .filter(|l| !["0", "1", "2", "3", "10", "255"].contains(l))
        .collect();
    assert!(odd.is_empty(), "{odd:?}");
}

fn binds() {
    let dir = tempfile::tempdir().expect("temp dir");
    std::fs::write(dir.path().join("file"), "content").expect("write");
    let source = dir.path().display().to_string();
    let mut s = spec(
        "cat /data/file /etc/hosts; touch /data/x || echo ro; grep -E ' (/data|/rw) ' /proc/mounts | cut -d' ' -f4; touch /rw/y",
    );
    let list = s["mounts"].as_array_mut().expect("list");
    list.push(json!({"destination": "/data", "type": "bind", "source": source, "options": ["rbind", "ro", "nosuid", "rprivate"]}));
    list.push(json!({"destination": "/rw", "type": "none", "source": source, "options": ["bind", "rnoexec"]}));
    list.push(json!({"destination": "/etc/hosts", "type": "bind", "source": format!("{source}/file"), "options": ["bind"]}));
    let o = output(s);
    assert!(
        o.stdout.starts_with("contentcontentro\nro,nosuid,"),
        "{o:?}"
    );
    assert!(
        o.stdout
            .lines()
            .nth(2)
            .is_some_and(|l| l.contains("rw,") && l.contains("noexec")),
        "{o:?}"
    );
    assert!(dir.path().join("y").exists());
    let mut s = spec("true");
    s["mounts"].as_array_mut().expect("list").push(
        json!({"destination": "/data", "type": "bind", "source": "/no/such/source", "options": ["bind"]}));
    let Outcome::Failed(f) = Container::new(s).start() else {
        panic!("missing source accepted")
    };
    assert!(
        f.text.contains(
            "error mounting \"/no/such/source\" to rootfs at \"/data\": no such file or directory"
        ),
        "{f:?}"
    );
    let mut s = spec("true");
    s["mounts"].as_array_mut().expect("list").push(
        json!({"destination": "/proc/self", "type": "bind", "source": "/tmp", "options": ["bind"]}),
    );
    assert!(Container::new(s).plan().is_err());
}

fn readonly_root() {
    let mut s = spec("touch /x || echo ro; touch /dev/shm/x && echo rw");
    s["root"]["readonly"] = json!(true);
    assert_eq!(output(s).stdout, "ro\nrw\n");
}

fn exec() {
    let mut s = spec("sleep 30");
    s["hostname"] = json!("inner");
    let mut c = Container::new(s);
    let mut p = c.running();
    let (code, out, err) = exec_with(
        &c,
        &p,
        "hostname; echo $HOME; cat /proc/1/comm; id -u; exit 3",
        |_| {},
    );
    assert_eq!(
        (code, out.as_str()),
        (3, "inner\n/root\nsleep\n0\n"),
        "{err}"
    );
    let (code, out, err) = exec_with(
        &c,
        &p,
        "cat /proc/self/cgroup /proc/1/cgroup | sort | uniq -c | awk '{print $1}' | sort -u",
        |_| {},
    );
    assert_eq!((code, out.as_str()), (0, "2\n"), "{err}");
    let (code, out, _) = exec_with(&c, &p, "id -u; id -G; pwd", |p| {
        p["user"] = json!({"uid": 5, "gid": 6, "additionalGids": [7]});
        p["cwd"] = json!("/tmp");
    });
    assert_eq!((code, out.as_str()), (0, "5\n6 7\n/tmp\n"));
    let failure = common::exec_failure(&c, &p, |p| p["args"] = json!(["nope"]));
    assert_eq!(
        failure.text,
        "unable to start container process: exec: \"nope\": executable file not found in $PATH"
    );
    let failure = common::exec_failure(&c, &p, |p| p["cwd"] = json!("/not/there"));
    assert!(
        failure.text.contains(
            "chdir to cwd (\"/not/there\") set in config.json failed: no such file or directory"
        ),
        "{failure:?}"
    );
    for n in 3..40 {
        common::exec_failure(&c, &p, |p| p["cwd"] = json!(format!("/proc/self/fd/{n}")));
    }
    assert_eq!(c.cgroup.pids().expect("pids"), [p.pid()]);
    p.kill().expect("kill");
    assert_eq!(check::exit(&mut p), 137);
    c.clean();
}

fn terminal() {
    let mut s = spec(
        "tty; stty size; echo to-tty > /dev/console; ls -l /dev/pts/0 | awk '{print $3}'; test -t 0 && echo yes",
    );
    s["process"]["terminal"] = json!(true);
    s["process"]["consoleSize"] = json!({"height": 33, "width": 99});
    s["process"]["user"] = json!({"uid": 0, "gid": 0});
    let c = Container::new(s);
    let out = c.terminal(Stdio::Terminal { rows: 0, cols: 0 });
    assert_eq!(
        out.replace('\r', ""),
        "/dev/pts/0\n33 99\nto-tty\nroot\nyes\n"
    );
}

fn hooks() {
    let dir = tempfile::tempdir().expect("temp dir");
    let log = dir.path().join("log").display().to_string();
    let hook = |name: &str, script: &str| json!([{"path": "/bin/sh", "args": ["sh", "-c", format!("{script} >> {log}; echo {name} >> {log}; cat > {log}.{name}")], "env": ["A=b"], "timeout": 5}]);
    let mut s = spec("echo run");
    s["hostname"] = json!("hooked");
    s["hooks"] = json!({
        "createRuntime": hook("createRuntime", "hostname"),
        "createContainer": hook("createContainer", "hostname"),
    });
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("hostname");
    let c = Container::new(s);
    let o = c.with_hooks();
    assert_eq!(o.stdout, "run\n", "{o:?}");
    let text = std::fs::read_to_string(&log).expect("log");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.first(), Some(&host.trim()), "{text}");
    assert_eq!(
        lines.get(1..3),
        Some(["createRuntime", "hooked"].as_slice()),
        "{text}"
    );
    let state = std::fs::read_to_string(format!("{log}.createRuntime")).expect("state");
    let state: serde_json::Value = serde_json::from_str(&state).expect("json");
    assert_eq!(state["status"], "created");
    assert!(state["pid"].as_i64().is_some_and(|p| p > 1));
}

fn cgroup_limits() {
    let mut s = spec("sleep 30");
    s["linux"]["resources"] = json!({
        "memory": {"limit": 64 << 20, "reservation": 32 << 20},
        "cpu": {"shares": 512, "quota": 50000, "period": 100000},
        "pids": {"limit": 77},
        "devices": [{"allow": false, "access": "rwm"}],
    });
    let mut c = Container::new(s);
    let mut p = c.running();
    if c.cgroup.is_v2() {
        skip("v1 numbers", "this host is pure v2");
    } else {
        let stats = c.cgroup.stats().expect("stats");
        assert_eq!(stats.memory.usage.limit, 64 << 20);
        assert_eq!((stats.pids.current, stats.pids.limit), (1, 77));
        assert!(stats.cpu.usage_ns > 0 && stats.memory.usage.usage > 0);
        let (_, out, _) = exec_with(
            &c,
            &p,
            "mknod /tmp/b b 7 0 && cat /tmp/b >/dev/null; head -c1 /dev/zero | wc -c",
            |_| {},
        );
        assert_eq!(out, "1\n");
        let (_, _, err) = exec_with(&c, &p, "cat /tmp/b", |_| {});
        assert!(err.contains("not permitted"), "{err}");
        let update = br#"{"memory":{"limit":134217728},"pids":{"limit":-1},"cpu":{"shares":2048,"quota":-1}}"#;
        c.cgroup
            .update(&corten_oci::Resources::parse(update).expect("json"))
            .expect("update");
        let stats = c.cgroup.stats().expect("stats");
        assert_eq!((stats.memory.usage.limit, stats.pids.limit), (128 << 20, 0));
    }
    p.kill().expect("kill");
    check::exit(&mut p);
    c.clean();
}

fn freeze() {
    let mut c = Container::new(spec("sleep 30"));
    let mut p = c.running();
    c.cgroup.freeze().expect("freeze");
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", p.pid())).expect("stat");
    assert!(stat.contains(") D ") || stat.contains(") S "), "{stat}");
    c.cgroup.thaw().expect("thaw");
    c.cgroup.freeze().expect("freeze again");
    c.cgroup.kill().expect("kill a frozen group");
    assert_eq!(check::exit(&mut p), 137);
    c.clean();
}

fn oom() {
    let mut s = spec("x=$(head -c 100000000 /dev/zero | tr '\\0' a); echo ${#x}");
    s["linux"]["resources"] = json!({"memory": {"limit": 16 << 20}});
    let mut c = Container::new(s);
    let watch = c.cgroup.watch_oom().expect("watch");
    let mut p = c.running();
    check::exit(&mut p);
    assert!(c.cgroup.oom_kills() > 0);
    if let corten_oci::cgroup::OomWatch::EventFd(fd) = watch {
        let mut buf = [0u8; 8];
        assert_eq!(rustix::io::read(&fd, &mut buf), Ok(8));
    }
    c.clean();
}

fn userns(s: &mut serde_json::Value) {
    s["linux"]["namespaces"]
        .as_array_mut()
        .expect("list")
        .push(json!({"type": "user"}));
    for key in ["uidMappings", "gidMappings"] {
        s["linux"][key] = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    }
}

fn user_namespace() {
    let mut s = spec(
        "id -u; cat /proc/self/uid_map | awk '{print $2}'; echo x > /dev/null && echo null; touch /tmp/f && stat -c %u /tmp/f; cat /proc/self/oom_score_adj",
    );
    userns(&mut s);
    s["process"]["oomScoreAdj"] = json!(5);
    let c = Container::prepared(s, |root| {
        for dir in ["tmp", "dev", "proc", "sys", "etc", "."] {
            let path = root.join(dir);
            let _ = std::fs::create_dir_all(&path);
            std::os::unix::fs::chown(&path, Some(100_000), Some(100_000)).expect("chown");
        }
    });
    let o = c.finish();
    assert_eq!(o.stdout, "0\n100000\nnull\n0\n5\n", "{o:?}");
}

fn joined_namespaces() {
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

fn time_namespace() {
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

fn no_pivot() {
    let c = Container::new(spec("ls / | tr '\\n' ' '")).no_pivot();
    let o = c.finish();
    assert!(
        o.stdout.contains("bin") && !o.stdout.contains("work"),
        "{o:?}"
    );
}

fn host_pid_kill() {
    let mut s = spec("sleep 40 & sleep 41");
    s["linux"]["namespaces"] = json!([{"type": "mount"}]);
    let mut c = Container::new(s);
    let mut p = c.running();
    for _ in 0..200 {
        if c.cgroup.pids().expect("pids").len() == 2 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    c.cgroup.kill().expect("kill");
    assert_eq!(check::exit(&mut p), 137);
    // The other one was its child: init of the host reaps it.
    c.clean();
}

fn killed_at_gate() {
    let c = Container::new(spec("echo never"));
    let Outcome::Ready(mut p, _) = c.start() else {
        panic!("not ready")
    };
    p.kill().expect("kill");
    assert_eq!(check::exit(&mut p), 137);
    assert!(matches!(p.wait_status(), Ok(Status::Failed(f)) if f.kind == Kind::Died));
}

fn idmapped_bind() {
    let dir = tempfile::tempdir().expect("temp dir");
    std::fs::write(dir.path().join("file"), "x").expect("write");
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).expect("chmod");
    let mut s = spec("stat -c %u /data/file");
    s["mounts"].as_array_mut().expect("list").push(json!({
        "destination": "/data", "type": "bind", "source": dir.path(), "options": ["rbind", "idmap"],
        "uidMappings": [{"containerID": 0, "hostID": 4242, "size": 10}],
        "gidMappings": [{"containerID": 0, "hostID": 4242, "size": 10}],
    }));
    let o = output(s);
    assert_eq!(o.stdout, "4242\n", "{o:?}");
}

fn cgroup_mount() {
    for ns in [true, false] {
        let mut s = spec(
            "ls /sys/fs/cgroup | head -2 | tr '\\n' ' '; touch /sys/fs/cgroup/x || echo ro; find /sys/fs/cgroup -maxdepth 2 -name cgroup.procs | wc -l; cat $(find /sys/fs/cgroup -name cgroup.procs | head -1) | head -1",
        );
        s["mounts"].as_array_mut().expect("list").push(json!({
            "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
            "options": ["ro", "nosuid", "noexec", "nodev"]}));
        if ns {
            s["linux"]["namespaces"]
                .as_array_mut()
                .expect("list")
                .push(json!({"type": "cgroup"}));
        }
        let o = output(s);
        let lines: Vec<&str> = o.stdout.lines().collect();
        assert_eq!(lines.last(), Some(&"1"), "{o:?}");
        assert!(o.stdout.contains("ro\n"), "{o:?}");
    }
}

fn speed() {
    let mut full = spec("");
    full["process"]["args"] = json!(["/bin/true"]);
    let mut no_net = full.clone();
    no_net["linux"]["namespaces"] =
        json!([{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}]);
    let mut few_mounts = no_net.clone();
    few_mounts["mounts"] = json!([{"destination": "/proc", "type": "proc", "source": "proc"}]);
    let mut bare = few_mounts.clone();
    bare["linux"]["namespaces"] = json!([{"type": "pid"}, {"type": "mount"}]);
    for (name, s) in [
        ("like ctr run", full),
        ("no network ns", no_net),
        ("only proc", few_mounts),
        ("pid, mnt", bare),
    ] {
        let times: Vec<_> = (0..60).map(|_| Container::new(s.clone()).timed()).collect();
        common::report(name, &times);
    }
}
