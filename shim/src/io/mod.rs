//! Owns the standard streams of a process: what the URIs of a request mean, and the copying they need.
//!
//! | stdout | container gets | copied by us |
//! |---|---|---|
//! | all empty | /dev/null | – |
//! | path, `fifo://` | pipe (pty with a terminal) | to the fifo; stdin from its fifo |
//! | `file://` | pipe | to the end of the file, stderr too |
//! | `binary://`, `binary-v2://` | the logger's own pipes | – (with a terminal: pty to the logger's stdout) |
//! | `cri-log://` | pipes | to a log in the CRI's format, stderr too, and to whoever is attached (`crilog`) |
//! | `ttrpc+unix://..?streaming_id=` | pipe | to a stream that the client opened on our socket (`remote`) |
//!
//! Copying is splice(2) on this one thread (`pump`). The container never gets a fifo of the client's: it may open its
//! /dev/stdout again, which must be a pipe owned by `io_uid:io_gid`, and a client must not be able to fill it from outside.

mod crilog;
mod fifo;
mod logger;
mod pump;
mod remote;

use std::cell::{OnceCell, RefCell};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use corten_oci::Stdio as ChildStdio;
use rustix::fs::{Gid, Mode, OFlags, Uid, fchown};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::sync::{Notify, oneshot};
use tokio::task::{AbortHandle, spawn_local};

use crate::error::{Context, Error, Result};
use crate::log;
use crate::task::Shim;
pub(crate) use crilog::CriLog;
pub(crate) use fifo::settle;
use logger::Logger;
use pump::{End, Sink};
use remote::Remote;
pub(crate) use remote::{Stream, Streams};

/// How long Delete waits for output that a dead process' children may still hold open.
const DRAIN: Duration = Duration::from_secs(10);

/// The streams of a request, as State shows them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stdio {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) terminal: bool,
}

/// The streams of a process while it lives.
#[derive(Debug, Default)]
pub(crate) struct Io {
    console: OnceCell<Rc<End>>,
    /// Ends that wait for the console.
    tty: RefCell<Option<Tty>>,
    /// Our own write end of the stdin fifo: without it a client that detaches would mean EOF.
    keeper: RefCell<Option<OwnedFd>>,
    input: RefCell<Option<AbortHandle>>,
    /// Told by CloseIO to input that does not come from a fifo.
    closing: Rc<Notify>,
    log: OnceCell<Rc<CriLog>>,
    outputs: RefCell<Vec<Output>>,
    logger: RefCell<Option<Logger>>,
}

/// A copy of output. The task may outlive the copying: it keeps what no client has read yet.
#[derive(Debug)]
struct Output {
    task: AbortHandle,
    copied: oneshot::Receiver<()>,
}

#[derive(Debug)]
struct Tty {
    stdin: Option<Feed>,
    stdout: Option<Sink>,
}

/// Where input comes from, when we copy it.
#[derive(Debug)]
enum Feed {
    Fifo(End),
    File(OwnedFd),
    Remote(Rc<Streams>, String),
}

/// Where output goes, by the URI's scheme.
#[derive(Debug, PartialEq, Eq)]
enum Target<'a> {
    /// A fifo, or a client's stream, of each output's own.
    Fifo,
    File(String),
    Binary {
        uri: &'a str,
        handshake: bool,
    },
    Log(crilog::Config),
}

/// Opens everything a request names. Gives what the child gets, and what stays here.
pub(crate) async fn open(
    shim: &Shim,
    id: &str,
    stdio: &Stdio,
    owner: (u32, u32),
    size: &(u16, u16),
) -> Result<(ChildStdio, Rc<Io>)> {
    let io = Io::default();
    match io.fill(shim, id, stdio, owner, size).await {
        Ok(child) => Ok((child, Rc::new(io))),
        Err(e) => {
            io.close().await;
            Err(e)
        }
    }
}

/// Where one output goes that has a URI of its own.
fn open_output(shim: &Shim, uri: &str) -> Result<Sink> {
    match remote::streaming_id(uri)? {
        Some(id) => Ok(Sink::Remote(Rc::new(Remote::new(&shim.streams, id, true)))),
        None => fifo::open_output(uri),
    }
}

/// Where a further reader of a log wants its copy.
pub(crate) fn open_reader(shim: &Shim, uri: &str) -> Result<Sink> {
    match remote::streaming_id(uri)? {
        Some(id) => Ok(Sink::Remote(Rc::new(Remote::new(&shim.streams, id, false)))),
        None => fifo::open_reader(uri),
    }
}

fn terminal(size: &(u16, u16)) -> ChildStdio {
    ChildStdio::Terminal {
        rows: size.0,
        cols: size.1,
    }
}

// === impl Stdio ===

impl Stdio {
    fn is_null(&self) -> bool {
        self.stdin.is_empty() && self.stdout.is_empty() && self.stderr.is_empty()
    }
}

// === impl Target ===

