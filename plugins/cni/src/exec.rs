//! Runs one plugin: finds its file, gives it its environment and stdin, and judges what comes back.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use corten_core::{Error, Kind, Result};
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::sync::Notify;
use tracing::{debug, warn};

use crate::{Version, names};

/// Most bytes of stdout that are taken.
pub const MAX_OUTPUT: u64 = 1024 * 1024;
/// Most bytes of stderr that are kept.
pub const MAX_STDERR: u64 = 64 * 1024;
/// How often and how long is waited for somebody to finish writing the plugin's file.
const BUSY: (u32, Duration) = (5, Duration::from_millis(200));
/// How long stdout and stderr may stay open after the plugin's end; a child that it left behind may hold them.
const GRACE: Duration = Duration::from_secs(1);

/// What is asked of a plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Add,
    Del,
    Check,
    Status,
    Gc,
    Version,
}

/// The environment of one call.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    pub verb: Verb,
    pub id: &'a str,
    /// Empty: the namespace is gone.
    pub netns: &'a str,
    pub interface: &'a str,
    pub args: &'a [(String, String)],
}

/// Where plugins are and how long they may take.
#[derive(Debug, Clone)]
pub struct Executor {
    pub dirs: Vec<PathBuf>,
    pub timeout: Duration,
}

/// What a plugin said when it failed: the specification's error object.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct PluginError {
    #[serde(default)]
    pub code: u32,
    #[serde(default)]
    pub msg: String,
    #[serde(default)]
    pub details: String,
}

impl Verb {
    /// The word in CNI_COMMAND.
    pub fn word(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Status => "STATUS",
            Self::Gc => "GC",
            Self::Version => "VERSION",
        }
    }
}

impl std::fmt::Display for PluginError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.msg)?;
        if !self.details.is_empty() {
            write!(f, "; {}", self.details)?;
        }
        Ok(())
    }
}

impl PluginError {
    /// The class of the specification's code.
    fn kind(&self) -> Kind {
        match self.code {
            1 | 2 | 4 | 6 | 7 => Kind::InvalidArgument,
            3 => Kind::NotFound,
            8 => Kind::FailedPrecondition,
            11 | 50 | 51 => Kind::Unavailable,
            _ => Kind::Unknown,
        }
    }
}

// === impl Executor ===

impl Executor {
    /// The file of plugin type `kind`: the first of that name in the folders.
    ///
    /// # Errors
    /// NotFound, with the folders; InvalidArgument for a type that is a path.
    pub fn find(&self, kind: &str) -> Result<PathBuf> {
        names::check_type(kind)?;
        let found = self.dirs.iter().map(|d| d.join(kind)).find(|p| p.is_file());
        found.ok_or_else(|| {
            let dirs: Vec<_> = self.dirs.iter().map(|d| d.display().to_string()).collect();
            Error::new(
                Kind::NotFound,
                format!(
                    "failed to find plugin {kind:?} in path [{}]",
                    dirs.join(" ")
                ),
            )
        })
    }

    /// Runs the plugin and gives what it wrote to stdout. Dropping the future kills it.
    ///
    /// # Errors
    /// Of the class of the plugin's own error code, with its words; DeadlineExceeded when it took too long.
    pub async fn run(&self, kind: &str, config: &Value, call: Call<'_>) -> Result<Vec<u8>> {
        let path = self.find(kind)?;
        let input = config.to_string();
        let run = self.run_file(&path, input.as_bytes(), call);
        match tokio::time::timeout(self.timeout, run).await {
            Ok(done) => done,
            Err(_) => Err(Error::new(
                Kind::DeadlineExceeded,
                format!(
                    "plugin was killed: no answer to {} in {:?}",
                    call.verb.word(),
                    self.timeout
                ),
            )),
        }
    }

