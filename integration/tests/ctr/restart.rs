//! The daemon dies and comes back; containers do not notice. Each test has a daemon of its own.

use std::io::Write;
use std::path::Path;

use corten_integration::case::Case;
use corten_integration::images;
use corten_integration::leaks;
use corten_integration::process::{Collected, DEADLINE, eventually, exits_within};
use corten_integration::runner::Test;
use corten_integration::tests;
use rustix::process::{Pid, Signal, kill_process};

pub(crate) fn tests() -> Vec<Test> {
    tests![
        a_container_survives_the_death_of_its_daemon,
        output_stays_attached_over_a_restart,
        an_exit_while_the_daemon_is_down_is_reported,
        a_restart_in_good_order_changes_nothing,
        an_exec_works_after_a_restart,
        a_paused_container_stays_paused,
        images_and_containers_survive,
        a_killed_shim_is_cleaned_up,
        a_shim_killed_while_the_daemon_is_down_is_cleaned_up,
        events_flow_again_after_a_restart,
        many_restarts_leave_nothing_behind,
        a_half_written_ingest_is_finished_later,
        a_sandbox_survives_the_death_of_its_daemon,
    ]
    .into_iter()
    .map(Test::quiet_daemon)
    .collect()
}

fn alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

fn a_container_survives_the_death_of_its_daemon(c: &Case) {
    c.sleeper("a");
    let pid = c.pid("a");
    c.daemon.crash_and_restart();
    assert!(alive(pid), "it died with the daemon");
    assert_eq!(c.pid("a"), pid);
    assert_eq!(c.status("a").as_deref(), Some("RUNNING"));
    c.ctr("task kill -s SIGKILL a").ok();
    c.wait_stopped("a");
    let done = c.ctr("task delete a").run();
    assert!(
        done.err().contains("137") || done.code() == 137,
        "{}",
        done.report()
    );
    c.ctr("containers rm a").ok();
}

fn output_stays_attached_over_a_restart(c: &Case) {
    // The test itself is the client here: ctr gives up when its daemon goes.
    let script = "while read x; do echo got $x; test $x = end && exit 9; done";
    c.run("-d", "a", &["sh", "-c", script]).ok();
    let dir = std::fs::read_dir(c.dir.join("fifo"))
        .unwrap()
        .flatten()
        .next()
        .unwrap()
        .path();
    let mut stdin = std::fs::File::options()
        .write(true)
        .open(dir.join("a-stdin"))
        .unwrap();
    let stdout = Collected::from(std::fs::File::open(dir.join("a-stdout")).unwrap());
    let mut say = |word: &str| {
        stdin.write_all(format!("{word}\n").as_bytes()).unwrap();
        let answer = format!("got {word}\n");
        stdout
            .wait_for(&|seen| seen.contains(&answer), DEADLINE)
            .unwrap();
    };
    say("before");
    c.daemon.kill();
    say("between");
    c.daemon.start();
    say("after");
    say("end");
    c.wait_stopped("a");
    let done = c.ctr("task delete a").run();
    assert!(
        done.err().contains('9') || done.code() == 9,
        "{}",
        done.report()
    );
    c.ctr("containers rm a").ok();
}

fn an_exit_while_the_daemon_is_down_is_reported(c: &Case) {
    let file = c.file("go");
    let flags = format!(
        "-d --null-io --mount type=bind,src={},dst=/files,options=rbind:rw",
        c.dir.join("files").display()
    );
    let script = "until test -e /files/go; do sleep 0.02; done; exit 33";
    c.run(&flags, "a", &["sh", "-c", script]).ok();
    let pid = c.pid("a");
    c.daemon.kill();
    std::fs::write(&file, "").unwrap();
    assert!(
        exits_within(pid, DEADLINE),
        "it should have ended by itself"
    );
    c.daemon.start();
    if c.is_reference() && c.status("a").is_none() {
        println!("Corten only: stock forgets a task that ended while it was down");
        c.ctr("containers rm a").ok();
        return;
    }
    c.wait_stopped("a");
    let done = c.ctr("task delete a").run();
    assert!(
        done.err().contains("33") || done.code() == 33,
        "{}",
        done.report()
    );
    c.ctr("containers rm a").ok();
}

fn a_restart_in_good_order_changes_nothing(c: &Case) {
    c.sleeper("a");
    let pid = c.pid("a");
    assert_eq!(c.daemon.stop(), 0);
    assert!(alive(pid), "it ended with the daemon");
    c.daemon.start();
    assert_eq!(c.pid("a"), pid);
    c.exec("", "a", &["echo", "fine"]).prints("fine\n");
    c.remove("a");
}

fn an_exec_works_after_a_restart(c: &Case) {
    c.sleeper("a");
    c.daemon.crash_and_restart();
    c.exec("", "a", &["sh", "-c", "echo out; exit 3"])
        .run()
        .expect_code(3);
    c.exec("", "a", &["echo", "again"]).prints("again\n");
    c.remove("a");
}

fn a_paused_container_stays_paused(c: &Case) {
    c.sleeper("a");
    c.ctr("task pause a").ok();
    c.daemon.crash_and_restart();
    assert_eq!(c.status("a").as_deref(), Some("PAUSED"));
    c.ctr("task resume a").ok();
    assert_eq!(c.status("a").as_deref(), Some("RUNNING"));
    c.remove("a");
}

