//! Cases about cgroups, and the time a container takes.

use crate::common::{self, Container, check, exec_with, skip, spec};
use serde_json::json;

pub(crate) fn cgroup_limits() {
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

fn stand(c: &Container) {
    let patience = std::time::Duration::from_secs(5) * common::patience();
    let until = std::time::Instant::now() + patience;
    while !c.cgroup.freeze().expect("freeze") {
        assert!(std::time::Instant::now() < until, "still moving");
        std::thread::yield_now();
    }
}

pub(crate) fn freeze() {
    let mut c = Container::new(spec("sleep 30"));
    let mut p = c.running();
    stand(&c);
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", p.pid())).expect("stat");
    assert!(stat.contains(") D ") || stat.contains(") S "), "{stat}");
    c.cgroup.thaw().expect("thaw");
    stand(&c);
    c.cgroup.kill().expect("kill a frozen group");
    assert_eq!(check::exit(&mut p), 137);
    c.clean();
}

pub(crate) fn oom() {
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

/// On a hybrid host the v2 program can be tried, too: on the unified hierarchy.
pub(crate) fn v2_devices() {
    let base = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(std::path::Path::new);
    let Some(mount) = base
        .into_iter()
        .find(|d| d.join("cgroup.controllers").exists())
    else {
        return skip("v2 device rules", "no unified hierarchy");
    };
    let mut s = spec("sleep 30");
    s["linux"]["resources"] = json!({"devices": [{"allow": true, "access": "rwm"}]});
    let mut c = Container::new(s);
    let mut p = c.running();
    let read = |what: &str| exec_with(&c, &p, &format!("head -c1 {what} | wc -c"), |_| {});
    exec_with(
        &c,
        &p,
        "mknod /tmp/tun c 10 200; mknod /tmp/zero c 1 5",
        |_| {},
    );
    assert_eq!(read("/tmp/zero").1, "1\n");
    let rule = |allow, access: &str| corten_oci::spec::DeviceRule {
        allow,
        access: access.into(),
        ..Default::default()
    };
    let dir = mount.join(c.cgroup.path().trim_start_matches('/'));
    // Twice: the second replaces the first.
    for _ in 0..2 {
        corten_oci::cgroup::set_v2_devices(&dir, &[rule(false, "rwm")]).expect("attach");
    }
    let read = |what: &str| exec_with(&c, &p, &format!("cat {what} | head -c1 | wc -c"), |_| {});
    assert_eq!(read("/tmp/zero").1, "1\n");
    let (_, _, err) = exec_with(&c, &p, ": < /tmp/tun", |_| {});
    assert!(err.contains("not permitted"), "{err}");
    // Two rules on one device add up; a later denial takes one right back.
    let tun = |allow, access: &str| corten_oci::spec::DeviceRule {
        kind: "c".into(),
        major: Some(10),
        minor: Some(200),
        ..rule(allow, access)
    };
    let open = |rules: &[corten_oci::spec::DeviceRule]| {
        corten_oci::cgroup::set_v2_devices(&dir, rules).expect("attach");
        let (_, out, err) = exec_with(
            &c,
            &p,
            "(: < /tmp/tun) && echo r; (: > /tmp/tun) && echo w; (: <> /tmp/tun) && echo rw",
            |_| {},
        );
        (out.replace('\n', " "), err)
    };
    let parts = [tun(true, "r"), tun(true, "w")];
    assert_eq!(open(&parts).0, "r w rw ", "{:?}", open(&parts));
    let taken = [tun(true, "rw"), tun(false, "w")];
    assert_eq!(open(&taken).0, "r ", "{:?}", open(&taken));
    corten_oci::cgroup::set_v2_devices(&dir, &[rule(true, "rwm")]).expect("attach");
    let (_, _, err) = exec_with(&c, &p, ": < /tmp/tun", |_| {});
    assert_eq!(err, "");
    p.kill().expect("kill");
    check::exit(&mut p);
    c.clean();
}

pub(crate) fn host_pid_kill() {
    let mut s = spec("sleep 40 & sleep 41");
    s["linux"]["namespaces"] = json!([{"type": "mount"}]);
    let mut c = Container::new(s);
    let mut p = c.running();
    for _ in 0..100_000 {
        if c.cgroup.pids().expect("pids").len() == 2 {
            break;
        }
        std::thread::yield_now();
    }
    c.cgroup.kill().expect("kill");
    assert_eq!(check::exit(&mut p), 137);
    // The other one was its child: init of the host reaps it.
    c.clean();
}

pub(crate) fn speed() {
    if common::patience() > 1 {
        return skip("times", "this machine is slow");
    }
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

/// A container that asks for somebody else's cgroup fails and leaves it as it was.
pub(crate) fn foreign() {
    let mut c = Container::new(spec("sleep 30"));
    let mut p = c.running();
    let inner: Vec<std::path::PathBuf> = ["", "devices", "pids", "unified"]
        .iter()
        .map(|h| {
            std::path::Path::new("/sys/fs/cgroup")
                .join(h)
                .join("corten-test")
                .join(&c.id)
        })
        .filter(|dir| dir.exists())
        .map(|dir| dir.join("inner"))
        .collect();
    for dir in &inner {
        std::fs::create_dir(dir).expect("mkdir");
    }
    let refused = corten_oci::Cgroup::create(&c.spec, &c.id, &Default::default());
    let text = refused.expect_err("taken").to_string();
    assert!(text.contains("is not empty"), "{text}");
    assert!(!inner.is_empty() && inner.iter().all(|dir| dir.exists()));
    assert!(
        corten_oci::Cgroup::open(&corten_oci::Spec::default(), "..", &Default::default()).is_err()
    );
    p.kill().expect("kill");
    check::exit(&mut p);
    c.clean();
}

/// A document that says nothing of devices denies them, and an exec runs under init's filter.
pub(crate) fn bare_document() {
    let mut s = spec("sleep 30");
    s["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW"});
    let mut c = Container::new(s);
    let mut p = c.running();
    let script = "mknod /tmp/b b 7 0; cat /tmp/b; head -c1 /dev/zero | wc -c; grep ^Seccomp: /proc/self/status";
    let (_, out, err) = exec_with(&c, &p, script, |_| {});
    assert_eq!(out, "1\nSeccomp:\t2\n", "{err}");
    assert!(err.contains("/tmp/b': Operation not permitted"), "{err}");
    p.kill().expect("kill");
    check::exit(&mut p);
    c.clean();
}
