//! Cases about what few documents ask for.

use crate::common::{Container, Outcome, check, exec_with, output, skip, spec};
use serde_json::{Value, json};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

fn push(s: &mut Value, mount: Value) {
    s["mounts"].as_array_mut().expect("list").push(mount);
}

pub(crate) fn tmpcopyup() {
    let mut s = spec(
        "cat /var/a/b/file; readlink /var/link; stat -c '%a %u %g' /var /var/a/b/file /var/node /var/pipe; \
         find /var | wc -l; touch /var/new && echo writable; grep ' /var ' /proc/mounts | cut -d' ' -f3",
    );
    push(
        &mut s,
        json!({"destination": "/var", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "size=8m"]}),
    );
    let mut root = None;
    let c = Container::prepared(s, |dir| {
        let var = dir.join("var");
        std::fs::create_dir_all(var.join("a/b")).expect("mkdir");
        std::fs::write(var.join("a/b/file"), vec![b'x'; 300_000]).expect("write");
        std::fs::write(var.join("a/b/file"), "deep\n").expect("write");
        std::os::unix::fs::chown(var.join("a/b/file"), Some(3), Some(4)).expect("chown");
        std::fs::set_permissions(var.join("a/b/file"), PermissionsExt::from_mode(0o4750))
            .expect("chmod");
        std::fs::set_permissions(&var, PermissionsExt::from_mode(0o711)).expect("chmod");
        symlink("/etc/passwd", var.join("link")).expect("symlink");
        for n in 0..200 {
            std::fs::write(var.join(format!("some-file-with-a-name-{n}")), "").expect("write");
        }
        for (name, kind) in [("node", "c 1 3"), ("pipe", "p")] {
            let made = Command::new("mknod")
                .arg(var.join(name))
                .args(kind.split(' '))
                .status();
            assert!(made.expect("mknod").success());
            std::fs::set_permissions(var.join(name), PermissionsExt::from_mode(0o640))
                .expect("chmod");
        }
        root = Some(dir.to_owned());
    });
    let keep = c.bundle.path().join("rootfs/var/new");
    let o = c.finish();
    assert_eq!(
        o.stdout, "deep\n/etc/passwd\n711 0 0\n4750 3 4\n640 0 0\n640 0 0\n207\nwritable\ntmpfs\n",
        "{o:?}"
    );
    assert!(!keep.exists(), "the image is untouched");
}

