//! What keeps a container in: capabilities, seccomp, no-new-privileges, read-only and masked
//! paths, namespaces; and the flags that loosen each.

use std::fs;

use corten_integration::case::Case;
use corten_integration::cgroup::status_of;
use corten_integration::images;
use corten_integration::peers::CORTEN_RUNTIME;
use corten_integration::runner::{Test, with_both_clients};
use corten_integration::tests;

pub(crate) fn tests() -> Vec<Test> {
    let mut all = with_both_clients(tests![
        applies_a_seccomp_profile_of_ones_own,
        has_the_default_capabilities,
        adds_and_drops_capabilities,
        filters_system_calls_on_request,
        refuses_new_privileges,
        makes_the_root_read_only,
        shares_the_host_network_on_request,
        gives_a_privileged_container_everything,
    ]);
    all.extend(tests![
        maps_users_on_request,
        keeps_set_uid_programs_from_raising_privileges,
        takes_capabilities_from_other_users,
        hides_kernel_files,
        has_namespaces_of_its_own,
        stays_inside_when_the_image_tries_to_escape,
        leaks_no_descriptors,
        runs_with_the_oom_score_it_can_get,
        sets_no_more_than_the_default_environment,
    ]);
    all
}

/// The status of a container's init, as the container sees it.
fn status(c: &Case, flags: &str, key: &str) -> String {
    let script = format!("grep ^{key}: /proc/self/status");
    let out = c
        .run(&format!("--rm {flags}"), "a", &["sh", "-c", &script])
        .ok();
    out.split_whitespace().last().unwrap_or_default().to_owned()
}

fn bits(mask: &str) -> u64 {
    u64::from_str_radix(mask, 16).expect("a hexadecimal mask")
}

fn has_the_default_capabilities(c: &Case) {
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(status(c, "", set), "00000000a80425fb", "{set}");
    }
    for set in ["CapInh", "CapAmb"] {
        assert_eq!(bits(&status(c, "", set)), 0, "{set}");
    }
}

fn adds_and_drops_capabilities(c: &Case) {
    let (net_admin, chown) = (1 << 12, 1);
    let mask = status(c, "--cap-add CAP_NET_ADMIN --cap-drop CAP_CHOWN", "CapEff");
    assert_eq!(bits(&mask), (0xa804_25fb | net_admin) & !chown, "{mask}");
}

fn filters_system_calls_on_request(c: &Case) {
    assert_eq!(status(c, "", "Seccomp"), "0");
    assert_eq!(status(c, "--seccomp", "Seccomp"), "2");
    // Without CAP_SYS_ADMIN the default profile refuses new user namespaces, which would else work.
    let unshare = ["unshare", "-U", "true"];
    c.run("--rm --seccomp", "b", &unshare)
        .fails("Operation not permitted");
    c.run("--rm", "c", &unshare).ok();
}

fn refuses_new_privileges(c: &Case) {
    assert_eq!(status(c, "", "NoNewPrivs"), "1");
    assert_eq!(status(c, "--allow-new-privs", "NoNewPrivs"), "0");
}

fn keeps_set_uid_programs_from_raising_privileges(c: &Case) {
    let image = images::setuid();
    let id = ["/usr/bin/id"];
    let bound = c.run_image(&image, "--rm --user 1000", "a", &id).ok();
    assert!(!bound.contains("euid"), "{bound}");
    let free = c
        .run_image(&image, "--rm --user 1000 --allow-new-privs", "b", &id)
        .ok();
    assert!(free.contains("euid=0"), "{free}");
}

fn makes_the_root_read_only(c: &Case) {
    c.run("--rm --read-only", "a", &["touch", "/x"])
        .fails("Read-only file system");
    c.run("--rm --read-only", "b", &["touch", "/run/x"]).ok();
}

fn shares_the_host_network_on_request(c: &Case) {
    let host = fs::read_link("/proc/self/ns/net").unwrap();
    let link = ["readlink", "/proc/self/ns/net"];
    let out = c.run("--rm --net-host", "a", &link).ok();
    assert_eq!(out.trim(), host.to_str().unwrap());
    let out = c.run("--rm", "b", &link).ok();
    assert_ne!(out.trim(), host.to_str().unwrap());
    let resolv = fs::read_to_string("/etc/resolv.conf").unwrap();
    c.run("--rm --net-host", "c", &["cat", "/etc/resolv.conf"])
        .prints(&resolv);
}

fn gives_a_privileged_container_everything(c: &Case) {
    let ours = status_of(std::process::id(), "CapEff");
    assert_eq!(status(c, "--privileged", "CapEff"), ours);
    assert_eq!(status(c, "--privileged", "Seccomp"), "0");
    let script =
        "test -w /proc/sys/kernel/domainname && test -e /dev/kmsg && mount -t tmpfs x /tmp";
    c.run("--rm --privileged", "b", &["sh", "-c", script]).ok();
}

fn applies_a_seccomp_profile_of_ones_own(c: &Case) {
    let profile = c.file("profile.json");
    let json = serde_json::json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}],
    });
    fs::write(&profile, json.to_string()).unwrap();
    let flags = format!("--rm --seccomp --seccomp-profile {}", profile.display());
    c.run(&flags, "a", &["mkdir", "/x"]).fails("not supported");
    c.run(&flags, "b", &["touch", "/x"]).ok();
}

fn takes_capabilities_from_other_users(c: &Case) {
    assert_eq!(bits(&status(c, "--user 1000", "CapEff")), 0);
    assert_eq!(bits(&status(c, "--user 1000", "CapPrm")), 0);
    assert_eq!(status(c, "--user 1000", "CapBnd"), "00000000a80425fb");
}

