//! `ctr task`: exec, kill, pause, ps, metrics, attach, start, delete.

use std::time::Duration;

use corten_integration::case::Case;
use corten_integration::process::{DEADLINE, eventually};
use corten_integration::runner::{Test, with_both_clients};
use corten_integration::tests;

pub(crate) fn tests() -> Vec<Test> {
    let mut all = with_both_clients(tests![
        execs_in_the_directory_and_as_the_user_asked_for,
        execs_in_the_background,
        kills_an_exec_alone,
        kills_all_processes,
        lists_tasks_with_pid_and_status,
        runs_a_command_in_a_container,
        passes_the_exit_code_of_an_exec_on,
        feeds_stdin_to_an_exec,
        kills_with_the_signal_asked_for,
        kills_hard,
        pauses_and_resumes,
        lists_the_processes_of_a_task,
        measures_a_task,
        starts_what_was_only_created,
        attaches_to_a_running_task,
        deletes_by_force,
    ]);
    all.extend(tests![
        execs_side_by_side,
        reports_a_kill_as_137,
        reports_a_term_as_143,
        keeps_a_stopped_task_until_it_is_deleted,
        deletes_the_task_and_starts_a_new_one,
        joins_the_namespaces_of_init,
        shares_the_cgroup_of_init,
        ends_its_execs_when_init_ends,
        closes_the_fifos_of_a_deleted_task,
        reads_fast_output_of_an_exec_in_full,
    ]);
    all
}

fn lists_tasks_with_pid_and_status(c: &Case) {
    assert_eq!(c.list("task ls").len(), 1, "only the heading");
    c.sleeper("a");
    c.sleeper("b");
    let table = c.ctr("task ls").ok();
    assert!(table.starts_with("TASK"), "{table}");
    for id in ["a", "b"] {
        assert_eq!(c.status(id).as_deref(), Some("RUNNING"), "{table}");
        let comm = std::fs::read_to_string(format!("/proc/{}/comm", c.pid(id))).unwrap();
        assert_eq!(comm, "sleep\n");
    }
    let mut names = c.list("task ls -q");
    names.sort_unstable();
    assert_eq!(names, ["a", "b"]);
    c.remove("a");
    c.remove("b");
}

fn runs_a_command_in_a_container(c: &Case) {
    c.sleeper("a");
    c.exec("", "a", &["echo", "from inside"])
        .prints("from inside\n");
    let done = c
        .exec("", "a", &["sh", "-c", "echo out; echo err >&2"])
        .run();
    assert_eq!(
        (done.out().as_str(), done.err().as_str()),
        ("out\n", "err\n")
    );
    c.exec("", "a", &["cat", "/proc/1/comm"]).prints("sleep\n");
    c.remove("a");
}

fn passes_the_exit_code_of_an_exec_on(c: &Case) {
    c.sleeper("a");
    for code in [0, 1, 42] {
        let script = format!("exit {code}");
        c.exec("", "a", &["sh", "-c", &script])
            .run()
            .expect_code(code);
    }
    c.remove("a");
}

fn feeds_stdin_to_an_exec(c: &Case) {
    c.sleeper("a");
    let mut exec = c
        .exec("", "a", &["sh", "-c", "echo ready; wc -c"])
        .stdin("")
        .start();
    exec.wait_output("ready");
    exec.send(&vec![b'y'; 70_000]);
    let done = exec.wait();
    assert_eq!(done.out(), "ready\n70000\n");
    c.remove("a");
}

fn kills_with_the_signal_asked_for(c: &Case) {
    let script = "trap 'exit 12' USR1; trap '' TERM; while :; do sleep 0.05; done";
    c.background("a", &["sh", "-c", script]);
    // The trap is set once the shell sleeps for the first time.
    let ready = || c.ctr("task ps a").ok().lines().count().gt(&2).then_some(());
    eventually(DEADLINE, ready).expect("the shell sleeps");
    c.ctr("task kill a").ok();
    assert_eq!(c.status("a").as_deref(), Some("RUNNING"), "TERM is ignored");
    c.ctr("task kill -s SIGUSR1 a").ok();
    c.wait_stopped("a");
    let done = c.ctr("task delete a").run();
    assert!(
        done.err().contains("exit with non-zero exit code 12") || done.code() == 12,
        "{}",
        done.report()
    );
    c.ctr("containers rm a").ok();
}

