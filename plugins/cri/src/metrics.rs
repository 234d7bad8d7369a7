//! Figures of the CRI for Prometheus, under containerd's names (2.4 internal/cri/server/metrics.go, server/images and
//! io): how long what succeeded took, what the network's plugins were asked, pulls, and the lines of logs that the daemon
//! writes. Our own shim writes its logs itself, and they are not counted.
//!
//! Names with their unit twice are no mistake of ours. Labels are runtimes, handlers and operations: a handful, so nobody
//! can make this grow.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use corten_core::metrics::{Source, escape, family};
use corten_core::{Result, kinds};
use corten_registry::Registration;
use parking_lot::Mutex;

/// Upper bounds in seconds, and the older ones of throughputs: the defaults of Prometheus' clients.
const SECONDS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];
/// Upper bounds of throughputs in MiB/s.
const MIBPS: &[f64] = &[
    0.1, 1.0, 10.0, 25.0, 75.0, 150.0, 300.0, 500.0, 1000.0, 2000.0, 4000.0,
];
const MIB: f64 = 1_048_576.0;

/// What is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timer {
    SandboxList,
    SandboxStream,
    SandboxCreateNetwork,
    SandboxDeleteNetwork,
    SandboxRuntimeCreate,
    SandboxRuntimeStop,
    SandboxRemove,
    ContainerList,
    ContainerStream,
    ContainerRemove,
    ContainerCreate,
    ContainerStop,
    ContainerStart,
    ContainerCheckpoint,
    NetworkOperation,
}

/// Timer, name, what it tells, its label if it has one.
const TIMERS: &[(Timer, &str, &str, &str)] = &[
    (Timer::SandboxList, "sandbox_list", "Listing sandboxes.", ""),
    (
        Timer::SandboxStream,
        "stream_sandbox_list",
        "Listing sandboxes in a stream.",
        "",
    ),
    (
        Timer::SandboxCreateNetwork,
        "sandbox_create_network",
        "Making a sandbox's network.",
        "",
    ),
    (
        Timer::SandboxDeleteNetwork,
        "sandbox_delete_network",
        "Taking down a sandbox's network.",
        "",
    ),
    (
        Timer::SandboxRuntimeCreate,
        "sandbox_runtime_create",
        "Making a sandbox in its runtime.",
        "runtime",
    ),
    (
        Timer::SandboxRuntimeStop,
        "sandbox_runtime_stop",
        "Stopping a sandbox and its containers.",
        "runtime",
    ),
    (
        Timer::SandboxRemove,
        "sandbox_remove",
        "Removing a sandbox.",
        "runtime",
    ),
    (
        Timer::ContainerList,
        "container_list",
        "Listing containers.",
        "",
    ),
    (
        Timer::ContainerStream,
        "stream_container_list",
        "Listing containers in a stream.",
        "",
    ),
    (
        Timer::ContainerRemove,
        "container_remove",
        "Removing a container.",
        "runtime",
    ),
    (
        Timer::ContainerCreate,
        "container_create",
        "Creating a container.",
        "runtime",
    ),
    (
        Timer::ContainerStop,
        "container_stop",
        "Stopping a container.",
        "runtime",
    ),
    (
        Timer::ContainerStart,
        "container_start",
        "Starting a container.",
        "runtime",
    ),
    (
        Timer::ContainerCheckpoint,
        "container_checkpoint",
        "Checkpointing a container.",
        "runtime",
    ),
    (
        Timer::NetworkOperation,
        "network_plugin_operations_duration_seconds",
        "Operations of the network's plugins, those that failed too.",
        "operation_type",
    ),
];

/// What the network's plugins are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    SetUp,
    TearDown,
    Status,
}

/// The figures.
#[derive(Debug, Default)]
pub struct Metrics {
    times: Mutex<BTreeMap<(Timer, String), Histogram>>,
    /// How often, and how often in vain.
    operations: Mutex<BTreeMap<Operation, [u64; 2]>>,
    /// Those that succeeded and those that did not.
    pulls: [AtomicU64; 2],
    pulling: AtomicU64,
    throughput: Mutex<[Histogram; 2]>,
    /// Events that nobody read.
    pub events_dropped: Arc<AtomicU64>,
    pub logs: Arc<Logs>,
}

