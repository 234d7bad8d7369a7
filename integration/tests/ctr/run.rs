//! `ctr run`: output, exit codes, input, environment, mounts, users, images of every kind.

use std::fs;

use corten_integration::case::Case;
use corten_integration::images;
use corten_integration::process::program;
use corten_integration::runner::{Test, with_both_clients};
use corten_integration::tests;

pub(crate) fn tests() -> Vec<Test> {
    let mut all = with_both_clients(tests![
        reads_the_environment_from_a_file,
        runs_from_a_plain_directory,
        runs_from_a_config_file,
        writes_the_pid_file,
        logs_to_a_file,
        joins_the_network_of_another,
        names_the_image_and_labels,
        runs_from_the_native_snapshotter,
        prints_what_the_container_prints,
        passes_the_exit_code_on,
        keeps_stdout_and_stderr_apart,
        feeds_stdin_to_the_container,
        passes_ten_megabytes_through,
        runs_detached_until_removed,
        sets_the_environment,
        starts_in_the_directory_asked_for,
        bind_mounts_a_directory,
        mounts_a_tmpfs,
        uses_what_the_image_configures,
    ]);
    all.extend(tests![
        runs_as_the_user_asked_for,
        makes_a_missing_working_directory,
        gives_the_user_their_groups,
        sets_the_hostname,
        shows_the_default_devices,
        shows_only_its_own_processes,
        runs_dynamically_linked_programs,
        sees_layers_as_one_tree,
        runs_a_zstd_image,
        runs_a_docker_image,
        logs_to_a_program,
        writes_are_lost_with_the_container,
        leaves_no_zombies,
        accepts_a_long_argument_list,
        ends_when_its_client_is_signalled,
        kills_what_init_leaves_running,
    ]);
    all
}

fn prints_what_the_container_prints(c: &Case) {
    c.run("--rm", "a", &["echo", "hello"]).prints("hello\n");
}

fn passes_the_exit_code_on(c: &Case) {
    for code in [0, 1, 42, 255] {
        let script = format!("exit {code}");
        c.run("--rm", "a", &["sh", "-c", &script])
            .run()
            .expect_code(code);
    }
}

fn keeps_stdout_and_stderr_apart(c: &Case) {
    let done = c
        .run("--rm", "a", &["sh", "-c", "echo out; echo err >&2"])
        .run();
    done.expect_code(0);
    assert_eq!(
        (done.out().as_str(), done.err().as_str()),
        ("out\n", "err\n")
    );
}

fn feeds_stdin_to_the_container(c: &Case) {
    // Input that ends before the task exists is lost with any daemon: wait for the container.
    let mut run = c
        .run("--rm", "a", &["sh", "-c", "echo ready; wc -c"])
        .stdin("")
        .start();
    run.wait_output("ready");
    run.send(&vec![b'x'; 100_000]);
    let done = run.wait();
    done.expect_code(0);
    assert_eq!(done.out(), "ready\n100000\n");
}

fn passes_ten_megabytes_through(c: &Case) {
    // It ends when told to: ctr drops what it has not copied by the time of the exit.
    let script = "yes 0123456789abcde | head -c 10485760; cat";
    let mut run = c.run("--rm", "a", &["sh", "-c", script]).stdin("").start();
    run.wait_length(10 << 20);
    let done = run.wait();
    done.expect_code(0);
    assert_eq!(done.stdout.len(), 10 << 20);
    assert!(
        done.stdout
            .chunks(16)
            .all(|line| line == b"0123456789abcde\n"),
        "bytes got mixed up"
    );
}

fn runs_detached_until_removed(c: &Case) {
    c.sleeper("a");
    assert_eq!(c.status("a").as_deref(), Some("RUNNING"));
    c.remove("a");
    assert_eq!(c.status("a"), None);
}

