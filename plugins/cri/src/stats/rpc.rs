//! ContainerStats, PodSandboxStats, their lists and streams.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use corten_core::protos::time::{now, unix_nanos};
use corten_core::{Context, Error, Kind, Result};
use corten_protos::runtime::v1::{
    ContainerAttributes, ContainerState, ContainerStats, ContainerStatsFilter,
    ContainerStatsRequest, ContainerStatsResponse, CpuUsage, LinuxPodSandboxStats,
    ListContainerStatsRequest, ListContainerStatsResponse, ListPodSandboxStatsRequest,
    ListPodSandboxStatsResponse, MemoryUsage, NetworkInterfaceUsage, NetworkUsage,
    PodSandboxAttributes, PodSandboxStats, PodSandboxStatsFilter, PodSandboxStatsRequest,
    PodSandboxStatsResponse, ProcessUsage, StreamContainerStatsRequest,
    StreamContainerStatsResponse, StreamPodSandboxStatsRequest, StreamPodSandboxStatsResponse,
    UInt64Value,
};
use corten_sys::blocking;
use futures::{StreamExt, TryStreamExt};

use super::cgroup::Cgroup;
use super::usage::value;
use super::{WIDTH, batches, network};
use crate::Cri;
use crate::service::Answers;
use crate::store::pod::State;
use crate::store::{Container, Pod};

/// What a container uses, and how many processes and threads it has.
struct Measured {
    stats: ContainerStats,
    tasks: u64,
}

// === the RPCs ===

impl Cri {
    pub async fn container_stats(
        self: &Arc<Self>,
        r: ContainerStatsRequest,
    ) -> Result<ContainerStatsResponse> {
        let container = self
            .containers
            .get(&r.container_id)
            .context("failed to find container")?;
        let cgroup = self
            .container_cgroup(&container.id)
            .await
            .context("failed to fetch metrics for task")?;
        let measured = self.measured(&container, Some(cgroup)).await;
        Ok(ContainerStatsResponse {
            stats: Some(measured.stats),
        })
    }

    pub async fn list_container_stats(
        self: &Arc<Self>,
        r: ListContainerStatsRequest,
    ) -> Result<ListContainerStatsResponse> {
        Ok(ListContainerStatsResponse {
            stats: self.filtered_stats(r.filter).await,
        })
    }

    pub async fn stream_container_stats(
        self: &Arc<Self>,
        r: StreamContainerStatsRequest,
    ) -> Result<Answers<StreamContainerStatsResponse>> {
        let stats = self.filtered_stats(r.filter).await;
        Ok(batches::batched(stats, |container_stats| {
            StreamContainerStatsResponse { container_stats }
        }))
    }

    pub async fn pod_sandbox_stats(
        self: &Arc<Self>,
        r: PodSandboxStatsRequest,
    ) -> Result<PodSandboxStatsResponse> {
        let id = &r.pod_sandbox_id;
        // NotFound for the empty id, too: with it the kubelet finds out whether stats are there at all.
        let pod = self
            .pods
            .get(id)
            .with_context(|| format!("an error occurred when trying to find sandbox {id}"))?;
        let stats = self
            .pod_stats(&pod)
            .await
            .with_context(|| format!("failed to decode pod sandbox metrics {id}"))?;
        Ok(PodSandboxStatsResponse { stats: Some(stats) })
    }

    pub async fn list_pod_sandbox_stats(
        self: &Arc<Self>,
        r: ListPodSandboxStatsRequest,
    ) -> Result<ListPodSandboxStatsResponse> {
        Ok(ListPodSandboxStatsResponse {
            stats: self.filtered_pod_stats(r.filter).await?,
        })
    }

    pub async fn stream_pod_sandbox_stats(
        self: &Arc<Self>,
        r: StreamPodSandboxStatsRequest,
    ) -> Result<Answers<StreamPodSandboxStatsResponse>> {
        let stats = self.filtered_pod_stats(r.filter).await?;
        Ok(batches::batched(stats, |pod_sandbox_stats| {
            StreamPodSandboxStatsResponse { pod_sandbox_stats }
        }))
    }
}

// === containers ===

impl Cri {
    async fn filtered_stats(&self, filter: Option<ContainerStatsFilter>) -> Vec<ContainerStats> {
        let filter = filter.unwrap_or_default();
        // A shortened id that stands for nothing finds nothing.
        let id = self
            .containers
            .get(&filter.id)
            .map_or(filter.id, |c| c.id.clone());
        let pod = self
            .pods
            .get(&filter.pod_sandbox_id)
            .map_or(filter.pod_sandbox_id, |p| p.id.clone());
        let wanted = self.containers.list().into_iter().filter(|c| {
            (id.is_empty() || c.id == id)
                && (pod.is_empty() || c.sandbox_id == pod)
                && selected(&filter.label_selector, &c.metadata.read().config.labels)
        });
        let all = self.measured_all(wanted.collect()).await;
        all.into_iter().map(|m| m.stats).collect()
    }

