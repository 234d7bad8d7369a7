//! What only some machines have: AppArmor, nothing but cgroup v2, systemd as init. `make test-vm` runs these tests where
//! there is all of that; elsewhere each says what is missing.

use std::fs;
use std::path::Path;

use corten_integration::case::Case;
use corten_integration::cgroup::{directory, setting, status_of};
use corten_integration::peers::RUNC_RUNTIME;
use corten_integration::process::{Cmd, DEADLINE, eventually};
use corten_integration::runner::Test;
use corten_integration::tests;
use serde_json::{Value, json};

pub(crate) fn tests() -> Vec<Test> {
    tests![
        confines_by_a_profile,
        refuses_a_profile_that_is_not_loaded,
        loads_the_default_profile,
        stacks_profiles,
        sees_its_own_cgroup_only,
        writes_any_file_of_the_cgroup,
        kills_the_whole_container_for_memory,
        freezes_in_one_step,
        kills_all_in_one_step,
        is_a_scope_of_systemd_s,
        keeps_its_limits_over_a_reload,
        has_properties_of_annotations,
        refuses_the_name_of_another_unit,
        takes_the_name_of_a_failed_unit,
        takes_away_the_unit_of_a_dead_shim,
        starts_with_one_process_allowed,
        starts_while_systemd_does,
    ]
}

fn lacks(what: &str, there: bool) -> bool {
    if !there {
        println!("not tried: this machine has no {what}");
    }
    !there
}

// === AppArmor ===

fn no_apparmor() -> bool {
    let profiles = Path::new("/sys/kernel/security/apparmor/profiles");
    lacks("AppArmor", profiles.exists())
}

/// A loaded profile that lets everything happen but what `rules` deny; gone when dropped.
struct Profile(String);

impl Profile {
    fn load(name: &str, rules: &str) -> Self {
        let text = format!(
            "profile {name} flags=(attach_disconnected,mediate_deleted) {{\n  file,\n  capability,\n  network,\n  \
             mount,\n  umount,\n  pivot_root,\n  signal,\n  ptrace,\n  unix,\n  change_profile,\n  {rules}\n}}\n"
        );
        Self::parser(&["-r", "-K"], &text);
        Self(text)
    }

    fn parser(flags: &[&str], text: &str) {
        let parser = Cmd::new("apparmor_parser").args(flags).arg("-q");
        parser.stdin(text).run().expect_code(0);
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        Self::parser(&["-R"], &self.0);
    }
}

const CURRENT: [&str; 2] = ["cat", "/proc/self/attr/apparmor/current"];

fn confines_by_a_profile(c: &Case) {
    if no_apparmor() {
        return;
    }
    let name = format!("{}-a", c.namespace);
    let _profile = Profile::load(&name, "deny /tmp/secret rw,");
    let flags = format!("--apparmor-profile {name}");
    let shown = format!("{name} (enforce)\n");
    c.run(&format!("--rm {flags}"), "a", &CURRENT)
        .prints(&shown);
    c.run(&format!("-d --null-io {flags}"), "b", &["sleep", "1000"])
        .ok();
    c.exec("", "b", &CURRENT).prints(&shown);
    c.exec("", "b", &["sh", "-c", "echo x > /tmp/other"]).ok();
    c.exec("", "b", &["sh", "-c", "echo x > /tmp/secret"])
        .fails("Permission denied");
    c.remove("b");
    c.run("--rm", "c", &CURRENT).prints("unconfined\n");
}

fn refuses_a_profile_that_is_not_loaded(c: &Case) {
    if no_apparmor() {
        return;
    }
    let flags = "--rm --apparmor-profile none-such";
    let done = c.run(flags, "a", &["true"]).run();
    assert_ne!(done.code(), 0, "{}", done.report());
    assert!(done.err().contains("apparmor"), "{}", done.report());
}