/// What the daemon copied from containers to their logs.
#[derive(Debug, Default)]
pub struct Logs {
    pub input_entries: AtomicU64,
    pub input_bytes: AtomicU64,
    pub output_entries: AtomicU64,
    pub output_bytes: AtomicU64,
    /// Parts of long lines, the last one of each not counted.
    pub split_entries: AtomicU64,
}

/// Observations; how many bounds there are is known when it is written.
#[derive(Debug, Clone, Default)]
struct Histogram {
    /// By bound, not cumulative, and those above all.
    counts: Vec<u64>,
    sum: f64,
}

/// A pull that is going on. Dropped without an outcome, it failed.
#[derive(Debug)]
pub struct Pull<'a> {
    metrics: &'a Metrics,
    began: Instant,
    done: bool,
}

// === impl Operation ===

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Self::SetUp => "set_up_pod",
            Self::TearDown => "tear_down_pod",
            Self::Status => "get_pod_network_status",
        }
    }
}

// === impl Metrics ===

impl Metrics {
    /// Something that began then has succeeded now. `label` is empty for timers that have none.
    pub fn took(&self, timer: Timer, label: &str, began: Instant) {
        let seconds = began.elapsed().as_secs_f64();
        let mut times = self.times.lock();
        let key = (timer, label.to_owned());
        times.entry(key).or_default().observe(SECONDS, seconds);
    }

    /// The network's plugins were asked then, and have answered.
    pub fn asked<T>(&self, what: Operation, began: Instant, answer: &Result<T>) {
        self.took(Timer::NetworkOperation, what.name(), began);
        let mut operations = self.operations.lock();
        let [all, failed] = operations.entry(what).or_default();
        *all += 1;
        *failed += u64::from(answer.is_err());
    }

