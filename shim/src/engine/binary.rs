//! Owns containers that another OCI runtime makes: runc, crun, or any program with runc's command line.
//!
//! The program is run for each step, as containerd's own shim does. The processes it leaves behind become children of
//! this one, which is a subreaper; they are adopted before anybody could sweep them up.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use corten_oci::{Process, Stdio};
use corten_protos::containerd::runc::v1::CheckpointOptions;

use super::command::{Cli, Streams, null};
use super::console::ConsoleSocket;
use crate::error::{Context, Error, Result};
use crate::io::Io;
use crate::options::Options;
use crate::reaper::{Pidfd, Reaper};

/// Where runtimes keep their state unless the options say: the place of containerd's shim, for people who look.
const ROOT: &str = "/run/containerd/runc";
/// For a console that the runtime has sent before it ended.
const CONSOLE: Duration = Duration::from_secs(10);

/// One container of another runtime.
#[derive(Debug)]
pub(crate) struct Binary {
    cli: Cli,
    /// The runtime's own record of the container.
    state: PathBuf,
    id: String,
    bundle: PathBuf,
    no_pivot_root: bool,
    no_new_keyring: bool,
    reaper: Rc<Reaper>,
}

// === impl Binary ===

impl Binary {
    /// `None` when the options name no runtime: this process is it.
    pub(crate) fn of(
        options: &Options,
        namespace: &str,
        id: &str,
        bundle: &Path,
        reaper: &Rc<Reaper>,
    ) -> Option<Rc<Self>> {
        if options.binary_name.is_empty() {
            return None;
        }
        let root = match options.root.as_str() {
            "" => Path::new(ROOT),
            root => Path::new(root),
        };
        let root = root.join(namespace);
        let program = &options.binary_name;
        Some(Rc::new(Self {
            cli: Cli::new(program, &root, bundle, options.systemd_cgroup),
            state: root.join(id),
            id: id.to_owned(),
            bundle: bundle.to_owned(),
            no_pivot_root: options.no_pivot_root,
            no_new_keyring: options.no_new_keyring,
            reaper: reaper.clone(),
        }))
    }

    /// Makes the container; its first process waits for `start`.
    pub(crate) async fn create(&self, stdio: Stdio, io: &Io) -> Result<Pidfd> {
        let bundle = self.bundle.to_string_lossy();
        let mut arguments = vec!["create", "--bundle", &bundle];
        if self.no_pivot_root {
            arguments.push("--no-pivot");
        }
        if self.no_new_keyring {
            arguments.push("--no-new-keyring");
        }
        let file = self.bundle.join("init.pid");
        self.process(&arguments, stdio, io, &file).await
    }

    /// Starts a further process.
    pub(crate) async fn exec(
        &self,
        exec: &str,
        process: &Process,
        stdio: Stdio,
        io: &Io,
    ) -> Result<Pidfd> {
        let document = self.bundle.join(format!("{exec}.process.json"));
        let text = serde_json::to_vec(process)
            .map_err(|e| Error::invalid(format!("process document: {e}")))?;
        std::fs::write(&document, text).context(format!("write {}", document.display()))?;
        let path = document.to_string_lossy();
        let arguments = ["exec", "--process", &path, "--detach"];
        let file = self.bundle.join(format!("{exec}.runtime.pid"));
        let outcome = self.process(&arguments, stdio, io, &file).await;
        let _ = std::fs::remove_file(&document);
        let _ = std::fs::remove_file(&file);
        outcome
    }

    /// Saves the container to a folder.
    pub(crate) async fn checkpoint(
        &self,
        images: &Path,
        work: &Path,
        options: &CheckpointOptions,
    ) -> Result<()> {
        let (images, work) = (images.to_string_lossy(), work.to_string_lossy());
        let mut arguments = vec!["checkpoint", "--image-path", &images, "--work-path", &work];
        for (flag, value) in [
            ("--parent-path", &options.parent_path),
            ("--manage-cgroups-mode", &options.cgroups_mode),
        ] {
            if !value.is_empty() {
                arguments.extend([flag, value]);
            }
        }
        for (flag, on) in [
            ("--tcp-established", options.open_tcp),
            ("--ext-unix-sk", options.external_unix_sockets),
            ("--shell-job", options.terminal),
            ("--file-locks", options.file_locks),
            ("--leave-running", !options.exit),
        ] {
            if on {
                arguments.push(flag);
            }
        }
        for namespace in &options.empty_namespaces {
            arguments.extend(["--empty-ns", namespace]);
        }
        arguments.push(&self.id);
        self.run(&arguments).await.map(drop)
    }

