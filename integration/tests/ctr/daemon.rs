//! The daemon itself: version, plugins, namespaces, command line, config, signals.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::process::Output;
use std::time::Duration;

use corten_integration::case::Case;
use corten_integration::daemon::{Daemon, Setup};
use corten_integration::process::{DEADLINE, eventually, exits_within};
use corten_integration::runner::{Test, with_both_clients};
use corten_integration::tests;
use rustix::process::{Pid, Signal, kill_process};

pub(crate) fn tests() -> Vec<Test> {
    let mut all = with_both_clients(tests![
        shows_a_plugin_in_detail,
        tells_its_version,
        lists_its_plugins,
        manages_namespaces
    ]);
    all.extend(tests![
        tells_about_itself,
        guards_its_sockets,
        prints_its_version,
        prints_its_default_config,
        prints_the_config_in_force,
        refuses_a_config_it_cannot_read,
        refuses_a_config_of_the_future,
        refuses_a_missing_config,
        refuses_root_and_state_in_one_place,
        refuses_an_unknown_flag,
        starts_with_flags_in_place_of_a_config,
        starts_with_older_configs,
        tells_systemd_when_it_is_ready,
        ends_on_sigterm,
        survives_sigusr1_and_sigpipe,
        fails_without_a_required_plugin,
        leaves_out_a_disabled_plugin,
        reads_imported_configs,
        answers_many_clients_at_once,
        inspects_a_runtime,
    ]);
    all
}

fn tells_its_version(c: &Case) {
    let out = c.ctr("version").ok();
    let server = out
        .split("Server:")
        .nth(1)
        .unwrap_or_else(|| panic!("no server in {out}"));
    let version = server
        .lines()
        .find_map(|l| l.trim().strip_prefix("Version:"))
        .unwrap()
        .trim();
    // Clients choose what they may use by this number.
    let numbers = version.trim_start_matches('v');
    let major: u32 = numbers.split('.').next().unwrap().parse().unwrap();
    assert!(
        major >= 2 && numbers.split('.').count() >= 3,
        "{version} is no version from 2.0.0 on"
    );
    assert!(server.contains("UUID:"), "{server}");
}

fn lists_its_plugins(c: &Case) {
    let table = c.ctr("plugins ls").ok();
    let has = |kind: &str, id: &str| {
        let row = table
            .lines()
            .map(|l| l.split_whitespace().collect::<Vec<_>>());
        let row = row
            .into_iter()
            .find(|r| r.first() == Some(&kind) && r.get(1) == Some(&id));
        let row = row.unwrap_or_else(|| panic!("no {kind} {id}:\n{table}"));
        assert_eq!(row.last(), Some(&"ok"), "{row:?}");
    };
    has("io.containerd.content.v1", "content");
    has("io.containerd.snapshotter.v1", "overlayfs");
    has("io.containerd.snapshotter.v1", "native");
    has("io.containerd.differ.v1", "walking");
    has("io.containerd.metadata.v1", "bolt");
    has("io.containerd.event.v1", "exchange");
    has("io.containerd.gc.v1", "scheduler");
    has("io.containerd.lease.v1", "manager");
    has("io.containerd.runtime.v2", "task");
    has("io.containerd.streaming.v1", "manager");
    has("io.containerd.transfer.v1", "local");
    for id in [
        "containers",
        "content",
        "diff",
        "events",
        "images",
        "introspection",
        "leases",
    ] {
        has("io.containerd.grpc.v1", id);
    }
    for id in [
        "namespaces",
        "snapshots",
        "tasks",
        "version",
        "healthcheck",
        "transfer",
    ] {
        has("io.containerd.grpc.v1", id);
    }
}

fn manages_namespaces(c: &Case) {
    let name = format!("{}-x", c.namespace);
    c.ctr("namespaces create").args([&name, "a=b"]).ok();
    c.ctr("namespaces create")
        .arg(&name)
        .fails("already exists");
    let table = c.ctr("namespaces ls").ok();
    let row = table
        .lines()
        .find(|l| l.starts_with(&name))
        .unwrap_or_else(|| panic!("{table}"));
    assert!(row.contains("a=b"), "{row}");
    c.ctr("namespaces label").args([&name, "a=c", "d=e"]).ok();
    let table = c.ctr("namespaces ls").ok();
    let row = table.lines().find(|l| l.starts_with(&name)).unwrap();
    assert!(row.contains("a=c") && row.contains("d=e"), "{row}");
    // A namespace with something in it stays.
    let image = corten_integration::images::busybox();
    c.new_ctr("-n")
        .arg(&name)
        .words("images import --no-unpack")
        .arg(image.archive())
        .ok();
    let refused = c.ctr("namespaces rm").arg(&name).run();
    assert_ne!(refused.code(), 0, "{}", refused.report());
    assert!(
        refused.err().contains("must be empty"),
        "{}",
        refused.report()
    );
    c.ctr("-n")
        .arg(&name)
        .words("images rm --sync")
        .arg(&image.name)
        .ok();
    c.ctr("namespaces rm").arg(&name).ok();
    assert!(!c.ctr("namespaces ls -q").ok().contains(&name));
}

