//! io.containerd.monitor.task.v1 "cgroups": what tasks use, for Prometheus.
//!
//! The shims are asked at every scrape, all at once, each for as long as `io.containerd.timeout.metrics.shimstats`;
//! one that does not answer is left out of that scrape. The version of the figures is that of the statistics that a
//! shim sends. Shims tell of out-of-memory kills by themselves; under cgroup version 1, where the kernel keeps no
//! count for them, those events are counted here.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use corten_core::events::Events;
use corten_core::filter::Filter;
use corten_core::metrics::{Source, family};
use corten_core::namespaces::Namespaces;
use corten_core::runtime::{Task as RunningTask, Tasks};
use corten_core::tasks_set::TaskSet;
use corten_core::{Any, Kind, Namespace, kinds};
use corten_protos::any;
use corten_protos::containerd::events::TaskOom;
use corten_protos::io::containerd::cgroups::{v1::Metrics as V1, v2::Metrics as V2};
use corten_registry::Registration;
use futures::future::join_all;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tracing::{error, warn};

use crate::figures::{Task, encode, sample};

/// `plugins."io.containerd.monitor.task.v1.cgroups"`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Config {
    /// Tell Prometheus nothing.
    no_prometheus: bool,
}

/// How often each task was hit, by namespace and id.
type Kills = Arc<Mutex<HashMap<(String, String), u64>>>;

struct Monitor {
    namespaces: Arc<dyn Namespaces>,
    tasks: Arc<dyn Tasks>,
    patience: Duration,
    kills: Kills,
    /// Counts events for as long as the monitor lives.
    _background: TaskSet,
}

/// A monitor that was told to say nothing.
struct Silent;

#[async_trait]
impl Source for Silent {
    async fn collect(&self) -> String {
        String::new()
    }
}

// === impl Monitor ===

impl Monitor {
    async fn all(&self) -> Vec<Arc<dyn RunningTask>> {
        let names = match self.namespaces.list().await {
            Ok(names) => names,
            Err(error) => {
                error!(%error, "list namespaces");
                return Vec::new();
            }
        };
        let mut all = Vec::new();
        for (name, _) in names {
            let Ok(ns) = Namespace::new(name) else {
                continue;
            };
            all.extend(self.tasks.list(&ns).await.unwrap_or_default());
        }
        all
    }

    async fn stats(&self, task: &Arc<dyn RunningTask>) -> Option<Any> {
        match tokio::time::timeout(self.patience, task.stats()).await {
            Ok(Ok(stats)) => stats,
            // It ended meanwhile.
            Ok(Err(e)) if e.kind() == Kind::NotFound => None,
            Ok(Err(error)) => {
                warn!(container.id = task.id(), %error, "stat task");
                None
            }
            Err(_) => {
                warn!(container.id = task.id(), "stat task: no answer in time");
                None
            }
        }
    }

    fn encode_kills(&self, out: &mut String, tasks: &[Task<V1>]) {
        let kills = self.kills.lock();
        let name = "container_memory_oom_total";
        let help = "Out-of-memory events that the shim of the container told of";
        for (i, t) in tasks.iter().enumerate() {
            if i == 0 {
                family(out, name, "counter", help);
            }
            let key = (t.namespace.clone(), t.id.clone());
            let count = kills.get(&key).copied().unwrap_or(0);
            sample(out, name, &t.namespace, &t.id, &[], &[], count);
        }
    }
}

#[async_trait]
impl Source for Monitor {
    async fn collect(&self) -> String {
        let tasks = self.all().await;
        let alive: Vec<_> = tasks
            .iter()
            .map(|t| (t.namespace().to_string(), t.id().to_owned()))
            .collect();
        self.kills.lock().retain(|key, _| alive.contains(key));
        let (mut v1, mut v2) = (Vec::new(), Vec::new());
        let stats = join_all(tasks.iter().map(|task| self.stats(task))).await;
        for (stats, task) in stats.into_iter().zip(&tasks) {
            let Some(stats) = stats else { continue };
            let (namespace, id) = (task.namespace().to_string(), task.id().to_owned());
            if let Ok(stats) = any::unpack::<V2>(&stats) {
                v2.push(Task {
                    namespace,
                    id,
                    stats,
                });
            } else if let Ok(stats) = any::unpack::<V1>(&stats) {
                v1.push(Task {
                    namespace,
                    id,
                    stats,
                });
            }
        }
        let mut out = String::new();
        encode(&mut out, "v1", &crate::v1::figures(), &v1);
        self.encode_kills(&mut out, &v1);
        encode(&mut out, "v2", &crate::v2::figures(), &v2);
        out
    }
}

