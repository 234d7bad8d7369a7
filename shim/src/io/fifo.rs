//! Owns opening the client's fifos: never blocking, never failing for want of a peer.
//!
//! A client opens its ends while it already asks for the process, and is waited for (`readers`), but not for ever.
//! An output fifo is then opened for reading and writing. So a client that is not there yet finds what was written, one
//! that goes away costs neither EPIPE nor SIGPIPE, and a later one may attach. When the process has ended, a client that
//! has not come yet is waited for a while (`linger`): the last close would throw away what is in the pipe, and who opens
//! a fifo after it blocks for ever.
//! An input fifo is opened for reading, plus a write end (the keeper) that CloseIO gives up.

use std::cell::Cell;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FileType, Mode, OFlags, fstat};

use super::pump::{End, Sink};
use crate::error::{Context, Error, Result};

/// Where a copy reads from.
pub(crate) type Source = End;

thread_local! {
    /// How many fifos linger; all streams live on one thread.
    static LINGERERS: Cell<usize> = const { Cell::new(0) };
}

/// How long a process waits for a client that reads its output. containerd's own shim waits for ever.
const READERS: Duration = Duration::from_secs(2);
/// How long a fifo of a process that has ended waits for a client that has not opened it yet.
const LINGER: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(20);

/// What stdin turned out to be.
#[derive(Debug)]
pub(super) enum Input {
    Fifo(Source, OwnedFd),
    /// A plain file: copied, because a process could open what it is given again, for writing.
    File(OwnedFd),
    /// Handed to the process as it is: /dev/null and its like, which its devices cgroup judges.
    Device(OwnedFd),
}

/// Waits until each output fifo has a reader, within limits. On a busy machine a short process could end before; and
/// a client of containerd's that hears of the end while it still opens a fifo gives up, and loses the output.
/// What this gives back keeps readers from seeing an end before the fifos are opened for good.
pub(super) async fn readers(uris: [&str; 2]) -> Vec<OwnedFd> {
    let deadline = tokio::time::Instant::now() + READERS;
    let mut held = Vec::new();
    for path in uris.map(strip).iter().filter(|path| !path.is_empty()) {
        let mut pause = Duration::from_millis(1);
        loop {
            match open_write(path) {
                Ok(write) => held.push(write),
                // A fifo without a reader.
                Err(rustix::io::Errno::NXIO) if tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(pause).await;
                    pause = LOOK.min(pause * 2);
                    continue;
                }
                // What is wrong with it shows when it is opened for good.
                Err(_) => {}
            }
            break;
        }
    }
    held
}

/// Opens a fifo, or whatever else the path names, for output.
pub(super) fn open_output(uri: &str) -> Result<Sink> {
    let path = strip(uri);
    let what = || format!("containerd-shim: opening w/o fifo {path:?} failed");
    let both = || {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        rustix::fs::open(path, flags, Mode::empty()).context(what())
    };
    // Kept open until there is the other one: the reader must not see an end in between.
    let write = match open_write(path) {
        // A fifo without a reader.
        Err(rustix::io::Errno::NXIO) => return Ok(Sink::Stream(End::fifo(both()?, false)?.into())),
        other => other.context(what())?,
    };
    match kind(&write)? {
        FileType::Fifo => Ok(Sink::Stream(End::fifo(both()?, true)?.into())),
        FileType::CharacterDevice => Ok(Sink::File(write.into())),
        _ => Sink::file(path),
    }
}

/// Opens stdin.
pub(super) fn open_input(uri: &str) -> Result<Input> {
    let path = strip(uri);
    let what = || format!("containerd-shim: opening {path} failed");
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let read = rustix::fs::open(path, flags, Mode::empty()).context(what())?;
    let kind = kind(&read)?;
    match kind {
        FileType::Fifo => {}
        FileType::RegularFile => return Ok(Input::File(read)),
        FileType::CharacterDevice => {
            rustix::fs::fcntl_setfl(&read, OFlags::empty()).context(what())?;
            return Ok(Input::Device(read));
        }
        // A directory would be a way out of the container.
        _ => {
            return Err(Error::invalid(format!(
                "stdin {path:?} is neither fifo, file nor character device"
            )));
        }
    }
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let keeper = rustix::fs::open(path, flags, Mode::empty()).context(what())?;
    Ok(Input::Fifo(End::readable(read)?, keeper))
}

