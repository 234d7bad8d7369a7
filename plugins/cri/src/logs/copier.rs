//! Copies the output of one container from its FIFOs to its log and to clients that are attached.
//!
//! A client that takes nothing for a while is left; it never holds up the container for longer. The copying ends when
//! the shim has closed its ends, or when the [`Copier`] is dropped.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use corten_core::tasks_set::TaskSet;
use corten_core::{Error, Result};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};
use tracing::warn;

use super::{Lines, LogFile};
use crate::metrics::Logs;

/// How long an attached client may hold up the container.
const PATIENCE: Duration = Duration::from_secs(10);
/// Parts of output that wait for an attached client; when full, the container waits for at most [`PATIENCE`].
const AHEAD: usize = 16;
/// Most bytes of a part.
const PART: usize = 32 << 10;

/// The copying of one container's streams.
#[derive(Debug)]
pub struct Copier {
    outputs: [Option<Arc<Output>>; 2],
    log: Option<Arc<LogFile>>,
    stdin: tokio::sync::Mutex<Option<pipe::Sender>>,
    /// Dropped: the copying ends.
    _stop: watch::Sender<()>,
}

/// The ends of FIFOs; those that the container has not are not there.
#[derive(Debug, Default)]
pub struct Ends {
    pub stdin: Option<pipe::Sender>,
    pub stdout: Option<pipe::Receiver>,
    pub stderr: Option<pipe::Receiver>,
}

/// One stream of output.
#[derive(Debug)]
struct Output {
    readers: Mutex<Vec<mpsc::Sender<Bytes>>>,
    ended: watch::Sender<bool>,
}

// === impl Copier ===

impl Copier {
    /// Starts to copy. The shim must have opened its ends: one that nobody has opened yet looks like the end.
    pub fn start(
        tasks: &TaskSet,
        ends: Ends,
        log: Option<(Arc<LogFile>, Arc<Logs>)>,
        max_line: i64,
    ) -> Self {
        let (stop, stopped) = watch::channel(());
        let start = |from: Option<pipe::Receiver>, name| {
            let from = from?;
            let output = Arc::new(Output {
                readers: Mutex::default(),
                ended: watch::Sender::new(false),
            });
            let copy = copy(
                from,
                output.clone(),
                log.clone(),
                Lines::new(name, max_line),
            );
            let mut stopped = stopped.clone();
            let told = output.clone();
            tasks.spawn("container output", async move {
                tokio::select! {
                    () = copy => {}
                    // Nothing is ever sent: this is the end of the sender.
                    _ = stopped.changed() => {}
                }
                told.end();
            });
            Some(output)
        };
        Self {
            outputs: [start(ends.stdout, "stdout"), start(ends.stderr, "stderr")],
            log: log.map(|(file, _)| file),
            stdin: tokio::sync::Mutex::new(ends.stdin),
            _stop: stop,
        }
    }

    /// The output from now on; none when the stream has ended or there is none. 0 is stdout.
    pub fn attach(&self, stream: usize) -> Option<mpsc::Receiver<Bytes>> {
        let output = self.outputs.get(stream)?.as_ref()?;
        let mut readers = output.readers.lock();
        if *output.ended.borrow() {
            return None;
        }
        let (sender, receiver) = mpsc::channel(AHEAD);
        readers.push(sender);
        Some(receiver)
    }

    /// Gives input to the container, between that of other clients.
    ///
    /// # Errors
    /// FailedPrecondition: it takes none, or no more; those of the FIFO.
    pub async fn feed(&self, bytes: &[u8]) -> Result<()> {
        let mut stdin = self.stdin.lock().await;
        let stdin = stdin
            .as_mut()
            .ok_or_else(|| Error::precondition("the container takes no input"))?;
        stdin.write_all(bytes).await?;
        Ok(())
    }

    /// Ends the input.
    pub async fn close_stdin(&self) {
        self.stdin.lock().await.take();
    }

    /// Opens the log again by its name.
    ///
    /// # Errors
    /// The file system's. Without a log there is nothing to do.
    pub async fn reopen(&self) -> Result<()> {
        match self.log.clone() {
            Some(log) => corten_sys::blocking(move || log.reopen()).await,
            None => Ok(()),
        }
    }

    /// Waits until all output is where it belongs. Cancel-safe.
    pub async fn ended(&self) {
        for output in self.outputs.iter().flatten() {
            let mut ended = output.ended.subscribe();
            // The sender lives in `output`.
            let _ = ended.wait_for(|ended| *ended).await;
        }
    }
}

// === impl Output ===

impl Output {
    async fn give(&self, part: &Bytes) {
        let readers = self.readers.lock().clone();
        for reader in readers {
            let given = tokio::time::timeout(PATIENCE, reader.send(part.clone())).await;
            if !matches!(given, Ok(Ok(()))) {
                self.readers.lock().retain(|r| !r.same_channel(&reader));
            }
        }
    }

    /// Nobody hears more.
    fn end(&self) {
        let mut readers = self.readers.lock();
        self.ended.send_replace(true);
        readers.clear();
    }
}