    /// Makes the container out of such a folder; its first process runs.
    pub(crate) async fn restore(
        &self,
        images: &Path,
        work: &Path,
        stdio: Stdio,
        io: &Io,
    ) -> Result<Pidfd> {
        let bundle = self.bundle.to_string_lossy();
        let (images, work) = (images.to_string_lossy(), work.to_string_lossy());
        let mut arguments = vec!["restore", "--image-path", &images, "--work-path", &work];
        arguments.extend(["--detach", "--no-subreaper", "--bundle", &bundle]);
        if self.no_pivot_root {
            arguments.push("--no-pivot");
        }
        let file = self.bundle.join("init.pid");
        self.process(&arguments, stdio, io, &file).await
    }

    pub(crate) async fn start(&self) -> Result<()> {
        self.run(&["start", &self.id]).await.map(drop)
    }

    pub(crate) async fn kill(&self, signal: i32, all: bool) -> Result<()> {
        let signal = signal.to_string();
        let mut arguments = vec!["kill"];
        if all {
            arguments.push("--all");
        }
        arguments.extend([self.id.as_str(), &signal]);
        self.run(&arguments).await.map(drop)
    }

    pub(crate) async fn pause(&self) -> Result<()> {
        self.run(&["pause", &self.id]).await.map(drop)
    }

    pub(crate) async fn resume(&self) -> Result<()> {
        self.run(&["resume", &self.id]).await.map(drop)
    }

    pub(crate) async fn pids(&self) -> Result<Vec<i32>> {
        let answer = self.run(&["ps", "--format", "json", &self.id]).await?;
        let pids: Option<Vec<i32>> = serde_json::from_slice(&answer)
            .map_err(|e| Error::unknown(format!("list processes: {e}")))?;
        Ok(pids.unwrap_or_default())
    }

    pub(crate) async fn update(&self, resources: &[u8]) -> Result<()> {
        let arguments = ["update", "--resources=-", &self.id];
        let streams = Streams::Captured(resources.to_vec());
        let done = self.cli.run(&self.reaper, &arguments, streams).await;
        done.map(drop)
    }

    /// Takes the container apart, with its cgroup and its poststop hooks. One the runtime does not know is gone.
    pub(crate) async fn delete(&self, force: bool) -> Result<()> {
        if !self.state.exists() {
            return Ok(());
        }
        let mut arguments = vec!["delete"];
        if force {
            arguments.push("--force");
        }
        arguments.push(&self.id);
        match self.run(&arguments).await {
            Err(_) if !self.state.exists() => Ok(()),
            outcome => outcome.map(drop),
        }
    }

    async fn run(&self, arguments: &[&str]) -> Result<Vec<u8>> {
        let streams = Streams::Captured(Vec::new());
        self.cli.run(&self.reaper, arguments, streams).await
    }

    /// Runs a command that leaves a process behind, whose pid it writes to `file`.
    async fn process(
        &self,
        arguments: &[&str],
        stdio: Stdio,
        io: &Io,
        file: &Path,
    ) -> Result<Pidfd> {
        let file_name = file.to_string_lossy();
        let mut arguments = arguments.to_vec();
        arguments.extend(["--pid-file", &file_name]);
        // Until it is adopted, nobody may collect the process: its number would be worth nothing.
        let _hold = self.reaper.hold();
        match stdio {
            Stdio::Terminal { .. } => {
                let socket = ConsoleSocket::new()?;
                let path = socket.path();
                arguments.extend(["--console-socket", &path, &self.id]);
                let streams = Streams::Captured(Vec::new());
                let command = self.cli.run(&self.reaper, &arguments, streams);
                let (command, console) = (std::pin::pin!(command), socket.receive());
                let mut console = std::pin::pin!(console);
                let mut command = command;
                let master = tokio::select! {
                    done = &mut command => {
                        done?;
                        let late = tokio::time::timeout(CONSOLE, console).await;
                        late.unwrap_or_else(|_| {
                            Err(Error::unknown("the OCI runtime sent no console"))
                        })
                    }
                    master = &mut console => {
                        command.await?;
                        master
                    }
                };
                io.attach_console(master?)
                    .context("failed to start console copy")?;
            }
            Stdio::Fds(stdin, stdout, stderr) => {
                arguments.push(&self.id);
                let streams = Streams::Given([stdin, stdout, stderr]);
                self.cli.run(&self.reaper, &arguments, streams).await?;
            }
            Stdio::Null => {
                arguments.push(&self.id);
                let streams = Streams::Given([null()?, null()?, null()?]);
                self.cli.run(&self.reaper, &arguments, streams).await?;
            }
        }
        let pid = std::fs::read_to_string(file).context("failed to retrieve OCI runtime pid")?;
        let pid = pid.trim().parse();
        let pid = pid.map_err(|e| Error::unknown(format!("pid of the OCI runtime: {e}")))?;
        self.reaper.adopt(pid).context("follow the process")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A runtime of a few lines: it leaves a sleeper, or a process that ends soon.
    const FAKE: &str = r#"#!/bin/sh
root=$2; log=$4; shift 6
case $1 in
create|exec)
  while [ $# -gt 1 ]; do
    case $1 in --pid-file) file=$2;; --process) once=1;; esac
    shift
  done
  if [ "$once" ]; then (sleep 0.2; exit 7) & else mkdir -p "$root/$1"; sleep 100 & fi
  echo $! > "$file";;
