//! The shim's binary as a command: `start`, `delete` and `-info` (docs/runtime-v2.md).
//!
//! These are short-lived helpers: they are killed when nobody waits for them any more. The shim that `start` leaves
//! behind is not ours to kill; it lives in its own process group and outlives the daemon.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use corten_core::runtime::Exit;
use corten_core::{Any, Error, Kind, Result};
use corten_protos::containerd::runtime::bootstrap::v1::{BootstrapParams, Extension, LogLevel};
use corten_protos::containerd::task::v3::DeleteResponse;
use corten_protos::containerd::types::RuntimeInfo;
use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tracing::level_filters::LevelFilter;
use tracing::warn;

use crate::bundle::Bundle;
use crate::manager::Manager;
use crate::shim::system_time;

/// Most output taken from a helper, in bytes.
const OUTPUT: u64 = 1 << 20;
/// How long output may come after the helper itself is gone: it then comes from a child that kept the pipe.
const GRACE: Duration = Duration::from_secs(2);

/// One shim binary and the bundle that it is to work for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Helper<'a> {
    pub(crate) manager: &'a Manager,
    pub(crate) binary: &'a Path,
    pub(crate) bundle: &'a Bundle,
}

impl Helper<'_> {
    /// Runs `start`; gives what it printed. The shim serves when this returns.
    pub(crate) async fn start(&self, options: Option<&Any>) -> Result<Vec<u8>> {
        let (reader, writer) = std::io::pipe().map_err(|e| spawn_failed(self.binary, &e))?;
        let copy = writer
            .try_clone()
            .map_err(|e| spawn_failed(self.binary, &e))?;
        let mut command = self.command(None, "start");
        command.stdin(Stdio::piped()).stdout(writer).stderr(copy);
        let mut child = command.spawn().map_err(|e| spawn_failed(self.binary, &e))?;
        // The command holds the writing ends: as long as it lives, the pipe has no end.
        drop(command);
        let params = self.params(options).encode_to_vec();
        let stdin = child.stdin.take();
        let feed = async {
            if let Some(mut stdin) = stdin {
                // A shim that does not read its stdin is an old one, or dead; the exit status tells.
                let _ = stdin.write_all(&params).await;
            }
        };
        let output = pipe::Receiver::from_owned_fd(OwnedFd::from(reader))
            .map_err(|e| spawn_failed(self.binary, &e))?;
        let ((), (status, output)) = tokio::join!(feed, finish(&mut child, output));
        let status = status.map_err(|e| spawn_failed(self.binary, &e))?;
        if status.success() {
            Ok(output)
        } else {
            Err(call_failed(&output, status))
        }
    }

    /// Runs `delete`: kills what is left of the container and frees its resources.
    pub(crate) async fn delete(&self) -> Result<Exit> {
        let mut command = self.command(Some(&self.bundle.path), "delete");
        let (status, stdout, stderr) = run(command.stdin(Stdio::null()), self.binary, &[]).await?;
        if !status.success() {
            return Err(call_failed(&stderr, status));
        }
        if !stderr.is_empty() {
            let warnings = String::from_utf8_lossy(&stderr);
            warn!(container.id = %self.bundle.id, %warnings, "warnings while cleaning up dead shim");
        }
        let response = DeleteResponse::decode(stdout.as_slice())
            .map_err(|e| Error::new(Kind::Unknown, format!("decode answer of delete: {e}")))?;
        Ok(Exit {
            pid: response.pid,
            status: response.exit_status,
            at: system_time(response.exited_at).unwrap_or_else(std::time::SystemTime::now),
        })
    }

    fn command(&self, bundle_flag: Option<&Path>, action: &str) -> Command {
        let (m, namespace) = (self.manager, self.bundle.namespace.as_str());
        let mut command = Command::new(self.binary);
        command
            .args(["-namespace", namespace, "-address", &m.grpc_address])
            .arg("-publish-binary")
            .arg(&m.own_binary)
            .args(["-id", &self.bundle.id]);
        if let Some(path) = bundle_flag {
            command.arg("-bundle").arg(path);
        }
        if LevelFilter::current() >= LevelFilter::DEBUG {
            command.arg("-debug");
        }
        command
            .arg(action)
            .current_dir(&self.bundle.path)
            .env("GOMAXPROCS", "2")
            .env("MAX_SHIM_VERSION", "2")
            .env("TTRPC_ADDRESS", &m.ttrpc_address)
            .env("GRPC_ADDRESS", &m.grpc_address)
            .env("NAMESPACE", namespace)
            .process_group(0)
            .kill_on_drop(true);
        if action == "start" {
            command.envs(m.env.iter().map(|(k, v)| (k, v)));
        }
        command
    }

    fn params(&self, options: Option<&Any>) -> BootstrapParams {
        let m = self.manager;
        BootstrapParams {
            instance_id: self.bundle.id.clone(),
            namespace: self.bundle.namespace.as_str().to_owned(),
            log_level: log_level().into(),
            containerd_version: m.version.clone(),
            containerd_ttrpc_address: m.ttrpc_address.clone(),
            containerd_grpc_address: m.grpc_address.clone(),
            containerd_binary: m.own_binary.to_string_lossy().into_owned(),
            extensions: options
                .map(|o| Extension {
                    value: Some(o.clone()),
                })
                .into_iter()
                .collect(),
            socket_dir: Some(m.socket_dir.to_string_lossy().into_owned()),
        }
    }
}