fn kills_hard(c: &Case) {
    c.sleeper("a");
    c.ctr("task kill --signal SIGKILL a").ok();
    c.wait_stopped("a");
    c.ctr("task kill -s SIGKILL a")
        .fails("process already finished: not found");
    let done = c.ctr("task delete a").run();
    assert!(
        done.err().contains("137") || done.code() == 137,
        "{}",
        done.report()
    );
    c.ctr("containers rm a").ok();
}

fn pauses_and_resumes(c: &Case) {
    let file = c.file("ticks");
    std::fs::write(&file, "").unwrap();
    let flags = format!(
        "-d --null-io --mount type=bind,src={},dst=/ticks,options=bind:rw",
        file.display()
    );
    let script = "while :; do echo tick >> /ticks; sleep 0.02; done";
    c.run(&flags, "a", &["sh", "-c", script]).ok();
    let size = || std::fs::metadata(&file).unwrap().len();
    let grows = |than: u64| eventually(DEADLINE, || (size() > than).then_some(()));
    grows(0).expect("it ticks");
    c.ctr("task pause a").ok();
    assert_eq!(c.status("a").as_deref(), Some("PAUSED"));
    let paused = size();
    assert!(
        eventually(Duration::from_millis(300), || (size() > paused)
            .then_some(()))
        .is_none()
    );
    c.ctr("task resume a").ok();
    assert_eq!(c.status("a").as_deref(), Some("RUNNING"));
    grows(paused).expect("it ticks again");
    c.remove("a");
}

fn lists_the_processes_of_a_task(c: &Case) {
    c.background("a", &["sh", "-c", "sleep 1000 & sleep 1000; true"]);
    let three = || (c.column("task ps a").len() == 3).then(|| c.column("task ps a"));
    let pids = eventually(DEADLINE, three).expect("a shell and two sleeps");
    assert!(pids.contains(&c.pid("a").to_string()));
    for pid in &pids {
        assert!(
            std::path::Path::new("/proc").join(pid).exists(),
            "{pid} is a host pid"
        );
    }
    c.remove("a");
}

fn measures_a_task(c: &Case) {
    c.sleeper("a");
    let table = c.ctr("task metrics a").ok();
    assert!(
        table.contains("METRIC") && table.contains("memory.usage"),
        "{table}"
    );
    let json = c.ctr("task metrics --format json a").ok();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["pids"]["current"], 1, "{json}");
    let memory = [&json["memory"]["usage"]["usage"], &json["memory"]["usage"]];
    assert!(
        memory.iter().any(|v| v.as_u64().is_some_and(|n| n > 0)),
        "{json}"
    );
    c.remove("a");
}

fn starts_what_was_only_created(c: &Case) {
    let name = c.has(&corten_integration::images::busybox());
    c.ctr("containers create --runtime")
        .arg(&c.runtime)
        .args([&name, "a", "sleep", "1000"])
        .ok();
    assert_eq!(c.status("a"), None);
    c.ctr("task start --null-io -d a").ok();
    assert_eq!(c.status("a").as_deref(), Some("RUNNING"));
    c.remove("a");
}

fn attaches_to_a_running_task(c: &Case) {
    let script = "while read x; do echo got $x; test $x = end && exit 3; done";
    c.run("-d", "a", &["sh", "-c", script]).ok();
    let mut attach = c.ctr("task attach a").stdin("").start();
    attach.send(b"one\n");
    attach.wait_output("got one");
    attach.send(b"end\n");
    let done = attach.ended();
    done.expect_code(3);
    assert_eq!(done.out(), "got one\ngot end\n");
    // The client that sees the end deletes the task.
    c.ctr("containers rm a").ok();
}

fn deletes_by_force(c: &Case) {
    c.sleeper("a");
    let pid = c.pid("a");
    c.ctr("task delete a")
        .fails("task must be stopped before deletion: running");
    assert_eq!(c.status("a").as_deref(), Some("RUNNING"));
    let _ = c.ctr("task delete --force a").run();
    assert_eq!(c.status("a"), None);
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    c.ctr("containers rm a").ok();
}

