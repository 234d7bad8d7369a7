//! Checkpoint and restore. CRIU needs more of a kernel and of privileges than many machines give: where `criu check` says
//! no, each test says why. `make test-vm` has a machine where it says yes.

use std::time::Duration;

use corten_integration::case::Case;
use corten_integration::process::{Cmd, eventually};
use corten_integration::runner::Test;
use corten_integration::terminal::Terminal;
use corten_integration::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![
        leaves_alone_what_it_cannot_save,
        goes_on_after_it_was_saved,
        ends_if_it_is_to,
        comes_back_out_of_the_content_store,
        comes_back_with_a_terminal,
    ]
}

const PATIENCE: Duration = Duration::from_secs(40);

/// What is wrong with CRIU here; nothing, if it works.
fn trouble() -> Option<String> {
    let found = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&found).any(|dir| dir.join("criu").is_file()) {
        return Some("not found in PATH".into());
    }
    let done = Cmd::new("criu").arg("check").run();
    let said = done.err();
    let first = said.lines().next().unwrap_or("no word").to_owned();
    (done.code() != 0).then_some(first)
}

fn no_criu() -> bool {
    let trouble = trouble();
    if let Some(why) = &trouble {
        println!("not tried: criu: {why}");
    }
    trouble.is_some()
}

/// Counts in a file of its root until there is a file /stop, beside a word that only its memory holds.
const COUNTER: &str = "read word < /proc/sys/kernel/random/uuid; i=0; until test -e /stop; do \
                       i=$((i+1)); echo $word $i > /new; mv /new /count; sleep 0.1; done; exit 7";

fn counter(c: &Case, id: &str) {
    c.background(id, &["sh", "-c", COUNTER]);
    counts_beyond(c, id, 0);
}

fn count(c: &Case, id: &str) -> Option<u64> {
    let done = c.exec("", id, &["cat", "/count"]).run();
    done.out().split_whitespace().nth(1)?.parse().ok()
}

fn word(c: &Case, id: &str) -> String {
    let text = c.exec("", id, &["cat", "/count"]).ok();
    text.split_whitespace().next().expect("a word").to_owned()
}

fn counts_beyond(c: &Case, id: &str, last: u64) -> u64 {
    let beyond = || count(c, id).filter(|now| *now > last);
    eventually(PATIENCE, beyond).expect("the counter goes on")
}

fn stop(c: &Case, id: &str) {
    c.exec("", id, &["touch", "/stop"]).ok();
    c.wait_stopped(id);
    delete(c, id, "exit code 7");
}

/// Deletes a task that has ended, and its container; the exit code is in a warning of ctr's.
fn delete(c: &Case, id: &str, code: &str) {
    let done = c.ctr("task delete").arg(id).run();
    assert!(done.err().contains(code), "{}", done.report());
    c.ctr("containers rm").arg(id).ok();
}

fn leaves_alone_what_it_cannot_save(c: &Case) {
    counter(c, "a");
    // Where CRIU works, it still cannot save anything there.
    let done = c
        .ctr("task checkpoint --exit --image-path /proc/1/none a")
        .run();
    assert_ne!(done.code(), 0, "{}", done.report());
    if trouble().is_some_and(|why| why.contains("PATH")) {
        let text = "exec: \"criu\": executable file not found in $PATH";
        assert!(done.err().contains(text), "{}", done.report());
    }
    let now = count(c, "a").expect("it counts");
    counts_beyond(c, "a", now);
    assert_eq!(c.status("a").as_deref(), Some("RUNNING"));
    stop(c, "a");
}

fn goes_on_after_it_was_saved(c: &Case) {
    if no_criu() {
        return;
    }
    counter(c, "a");
    let pid = c.pid("a");
    let images = c.file("images");
    let saved = c.ctr("task checkpoint --image-path").arg(&images);
    saved.arg("--work-path").arg(c.file("work")).arg("a").ok();
    for name in ["inventory.img", "pages-1.img", "descriptors.json"] {
        assert!(images.join(name).is_file(), "{name}");
    }
    assert!(c.file("work").join("dump.log").is_file());
    let now = count(c, "a").expect("it counts");
    counts_beyond(c, "a", now);
    assert_eq!(
        (c.pid("a"), c.status("a").as_deref()),
        (pid, Some("RUNNING"))
    );
    stop(c, "a");
}

fn ends_if_it_is_to(c: &Case) {
    if no_criu() {
        return;
    }
    counter(c, "a");
    let mut events = c.events();
    c.ctr("task checkpoint --exit a").ok();
    c.wait_stopped("a");
    events.wait_output("/tasks/exit");
    delete(c, "a", "exit code 137");
}

fn comes_back_out_of_the_content_store(c: &Case) {
    if no_criu() {
        return;
    }
    counter(c, "a");
    c.ctr("containers checkpoint --task --rw --image a test.local/saved:1")
        .ok();
    let kept = word(c, "a");
    c.remove("a");
    let mut events = c.events();
    c.ctr("containers restore --live --rw b test.local/saved:1")
        .ok();
    events.wait_output("/tasks/start");
    let now = counts_beyond(c, "b", 0);
    counts_beyond(c, "b", now);
    assert_eq!(word(c, "b"), kept);
    // CRIU gives it a time namespace.
    let inside =
        "test $(readlink /proc/self/ns/time) = $(readlink /proc/1/ns/time) && cat /proc/1/comm";
    c.exec("", "b", &["sh", "-c", inside]).prints("sh\n");
    // Once more, of what came out of a checkpoint.
    c.ctr("containers checkpoint --task --rw --image b test.local/saved:2")
        .ok();
    stop(c, "b");
    c.ctr("containers restore --live --rw d test.local/saved:2")
        .ok();
    counts_beyond(c, "d", now);
    assert_eq!(word(c, "d"), kept);
    stop(c, "d");
}

fn comes_back_with_a_terminal(c: &Case) {
    if no_criu() {
        return;
    }
    let script = "i=0; while :; do i=$((i+1)); echo tick $i.; \
                  if read -t 1 x; then echo \"got $x\"; exit 5; fi; done";
    let mut first = Terminal::start(&c.run("-t", "a", &["sh", "-c", script]), 33, 101);
    first.wait_for("tick 3.");
    c.ctr("containers checkpoint --task --rw --image a test.local/saved:1")
        .ok();
    c.ctr("task kill -s SIGKILL a").ok();
    // The client that sees the end deletes the task.
    let _ = first.wait();
    c.ctr("containers rm a").ok();
    let restore = c.ctr("containers restore --live --rw b test.local/saved:1");
    let mut second = Terminal::start(&restore, 33, 101);
    second.wait_for("tick ");
    second.type_in("hello\r");
    second.wait_for("got hello");
    let (code, screen) = second.wait();
    assert_eq!(code, 5, "{screen}");
    assert!(!screen.contains("tick 1."), "{screen}");
    c.ctr("containers rm b").ok();
}