    async fn measured_all(&self, containers: Vec<Arc<Container>>) -> Vec<Measured> {
        futures::stream::iter(containers)
            .map(|container| async move {
                let cgroup = match container.state() {
                    ContainerState::ContainerRunning => self.container_cgroup(&container.id).await,
                    // What does not run uses its writable layer only.
                    _ => Err(Error::not_found(&container.id)),
                };
                if let Err(error) = &cgroup
                    && error.kind() != Kind::NotFound
                {
                    tracing::debug!(%error, container.id = container.id, "read stats of container");
                }
                self.measured(&container, cgroup.ok()).await
            })
            .buffered(WIDTH)
            .collect()
            .await
    }

    async fn measured(&self, container: &Container, cgroup: Option<(i64, Cgroup)>) -> Measured {
        let layer = self
            .images
            .writable_layer(&container.snapshotter, &container.id)
            .await;
        let attributes = {
            let metadata = container.metadata.read();
            ContainerAttributes {
                id: container.id.clone(),
                metadata: metadata.config.metadata.clone(),
                labels: metadata.config.labels.clone(),
                annotations: metadata.config.annotations.clone(),
            }
        };
        let mut stats = ContainerStats {
            attributes: Some(attributes),
            writable_layer: Some(layer),
            ..ContainerStats::default()
        };
        let Some((at, cgroup)) = cgroup else {
            return Measured { stats, tasks: 0 };
        };
        stats.cpu = self.rated(&container.id, cgroup.cpu(at));
        stats.memory = cgroup.memory(at);
        stats.swap = cgroup.swap(at);
        stats.io = cgroup.io(at);
        Measured {
            stats,
            tasks: cgroup.tasks().unwrap_or(0),
        }
    }

    fn rated(&self, id: &str, cpu: Option<CpuUsage>) -> Option<CpuUsage> {
        let mut cpu = cpu?;
        let used = cpu.usage_core_nano_seconds.map_or(0, |u| u.value);
        let rate = self.collector.rate(id, cpu.timestamp, used);
        cpu.usage_nano_cores = rate.and_then(value);
        Some(cpu)
    }
}

// === pods ===

impl Cri {
    async fn filtered_pod_stats(
        &self,
        filter: Option<PodSandboxStatsFilter>,
    ) -> Result<Vec<PodSandboxStats>> {
        let filter = filter.unwrap_or_default();
        let id = self
            .pods
            .get(&filter.id)
            .map_or(filter.id, |p| p.id.clone());
        let wanted = self.pods.list().into_iter().filter(|p| {
            (id.is_empty() || p.id == id)
                && p.state() == State::Ready
                && selected(&filter.label_selector, &p.metadata.read().config.labels)
        });
        let wanted: Vec<Arc<Pod>> = wanted.collect();
        futures::stream::iter(wanted)
            .map(|pod| async move {
                match self.pod_stats(&pod).await {
                    Ok(stats) => Ok(Some(stats)),
                    Err(e) if is_passing(e.kind()) => {
                        tracing::debug!(error = %e, sandbox.id = pod.id, "read stats of pod");
                        Ok(None)
                    }
                    Err(e) => Err(e.context(format!(
                        "failed to decode sandbox container metrics for sandbox {:?}",
                        pod.id
                    ))),
                }
            })
            .buffered(WIDTH)
            .try_filter_map(async |stats| Ok(stats))
            .try_collect()
            .await
    }

    async fn pod_stats(&self, pod: &Arc<Pod>) -> Result<PodSandboxStats> {
        if pod.state() != State::Ready {
            return Err(Error::new(
                Kind::Unavailable,
                format!(
                    "failed to get pod sandbox stats since sandbox container {:?} is not in ready state: unavailable",
                    pod.id
                ),
            ));
        }
        let (attributes, netns) = {
            let metadata = pod.metadata.read();
            let config = &metadata.config;
            let attributes = PodSandboxAttributes {
                id: pod.id.clone(),
                metadata: config.metadata.clone(),
                labels: config.labels.clone(),
                annotations: config.annotations.clone(),
            };
            (attributes, metadata.netns_path.clone())
        };
        let mut linux = LinuxPodSandboxStats::default();
        let own = match self.pod_cgroup(pod).await {
            Ok((at, cgroup)) => {
                linux.cpu = self.rated(&pod.id, cgroup.cpu(at));
                linux.memory = cgroup.memory(at);
                linux.io = cgroup.io(at);
                true
            }
            Err(e) if is_passing(e.kind()) => return Err(e),
            // A pod without a cgroup of its own: what its containers use is what it uses.
            Err(error) => {
                tracing::debug!(%error, sandbox.id = pod.id, "pod has no metrics of its own");
                false
            }
        };
        if !netns.is_empty() {
            let path = PathBuf::from(netns);
            let all = blocking(move || network::counters(&path))
                .await
                .context("failed to obtain network stats")?;
            linux.network = Some(network_usage(&all));
        }
        let mut containers = self.containers.list();
        containers.retain(|c| c.sandbox_id == pod.id);
        let mut tasks = 0;
        for measured in self.measured_all(containers).await {
            tasks += measured.tasks;
            linux.containers.push(measured.stats);
        }
        if !own {
            linux.cpu = self.rated(&pod.id, sum_of_cpu(&linux.containers));
            linux.memory = sum_of_memory(&linux.containers);
        }
        linux.process = Some(ProcessUsage {
            timestamp: unix_nanos(&now()),
            process_count: value(tasks),
        });
        Ok(PodSandboxStats {
            attributes: Some(attributes),
            linux: Some(linux),
            windows: None,
        })
    }

