//! A daemon under its own root, state and socket in a temporary directory, started, killed,
//! restarted and stopped by a test.
//!
//! ```text
//! <base>/c.toml      its config        <base>/log   its output
//! <base>/r  <base>/s  <base>/c.sock    root, state and socket (short: sockets have 108 bytes)
//! <base>/t           its TMPDIR        <base>/n/<namespace>  what a test keeps
//! ```
//! Dropping it kills the daemon and everything it started, by pid, unmounts and removes `<base>`.
//! `CORTEN_KEEP=1` keeps the directory of a daemon for reading its log.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::leaks;
use crate::peers::Kind;
use crate::process::{eventually, exits_within};

/// What may differ from one daemon to the next.
#[derive(Debug)]
pub struct Setup {
    pub kind: Kind,
    /// TOML appended to the config.
    pub extra: String,
    /// Environment of the daemon.
    pub env: Vec<(String, String)>,
    /// Serves the CRI.
    pub kubernetes: bool,
}

/// A daemon with its directory.
#[derive(Debug)]
pub struct Daemon {
    pub kind: Kind,
    pub base: PathBuf,
    env: Vec<(String, String)>,
    child: Mutex<Option<Child>>,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Every daemon's directory starts with this, so that a later run finds what a killed one left.
const PREFIX: &str = "cit-";

/// How long a daemon may take to answer on its socket.
const BOOT: Duration = Duration::from_secs(20);

// === impl Setup ===

impl Setup {
    #[must_use]
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            extra: String::new(),
            env: Vec::new(),
            kubernetes: false,
        }
    }

    /// With the CRI, which the other daemons leave out.
    #[must_use]
    pub fn kubernetes(mut self) -> Self {
        self.kubernetes = true;
        self
    }

    #[must_use]
    pub fn extra(mut self, toml: &str) -> Self {
        self.extra = toml.to_owned();
        self
    }

    #[must_use]
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.env.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Makes the directory and the config, starts the daemon and waits until it answers.
    #[must_use]
    pub fn start(self) -> Daemon {
        let daemon = self.prepare();
        daemon.start();
        daemon
    }

    /// Makes the directory and the config without starting anything.
    #[must_use]
    pub fn prepare(self) -> Daemon {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let base = PathBuf::from(format!("/tmp/{PREFIX}{}-{number}", std::process::id()));
        for part in ["r", "s", "t", "n"] {
            fs::create_dir_all(base.join(part)).unwrap();
        }
        let version = match self.kind {
            Kind::Debian => 2,
            Kind::Corten | Kind::Reference => 3,
        };
        // NRI's default socket is the machine's, not ours.
        let disabled = if self.kubernetes {
            ""
        } else {
            r#"disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images",
  "io.containerd.cri.v1.runtime", "io.containerd.podsandbox.controller.v1.podsandbox",
  "io.containerd.nri.v1.nri"]"#
        };
        let config = format!(
            r#"version = {version}
root = "{base}/r"
state = "{base}/s"
{disabled}
[grpc]
address = "{base}/c.sock"
{extra}"#,
            base = base.display(),
            extra = self.extra
        );
        fs::write(base.join("c.toml"), config).unwrap();
        Daemon {
            kind: self.kind,
            base,
            env: self.env,
            child: Mutex::new(None),
        }
    }
}

// === impl Daemon ===

impl Daemon {
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.base.join("c.sock")
    }

    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.base.join("r")
    }

    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.base.join("s")
    }

    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.base.join("c.toml")
    }

    /// The daemon's pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child
            .lock()
            .unwrap()
            .as_ref()
            .expect("the daemon runs")
            .id()
    }

    /// The daemon's command with its environment, ready for more arguments.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new(self.kind.program());
        command
            .env("PATH", self.kind.search_path())
            .env("TMPDIR", self.base.join("t"))
            .envs(self.env.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::null());
        command
    }

    /// Starts the daemon and waits until it answers on its socket.
    pub fn start(&self) {
        self.spawn();
        let answers = eventually(BOOT, || {
            assert!(
                !self.has_exited(),
                "the daemon ended at boot:\n{}",
                self.log_tail(40)
            );
            UnixStream::connect(self.socket()).ok()
        });
        assert!(
            answers.is_some(),
            "no answer within {BOOT:?}:\n{}",
            self.log_tail(40)
        );
    }

    /// Starts the daemon without waiting.
    pub fn spawn(&self) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.base.join("log"))
            .unwrap();
        let child = self
            .command()
            .arg("-c")
            .arg(self.config())
            .args(["-l", "debug"])
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|e| panic!("start {}: {e}", self.kind.program().display()));
        *self.child.lock().unwrap() = Some(child);
    }

    fn has_exited(&self) -> bool {
        let mut child = self.child.lock().unwrap();
        child
            .as_mut()
            .is_none_or(|c| c.try_wait().is_ok_and(|s| s.is_some()))
    }

    /// kill -9, then reaps it.
    pub fn kill(&self) {
        if let Some(mut child) = self.child.lock().unwrap().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// kill -9 and start again.
    pub fn crash_and_restart(&self) {
        self.kill();
        self.start();
    }

    /// SIGTERM; gives the exit code.
    pub fn stop(&self) -> i32 {
        let mut child = self.child.lock().unwrap().take().expect("the daemon runs");
        let pid = Pid::from_raw(child.id().cast_signed()).expect("pids are positive");
        let _ = kill_process(pid, Signal::TERM);
        if !exits_within(child.id(), Duration::from_secs(15)) {
            let _ = child.kill();
            let _ = child.wait();
            panic!(
                "the daemon ignored SIGTERM for 15 s:\n{}",
                self.log_tail(40)
            );
        }
        let status = child.wait().expect("the daemon is our child");
        status.code().unwrap_or(-1)
    }

    #[must_use]
    pub fn log(&self) -> String {
        fs::read(self.base.join("log"))
            .map(|b| String::from_utf8_lossy(&b).into_owned())
            .unwrap_or_default()
    }

    /// The last lines of the log.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        tail(&self.log().lines().collect::<Vec<_>>(), lines)
    }

    /// The last lines of the log that speak of `namespace` or of trouble.
    #[must_use]
    pub fn log_about(&self, namespace: &str, lines: usize) -> String {
        let log = self.log();
        let about = |l: &&str| {
            l.contains(namespace)
                || ["level=error", "level=fatal", "ERROR", "panic"]
                    .iter()
                    .any(|w| l.contains(w))
        };
        tail(&log.lines().filter(about).collect::<Vec<_>>(), lines)
    }

    /// What is left once every test has cleaned up: temporary files, mounts, shims, sockets.
    #[must_use]
    pub fn leaks(&self) -> Vec<String> {
        leaks::of_daemon(self)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
        if std::env::var_os("CORTEN_KEEP").is_some() {
            eprintln!("kept {}", self.base.display());
            return;
        }
        leaks::clear_away(&self.base);
    }
}

fn tail(lines: &[&str], count: usize) -> String {
    let start = lines.len().saturating_sub(count);
    lines[start..].join("\n")
}

/// Clears away what an earlier test run that was killed has left on this machine.
pub fn sweep() {
    let Ok(entries) = fs::read_dir("/tmp") else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|n| n.strip_prefix(PREFIX)) else {
            continue;
        };
        let owner = rest.split('-').next().unwrap_or_default();
        if owner.parse::<u32>().is_ok() && !Path::new("/proc").join(owner).exists() {
            eprintln!(
                "clearing away {} of a test run that was killed",
                entry.path().display()
            );
            leaks::clear_away(&entry.path());
        }
    }
}
