//! Either daemon with either shim: Corten's with stock's and the other way round, with containerd
//! 2.4 and with Debian's 1.6.

use corten_integration::case::Case;
use corten_integration::ctr::Client;
use corten_integration::peers::{CORTEN_RUNTIME, Kind, RUNC_RUNTIME, have_our_shim};
use corten_integration::runner::Test;

type Named = (&'static str, fn(&Case));

/// What every pair must do.
const BASICS: [Named; 10] = [
    (
        "runs_and_reports_the_exit_code",
        runs_and_reports_the_exit_code,
    ),
    ("feeds_stdin", feeds_stdin),
    ("execs", execs),
    ("gives_terminals", gives_terminals),
    ("pauses", pauses),
    ("measures", measures),
    ("tells_events_in_order", tells_events_in_order),
    ("names_a_missing_command", names_a_missing_command),
    ("kills_on_memory", kills_on_memory),
    ("limits_and_filters", limits_and_filters),
];

/// What a pair does with a daemon that is killed.
const RESTARTS: [Named; 2] = [
    ("survives_a_restart", survives_a_restart),
    (
        "reports_an_exit_while_the_daemon_is_down",
        reports_an_exit_while_the_daemon_is_down,
    ),
];

pub(crate) fn tests() -> Vec<Test> {
    const NEW: (Kind, &str, &str) = (Kind::Reference, CORTEN_RUNTIME, "containerd_with_our_shim");
    const OLD: (Kind, &str, &str) = (Kind::Debian, CORTEN_RUNTIME, "containerd_1_6_with_our_shim");
    let mut pairs = Vec::new();
    if Kind::under_test() == Kind::Corten {
        pairs.push((Kind::Corten, RUNC_RUNTIME, "corten_with_runc_shim"));
        pairs.extend([NEW, OLD]);
    } else {
        pairs.push((Kind::Reference, RUNC_RUNTIME, "containerd_with_runc_shim"));
        pairs.push((Kind::Debian, RUNC_RUNTIME, "containerd_1_6_with_runc_shim"));
        if have_our_shim() && std::env::var_os("CORTEN_MATRIX").is_some() {
            pairs.extend([NEW, OLD]);
        }
    }
    let mut all = Vec::new();
    for (kind, runtime, label) in pairs {
        for (name, body) in BASICS {
            all.push(of(kind, runtime, label, name, body));
        }
        for (name, body) in RESTARTS {
            all.push(of(kind, runtime, label, name, body).own_daemon());
        }
    }
    all
}

fn of(kind: Kind, runtime: &str, label: &str, name: &str, body: fn(&Case)) -> Test {
    let test = Test::new(&format!("{label}::{name}"), body).on(kind, runtime);
    match kind {
        Kind::Debian => test.client(Client::Old),
        Kind::Corten | Kind::Reference => test,
    }
}

fn runs_and_reports_the_exit_code(c: &Case) {
    let done = c
        .run(
            "--rm",
            "a",
            &["sh", "-c", "echo out; echo err >&2; exit 42"],
        )
        .run();
    done.expect_code(42);
    assert_eq!(
        (done.out().as_str(), done.err().as_str()),
        ("out\n", "err\n")
    );
    c.sleeper("b");
    let info: serde_json::Value = serde_json::from_str(&c.ctr("containers info b").ok()).unwrap();
    assert_eq!(info["Runtime"]["Name"], c.runtime);
    c.remove("b");
}

fn feeds_stdin(c: &Case) {
    let mut run = c
        .run("--rm", "a", &["sh", "-c", "echo ready; wc -c"])
        .stdin("")
        .start();
    run.wait_output("ready");
    run.send(&[b'x'; 1000]);
    assert_eq!(run.wait().out(), "ready\n1000\n");
}

fn execs(c: &Case) {
    c.sleeper("a");
    c.exec("", "a", &["sh", "-c", "echo in; exit 7"])
        .run()
        .expect_code(7);
    c.exec("--user 1000 --cwd /tmp", "a", &["sh", "-c", "id -u; pwd"])
        .prints("1000\n/tmp\n");
    c.remove("a");
}

fn gives_terminals(c: &Case) {
    use corten_integration::terminal::Terminal;
    let mut terminal = Terminal::start(&c.run("--rm -t", "a", &["sh"]), 30, 90);
    terminal.wait_for("# ");
    terminal.type_in("tty; exit 4\r");
    assert_eq!(terminal.wait().0, 4);
    c.sleeper("b");
    let (code, screen) = Terminal::start(&c.exec("-t", "b", &["tty"]), 30, 90).wait();
    assert_eq!(code, 0);
    assert!(screen.contains("/dev/pts/0"), "{screen}");
    c.remove("b");
}

fn pauses(c: &Case) {
    c.sleeper("a");
    c.ctr("task pause a").ok();
    assert_eq!(c.status("a").as_deref(), Some("PAUSED"));
    c.exec("", "a", &["true"])
        .fails("cannot exec in a paused state");
    c.ctr("task resume a").ok();
    c.exec("", "a", &["true"]).ok();
    c.remove("a");
}

fn measures(c: &Case) {
    c.sleeper("a");
    let json: serde_json::Value =
        serde_json::from_str(&c.ctr("task metrics --format json a").ok()).unwrap();
    assert_eq!(json["pids"]["current"], 1);
    assert_eq!(c.column("task ps a"), [c.pid("a").to_string()]);
    c.remove("a");
}

fn tells_events_in_order(c: &Case) {
    let mut events = c.events();
    c.background("a", &["true"]);
    events.wait_output("/tasks/exit");
    c.wait_stopped("a");
    c.remove("a");
    // The stock shim loses a /tasks/delete now and then.
    let certain = c.runtime == CORTEN_RUNTIME;
    let last = if certain {
        "/tasks/delete"
    } else {
        "/tasks/exit"
    };
    let seen = events.wait_output(last);
    let mine = seen
        .lines()
        .filter(|l| l.contains(&format!(" {} /tasks/", c.namespace)));
    let mut topics: Vec<_> = mine.filter_map(|l| l.split(' ').nth(5)).collect();
    topics.retain(|topic| certain || *topic != "/tasks/delete");
    let all = [
        "/tasks/create",
        "/tasks/start",
        "/tasks/exit",
        "/tasks/delete",
    ];
    assert_eq!(topics, all[..if certain { 4 } else { 3 }]);
}

fn names_a_missing_command(c: &Case) {
    c.run("--rm", "a", &["nope"])
        .fails(r#"exec: "nope": executable file not found in $PATH"#)
        .expect_code(1);
    assert!(c.list("containers ls -q").is_empty());
}

fn kills_on_memory(c: &Case) {
    let mut events = c.events();
    let hog = ["sh", "-c", "exec tail -c 100000000 /dev/zero"];
    c.run("--rm --memory-limit 16777216", "a", &hog)
        .run()
        .expect_code(137);
    events.wait_output("/tasks/oom");
}

fn limits_and_filters(c: &Case) {
    let flags = "-d --null-io --memory-limit 67108864 --cpus 0.5 --seccomp --read-only";
    c.run(flags, "a", &["sleep", "1000"]).ok();
    let pid = c.pid("a");
    let limit =
        corten_integration::cgroup::setting(pid, "memory/memory.limit_in_bytes", "memory.max");
    assert_eq!(limit, "67108864");
    assert_eq!(corten_integration::cgroup::status_of(pid, "Seccomp"), "2");
    c.exec("", "a", &["touch", "/x"]).fails("Read-only");
    c.remove("a");
}

fn survives_a_restart(c: &Case) {
    c.sleeper("a");
    let pid = c.pid("a");
    c.daemon.crash_and_restart();
    assert_eq!(c.pid("a"), pid);
    c.exec("", "a", &["echo", "fine"]).prints("fine\n");
    c.remove("a");
}

fn reports_an_exit_while_the_daemon_is_down(c: &Case) {
    c.background(
        "a",
        &[
            "sh",
            "-c",
            "trap 'exit 11' TERM; while :; do sleep 0.02; done",
        ],
    );
    let pid = c.pid("a");
    c.exec("", "a", &["true"]).ok();
    c.daemon.kill();
    let target = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(target, rustix::process::Signal::TERM).unwrap();
    let ended = corten_integration::process::DEADLINE;
    assert!(corten_integration::process::exits_within(pid, ended));
    c.daemon.start();
    if c.is_reference() && c.status("a").is_none() {
        println!("Corten only: stock forgets a task that ended while it was down");
        c.ctr("containers rm a").ok();
        return;
    }
    c.wait_stopped("a");
    let done = c.ctr("task delete a").run();
    assert!(
        done.err().contains("11") || done.code() == 11,
        "{}",
        done.report()
    );
    c.ctr("containers rm a").ok();
}
