//! The restart monitor: containers that are started again, as their labels say. nerdctl writes the same labels.

use std::fs;
use std::time::Duration;

use corten_integration::case::Case;
use corten_integration::process::{DEADLINE, eventually};
use corten_integration::runner::Test;
use corten_integration::tests;

/// The monitor looks once a second.
const MONITOR: &str = "[plugins.'io.containerd.monitor.container.v1.restart']\ninterval = \"1s\"\n";
const PATIENCE: Duration = DEADLINE;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        tells_which_policies_it_knows,
        starts_again_what_failed_as_often_as_allowed,
        starts_again_what_was_killed,
        leaves_what_was_stopped_on_purpose,
        stops_what_is_to_be_stopped,
        starts_again_what_ended_while_the_daemon_was_down,
    ]
    .into_iter()
    .map(|t| t.daemon_with(MONITOR))
    .collect()
}

fn tells_which_policies_it_knows(c: &Case) {
    let out = c.ctr("plugins ls -d id==restart").ok();
    assert!(out.contains("io.containerd.monitor.container.v1"), "{out}");
    for policy in ["no", "always", "on-failure", "unless-stopped"] {
        assert!(out.contains(policy), "{out}");
    }
}

/// Runs `script` with a restart policy and the test's folder at /files.
fn run(c: &Case, id: &str, policy: &str, script: &str) {
    let flags = format!(
        "-d --null-io --label containerd.io/restart.status=running \
         --label containerd.io/restart.policy={policy} \
         --mount type=bind,src={},dst=/files,options=rbind:rw",
        c.dir.join("files").display()
    );
    c.run(&flags, id, &["sh", "-c", script]).ok();
}

fn label(c: &Case, id: &str, label: &str) {
    c.ctr("containers label").args([id, label]).ok();
}

/// How often the container wrote a line.
fn lives(c: &Case) -> usize {
    fs::read_to_string(c.file("lives")).map_or(0, |text| text.lines().count())
}

fn lives_again(c: &Case, times: usize) {
    let again = || (lives(c) >= times).then_some(());
    let seen = eventually(PATIENCE, again);
    assert!(seen.is_some(), "{} lives, not {times}", lives(c));
}

/// Two looks of the monitor.
fn a_while() {
    rest(Duration::from_millis(2500));
}

fn rest(time: Duration) {
    let _ = eventually(time, || None::<()>);
}

fn end(c: &Case, id: &str) {
    label(c, id, "containerd.io/restart.status=");
    let _ = c.ctr("task delete -f").arg(id).run();
    // A restart that was under way may have come after that.
    rest(Duration::from_millis(500));
    let _ = c.ctr("task delete -f").arg(id).run();
    c.ctr("containers rm").arg(id).ok();
}

fn starts_again_what_failed_as_often_as_allowed(c: &Case) {
    run(c, "a", "on-failure:2", "echo x >> /files/lives; exit 1");
    lives_again(c, 3);
    a_while();
    assert_eq!(lives(c), 3, "the first, and two more");
    let info = c.ctr("containers info a").ok();
    assert!(
        info.contains(r#""containerd.io/restart.count": "2""#),
        "{info}"
    );
    run(c, "b", "on-failure", "echo x >> /files/lives; exit 0");
    a_while();
    assert_eq!(lives(c), 4, "what ended well has ended");
    for id in ["a", "b"] {
        end(c, id);
    }
}

fn starts_again_what_was_killed(c: &Case) {
    run(c, "a", "always", "echo x >> /files/lives; sleep 1000");
    lives_again(c, 1);
    let first = c.pid("a");
    c.ctr("task kill -s SIGKILL a").ok();
    lives_again(c, 2);
    let running = || (c.status("a").as_deref() == Some("RUNNING")).then(|| c.pid("a"));
    let second = eventually(PATIENCE, running).expect("it runs again");
    assert_ne!(first, second);
    end(c, "a");
}

fn leaves_what_was_stopped_on_purpose(c: &Case) {
    for policy in ["unless-stopped", "on-failure"] {
        run(c, policy, policy, "echo x >> /files/lives; sleep 1000");
        // As `nerdctl stop` does.
        label(c, policy, "containerd.io/restart.explicitly-stopped=true");
        c.ctr("task kill -s SIGKILL").arg(policy).ok();
        c.wait_stopped(policy);
    }
    a_while();
    assert_eq!(lives(c), 2);
    for policy in ["unless-stopped", "on-failure"] {
        assert_eq!(c.status(policy).as_deref(), Some("STOPPED"));
        end(c, policy);
    }
}

fn stops_what_is_to_be_stopped(c: &Case) {
    run(c, "a", "always", "echo x >> /files/lives; sleep 1000");
    lives_again(c, 1);
    label(c, "a", "containerd.io/restart.status=stopped");
    let stopped = || (c.status("a").as_deref() != Some("RUNNING")).then_some(());
    eventually(PATIENCE, stopped).expect("it is stopped");
    a_while();
    assert_eq!(lives(c), 1);
    end(c, "a");
}

fn starts_again_what_ended_while_the_daemon_was_down(c: &Case) {
    run(c, "a", "always", "echo x >> /files/lives; sleep 1000");
    lives_again(c, 1);
    // Stopped on purpose: with this policy only until the daemon starts again.
    label(c, "a", "containerd.io/restart.explicitly-stopped=true");
    c.ctr("task kill -s SIGKILL a").ok();
    c.wait_stopped("a");
    c.daemon.crash_and_restart();
    lives_again(c, 2);
    end(c, "a");
}
