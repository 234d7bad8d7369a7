//! Owns checkpoint and restore: the talk with CRIU, one run of `criu swrk` for each request.
//!
//! ```text
//! checkpoint:  DUMP    -> (NOTIFY -> NOTIFY)* -> DUMP       the processes end, or go on
//! restore:     RESTORE -> (NOTIFY -> NOTIFY)* -> RESTORE    the first process is CRIU's sibling: our child
//! ```
//! The images are runc's to the last name: what one of the two saved the other can restore. Nothing here runs, and
//! nothing is kept, before somebody asks; without CRIU in PATH both are refused before anything is touched.

mod dump;
mod restore;

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use corten_launch::{Exec, Op, Plan, cstr};
use corten_oci::{Cgroup, Spec};
use corten_protos::corten::criu::v1::{CgroupMode, External, Kind, Request, Response};
use prost::Message;
use rustix::fs::{Mode, OFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketFlags,
    SocketType, recvmsg, send, socketpair,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::error::{Context, Error, Result};
use crate::readiness::watch;
use crate::reaper::Reaper;
use crate::task::Shim;
use crate::task::launch::Child;

pub(crate) use dump::checkpoint;
pub(crate) use restore::{Pending, pipes, root, start};

/// In the images: what descriptors 0 to 2 of the first process were.
const DESCRIPTORS: &str = "descriptors.json";
/// Settings of this host's administrator, which win over ours; runc's, so that they hold for both.
const CONFIG: &str = "/etc/criu/runc.conf";
/// Names another such file, or none at all.
const CONFIG_ANNOTATION: &str = "org.criu.config";
const NEWNET: u32 = 0x4000_0000;
/// Everything CRIU tells, short of its debugging.
const LOG_LEVEL: i32 = 4;
/// CRIU's end of the socket; what else it inherits follows.
const SOCKET: u8 = 3;
/// Above every number that the plan puts a descriptor on.
const ABOVE: i32 = 32;
const MAX_INHERITED: usize = 8;
/// CRIU's own limit of a message.
const MAX_MESSAGE: usize = 40 << 10;
/// What of a log is searched for errors, from its end.
const MAX_LOG: u64 = 64 << 10;

/// A running CRIU.
struct Criu {
    child: Child,
    socket: AsyncFd<OwnedFd>,
}

/// Folders that a request names by descriptor, and where CRIU writes its log.
struct Folders {
    images: OwnedFd,
    work: OwnedFd,
    log: PathBuf,
}

// === impl Criu ===

impl Criu {
    /// `streams` become 0 to 2, `more` 4 and up. In `cgroup` it is born, and so is what it restores.
    async fn start(
        shim: &Shim,
        streams: [OwnedFd; 3],
        more: Vec<OwnedFd>,
        cgroup: Option<&Cgroup>,
    ) -> Result<Self> {
        const WHAT: &str = "make a socket for CRIU";
        let program = find()?;
        if more.len() > MAX_INHERITED {
            return Err(Error::invalid("too many namespaces to join"));
        }
        let kind = SocketType::SEQPACKET;
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).context(WHAT)?;
        rustix::fs::fcntl_setfl(&ours, OFlags::NONBLOCK).context(WHAT)?;
        let mut plan = Plan::default();
        if let Some(cgroup) = cgroup {
            cgroup.join(&mut plan)?;
        }
        let all = streams.into_iter().chain([theirs]).chain(more);
        for (target, fd) in (0_u8..).zip(all) {
            let fd = plan.give(rustix::io::fcntl_dupfd_cloexec(&fd, ABOVE)?);
            plan.push(Op::Stdio { fd, target }, "pass a descriptor to CRIU");
        }
        plan.push(Op::Umask(0o022), "umask");
        plan.push(Op::Gate, "wait for start");
        let path = std::env::var("PATH").unwrap_or_default();
        plan.exec = Some(Exec {
            name: "criu".to_owned(),
            candidates: vec![cstr(program.to_string_lossy().as_bytes())],
            argv: vec![cstr("criu"), cstr("swrk"), cstr(SOCKET.to_string())],
            envp: vec![cstr(format!("PATH={path}"))],
            ..Exec::default()
        });
        let mut child = Child::spawn(&shim.reaper, &plan).context("start CRIU")?;
        drop(plan);
        let begun = match child.at_gate().await {
            Ok(()) => child.go().await,
            Err(e) => Err(e),
        };
        match begun.and_then(|()| Ok(watch(ours, Interest::READABLE)?)) {
            Ok(socket) => Ok(Self { child, socket }),
            Err(e) => {
                child.destroy(&shim.reaper).await;
                Err(e.context("start CRIU"))
            }
        }
    }

    /// A message is far smaller than the socket's queue: it goes at once or not at all.
    fn send(&self, request: &Request) -> Result<()> {
        let bytes = request.encode_to_vec();
        let flags = SendFlags::NOSIGNAL;
        let sent = send(self.socket.get_ref(), &bytes, flags).context("send a request to CRIU")?;
        match sent == bytes.len() {
            true => Ok(()),
            false => Err(Error::unknown("a request to CRIU was cut")),
        }
    }

    /// What it says next. No patience is limited: the memory of a container may be large.
    async fn receive(&self) -> Result<(Response, Option<OwnedFd>)> {
        let mut buffer = vec![0; MAX_MESSAGE];
        let (length, fd) = loop {
            let mut ready = self.socket.readable().await.context("wait for CRIU")?;
            match take(self.socket.get_ref(), &mut buffer) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                taken => break taken.context("hear from CRIU")?,
            }
        };
        if length == 0 {
            return Err(Error::unknown("criu ended without an answer"));
        }
        let message = buffer.get(..length).unwrap_or_default();
        let response = Response::decode(message)
            .map_err(|e| Error::unknown(format!("an answer of CRIU: {e}")))?;
        if response.success {
            return Ok((response, fd));
        }
        let kind = Kind::try_from(response.r#type).map_or("unknown", |kind| kind.as_str_name());
        let number = response.cr_errno.unwrap_or(0);
        let text = format!("criu failed: type {kind} errno {number}");
        Err(Error::unknown(match response.cr_errmsg {
            Some(more) if !more.is_empty() => format!("{text}: {}", more.trim()),
            _ => text,
        }))
    }

    /// Lets it go on after a notification.
    fn proceed(&self) -> Result<()> {
        self.send(&Request {
            r#type: Kind::Notify.into(),
            opts: None,
            notify_success: Some(true),
        })
    }

    /// Waits for its end, after its last word.
    async fn finish(self, shim: &Shim) -> Result<()> {
        drop(self.socket);
        let exit = shim.reaper.exit(&self.child.pidfd).await;
        match exit.context("wait for CRIU")?.code {
            0 => Ok(()),
            code => Err(Error::unknown(format!("criu failed: exit status {code}"))),
        }
    }

    /// After an error: its socket is closed and it undoes what it did, unless it cannot.
    async fn give_up(self, reaper: &Reaper) {
        const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);
        drop(self.socket);
        let ended = tokio::time::timeout(PATIENCE, reaper.exit(&self.child.pidfd)).await;
        if ended.is_err() {
            self.child.destroy(reaper).await;
        }
    }
}