pub(crate) fn readonly_dev() {
    let mut s = spec(
        "touch /dev/x || echo ro; echo y > /dev/null && echo null; ls -d /dev/pts /dev/shm | wc -l; \
         touch /data/x || echo ro; ls /data",
    );
    s["mounts"][1]["options"] = json!(["nosuid", "ro", "mode=755"]);
    push(
        &mut s,
        json!({"destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["ro"]}),
    );
    push(
        &mut s,
        json!({"destination": "/data/inner", "type": "tmpfs", "source": "tmpfs"}),
    );
    let o = output(s);
    assert_eq!(o.stdout, "ro\nnull\n2\nro\ninner\n", "{o:?}");
}

/// With no_pivot_root the host's tree is beneath the root: nothing of its proc and sys must be left there.
pub(crate) fn beneath() {
    let mut s = spec("cat /proc/self/mountinfo");
    s["mounts"] = json!([{"destination": "/proc", "type": "proc", "source": "proc"}]);
    let c = Container::new(s).no_pivot();
    let Outcome::Ready(mut p, _) = c.start() else {
        panic!("not ready")
    };
    // Before the program runs all mounts of the namespace can be seen from outside, the covered ones by their numbers.
    let text = std::fs::read_to_string(format!("/proc/{}/mountinfo", p.pid())).expect("mountinfo");
    let kinds = |kind: &str| {
        text.lines()
            .filter(|l| l.contains(&format!(" - {kind} ")))
            .count()
    };
    assert_eq!((kinds("proc"), kinds("sysfs")), (1, 0), "{text}");
    p.kill().expect("kill");
    check::exit(&mut p);
    let host = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    assert!(host.contains(" - sysfs ") && Path::new("/sys/kernel").exists());
}

pub(crate) fn home() {
    let mut s = spec("echo $HOME; sleep 30");
    s["process"]["user"] = json!({"uid": 7, "gid": 7});
    let mut c = Container::prepared(s, |root| {
        std::fs::write(
            root.join("etc/real"),
            "root:x:0:0::/root:/x\nu:x:7:7::/home/u:/x\n",
        )
        .expect("write");
        std::fs::remove_file(root.join("etc/passwd")).expect("remove");
        // Links stay inside the root.
        symlink("/etc/real", root.join("etc/passwd")).expect("symlink");
    });
    let mut p = c.running();
    let home = |uid: u32, env: Value| {
        let (_, out, err) = exec_with(&c, &p, "echo $HOME", |p| {
            p["user"] = json!({"uid": uid, "gid": 7});
            p["env"] = env;
        });
        assert_eq!(err, "");
        out
    };
    assert_eq!(home(7, json!(["PATH=/bin"])), "/home/u\n");
    assert_eq!(home(7, json!(["PATH=/bin", "HOME=/given"])), "/given\n");
    assert_eq!(home(7, json!(["HOME=", "PATH=/bin"])), "/home/u\n");
    assert_eq!(home(8, json!(["PATH=/bin"])), "/\n");
    p.kill().expect("kill");
    check::exit(&mut p);
    c.clean();
    // A fifo in its place is not waited for.
    let o = Container::prepared(spec("echo $HOME"), |root| {
        std::fs::remove_file(root.join("etc/passwd")).expect("remove");
        let made = Command::new("mkfifo").arg(root.join("etc/passwd")).status();
        assert!(made.expect("mkfifo").success());
    })
    .finish();
    assert_eq!(o.stdout, "/\n", "{o:?}");
}

/// The agent gets the listener and the state, and closes it: what it would have answered is ENOSYS then.
pub(crate) fn seccomp_listener() {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let dir = tempfile::tempdir().expect("temp dir");
    for nnp in [true, false] {
        let path = dir.path().join(format!("agent-{nnp}"));
        let agent = std::os::unix::net::UnixListener::bind(&path).expect("bind");
        let mut s = spec("mkdir /tmp/x; echo done");
        s["process"]["noNewPrivileges"] = json!(nnp);
        s["annotations"] = json!({"a": "b"});
        s["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": path, "listenerMetadata": "meta",
            "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"],
            "syscalls": [{"names": ["mkdir", "mkdirat", "sendto", "sendmsg"], "action": "SCMP_ACT_NOTIFY"}],
        });
        let listen = std::thread::spawn(move || {
            let (stream, _) = agent.accept().expect("accept");
            let mut bytes = [0u8; 4096];
            let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut iov = [std::io::IoSliceMut::new(&mut bytes)];
            let got =
                recvmsg(&stream, &mut iov, &mut control, RecvFlags::CMSG_CLOEXEC).expect("message");
            let fds: Vec<_> = control
                .drain()
                .filter_map(|m| match m {
                    RecvAncillaryMessage::ScmRights(fds) => Some(fds.count()),
                    _ => None,
                })
                .collect();
            assert_eq!(fds, [1]);
            String::from_utf8_lossy(&bytes[..got.bytes]).into_owned()
        });
        let o = output(s);
        assert!(
            o.stdout == "done\n" && o.stderr.contains("not implemented"),
            "{o:?}"
        );
        let text = listen.join().expect("agent");
        let state: Value = serde_json::from_str(&text).expect("json");
        assert_eq!(
            (&state["fds"], &state["metadata"]),
            (&json!(["seccompFd"]), &json!("meta"))
        );
        assert!(
            state["pid"].as_i64().is_some_and(|n| n > 1)
                && state["state"]["annotations"]["a"] == "b"
        );
    }
}

fn ip(args: &str) -> bool {
    let done = Command::new("ip").args(args.split(' ')).output();
    done.is_ok_and(|o| o.status.success())
}

pub(crate) fn net_devices() {
    let name = format!("ct{}", std::process::id() % 100_000);
    if !ip(&format!("link add {name} type veth peer name {name}p")) {
        return skip("network devices", "cannot make a veth pair with ip(8)");
    }
    assert!(ip(&format!("link set {name}p up")));
    assert!(ip(&format!("addr add 10.99.98.97/24 dev {name}")));
    assert!(ip(&format!("addr add fd99::97/64 dev {name} nodad")));
    assert!(ip(&format!("link set {name} up")));
    let mut s = spec(
        "cat /proc/net/dev | grep -c moved; cat /sys/class/net/moved/operstate; \
         grep -c 0aca6162 /proc/net/fib_trie; grep -c 10.99.98.97 /proc/net/fib_trie; \
         grep moved /proc/net/if_inet6 | grep -c ^fd99",
    );
    s["linux"]["netDevices"] = json!({name.clone(): {"name": "moved"}});
    let o = output(s.clone());
    let lines: Vec<&str> = o.stdout.lines().collect();
    assert_eq!((lines[0], lines[1]), ("1", "up"), "{o:?}");
    assert!(
        lines[3].parse::<u32>().is_ok_and(|n| n > 0) && lines[4] == "1",
        "{o:?}"
    );
    // It went with its namespace.
    assert!(!Path::new("/sys/class/net").join(&name).exists());
    let c = Container::new(s);
    let missing = corten_oci::netdev::attach(&c.spec, std::process::id() as i32);
    let text = missing.expect_err("missing").to_string();
    assert!(text.contains("no such device"), "{text}");
}