fn loads_the_default_profile(c: &Case) {
    if no_apparmor() {
        return;
    }
    let name = format!("{}-d", c.namespace);
    let flags = format!("--rm --apparmor-default-profile {name}");
    c.run(&flags, "a", &CURRENT)
        .prints(&format!("{name} (enforce)\n"));
    // It denies this, whoever asks.
    let script = "echo x > /proc/sysrq-trigger";
    c.run(&format!("{flags} --privileged"), "b", &["sh", "-c", script])
        .fails("Permission denied");
    let gone = Profile(format!("profile {name} {{}}\n"));
    drop(gone);
}

fn stacks_profiles(c: &Case) {
    if no_apparmor() {
        return;
    }
    let (a, b) = (format!("{}-a", c.namespace), format!("{}-b", c.namespace));
    let _a = Profile::load(&a, "deny /tmp/a rw,");
    let _b = Profile::load(&b, "deny /tmp/b rw,");
    let script = "cat /proc/self/attr/apparmor/current; for f in a b c; do echo x > /tmp/$f && echo $f; done; true";
    let flags = format!("--rm --apparmor-profile {a}//&{b}");
    if c.runtime == RUNC_RUNTIME {
        println!("Corten only: runc knows no stacks");
        return;
    }
    let out = c.run(&flags, "a", &["sh", "-c", script]).ok();
    assert_eq!(out, format!("{a}//&{b} (enforce)\nc\n"));
}

// === cgroup v2 ===

fn no_pure_v2() -> bool {
    let there = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    lacks("pure cgroup v2", there)
}

/// A document for a container of the busybox on this machine, with a cgroup of the namespace.
fn document(c: &Case, id: &str, script: &str) -> Value {
    let root = c.file("rootfs");
    if !root.exists() {
        for dir in ["bin", "proc", "tmp", "sys/fs/cgroup"] {
            fs::create_dir_all(root.join(dir)).unwrap();
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
        for applet in ["sh", "echo", "cat", "sleep", "tail"] {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
    }
    json!({
        "ociVersion": "1.0.2", "root": {"path": root},
        "process": {"args": ["/bin/sh", "-c", script], "cwd": "/", "env": ["PATH=/bin"],
                    "user": {"uid": 0, "gid": 0}},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}],
                  "resources": {"devices": [{"allow": false, "access": "rwm"}]},
                  "cgroupsPath": format!("/{}/{id}", c.namespace)},
    })
}

fn run_document(c: &Case, flags: &str, id: &str, document: &Value) -> Cmd {
    let file = c.file(&format!("{id}.json"));
    fs::write(&file, document.to_string()).unwrap();
    let mut run = c.ctr("run");
    if !flags.contains("--runtime") {
        run = run.args(["--runtime", &c.runtime]);
    }
    run.arg("--fifo-dir")
        .arg(c.dir.join("fifo"))
        .words(flags)
        .arg("--config")
        .arg(file)
        .arg(id)
}

fn sees_its_own_cgroup_only(c: &Case) {
    if no_pure_v2() {
        return;
    }
    let script =
        "cat /proc/self/cgroup /sys/fs/cgroup/cgroup.procs; echo 0 > /sys/fs/cgroup/cgroup.procs";
    let mut spec = document(c, "a", script);
    let list = spec["linux"]["namespaces"].as_array_mut().unwrap();
    list.push(json!({"type": "cgroup"}));
    let list = spec["mounts"].as_array_mut().unwrap();
    list.push(json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]}));
    let done = run_document(c, "--rm", "a", &spec).run();
    // The shell and cat.
    assert!(done.out().starts_with("0::/\n1\n"), "{}", done.report());
    assert_eq!(done.out().lines().count(), 3, "{}", done.report());
    assert!(done.err().contains("Read-only"), "{}", done.report());
}