fn sets_the_environment(c: &Case) {
    let out = c
        .run(
            "--rm --env A=1 --env B=two=2 --env PATH=/bin",
            "a",
            &["env"],
        )
        .ok();
    let lines: Vec<_> = out.lines().collect();
    assert!(
        lines.contains(&"A=1") && lines.contains(&"B=two=2"),
        "{out}"
    );
    assert_eq!(
        lines.iter().filter(|l| l.starts_with("PATH=")).count(),
        1,
        "{out}"
    );
}

fn starts_in_the_directory_asked_for(c: &Case) {
    c.run("--rm --cwd /usr/bin", "a", &["pwd"])
        .prints("/usr/bin\n");
}

fn runs_as_the_user_asked_for(c: &Case) {
    let who = ["sh", "-c", "echo $(id -u):$(id -g)"];
    c.run("--rm --user 1234", "a", &who).prints("1234:0\n");
    c.run("--rm --user 1234:5678", "b", &who)
        .prints("1234:5678\n");
    c.run("--rm --user alice", "c", &who).prints("1000:1000\n");
    c.run("--rm --user alice:staff", "d", &who)
        .prints("1000:50\n");
}

fn bind_mounts_a_directory(c: &Case) {
    let dir = c.file("shared");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("in"), "from outside").unwrap();
    let mount = |options: &str| {
        format!(
            "--rm --mount type=bind,src={},dst=/mnt/deep,options={options}",
            dir.display()
        )
    };
    let script = "cat /mnt/deep/in; echo from inside > /mnt/deep/out";
    c.run(&mount("rbind:rw"), "a", &["sh", "-c", script])
        .prints("from outside");
    assert_eq!(
        fs::read_to_string(dir.join("out")).unwrap(),
        "from inside\n"
    );
    let refused = c
        .run(&mount("rbind:ro"), "b", &["touch", "/mnt/deep/no"])
        .fails("Read-only");
    refused.expect_code(1);
}

fn mounts_a_tmpfs(c: &Case) {
    let flags = "--rm --mount type=tmpfs,src=tmpfs,dst=/scratch,options=size=64k:mode=1777";
    let out = c
        .run(
            flags,
            "a",
            &["sh", "-c", "stat -c %a /scratch; df -k /scratch"],
        )
        .ok();
    assert!(out.starts_with("1777\n"), "{out}");
    assert!(
        out.contains(" 64 "),
        "should have 64 blocks of 1 KiB: {out}"
    );
}

fn uses_what_the_image_configures(c: &Case) {
    let image = images::configured();
    let run = c.run_image(&image, "--rm", "a", &[]);
    run.prints("entry hello in /home/alice as 1000 with default\n");
    // Arguments take the place of entrypoint and command alike.
    c.run_image(&image, "--rm", "b", &["echo", "mine"])
        .prints("mine\n");
}

fn makes_a_missing_working_directory(c: &Case) {
    c.run("--rm --cwd /not/there/yet", "a", &["pwd"])
        .prints("/not/there/yet\n");
}

fn gives_the_user_their_groups(c: &Case) {
    // alice is a member of staff (50) besides her own group.
    let out = c.run("--rm --user alice", "a", &["id", "-G"]).ok();
    let mut groups: Vec<_> = out.split_whitespace().collect();
    groups.sort_unstable();
    assert_eq!(groups, ["1000", "50"]);
}

fn reads_the_environment_from_a_file(c: &Case) {
    let file = c.file("env");
    fs::write(&file, "FROM_FILE=yes\nOTHER=a b\n").unwrap();
    let flags = format!("--rm --env-file {}", file.display());
    c.run(&flags, "a", &["sh", "-c", "echo $FROM_FILE $OTHER"])
        .prints("yes a b\n");
}

fn sets_the_hostname(c: &Case) {
    c.run("--rm --hostname rusty", "a", &["hostname"])
        .prints("rusty\n");
}

