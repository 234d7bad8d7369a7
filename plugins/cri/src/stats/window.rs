//! CPU use now: the rate between two samples of CPU time.
//!
//! While somebody asks for stats, everything is sampled each period (1 s). When nobody did for the retention (2 min), it
//! is sampled twice per retention only: enough for the next one who asks to hear a rate at once, and a node whose
//! kubelet does not ask pays next to nothing. A rate is told no longer than the retention.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use corten_core::protos::time::{now, unix_nanos};
use corten_core::tasks_set::TaskSet;
use corten_protos::runtime::v1::ContainerState;
use futures::StreamExt;
use parking_lot::Mutex;

use super::WIDTH;
use super::cgroup::Cgroup;
use crate::Cri;
use crate::store::pod::State;

/// Defaults (containerd: stats_collect_period, stats_retention_period).
const PERIOD: Duration = Duration::from_secs(1);
const RETENTION: Duration = Duration::from_secs(120);
/// No configuration asks more often.
const SHORTEST: Duration = Duration::from_millis(10);

/// Samples of CPU time by id of pod or container.
#[derive(Debug)]
pub struct Collector {
    period: Duration,
    retention: Duration,
    windows: Mutex<Windows>,
    tasks: TaskSet,
}

#[derive(Debug, Default)]
struct Windows {
    by_id: HashMap<String, Window>,
    /// Somebody wanted stats; nanoseconds since 1970.
    asked_at: i64,
}

#[derive(Debug, Clone, Copy)]
struct Window {
    /// Nanoseconds since 1970.
    at: i64,
    /// Nanoseconds of CPU time.
    usage: u64,
    /// Nanoseconds of CPU time per second.
    rate: Option<u64>,
}

impl Window {
    // None: too soon after the last sample to say anything new.
    fn next(self, at: i64, usage: u64, shortest: i64) -> Option<Self> {
        let elapsed = at.saturating_sub(self.at);
        if elapsed < shortest.max(1) {
            return None;
        }
        // Goes backwards when a container was replaced: then this is the first sample.
        let rate = usage.checked_sub(self.usage).map(|used| {
            let rate = u128::from(used) * 1_000_000_000 / u128::from(elapsed.unsigned_abs());
            u64::try_from(rate).unwrap_or(u64::MAX)
        });
        Some(Self { at, usage, rate })
    }
}

// === impl Collector ===

impl Collector {
    /// Samples each `period`; tells no rate older than `retention`. Zero is the default of either.
    pub fn new(period: Duration, retention: Duration) -> Self {
        let or = |d: Duration, default| if d.is_zero() { default } else { d };
        Self {
            period: or(period, PERIOD).max(SHORTEST),
            retention: or(retention, RETENTION),
            windows: Mutex::default(),
            tasks: TaskSet::new(),
        }
    }

    pub(super) fn tasks(&self) -> &TaskSet {
        &self.tasks
    }

    /// The rate of `id`, whose CPU time is `usage` at `at` (nanoseconds since 1970), for somebody who asked.
    pub fn rate(&self, id: &str, at: i64, usage: u64) -> Option<u64> {
        self.windows.lock().asked_at = unix_nanos(&now());
        self.sample(id, at, usage)
    }

    fn sample(&self, id: &str, at: i64, usage: u64) -> Option<u64> {
        let shortest = nanos(self.period) / 2;
        let retention = nanos(self.retention);
        let mut windows = self.windows.lock();
        let first = Window {
            at,
            usage,
            rate: None,
        };
        let Some(last) = windows.by_id.get_mut(id) else {
            windows.by_id.insert(id.to_owned(), first);
            return None;
        };
        if at.saturating_sub(last.at) > retention {
            *last = first;
        } else if let Some(next) = last.next(at, usage, shortest) {
            *last = next;
        }
        last.rate
    }

