//! Flags of `ctr containers create` and `ctr run` that end in the container's record: the client
//! makes the spec, the daemon keeps it word for word.

use std::fs;

use corten_integration::case::Case;
use corten_integration::ctr::Client;
use corten_integration::images;
use corten_integration::peers::RUNC_RUNTIME;
use corten_integration::runner::{Test, with_both_clients};
use corten_integration::tests;
use serde_json::{Value, json};

pub(crate) fn tests() -> Vec<Test> {
    let mut all = with_both_clients(tests![
        labels_the_snapshot_of_a_run,
        keeps_what_create_was_told,
        keeps_where_the_root_is,
        keeps_a_config_file,
        keeps_runtime_options,
        limits_as_run_was_told,
        writes_the_pid_of_what_it_starts,
        uses_another_runc,
    ]);
    all.extend(tests![
        keeps_newer_flags,
        keeps_the_root_in_place,
        dumps_the_config,
        maps_users_by_labels,
        drops_host_devices_of_the_privileged,
        makes_a_spec_for_any_platform,
    ]);
    all
}

fn create(c: &Case, flags: &str, id: &str) -> Value {
    let name = c.has(&images::busybox());
    let mut create = c.ctr("containers create");
    if !flags.contains("--runtime ") {
        create = create.args(["--runtime", &c.runtime]);
    }
    create.words(flags).args([&name, id, "true"]).ok();
    serde_json::from_str(&c.ctr("containers info --spec").arg(id).ok()).unwrap()
}

fn has(list: &Value, item: &Value) {
    let found = list.as_array().is_some_and(|all| all.contains(item));
    assert!(found, "no {item} in {list}");
}

