//! When to collect (plugin `io.containerd.gc.v1.scheduler`).
//!
//! A collection runs when asked for, when `deletion_threshold` deletions have happened, or at the end of the pause that
//! follows each collection if something was deleted or `mutation_threshold` changes have happened meanwhile. The pause
//! is so long that collections take at most `pause_threshold` of the time. After a pause without work the scheduler
//! sleeps until something happens; the next deletion then starts a collection after `schedule_delay`.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use corten_core::gc::{Collector, Scheduler, Stats};
use corten_core::tasks_set::TaskSet;
use corten_core::{Error, Kind, Result, duration, kinds};
use corten_registry::Registration;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until};
use tracing::{error, trace};

use crate::db::Callback;

/// The config of the plugin, in containerd's words.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Largest share of time that collections may take; at most 0.5.
    pub pause_threshold: f64,
    /// Deletions that start a collection at once; 0 for none.
    pub deletion_threshold: i64,
    /// Changes that make the next scheduled collection run; 0 for none.
    pub mutation_threshold: i64,
    /// From a trigger to its collection.
    #[serde(with = "duration")]
    pub schedule_delay: Duration,
    /// From the start of the daemon to the first collection; 0 for none.
    #[serde(with = "duration")]
    pub startup_delay: Duration,
}

/// Shorter collections count as this long, so that they do not follow each other at once.
const SHORTEST: Duration = Duration::from_millis(5);

/// The scheduler. Dropping it ends its task.
struct Running {
    state: Arc<State>,
    /// Owns the task; never drained, because a collection can be cut at any await.
    _tasks: TaskSet,
}

/// What happened since the last collection began.
#[derive(Default)]
struct State {
    wake: Notify,
    pending: Mutex<Pending>,
}

#[derive(Default)]
struct Pending {
    deletions: i64,
    mutations: i64,
    waiters: Vec<oneshot::Sender<Result<Stats>>>,
}

/// Times of one scheduler.
struct Clock {
    config: Config,
    last: Option<Instant>,
    next: Option<Instant>,
    interval: Duration,
    spent: Duration,
    collections: u32,
}

// === impl Config ===

impl Default for Config {
    fn default() -> Self {
        Self {
            pause_threshold: 0.02,
            deletion_threshold: 0,
            mutation_threshold: 100,
            schedule_delay: Duration::ZERO,
            startup_delay: Duration::from_millis(100),
        }
    }
}

// === impl Running ===

#[async_trait]
impl Scheduler for Running {
    async fn schedule_and_wait(&self) -> Result<Stats> {
        let (reply, done) = oneshot::channel();
        self.state.pending.lock().waiters.push(reply);
        self.state.wake.notify_one();
        done.await
            .map_err(|_| Error::new(Kind::Unavailable, "gc scheduler is stopped"))?
    }
}

// === impl State ===

impl State {
    fn mutated(&self, deleted: bool) {
        let mut pending = self.pending.lock();
        pending.mutations += 1;
        pending.deletions += i64::from(deleted);
        drop(pending);
        self.wake.notify_one();
    }
}

// === impl Clock ===

impl Clock {
    fn new(mut config: Config) -> Self {
        config.pause_threshold = config.pause_threshold.clamp(0.0, 0.5);
        let next = (!config.startup_delay.is_zero()).then(|| Instant::now() + config.startup_delay);
        Self {
            config,
            last: None,
            next,
            interval: Duration::from_secs(1),
            spent: Duration::ZERO,
            collections: 0,
        }
    }

    async fn tick(&self) {
        match self.next {
            Some(at) => sleep_until(at).await,
            None => std::future::pending().await,
        }
    }

    /// Something happened: perhaps bring the next collection forward.
    fn happened(&mut self, pending: &Pending) {
        let c = &self.config;
        let due = !pending.waiters.is_empty()
            || (c.deletion_threshold > 0 && pending.deletions >= c.deletion_threshold)
            || (self.next.is_none() && self.worth_it(pending));
        let soon = Instant::now() + c.schedule_delay;
        if due && self.next.is_none_or(|next| next > soon) {
            self.next = Some(soon);
        }
    }

