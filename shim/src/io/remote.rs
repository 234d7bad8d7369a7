//! Owns streams that a client opened on our own socket: `ttrpc+unix://ADDRESS?streaming_id=ID`.
//!
//! The client opens the stream first and names it; a Create, Exec or Attach then refers to it. Bytes flow in `Data`
//! messages as far as the reader's `WindowUpdate`s allow. A client whose connection is lost, such as a daemon that
//! restarts, may open a stream of the same name: the process waits for it as it would at a fifo nobody reads. Closing a
//! stream properly is the end of input.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use corten_protos::any;
use corten_protos::containerd::types::transfer::{Data, WindowUpdate};
use corten_protos::google::protobuf::Any;
use tokio::sync::{Notify, oneshot};
use tokio::task::{AbortHandle, spawn_local};
use ttrpc::r#async::{SSReceiver, SSSender};

use super::logger::unescape;
use super::pump::Sink;
use crate::error::{Error, Result};

/// Streams that nobody has asked for yet. The oldest one goes when there are more.
const MAX_WAITING: usize = 64;
/// What containerd's writers send at once, and what its readers allow.
const CHUNK: usize = 32 << 10;
const WINDOW: i32 = 64 << 10;
/// After CloseIO, for input that is still on its way.
const LAST_INPUT: Duration = Duration::from_secs(1);

/// One end of a client's stream. Its end closes the stream.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) id: String,
    pub(crate) sender: SSSender<Any>,
    pub(crate) receiver: SSReceiver<Any>,
    /// Dropped with the stream: the handler that holds the connection's side then answers.
    pub(crate) open: oneshot::Sender<()>,
}

/// Streams that clients opened, until a process takes them.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    waiting: RefCell<VecDeque<Stream>>,
    came: Notify,
}

/// Output to a stream.
#[derive(Debug)]
pub(crate) struct Remote {
    id: String,
    streams: Rc<Streams>,
    /// Whether to wait for another client when this one is lost.
    again: bool,
    line: RefCell<Option<Rc<Line>>>,
}

/// A connected stream.
#[derive(Debug)]
struct Line {
    sender: SSSender<Any>,
    window: Cell<i64>,
    lost: Cell<bool>,
    changed: Notify,
    reader: RefCell<Option<AbortHandle>>,
    _open: oneshot::Sender<()>,
}

/// The id in a streaming URL; `None` when it is none.
pub(super) fn streaming_id(url: &str) -> Result<Option<String>> {
    let Some((scheme, rest)) = url.split_once("://") else {
        return Ok(None);
    };
    if scheme.starts_with("grpc+") {
        return Err(Error::unimplemented(format!(
            "stream {url}: only ttrpc is spoken here"
        )));
    }
    if !scheme.starts_with("ttrpc+") {
        return Ok(None);
    }
    let query = rest.split_once('?').map_or("", |(_, query)| query);
    let id = query
        .split('&')
        .find_map(|pair| pair.strip_prefix("streaming_id="))
        .filter(|id| !id.is_empty())
        .ok_or_else(|| Error::invalid("no stream id in url queries"))?;
    Ok(Some(unescape(id)?))
}

/// Feeds a process from a stream until that is closed properly, or `closing` was told.
pub(super) async fn copy_input(streams: Rc<Streams>, id: String, sink: Sink, closing: Rc<Notify>) {
    let work = async {
        loop {
            let mut stream = streams.take(&id).await;
            if feed(&mut stream, &sink).await.is_ok() {
                return;
            }
        }
    };
    tokio::pin!(work);
    tokio::select! {
        () = &mut work => {}
        () = closing.notified() => {
            // Elapsed means that the client keeps the stream open, which is its right.
            let _ = tokio::time::timeout(LAST_INPUT, work).await;
        }
    }
}

/// `Ok` at the proper end, or when the process takes no more; an error when the client was lost.
async fn feed(stream: &mut Stream, sink: &Sink) -> ttrpc::Result<()> {
    let mut window = 0;
    loop {
        if window < WINDOW {
            let update = any::pack(&WindowUpdate { update: WINDOW });
            stream.sender.send(&update).await?;
            window += WINDOW;
        }
        let Some(message) = stream.receiver.recv().await? else {
            return Ok(());
        };
        let Ok(data) = any::unpack::<Data>(&message) else {
            continue;
        };
        window -= i32::try_from(data.data.len()).unwrap_or(i32::MAX);
        if sink.write_all(&data.data).await.is_err() {
            return Ok(());
        }
    }
}