    /// A pull begins.
    pub fn pull(&self) -> Pull<'_> {
        self.pulling.fetch_add(1, Ordering::Relaxed);
        Pull {
            metrics: self,
            began: Instant::now(),
            done: false,
        }
    }

    fn fetched(&self, bytes: u64, took: Duration) {
        if bytes == 0 || took.is_zero() {
            // All was here already.
            return;
        }
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let rate = bytes as f64 / MIB / took.as_secs_f64();
        let mut throughput = self.throughput.lock();
        throughput[0].observe(SECONDS, rate);
        throughput[1].observe(MIBPS, rate);
    }

    /// All families in the text format.
    pub fn encode(&self) -> String {
        let mut out = String::with_capacity(16 << 10);
        self.encode_times(&mut out);
        self.encode_operations(&mut out);
        self.encode_pulls(&mut out);
        let logs = &self.logs;
        for (name, help, count) in [
            (
                "container_events_dropped",
                "Events of containers that nobody read in time.",
                &*self.events_dropped,
            ),
            (
                "input_entries",
                "Log lines that containers wrote.",
                &logs.input_entries,
            ),
            (
                "input_bytes",
                "Log bytes that containers wrote.",
                &logs.input_bytes,
            ),
            (
                "output_entries",
                "Log entries written.",
                &logs.output_entries,
            ),
            ("output_bytes", "Log bytes written.", &logs.output_bytes),
            (
                "split_entries",
                "Further log entries that long lines were split into.",
                &logs.split_entries,
            ),
        ] {
            let name = format!("containerd_cri_{name}_total");
            family(&mut out, &name, "counter", help);
            let _ = writeln!(out, "{name} {}", count.load(Ordering::Relaxed));
        }
        out
    }

    fn encode_times(&self, out: &mut String) {
        let times = self.times.lock();
        for &(timer, name, help, label) in TIMERS {
            let name = format!("containerd_cri_{name}_seconds");
            let mut of_timer = times.iter().filter(|((t, _), _)| *t == timer).peekable();
            if label.is_empty() {
                family(out, &name, "histogram", help);
                let observed = of_timer.next().map(|(_, h)| h.clone());
                observed.unwrap_or_default().encode(out, &name, "", SECONDS);
                continue;
            }
            if of_timer.peek().is_some() {
                family(out, &name, "histogram", help);
            }
            for ((_, value), histogram) in of_timer {
                let label = format!("{label}=\"{}\"", escape(value));
                histogram.encode(out, &name, &label, SECONDS);
            }
        }
    }

    fn encode_operations(&self, out: &mut String) {
        let operations = self.operations.lock();
        for (n, what, help) in [
            (0, "operations", "Operations of the network's plugins."),
            (
                1,
                "operations_errors",
                "Operations of the network's plugins that failed.",
            ),
        ] {
            let name = format!("containerd_cri_network_plugin_{what}_total_total");
            let mut met = operations.iter().filter(|(_, c)| c[n] > 0).peekable();
            if met.peek().is_some() {
                family(out, &name, "counter", help);
            }
            for (operation, counts) in met {
                let operation = operation.name();
                let count = counts[n];
                let _ = writeln!(out, "{name}{{operation_type=\"{operation}\"}} {count}");
            }
        }
    }

    fn encode_pulls(&self, out: &mut String) {
        let name = "containerd_cri_sandboxed_image_pulls_total";
        let pulls = self.pulls.each_ref().map(|p| p.load(Ordering::Relaxed));
        let named = ["success", "failure"].into_iter().zip(pulls);
        let met: Vec<_> = named.filter(|(_, count)| *count > 0).collect();
        if !met.is_empty() {
            family(out, name, "counter", "Pulls of images by how they ended.");
        }
        for (status, count) in met {
            let _ = writeln!(out, "{name}{{status=\"{status}\"}} {count}");
        }
        let name = "containerd_cri_sandboxed_in_progress_image_pulls_total";
        family(out, name, "gauge", "Pulls of images that are going on.");
        let _ = writeln!(out, "{name} {}", self.pulling.load(Ordering::Relaxed));
        let throughput = self.throughput.lock();
        for ((histogram, bounds), name) in throughput.iter().zip([SECONDS, MIBPS]).zip([
            "containerd_cri_sandboxed_image_pulling_throughput",
            "containerd_cri_sandboxed_image_pulling_throughput_mibps",
        ]) {
            let help = "Fetched MiB/s of each pull that fetched anything, unpacking included.";
            family(out, name, "histogram", help);
            histogram.encode(out, name, "", bounds);
        }
    }
}

#[async_trait]
impl Source for Metrics {
    async fn collect(&self) -> String {
        self.encode()
    }
}

// === impl Pull ===

impl Pull<'_> {
    /// It succeeded, with so many bytes from the registry.
    pub fn done(mut self, bytes: u64) {
        self.done = true;
        self.metrics.fetched(bytes, self.began.elapsed());
    }
}

impl Drop for Pull<'_> {
    fn drop(&mut self) {
        self.metrics.pulling.fetch_sub(1, Ordering::Relaxed);
        self.metrics.pulls[usize::from(!self.done)].fetch_add(1, Ordering::Relaxed);
    }
}

// === impl Histogram ===

impl Histogram {
    fn observe(&mut self, bounds: &[f64], value: f64) {
        self.counts.resize(bounds.len() + 1, 0);
        let bucket = bounds.iter().position(|bound| value <= *bound);
        self.counts[bucket.unwrap_or(bounds.len())] += 1;
        self.sum += value;
    }

    fn encode(&self, out: &mut String, name: &str, label: &str, bounds: &[f64]) {
        let comma = if label.is_empty() { "" } else { "," };
        let braced = match label {
            "" => String::new(),
            label => format!("{{{label}}}"),
        };
        let mut total = 0;
        for (n, bound) in bounds.iter().enumerate() {
            total += self.counts.get(n).unwrap_or(&0);
            let _ = writeln!(out, "{name}_bucket{{{label}{comma}le=\"{bound}\"}} {total}");
        }
        total += self.counts.get(bounds.len()).unwrap_or(&0);
        let _ = writeln!(out, "{name}_bucket{{{label}{comma}le=\"+Inf\"}} {total}");
        let _ = writeln!(out, "{name}_sum{braced} {}", self.sum);
        let _ = writeln!(out, "{name}_count{braced} {total}");
    }
}