fn writes_any_file_of_the_cgroup(c: &Case) {
    if no_pure_v2() {
        return;
    }
    let mut spec = document(c, "a", "exec sleep 1000");
    spec["linux"]["resources"]["unified"] = json!({
        "memory.high": "33554432", "memory.low": "1048576", "pids.max": "50",
        "cpu.weight": "77", "memory.oom.group": "1",
    });
    run_document(c, "-d --null-io", "a", &spec).ok();
    let pid = c.pid("a");
    for (file, value) in [
        ("memory.high", "33554432"),
        ("memory.low", "1048576"),
        ("pids.max", "50"),
        ("cpu.weight", "77"),
        ("memory.oom.group", "1"),
    ] {
        assert_eq!(setting(pid, "memory/none", file), value, "{file}");
    }
    c.remove("a");
    let mut spec = document(c, "b", "true");
    spec["linux"]["resources"]["unified"] = json!({"../memory.high": "1"});
    run_document(c, "--rm", "b", &spec).fails("unified resource");
    let _ = c.ctr("containers rm b").run();
}

fn kills_the_whole_container_for_memory(c: &Case) {
    if no_pure_v2() {
        return;
    }
    let script = "tail -c 100000000 /dev/zero | cat > /dev/null; echo survived";
    for (group, survives) in [("0", true), ("1", false)] {
        let mut spec = document(c, "a", script);
        spec["mounts"].as_array_mut().unwrap().push(json!(
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"}
        ));
        spec["linux"]["resources"]["memory"] = json!({"limit": 16 << 20, "swap": 16 << 20});
        spec["linux"]["resources"]["unified"] = json!({"memory.oom.group": group});
        let done = run_document(c, "--rm", "a", &spec).run();
        assert_eq!(done.out() == "survived\n", survives, "{}", done.report());
        done.expect_code(if survives { 0 } else { 137 });
    }
}

fn freezes_in_one_step(c: &Case) {
    if no_pure_v2() {
        return;
    }
    c.sleeper("a");
    let pid = c.pid("a");
    c.ctr("task pause a").ok();
    assert_eq!(setting(pid, "freezer/none", "cgroup.freeze"), "1");
    let events = setting(pid, "freezer/none", "cgroup.events");
    assert!(events.contains("frozen 1"), "{events}");
    c.ctr("task resume a").ok();
    assert_eq!(setting(pid, "freezer/none", "cgroup.freeze"), "0");
    // One that is frozen can be killed all the same.
    c.ctr("task pause a").ok();
    c.remove("a");
}

fn kills_all_in_one_step(c: &Case) {
    if no_pure_v2() {
        return;
    }
    let mut spec = document(c, "a", "sleep 1000 & sleep 1001 & exec sleep 1002");
    spec["linux"]["namespaces"] = json!([{"type": "mount"}]);
    run_document(c, "-d --null-io", "a", &spec).ok();
    let (dir, _) = directory(c.pid("a"), "pids");
    let members = || fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    let three = eventually(DEADLINE, || (members().lines().count() == 3).then_some(()));
    assert!(three.is_some(), "{}", members());
    c.remove("a");
    assert_eq!(members(), "");
}

// === systemd ===

fn no_systemd() -> bool {
    lacks("systemd", Path::new("/run/systemd/system").is_dir())
}

/// Flags that let systemd make the cgroup, and the name of the unit.
fn by_systemd(c: &Case, slice: &str, name: &str) -> (String, String) {
    let name = format!("{}{name}", c.namespace);
    let cgroup = format!("--runtime {} --cgroup {slice}:cit:{name}", c.runtime);
    let unit = format!("cit-{name}.scope");
    if c.runtime == RUNC_RUNTIME {
        return (format!("{cgroup} --runc-systemd-cgroup"), unit);
    }
    let file = c.file("options.toml");
    fs::write(&file, "SystemdCgroup = true\n").unwrap();
    let flags = format!("{cgroup} --runtime-config-path {}", file.display());
    (flags, unit)
}

fn show(unit: &str, property: &str) -> String {
    let show = Cmd::new("systemctl").args(["show", "--value", "-p", property, unit]);
    show.ok().trim().to_owned()
}

fn is_gone(unit: &str) -> bool {
    let gone = eventually(DEADLINE, || {
        (show(unit, "LoadState") == "not-found").then_some(())
    });
    gone.is_some()
}

