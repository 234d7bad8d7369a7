//! Owns the long-lived process: its surroundings, its event loop, its socket, and its end.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context as Cx, Poll};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::net::sockopt::socket_peercred;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;
use tokio::task::{LocalSet, spawn_local};
use ttrpc::asynchronous::Server;
use ttrpc::asynchronous::transport::Listener;

use crate::error::{Context, Result};
use crate::events::Events;
use crate::flags::Flags;
use crate::io::settle;
use crate::log;
use crate::service;
use crate::task::Shim;

/// Pause after a failed accept (EMFILE, ENOMEM): nothing says when it would succeed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// For the last events, when the daemon is there to take them.
const LAST_EVENTS: Duration = Duration::from_secs(2);
/// For the last answers to leave: turns of the event loop, since a busy machine may take any time for one.
const LAST_TURNS: usize = 64;
/// For clients to hang up. Who does not must not find an empty shim alive for long.
const LAST_ANSWERS: Duration = Duration::from_millis(10);
/// For clients that are slower in opening their fifos than their container was.
const LAST_READERS: Duration = Duration::from_millis(500);
/// A shim without containers that nobody is connected to was forgotten: its daemon died between `start` and Create, or
/// gave up on a slow Delete.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// Set by `start` when it could not give us an executable that containers cannot write; says why.
pub(crate) const UNSEALED: &str = "CORTEN_UNSEALED";

/// Serves until Shutdown finds no container.
pub(crate) fn serve(flags: &Flags) -> Result<()> {
    let listener = take_listener()?;
    // It was executed by a descriptor, whose number would be its name in ps. Only a name, so it may fail.
    let _ = rustix::thread::set_name(c"containerd-shim");
    // Fails only for a group leader, which already is away from the daemon's session.
    let _ = rustix::process::setsid();
    // A child is born into the container's pid namespace: what it still is of this process must not be traced there.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .context("forbid tracing")?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .context("become a subreaper")?;
    let path = listener
        .local_addr()
        .ok()
        .and_then(|addr| addr.as_pathname().map(PathBuf::from));
    let address = std::env::var("TTRPC_ADDRESS").unwrap_or_default();
    let events = Rc::new(Events::new(&flags.namespace, &address));
    let shim = Rc::new(Shim::new(&flags.namespace, events, cache(path.as_deref())));
    if let Ok(why) = std::env::var(UNSEALED) {
        log::warning!("the executable is not sealed: {why}");
    }
    log::info!("starting, id {}, namespace {}", flags.id, flags.namespace);
    let runtime = runtime()?;
    shim.listens_at(path);
    LocalSet::new().block_on(&runtime, run(shim, listener))
}

/// Runs a future on an event loop of its own: for one-shot commands.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> Result<T> {
    Ok(LocalSet::new().block_on(&runtime()?, future))
}

/// One thread, and no pool behind it: nothing here may block elsewhere.
fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the event loop")
}

/// The listener is our stdin. Descriptors 3 to 5 stay taken, so that no later one gets a number that a logger is to
/// find its pipes on.
fn take_listener() -> Result<StdListener> {
    let listener: OwnedFd = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 6)
        .context("take the listener from stdin")?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .context("open /dev/null")?;
    rustix::stdio::dup2_stdin(&null).context("detach stdin")?;
    for _ in 0..2 {
        let taken = rustix::io::fcntl_dupfd_cloexec(&null, 3).context("keep a descriptor")?;
        std::mem::forget(taken);
    }
    std::mem::forget(null);
    let listener = StdListener::from(listener);
    listener
        .set_nonblocking(true)
        .context("stdin is not a listening socket")?;
    Ok(listener)
}

/// `corten` beside the folder of the sockets: root's own and gone with a reboot, as they are.
fn cache(socket: Option<&Path>) -> Option<PathBuf> {
    Some(socket?.parent()?.parent()?.join("corten"))
}

async fn run(shim: Rc<Shim>, listener: StdListener) -> Result<()> {
    let listener = UnixListener::from_std(listener).context("watch the socket")?;
    let open = Arc::new(Open::default());
    let (services, calls) = service::services();
    let mut server = Server::new()
        .add_listener(Listener::new(accept(listener, open.clone())))
        .register_service(services);
    server
        .start()
        .await
        .map_err(|e| crate::error::Error::unknown(format!("serve: {e}")))?;
    let events = shim.events.clone();
    let reaper = shim.reaper.clone();
    spawn_local(async move { reaper.sweep_strays().await });
    spawn_local(async move { events.forward().await });
    spawn_local(service::serve(shim.clone(), calls));
    tokio::select! {
        () = shim.done.notified() => {}
        () = forgotten(&shim, &open) => log::warning!("nobody needs this shim"),
    }
    shim.leave();
    shim.events.drain(LAST_EVENTS).await;
    for _ in 0..LAST_TURNS {
        tokio::task::yield_now().await;
    }
    // Elapsed is as good as done: who is still connected has nothing to ask of an empty shim.
    let _ = tokio::time::timeout(LAST_ANSWERS, open.until_none()).await;
    settle(LAST_READERS).await;
    log::info!("shutdown");
    Ok(())
}

/// Returns when there has been neither a container nor a connection for a while. Cancel-safe.
async fn forgotten(shim: &Shim, open: &Open) {
    loop {
        let changed = open.changed.notified();
        if !(shim.is_idle() && open.is_none()) {
            tokio::select! {
                () = changed => {}
                () = shim.removed.notified() => {}
            }
        } else if tokio::time::timeout(FORGOTTEN, changed).await.is_err()
            && shim.is_idle()
            && open.is_none()
        {
            return;
        }
    }
}

/// Connections of our own user; others are closed before a byte is read.
fn accept(
    listener: UnixListener,
    open: Arc<Open>,
) -> impl futures::Stream<Item = io::Result<Connection>> {
    futures::stream::unfold((listener, open), |(listener, open)| async move {
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(e) => {
                    log::warning!("accept: {e}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            if !is_own_user(&stream) {
                log::warning!("refused a connection of another user");
                continue;
            }
            let connection = Connection {
                stream,
                open: open.clone(),
            };
            open.count.fetch_add(1, Ordering::Relaxed);
            return Some((Ok(connection), (listener, open)));
        }
    })
}

/// containerd's shim asks for the same user *and* group.
fn is_own_user(stream: &UnixStream) -> bool {
    socket_peercred(stream).is_ok_and(|peer| {
        peer.uid == rustix::process::geteuid() && peer.gid == rustix::process::getegid()
    })
}

/// A connection that is counted while it is open.
#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    open: Arc<Open>,
}

/// How many connections there are.
#[derive(Debug, Default)]
struct Open {
    count: AtomicUsize,
    changed: Notify,
}

// === impl Open ===

impl Open {
    fn is_none(&self) -> bool {
        self.count.load(Ordering::Relaxed) == 0
    }

    async fn until_none(&self) {
        while !self.is_none() {
            self.changed.notified().await;
        }
    }
}

// === impl Connection ===

impl Drop for Connection {
    fn drop(&mut self) {
        self.open.count.fetch_sub(1, Ordering::Relaxed);
        self.open.changed.notify_waiters();
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Cx<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Cx<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Cx<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Cx<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Cx<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