/// io.containerd.metrics.v1 "cri".
pub fn registration(metrics: Arc<Metrics>) -> Registration {
    Registration::new::<kinds::Metrics>("cri")
        .init_plain(|_| Box::pin(async move { Ok(metrics as Arc<dyn Source>) }))
}

#[cfg(test)]
mod tests {
    use corten_core::Error;

    use super::*;

    #[test]
    fn what_never_happened_is_told_only_where_it_needs_no_label() {
        let text = Metrics::default().encode();
        assert!(text.contains("containerd_cri_sandbox_list_seconds_count 0\n"));
        assert!(text.contains("containerd_cri_container_events_dropped_total 0\n"));
        assert!(text.contains("containerd_cri_sandboxed_in_progress_image_pulls_total 0\n"));
        for absent in [
            "runtime",
            "network_plugin",
            "image_pulls_total{",
            "operation_type",
        ] {
            assert!(!text.contains(&format!("{absent}=")), "{text}");
        }
        assert!(!text.contains("container_start"), "{text}");
    }

    #[test]
    fn times_are_cumulative_by_label() {
        let metrics = Metrics::default();
        let long_ago = Instant::now().checked_sub(Duration::from_secs(3)).unwrap();
        metrics.took(Timer::ContainerStart, "a\"b", Instant::now());
        metrics.took(Timer::ContainerStart, "a\"b", long_ago);
        let text = metrics.encode();
        let name = "containerd_cri_container_start_seconds";
        assert!(text.contains(&format!("# TYPE {name} histogram\n")));
        for (bound, count) in [("2.5", 1), ("5", 2), ("10", 2), ("+Inf", 2)] {
            let line = format!("{name}_bucket{{runtime=\"a\\\"b\",le=\"{bound}\"}} {count}\n");
            assert!(text.contains(&line), "{line}{text}");
        }
        assert!(text.contains(&format!("{name}_count{{runtime=\"a\\\"b\"}} 2\n")));
    }

    #[test]
    fn operations_and_pulls_are_counted_by_how_they_ended() {
        let metrics = Metrics::default();
        metrics.asked(Operation::SetUp, Instant::now(), &Ok(()));
        let failed = Err::<(), _>(Error::internal("x"));
        metrics.asked(Operation::TearDown, Instant::now(), &failed);
        drop(metrics.pull());
        let pull = metrics.pull();
        assert!(
            metrics
                .encode()
                .contains("in_progress_image_pulls_total 1\n")
        );
        pull.done(0);
        metrics.fetched(50 << 20, Duration::from_secs(2));
        let text = metrics.encode();
        for line in [
            "containerd_cri_network_plugin_operations_total_total{operation_type=\"set_up_pod\"} 1",
            "containerd_cri_network_plugin_operations_errors_total_total{operation_type=\"tear_down_pod\"} 1",
            "containerd_cri_sandboxed_image_pulls_total{status=\"success\"} 1",
            "containerd_cri_sandboxed_image_pulls_total{status=\"failure\"} 1",
            "containerd_cri_sandboxed_image_pulling_throughput_mibps_bucket{le=\"10\"} 0",
            "containerd_cri_sandboxed_image_pulling_throughput_mibps_bucket{le=\"25\"} 1",
            "containerd_cri_sandboxed_image_pulling_throughput_mibps_sum 25",
            "containerd_cri_sandboxed_image_pulling_throughput_count 1",
        ] {
            assert!(text.contains(&format!("{line}\n")), "{line}\n{text}");
        }
    }

    #[test]
    fn every_line_is_a_comment_or_a_sample() {
        let metrics = Metrics::default();
        metrics.took(Timer::SandboxRemove, "runc", Instant::now());
        for line in metrics.encode().lines().filter(|l| !l.starts_with("# ")) {
            let (_, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().is_ok(), "{line}");
        }
    }
}