fn shows_the_default_devices(c: &Case) {
    let script = "for d in null zero full random urandom tty; do \
                  stat -c '%n %F %t:%T %a' /dev/$d; done; \
                  for l in fd stdin stdout stderr ptmx; do readlink /dev/$l; done";
    let out = c.run("--rm", "a", &["sh", "-c", script]).ok();
    let mut expected = String::new();
    let devices = [
        ("null", "1:3"),
        ("zero", "1:5"),
        ("full", "1:7"),
        ("random", "1:8"),
        ("urandom", "1:9"),
    ];
    for (name, number) in devices.into_iter().chain([("tty", "5:0")]) {
        expected += &format!("/dev/{name} character special file {number} 666\n");
    }
    expected += "/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx\n";
    assert_eq!(out, expected);
    let mounts = c.run("--rm", "b", &["cat", "/proc/mounts"]).ok();
    for (point, kind) in [
        ("/", "overlay"),
        ("/proc", "proc"),
        ("/dev", "tmpfs"),
        ("/dev/pts", "devpts"),
        ("/dev/shm", "tmpfs"),
        ("/dev/mqueue", "mqueue"),
        ("/sys", "sysfs"),
        ("/run", "tmpfs"),
    ] {
        let found = mounts.lines().any(|l| {
            let fields: Vec<_> = l.split(' ').collect();
            fields[1] == point && fields[2] == kind
        });
        assert!(found, "no {kind} on {point}:\n{mounts}");
    }
}

fn shows_only_its_own_processes(c: &Case) {
    let out = c
        .run(
            "--rm",
            "a",
            &["sh", "-c", "echo $$; ls -d /proc/[0-9]* | wc -l"],
        )
        .ok();
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(lines[0], "1", "init is pid 1");
    assert!(
        lines[1].parse::<u32>().unwrap() <= 4,
        "sees foreign processes: {out}"
    );
}

fn runs_dynamically_linked_programs(c: &Case) {
    let image = images::glibc();
    c.run_image(&image, "--rm --env A=b", "a", &["env", "-u", "PATH"])
        .ok();
    c.run_image(&image, "--rm", "b", &["/usr/bin/id", "-u"])
        .prints("0\n");
}

fn sees_layers_as_one_tree(c: &Case) {
    let script = "cd /t; ls | tr '\\n' ' '; echo; ls -A opaque becomes-dir | tr '\\n' ' '; echo; \
                  cat becomes-file replaced count; echo; \
                  stat -c '%n %a %u:%g %h' replaced owned kept/a kept/b; \
                  readlink kept/link; readlink kept/dangling; stat -c %F fifo; \
                  find /long -type f | wc -c; find / -xdev -name '.wh.*' | wc -l";
    let out = c
        .run_image(&images::layered(), "--rm", "a", &["sh", "-c", script])
        .ok();
    let numbers = "n0 n1 n10 n11 n12 n13 n14 n15 n16 n17 n2 n3 n4 n5 n6 n7 n8 n9";
    let expected = format!(
        "becomes-dir becomes-file count fifo kept {numbers} opaque owned replaced xattr \n\
         becomes-dir: inside  opaque: upper \nfile nowsecond17\n\
         replaced 644 0:0 1\nowned 4755 1000:50 1\nkept/a 640 0:0 2\nkept/b 640 0:0 2\n\
         a\n/no/such/file\nfifo\n328\n0\n"
    );
    assert_eq!(out, expected);
}

fn runs_a_zstd_image(c: &Case) {
    c.run_image(&images::zstd(), "--rm", "a", &["cat", "/plain"])
        .prints("plain");
}

fn runs_a_docker_image(c: &Case) {
    c.run_image(&images::docker(), "--rm", "a", &["echo", "docker"])
        .prints("docker\n");
}

fn runs_from_the_native_snapshotter(c: &Case) {
    c.run(
        "--rm --snapshotter native",
        "a",
        &["sh", "-c", "touch /x; ls /x"],
    )
    .prints("/x\n");
    // The image's snapshots there are not removed with it before the next collection.
    let keys = c.column("snapshots --snapshotter native ls");
    assert_eq!(keys.len(), 1, "one layer: {keys:?}");
}

