//! What pods and containers use: the CRI's stats, and the metrics that take cAdvisor's place.
//!
//! ```text
//! shim (cgroup v1 or v2 metrics) --+
//! controller (the pod's cgroup) ---+-> usage    -> ContainerStats, PodSandboxStats   (+ window: CPU now)
//! netns (interface counters) ------+-> samples  -> PodSandboxMetrics                 (+ descriptors)
//! /proc (files, limits) -----------+
//! ```
//! Nothing is limited in rate; pods are asked [`WIDTH`] at a time. Who fails alone is left out of a list.
//!
//! The limits are in [`crate::limits`].

pub mod batches;
pub mod cgroup;
pub mod descriptors;
pub mod limits;
pub mod metrics;
pub mod network;
pub mod process;
pub mod rpc;
pub mod samples;
pub mod usage;
pub mod window;

use std::sync::Arc;

pub use window::Collector;

use crate::Cri;

/// Pods or containers asked at a time.
pub const WIDTH: usize = 16;

/// Starts to follow the CPU time of all pods and containers. Once recovery is done.
pub fn start(cri: &Arc<Cri>) {
    let watched = cri.clone();
    cri.collector.tasks().spawn("cri cpu window", async move {
        watched.follow_cpu().await;
    });
}