/// Runs `<binary> -info`.
pub(crate) async fn info(binary: &Path, options: Option<&Any>) -> Result<RuntimeInfo> {
    let input = options.map(Message::encode_to_vec).unwrap_or_default();
    let mut command = Command::new(binary);
    command
        .arg("-info")
        .stdin(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    let (status, stdout, stderr) = run(&mut command, binary, &input).await?;
    let called = || format!("[{} -info]", binary.display());
    if !status.success() {
        return Err(Error::new(
            Kind::Unknown,
            format!(
                "failed to run {}: {} (stderr: {:?})",
                called(),
                exit_text(status),
                String::from_utf8_lossy(&stderr)
            ),
        ));
    }
    RuntimeInfo::decode(stdout.as_slice()).map_err(|e| {
        Error::new(
            Kind::Unknown,
            format!("failed to unmarshal stdout from {}: {e}", called()),
        )
    })
}

/// Runs a helper to its end with stdout and stderr apart.
async fn run(
    command: &mut Command,
    binary: &Path,
    input: &[u8],
) -> Result<(ExitStatus, Vec<u8>, Vec<u8>)> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| spawn_failed(binary, &e))?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async {
        if let Some(mut stdin) = stdin {
            let _ = stdin.write_all(input).await;
        }
    };
    let drain = async |pipe: Option<_>| match pipe {
        Some(pipe) => read_all(pipe).await,
        None => Vec::new(),
    };
    let err = async {
        match stderr {
            Some(pipe) => read_all(pipe).await,
            None => Vec::new(),
        }
    };
    let ((), out, err) = tokio::join!(feed, drain(stdout), err);
    let status = child.wait().await.map_err(|e| spawn_failed(binary, &e))?;
    Ok((status, out, err))
}

/// Waits for the helper and for the end of its output; a child of it that keeps the pipe open is not waited for.
async fn finish(
    child: &mut Child,
    mut output: pipe::Receiver,
) -> (std::io::Result<ExitStatus>, Vec<u8>) {
    let mut bytes = Vec::new();
    let status = {
        let mut limited = (&mut output).take(OUTPUT);
        let read = limited.read_to_end(&mut bytes);
        tokio::pin!(read);
        tokio::select! {
            _ = &mut read => None,
            status = child.wait() => {
                if tokio::time::timeout(GRACE, &mut read).await.is_err() {
                    warn!("a shim keeps the output of its start helper open");
                }
                Some(status)
            }
        }
    };
    match status {
        Some(status) => (status, bytes),
        None => {
            // One that says more than is taken must not wait for a reader.
            drop(output);
            (child.wait().await, bytes)
        }
    }
}

async fn read_all(pipe: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = pipe.take(OUTPUT).read_to_end(&mut bytes).await;
    bytes
}

fn log_level() -> LogLevel {
    match LevelFilter::current().into_level() {
        Some(tracing::Level::TRACE) => LogLevel::Trace,
        Some(tracing::Level::DEBUG) => LogLevel::Debug,
        Some(tracing::Level::INFO) => LogLevel::Info,
        Some(tracing::Level::WARN) => LogLevel::Warn,
        Some(tracing::Level::ERROR) | None => LogLevel::Error,
    }
}

fn spawn_failed(binary: &Path, e: &std::io::Error) -> Error {
    Error::new(
        Kind::Unknown,
        format!("fork/exec {}: {e}", binary.display()),
    )
}

fn call_failed(output: &[u8], status: ExitStatus) -> Error {
    let output = String::from_utf8_lossy(output);
    let (output, status) = (output.trim(), exit_text(status));
    let text = if output.is_empty() {
        status
    } else {
        format!("{output}: {status}")
    };
    Error::new(Kind::Unknown, text)
}

/// As Go prints it.
fn exit_text(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(9)) => "signal: killed".to_owned(),
        (None, Some(signal)) => format!("signal: {signal}"),
        (None, None) => status.to_string(),
    }
}