    /// Whether a scheduled collection has anything to do.
    fn worth_it(&self, pending: &Pending) -> bool {
        let c = &self.config;
        (pending.deletions > 0 && (self.next.is_some() || c.deletion_threshold <= 0))
            || (c.mutation_threshold > 0 && pending.mutations >= c.mutation_threshold)
    }

    fn collected(&mut self, stats: &Stats) {
        self.spent += stats.elapsed;
        self.collections += 1;
        if self.config.pause_threshold > 0.0 {
            let average = (self.spent / self.collections).max(SHORTEST);
            self.interval = average.mul_f64(1.0 / self.config.pause_threshold - 1.0);
        }
        let now = Instant::now();
        self.last = Some(now);
        self.next = Some(now + self.interval);
    }

    fn failed(&mut self) {
        let now = Instant::now();
        let delay = match (self.last, self.next) {
            (Some(last), Some(next)) => next.duration_since(last) + Duration::from_secs(1),
            _ => self.config.schedule_delay,
        };
        self.last = Some(now);
        self.next = Some(now + delay);
    }
}

/// Starts the scheduler of `collector`; the caller reports mutations through the returned callback.
pub(crate) fn start(
    collector: Arc<dyn Collector>,
    config: Config,
) -> (Arc<dyn Scheduler>, Callback) {
    let state = Arc::new(State::default());
    let tasks = TaskSet::new();
    tasks.spawn(
        "gc scheduler",
        run(state.clone(), collector, Clock::new(config)),
    );
    let reporter = state.clone();
    (
        Arc::new(Running {
            state,
            _tasks: tasks,
        }),
        Box::new(move |deleted| reporter.mutated(deleted)),
    )
}

async fn run(state: Arc<State>, collector: Arc<dyn Collector>, mut clock: Clock) {
    loop {
        // Both are cancel-safe: a notification that is not consumed stays, and the tick is computed anew.
        tokio::select! {
            () = state.wake.notified() => {
                clock.happened(&state.pending.lock());
                continue;
            }
            () = clock.tick() => {
                let pending = state.pending.lock();
                if clock.last.is_some() && pending.waiters.is_empty() && !clock.worth_it(&pending) {
                    clock.next = None;
                    continue;
                }
            }
        }
        // Taken before it runs: what happens meanwhile belongs to the next one.
        let taken = std::mem::take(&mut *state.pending.lock());
        match collector.collect().await {
            Ok(stats) => {
                trace!(elapsed = ?stats.elapsed, removed = stats.removed, "garbage collected");
                clock.collected(&stats);
                for waiter in taken.waiters {
                    // Who asked may have gone away.
                    let _ = waiter.send(Ok(stats.clone()));
                }
            }
            Err(e) => {
                error!(error = %e, "garbage collection failed");
                clock.failed();
                let mut pending = state.pending.lock();
                pending.deletions += taken.deletions;
                pending.mutations += taken.mutations;
                for waiter in taken.waiters {
                    let _ = waiter.send(Err(Error::new(e.kind(), "gc failed")));
                }
            }
        }
        if !state.pending.lock().waiters.is_empty() {
            state.wake.notify_one();
        }
    }
}

/// Plugin `scheduler`.
pub fn registration() -> Registration {
    Registration::new::<kinds::Gc>("scheduler")
        .requires::<kinds::Metadata>()
        .config::<Config>()
        .init(|cx, config| {
            Box::pin(async move {
                let metadata = cx.single::<kinds::Metadata>()?;
                cx.export(
                    "PauseThreshold",
                    config.pause_threshold.clamp(0.0, 0.5).to_string(),
                );
                cx.export("DeletionThreshold", config.deletion_threshold.to_string());
                cx.export("MutationThreshold", config.mutation_threshold.to_string());
                cx.export("ScheduleDelay", duration::text(config.schedule_delay));
                let (scheduler, callback) = start(metadata.collector(), config);
                metadata.on_mutation(callback);
                Ok(scheduler)
            })
        })
}

#[cfg(test)]
mod tests;