impl<'a> Target<'a> {
    fn parse(stdout: &'a str) -> Result<Self> {
        let Some((scheme, rest)) = stdout.split_once("://") else {
            return Ok(Self::Fifo);
        };
        match scheme {
            "fifo" => Ok(Self::Fifo),
            _ if remote::streaming_id(stdout)?.is_some() => Ok(Self::Fifo),
            "cri-log" => crilog::Config::parse(rest).map(Self::Log),
            "file" => Ok(Self::File(logger::unescape(rest)?)),
            "binary" | "binary-v2" => Ok(Self::Binary {
                uri: rest,
                handshake: scheme == "binary-v2",
            }),
            _ => Err(Error::unknown(format!("unknown STDIO scheme {scheme}"))),
        }
    }
}

// === impl Io ===

impl Io {
    async fn fill(
        &self,
        shim: &Shim,
        id: &str,
        stdio: &Stdio,
        owner: (u32, u32),
        size: &(u16, u16),
    ) -> Result<ChildStdio> {
        if stdio.is_null() {
            return Ok(match stdio.terminal {
                // A terminal nobody listens to is still one for the process.
                true => {
                    *self.tty.borrow_mut() = Some(Tty {
                        stdin: None,
                        stdout: None,
                    });
                    terminal(size)
                }
                false => ChildStdio::Null,
            });
        }
        Ok(match Target::parse(&stdio.stdout)? {
            Target::Binary { uri, handshake } => {
                let (logger, pipes) = Logger::start(shim, id, uri, handshake).await?;
                *self.logger.borrow_mut() = Some(logger);
                if stdio.terminal {
                    self.open_tty(shim, stdio, Some(Sink::stream(pipes.stdout)?))?;
                    terminal(size)
                } else {
                    let stdin = self.open_stdin(shim, stdio, owner)?;
                    ChildStdio::Fds(stdin, pipes.stdout, pipes.stderr)
                }
            }
            Target::File(path) => {
                let sink = Sink::file(&path)?;
                self.open_both(shim, stdio, owner, size, [sink.clone(), sink])?
            }
            Target::Log(config) => {
                let log = CriLog::open(config)?;
                let sinks = [0, 1].map(|stream| Sink::Log(log.sink(stream)));
                // A fresh cell takes its first value.
                let _ = self.log.set(log);
                self.open_both(shim, stdio, owner, size, sinks)?
            }
            Target::Fifo if stdio.terminal => {
                let _held = fifo::readers([&stdio.stdout, ""]).await;
                let sink = match stdio.stdout.as_str() {
                    "" => None,
                    path => Some(open_output(shim, path)?),
                };
                self.open_tty(shim, stdio, sink)?;
                terminal(size)
            }
            Target::Fifo => {
                let _held = fifo::readers([&stdio.stdout, &stdio.stderr]).await;
                self.open_pipes(shim, stdio, owner)?
            }
        })
    }

    /// Sinks that both outputs of a process have by one URI; a terminal has the first.
    fn open_both(
        &self,
        shim: &Shim,
        stdio: &Stdio,
        owner: (u32, u32),
        size: &(u16, u16),
        [stdout, stderr]: [Sink; 2],
    ) -> Result<ChildStdio> {
        if stdio.terminal {
            self.open_tty(shim, stdio, Some(stdout))?;
            return Ok(terminal(size));
        }
        let stdin = self.open_stdin(shim, stdio, owner)?;
        let stdout = self.pump_from_pipe(stdout, owner)?;
        let stderr = self.pump_from_pipe(stderr, owner)?;
        Ok(ChildStdio::Fds(stdin, stdout, stderr))
    }

    fn open_pipes(&self, shim: &Shim, stdio: &Stdio, owner: (u32, u32)) -> Result<ChildStdio> {
        let stdin = self.open_stdin(shim, stdio, owner)?;
        let mut first = None;
        let stdout = match stdio.stdout.as_str() {
            "" => dev_null()?,
            path => {
                let sink = first.insert(open_output(shim, path)?).clone();
                self.pump_from_pipe(sink, owner)?
            }
        };
        let stderr = match (stdio.stderr.as_str(), first) {
            ("", _) => dev_null()?,
            // One description, so that neither stream overtakes the other's writes.
            (path, Some(sink)) if path == stdio.stdout => self.pump_from_pipe(sink, owner)?,
            (path, _) => self.pump_from_pipe(open_output(shim, path)?, owner)?,
        };
        Ok(ChildStdio::Fds(stdin, stdout, stderr))
    }

