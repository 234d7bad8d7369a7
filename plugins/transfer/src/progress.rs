//! Progress of a transfer as clients draw it: one node for each blob, below the document that lists it.
//!
//! Event names are containerd's; `ctr` and `nerdctl` switch on them. Jobs are updated in memory by whoever works on
//! them; a ticker sends what changed, so that a slow client never slows the work.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use corten_core::protos::containerd::types::transfer::Progress;
use corten_core::tasks_set::TaskSet;
use corten_core::transfer::ProgressSink;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::oci::Desc;

const TICK: Duration = Duration::from_millis(300);
/// Longest wait for the last events to be taken.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// Says something about the whole transfer; a client that left is no reason to fail.
pub(crate) async fn say(sink: Option<&ProgressSink>, event: impl Into<String>) {
    say_of(sink, event, "", None).await;
}

/// Says something about the image `name`.
pub(crate) async fn say_of(
    sink: Option<&ProgressSink>,
    event: impl Into<String>,
    name: &str,
    desc: Option<&Desc>,
) {
    let Some(sink) = sink else { return };
    let event = Progress {
        event: event.into(),
        name: name.to_owned(),
        desc: desc.map(Desc::proto),
        ..Progress::default()
    };
    // Only a closed channel fails: nobody listens any more.
    let _ = sink.send(event).await;
}

/// Tracks the blobs of one transfer. Clones share the jobs.
#[derive(Clone)]
pub struct Tracker {
    inner: Arc<Inner>,
}

struct Inner {
    root: String,
    verb: &'static str,
    state: Mutex<State>,
    wake: Notify,
    tasks: TaskSet,
}

#[derive(Default)]
struct State {
    jobs: Vec<Job>,
    by_digest: HashMap<String, usize>,
    parents: BTreeMap<String, Vec<String>>,
    closing: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Waiting,
    Moving,
    Exists,
    Complete,
    Extracting,
    Extracted,
}

struct Job {
    name: String,
    parents: Vec<String>,
    desc: Desc,
    step: Step,
    offset: i64,
    // Steps to tell, in order; progress within a step overwrites.
    news: Vec<(Step, i64)>,
}

impl std::fmt::Debug for Tracker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Tracker({}, {} jobs)",
            self.inner.root,
            self.inner.state.lock().jobs.len()
        )
    }
}

impl Tracker {
    /// Starts to report to `sink`; blobs without a known parent hang below `root`. `verb` is what moving a blob is
    /// called: downloading, uploading.
    pub fn start(sink: ProgressSink, root: &str, verb: &'static str) -> Self {
        let inner = Arc::new(Inner {
            root: root.to_owned(),
            verb,
            state: Mutex::default(),
            wake: Notify::new(),
            tasks: TaskSet::new(),
        });
        let weak = Arc::downgrade(&inner);
        inner.tasks.spawn("transfer progress", async move {
            loop {
                let (events, closing) = match weak.upgrade() {
                    Some(inner) => inner.news(),
                    None => return,
                };
                for event in events {
                    if sink.send(event).await.is_err() {
                        return;
                    }
                }
                if closing {
                    return;
                }
                let Some(inner) = weak.upgrade() else { return };
                let _ = tokio::time::timeout(TICK, inner.wake.notified()).await;
            }
        });
        Self { inner }
    }

    /// Sends what is left and stops. Something of a blob is always sent: clients draw then, and would else not show
    /// what was said of the whole transfer last.
    pub async fn finish(self) {
        self.inner.state.lock().closing = true;
        self.inner.wake.notify_one();
        self.inner.tasks.drain(LAST_WORDS).await;
    }

    /// A blob that will be worked on.
    pub fn add(&self, desc: &Desc) {
        self.inner.job(desc, |_| {});
    }

    /// The children that `parent` lists.
    pub fn add_children(&self, parent: &Desc, children: &[Desc]) {
        let mut state = self.inner.state.lock();
        for child in children {
            let parents = state.parents.entry(child.digest.clone()).or_default();
            let name = parent.ref_key();
            if !parents.contains(&name) {
                parents.push(name);
            }
        }
    }

    /// Was there already.
    pub fn exists(&self, desc: &Desc) {
        self.inner.job(desc, |j| j.tell(Step::Exists, desc.size));
    }

    /// `offset` bytes are moved.
    pub fn moved(&self, desc: &Desc, offset: u64) {
        let offset = i64::try_from(offset).unwrap_or(i64::MAX);
        self.inner.job(desc, |j| j.tell(Step::Moving, offset));
    }

    /// All bytes are moved.
    pub fn complete(&self, desc: &Desc) {
        self.inner.job(desc, |j| {
            if !matches!(j.step, Step::Exists | Step::Extracting | Step::Extracted) {
                j.tell(Step::Complete, desc.size);
            }
        });
    }