/// Opens a fifo whose reader is there already; when that one goes, writing fails.
pub(super) fn open_reader(uri: &str) -> Result<Sink> {
    let path = strip(uri);
    let what = || format!("open fifo {path:?}");
    let write = open_write(path);
    if matches!(write, Err(rustix::io::Errno::NXIO)) {
        return Err(Error::precondition(format!("{}: nobody reads", what())));
    }
    let write = write.context(what())?;
    if kind(&write)? != FileType::Fifo {
        return Err(Error::invalid(format!("{}: not a fifo", what())));
    }
    Sink::stream(write)
}

/// Opens a path for writing alone; a fifo without a reader is ENXIO.
fn open_write(path: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    rustix::fs::open(path, flags, Mode::empty())
}

/// Keeps a fifo that nobody has read yet until a client opens it, within limits. Then the client has it, whatever we
/// close. `met` says that a client had opened it before the process began: then only unread output is worth waiting for.
pub(super) async fn linger(fifo: OwnedFd, met: bool) {
    let is_wanted = |fifo: &OwnedFd| !met || has_unread(fifo);
    if !is_wanted(&fifo) {
        return;
    }
    // By the link, because the client may have unlinked the path.
    let link = format!("/proc/self/fd/{}", fifo.as_raw_fd());
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(write) = rustix::fs::open(link, flags, Mode::empty()) else {
        return;
    };
    // Without our own read end the kernel can tell us whether there is another.
    drop(fifo);
    let _lingerer = Lingerer::new();
    let deadline = tokio::time::Instant::now() + LINGER;
    while !has_reader(&write) && is_wanted(&write) && tokio::time::Instant::now() < deadline {
        // A pipe wakes no writer when a reader opens it.
        tokio::time::sleep(LOOK).await;
    }
}

/// Waits until no fifo lingers any more, within limits.
pub(crate) async fn settle(limit: Duration) {
    let deadline = tokio::time::Instant::now() + limit;
    while LINGERERS.get() > 0 && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(LOOK).await;
    }
}

/// Counted while a fifo lingers.
struct Lingerer;

impl Lingerer {
    fn new() -> Self {
        LINGERERS.set(LINGERERS.get() + 1);
        Self
    }
}

impl Drop for Lingerer {
    fn drop(&mut self) {
        LINGERERS.set(LINGERERS.get() - 1);
    }
}

fn has_unread(fifo: &OwnedFd) -> bool {
    rustix::io::ioctl_fionread(fifo).is_ok_and(|n| n > 0)
}

fn has_reader(write: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(write, PollFlags::empty())];
    match poll(&mut fds, Some(&rustix::event::Timespec::default())) {
        Ok(_) => !fds[0].revents().contains(PollFlags::ERR),
        Err(_) => true,
    }
}

fn kind(fd: &OwnedFd) -> Result<FileType> {
    let stat = fstat(fd).context("stat a stdio path")?;
    Ok(FileType::from_raw_mode(stat.st_mode))
}

fn strip(uri: &str) -> &str {
    uri.strip_prefix("fifo://").unwrap_or(uri)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_hurt_is_refused_at_once() {
        let dir = std::env::temp_dir().join(format!("corten-fifo-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        assert!(open_input(dir.to_str().unwrap()).is_err(), "a directory");
        let fifo = dir.join("fifo");
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, mode, 0).unwrap();
        let log = Sink::file(fifo.to_str().unwrap());
        assert!(log.is_err(), "a fifo without a reader as a log file");
        std::fs::remove_dir_all(dir).unwrap();
    }
}