// === impl Folders ===

impl Folders {
    /// Both are made if they are missing.
    fn open(images: &Path, work: &Path, log: &str) -> Result<Self> {
        let open = |path: &Path| {
            let what = || format!("open {}", path.display());
            let mut builder = std::fs::DirBuilder::new();
            std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
            builder.recursive(true).create(path).context(what())?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::open(path, flags, Mode::empty()).context(what())
        };
        Ok(Self {
            images: open(images)?,
            work: open(work)?,
            log: work.join(log),
        })
    }

    /// Adds what the log says to an error of CRIU's, and keeps the log at `kept`.
    fn explain(&self, e: Error, kept: &Path) -> Error {
        let text = errors_of(&self.log).unwrap_or_default();
        let copied = std::fs::copy(&self.log, kept).is_ok();
        let e = match text.is_empty() {
            true => e,
            false => Error::unknown(format!("{e}: {text}")),
        };
        match copied {
            true => Error::unknown(format!("{e} path= {}", kept.display())),
            false => e,
        }
    }
}

/// Where CRIU is. Looked for at each use: it may have been installed meanwhile.
fn find() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join("criu"))
        .find(|file| {
            rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok() && file.is_file()
        })
        .ok_or_else(|| {
            let text = "CRIU is not installed: exec: \"criu\": executable file not found in $PATH";
            Error::precondition(text)
        })
}