    // Whether a sample of `id` is due at `at`.
    fn is_due(&self, id: &str, at: i64) -> bool {
        let windows = self.windows.lock();
        let retention = nanos(self.retention);
        let wanted = at.saturating_sub(windows.asked_at) <= retention;
        windows
            .by_id
            .get(id)
            .is_none_or(|w| wanted || at.saturating_sub(w.at) >= retention / 2)
    }

    fn keep_only(&self, ids: &HashSet<String>) {
        self.windows.lock().by_id.retain(|id, _| ids.contains(id));
    }
}

fn nanos(d: Duration) -> i64 {
    i64::try_from(d.as_nanos()).unwrap_or(i64::MAX)
}

impl Cri {
    /// Samples until the daemon ends.
    pub(super) async fn follow_cpu(&self) {
        let mut tick = tokio::time::interval(self.collector.period);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.sample_cpu().await;
        }
    }

    async fn sample_cpu(&self) {
        let collector = &self.collector;
        let at = unix_nanos(&now());
        let pods: Vec<_> = self.pods.list();
        let containers: Vec<_> = self.containers.list();
        let ids = pods.iter().map(|p| p.id.clone());
        let ids: HashSet<String> = ids.chain(containers.iter().map(|c| c.id.clone())).collect();
        collector.keep_only(&ids);
        let pods = pods
            .into_iter()
            .filter(|p| p.state() == State::Ready && collector.is_due(&p.id, at));
        futures::stream::iter(pods)
            .for_each_concurrent(WIDTH, |pod| async move {
                if let Ok((at, cgroup)) = self.pod_cgroup(&pod).await
                    && let Some(usage) = cgroup.cpu_time()
                {
                    collector.sample(&pod.id, at, usage);
                }
            })
            .await;
        let containers = containers.into_iter().filter(|c| {
            c.state() == ContainerState::ContainerRunning && collector.is_due(&c.id, at)
        });
        futures::stream::iter(containers)
            .for_each_concurrent(WIDTH, |container| async move {
                if let Ok((at, cgroup)) = self.container_cgroup(&container.id).await
                    && let Some(usage) = cgroup.cpu_time()
                {
                    collector.sample(&container.id, at, usage);
                }
            })
            .await;
    }

    pub(super) async fn container_cgroup(&self, id: &str) -> corten_core::Result<(i64, Cgroup)> {
        let task = self.tasks.get(&self.ns, id).await?;
        let stats = task.stats().await?;
        let missing = || corten_core::Error::not_found(format!("metrics of task {id}"));
        let cgroup = Cgroup::of(&stats.ok_or_else(missing)?)?;
        Ok((unix_nanos(&now()), cgroup))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: i64 = 1_000_000_000;

    fn collector() -> Collector {
        Collector::new(Duration::from_secs(1), Duration::from_secs(120))
    }

    #[test]
    fn a_rate_needs_two_samples_some_time_apart() {
        let c = collector();
        assert_eq!(c.rate("a", 10 * S, 100), None);
        // Too soon: what is known stays.
        assert_eq!(c.rate("a", 10 * S + S / 4, 900), None);
        assert_eq!(c.rate("a", 12 * S, 2 * S as u64 + 100), Some(S as u64));
        assert_eq!(c.rate("a", 12 * S + 1, 5 * S as u64), Some(S as u64));
        // Backwards: it was replaced.
        assert_eq!(c.rate("a", 14 * S, 7), None);
        assert_eq!(c.rate("a", 15 * S, 7 + S as u64 / 2), Some(S as u64 / 2));
        // Too old to compare with.
        assert_eq!(c.rate("a", 200 * S, 7 + 2 * S as u64), None);
        c.keep_only(&HashSet::new());
        assert!(c.windows.lock().by_id.is_empty());
    }

    #[test]
    fn nobody_asks_nobody_samples_much() {
        let c = collector();
        let t = unix_nanos(&now());
        assert!(c.is_due("a", t));
        c.sample("a", t, 0);
        assert!(!c.is_due("a", t + S));
        assert!(c.is_due("a", t + 60 * S));
        c.rate("a", t, 0);
        assert!(c.is_due("a", t + S));
    }
}
