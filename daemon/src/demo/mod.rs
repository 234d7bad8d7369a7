//! `cortend demo`: one container, from nothing, through the API, with what it saw and how long each step took.
//!
//! It starts this very program as a daemon in a temporary folder, talks to it as any containerd client would, and
//! leaves nothing behind: no process, mount, cgroup or file.

mod image;
mod steps;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tokio::process::{Child, Command};

use crate::server::client;

/// How long the daemon may take to serve.
const START: Duration = Duration::from_secs(10);

/// Runs the demo.
pub(crate) fn run() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("the demo makes namespaces, mounts and cgroups: run it as root");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let home = Home::new()?;
        let begun = Instant::now();
        let mut daemon = start(&home.0)?;
        let socket = home.0.join("s");
        let outcome = async {
            let channel = reach(&socket, &mut daemon).await?;
            let booted = begun.elapsed();
            steps::show(channel, &home.0, booted, daemon.id().unwrap_or_default()).await
        }
        .await;
        stop(&mut daemon).await;
        if outcome.is_err() {
            let log = std::fs::read_to_string(home.0.join("log")).unwrap_or_default();
            for line in log
                .lines()
                .rev()
                .take(20)
                .collect::<Vec<_>>()
                .into_iter()
                .rev()
            {
                tell(&format!("daemon: {line}"));
            }
        }
        outcome
    })
}

/// A line for the user.
fn tell(line: &str) {
    #[expect(clippy::print_stdout, reason = "showing it is the command")]
    {
        println!("{line}");
    }
}

/// The temporary folder; removed with everything in it.
struct Home(PathBuf);

impl Home {
    fn new() -> Result<Self> {
        // Short: the paths of unix sockets have 108 bytes.
        let path = std::env::temp_dir().join(format!("corten-demo-{}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_dir_all(&self.0) {
            tell(&format!("could not remove {}: {e}", self.0.display()));
        }
    }
}

fn start(home: &Path) -> Result<Child> {
    let config = home.join("config.toml");
    std::fs::write(&config, "version = 4\nimports = []\n").context("write the demo's config")?;
    let log = std::fs::File::create(home.join("log")).context("create the demo's log")?;
    let this = std::env::current_exe().context("find this program")?;
    Command::new(this)
        .arg("--config")
        .arg(&config)
        .arg("--root")
        .arg(home.join("r"))
        .arg("--state")
        .arg(home.join("t"))
        .arg("--address")
        .arg(home.join("s"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .context("start the daemon")
}

/// Connects as soon as the socket is there.
async fn reach(socket: &Path, daemon: &mut Child) -> Result<crate::server::ClientChannel> {
    let deadline = Instant::now() + START;
    loop {
        if let Ok(channel) = client(&socket.to_string_lossy()).await {
            return Ok(channel);
        }
        if let Some(status) = daemon.try_wait()? {
            bail!("the daemon ended at once: {status}");
        }
        if Instant::now() > deadline {
            bail!("the daemon did not serve within {START:?}");
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// SIGTERM, then the end; the container is gone by now.
async fn stop(daemon: &mut Child) {
    let pid = daemon.id().and_then(|id| i32::try_from(id).ok());
    if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    if tokio::time::timeout(START, daemon.wait()).await.is_err() {
        let _ = daemon.kill().await;
    }
}
