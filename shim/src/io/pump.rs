//! Owns copying between descriptors: splice(2) on the one thread, a small buffer only where the kernel cannot splice.
//!
//! No byte passes through this process' memory for pipe, fifo and pty. Back-pressure is the kernel's: a full sink leaves
//! the source unread, and the writing process blocks. A sink that fails for good (a full disk, a dead logger) is replaced
//! by nothing, so that the process is never stopped by its log.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, splice};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;
use tokio::task::spawn_local;

use super::crilog::LogSink;
use super::fifo;
use super::remote::Remote;
use crate::error::{Context, Result};
use crate::log;
use crate::readiness::watch;

/// Most a pipe holds by default.
const CHUNK: usize = 64 << 10;
const BUFFER: usize = 8 << 10;
/// Chunks moved before other tasks get the thread.
const TURN: u32 = 16;

/// A pipe, fifo or pty in the event loop.
#[derive(Debug)]
pub(crate) struct End {
    fd: AsyncFd<OwnedFd>,
    /// For a client's fifo: whether the client had opened it before we did.
    met: Option<bool>,
}

/// Where a copy goes.
#[derive(Debug, Clone)]
pub(crate) enum Sink {
    Stream(Rc<End>),
    File(Rc<OwnedFd>),
    Remote(Rc<Remote>),
    Log(LogSink),
    Null,
}

// === impl End ===

impl End {
    pub(super) fn readable(fd: OwnedFd) -> Result<Self> {
        Self::new(fd, Interest::READABLE)
    }

    pub(super) fn both(fd: OwnedFd) -> Result<Self> {
        Self::new(fd, Interest::READABLE | Interest::WRITABLE)
    }

    /// A client's fifo; `met` when the client had opened it before.
    pub(super) fn fifo(fd: OwnedFd, met: bool) -> Result<Self> {
        let end = Self::new(fd, Interest::WRITABLE)?;
        let met = Some(met);
        Ok(Self { met, ..end })
    }

    fn new(fd: OwnedFd, interest: Interest) -> Result<Self> {
        rustix::fs::fcntl_getfl(&fd)
            .and_then(|flags| rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK))
            .context("set a stream non-blocking")?;
        Ok(Self {
            fd: watch(fd, interest).context("watch a stream")?,
            met: None,
        })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.get_ref().as_fd()
    }

    fn has(&self, flags: PollFlags) -> bool {
        let mut fds = [PollFd::new(self.fd.get_ref(), flags)];
        match poll(&mut fds, Some(&rustix::event::Timespec::default())) {
            Ok(_) => !fds[0].revents().is_empty(),
            Err(_) => true,
        }
    }

    async fn until_readable(&self) -> io::Result<()> {
        let mut guard = self.fd.readable().await?;
        if !self.has(PollFlags::IN) {
            guard.clear_ready();
        }
        Ok(())
    }

    async fn until_writable(&self) -> io::Result<()> {
        let mut guard = self.fd.writable().await?;
        if !self.has(PollFlags::OUT) {
            guard.clear_ready();
        }
        Ok(())
    }
}

// === impl Sink ===

impl Sink {
    /// The write end of a pipe.
    pub(super) fn stream(fd: OwnedFd) -> Result<Self> {
        Ok(Self::Stream(Rc::new(End::new(fd, Interest::WRITABLE)?)))
    }

    /// The end of a file, made with its directories where missing.
    pub(super) fn file(path: &str) -> Result<Self> {
        if let Some(dir) = std::path::Path::new(path).parent() {
            std::fs::create_dir_all(dir).context(format!("mkdir {}", dir.display()))?;
        }
        // Non-blocking for the case that it is a fifo without a reader, which would hold up every container.
        let flags = OFlags::WRONLY
            | OFlags::APPEND
            | OFlags::CREATE
            | OFlags::CLOEXEC
            | OFlags::NONBLOCK
            | OFlags::NOCTTY;
        let file = rustix::fs::open(path, flags, Mode::from_raw_mode(0o644))
            .context(format!("containerd-shim: opening file {path:?} failed"))?;
        Ok(Self::File(Rc::new(file)))
    }