    /// The layer is being applied.
    pub fn extracting(&self, desc: &Desc) {
        self.inner.job(desc, |j| j.tell(Step::Extracting, 0));
    }

    /// The layer is applied.
    pub fn extracted(&self, desc: &Desc) {
        self.inner.job(desc, |j| j.tell(Step::Extracted, desc.size));
    }
}

impl Inner {
    fn job(&self, desc: &Desc, change: impl FnOnce(&mut Job)) {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let at = match state.by_digest.get(&desc.digest) {
            Some(at) => *at,
            None => {
                let parents = state.parents.get(&desc.digest).cloned();
                state.jobs.push(Job {
                    name: desc.ref_key(),
                    parents: parents.unwrap_or_else(|| vec![self.root.clone()]),
                    desc: desc.clone(),
                    step: Step::Waiting,
                    offset: 0,
                    news: vec![(Step::Waiting, 0)],
                });
                state
                    .by_digest
                    .insert(desc.digest.clone(), state.jobs.len() - 1);
                state.jobs.len() - 1
            }
        };
        change(&mut state.jobs[at]);
    }

    fn news(&self) -> (Vec<Progress>, bool) {
        let mut state = self.state.lock();
        let mut out = Vec::new();
        for job in &mut state.jobs {
            for (step, offset) in std::mem::take(&mut job.news) {
                out.push(self.event(job, step, offset));
            }
        }
        if state.closing && out.is_empty() {
            out.extend(
                state
                    .jobs
                    .last()
                    .map(|job| self.event(job, job.step, job.offset)),
            );
        }
        (out, state.closing)
    }

    fn event(&self, job: &Job, step: Step, offset: i64) -> Progress {
        let event = match step {
            Step::Waiting => "waiting",
            Step::Moving => self.verb,
            Step::Exists => "already exists",
            Step::Complete => "complete",
            Step::Extracting => "extracting",
            Step::Extracted => "extracted",
        };
        Progress {
            event: event.to_owned(),
            name: job.name.clone(),
            parents: job.parents.clone(),
            progress: offset,
            total: job.desc.size,
            desc: Some(job.desc.proto()),
        }
    }
}

impl Job {
    fn tell(&mut self, step: Step, offset: i64) {
        if (self.step, self.offset) == (step, offset) {
            return;
        }
        (self.step, self.offset) = (step, offset);
        match self.news.last_mut() {
            Some(last) if last.0 == step => last.1 = offset,
            _ => self.news.push((step, offset)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn events_come_in_order_and_all_before_the_end() {
        let (tx, mut rx) = tokio::sync::mpsc::channel(64);
        let t = Tracker::start(tx, "docker.io/library/a:b", "downloading");
        let parent = Desc {
            media_type: crate::oci::OCI_INDEX.into(),
            digest: "p".into(),
            ..Desc::default()
        };
        let child = Desc {
            digest: "c".into(),
            size: 9,
            ..Desc::default()
        };
        t.add(&parent);
        t.add_children(&parent, std::slice::from_ref(&child));
        t.moved(&child, 1);
        t.moved(&child, 5);
        t.complete(&child);
        t.exists(&parent);
        t.finish().await;
        let mut seen = Vec::new();
        while let Some(p) = rx.recv().await {
            seen.push((p.name, p.event, p.progress, p.parents.concat()));
        }
        let of = |name: &str| {
            seen.iter()
                .filter(|s| s.0 == name)
                .map(|s| (s.1.as_str(), s.2, s.3.as_str()))
                .collect::<Vec<_>>()
        };
        let root = "docker.io/library/a:b";
        assert_eq!(
            of("index-p"),
            [("waiting", 0, root), ("already exists", 0, root)]
        );
        assert_eq!(
            of("unknown-c"),
            [
                ("waiting", 0, "index-p"),
                ("downloading", 5, "index-p"),
                ("complete", 9, "index-p")
            ]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_event_is_always_of_a_blob() {
        let (tx, mut rx) = tokio::sync::mpsc::channel(64);
        let t = Tracker::start(tx.clone(), "root", "downloading");
        let blob = Desc {
            digest: "b".into(),
            size: 9,
            ..Desc::default()
        };
        t.add(&blob);
        t.extracted(&blob);
        tokio::time::sleep(TICK * 3).await;
        say(Some(&tx), "Completed").await;
        drop(tx);
        t.finish().await;
        let mut seen = Vec::new();
        while let Some(p) = rx.recv().await {
            seen.push(p.event);
        }
        assert_eq!(seen, ["waiting", "extracted", "Completed", "extracted"]);
    }
}
