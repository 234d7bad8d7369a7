//! Child processes with deadlines: a command to build, a finished one to judge, a running one to
//! talk to.
//!
//! Every wait is for an event (exit by pidfd, a line of output by condition variable) and has a
//! deadline; when one passes, the child is killed by pid and the test fails with what was seen.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::commands;
use crate::ctr::Client;

/// How long anything may take unless a test says otherwise.
pub const DEADLINE: Duration = Duration::from_secs(40);

/// How many times longer than that things may take on this machine: `CORTEN_PATIENCE`, for slow ones.
#[must_use]
pub fn patience() -> u32 {
    static PATIENCE: OnceLock<u32> = OnceLock::new();
    *PATIENCE.get_or_init(|| {
        let asked = std::env::var("CORTEN_PATIENCE").ok();
        asked.and_then(|n| n.parse().ok()).unwrap_or(1)
    })
}

/// Writes the program `text` to `path`. Another process does it: of a file that this one writes, a
/// child that another thread makes meanwhile is a writer too until it execs, and the kernel runs no
/// file that is being written (`ETXTBSY`).
pub fn program(path: &Path, text: &str) {
    let mut install = Command::new("install")
        .args(["-m", "755", "/dev/stdin"])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .expect("run install");
    let written = install.stdin.take().unwrap().write_all(text.as_bytes());
    let status = install.wait().unwrap();
    assert!(
        written.is_ok() && status.success(),
        "write {path:?}: {status}"
    );
}

/// A command about to run.
#[derive(Debug)]
pub struct Cmd {
    command: Command,
    stdin: Option<Vec<u8>>,
    from_file: bool,
    deadline: Duration,
    /// Set if this is a ctr: its command line is noted.
    client: Option<Client>,
}

/// A command that ended.
#[derive(Debug)]
pub struct Done {
    pub command: String,
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

/// A command that still runs; killed when dropped.
#[derive(Debug)]
pub struct Running {
    shown: String,
    child: Child,
    stdin: Option<ChildStdin>,
    out: Collected,
    err: Collected,
    deadline: Duration,
    reaped: bool,
}

/// Bytes as they arrive from a pipe, a FIFO or a terminal.
#[derive(Debug)]
pub struct Collected {
    state: Arc<(Mutex<State>, Condvar)>,
    reader: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    ended: bool,
}

// === impl Cmd ===

impl Cmd {
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(program);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Self {
            command,
            stdin: None,
            from_file: false,
            deadline: DEADLINE * patience(),
            client: None,
        }
    }

    /// Says that this command is a ctr.
    #[must_use]
    pub(crate) fn client(mut self, client: Client) -> Self {
        self.client = Some(client);
        self
    }

    /// Notes the command line for the table of commands, if this is a ctr.
    pub(crate) fn note(&self) {
        if let Some(client) = self.client {
            let args = self.command.get_args();
            let args = args.map(|a| a.to_string_lossy().into_owned()).collect();
            commands::note(client, args);
        }
    }

    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    /// Adds the words of `line`, split at white space.
    #[must_use]
    pub fn words(self, line: &str) -> Self {
        self.args(line.split_whitespace())
    }

    #[must_use]
    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    #[must_use]
    pub fn dir(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Feeds `bytes` to standard input, then closes it.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// Reads standard input from a file, which can be rewound.
    #[must_use]
    pub fn stdin_file(mut self, path: &Path) -> Self {
        let file = std::fs::File::open(path).expect("the test wrote the file");
        self.command.stdin(file);
        self.from_file = true;
        self
    }

    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline * patience();
        self
    }

    /// The program and its arguments, to run them under another program.
    #[must_use]
    pub fn argv(&self) -> Vec<OsString> {
        std::iter::once(self.command.get_program())
            .chain(self.command.get_args())
            .map(OsStr::to_owned)
            .collect()
    }

    pub(crate) fn environment(&self) -> Vec<(OsString, OsString)> {
        self.command
            .get_envs()
            .filter_map(|(k, v)| Some((k.to_owned(), v?.to_owned())))
            .collect()
    }

    /// Runs to the end.
    #[must_use]
    pub fn run(self) -> Done {
        let input = self.stdin.clone();
        let mut running = self.start();
        if let Some(bytes) = input {
            running.send(&bytes);
            running.close_stdin();
        }
        running.wait()
    }

    /// Runs to the end, which must be exit code 0, and gives standard output as text.
    #[track_caller]
    pub fn ok(self) -> String {
        let done = self.run();
        done.expect_code(0);
        done.out()
    }