// === impl Streams ===

impl Streams {
    /// A client opened one.
    pub(crate) fn add(&self, stream: Stream) {
        let mut waiting = self.waiting.borrow_mut();
        // The newer one is whose client is alive.
        waiting.retain(|other| other.id != stream.id);
        if waiting.len() >= MAX_WAITING {
            waiting.pop_front();
        }
        waiting.push_back(stream);
        drop(waiting);
        self.came.notify_waiters();
    }

    /// Waits for a stream of this name. Cancel-safe.
    async fn take(&self, id: &str) -> Stream {
        loop {
            let came = self.came.notified();
            if let Some(stream) = self.take_now(id) {
                return stream;
            }
            came.await;
        }
    }

    fn take_now(&self, id: &str) -> Option<Stream> {
        let mut waiting = self.waiting.borrow_mut();
        let found = waiting.iter().position(|stream| stream.id == id);
        waiting.remove(found?)
    }
}

// === impl Remote ===

impl Remote {
    pub(super) fn new(streams: &Rc<Streams>, id: String, again: bool) -> Self {
        Self {
            id,
            streams: streams.clone(),
            again,
            line: RefCell::default(),
        }
    }

    /// Sends everything, as far as the client allows; an error when it is lost and no other may come.
    pub(super) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let line = self.line.borrow().clone();
            let line = match line {
                Some(line) if !line.lost.get() => line,
                Some(_) if !self.again => return Err(io::ErrorKind::BrokenPipe.into()),
                _ => {
                    let line = Line::new(self.streams.take(&self.id).await);
                    *self.line.borrow_mut() = Some(line.clone());
                    line
                }
            };
            let sent = line.send(bytes).await;
            bytes = bytes.get(sent..).unwrap_or_default();
        }
        Ok(())
    }
}

impl Drop for Remote {
    /// Output without a byte ends like any other.
    fn drop(&mut self) {
        if self.line.borrow().is_none() {
            drop(self.streams.take_now(&self.id));
        }
    }
}

// === impl Line ===

impl Line {
    fn new(stream: Stream) -> Rc<Self> {
        let Stream {
            sender,
            mut receiver,
            open,
            ..
        } = stream;
        let line = Rc::new(Self {
            sender,
            window: Cell::default(),
            lost: Cell::default(),
            changed: Notify::new(),
            reader: RefCell::default(),
            _open: open,
        });
        let weak = Rc::downgrade(&line);
        let reader = spawn_local(async move {
            loop {
                let message = receiver.recv().await;
                let Some(line) = weak.upgrade() else {
                    return;
                };
                match message {
                    Ok(Some(message)) => {
                        if let Ok(update) = any::unpack::<WindowUpdate>(&message) {
                            let window = line.window.get() + i64::from(update.update.max(0));
                            line.window.set(window);
                        }
                    }
                    Ok(None) | Err(_) => line.lost.set(true),
                }
                line.changed.notify_one();
                if line.lost.get() {
                    return;
                }
            }
        });
        *line.reader.borrow_mut() = Some(reader.abort_handle());
        line
    }

    /// Sends a part, and says how much; nothing once the client is lost.
    async fn send(&self, bytes: &[u8]) -> usize {
        while self.window.get() <= 0 && !self.lost.get() {
            self.changed.notified().await;
        }
        if self.lost.get() {
            return 0;
        }
        let allowed = usize::try_from(self.window.get()).unwrap_or(CHUNK);
        let part = bytes.len().min(CHUNK).min(allowed);
        let data = Data {
            data: bytes[..part].to_vec().into(),
        };
        if self.sender.send(&any::pack(&data)).await.is_err() {
            self.lost.set(true);
            return 0;
        }
        let taken = i64::try_from(part).unwrap_or(0);
        self.window.set(self.window.get() - taken);
        part
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Some(reader) = self.reader.borrow_mut().take() {
            reader.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_told_from_paths() {
        let id = |url: &str| streaming_id(url).unwrap();
        let url = "ttrpc+unix:///run/containerd/s/x?streaming_id=web-stdout";
        assert_eq!(id(url).as_deref(), Some("web-stdout"));
        assert_eq!(id("/run/fifo"), None);
        assert_eq!(id("fifo:///run/fifo"), None);
        assert!(streaming_id("ttrpc+unix:///x").is_err());
        assert!(streaming_id("grpc+unix:///x?streaming_id=a").is_err());
    }
}
