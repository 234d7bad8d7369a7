//! Figures of NRI for Prometheus, under containerd's names (2.4 internal/nri/metrics.go): what plugins were asked, how long
//! they took, how they failed, and what they wanted of other containers.
//!
//! Labels are plugins and operations. Who may connect is root, but names are a plugin's own: of those that come after
//! [`MAX_PLUGINS`] nothing is told.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use corten_core::kinds;
use corten_core::metrics::{Source, escape, family};
use corten_registry::Registration;
use parking_lot::Mutex;

/// Names of plugins that are kept.
const MAX_PLUGINS: usize = 256;
/// Upper bounds in seconds: the defaults of Prometheus' clients.
const SECONDS: [f64; 11] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// The figures.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    active: AtomicUsize,
    /// By plugin, then by operation.
    plugins: Mutex<BTreeMap<String, BTreeMap<String, Calls>>>,
}

/// One operation of one plugin.
#[derive(Debug, Default)]
struct Calls {
    /// By error; empty for none.
    outcomes: BTreeMap<String, u64>,
    updates: usize,
    evictions: usize,
    /// By bound, not cumulative, and those above all.
    times: [u64; SECONDS.len() + 1],
    sum: f64,
}

// === impl Metrics ===

impl Metrics {
    pub(crate) fn set_active(&self, count: usize) {
        self.active.store(count, Ordering::Relaxed);
    }

    /// A plugin was asked and has answered; `error` is empty if it did what it was asked for.
    pub(crate) fn called(&self, plugin: &str, operation: &str, took: Duration, error: &str) {
        self.with(plugin, operation, |calls| {
            *calls.outcomes.entry(error.to_owned()).or_default() += 1;
            let seconds = took.as_secs_f64();
            let bucket = SECONDS.iter().position(|bound| seconds <= *bound);
            calls.times[bucket.unwrap_or(SECONDS.len())] += 1;
            calls.sum += seconds;
        });
    }

    /// Its answer wants something of other containers.
    pub(crate) fn wished(&self, plugin: &str, operation: &str, updates: usize, evictions: usize) {
        if updates + evictions > 0 {
            self.with(plugin, operation, |calls| {
                calls.updates += updates;
                calls.evictions += evictions;
            });
        }
    }

    fn with(&self, plugin: &str, operation: &str, change: impl FnOnce(&mut Calls)) {
        let mut plugins = self.plugins.lock();
        if plugins.len() >= MAX_PLUGINS && !plugins.contains_key(plugin) {
            return;
        }
        let operations = plugins.entry(plugin.to_owned()).or_default();
        change(operations.entry(operation.to_owned()).or_default());
    }

    fn encode(&self) -> String {
        let mut out = String::new();
        let name = "containerd_nri_active_plugins_total";
        family(
            &mut out,
            name,
            "gauge",
            "Number of currently active NRI plugins",
        );
        let _ = writeln!(out, "{name} {}", self.active.load(Ordering::Relaxed));
        let plugins = self.plugins.lock();
        let mut all: Vec<(String, &Calls)> = Vec::new();
        for (plugin, operations) in plugins.iter() {
            for (operation, calls) in operations {
                let (plugin, operation) = (escape(plugin), escape(operation));
                let labels = format!("plugin=\"{plugin}\",operation=\"{operation}\"");
                all.push((labels, calls));
            }
        }
        if plugins.is_empty() {
            return out;
        }
        let name = "containerd_nri_plugin_invocations_total";
        family(
            &mut out,
            name,
            "counter",
            "Number of NRI plugin invocations",
        );
        for (labels, calls) in &all {
            for (error, count) in &calls.outcomes {
                let status = if error.is_empty() { "success" } else { "error" };
                let _ = writeln!(
                    out,
                    "{name}{{{labels},status=\"{status}\",error=\"{error}\"}} {count}"
                );
            }
        }
        let name = "containerd_nri_plugin_adjustments_total";
        family(
            &mut out,
            name,
            "counter",
            "Number of adjustment operations from plugins",
        );
        for (labels, calls) in &all {
            for (kind, count) in [("update", calls.updates), ("evict", calls.evictions)] {
                if count > 0 {
                    let _ = writeln!(out, "{name}{{{labels},type=\"{kind}\"}} {count}");
                }
            }
        }
        let name = "containerd_nri_plugin_latency_seconds";
        family(&mut out, name, "histogram", "NRI plugin operation latency");
        for (labels, calls) in &all {
            let mut total = 0;
            for (bound, count) in SECONDS.iter().zip(calls.times) {
                total += count;
                let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {total}");
            }
            total += calls.times[SECONDS.len()];
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {total}");
            let _ = writeln!(out, "{name}_sum{{{labels}}} {}", calls.sum);
            let _ = writeln!(out, "{name}_count{{{labels}}} {total}");
        }
        out
    }
}

#[async_trait]
impl Source for Metrics {
    async fn collect(&self) -> String {
        self.encode()
    }
}

/// io.containerd.metrics.v1 "nri".
pub(crate) fn registration(metrics: Arc<Metrics>) -> Registration {
    Registration::new::<kinds::Metrics>("nri")
        .init_plain(|_| Box::pin(async move { Ok(metrics as Arc<dyn Source>) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_and_wishes_are_counted_by_plugin_and_operation() {
        let metrics = Metrics::default();
        assert!(
            metrics
                .encode()
                .ends_with("containerd_nri_active_plugins_total 0\n")
        );
        metrics.set_active(2);
        let took = Duration::from_millis(20);
        metrics.called("10-a", "CreateContainer", took, "");
        metrics.called(
            "10-a",
            "CreateContainer",
            Duration::from_secs(11),
            "deadline_exceeded",
        );
        metrics.called("20-b", "Synchronize", took, "");
        metrics.wished("10-a", "CreateContainer", 2, 1);
        metrics.wished("20-b", "Synchronize", 0, 0);
        let text = metrics.encode();
        let labels = "plugin=\"10-a\",operation=\"CreateContainer\"";
        for line in [
            "active_plugins_total 2".to_owned(),
            format!("plugin_invocations_total{{{labels},status=\"success\",error=\"\"}} 1"),
            format!(
                "plugin_invocations_total{{{labels},status=\"error\",error=\"deadline_exceeded\"}} 1"
            ),
            format!("plugin_adjustments_total{{{labels},type=\"update\"}} 2"),
            format!("plugin_adjustments_total{{{labels},type=\"evict\"}} 1"),
            format!("plugin_latency_seconds_bucket{{{labels},le=\"0.01\"}} 0"),
            format!("plugin_latency_seconds_bucket{{{labels},le=\"10\"}} 1"),
            format!("plugin_latency_seconds_bucket{{{labels},le=\"+Inf\"}} 2"),
            format!("plugin_latency_seconds_count{{{labels}}} 2"),
        ] {
            assert!(
                text.contains(&format!("\ncontainerd_nri_{line}\n")),
                "{line}\n{text}"
            );
        }
        assert!(
            !text.contains("adjustments_total{plugin=\"20-b\""),
            "{text}"
        );
    }

    #[test]
    fn names_without_end_are_not_kept() {
        let metrics = Metrics::default();
        for n in 0..=MAX_PLUGINS {
            metrics.called(&n.to_string(), "Synchronize", Duration::ZERO, "");
        }
        metrics.called("0", "Synchronize", Duration::ZERO, "");
        let text = metrics.encode();
        assert_eq!(text.matches("status=\"success\"").count(), MAX_PLUGINS);
        assert!(
            text.contains(
                "plugin=\"0\",operation=\"Synchronize\",status=\"success\",error=\"\"} 2\n"
            )
        );
    }
}