fn images_and_containers_survive(c: &Case) {
    let image = images::layered();
    c.has(&image);
    c.ctr("containers create --label k=v --runtime")
        .arg(&c.runtime)
        .args([&image.name, "a", "true"])
        .ok();
    c.ctr("leases create --id l").ok();
    let see = || {
        [
            "images ls",
            "containers info a",
            "snapshots ls",
            "leases ls -q",
            "namespaces ls",
        ]
        .map(|words| c.ctr(words).ok())
    };
    let before = see();
    c.daemon.crash_and_restart();
    let sorted = |text: &String| {
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    };
    assert_eq!(
        before.iter().map(sorted).collect::<Vec<_>>(),
        see().iter().map(sorted).collect::<Vec<_>>()
    );
    c.ctr("containers rm a").ok();
    c.ctr("leases rm l").ok();
}

fn shims_of(c: &Case) -> Vec<u32> {
    leaks::processes_naming(&c.namespace)
        .into_iter()
        .filter(|(_, line)| line.contains("containerd-shim"))
        .map(|(pid, _)| pid)
        .collect()
}

fn kill_shims(c: &Case) {
    let shims = shims_of(c);
    assert!(!shims.is_empty(), "no shim found");
    for pid in shims {
        let _ = kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL);
        assert!(exits_within(pid, DEADLINE));
    }
}

fn a_killed_shim_is_cleaned_up(c: &Case) {
    c.sleeper("a");
    let pid = c.pid("a");
    let mut events = c.events();
    kill_shims(c);
    events.wait_output("/tasks/exit");
    assert!(
        exits_within(pid, DEADLINE),
        "the container outlives its shim"
    );
    let gone = eventually(DEADLINE, || c.status("a").is_none().then_some(()));
    assert!(gone.is_some(), "the task is {:?}", c.status("a"));
    c.ctr("containers rm a").ok();
}

fn a_shim_killed_while_the_daemon_is_down_is_cleaned_up(c: &Case) {
    c.sleeper("a");
    let pid = c.pid("a");
    c.daemon.kill();
    kill_shims(c);
    c.daemon.start();
    assert!(
        exits_within(pid, DEADLINE),
        "the container outlives its shim"
    );
    let gone = eventually(DEADLINE, || c.status("a").is_none().then_some(()));
    assert!(gone.is_some(), "the task is {:?}", c.status("a"));
    c.ctr("containers rm a").ok();
    c.run("--rm", "a", &["echo", "the name is free"])
        .prints("the name is free\n");
}

fn events_flow_again_after_a_restart(c: &Case) {
    c.sleeper("a");
    c.daemon.crash_and_restart();
    let mut events = c.events();
    c.ctr("task kill -s SIGKILL a").ok();
    let seen = events.wait_output("/tasks/exit");
    let line = seen.lines().find(|l| l.contains("/tasks/exit")).unwrap();
    assert!(line.contains(r#""exit_status":137"#), "{line}");
    c.wait_stopped("a");
    c.remove("a");
}

fn many_restarts_leave_nothing_behind(c: &Case) {
    for id in ["a", "b", "c"] {
        c.sleeper(id);
    }
    let pids = ["a", "b", "c"].map(|id| c.pid(id));
    for _ in 0..5 {
        c.daemon.crash_and_restart();
    }
    assert_eq!(["a", "b", "c"].map(|id| c.pid(id)), pids);
    assert_eq!(shims_of(c).len(), 3);
    for id in ["a", "b", "c"] {
        c.remove(id);
    }
}

fn a_half_written_ingest_is_finished_later(c: &Case) {
    let bytes: Vec<u8> = (0..6 << 20).map(|n: u32| (n / 7) as u8).collect();
    let mut ingest = c.ctr("content ingest half").stdin("").start();
    ingest.send(&bytes[..3 << 20]);
    let begun = || {
        c.column("content active")
            .contains(&"half".to_owned())
            .then_some(())
    };
    eventually(DEADLINE, begun).expect("the ingest begins");
    c.daemon.crash_and_restart();
    ingest.kill();
    let file = c.file("bytes");
    std::fs::write(&file, &bytes).unwrap();
    let digest = images::digest_of(&bytes);
    let rest = c
        .ctr("content ingest --expected-digest")
        .args([&digest, "half"]);
    rest.stdin_file(&file).ok();
    let done = c.ctr("content get").arg(&digest).run();
    assert!(
        done.stdout == bytes,
        "{} bytes came back",
        done.stdout.len()
    );
    c.ctr("content rm").arg(&digest).ok();
}

fn a_sandbox_survives_the_death_of_its_daemon(c: &Case) {
    if c.is_reference() {
        println!("Corten only: the stock shim of runc has no sandbox service");
        return;
    }
    let file = c.file("pod.json");
    std::fs::write(&file, c.ctr("oci spec").ok()).unwrap();
    let run = c.ctr("sandboxes run --runtime").arg(&c.runtime).arg(&file);
    assert_eq!(run.arg("pod").ok(), "pod\n");
    let shims = shims_of(c);
    assert_eq!(shims.len(), 1, "{shims:?}");
    for stop in ["kill -9", "SIGTERM"] {
        match stop {
            "SIGTERM" => assert_eq!(c.daemon.stop(), 0),
            _ => c.daemon.kill(),
        }
        assert!(alive(shims[0]), "{stop}: it died with the daemon");
        c.daemon.start();
        assert_eq!(c.column("sandboxes ls"), ["pod"], "{stop}");
        assert_eq!(shims_of(c), shims, "{stop}");
    }
    c.ctr("sandboxes rm --force pod").ok();
    assert!(c.column("sandboxes ls").is_empty());
    let gone = eventually(DEADLINE, || shims_of(c).is_empty().then_some(()));
    assert!(gone.is_some(), "the shim is left: {:?}", shims_of(c));
}