fn hides_kernel_files(c: &Case) {
    // A masked file shows nothing, a masked directory is empty, read-only paths refuse writes.
    let script = "cat /proc/kcore /proc/keys /proc/timer_list 2>/dev/null | wc -c; \
                  ls /proc/acpi /sys/firmware 2>/dev/null | grep -vc : ; true";
    let out = c.run("--rm", "a", &["sh", "-c", script]).ok();
    assert!(out.starts_with("0\n"), "{out}");
    for path in [
        "/proc/sys/kernel/domainname",
        "/proc/sysrq-trigger",
        "/sys/kernel/uevent_seqnum",
    ] {
        let script = format!("echo x > {path}");
        c.run("--rm", "b", &["sh", "-c", &script]).fails("");
    }
}

fn has_namespaces_of_its_own(c: &Case) {
    c.sleeper("a");
    let pid = c.pid("a");
    for kind in ["pid", "mnt", "uts", "ipc", "net"] {
        let ours = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        let theirs = fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
        assert_ne!(ours, theirs, "{kind} is shared with the host");
    }
    let user = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/user")).unwrap();
    assert_eq!(user("self"), user(&pid.to_string()));
    c.remove("a");
}

fn maps_users_on_request(c: &Case) {
    let flags = "--rm --uidmap 0:100000:65536 --gidmap 0:200000:65536";
    let script = "id -u; cat /proc/self/uid_map /proc/self/gid_map | tr -s ' '; touch /tmp/x; \
                  stat -c %u:%g /tmp/x /bin/busybox";
    let out = c.run(flags, "a", &["sh", "-c", script]).ok();
    assert_eq!(out, "0\n 0 100000 65536\n 0 200000 65536\n0:0\n0:0\n");
}

fn stays_inside_when_the_image_tries_to_escape(c: &Case) {
    let outside = c.file("outside");
    fs::create_dir(&outside).unwrap();
    let image = images::hostile(&outside);
    let imported = c.new_ctr("images import").arg(image.archive()).run();
    let inside = || fs::read_dir(&outside).unwrap().count();
    assert_eq!(
        inside(),
        0,
        "the import wrote outside of the image:\n{}",
        imported.report()
    );
    assert!(!c.daemon.root().join("dotdot").exists());
    if imported.code() == 0 {
        c.run_named(&image.name, "--rm", "a", &["true"]).ok();
        assert_eq!(inside(), 0, "the container's root leads outside");
    }
}

fn leaks_no_descriptors(c: &Case) {
    // 0, 1, 2 and the descriptor with which ls reads the directory.
    let out = c.run("--rm", "a", &["ls", "/proc/self/fd"]).ok();
    assert_eq!(
        out.split_whitespace().collect::<Vec<_>>(),
        ["0", "1", "2", "3"]
    );
    let out = c.run("--rm", "b", &["ls", "-l", "/proc/self/fd"]).ok();
    let names: Vec<_> = out.lines().filter(|l| l.contains("->")).collect();
    assert!(
        names
            .iter()
            .take(3)
            .all(|l| l.contains("pipe:") || l.contains("fifo") || l.contains("/dev/null")),
        "{out}"
    );
}

fn runs_with_the_oom_score_it_can_get(c: &Case) {
    let name = c.has(&images::busybox());
    let run = |score: i32| {
        let dump = c.file("spec.json");
        let dumped = c
            .new_ctr("run --rm --null-io --runtime")
            .arg(&c.runtime)
            .arg("--dump-config");
        // A run that fails still writes the spec: the score is then put into it.
        dumped.arg(&dump).args([&name, "dump", "true"]).ok();
        let mut spec: serde_json::Value =
            serde_json::from_slice(&fs::read(&dump).unwrap()).unwrap();
        let root = c.file("rootfs");
        fs::create_dir_all(root.join("bin")).unwrap();
        fs::copy("/bin/busybox", root.join("bin/cat")).unwrap();
        spec["root"]["path"] = serde_json::json!(root);
        spec["process"]["oomScoreAdj"] = serde_json::json!(score);
        spec["process"]["args"] = serde_json::json!(["/bin/cat", "/proc/self/oom_score_adj"]);
        spec["linux"]["cgroupsPath"] = serde_json::json!(format!("/{}/a", c.namespace));
        let file = c.file("config.json");
        fs::write(&file, spec.to_string()).unwrap();
        let run = c
            .ctr("run --rm --runtime")
            .arg(&c.runtime)
            .arg("--config")
            .arg(file);
        run.arg("--fifo-dir").arg(c.dir.join("fifo")).arg("a").run()
    };
    let done = run(500);
    done.expect_code(0);
    assert_eq!(done.out(), "500\n");

    let lowered = fs::write("/proc/self/oom_score_adj", "-1").is_ok();
    if lowered {
        println!("not tried: this host lets us lower oom_score_adj");
        fs::write("/proc/self/oom_score_adj", "0").unwrap();
    } else if c.runtime != CORTEN_RUNTIME {
        println!("Corten only: runc fails where the host refuses a negative oom_score_adj");
        assert_ne!(run(-500).code(), 0);
        let _ = c.ctr("containers rm a").run();
    } else {
        let done = run(-500);
        done.expect_code(0);
        let score: i32 = done.out().trim().parse().unwrap();
        assert!(
            (0..=1).contains(&score),
            "clamped to what the host allows, not {score}"
        );
    }
}

fn sets_no_more_than_the_default_environment(c: &Case) {
    let out = c.run("--rm", "a", &["env"]).ok();
    let mut names: Vec<_> = out
        .lines()
        .filter_map(|l| Some(l.split_once('=')?.0))
        .collect();
    names.sort_unstable();
    // runc adds HOME from the image's /etc/passwd.
    assert_eq!(names, ["HOME", "PATH"], "{out}");
}