fn keeps_what_create_was_told(c: &Case) {
    let profile = c.file("seccomp.json");
    fs::write(&profile, r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#).unwrap();
    let environment = c.file("env");
    fs::write(&environment, "FROM_FILE=yes\n").unwrap();
    let flags = format!(
        "--snapshotter overlayfs --snapshotter-label containerd.io/snapshot/x=y --cwd /tmp \
         --env A=b --env-file {} --label color=rust --annotation org.example.note=hi \
         --mount type=tmpfs,src=tmpfs,dst=/t,options=size=1m --net-host --read-only --tty \
         --with-ns ipc:/proc/1/ns/ipc --allow-new-privs --memory-limit 33554432 \
         --cap-add CAP_SYS_TIME --cap-drop CAP_CHOWN --seccomp --seccomp-profile {} \
         --rdt-class gold --cpu-quota 20000 --cpu-period 50000 --rootfs-propagation rslave \
         --device /dev/null --apparmor-profile none-such",
        environment.display(),
        profile.display()
    );
    let spec = create(c, &flags, "a");
    let process = &spec["process"];
    assert_eq!(process["cwd"], "/tmp");
    assert_eq!(process["terminal"], true);
    has(&process["env"], &json!("A=b"));
    has(&process["env"], &json!("FROM_FILE=yes"));
    assert_ne!(process["noNewPrivileges"], true);
    assert_eq!(process["apparmorProfile"], "none-such");
    let bounding = process["capabilities"]["bounding"].to_string();
    assert!(bounding.contains("CAP_SYS_TIME") && !bounding.contains("\"CAP_CHOWN\""));
    assert_eq!(spec["annotations"]["org.example.note"], "hi");
    assert_eq!(spec["root"]["readonly"], true);
    let mounts = spec["mounts"].as_array().unwrap();
    assert!(mounts.iter().any(|m| m["destination"] == "/t"), "{spec}");
    assert!(
        mounts
            .iter()
            .any(|m| m["destination"] == "/etc/resolv.conf"),
        "the host's network comes with its resolver"
    );
    let linux = &spec["linux"];
    has(
        &linux["namespaces"],
        &json!({"type": "ipc", "path": "/proc/1/ns/ipc"}),
    );
    assert_eq!(linux["resources"]["memory"]["limit"], 33_554_432);
    let cpu = &linux["resources"]["cpu"];
    assert_eq!(
        (&cpu["quota"], &cpu["period"]),
        (&json!(20_000), &json!(50_000))
    );
    assert_eq!(linux["seccomp"]["defaultAction"], "SCMP_ACT_ALLOW");
    assert_eq!(linux["rootfsPropagation"], "rslave");
    assert_eq!(linux["intelRdt"]["closID"], "gold");
    let devices = linux["devices"].as_array().unwrap();
    assert!(devices.iter().any(|d| d["path"] == "/dev/null"), "{linux}");
    let info: Value = serde_json::from_str(&c.ctr("containers info a").ok()).unwrap();
    assert_eq!(info["Labels"]["color"], "rust");
    assert_eq!(info["Snapshotter"], "overlayfs");
    let snapshot: Value = serde_json::from_str(&c.ctr("snapshots info a").ok()).unwrap();
    assert_eq!(snapshot["Labels"]["containerd.io/snapshot/x"], "y");
    c.ctr("containers rm a").ok();

    let spec = create(c, "--privileged", "b");
    assert!(spec["linux"]["maskedPaths"].is_null(), "{spec}");
    c.ctr("containers rm b").ok();
}

fn keeps_where_the_root_is(c: &Case) {
    let root = c.file("rootfs");
    fs::create_dir(&root).unwrap();
    c.ctr("containers create --rootfs --runtime")
        .arg(&c.runtime)
        .arg(&root)
        .args(["a", "true"])
        .ok();
    let info: Value = serde_json::from_str(&c.ctr("containers info a").ok()).unwrap();
    assert_eq!(info["Spec"]["root"]["path"], root.to_str().unwrap());
    assert_eq!(info["SnapshotKey"], "");
    c.ctr("containers rm a").ok();
}

fn keeps_a_config_file(c: &Case) {
    let file = c.file("config.json");
    fs::write(
        &file,
        r#"{"ociVersion": "1.1.0", "hostname": "from-file", "process": {"cwd": "/"}}"#,
    )
    .unwrap();
    c.ctr("containers create --runtime")
        .arg(&c.runtime)
        .arg("--config")
        .arg(&file)
        .arg("a")
        .ok();
    let spec: Value = serde_json::from_str(&c.ctr("containers info --spec a").ok()).unwrap();
    assert_eq!(spec["hostname"], "from-file");
    assert_eq!(spec["process"]["cwd"], "/");
    c.ctr("containers rm a").ok();
}

fn keeps_runtime_options(c: &Case) {
    let runtime = "io.example.other.v1";
    create(
        c,
        &format!("--runtime {runtime} --runtime-config-path /etc/other.toml"),
        "a",
    );
    let info: Value = serde_json::from_str(&c.ctr("containers info a").ok()).unwrap();
    assert_eq!(info["Runtime"]["Name"], runtime);
    let kind = info["Runtime"]["Options"]["type_url"].as_str().unwrap();
    assert_eq!(kind, "runtimeoptions.v1.Options", "{info}");
    c.ctr("containers rm a").ok();
}

fn limits_as_run_was_told(c: &Case) {
    let flags = "-d --null-io --cpu-quota 20000 --cpu-period 50000 --cpuset-mems 0 \
                 --annotation org.example.note=hi --rootfs-propagation rprivate";
    let flags = if c.client == Client::Old {
        flags.replace("--cpuset-mems 0", "")
    } else {
        flags.to_owned()
    };
    c.run(&flags, "a", &["sleep", "1000"]).ok();
    let pid = c.pid("a");
    let quota = corten_integration::cgroup::setting(pid, "cpu/cpu.cfs_quota_us", "cpu.max");
    assert!(quota.starts_with("20000"), "{quota}");
    if flags.contains("mems") {
        let mems = corten_integration::cgroup::setting(pid, "cpuset/cpuset.mems", "cpuset.mems");
        assert_eq!(mems, "0");
    }
    c.remove("a");
}

fn keeps_the_root_in_place(c: &Case) {
    // chroot(2) in place of pivot_root(2): for roots that cannot be pivoted to, as a ramdisk.
    let script = "ls /bin/busybox; grep -c . /proc/self/mounts > /dev/null && echo mounted";
    c.run("--rm --no-pivot", "a", &["sh", "-c", script])
        .prints("/bin/busybox\nmounted\n");
    create(c, "--no-pivot", "b");
    c.ctr("task start --null-io --no-pivot b").ok();
    c.ctr("containers rm b").ok();
}

fn writes_the_pid_of_what_it_starts(c: &Case) {
    let name = c.has(&images::busybox());
    let create = c.ctr("containers create --runtime").arg(&c.runtime);
    create.args([&name, "a", "sleep", "1000"]).ok();
    let (pid, log) = (c.file("pid"), c.file("log"));
    c.ctr("task start --detach --pid-file")
        .arg(&pid)
        .arg("--log-uri")
        .arg(format!("file://{}", log.display()))
        .arg("--fifo-dir")
        .arg(c.dir.join("fifo"))
        .arg("a")
        .ok();
    assert_eq!(fs::read_to_string(&pid).unwrap(), c.pid("a").to_string());
    c.remove("a");
}

fn uses_another_runc(c: &Case) {
    // Under another name, so that only the option leads to it.
    let runc = c.file("another");
    fs::copy(corten_integration::peers::reference("runc"), &runc).unwrap();
    let root = c.file("root");
    let flags = format!(
        "--runtime {RUNC_RUNTIME} --runc-binary {} --runc-root {}",
        runc.display(),
        root.display()
    );
    c.run(&format!("-d --null-io {flags}"), "a", &["sleep", "1000"])
        .ok();
    assert!(root.join(&c.namespace).join("a").exists());
    c.remove("a");
    if c.client == Client::New {
        create(c, &flags, "b");
        let info = c.ctr("containers info b").ok();
        assert!(info.contains("containerd.runc.v1.Options"), "{info}");
        c.ctr("containers rm b").ok();
        let inspect = c.ctr("plugins inspect-runtime").words(&flags).ok();
        assert!(inspect.contains("ociVersionMax"), "{inspect}");
    }
}

fn keeps_newer_flags(c: &Case) {
    let classes = c.file("classes.yaml");
    fs::write(&classes, "Classes:\n  slow:\n  - Weight: 80\n").unwrap();
    let flags = format!(
        "--hostname rusty --user 1000:50 --blockio-config-file {} --blockio-class slow",
        classes.display()
    );
    let spec = create(c, &flags, "a");
    assert_eq!(spec["hostname"], "rusty");
    assert_eq!(spec["process"]["user"]["uid"], 1000);
    assert_eq!(spec["process"]["user"]["gid"], 50);
    assert_eq!(spec["linux"]["resources"]["blockIO"]["weight"], 80);
    c.ctr("containers rm a").ok();
}

fn dumps_the_config(c: &Case) {
    let file = c.file("dump.json");
    let flags = format!("--rm --dump-config {} --env A=b", file.display());
    let done = c.run(&flags, "a", &["true"]).run();
    done.expect_code(0);
    let spec: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    has(&spec["process"]["env"], &json!("A=b"));
}

fn labels_the_snapshot_of_a_run(c: &Case) {
    let newer = if c.client == Client::New {
        "--sync-fs"
    } else {
        ""
    };
    let flags = format!(
        "-d --null-io --snapshotter overlayfs --snapshotter-label containerd.io/snapshot/x=y \
         --platform linux/amd64 {newer}"
    );
    c.run(&flags, "a", &["sleep", "1000"]).ok();
    let snapshot: Value = serde_json::from_str(&c.ctr("snapshots info a").ok()).unwrap();
    assert_eq!(snapshot["Labels"]["containerd.io/snapshot/x"], "y");
    c.remove("a");
}

fn maps_users_by_labels(c: &Case) {
    let flags = "--rm --uidmap 0:100000:65536 --gidmap 0:200000:65536 --remap-labels";
    let script = "stat -c %u:%g /bin/busybox; cat /proc/self/uid_map";
    let out = c.run(flags, "a", &["sh", "-c", script]).ok();
    let words: Vec<_> = out.split_whitespace().collect();
    assert_eq!(words, ["0:0", "0", "100000", "65536"], "{out}");
}

fn drops_host_devices_of_the_privileged(c: &Case) {
    let count = |flags: &str, id: &str| {
        let out = c.run(flags, id, &["ls", "/dev"]).ok();
        out.lines().count()
    };
    let all = count("--rm --privileged", "a");
    let few = count("--rm --privileged --privileged-without-host-devices", "b");
    assert!(few <= all, "{few} devices without the host's, {all} with");
}

fn makes_a_spec_for_any_platform(c: &Case) {
    let spec: Value = serde_json::from_str(&c.ctr("oci spec").ok()).unwrap();
    assert!(spec["linux"].is_object(), "{spec}");
    let spec: Value =
        serde_json::from_str(&c.ctr("oci spec --platform windows/amd64").ok()).unwrap();
    assert!(spec["windows"].is_object(), "{spec}");
}
