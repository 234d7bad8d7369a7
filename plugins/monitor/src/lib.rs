//! corten-monitor: what watches containers and tasks from inside the daemon.
//!
//! ```text
//! restart   io.containerd.monitor.container.v1 "restart": keeps containers as their labels want them
//! policy    what the labels say
//! cgroups   io.containerd.monitor.task.v1 "cgroups": what tasks use, for Prometheus
//! v1, v2    names and values of the figures of either cgroup version
//! ```

pub mod cgroups;
mod figures;
mod policy;
pub mod restart;
mod v1;
mod v2;
