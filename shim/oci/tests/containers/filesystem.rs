//! Cases about mounts, paths, and images that want to lead the engine astray.

use crate::common::{Container, Outcome, check, leftovers, output, spec};
use corten_launch::Kind;
use serde_json::json;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::fs::symlink;

pub(crate) fn mounts_and_masks() {
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

pub(crate) fn cwd() {
    let mut s = spec("pwd");
    s["process"]["cwd"] = json!("/made/on/the/way");
    assert_eq!(output(s).stdout, "/made/on/the/way\n");
    for n in leftovers() {
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

pub(crate) fn hostile_links() {
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

pub(crate) fn binds() {
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

pub(crate) fn readonly_root() {
    let mut s = spec("touch /x || echo ro; touch /dev/shm/x && echo rw");
    s["root"]["readonly"] = json!(true);
    assert_eq!(output(s).stdout, "ro\nrw\n");
}

pub(crate) fn device_owner() {
    let mut s = spec("stat -c '%F %u %g %a' /dev/mine");
    s["linux"]["devices"] = json!([{"path": "/dev/mine", "type": "c", "major": 1, "minor": 3,
        "fileMode": 0o2640, "uid": 5, "gid": 6}]);
    let o = output(s);
    assert_eq!(o.stdout, "character special file 5 6 2640\n", "{o:?}");
}

pub(crate) fn no_pivot() {
    let c = Container::new(spec("ls / | tr '\\n' ' '")).no_pivot();
    let o = c.finish();
    assert!(
        o.stdout.contains("bin") && !o.stdout.contains("work"),
        "{o:?}"
    );
}

pub(crate) fn idmapped_bind() {
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

pub(crate) fn cgroup_mount() {
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

/// CVE-2021-30465: a mount target changes between directory and link while containers start.
pub(crate) fn swapped_target() {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    let volume = tempfile::tempdir().expect("volume");
    let victim = tempfile::tempdir().expect("victim");
    let (dir, link) = (volume.path().join("dst"), volume.path().join("link"));
    std::fs::create_dir(&dir).expect("mkdir");
    symlink(format!("../../../../..{}", victim.path().display()), &link).expect("symlink");
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = stop.clone();
    let swapper = std::thread::spawn(move || {
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            let _ = renameat_with(CWD, &dir, CWD, &link, RenameFlags::EXCHANGE);
        }
    });
    let mut s = spec("touch /vol/dst/x/inside");
    let list = s["mounts"].as_array_mut().expect("list");
    list.push(json!({"destination": "/vol", "type": "bind", "source": volume.path(), "options": ["rbind"]}));
    list.push(json!({"destination": "/vol/dst/x", "type": "tmpfs", "source": "tmpfs"}));
    s["linux"]["namespaces"] = json!([{"type": "pid"}, {"type": "mount"}]);
    let before = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let ours = |text: &str| text.lines().filter(|l| l.contains("/tmp/")).count();
    for _ in 0..crate::common::rounds(200) {
        if let Outcome::Ready(mut p, _) = Container::new(s.clone()).start() {
            p.open_gate().expect("gate");
            check::exit(&mut p);
        }
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    swapper.join().expect("joined");
    assert_eq!(
        std::fs::read_dir(victim.path()).expect("readable").count(),
        0
    );
    let after = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    assert!(ours(&after) <= ours(&before), "{after}");
}

/// Mounts travel as the spec says, and never out of a container that did not ask for it.
pub(crate) fn propagation() {
    use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
    let dir = tempfile::Builder::new()
        .prefix("corten")
        .tempdir()
        .expect("temp dir");
    let host = dir.path();
    for sub in ["rootfs", "volume"] {
        std::fs::create_dir(host.join(sub)).expect("mkdir");
    }
    let volume = host.join("volume");
    rustix::mount::mount_bind(&volume, &volume).expect("bind");
    mount_change(&volume, MountPropagationFlags::SHARED).expect("share");
    let seen = |what: &str| {
        let text = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        text.lines()
            .any(|l| l.contains(&format!("{}/{what} ", volume.display())))
    };
    for (root, bind, goes_out) in [
        ("", "rprivate", false),
        ("rslave", "rslave", false),
        ("rshared", "rshared", true),
    ] {
        std::fs::create_dir_all(volume.join("inner")).expect("mkdir");
        let mut s = spec("mount -t tmpfs inner /vol/inner && echo mounted");
        for set in ["bounding", "effective", "permitted"] {
            let caps = s["process"]["capabilities"][set]
                .as_array_mut()
                .expect("list");
            caps.push(json!("CAP_SYS_ADMIN"));
        }
        s["linux"]["rootfsPropagation"] = json!(root);
        s["mounts"].as_array_mut().expect("list").push(
            json!({"destination": "/vol", "type": "bind", "source": volume, "options": ["rbind", bind]}));
        let o = output(s);
        assert_eq!(o.stdout, "mounted\n", "{o:?}");
        assert_eq!(seen("inner"), goes_out, "{bind}");
        if goes_out {
            unmount(volume.join("inner"), UnmountFlags::DETACH).expect("unmount");
        }
    }
    let text = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    assert_eq!(
        text.lines().filter(|l| l.contains("/tmp/corten")).count(),
        1,
        "{text}"
    );
    unmount(&volume, UnmountFlags::DETACH).expect("unmount");
}