    /// Nobody reads from it any more.
    pub(super) fn is_left(&self) -> bool {
        // Asked for nothing, the kernel tells of that alone.
        matches!(self, Self::Stream(end) if end.has(PollFlags::empty()))
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Stream(end) => Some(end.fd()),
            Self::File(file) => Some(file.as_fd()),
            Self::Remote(_) | Self::Log(_) | Self::Null => None,
        }
    }

    /// The same sink, not just an equal one.
    pub(super) fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Stream(a), Self::Stream(b)) => Rc::ptr_eq(a, b),
            (Self::File(a), Self::File(b)) => Rc::ptr_eq(a, b),
            (Self::Remote(a), Self::Remote(b)) => Rc::ptr_eq(a, b),
            _ => false,
        }
    }

    /// Writes everything, waiting where it must.
    pub(super) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        let to = match self {
            Self::Stream(end) => end.fd(),
            Self::File(file) => file.as_fd(),
            Self::Remote(remote) => return remote.write_all(bytes).await,
            Self::Log(log) => {
                // Boxed, because a log writes to sinks in turn.
                Box::pin(log.write(bytes)).await;
                return Ok(());
            }
            Self::Null => return Ok(()),
        };
        while !bytes.is_empty() {
            match (rustix::io::write(to, bytes), self) {
                (Ok(n), _) => bytes = bytes.get(n..).unwrap_or_default(),
                (Err(Errno::INTR), _) => {}
                (Err(Errno::AGAIN), Self::Stream(end)) => end.until_writable().await?,
                (Err(e), _) => return Err(e.into()),
            }
        }
        Ok(())
    }
}

/// Copies a process' output to its end, whatever becomes of the sink, and says when it has.
pub(super) async fn run_output(source: Rc<End>, sink: Sink, copied: oneshot::Sender<()>) {
    if let Err(e) = copy(&source, &sink).await {
        log::warning!("copy output: {e}; discarding the rest");
        if let Err(e) = copy_buffered(&source, &Sink::Null).await {
            log::warning!("discard output: {e}");
        }
    }
    drop(source);
    if let Sink::Log(log) = &sink {
        log.finish();
    }
    // Nobody may be waiting.
    let _ = copied.send(());
    // The last stream of a fifo waits for its reader, also when the process is deleted meanwhile.
    if let Sink::Stream(end) = sink
        && let Some(end) = Rc::into_inner(end)
        && let Some(met) = end.met
    {
        spawn_local(fifo::linger(end.fd.into_inner(), met));
    }
}

/// Copies until the source ends. A pty ends with EIO.
pub(super) async fn copy(source: &End, sink: &Sink) -> io::Result<()> {
    let Some(to) = sink.fd() else {
        return copy_buffered(source, sink).await;
    };
    let mut turn = 0;
    loop {
        match splice(
            source.fd(),
            None,
            to,
            None,
            CHUNK,
            SpliceFlags::MOVE | SpliceFlags::NONBLOCK,
        ) {
            Ok(0) | Err(Errno::IO) => return Ok(()),
            Ok(_) => {
                turn += 1;
                if turn % TURN == 0 {
                    tokio::task::yield_now().await;
                }
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => until_movable(source, sink).await?,
            // Not between these two kinds of files.
            Err(Errno::INVAL) => return copy_buffered(source, sink).await,
            Err(e) => return Err(e.into()),
        }
    }
}

/// Copies a plain file, which the event loop cannot watch and which is never waited for long.
pub(super) async fn copy_file(file: &OwnedFd, sink: &Sink) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match rustix::io::read(file, &mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => {
                sink.write_all(&buffer[..n]).await?;
                tokio::task::yield_now().await;
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// EAGAIN does not say which side is not ready.
async fn until_movable(source: &End, sink: &Sink) -> io::Result<()> {
    match sink {
        Sink::Stream(end) if source.has(PollFlags::IN) => end.until_writable().await,
        _ => source.until_readable().await,
    }
}

async fn copy_buffered(source: &End, sink: &Sink) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    let mut turn = 0;
    loop {
        match rustix::io::read(source.fd(), &mut buffer) {
            Ok(0) | Err(Errno::IO) => return Ok(()),
            Ok(n) => {
                sink.write_all(&buffer[..n]).await?;
                turn += 1;
                if turn % TURN == 0 {
                    tokio::task::yield_now().await;
                }
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => source.until_readable().await?,
            Err(e) => return Err(e.into()),
        }
    }
}