async fn copy(
    mut from: pipe::Receiver,
    output: Arc<Output>,
    log: Option<(Arc<LogFile>, Arc<Logs>)>,
    mut lines: Lines,
) {
    let mut buffer = BytesMut::with_capacity(PART);
    loop {
        buffer.reserve(PART);
        match from.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
        let part = buffer.split().freeze();
        if let Some((file, logs)) = &log {
            let (text, ended) = (lines.cut(&part), newlines(&part));
            logs.input_entries.fetch_add(ended, Relaxed);
            logs.input_bytes.fetch_add(part.len() as u64, Relaxed);
            // Each entry is a line of text, whatever it is an entry of.
            logs.split_entries
                .fetch_add(newlines(&text) - ended, Relaxed);
            write(file, logs, text).await;
        }
        output.give(&part).await;
    }
    if let Some((file, logs)) = &log {
        let rest = lines.finish();
        // The last one has no newline.
        logs.input_entries.fetch_add(newlines(&rest), Relaxed);
        write(file, logs, rest).await;
    }
}

/// Files block. One write at a time, so that lines stay in order.
async fn write(log: &Arc<LogFile>, logs: &Logs, text: Vec<u8>) {
    if text.is_empty() {
        return;
    }
    let log = log.clone();
    let (entries, bytes) = (newlines(&text), text.len() as u64);
    match corten_sys::blocking(move || Ok(log.write(&text))).await {
        Ok(true) => {
            logs.output_entries.fetch_add(entries, Relaxed);
            logs.output_bytes.fetch_add(bytes, Relaxed);
        }
        // The file has told.
        Ok(false) => {}
        // Only a panic in there, or the daemon's end, is an error: what is lost is these lines.
        Err(error) => warn!(%error, "write a container's log"),
    }
}

fn newlines(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|b| **b == b'\n').count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Lab {
        dir: tempfile::TempDir,
        copier: Copier,
        shim: pipe::Sender,
        tasks: TaskSet,
        logs: Arc<Logs>,
    }

    fn lab() -> Lab {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("stdout");
        corten_sys::fifo::create(&fifo, 0o600).unwrap();
        let stdout = pipe::OpenOptions::new().open_receiver(&fifo).unwrap();
        let shim = pipe::OpenOptions::new().open_sender(&fifo).unwrap();
        let log = LogFile::open(dir.path().join("0.log"), 0).unwrap();
        let tasks = TaskSet::new();
        let ends = Ends {
            stdout: Some(stdout),
            ..Ends::default()
        };
        let logs = Arc::<Logs>::default();
        let log = Some((Arc::new(log), logs.clone()));
        let copier = Copier::start(&tasks, ends, log, 16384);
        Lab {
            dir,
            copier,
            shim,
            tasks,
            logs,
        }
    }

    fn contents(lab: &Lab) -> Vec<String> {
        let text = std::fs::read_to_string(lab.dir.path().join("0.log")).unwrap();
        text.lines()
            .map(|l| l.split_once(' ').unwrap().1.to_owned())
            .collect()
    }

    #[tokio::test]
    async fn output_reaches_the_log_and_all_who_are_attached_to_its_last_byte() {
        let mut lab = lab();
        lab.shim.write_all(b"before\n").await.unwrap();
        while contents(&lab).is_empty() {
            tokio::task::yield_now().await;
        }
        let mut clients = [lab.copier.attach(0).unwrap(), lab.copier.attach(0).unwrap()];
        assert!(lab.copier.attach(1).is_none());
        lab.shim.write_all(b"hello\ntail").await.unwrap();
        drop(std::mem::replace(&mut lab.shim, pipe::pipe().unwrap().0));
        lab.copier.ended().await;
        for client in &mut clients {
            let mut all = Vec::new();
            while let Some(part) = client.recv().await {
                all.extend_from_slice(&part);
            }
            // The first line may still be on its way when they come.
            assert!(all.ends_with(b"hello\ntail"), "{all:?}");
        }
        assert_eq!(
            contents(&lab),
            ["stdout F before", "stdout F hello", "stdout P tail"]
        );
        assert!(lab.copier.attach(0).is_none());
        let count = |count: &std::sync::atomic::AtomicU64| count.load(Relaxed);
        let logs = &lab.logs;
        assert_eq!(
            (count(&logs.input_entries), count(&logs.input_bytes)),
            (3, 17)
        );
        assert_eq!(
            (count(&logs.output_entries), count(&logs.split_entries)),
            (3, 0)
        );
        assert!(count(&logs.output_bytes) > 17);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_left() {
        let mut lab = lab();
        let stuck = lab.copier.attach(0).unwrap();
        for n in 0..=AHEAD {
            let before = contents(&lab).len();
            lab.shim
                .write_all(format!("{n}\n").as_bytes())
                .await
                .unwrap();
            while contents(&lab).len() == before {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        tokio::time::sleep(PATIENCE * 2).await;
        lab.shim.write_all(b"on\n").await.unwrap();
        while contents(&lab).len() < AHEAD + 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(stuck.len(), AHEAD);
        assert!(stuck.is_closed() || stuck.sender_strong_count() == 0);
    }

    #[tokio::test]
    async fn dropping_it_ends_the_copying() {
        let lab = lab();
        let mut client = lab.copier.attach(0).unwrap();
        drop(lab.copier);
        assert!(client.recv().await.is_none());
        lab.tasks.drain(Duration::from_secs(5)).await;
    }
}