ps) echo '[1,22]';;
pause) echo '{"level":"error","msg":"cannot pause: no freezer"}' >> "$log"; exit 1;;
resume) echo "not today" >&2; exit 2;;
update) cat > "$root/update";;
delete) shift $(($# - 1)); rmdir "$root/$1";;
esac
"#;

    fn fake() -> (PathBuf, Options) {
        let dir = std::env::temp_dir().join(format!("corten-fake-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let program = dir.join("fake");
        // Written by another process: no file runs of which a child of another thread of this one
        // is a writer still.
        let mut sh = std::process::Command::new("sh");
        sh.args(["-c", "printf %s \"$2\" >\"$1\" && chmod 755 \"$1\"", "sh"]);
        assert!(sh.arg(&program).arg(FAKE).status().unwrap().success());
        let options = Options {
            binary_name: program.to_str().unwrap().into(),
            root: dir.join("root").to_str().unwrap().into(),
            ..Options::default()
        };
        (dir, options)
    }

    async fn life(dir: &Path, options: &Options) {
        let reaper = Rc::new(Reaper::default());
        assert!(Binary::of(&Options::default(), "ns", "c", dir, &reaper).is_none());
        let binary = Binary::of(options, "ns", "c", dir, &reaper).unwrap();
        let io = Io::default();
        let made = binary.create(Stdio::Null, &io).await.unwrap();
        assert_eq!(binary.pids().await.unwrap(), [1, 22]);
        let text = |e: Error| e.to_string();
        let pause = binary.pause().await.map_err(text);
        assert_eq!(pause, Err("cannot pause: no freezer".into()));
        let resume = binary.resume().await.map_err(text).unwrap_err();
        let tail = "did not terminate successfully: exit status 2: not today";
        assert!(resume.ends_with(tail), "{resume}");
        binary.update(b"{}").await.unwrap();
        assert_eq!(std::fs::read(dir.join("root/ns/update")).unwrap(), b"{}");
        let process = Process::default();
        let ended = binary.exec("e", &process, Stdio::Null, &io).await.unwrap();
        assert_eq!(reaper.exit(&ended).await.unwrap().code, 7);
        assert!(!dir.join("e.process.json").exists());
        made.signal(9).unwrap();
        assert_eq!(reaper.exit(&made).await.unwrap().code, 137);
        binary.delete(false).await.unwrap();
        binary.delete(true).await.unwrap();
        // A stranger cannot be adopted, nor can nobody.
        assert!(reaper.adopt(1).is_err() && reaper.adopt(-5).is_err());
    }

    /// In a process of its own: the sweeps of other tests' reapers would take what is to be adopted here.
    #[test]
    fn a_container_of_another_runtime() {
        const ALONE: &str = "CORTEN_TEST_ALONE";
        if std::env::var_os(ALONE).is_none() {
            let mut command = std::process::Command::new(std::env::current_exe().unwrap());
            let name = "engine::binary::tests::a_container_of_another_runtime";
            command
                .args([name, "--exact", "--nocapture"])
                .env(ALONE, "1");
            let mut child = command
                .stdout(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            let mut text = String::new();
            std::io::Read::read_to_string(&mut child.stdout.take().unwrap(), &mut text).unwrap();
            // Its status may have been swept, too.
            let _ = child.wait();
            assert!(text.contains("1 passed"), "{text}");
            return;
        }
        rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
        let (dir, options) = fake();
        crate::server::block_on(life(&dir, &options)).unwrap();
        std::fs::remove_dir_all(dir).unwrap();
    }
}