fn shows_a_plugin_in_detail(c: &Case) {
    let out = c.ctr("plugins ls -d id==overlayfs").ok();
    assert!(
        out.contains("io.containerd.snapshotter.v1") && out.contains("Exports:"),
        "{out}"
    );
    let root = c
        .daemon
        .root()
        .join("io.containerd.snapshotter.v1.overlayfs");
    assert!(out.contains(root.to_str().unwrap()), "{out}");
}

fn tells_about_itself(c: &Case) {
    let info: serde_json::Value = serde_json::from_str(&c.ctr("info").ok()).unwrap();
    assert_eq!(info["server"]["pid"], c.daemon.pid());
    assert_eq!(info["server"]["uuid"].as_str().unwrap().len(), 36, "{info}");
    let pidns = fs::read_link("/proc/self/ns/pid").unwrap();
    let number = info["server"]["pidns"].to_string();
    assert!(pidns.to_str().unwrap().contains(&number), "{info}");
    c.ctr("deprecations list").ok();
}

fn guards_its_sockets(c: &Case) {
    for name in ["c.sock", "c.sock.ttrpc"] {
        let meta = fs::metadata(c.daemon.base.join(name)).unwrap();
        assert!(meta.file_type().is_socket());
        assert_eq!(meta.permissions().mode() & 0o777, 0o660, "{name}");
    }
    for dir in [c.daemon.root(), c.daemon.state()] {
        let mode = fs::metadata(&dir).unwrap().permissions().mode();
        assert_eq!(
            mode & 0o006,
            mode & 0o006 & 0o005,
            "{} is writable for others",
            dir.display()
        );
    }
}

fn idle(c: &Case) -> Daemon {
    Setup::new(c.daemon.kind).prepare()
}

fn say(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!(
        "{}{}",
        String::from_utf8_lossy(out),
        String::from_utf8_lossy(err)
    )
}

fn prints_its_version(c: &Case) {
    let output = c.daemon.command().arg("--version").output().unwrap();
    assert!(output.status.success());
    let name = if c.is_reference() {
        "containerd"
    } else {
        "corten"
    };
    assert!(say(&output).contains(name), "{}", say(&output));
}

