//! Attach: a client joins the streams of a running container, beside others.
//!
//! Output is copied from now on, by our shim into FIFOs of the client's own, or by the daemon's [`Copier`]. Input goes
//! to the container in whole pieces of one client after the other. What ends is the client's attachment, never the
//! container; but the end of the input of a `stdin_once` container without a terminal ends its stdin, also when the
//! client just vanishes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use corten_core::runtime::Task;
use corten_core::{Context, Error, Kind, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, warn};

use super::fifos::{Fifos, Wanted, folder};
use super::stop::wait_stopped;
use crate::cri::Cri;
use crate::logs::Copier;
use crate::store::Container;
use crate::streaming::{Input, Output, Resize, Streams};

const PART: usize = 32 << 10;
/// How long a container's output may go on after it has ended.
const DRAIN: Duration = Duration::from_secs(10);

/// Where a stream of output comes from.
enum Source {
    Nowhere,
    Fifo(pipe::Receiver),
    Copy(mpsc::Receiver<Bytes>),
}

/// Where input goes.
enum Sink {
    Nowhere,
    Fifo(pipe::Sender),
    Copier(Arc<Copier>),
}

impl Cri {
    /// Joins a client and a container until one of them ends it.
    pub(super) async fn join_client(
        self: &Arc<Self>,
        container: &Arc<Container>,
        tty: bool,
        clients: Streams,
    ) -> Result<()> {
        let task = self
            .container_task(&container.id)
            .await
            .context("failed to load task")?;
        let Streams {
            stdin,
            stdout,
            stderr,
            resize,
        } = clients;
        let copier = container.io.read().clone();
        let (has_tty, once) = {
            let metadata = container.metadata.read();
            let config = &metadata.config;
            (config.tty, config.stdin_once && !config.tty)
        };
        let want = [stdout.is_some(), stderr.is_some() && !tty && !has_tty];
        let [out, err] = match &copier {
            Some(copier) => from_copier(copier, want),
            None => self.shim_output(container, task.as_ref(), want).await?,
        };
        let sink = match (&stdin, copier) {
            (None, _) => Sink::Nowhere,
            (Some(_), Some(copier)) => Sink::Copier(copier),
            (Some(_), None) => self.shim_input(container),
        };
        // Alone: it outlives a client that vanishes by as much as it needs to end the container's input.
        let (detach, detached) = oneshot::channel();
        let input = stdin.map(|from| feed(from, sink, task.clone(), once, container.clone()));
        let has_input = input.is_some();
        if let Some(input) = input {
            self.background.spawn("attached input", async move {
                input.await;
                // The client may have gone by itself.
                let _ = detach.send(());
            });
        }
        let outputs = async {
            tokio::join!(carry(out, stdout), carry(err, stderr));
        };
        tokio::pin!(outputs);
        tokio::select! {
            () = &mut outputs, if want != [false, false] => {}
            // containerd: the end of input is the end of the attachment, unless it is the container's.
            _ = detached, if has_input && (!once || want == [false, false]) => {}
            () = sizes(task.as_ref(), resize) => {}
            () = wait_stopped(container) => {
                // The last words are on their way.
                let _ = tokio::time::timeout(DRAIN, outputs).await;
            }
        }
        Ok(())
    }

    /// Has our shim copy the output to FIFOs made for it.
    async fn shim_output(
        &self,
        container: &Container,
        task: &dyn Task,
        [stdout, stderr]: [bool; 2],
    ) -> Result<[Source; 2]> {
        if !stdout && !stderr {
            return Ok([Source::Nowhere, Source::Nowhere]);
        }
        let wanted = Wanted {
            tty: false,
            stdin: false,
            stdout,
            stderr,
        };
        let name = format!("attach-{}", super::make_id());
        // Both ends are open when they are removed.
        let fifos = Fifos::make(&folder(&self.container_state(&container.id)), &name, wanted)?;
        let ends = fifos.open()?;
        let stdio = fifos.stdio();
        task.attach("", &stdio.stdout, &stdio.stderr)
            .await
            .context("failed to attach to the container's output")?;
        let source = |end: Option<pipe::Receiver>| end.map_or(Source::Nowhere, Source::Fifo);
        Ok([source(ends.stdout), source(ends.stderr)])
    }

    /// The FIFO from which our shim feeds the container.
    fn shim_input(&self, container: &Container) -> Sink {
        if !container.metadata.read().config.stdin {
            return Sink::Nowhere;
        }
        let dir = folder(&self.container_state(&container.id));
        let path = dir.join(format!("{}-stdin", container.id));
        match pipe::OpenOptions::new().open_sender(&path) {
            Ok(sender) => Sink::Fifo(sender),
            Err(error) => {
                // Its input was ended before.
                debug!(container.id = %container.id, %error, "open stdin to attach");
                Sink::Nowhere
            }
        }
    }
}

fn from_copier(copier: &Copier, want: [bool; 2]) -> [Source; 2] {
    let source = |stream: usize, want: bool| match copier.attach(stream) {
        Some(parts) if want => Source::Copy(parts),
        _ => Source::Nowhere,
    };
    [source(0, want[0]), source(1, want[1])]
}

/// Copies input until either side ends it.
async fn feed(
    mut from: Input,
    mut to: Sink,
    task: Arc<dyn Task>,
    once: bool,
    container: Arc<Container>,
) {
    let copy = async {
        let mut part = vec![0; PART];
        while let Ok(n @ 1..) = from.read(&mut part).await {
            let bytes = part.get(..n).unwrap_or_default();
            let fed = match &mut to {
                // Read and lost, as containerd does.
                Sink::Nowhere => Ok(()),
                Sink::Fifo(fifo) => fifo.write_all(bytes).await.map_err(Error::from),
                Sink::Copier(copier) => copier.feed(bytes).await,
            };
            if let Err(error) = fed {
                debug!(%error, "feed an attached container");
                return;
            }
        }
    };
    tokio::select! {
        () = copy => {}
        () = wait_stopped(&container) => return,
    }
    if !once || matches!(to, Sink::Nowhere) {
        return;
    }
    if let Sink::Copier(copier) = &to {
        copier.close_stdin().await;
    }
    drop(to);
    match task.close_io("", true).await {
        Err(error) if error.kind() != Kind::NotFound => {
            warn!(container.id = %container.id, %error, "close a container's stdin");
        }
        _ => {}
    }
}

/// Copies one stream to its end; for a client that does not want it, there is none.
async fn carry(mut from: Source, to: Option<Output>) {
    let Some(mut to) = to else {
        return;
    };
    match &mut from {
        Source::Nowhere => {}
        Source::Fifo(fifo) => drop(tokio::io::copy(fifo, &mut to).await),
        Source::Copy(parts) => {
            while let Some(part) = parts.recv().await {
                if to.write_all(&part).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Follows the client's terminal, for ever.
async fn sizes(task: &dyn Task, mut resize: Resize) {
    while let Some(size) = resize.next().await {
        let (width, height) = (size.width.into(), size.height.into());
        if let Err(error) = task.resize_pty("", width, height).await {
            warn!(container.id = task.id(), %error, "resize a terminal");
        }
    }
    std::future::pending::<()>().await;
}