fn execs_in_the_directory_and_as_the_user_asked_for(c: &Case) {
    c.run("-d --null-io --env FROM=run", "a", &["sleep", "1000"])
        .ok();
    let script = "echo $(id -u):$(id -g) $PWD $FROM";
    c.exec("--cwd /usr/bin --user 1000:50", "a", &["sh", "-c", script])
        .prints("1000:50 /usr/bin run\n");
    // Unlike `run`, exec takes numbers or names as the container's own passwd has them.
    c.exec("--user alice", "a", &["id", "-u"]).prints("1000\n");
    c.remove("a");
}

fn execs_side_by_side(c: &Case) {
    c.sleeper("a");
    let all: Vec<_> = (0..8)
        .map(|n| {
            c.exec(
                "",
                "a",
                &["sh", "-c", &format!("sleep 0.2; echo {n}; exit {n}")],
            )
            .start()
        })
        .collect();
    for (n, exec) in (0..).zip(all) {
        let done = exec.wait();
        done.expect_code(n);
        assert_eq!(done.out(), format!("{n}\n"));
    }
    c.remove("a");
}

fn execs_in_the_background(c: &Case) {
    c.sleeper("a");
    c.ctr("task exec -d --exec-id back --log-uri file:///dev/null a sleep 1000")
        .ok();
    let two = || (c.column("task ps a").len() == 2).then_some(());
    eventually(DEADLINE, two).expect("init and the exec");
    let table = c.ctr("task ps a").ok();
    assert!(
        table.to_lowercase().contains("exec") && table.contains("back"),
        "{table}"
    );
    c.ctr("task kill -s SIGKILL --exec-id back a").ok();
    let gone = || c.ctr("task delete --exec-id back a").run();
    let deleted = eventually(DEADLINE, || {
        (!gone().err().contains("must be stopped")).then_some(())
    });
    deleted.expect("the exec ends and is deleted");
    c.remove("a");
}

fn kills_an_exec_alone(c: &Case) {
    c.sleeper("a");
    let exec = c
        .ctr("task exec --exec-id x --fifo-dir")
        .arg(c.dir.join("fifo"));
    let mut exec = exec.words("a sh -c").arg("echo ready; sleep 1000").start();
    exec.wait_output("ready");
    c.ctr("task kill -s SIGKILL --exec-id x a").ok();
    exec.ended().expect_code(137);
    assert_eq!(c.status("a").as_deref(), Some("RUNNING"));
    c.remove("a");
}

fn kills_all_processes(c: &Case) {
    c.background(
        "a",
        &["sh", "-c", "trap '' TERM; sleep 1000 & sleep 1000; true"],
    );
    let three = || (c.column("task ps a").len() == 3).then_some(());
    eventually(DEADLINE, three).expect("a shell and two sleeps");
    c.ctr("task kill --all -s SIGKILL a").ok();
    c.wait_stopped("a");
    c.remove("a");
}

fn reports_a_kill_as_137(c: &Case) {
    let mut run = c
        .run("--rm", "a", &["sh", "-c", "echo ready; exec sleep 1000"])
        .start();
    run.wait_output("ready");
    c.ctr("task kill -s SIGKILL a").ok();
    run.ended().expect_code(137);
}

fn reports_a_term_as_143(c: &Case) {
    c.run("--rm", "a", &["sh", "-c", "sh -c 'kill -TERM $$'; exit $?"])
        .run()
        .expect_code(143);
    let mut run = c
        .run("--rm", "b", &["sh", "-c", "echo ready; sleep 1000"])
        .start();
    run.wait_output("ready");
    // Init ignores a TERM that it has no handler for, but an exec does not.
    let exec = c
        .ctr("task exec --exec-id x --fifo-dir")
        .arg(c.dir.join("fifo"));
    let mut exec = exec
        .words("b sh -c")
        .arg("echo ready; exec sleep 1000")
        .start();
    exec.wait_output("ready");
    c.ctr("task kill -s SIGTERM --exec-id x b").ok();
    exec.ended().expect_code(143);
    c.ctr("task kill -s SIGKILL b").ok();
    run.ended().expect_code(137);
}