pub(crate) fn scheduling() {
    let mut s = spec(
        "cut -d' ' -f19,41 /proc/self/stat; grep -i ^policy /proc/self/sched; cat /proc/self/numa_maps | head -1 | cut -d' ' -f2; cat /proc/sys/kernel/domainname; uname -m 2>/dev/null; true",
    );
    s["domainname"] = json!("example.org");
    s["process"]["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 5});
    s["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_IDLE", "priority": 0});
    s["linux"]["memoryPolicy"] = json!({"mode": "MPOL_BIND", "nodes": "0"});
    s["linux"]["personality"] = json!({"domain": "LINUX32"});
    let o = output(s);
    let lines: Vec<&str> = o.stdout.lines().collect();
    assert_eq!(lines.first(), Some(&"5 3"), "{o:?}");
    assert!(
        o.stdout.contains("bind") && o.stdout.contains("example.org"),
        "{o:?}"
    );
}

pub(crate) fn exec_affinity() {
    let mut c = Container::new(spec("sleep 30"));
    let mut p = c.running();
    let cpus = |affinity: Value| {
        let (code, out, err) =
            exec_with(&c, &p, "grep ^Cpus_allowed_list /proc/self/status", |p| {
                p["execCPUAffinity"] = affinity;
            });
        assert_eq!((code, err.as_str()), (0, ""));
        out.split('\t').nth(1).unwrap_or_default().trim().to_owned()
    };
    let all = cpus(Value::Null);
    assert_eq!(cpus(json!({"final": "0"})), "0");
    // A v1 cpuset resets whoever joins it; v2 keeps what it may.
    assert!([all.as_str(), "0"].contains(&cpus(json!({"initial": "0"})).as_str()));
    if all != "0" {
        assert_eq!(cpus(json!({"initial": "0", "final": "1"})), "1");
    }
    p.kill().expect("kill");
    check::exit(&mut p);
    c.clean();
}

/// hugetlb may be on the unified hierarchy of a hybrid host; nowhere is an error.
pub(crate) fn hybrid_hugepages() {
    let unified = Path::new("/sys/fs/cgroup/unified");
    let offered = std::fs::read_to_string(unified.join("cgroup.controllers")).unwrap_or_default();
    if !offered.contains("hugetlb") {
        return skip("hugepages on a hybrid host", "not such a host");
    }
    let mut s = spec("sleep 30");
    s["linux"]["resources"] = json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}]});
    let mut c = Container::new(s);
    let dir = unified.join(c.cgroup.path().trim_start_matches('/'));
    let limit = std::fs::read_to_string(dir.join("hugetlb.2MB.max")).expect("limit");
    assert_eq!(limit.trim(), (4 << 20).to_string());
    c.clean();
    for none in [
        json!({"rdma": {"mlx": {"hcaHandles": 1}}}),
        json!({"network": {"classID": 5}}),
    ] {
        let text = json!({"ociVersion": "1.3.0", "linux": {"resources": none, "cgroupsPath": "/corten-test/none"}});
        let spec = corten_oci::Spec::parse(text.to_string().as_bytes()).expect("valid");
        let made = corten_oci::Cgroup::create(&spec, "none", &Default::default());
        assert!(made.is_err(), "{text} is ignored");
    }
}

pub(crate) fn any_signal() {
    let mut c = Container::new(spec(
        "trap 'echo got; exit 9' 36; echo ready; while :; do sleep 0.01; done",
    ));
    let mut p = c.running();
    c.cgroup.signal(0).expect("a probe");
    assert!(c.cgroup.signal(65).is_err() && c.cgroup.signal(-1).is_err());
    let out = format!("/proc/{}/fd/1", p.pid());
    let until = std::time::Instant::now() + std::time::Duration::from_secs(5);
    let mut text = String::new();
    while !text.contains("ready") && std::time::Instant::now() < until {
        text.clear();
        let mut file = std::fs::File::open(&out).expect("output");
        file.read_to_string(&mut text).expect("text");
    }
    c.cgroup.signal(36).expect("a real-time signal");
    // A sleep that is hit dies of it, the shell does not.
    assert_eq!(check::exit(&mut p), 9);
    c.clean();
}

pub(crate) fn keyring() {
    let mut c = Container::new(spec("sleep 30"));
    let id = c.id.clone();
    let mut p = c.running();
    let (_, out, _) = exec_with(&c, &p, "cat /proc/keys", |_| {});
    let line = out.lines().find(|l| l.contains(&format!("_ses.{id}")));
    assert!(line.is_some_and(|l| l.contains(" 3f1b0000 ")), "{out}");
    p.kill().expect("kill");
    check::exit(&mut p);
    c.clean();
    assert_eq!(
        std::fs::metadata("/proc/self").map(|m| m.uid()).ok(),
        Some(0)
    );
}
