//! Owns watching for OOM kills: eventfd on cgroup v1, inotify on `memory.events` on v2; one TaskOOM per increase.

use std::cell::Cell;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use corten_oci::cgroup::OomWatch;
use corten_protos::containerd::events::TaskOom;
use rustix::fs::{OFlags, inotify};
use tokio::io::Interest;

use crate::events::Events;
use crate::log;
use crate::readiness;
use crate::task::Container;

/// What has been reported of a container's OOM kills.
#[derive(Debug, Default)]
pub(crate) struct Seen(Cell<u64>);

// === impl Seen ===

impl Seen {
    /// Publishes if there were kills since the last look.
    pub(crate) fn look(&self, container: &Container, events: &Events) {
        let kills = container.cgroup.oom_kills();
        if kills > self.0.replace(kills) {
            events.publish(&TaskOom {
                container_id: container.id.clone(),
            });
        }
    }
}

/// Watches until the cgroup goes away. The container's owner aborts it at Delete.
pub(crate) async fn watch(container: Rc<Container>, events: Rc<Events>) {
    if let Err(e) = follow(&container, &events).await {
        log::warning!("watch container {} for OOM: {e}", container.id);
    }
}

async fn follow(container: &Container, events: &Events) -> io::Result<()> {
    let (fd, v1) = match container.cgroup.watch_oom().map_err(io::Error::other)? {
        OomWatch::EventFd(fd) => {
            rustix::fs::fcntl_setfl(&fd, OFlags::NONBLOCK)?;
            (fd, true)
        }
        OomWatch::Events(path) => {
            let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
            inotify::add_watch(&fd, path, inotify::WatchFlags::MODIFY)?;
            (fd, false)
        }
    };
    let fd = readiness::watch(fd, Interest::READABLE)?;
    loop {
        fd.readable().await?.clear_ready();
        if !drain(fd.get_ref(), v1)? {
            return Ok(());
        }
        container.oom.look(container, events);
    }
}

/// Empties the descriptor; false once it says that the watched file is gone.
fn drain(fd: &OwnedFd, v1: bool) -> io::Result<bool> {
    if v1 {
        let mut count = [0; 8];
        return match rustix::io::read(fd, &mut count) {
            Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(true),
            Err(e) => Err(e.into()),
        };
    }
    let mut buffer = [const { MaybeUninit::uninit() }; 512];
    let mut reader = inotify::Reader::new(fd, &mut buffer);
    loop {
        match reader.next() {
            Ok(event) if event.events().contains(inotify::ReadFlags::IGNORED) => return Ok(false),
            Ok(_) => {}
            Err(rustix::io::Errno::AGAIN) => return Ok(true),
            Err(e) => return Err(e.into()),
        }
    }
}