    /// The versions that a plugin says it speaks. One too old for the question speaks 0.1.0.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub async fn versions(&self, kind: &str) -> Result<Vec<Version>> {
        #[derive(Deserialize)]
        struct Answer {
            #[serde(rename = "cniVersion", default)]
            version: String,
            #[serde(rename = "supportedVersions", default)]
            supported: Vec<String>,
        }
        // Old plugins want all variables set, whatever the verb.
        let call = Call {
            verb: Verb::Version,
            id: "",
            netns: "dummy",
            interface: "dummy",
            args: &[],
        };
        let config = serde_json::json!({"cniVersion": Version::V1_1_0.to_string()});
        let out = match self.run(kind, &config, call).await {
            Ok(out) => out,
            Err(e) if e.to_string().contains("unknown CNI_COMMAND") => {
                return Ok(vec![Version::V0_1_0]);
            }
            Err(e) => return Err(e),
        };
        let answer: Answer = serde_json::from_slice(&out)
            .map_err(|e| Error::invalid(format!("answer of plugin {kind:?} to VERSION: {e}")))?;
        let mut known: Vec<Version> = answer
            .supported
            .iter()
            .filter_map(|v| v.parse().ok())
            .collect();
        if known.is_empty() {
            // Before 0.2.0 there was no list; the version is the only one.
            known.push(answer.version.parse()?);
        }
        Ok(known)
    }

    fn command(&self, path: &Path, call: Call<'_>) -> Result<Command> {
        let mut args = String::new();
        for (key, value) in call.args {
            names::check_arg(key)?;
            names::check_arg(value)?;
            if !args.is_empty() {
                args.push(';');
            }
            args.push_str(key);
            args.push('=');
            args.push_str(value);
        }
        let dirs = self.dirs.iter().map(|d| d.as_os_str());
        let dirs = dirs.collect::<Vec<_>>().join(std::ffi::OsStr::new(":"));
        let mut command = Command::new(path);
        command
            .env("CNI_COMMAND", call.verb.word())
            .env("CNI_CONTAINERID", call.id)
            .env("CNI_NETNS", call.netns)
            .env("CNI_IFNAME", call.interface)
            .env("CNI_ARGS", args)
            .env("CNI_PATH", dirs)
            // The daemon's own notifications and sockets are nobody else's.
            .env_remove("NOTIFY_SOCKET")
            .env_remove("LISTEN_PID")
            .env_remove("LISTEN_FDS")
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        Ok(command)
    }

    async fn run_file(&self, path: &Path, input: &[u8], call: Call<'_>) -> Result<Vec<u8>> {
        let mut command = self.command(path, call)?;
        let mut busy = BUSY.0;
        let mut child = loop {
            match command.spawn() {
                Ok(child) => break child,
                // Somebody is installing it. There is nothing to wait on but time.
                Err(e) if e.kind() == ErrorKind::ExecutableFileBusy && busy > 0 => {
                    busy -= 1;
                    tokio::time::sleep(BUSY.1).await;
                }
                Err(e) => {
                    return Err(Error::from(e).context(format!("fork/exec {}", path.display())));
                }
            }
        };
        let pid = child
            .id()
            .and_then(|p| Pid::from_raw(i32::try_from(p).ok()?));
        let mut group = Group(pid);
        let output = talk(&mut child, &mut group, input).await;
        let (status, out, err) =
            output.map_err(|e| Error::from(e).context(format!("run {}", path.display())))?;
        let said = String::from_utf8_lossy(&err);
        if !said.trim().is_empty() {
            debug!(
                plugin = %path.display(), verb = call.verb.word(), container.id = call.id,
                stderr = said.trim(), "a CNI plugin wrote to stderr"
            );
        }
        if out.len() as u64 > MAX_OUTPUT {
            return Err(Error::new(
                Kind::ResourceExhausted,
                format!("plugin wrote more than {MAX_OUTPUT} bytes"),
            ));
        }
        if status.success() {
            return Ok(out);
        }
        let failure = failure(status, &out, &said);
        Err(Error::new(failure.kind(), failure.to_string()))
    }
}

/// A running plugin's process group, killed when dropped. Emptied as soon as the leader is reaped: until then the
/// number cannot be anybody else's.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0.take()
            && let Err(error) = kill_process_group(group, Signal::KILL)
            && error != rustix::io::Errno::SRCH
        {
            warn!(%error, "kill a CNI plugin");
        }
    }
}

/// Feeds stdin and takes both outputs at once, so that no full pipe can hold the plugin up.
async fn talk(
    child: &mut Child,
    group: &mut Group,
    input: &[u8],
) -> std::io::Result<(ExitStatus, Vec<u8>, Vec<u8>)> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A plugin may answer without having read everything.
            let _ = stdin.write_all(input).await;
        }
    };
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let flood = Notify::new();
    let status = {
        let answer = async {
            if let Some(from) = stdout {
                let _ = from.take(MAX_OUTPUT + 1).read_to_end(&mut out).await;
            }
            if out.len() as u64 > MAX_OUTPUT {
                flood.notify_one();
                std::future::pending::<()>().await;
            }
        };
        let streams = async { tokio::join!(feed, answer, take(stderr, MAX_STDERR, &mut err)) };
        tokio::pin!(streams);
        tokio::select! {
            _ = &mut streams => {
                let status = child.wait().await?;
                group.0 = None;
                status
            }
            status = child.wait() => {
                group.0 = None;
                let _ = tokio::time::timeout(GRACE, streams).await;
                status?
            }
            // It said more than anybody will read, and may never end.
            () = flood.notified() => {
                drop(std::mem::replace(group, Group(None)));
                child.wait().await?
            }
        }
    };
    Ok((status, out, err))
}

/// Keeps the first `limit` bytes and reads on to the end.
async fn take(from: Option<impl AsyncRead + Unpin>, limit: u64, into: &mut Vec<u8>) {
    if let Some(mut from) = from {
        let _ = (&mut from).take(limit).read_to_end(into).await;
        let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
    }
}

/// The plugin's own error, or one made of what there is. The words are libcni's: they end up in pod events.
fn failure(status: ExitStatus, out: &[u8], err: &str) -> PluginError {
    let said = |msg: String| PluginError {
        msg,
        ..PluginError::default()
    };
    let status = match std::os::unix::process::ExitStatusExt::signal(&status) {
        Some(n) => format!("signal {n}"),
        None => format!("exit status {}", status.code().unwrap_or(-1)),
    };
    let mute = format!("netplugin failed with no error message: {status}");
    if out.is_empty() && err.is_empty() {
        return said(mute);
    }
    if out.is_empty() {
        let short: String = err.chars().take(4096).collect();
        return said(format!("netplugin failed: {short:?}: {status}"));
    }
    match serde_json::from_slice::<PluginError>(out) {
        Ok(error) if error.msg.is_empty() && error.details.is_empty() => said(mute),
        Ok(error) => error,
        Err(e) => {
            let short: String = String::from_utf8_lossy(out).chars().take(4096).collect();
            said(format!(
                "netplugin failed but error parsing its diagnostic message {short:?}: {e}"
            ))
        }
    }
}
