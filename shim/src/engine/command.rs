//! Owns running the command line of an OCI runtime to its end, and what it says when it fails.
//!
//! Commands are cloned by the engine's launcher like everything else this process starts, so that the one thread never
//! waits. Output goes to a file in memory: nobody has to drain it. Errors come from the runtime's JSON log, of which
//! only what this command appended counts.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use corten_launch::{Exec, Op, Plan, cstr};
use rustix::fs::{MemfdFlags, Mode, OFlags, memfd_create};

use crate::error::{Context, Error, Result};
use crate::reaper::Reaper;
use crate::task::launch::Child;

/// What of an answer or of a log is read.
const LIMIT: u64 = 4 << 20;

/// How a runtime is called: the program, and the options that precede every command.
#[derive(Debug)]
pub(super) struct Cli {
    program: String,
    options: Vec<String>,
    log: PathBuf,
}

/// Standard streams of a command.
#[derive(Debug)]
pub(super) enum Streams {
    /// Input, and output for the caller.
    Captured(Vec<u8>),
    /// Those of the container: what it starts inherits them.
    Given([OwnedFd; 3]),
}

#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct Line {
    level: String,
    msg: String,
}

// === impl Cli ===

impl Cli {
    /// `root` is where the runtime keeps its state, `bundle` gets its log.
    pub(super) fn new(program: &str, root: &Path, bundle: &Path, systemd: bool) -> Self {
        let log = bundle.join("log.json");
        let mut options = vec![
            "--root".to_owned(),
            root.to_string_lossy().into_owned(),
            "--log".to_owned(),
            log.to_string_lossy().into_owned(),
            "--log-format".to_owned(),
            "json".to_owned(),
        ];
        if systemd {
            options.push("--systemd-cgroup".to_owned());
        }
        Self {
            program: program.to_owned(),
            options,
            log,
        }
    }

    /// Runs one command; its output when it was captured.
    pub(super) async fn run(
        &self,
        reaper: &Reaper,
        arguments: &[&str],
        streams: Streams,
    ) -> Result<Vec<u8>> {
        let logged = std::fs::metadata(&self.log).map_or(0, |m| m.len());
        let (fds, output) = match streams {
            Streams::Given(fds) => (fds, None),
            Streams::Captured(input) => {
                let output = memory("output", &[])?;
                let copy = || output.try_clone().context("share a command's output");
                let fds = [
                    memory("input", &input)?.into(),
                    copy()?.into(),
                    copy()?.into(),
                ];
                (fds, Some(output))
            }
        };
        let plan = self.plan(arguments, fds);
        let mut child = Child::spawn(reaper, &plan).context(format!("start {}", self.program))?;
        drop(plan);
        let begun = match child.at_gate().await {
            Ok(()) => child.go().await,
            Err(e) => Err(e),
        };
        if let Err(e) = begun {
            child.destroy(reaper).await;
            return Err(e);
        }
        let exit = reaper.exit(&child.pidfd).await;
        let exit = exit.context(format!("wait for {}", self.program))?;
        let text = output.map(read).transpose()?.unwrap_or_default();
        if exit.code == 0 {
            return Ok(text);
        }
        Err(Error::unknown(self.last_error(logged).unwrap_or_else(
            || {
                let text = String::from_utf8_lossy(&text);
                let program = &self.program;
                let how = match exit.signal {
                    Some(signal) => format!("signal: {signal}"),
                    None => format!("exit status {}", exit.code),
                };
                format!(
                    "{program} did not terminate successfully: {how}: {}",
                    text.trim()
                )
            },
        )))
    }

    fn plan(&self, arguments: &[&str], fds: [OwnedFd; 3]) -> Plan {
        let mut plan = Plan::default();
        for (target, fd) in (0_u8..).zip(fds) {
            let fd = plan.give(fd);
            plan.push(Op::Stdio { fd, target }, "set up standard streams");
        }
        plan.push(Op::CloseFds, "close descriptors");
        plan.push(Op::Umask(0o022), "umask");
        plan.push(Op::FindExe, "find the OCI runtime");
        plan.push(Op::Gate, "wait for start");
        let path = std::env::var("PATH").unwrap_or_default();
        let searched = !self.program.contains('/');
        let candidates = match searched {
            true => std::env::split_paths(&path)
                .map(|dir| cstr(dir.join(&self.program).to_string_lossy().as_bytes()))
                .collect(),
            false => vec![cstr(&self.program)],
        };
        let options = self.options.iter().map(String::as_str);
        plan.exec = Some(Exec {
            name: self.program.clone(),
            candidates,
            searched,
            argv: [self.program.as_str()]
                .into_iter()
                .chain(options)
                .chain(arguments.iter().copied())
                .map(cstr)
                .collect(),
            envp: vec![cstr(format!("PATH={path}"))],
            find_home: false,
        });
        plan
    }

    /// The last error in the log from an offset on.
    fn last_error(&self, from: u64) -> Option<String> {
        let mut file = File::open(&self.log).ok()?;
        file.seek(SeekFrom::Start(from)).ok()?;
        let mut text = String::new();
        file.take(LIMIT).read_to_string(&mut text).ok()?;
        last_error(&text)
    }
}

fn last_error(log: &str) -> Option<String> {
    log.lines()
        .filter_map(|line| serde_json::from_str::<Line>(line).ok())
        .rfind(|line| line.level == "error")
        .map(|line| line.msg.trim().to_owned())
        .filter(|text| !text.is_empty())
}

/// An anonymous file with this content, read from its start.
fn memory(name: &str, content: &[u8]) -> Result<File> {
    let file = memfd_create(name, MemfdFlags::CLOEXEC).context("make a file in memory")?;
    let mut file = File::from(file);
    file.write_all(content).context("fill a file in memory")?;
    file.rewind().context("rewind a file in memory")?;
    Ok(file)
}

fn read(mut file: File) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    file.rewind()
        .and_then(|()| file.take(LIMIT).read_to_end(&mut text))
        .context("read a command's output")?;
    Ok(text)
}

pub(super) fn null() -> Result<OwnedFd> {
    rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .context("open /dev/null")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_counts() {
        let log = r#"{"level":"info","msg":"x","time":"t"}
{"level":"error","msg":"first","time":"t"}
{"level":"error","msg":" runc create failed: second \n","time":"t"}
{"level":"warning","msg":"after"}
garbage"#;
        assert_eq!(
            last_error(log).as_deref(),
            Some("runc create failed: second")
        );
        assert_eq!(last_error("{}\n\n"), None);
    }
}