    /// Runs to the end, which must be exit code 0 with exactly this on standard output.
    #[track_caller]
    pub fn prints(self, expected: &str) {
        let done = self.run();
        done.expect_code(0);
        assert!(
            done.out() == expected,
            "should have printed {expected:?}:\n{}",
            done.report()
        );
    }

    /// Runs to the end, which must be a failure whose text contains `text`.
    #[track_caller]
    pub fn fails(self, text: &str) -> Done {
        let done = self.run();
        assert!(
            done.code() != 0,
            "should have failed with {text:?}:\n{}",
            done.report()
        );
        assert!(
            done.err().contains(text),
            "should have said {text:?}:\n{}",
            done.report()
        );
        done
    }

    /// Starts in the background. Standard input is a pipe if [`Cmd::stdin`] was called.
    #[must_use]
    pub fn start(mut self) -> Running {
        self.note();
        let shown = shown(&self.command);
        if self.stdin.is_some() && !self.from_file {
            self.command.stdin(Stdio::piped());
        }
        let mut child = self
            .command
            .spawn()
            .unwrap_or_else(|e| panic!("start {shown}: {e}"));
        let out = Collected::from(child.stdout.take().expect("stdout is piped"));
        let err = Collected::from(child.stderr.take().expect("stderr is piped"));
        let stdin = child.stdin.take();
        Running {
            shown,
            child,
            stdin,
            out,
            err,
            deadline: self.deadline,
            reaped: false,
        }
    }
}

fn shown(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        let _ = write!(text, " {}", arg.to_string_lossy());
    }
    text
}

// === impl Done ===

impl Done {
    /// The exit code, or 128 and the signal's number as a shell would say.
    #[must_use]
    pub fn code(&self) -> i32 {
        code_of(self.status)
    }

    #[must_use]
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error without the notices that ctr prints about the host (its cgroup version).
    #[must_use]
    pub fn err(&self) -> String {
        let text = String::from_utf8_lossy(&self.stderr);
        text.lines()
            .filter(|l| !l.contains("DEPRECATION:"))
            .fold(String::new(), |mut all, l| {
                all.push_str(l);
                all.push('\n');
                all
            })
    }

    /// Fails the test unless the exit code is `code`.
    #[track_caller]
    pub fn expect_code(&self, code: i32) -> &Self {
        assert!(
            self.code() == code,
            "should have exited with {code}:\n{}",
            self.report()
        );
        self
    }

    #[must_use]
    pub fn report(&self) -> String {
        format!(
            "  command: {}\n  exit: {}\n  stdout: {}\n  stderr: {}",
            self.command,
            self.code(),
            last_part(self.out().trim_end()),
            last_part(self.err().trim_end())
        )
    }
}

/// The end of a long text.
fn last_part(text: &str) -> &str {
    let start = text.len().saturating_sub(1500);
    (start..=text.len())
        .find_map(|at| text.get(at..))
        .unwrap_or_default()
}

fn code_of(status: ExitStatus) -> i32 {
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

// === impl Running ===

impl Running {
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Writes to standard input.
    pub fn send(&mut self, bytes: &[u8]) {
        let stdin = self.stdin.as_mut().expect("stdin was asked for");
        // A child that ended early shows in its exit code, not here.
        let _ = stdin.write_all(bytes).and_then(|()| stdin.flush());
    }

    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().cast_signed()).expect("pids are positive");
        let _ = kill_process(pid, signal);
    }

    /// Waits until standard output contains `text` and gives all of it so far.
    pub fn wait_output(&mut self, text: &str) -> String {
        self.wait_output_for(|seen| seen.contains(text), &format!("{text:?}"))
    }

    /// Waits until `wanted` holds for standard output and gives all of it so far.
    pub fn wait_output_for(&mut self, wanted: impl Fn(&str) -> bool, what: &str) -> String {
        match self.out.wait_for(&wanted, self.deadline) {
            Ok(seen) => seen,
            Err(seen) => {
                self.kill();
                panic!(
                    "{}: no output {what} in {:?}, but\n  stdout: {}\n  stderr: {}",
                    self.shown,
                    self.deadline,
                    last_part(&seen),
                    last_part(&self.err.text())
                );
            }
        }
    }

    /// Waits until standard output is at least so long.
    pub fn wait_length(&mut self, length: usize) {
        let seen = self.out.wait_length(length, self.deadline);
        if seen < length {
            self.kill();
            panic!("{}: {seen} bytes of output, not {length}", self.shown);
        }
    }

    /// Standard output so far.
    #[must_use]
    pub fn output(&self) -> String {
        self.out.text()
    }

    /// Waits for the end.
    #[must_use]
    pub fn wait(mut self) -> Done {
        self.close_stdin();
        self.ended()
    }

    /// Waits for the end without closing standard input.
    #[must_use]
    pub fn ended(&mut self) -> Done {
        if !exits_within(self.child.id(), self.deadline / patience()) {
            self.kill();
            panic!(
                "{}: still running after {:?}\n  stdout: {}\n  stderr: {}",
                self.shown,
                self.deadline,
                self.out.text(),
                self.err.text()
            );
        }
        let status = self.child.wait().expect("the child is ours");
        self.reaped = true;
        Done {
            command: self.shown.clone(),
            status,
            stdout: self.out.finish(),
            stderr: self.err.finish(),
        }
    }

    /// Kills hard and reaps.
    pub fn kill(&mut self) {
        if !self.reaped {
            let _ = self.child.kill();
            let _ = self.child.wait();
            self.reaped = true;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits for a process to end; false if it still runs at the deadline.
#[must_use]
pub fn exits_within(pid: u32, deadline: Duration) -> bool {
    let Some(pid) = Pid::from_raw(pid.cast_signed()) else {
        return true;
    };
    let Ok(fd) = pidfd_open(pid, PidfdFlags::empty()) else {
        return true;
    };
    let end = Instant::now() + deadline * patience();
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).expect("deadlines are short");
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => panic!("poll a pidfd: {e}"),
        }
    }
}

