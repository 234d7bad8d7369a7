//! Reads the configuration again when its folder changes.
//!
//! Watched are the folder itself and the folders of its networks' further plugins. A folder that does not exist is
//! made, as containerd does it; one that is removed or replaced is made and watched again. Changes are let settle, so
//! that a file that is written in steps is read once.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use corten_core::{Context, Result};
use corten_sys::blocking;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{info, warn};

use crate::Cni;

/// No change for so long means that it is over,
const QUIET: Duration = Duration::from_millis(50);
/// and it is read after so long even if it is not.
const PATIENCE: Duration = Duration::from_secs(1);
/// Pause before watching is tried again after an error.
const RETRY: Duration = Duration::from_secs(2);

impl Cni {
    /// Watches until dropped. The caller spawns it once.
    pub async fn watch(self: Arc<Self>) {
        loop {
            if let Err(error) = self.watch_once().await {
                warn!(%error, "watch the CNI configuration");
                sleep(RETRY).await;
            }
        }
    }

    /// Watches until the folder itself goes.
    async fn watch_once(&self) -> Result<()> {
        let dir = self.options().conf_dir.clone();
        let watched = dir.clone();
        let watch = blocking(move || Watch::new(&watched)).await?;
        // What changed before the watch began.
        self.reload().await;
        loop {
            for folder in self.plugin_folders() {
                watch.add(&folder);
            }
            let mut gone = watch.changed().await?;
            let patience = Instant::now() + PATIENCE;
            while let Ok(more) =
                timeout_at(patience.min(Instant::now() + QUIET), watch.changed()).await
            {
                gone |= more?;
            }
            self.reload().await;
            if gone {
                return Ok(());
            }
        }
    }

    async fn reload(&self) {
        let before = self.load_error();
        match self.load().await {
            Ok(()) if before.is_some() => info!("CNI configuration loaded"),
            Err(error) if before != self.load_error() => warn!(%error, "load CNI configuration"),
            _ => {}
        }
    }
}

/// An inotify instance.
#[derive(Debug)]
struct Watch {
    fd: AsyncFd<OwnedFd>,
    /// The watch of the folder itself.
    folder: i32,
}

impl Watch {
    fn new(dir: &Path) -> Result<Self> {
        let io = |e: rustix::io::Errno| std::io::Error::from(e);
        let mut builder = std::fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(builder.recursive(true), 0o700)
            .create(dir)
            .with_context(|| format!("make {}", dir.display()))?;
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
            .map_err(io)
            .context("start inotify")?;
        let flags = events() | WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF;
        let folder = inotify::add_watch(&fd, dir, flags)
            .map_err(io)
            .with_context(|| format!("watch {}", dir.display()))?;
        #[allow(
            deprecated,
            reason = "its successor is unsafe for types that could lie; OwnedFd does not"
        )]
        let fd = AsyncFd::with_interest(fd, Interest::READABLE).context("poll inotify")?;
        Ok(Self { fd, folder })
    }

    /// Also watches `folder`; one that does not exist is noticed by its parent's watch when it appears.
    fn add(&self, folder: &Path) {
        let _ = inotify::add_watch(self.fd.get_ref(), folder, events());
    }

    /// Waits for a change; true when the folder itself went. Cancel-safe.
    async fn changed(&self) -> Result<bool> {
        loop {
            let mut ready = self.fd.readable().await.context("wait for inotify")?;
            let read = ready.try_io(|fd| {
                let mut buffer = [MaybeUninit::<u8>::uninit(); 4096];
                let mut reader = Reader::new(fd.get_ref(), &mut buffer);
                let mut gone = false;
                loop {
                    let event = reader.next()?;
                    let ended = ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::IGNORED;
                    gone |= event.wd() == self.folder && event.events().intersects(ended);
                    if reader.is_buffer_empty() {
                        return Ok(gone);
                    }
                }
            });
            match read {
                Ok(gone) => return gone.context("read inotify"),
                Err(_would_block) => {}
            }
        }
    }
}

/// Neither reading nor changing attributes is a change.
fn events() -> WatchFlags {
    WatchFlags::CLOSE_WRITE
        | WatchFlags::CREATE
        | WatchFlags::DELETE
        | WatchFlags::MOVED_FROM
        | WatchFlags::MOVED_TO
        | WatchFlags::ONLYDIR
}
