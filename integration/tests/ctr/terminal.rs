//! Terminals: `run -t`, `exec -t`, attach, window sizes and keys, on a terminal of the test's own.

use std::time::Duration;

use corten_integration::case::Case;
use corten_integration::process::Cmd;
use corten_integration::runner::{Test, with_both_clients};
use corten_integration::terminal::Terminal;
use corten_integration::tests;

pub(crate) fn tests() -> Vec<Test> {
    let mut all = with_both_clients(tests![
        gives_the_container_a_terminal,
        takes_typed_input,
        follows_the_window_size,
        passes_control_c_on,
        gives_an_exec_a_terminal,
    ]);
    all.extend(tests![
        attaches_to_a_detached_terminal,
        reports_the_exit_code_of_a_terminal_run,
        has_a_console_device,
    ]);
    all
}

fn on_terminal(cmd: &Cmd) -> Terminal {
    Terminal::start(cmd, 33, 101)
}

fn gives_the_container_a_terminal(c: &Case) {
    let script = "tty; test -t 0 && test -t 1 && test -t 2 && echo all three";
    let (code, screen) = on_terminal(&c.run("--rm -t", "a", &["sh", "-c", script])).wait();
    assert_eq!(code, 0, "{screen}");
    assert!(
        screen.contains("/dev/pts/0\n") && screen.contains("all three\n"),
        "{screen:?}"
    );
}

fn takes_typed_input(c: &Case) {
    let mut terminal = on_terminal(&c.run("--rm -t", "a", &["sh"]));
    terminal.wait_for("# ");
    terminal.type_in("echo $((6 * 7))\r");
    terminal.wait_for("\n42\n");
    terminal.type_in("exit 3\r");
    assert_eq!(terminal.wait().0, 3);
}

fn follows_the_window_size(c: &Case) {
    let script = "trap 'stty size' WINCH; echo ready; while :; do read -t 1 x && exit 0; done";
    let mut terminal = on_terminal(&c.run("--rm -t", "a", &["sh", "-c", script]));
    terminal.wait_for("ready");
    // ctr reads the size once before it listens to changes: one in between is lost to it.
    let follows = (0..40).any(|turn| {
        let rows = 40 + turn % 2;
        terminal.resize(rows, 120);
        terminal.shows_within(&format!("{rows} 120"), Duration::from_millis(500))
    });
    assert!(follows, "the container never saw a new size");
    terminal.type_in("\r");
    assert_eq!(terminal.wait().0, 0);
    // The size that the terminal has at the start arrives as well.
    let script = "until stty size | grep '33 101'; do sleep 0.05; done";
    assert_eq!(
        on_terminal(&c.run("--rm -t", "b", &["sh", "-c", script]))
            .wait()
            .0,
        0
    );
}

fn passes_control_c_on(c: &Case) {
    let script = "trap 'echo interrupted; exit 6' INT; echo ready; while :; do sleep 0.1; done";
    let mut terminal = on_terminal(&c.run("--rm -t", "a", &["sh", "-c", script]));
    terminal.wait_for("ready");
    terminal.type_in("\u{3}");
    terminal.wait_for("interrupted");
    assert_eq!(terminal.wait().0, 6);
}

fn gives_an_exec_a_terminal(c: &Case) {
    c.sleeper("a");
    let mut terminal = on_terminal(&c.exec("-t", "a", &["sh"]));
    terminal.wait_for("# ");
    // The size arrives some time after the start.
    terminal.type_in("tty; until stty size | grep '33 101'; do sleep 0.05; done; exit 4\r");
    terminal.wait_for("\n33 101");
    let (code, screen) = terminal.wait();
    assert_eq!(code, 4);
    assert!(screen.contains("/dev/pts/0\n"), "{screen:?}");
    c.remove("a");
}

fn attaches_to_a_detached_terminal(c: &Case) {
    let script = "while read x; do echo got $x; test $x = end && exit 8; done";
    on_terminal_detached(c, script);
    let mut terminal = on_terminal(&c.ctr("task attach a"));
    terminal.type_in("one\r");
    terminal.wait_for("got one");
    terminal.type_in("end\r");
    terminal.wait_for("got end");
    let (code, screen) = terminal.wait();
    assert_eq!(code, 8, "{screen}");
    // The client that sees the end deletes the task.
    c.ctr("containers rm a").ok();
}

fn on_terminal_detached(c: &Case, script: &str) {
    let (code, screen) = on_terminal(&c.run("-d -t", "a", &["sh", "-c", script])).wait();
    assert_eq!(code, 0, "{screen}");
}

fn reports_the_exit_code_of_a_terminal_run(c: &Case) {
    for code in [0, 1, 77] {
        let script = format!("exit {code}");
        assert_eq!(
            on_terminal(&c.run("--rm -t", "a", &["sh", "-c", &script]))
                .wait()
                .0,
            code
        );
    }
}

fn has_a_console_device(c: &Case) {
    let script = "stat -c %F /dev/console; echo to the console > /dev/console";
    let (code, screen) = on_terminal(&c.run("--rm -t", "a", &["sh", "-c", script])).wait();
    assert_eq!(code, 0, "{screen}");
    let both = screen.contains("character special file") && screen.contains("to the console");
    assert!(both, "{screen:?}");
}