fn is_a_scope_of_systemd_s(c: &Case) {
    if no_systemd() {
        return;
    }
    let (flags, unit) = by_systemd(c, "machine-cit.slice", "a");
    let flags = format!("-d --null-io {flags} --memory-limit 67108864 --cpus 0.5 --cpu-shares 512");
    c.run(&flags, "a", &["sleep", "1000"]).ok();
    let pid = c.pid("a");
    let (dir, is_v2) = directory(pid, "memory");
    let path = format!("machine.slice/machine-cit.slice/{unit}");
    assert!(dir.ends_with(&path), "{}", dir.display());
    assert_eq!(show(&unit, "ControlGroup"), format!("/{path}"));
    for (property, value) in [
        ("ActiveState", "active"),
        ("Slice", "machine-cit.slice"),
        ("Delegate", "yes"),
        ("CPUQuotaPerSecUSec", "500ms"),
        (if is_v2 { "MemoryMax" } else { "MemoryLimit" }, "67108864"),
        if is_v2 {
            ("CPUWeight", "59")
        } else {
            ("CPUShares", "512")
        },
    ] {
        assert_eq!(show(&unit, property), value, "{property}");
    }
    let limit = setting(pid, "memory/memory.limit_in_bytes", "memory.max");
    assert_eq!(limit, "67108864");
    for controller in [
        "memory",
        "pids",
        "devices",
        "freezer",
        "cpu",
        "name=systemd",
    ] {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        let there = is_v2 || text.contains(controller);
        if !there {
            continue;
        }
        if controller == "name=systemd" {
            let line = text.lines().find(|l| is_v2 || l.contains(controller));
            assert!(line.unwrap().ends_with(&path), "{text}");
            continue;
        }
        let (dir, _) = directory(pid, controller);
        let members = fs::read_to_string(dir.join("cgroup.procs")).unwrap();
        assert_eq!(members.trim(), pid.to_string(), "{controller}");
    }
    c.exec("", "a", &["true"]).ok();
    c.ctr("task pause a").ok();
    c.ctr("task resume a").ok();
    c.remove("a");
    assert!(is_gone(&unit), "{unit} is {}", show(&unit, "ActiveState"));
    assert!(!dir.exists(), "{} is left", dir.display());
}

fn keeps_its_limits_over_a_reload(c: &Case) {
    if no_systemd() {
        return;
    }
    let (flags, unit) = by_systemd(c, "system.slice", "a");
    let flags = format!("-d --null-io {flags} --memory-limit 67108864 --device /dev/loop-control");
    c.run(&flags, "a", &["sleep", "1000"]).ok();
    let pid = c.pid("a");
    let look = || {
        let limit = setting(pid, "memory/memory.limit_in_bytes", "memory.max");
        assert_eq!(limit, "67108864");
        c.exec("", "a", &["sh", "-c", "mknod /d b 7 0; cat /d; rm /d"])
            .run()
            .err()
            .contains("not permitted")
    };
    assert!(look(), "a disk can be read");
    Cmd::new("systemctl").arg("daemon-reload").ok();
    assert!(look(), "a disk can be read after a reload");
    let open = "head -c 0 /dev/loop-control && head -c 1 /dev/zero | wc -c";
    c.exec("", "a", &["sh", "-c", open]).prints("1\n");
    Cmd::new("systemctl")
        .args(["set-property", "--runtime", &unit, "TasksMax=33"])
        .ok();
    assert!(look(), "a disk can be read after a change");
    assert_eq!(setting(pid, "pids/pids.max", "pids.max"), "33");
    c.remove("a");
}