/// Counts out-of-memory events; ends with the exchange.
async fn count(events: Arc<dyn Events>, kills: Kills) {
    let Ok(filter) = Filter::parse(&["topic==/tasks/oom"]) else {
        return;
    };
    let mut oom = events.subscribe(filter);
    while let Some(envelope) = oom.recv().await {
        let event = envelope.event.unwrap_or_default();
        if let Ok(event) = any::unpack::<TaskOom>(&event) {
            let key = (envelope.namespace, event.container_id);
            *kills.lock().entry(key).or_default() += 1;
        }
    }
}

/// The plugin.
pub fn registration() -> Registration {
    Registration::new::<kinds::TaskMonitor>("cgroups")
        .requires::<kinds::Event>()
        .requires::<kinds::Metadata>()
        .requires::<kinds::Runtime>()
        .config::<Config>()
        .init(|cx, config: Config| {
            Box::pin(async move {
                cx.host_platform();
                if config.no_prometheus {
                    return Ok(Arc::new(Silent) as Arc<dyn Source>);
                }
                let patience = cx
                    .properties()
                    .timeouts
                    .get("io.containerd.timeout.metrics.shimstats")
                    .copied();
                let (kills, background) = (Kills::default(), TaskSet::new());
                let events = cx.single::<kinds::Event>()?;
                background.spawn("count oom events", count(events, kills.clone()));
                Ok(Arc::new(Monitor {
                    namespaces: cx.single::<kinds::Metadata>()?.namespaces(),
                    tasks: cx.by_id::<kinds::Runtime>("task")?,
                    patience: patience.unwrap_or(Duration::from_secs(2)),
                    kills,
                    _background: background,
                }) as Arc<dyn Source>)
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task<M>(stats: M) -> Task<M> {
        Task {
            namespace: "n\"s".into(),
            id: "c".into(),
            stats,
        }
    }

    #[test]
    fn figures_have_containerds_names_and_absent_ones_no_family() {
        let mut stats = V2::default();
        stats.memory.get_or_insert_default().usage = 4096;
        stats.io.get_or_insert_default().usage.push(
            corten_protos::io::containerd::cgroups::v2::IoEntry {
                major: 8,
                minor: 1,
                rbytes: 7,
                ..Default::default()
            },
        );
        let mut out = String::new();
        encode(&mut out, "v2", &crate::v2::figures(), &[task(stats)]);
        let id = "container_id=\"c\",namespace=\"n\\\"s\"";
        for line in [
            format!("container_memory_usage_bytes{{{id}}} 4096"),
            format!("container_io_rbytes_bytes{{{id},major=\"8\",minor=\"1\"}} 7"),
            "# TYPE container_memory_usage_bytes gauge".into(),
        ] {
            assert!(out.lines().any(|l| l == line), "{line} is not in\n{out}");
        }
        assert!(
            !out.contains("container_pids") && !out.contains("container_cpu"),
            "{out}"
        );

        let mut stats = V1::default();
        let usage = stats
            .cpu
            .get_or_insert_default()
            .usage
            .get_or_insert_default();
        (usage.total, usage.per_cpu) = (9, vec![4, 5]);
        let mut out = String::new();
        encode(&mut out, "v1", &crate::v1::figures(), &[task(stats)]);
        for line in [
            format!("container_cpu_total_nanoseconds{{{id}}} 9"),
            format!("container_per_cpu_nanoseconds{{{id},cpu=\"1\"}} 5"),
        ] {
            assert!(out.lines().any(|l| l == line), "{line} is not in\n{out}");
        }
    }
}