fn keeps_a_stopped_task_until_it_is_deleted(c: &Case) {
    c.background("a", &["sh", "-c", "exit 21"]);
    c.wait_stopped("a");
    c.exec("", "a", &["true"])
        .fails("cannot exec in a stopped state");
    let done = c.ctr("task delete a").run();
    assert!(
        done.err().contains("21") || done.code() == 21,
        "{}",
        done.report()
    );
    c.ctr("task delete a").fails("no running task found");
    c.ctr("containers rm a").ok();
}

fn deletes_the_task_and_starts_a_new_one(c: &Case) {
    c.background("a", &["sh", "-c", "echo x >> /count; sleep 1000"]);
    let _ = c.ctr("task delete -f a").run();
    c.ctr("task start --null-io -d a").ok();
    // The snapshot is the container's and outlives its tasks.
    let lines = || {
        let out = c.exec("", "a", &["cat", "/count"]).ok();
        (out == "x\nx\n").then_some(())
    };
    eventually(DEADLINE, lines).expect("the file of the first run is there");
    c.remove("a");
}

fn joins_the_namespaces_of_init(c: &Case) {
    c.sleeper("a");
    let pid = c.pid("a");
    let script = "for n in pid mnt uts ipc net user cgroup; do readlink /proc/self/ns/$n; done";
    let out = c.exec("", "a", &["sh", "-c", script]).ok();
    for (line, kind) in out
        .lines()
        .zip(["pid", "mnt", "uts", "ipc", "net", "user", "cgroup"])
    {
        let init = std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
        assert_eq!(line, init.to_str().unwrap());
    }
    c.remove("a");
}

fn shares_the_cgroup_of_init(c: &Case) {
    c.run(
        "-d --null-io --memory-limit 33554432",
        "a",
        &["sleep", "1000"],
    )
    .ok();
    let mut exec = c
        .exec("", "a", &["sh", "-c", "echo ready; sleep 1000; true"])
        .start();
    exec.wait_output("ready");
    let pids = c.column("task ps a");
    assert_eq!(pids.len(), 3, "init, the shell and its sleep: {pids:?}");
    let dirs: Vec<_> = pids
        .iter()
        .map(|p| corten_integration::cgroup::directory(p.parse().unwrap(), "memory").0)
        .collect();
    assert!(dirs.iter().all(|d| *d == dirs[0]), "{dirs:?}");
    exec.kill();
    c.remove("a");
    // ctr was killed before it could remove its FIFOs.
    for left in std::fs::read_dir(c.dir.join("fifo")).unwrap().flatten() {
        std::fs::remove_dir_all(left.path()).unwrap();
    }
}

fn ends_its_execs_when_init_ends(c: &Case) {
    c.sleeper("a");
    let mut exec = c
        .exec("", "a", &["sh", "-c", "echo ready; sleep 1000"])
        .start();
    exec.wait_output("ready");
    c.ctr("task kill -s SIGKILL a").ok();
    exec.ended().expect_code(137);
    c.wait_stopped("a");
    c.remove("a");
}

fn closes_the_fifos_of_a_deleted_task(c: &Case) {
    c.run("-d", "a", &["sleep", "1000"]).ok();
    let fifos = || std::fs::read_dir(c.dir.join("fifo")).unwrap().count();
    assert_eq!(fifos(), 1, "one directory of FIFOs");
    c.remove("a");
    assert_eq!(fifos(), 0);
}

fn reads_fast_output_of_an_exec_in_full(c: &Case) {
    c.sleeper("a");
    for _ in 0..5 {
        // It ends when told to: ctr drops what it has not copied by the time of the exit.
        let mut exec = c
            .exec("", "a", &["sh", "-c", "yes | head -c 300000; cat"])
            .stdin("")
            .start();
        exec.wait_length(300_000);
        let done = exec.wait();
        done.expect_code(0);
        assert_eq!(done.stdout.len(), 300_000);
    }
    c.remove("a");
}