fn runs_from_a_plain_directory(c: &Case) {
    let root = busybox_directory(c);
    let flags = format!("--rm --fifo-dir {} --rootfs", c.dir.join("fifo").display());
    let run = c
        .ctr("run --runtime")
        .arg(&c.runtime)
        .words(&flags)
        .arg(&root)
        .arg("a");
    run.args(["/bin/echo", "no image"]).prints("no image\n");
}

fn runs_from_a_config_file(c: &Case) {
    let root = busybox_directory(c);
    let spec = serde_json::json!({
        "ociVersion": "1.0.2", "root": {"path": root},
        "process": {"args": ["/bin/sh", "-c", "echo $FROM; exit 3"], "cwd": "/",
                    "env": ["PATH=/bin", "FROM=config"], "user": {"uid": 0, "gid": 0}},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}],
                  "cgroupsPath": format!("/{}/a", c.namespace)},
    });
    let file = c.file("config.json");
    fs::write(&file, spec.to_string()).unwrap();
    let run = c
        .ctr("run --rm --runtime")
        .arg(&c.runtime)
        .arg("--fifo-dir")
        .arg(c.dir.join("fifo"));
    let done = run.arg("--config").arg(file).arg("a").run();
    done.expect_code(3);
    assert_eq!(done.out(), "config\n");
}

