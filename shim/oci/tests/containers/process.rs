//! Cases about the process: identity, limits, executables, exec, terminal, hooks.

use crate::common::{self, Container, Outcome, check, exec_with, output, skip, spec};
use corten_launch::{Kind, Status};
use corten_oci::Stdio;
use serde_json::json;

pub(crate) fn basics() {
    let mut s =
        spec("echo $$; hostname; cat /proc/1/comm; pwd; echo $HOME; ls /proc/self/fd | wc -l");
    s["hostname"] = json!("box");
    let o = output(s);
    assert_eq!(o.stdout, "1\nbox\nsh\n/\n/root\n4\n", "{}", o.stderr);
    assert_eq!(o.code, 0);
}

pub(crate) fn exit_codes() {
    assert_eq!(output(spec("exit 7")).code, 7);
    assert_eq!(output(spec("(sleep 0.02; true); exit 0")).code, 0);
    let mut s = spec("kill -9 $$; sleep 5");
    s["linux"]["namespaces"] = json!([{"type": "mount"}]);
    assert_eq!(output(s).code, 137);
}

pub(crate) fn identity_and_caps() {
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

pub(crate) fn limits() {
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

pub(crate) fn seccomp() {
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

pub(crate) fn missing_executables() {
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

pub(crate) fn exec() {
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
    let (code, out, _) = exec_with(
        &c,
        &p,
        "grep -E '^Cap(Inh|Prm|Bnd)' /proc/self/status",
        |p| {
            p["capabilities"] = json!(null);
        },
    );
    let own = "CapInh:\t0000000000000000\nCapPrm:\t00000000a80425fb\nCapBnd:\t00000000a80425fb\n";
    assert_eq!((code, out.as_str()), (0, own), "init's capabilities");
    let (code, out, _) = exec_with(
        &c,
        &p,
        "for f in /proc/self/fd/*; do echo ${f##*/}; done",
        |_| {},
    );
    assert_eq!(
        (code, out.replace("10\n", "").as_str()),
        (0, "0\n1\n2\n3\n")
    );
    for n in common::leftovers() {
        common::exec_failure(&c, &p, |p| p["cwd"] = json!(format!("/proc/self/fd/{n}")));
    }
    assert_eq!(c.cgroup.pids().expect("pids"), [p.pid()]);
    p.kill().expect("kill");
    assert_eq!(check::exit(&mut p), 137);
    c.clean();
}

pub(crate) fn terminal() {
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

pub(crate) fn hooks() {
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

/// A startContainer hook is the image's program: it may no more than the container.
pub(crate) fn start_hook() {
    let mut s = spec("cat /tmp/hook");
    s["process"]["noNewPrivileges"] = json!(true);
    s["process"]["user"] = json!({"uid": 7, "gid": 8, "additionalGids": [9]});
    let script = "{ id -u; id -G; grep -E '^(Cap(Eff|Bnd)|NoNewPrivs|Seccomp):' /proc/self/status; \
        diff /proc/self/cgroup /proc/1/cgroup && echo same; } > /tmp/hook 2>&1";
    s["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW"});
    s["hooks"] = json!({"startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", script]}]});
    let c = Container::prepared(s, |root| {
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::create_dir_all(root.join("tmp")).expect("mkdir");
        std::fs::set_permissions(root.join("tmp"), open).expect("chmod");
    });
    let Outcome::Ready(p, _) = c.start() else {
        panic!("not ready")
    };
    c.start_hooks(&p);
    p.kill().expect("kill");
    let text = std::fs::read_to_string(c.bundle.path().join("rootfs/tmp/hook")).expect("hook ran");
    let want = "7\n8 9\nCapEff:\t0000000000000000\nCapBnd:\t00000000a80425fb\nNoNewPrivs:\t1\nSeccomp:\t2\nsame\n";
    assert_eq!(text, want);
    let mut p = p;
    check::exit(&mut p);
}

pub(crate) fn killed_at_gate() {
    let c = Container::new(spec("echo never"));
    let Outcome::Ready(mut p, _) = c.start() else {
        panic!("not ready")
    };
    p.kill().expect("kill");
    assert_eq!(check::exit(&mut p), 137);
    assert!(matches!(p.wait_status(), Ok(Status::Failed(f)) if f.kind == Kind::Died));
}

pub(crate) fn sealed_exe() {
    let scratch = tempfile::tempdir().expect("temp dir");
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].map(std::path::Path::new);
    let program = busybox.into_iter().find(|p| p.exists()).expect("busybox");
    let program = program.canonicalize().expect("path");
    let fd = corten_launch::exe::sealed(&program, scratch.path()).expect("sealed");
    let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
    let kind = std::fs::read_link(&link).expect("link");
    println!("  sealed as {}", kind.display());
    assert!(std::fs::File::options().append(true).open(&link).is_err());
    let out = std::process::Command::new(&link).args(["echo"]).output();
    assert!(out.is_ok(), "{out:?}");
}

pub(crate) fn descriptors() {
    let o = output(spec("for f in /proc/1/fd/*; do echo ${f##*/}; done"));
    // 10 is the shell's own script descriptor when it has one.
    let odd: Vec<&str> = o
        .stdout
        .lines()
        .filter(|l| !["0", "1", "2", "3", "10", "255"].contains(l))
        .collect();
    assert!(odd.is_empty(), "{odd:?}");
}