// === impl Collected ===

impl Collected {
    pub fn from(mut source: impl Read + Send + 'static) -> Self {
        let state = Arc::new((Mutex::new(State::default()), Condvar::new()));
        let shared = Arc::clone(&state);
        let reader = std::thread::spawn(move || {
            let mut chunk = [0; 8192];
            // A pty master reports the end as an error, which ends the loop as well.
            while let Ok(n) = source.read(&mut chunk)
                && n > 0
            {
                shared
                    .0
                    .lock()
                    .unwrap()
                    .bytes
                    .extend_from_slice(&chunk[..n]);
                shared.1.notify_all();
            }
            shared.0.lock().unwrap().ended = true;
            shared.1.notify_all();
        });
        Self {
            state,
            reader: Some(reader),
        }
    }

    /// Everything so far.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.state.0.lock().unwrap().bytes).into_owned()
    }

    /// Waits until `wanted` holds; gives all text so far, as an error if it never did.
    ///
    /// # Errors
    /// The source ended or the deadline passed first.
    pub fn wait_for(
        &self,
        wanted: &dyn Fn(&str) -> bool,
        deadline: Duration,
    ) -> Result<String, String> {
        let end = Instant::now() + deadline;
        let mut state = self.state.0.lock().unwrap();
        loop {
            let text = String::from_utf8_lossy(&state.bytes).into_owned();
            if wanted(&text) {
                return Ok(text);
            }
            let left = end.saturating_duration_since(Instant::now());
            if state.ended || left.is_zero() {
                return Err(text);
            }
            state = self.state.1.wait_timeout(state, left).unwrap().0;
        }
    }

    fn wait_length(&self, length: usize, deadline: Duration) -> usize {
        let end = Instant::now() + deadline;
        let mut state = self.state.0.lock().unwrap();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if state.bytes.len() >= length || state.ended || left.is_zero() {
                return state.bytes.len();
            }
            state = self.state.1.wait_timeout(state, left).unwrap().0;
        }
    }

    /// All output. Waits a little for the end, since a grandchild may hold the pipe open for ever.
    pub(crate) fn finish(&mut self) -> Vec<u8> {
        let end = Instant::now() + Duration::from_secs(3);
        let mut state = self.state.0.lock().unwrap();
        while !state.ended {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return std::mem::take(&mut state.bytes);
            }
            state = self.state.1.wait_timeout(state, left).unwrap().0;
        }
        let bytes = std::mem::take(&mut state.bytes);
        drop(state);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        bytes
    }
}

/// A short pause between two looks at something that has no event to wait for.
#[allow(
    clippy::disallowed_methods,
    reason = "no executor runs on the test's threads"
)]
pub(crate) fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Asks `probe` again and again, with short pauses, until it gives something or time is up. For
/// what has no event to wait for: files under /proc and /sys, a socket that begins to answer.
pub fn eventually<T>(within: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + within * patience();
    loop {
        if let Some(found) = probe() {
            return Some(found);
        }
        if Instant::now() >= end {
            return None;
        }
        pause(Duration::from_millis(10));
    }
}