    /// The pod's own cgroup, as its controller reads it, and when that was.
    pub(super) async fn pod_cgroup(&self, pod: &Pod) -> Result<(i64, Cgroup)> {
        let missing = || Error::not_found(format!("sandbox controller {:?}", pod.sandboxer));
        let controller = self.controllers.get(&pod.sandboxer).ok_or_else(missing)?;
        let metric = controller
            .metrics(&self.ns, &pod.id)
            .await
            .with_context(|| format!("failed getting metrics for sandbox {}", pod.id))?;
        let empty = || Error::not_found(format!("sandbox metric of {} is empty", pod.id));
        let metric = metric.ok_or_else(empty)?;
        let at = metric
            .timestamp
            .as_ref()
            .map_or_else(|| unix_nanos(&now()), unix_nanos);
        let cgroup = Cgroup::of(&metric.data.ok_or_else(empty)?)?;
        Ok((at, cgroup))
    }
}

// The pod is on its way out, or its shim does not answer now.
fn is_passing(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Unavailable | Kind::NotFound | Kind::DeadlineExceeded | Kind::Canceled
    )
}

fn sum(values: impl Iterator<Item = Option<UInt64Value>>) -> Option<UInt64Value> {
    value(
        values
            .flatten()
            .fold(0, |sum, n| sum.saturating_add(n.value)),
    )
}

fn sum_of_cpu(containers: &[ContainerStats]) -> Option<CpuUsage> {
    let all = || containers.iter().filter_map(|c| c.cpu.as_ref());
    Some(CpuUsage {
        timestamp: all()
            .map(|c| c.timestamp)
            .max()
            .unwrap_or_else(|| unix_nanos(&now())),
        usage_core_nano_seconds: sum(all().map(|c| c.usage_core_nano_seconds)),
        ..CpuUsage::default()
    })
}

fn sum_of_memory(containers: &[ContainerStats]) -> Option<MemoryUsage> {
    let all = || containers.iter().filter_map(|c| c.memory.as_ref());
    Some(MemoryUsage {
        timestamp: all()
            .map(|m| m.timestamp)
            .max()
            .unwrap_or_else(|| unix_nanos(&now())),
        working_set_bytes: sum(all().map(|m| m.working_set_bytes)),
        // Nothing limits the pod.
        available_bytes: value(0),
        usage_bytes: sum(all().map(|m| m.usage_bytes)),
        rss_bytes: sum(all().map(|m| m.rss_bytes)),
        page_faults: sum(all().map(|m| m.page_faults)),
        major_page_faults: sum(all().map(|m| m.major_page_faults)),
        psi: None,
    })
}

fn network_usage(all: &[network::Counters]) -> NetworkUsage {
    let told = |c: &network::Counters| NetworkInterfaceUsage {
        name: c.name.clone(),
        rx_bytes: value(c.rx_bytes),
        rx_errors: value(c.rx_errors),
        tx_bytes: value(c.tx_bytes),
        tx_errors: value(c.tx_errors),
    };
    NetworkUsage {
        timestamp: unix_nanos(&now()),
        default_interface: network::default_of(all).map(told),
        interfaces: all.iter().map(told).collect(),
    }
}

/// Whether `labels` has all of `selector`.
fn selected(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(k, v)| labels.get(k) == Some(v))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_selected_by_all_of_the_selector() {
        let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs
                .iter()
                .map(|(k, v)| ((*k).into(), (*v).into()))
                .collect()
        };
        let labels = map(&[("a", "1"), ("b", "2")]);
        for (selector, want) in [
            (map(&[]), true),
            (map(&[("a", "1")]), true),
            (map(&[("a", "2")]), false),
            (map(&[("a", "1"), ("c", "3")]), false),
        ] {
            assert_eq!(selected(&selector, &labels), want, "{selector:?}");
        }
    }

    #[test]
    fn containers_add_up() {
        let of = |used| ContainerStats {
            cpu: Some(CpuUsage {
                timestamp: 5,
                usage_core_nano_seconds: value(used),
                ..CpuUsage::default()
            }),
            ..ContainerStats::default()
        };
        let cpu = sum_of_cpu(&[of(1), ContainerStats::default(), of(2)]).unwrap();
        assert_eq!((cpu.timestamp, cpu.usage_core_nano_seconds), (5, value(3)));
        assert_eq!(sum_of_memory(&[]).unwrap().usage_bytes, value(0));
    }

    #[test]
    fn the_default_interface_is_also_among_all() {
        let all = [network::Counters {
            name: "eth0".into(),
            rx_bytes: 1,
            ..network::Counters::default()
        }];
        let usage = network_usage(&all);
        assert_eq!(usage.default_interface, usage.interfaces.first().cloned());
        assert!(network_usage(&[]).default_interface.is_none());
    }
}