    /// The child's stdin: a pipe that we feed, or a device.
    fn open_stdin(&self, shim: &Shim, stdio: &Stdio, owner: (u32, u32)) -> Result<OwnedFd> {
        if stdio.stdin.is_empty() {
            return dev_null();
        }
        let feed = match self.open_feed(shim, &stdio.stdin)? {
            Ok(feed) => feed,
            Err(device) => return Ok(device),
        };
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).context("create stdin pipe")?;
        own(&read, owner)?;
        self.start_input(feed, Sink::stream(write)?);
        Ok(read)
    }

    /// Opens what stdin names; `Err` is a device that nobody needs to copy from.
    fn open_feed(&self, shim: &Shim, uri: &str) -> Result<std::result::Result<Feed, OwnedFd>> {
        if let Some(id) = remote::streaming_id(uri)? {
            return Ok(Ok(Feed::Remote(shim.streams.clone(), id)));
        }
        Ok(match fifo::open_input(uri)? {
            fifo::Input::Fifo(source, keeper) => {
                *self.keeper.borrow_mut() = Some(keeper);
                Ok(Feed::Fifo(source))
            }
            fifo::Input::File(file) => Ok(Feed::File(file)),
            fifo::Input::Device(device) => Err(device),
        })
    }

    /// Copies input; the end of the copy is the end of input.
    fn start_input(&self, feed: Feed, sink: Sink) {
        let closing = self.closing.clone();
        let task = spawn_local(async move {
            // EPIPE is the process' way of not wanting input, EIO a hang-up, which the output side reports.
            match feed {
                Feed::Fifo(source) => drop(pump::copy(&source, &sink).await),
                Feed::File(file) => drop(pump::copy_file(&file, &sink).await),
                Feed::Remote(streams, id) => remote::copy_input(streams, id, sink, closing).await,
            }
        });
        *self.input.borrow_mut() = Some(task.abort_handle());
    }

    /// The write end of a pipe whose content goes to `sink`.
    fn pump_from_pipe(&self, sink: Sink, owner: (u32, u32)) -> Result<OwnedFd> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).context("create output pipe")?;
        own(&write, owner)?;
        self.start_output(Rc::new(End::readable(read)?), sink);
        Ok(write)
    }

    fn start_output(&self, source: Rc<End>, sink: Sink) {
        let (done, copied) = oneshot::channel();
        let task = spawn_local(pump::run_output(source, sink, done)).abort_handle();
        self.outputs.borrow_mut().push(Output { task, copied });
    }

    fn open_tty(&self, shim: &Shim, stdio: &Stdio, stdout: Option<Sink>) -> Result<()> {
        let stdin = match stdio.stdin.as_str() {
            "" => None,
            uri => match self.open_feed(shim, uri)? {
                Ok(feed) => Some(feed),
                Err(_) => return Err(Error::invalid(format!("stdin {uri}: a device"))),
            },
        };
        *self.tty.borrow_mut() = Some(Tty { stdin, stdout });
        Ok(())
    }

    /// Takes the pty's master and starts copying.
    pub(crate) fn attach_console(&self, master: OwnedFd) -> Result<()> {
        let tty = self.tty.borrow_mut().take();
        let tty = tty.ok_or_else(|| Error::unknown("a console came that nobody asked for"))?;
        let console = Rc::new(End::both(master)?);
        let sink = tty.stdout.unwrap_or(Sink::Null);
        self.start_output(console.clone(), sink);
        if let Some(feed) = tty.stdin {
            self.start_input(feed, Sink::Stream(console.clone()));
        }
        // A fresh cell takes its first value, and a console comes once.
        let _ = self.console.set(console);
        Ok(())
    }

    /// Without a console there is nothing to resize, which is fine.
    pub(crate) fn resize(&self, rows: u16, cols: u16) -> Result<()> {
        let Some(console) = self.console.get() else {
            return Ok(());
        };
        let size = Winsize {
            ws_row: rows,
            ws_col: cols,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(console.fd(), size).context("resize the console")
    }

    /// Gives up our own write end: once the clients close theirs, the process reads EOF.
    pub(crate) fn close_stdin(&self) {
        self.keeper.borrow_mut().take();
        self.closing.notify_one();
    }

    /// The log, where there is one.
    pub(crate) fn cri_log(&self) -> Option<Rc<CriLog>> {
        self.log.get().cloned()
    }

    /// Waits until all output has been copied, within limits.
    pub(crate) async fn drain(&self) {
        let mut outputs = std::mem::take(&mut *self.outputs.borrow_mut());
        let deadline = tokio::time::Instant::now() + DRAIN;
        for output in &mut outputs {
            let copied = tokio::time::timeout_at(deadline, &mut output.copied);
            if copied.await.is_err() {
                log::warning!("output is still held open {DRAIN:?} after the exit");
            }
        }
        self.outputs.borrow_mut().append(&mut outputs);
    }

    /// Ends everything, the logger too.
    pub(crate) async fn close(&self) {
        if let Some(input) = self.input.borrow_mut().take() {
            input.abort();
        }
        for output in self.outputs.borrow_mut().drain(..) {
            output.task.abort();
        }
        if let Some(log) = self.log.get() {
            log.finish();
        }
        self.keeper.borrow_mut().take();
        self.tty.borrow_mut().take();
        let logger = self.logger.borrow_mut().take();
        if let Some(logger) = logger {
            logger.stop().await;
        }
    }
}

/// Gives a pipe to the user that will open its /dev/stdout again.
fn own(pipe: &OwnedFd, (uid, gid): (u32, u32)) -> Result<()> {
    if (uid, gid) == (0, 0) {
        return Ok(());
    }
    fchown(pipe, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).context("own the stdio pipe")
}

fn dev_null() -> Result<OwnedFd> {
    rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .context("open /dev/null")
}

#[cfg(test)]
mod tests;