/// The busybox image's tree in a directory of the test.
fn busybox_directory(c: &Case) -> std::path::PathBuf {
    let root = c.file("rootfs");
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::create_dir_all(root.join("proc")).unwrap();
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for applet in ["sh", "echo", "cat", "sleep"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    root
}

fn writes_the_pid_file(c: &Case) {
    let file = c.file("pid");
    c.run(
        &format!("-d --null-io --pid-file {}", file.display()),
        "a",
        &["sleep", "100"],
    )
    .ok();
    assert_eq!(
        fs::read_to_string(&file).unwrap().trim(),
        c.pid("a").to_string()
    );
    c.remove("a");
}

fn logs_to_a_file(c: &Case) {
    let file = c.file("logs/deep/log");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    let flags = format!("-d --log-uri file://{}", file.display());
    let mut script = "echo out; echo err >&2".to_owned();
    if c.is_reference() {
        println!("Corten only: the stock shim may end before it has copied the last lines");
        script += "; exec sleep 1000";
    }
    c.run(&flags, "a", &["sh", "-c", &script]).ok();
    let both = || {
        let log = fs::read_to_string(&file).unwrap_or_default();
        let mut lines: Vec<_> = log.lines().collect();
        lines.sort_unstable();
        (lines == ["err", "out"]).then_some(())
    };
    let both = corten_integration::process::eventually(corten_integration::process::DEADLINE, both);
    assert!(both.is_some(), "{:?}", fs::read_to_string(&file));
    c.remove("a");
}

fn logs_to_a_program(c: &Case) {
    // A logger gets stdout as fd 3, stderr as fd 4, and says by closing fd 5 that it is ready.
    let script = c.file("logger");
    let file = c.file("log");
    let text = format!(
        "#!/bin/sh\nexec 5>&-\necho \"$CONTAINER_ID $CONTAINER_NAMESPACE $*\" > {0}\n\
         cat <&3 >> {0} &\ncat <&4 >> {0} &\nwait\n",
        file.display()
    );
    program(&script, &text);
    let flags = format!("-d --log-uri binary://{}?key=value", script.display());
    c.run(&flags, "a", &["sh", "-c", "echo out; echo err >&2"])
        .ok();
    c.wait_stopped("a");
    c.remove("a");
    let ended = || {
        let log = fs::read_to_string(&file).unwrap_or_default();
        (log.contains("out\n") && log.contains("err\n")).then_some(log)
    };
    let log = corten_integration::process::eventually(corten_integration::process::DEADLINE, ended);
    let log = log.unwrap_or_else(|| panic!("{:?}", fs::read_to_string(&file)));
    assert!(
        log.starts_with(&format!("a {} key value\n", c.namespace)),
        "{log}"
    );
}

fn joins_the_network_of_another(c: &Case) {
    c.sleeper("a");
    let path = format!("/proc/{}/ns/net", c.pid("a"));
    let mine = fs::read_link(&path).unwrap();
    let flags = format!("--rm --with-ns network:{path}");
    let theirs = c.run(&flags, "b", &["readlink", "/proc/self/ns/net"]).ok();
    assert_eq!(theirs.trim(), mine.to_str().unwrap());
    c.remove("a");
}

fn writes_are_lost_with_the_container(c: &Case) {
    c.run("--rm", "a", &["sh", "-c", "echo x > /new; rm /etc/passwd"])
        .ok();
    c.run(
        "--rm",
        "a",
        &["sh", "-c", "ls /new /etc/passwd 2>/dev/null; true"],
    )
    .prints("/etc/passwd\n");
}

fn leaves_no_zombies(c: &Case) {
    c.sleeper("a");
    for _ in 0..3 {
        // The inner child outlives its parents and becomes a child of init, or of the shim.
        c.exec("", "a", &["sh", "-c", "sh -c 'sleep 0.05 &'"]).ok();
    }
    let shims = corten_integration::leaks::processes_naming(&c.namespace);
    let shims = shims
        .iter()
        .filter(|(_, line)| line.contains("containerd-shim"));
    let shims: Vec<_> = shims.map(|(pid, _)| pid.to_string()).collect();
    assert!(!shims.is_empty());
    let zombies = || {
        let found = fs::read_dir("/proc").unwrap().flatten().filter(|entry| {
            let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            let mut rest = stat.rsplit(") ").next().unwrap_or_default().split(' ');
            rest.next() == Some("Z") && rest.next().is_some_and(|p| shims.iter().any(|s| s == p))
        });
        found.count()
    };
    let none = || (zombies() == 0).then_some(());
    let none = corten_integration::process::eventually(corten_integration::process::DEADLINE, none);
    assert!(
        none.is_some(),
        "{} children of the shim are not reaped",
        zombies()
    );
    c.remove("a");
}

fn accepts_a_long_argument_list(c: &Case) {
    let long = "x".repeat(20_000);
    let done = c
        .run("--rm", "a", &["echo", &long, "", "two words", "ümlaut"])
        .ok();
    assert_eq!(done, format!("{long}  two words ümlaut\n"));
}

fn names_the_image_and_labels(c: &Case) {
    c.run(
        "-d --null-io --label who=me --annotation org.example.note=here",
        "a",
        &["sleep", "100"],
    )
    .ok();
    let info = c.ctr("containers info a").ok();
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    assert_eq!(info["Image"], images::busybox().name);
    assert_eq!(info["Labels"]["who"], "me");
    assert_eq!(info["Spec"]["annotations"]["org.example.note"], "here");
    assert_eq!(info["Runtime"]["Name"], c.runtime);
    assert_eq!(info["Snapshotter"], "overlayfs");
    c.remove("a");
}

fn ends_when_its_client_is_signalled(c: &Case) {
    // ctr forwards SIGTERM to the task and reports how it ended.
    let script = "trap 'echo caught; exit 9' TERM; echo ready; while :; do sleep 0.05; done";
    let mut run = c.run("--rm", "a", &["sh", "-c", script]).start();
    run.wait_output("ready");
    // ctr sets its handler up after the start; one more call of ctr's takes longer than that.
    assert_eq!(c.status("a").as_deref(), Some("RUNNING"));
    run.signal(rustix::process::Signal::TERM);
    let done = run.ended();
    done.expect_code(9);
    assert_eq!(done.out(), "ready\ncaught\n");
}

fn kills_what_init_leaves_running(c: &Case) {
    let script = "sleep 1000 & sleep 1000 & exit 5";
    c.run("--rm", "a", &["sh", "-c", script])
        .run()
        .expect_code(5);
}