fn has_properties_of_annotations(c: &Case) {
    if no_systemd() {
        return;
    }
    let (flags, unit) = by_systemd(c, "system.slice", "a");
    let property = |text: &str| format!("--annotation org.systemd.property.{text}");
    let good = property("CollectMode='inactive-or-failed'");
    c.run(
        &format!("-d --null-io {flags} {good}"),
        "a",
        &["sleep", "1000"],
    )
    .ok();
    assert_eq!(show(&unit, "CollectMode"), "inactive-or-failed");
    c.remove("a");
    for bad in ["NoSuchThing='1'", "CollectMode=oops", "Bad_Name='x'"] {
        let flags = format!("--rm {flags} {}", property(bad));
        let done = c.run(&flags, "b", &["true"]).run();
        assert_ne!(done.code(), 0, "{bad}");
    }
    assert!(is_gone(&unit));
}

fn refuses_the_name_of_another_unit(c: &Case) {
    if no_systemd() {
        return;
    }
    let (flags, unit) = by_systemd(c, "system.slice", "a");
    let mut other = Cmd::new("systemd-run")
        .args(["--scope", "--unit", &unit, "sleep", "1000"])
        .start();
    let runs = eventually(DEADLINE, || {
        (show(&unit, "ActiveState") == "active").then_some(())
    });
    assert!(runs.is_some());
    c.run(&format!("--rm {flags}"), "a", &["true"])
        .fails("already");
    assert_eq!(
        show(&unit, "ActiveState"),
        "active",
        "it was somebody else's"
    );
    Cmd::new("systemctl").args(["kill", &unit]).ok();
    other.kill();
    assert!(is_gone(&unit));
}

fn takes_the_name_of_a_failed_unit(c: &Case) {
    if no_systemd() {
        return;
    }
    let (flags, unit) = by_systemd(c, "system.slice", "a");
    let _ = Cmd::new("systemd-run")
        .args(["--scope", "--unit", &unit, "-p", "RuntimeMaxSec=1"])
        .args(["sleep", "1000"])
        .run();
    let failed = eventually(DEADLINE, || {
        (show(&unit, "ActiveState") == "failed").then_some(())
    });
    assert!(failed.is_some(), "{}", show(&unit, "ActiveState"));
    c.run(&format!("--rm {flags}"), "a", &["echo", "here"])
        .prints("here\n");
    assert!(is_gone(&unit));
}

fn takes_away_the_unit_of_a_dead_shim(c: &Case) {
    if no_systemd() {
        return;
    }
    let (flags, unit) = by_systemd(c, "system.slice", "a");
    c.run(&format!("-d --null-io {flags}"), "a", &["sleep", "1000"])
        .ok();
    let shim = status_of(c.pid("a"), "PPid");
    Cmd::new("kill").args(["-9", &shim]).ok();
    assert!(is_gone(&unit), "{unit} is {}", show(&unit, "ActiveState"));
    let _ = c.ctr("task rm -f a").run();
    c.ctr("containers rm a").ok();
}

fn starts_with_one_process_allowed(c: &Case) {
    if no_systemd() {
        return;
    }
    let (flags, unit) = by_systemd(c, "system.slice", "a");
    let mut spec = document(c, "a", "echo here; (echo there) || echo alone");
    spec["linux"]["cgroupsPath"] = json!(format!("system.slice:cit:{}a", c.namespace));
    spec["linux"]["resources"]["pids"] = json!({"limit": 1});
    if c.runtime == RUNC_RUNTIME {
        println!("Corten only: runc itself is more than one process");
        return;
    }
    let out = run_document(c, &format!("--rm {flags}"), "a", &spec).run();
    assert!(out.out().starts_with("here\n"), "{}", out.report());
    assert!(!out.out().contains("there"), "{}", out.report());
    assert!(is_gone(&unit));
}

fn starts_while_systemd_does(c: &Case) {
    if no_systemd() {
        return;
    }
    for round in ["a", "b", "c"] {
        let (flags, unit) = by_systemd(c, "system.slice", round);
        let anew = Cmd::new("systemctl").arg("daemon-reexec").start();
        c.run(&format!("--rm {flags}"), round, &["echo", "here"])
            .prints("here\n");
        let _ = anew.wait();
        assert!(is_gone(&unit));
    }
}