/// One message, and the last descriptor that came with it.
fn take(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let mut bytes = [io::IoSliceMut::new(buffer)];
    let message = recvmsg(socket.as_fd(), &mut bytes, &mut control, flags)?;
    let mut fd = None;
    for item in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = item {
            fd = fds.last();
        }
    }
    Ok((message.bytes, fd))
}

/// The last errors of a log, in its order.
fn errors_of(log: &Path) -> Option<String> {
    use std::io::{Read, Seek, SeekFrom};
    const MOST: usize = 3;
    let mut file = std::fs::File::open(log).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(MAX_LOG)))
        .ok()?;
    let mut text = Vec::new();
    file.take(MAX_LOG).read_to_end(&mut text).ok()?;
    let text = String::from_utf8_lossy(&text);
    let is_error = |line: &&str| line.contains("Error (");
    let errors: Vec<&str> = text
        .lines()
        .filter(is_error)
        .map(|line| {
            // Without the time.
            line.find("Error (")
                .and_then(|at| line.get(at..))
                .unwrap_or(line)
                .trim()
        })
        .collect();
    let from = errors.len().saturating_sub(MOST);
    Some(errors.get(from..)?.join("; "))
}

fn cgroup_mode(name: &str) -> Result<CgroupMode> {
    Ok(match name {
        "" => CgroupMode::Default,
        "soft" => CgroupMode::Soft,
        "full" => CgroupMode::Full,
        "strict" => CgroupMode::Strict,
        "ignore" => CgroupMode::Ignore,
        other => return Err(Error::invalid(format!("manage-cgroups-mode {other:?}"))),
    })
}

/// The administrator's settings.
fn config_file(spec: &Spec) -> Option<String> {
    match spec.annotations.get(CONFIG_ANNOTATION) {
        None => Some(CONFIG.to_owned()),
        Some(file) if file.is_empty() => None,
        Some(file) => Some(file.clone()),
    }
}

/// A mount from outside, for a request. CRIU writes both words into one, `mnt[KEY]:VALUE`, which no path may break up.
fn external(key: &str, val: &str) -> Result<External> {
    if [key, val].iter().any(|text| text.contains("]:")) {
        let text = format!("mount {key:?}: \"]:\" in a path is not for CRIU");
        return Err(Error::invalid(text));
    }
    Ok(External {
        key: key.to_owned(),
        val: val.to_owned(),
    })
}

/// The document of a container, with what its pod adds.
fn spec_of(shim: &Shim, bundle: &Path) -> Result<Spec> {
    let mut spec = crate::bundle::read_spec(bundle)?;
    if let Some(sandbox) = shim.sandbox() {
        sandbox.furnish(&mut spec);
    }
    Ok(spec)
}

fn null() -> Result<OwnedFd> {
    rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .context("open /dev/null")
}

/// Name of a namespace that is joined by path, as CRIU is to call it.
fn outside(kind: &str) -> Option<(&'static str, &'static str)> {
    match kind {
        "network" => Some(("net", "extRootNetNS")),
        "pid" => Some(("pid", "extRootPidNS")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_cannot_name_another_mount() {
        assert!(external("/data", "/srv").is_ok());
        assert!(external("/data]:/etc", "/srv").is_err());
        assert!(external("/data", "/s]:rv").is_err());
    }

    #[test]
    fn the_log_says_why() {
        let log = std::env::temp_dir().join(format!("corten-criu-{}", std::process::id()));
        let text = "(00.01) Dumping\n(00.02) Error (criu/a.c:1): one\n(00.03) x\n\
                    (00.04) Error (criu/b.c:2): two\n";
        std::fs::write(&log, text).unwrap();
        let errors = errors_of(&log).unwrap();
        assert_eq!(errors, "Error (criu/a.c:1): one; Error (criu/b.c:2): two");
        std::fs::remove_file(log).unwrap();
        assert_eq!(errors_of(Path::new("/nonexistent")), None);
    }

    #[test]
    fn modes_are_runc_s() {
        assert_eq!(cgroup_mode("").unwrap(), CgroupMode::Default);
        assert_eq!(cgroup_mode("ignore").unwrap(), CgroupMode::Ignore);
        assert!(cgroup_mode("none").is_err());
    }
}