fn prints_its_default_config(c: &Case) {
    let output = c
        .daemon
        .command()
        .args(["config", "default"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", say(&output));
    for key in ["version = ", "root = ", "state = ", "[plugins"] {
        assert!(text.contains(key), "no {key} in {text}");
    }
    // What it prints, it can read.
    let daemon = idle(c);
    fs::write(daemon.config(), &text).unwrap();
    let output = daemon
        .command()
        .arg("-c")
        .arg(daemon.config())
        .args(["config", "dump"])
        .output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", say(&output));
}

fn prints_the_config_in_force(c: &Case) {
    let daemon = idle(c);
    let output = daemon
        .command()
        .arg("-c")
        .arg(daemon.config())
        .args(["config", "dump"])
        .output();
    let text = say(&output.unwrap());
    let root = format!("{}/r", daemon.base.display());
    assert!(text.contains(&root) && text.contains("c.sock"), "{text}");
}

/// Starts with this config, which must end with a failure; gives what was said.
pub(crate) fn refuses(c: &Case, config: &str) -> String {
    let daemon = idle(c);
    let config = config.replace("BASE", daemon.base.to_str().unwrap());
    fs::write(daemon.config(), config).unwrap();
    let log = daemon.base.join("log");
    let file = fs::File::create(&log).unwrap();
    let mut command = daemon.command();
    command
        .arg("-c")
        .arg(daemon.config())
        .stdout(file.try_clone().unwrap())
        .stderr(file);
    let mut child = command.spawn().unwrap();
    let ended = exits_within(child.id(), DEADLINE);
    let _ = child.kill();
    let status = child.wait().unwrap();
    let said = fs::read_to_string(&log).unwrap();
    assert!(ended, "it started with a bad config:\n{said}");
    assert!(
        !status.success(),
        "it ended well with a bad config:\n{said}"
    );
    said
}

fn refuses_a_config_it_cannot_read(c: &Case) {
    let said = refuses(c, "version = 3\nroot = \n");
    assert!(said.contains("c.toml") || said.contains("toml"), "{said}");
    assert!(said.contains('2'), "names the line: {said}");
}

fn refuses_a_config_of_the_future(c: &Case) {
    let said = refuses(c, "version = 99\nroot = \"BASE/r\"\nstate = \"BASE/s\"\n");
    assert!(said.contains("99") && said.contains("version"), "{said}");
}

fn refuses_a_missing_config(c: &Case) {
    let daemon = idle(c);
    let output = daemon
        .command()
        .args(["-c", "/no/such/config.toml"])
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(
        say(&output).contains("/no/such/config.toml"),
        "{}",
        say(&output)
    );
}

fn refuses_root_and_state_in_one_place(c: &Case) {
    let said = refuses(
        c,
        "version = 3\nroot = \"BASE/r\"\nstate = \"BASE/r\"\n[grpc]\naddress = \"BASE/c.sock\"\n",
    );
    assert!(
        said.contains("root and state must be different paths"),
        "{said}"
    );
}

fn refuses_an_unknown_flag(c: &Case) {
    let output = c.daemon.command().arg("--no-such-flag").output().unwrap();
    assert!(!output.status.success());
    assert!(say(&output).contains("no-such-flag"), "{}", say(&output));
}

fn starts_with_flags_in_place_of_a_config(c: &Case) {
    let daemon = idle(c);
    // A config is read all the same, to keep the machine's own out of it; the flags win.
    fs::write(
        daemon.config(),
        "version = 3\nroot = \"/nowhere/r\"\nstate = \"/nowhere/s\"\n",
    )
    .unwrap();
    let log = fs::File::create(daemon.base.join("log")).unwrap();
    let mut command = daemon.command();
    command
        .arg("-c")
        .arg(daemon.config())
        .arg("-a")
        .arg(daemon.socket());
    command
        .arg("--root")
        .arg(daemon.root())
        .arg("--state")
        .arg(daemon.state());
    command
        .args(["-l", "info"])
        .stdout(log.try_clone().unwrap())
        .stderr(log);
    let mut child = command.spawn().unwrap();
    let pid = Pid::from_child(&child);
    let up = eventually(DEADLINE, || {
        std::os::unix::net::UnixStream::connect(daemon.socket()).ok()
    });
    let said = daemon.log_tail(20);
    let root_used = daemon
        .root()
        .join("io.containerd.content.v1.content")
        .exists();
    let ttrpc = daemon.base.join("c.sock.ttrpc").exists();
    let _ = kill_process(pid, Signal::TERM);
    let _ = exits_within(child.id(), DEADLINE);
    let _ = child.kill();
    let _ = child.wait();
    assert!(up.is_some(), "{said}");
    assert!(root_used, "--root was not used:\n{said}");
    assert!(ttrpc, "the ttrpc socket follows -a:\n{said}");
}

fn starts_with_older_configs(c: &Case) {
    for version in [2, 3, 4] {
        let daemon = idle(c);
        let base = daemon.base.display();
        let sockets = if version == 4 {
            format!("[plugins.'io.containerd.server.v1.grpc']\naddress = \"{base}/c.sock\"\n")
        } else {
            format!("[grpc]\naddress = \"{base}/c.sock\"\n")
        };
        let text = format!(
            "version = {version}\nroot = \"{base}/r\"\nstate = \"{base}/s\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.cri.v1.images\", \
             \"io.containerd.cri.v1.runtime\", \"io.containerd.nri.v1.nri\"]\n{sockets}"
        );
        fs::write(daemon.config(), text).unwrap();
        daemon.start();
        assert_eq!(daemon.stop(), 0, "version {version}");
    }
}

fn tells_systemd_when_it_is_ready(c: &Case) {
    let daemon = idle(c);
    let path = daemon.base.join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(15)))
        .unwrap();
    let mut command = daemon.command();
    command
        .arg("-c")
        .arg(daemon.config())
        .env("NOTIFY_SOCKET", &path);
    command
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null());
    let mut child = command.spawn().unwrap();
    let pid = Pid::from_child(&child);
    let hear = || {
        let mut bytes = [0; 512];
        let length = socket.recv(&mut bytes).unwrap_or(0);
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    };
    let ready = hear();
    let answers = std::os::unix::net::UnixStream::connect(daemon.socket()).is_ok();
    let _ = kill_process(pid, Signal::TERM);
    let stopping = hear();
    let ended = exits_within(child.id(), DEADLINE);
    let _ = child.kill();
    let _ = child.wait();
    assert!(ready.contains("READY=1"), "{ready:?}");
    assert!(answers, "it said READY before it answered");
    assert!(stopping.contains("STOPPING=1"), "{stopping:?}");
    assert!(ended);
}

fn ends_on_sigterm(c: &Case) {
    let daemon = idle(c);
    daemon.start();
    assert_eq!(daemon.stop(), 0);
    let left = daemon.base.join("c.sock");
    assert!(
        std::os::unix::net::UnixStream::connect(left).is_err(),
        "somebody listens still"
    );
}

fn survives_sigusr1_and_sigpipe(c: &Case) {
    let daemon = idle(c);
    daemon.start();
    let pid = Pid::from_raw(daemon.pid().cast_signed()).unwrap();
    for signal in [Signal::USR1, Signal::PIPE] {
        kill_process(pid, signal).unwrap();
        assert!(
            !exits_within(daemon.pid(), Duration::from_millis(300)),
            "{signal:?} killed it"
        );
    }
    // What SIGUSR1 wrote goes with the daemon's directory.
    assert_eq!(daemon.stop(), 0);
}

fn fails_without_a_required_plugin(c: &Case) {
    let said = refuses(
        c,
        "version = 3\nroot = \"BASE/r\"\nstate = \"BASE/s\"\n\
         required_plugins = [\"io.containerd.snapshotter.v1.no-such-plugin\"]\n\
         [grpc]\naddress = \"BASE/c.sock\"\n",
    );
    assert!(
        said.contains("io.containerd.snapshotter.v1.no-such-plugin"),
        "{said}"
    );
}

fn leaves_out_a_disabled_plugin(c: &Case) {
    let daemon = idle(c);
    let text = fs::read_to_string(daemon.config()).unwrap();
    let more = "disabled_plugins = [\"io.containerd.snapshotter.v1.native\", ";
    fs::write(daemon.config(), text.replace("disabled_plugins = [", more)).unwrap();
    daemon.start();
    let ctr = c
        .client
        .command(&daemon.socket(), "x", &daemon.base.join("t"));
    let table = ctr.words("plugins ls").ok();
    assert!(table.contains(" overlayfs "), "{table}");
    assert!(!table.contains(" native "), "{table}");
    assert_eq!(daemon.stop(), 0);
}

fn reads_imported_configs(c: &Case) {
    let daemon = idle(c);
    let text = fs::read_to_string(daemon.config()).unwrap();
    let imports = format!(
        "version = 3\nimports = [\"{}/extra/*.toml\"]",
        daemon.base.display()
    );
    fs::write(daemon.config(), text.replace("version = 3", &imports)).unwrap();
    fs::create_dir(daemon.base.join("extra")).unwrap();
    let extra = "version = 3\ndisabled_plugins = [\"io.containerd.snapshotter.v1.native\"]\n";
    fs::write(daemon.base.join("extra/one.toml"), extra).unwrap();
    let output = daemon
        .command()
        .arg("-c")
        .arg(daemon.config())
        .args(["config", "dump"])
        .output();
    let said = say(&output.unwrap());
    assert!(
        said.contains("io.containerd.snapshotter.v1.native"),
        "{said}"
    );
    assert!(
        said.contains("io.containerd.nri.v1.nri"),
        "lists append: {said}"
    );
}

fn inspects_a_runtime(c: &Case) {
    let out = c
        .ctr("plugins inspect-runtime --runtime")
        .arg(&c.runtime)
        .ok();
    let info: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(info["Name"], c.runtime, "{out}");
    let features = &info["Features"];
    for key in ["ociVersionMin", "ociVersionMax", "mountOptions", "linux"] {
        assert!(!features[key].is_null(), "no {key} in {out}");
    }
    let namespaces = features["linux"]["namespaces"].to_string();
    for kind in ["pid", "mount", "uts", "ipc", "network", "user", "cgroup"] {
        assert!(namespaces.contains(kind), "no {kind} in {namespaces}");
    }
    assert_eq!(features["linux"]["seccomp"]["enabled"], true);
    assert_eq!(features["linux"]["cgroup"]["v1"], true);
    assert_eq!(features["linux"]["cgroup"]["v2"], true);
}

fn answers_many_clients_at_once(c: &Case) {
    let clients: Vec<_> = (0..16).map(|_| c.ctr("images ls").start()).collect();
    for client in clients {
        client.wait().expect_code(0);
    }
}
