//! ListPodSandboxMetrics: the samples of all pods that are ready. A pod or container that cannot be read is left out, and
//! nothing else with it.

use std::path::PathBuf;
use std::sync::Arc;

use corten_core::protos::time::{now, unix_nanos};
use corten_core::{Context, Result};
use corten_protos::runtime::v1::{
    ContainerMetrics, ContainerState, ListMetricDescriptorsRequest, ListMetricDescriptorsResponse,
    ListPodSandboxMetricsRequest, ListPodSandboxMetricsResponse, PodSandboxMetrics,
    StreamPodSandboxMetricsRequest, StreamPodSandboxMetricsResponse,
};
use corten_sys::blocking;
use futures::StreamExt;

use super::limits::Limits;
use super::samples::{Facts, Samples};
use super::{WIDTH, batches, descriptors, network, process};
use crate::Cri;
use crate::service::Answers;
use crate::store::pod::State;
use crate::store::{Container, Pod};

const NANOS: i64 = 1_000_000_000;

impl Cri {
    pub async fn list_metric_descriptors(
        self: &Arc<Self>,
        _: ListMetricDescriptorsRequest,
    ) -> Result<ListMetricDescriptorsResponse> {
        let descriptors = blocking(|| Ok(descriptors::here())).await?;
        Ok(ListMetricDescriptorsResponse { descriptors })
    }

    pub async fn list_pod_sandbox_metrics(
        self: &Arc<Self>,
        _: ListPodSandboxMetricsRequest,
    ) -> Result<ListPodSandboxMetricsResponse> {
        Ok(ListPodSandboxMetricsResponse {
            pod_metrics: self.all_metrics().await,
        })
    }

    pub async fn stream_pod_sandbox_metrics(
        self: &Arc<Self>,
        _: StreamPodSandboxMetricsRequest,
    ) -> Result<Answers<StreamPodSandboxMetricsResponse>> {
        let all = self.all_metrics().await;
        Ok(batches::batched(all, |pod_sandbox_metrics| {
            StreamPodSandboxMetricsResponse {
                pod_sandbox_metrics,
            }
        }))
    }

    async fn all_metrics(&self) -> Vec<PodSandboxMetrics> {
        let containers = self.containers.list();
        let containers = &containers;
        let pods = self
            .pods
            .list()
            .into_iter()
            .filter(|p| p.state() == State::Ready);
        let all = futures::stream::iter(pods).map(|pod| async move {
            let mine = containers.iter().filter(|c| c.sandbox_id == pod.id);
            match self.pod_metrics(&pod, mine).await {
                Ok(metrics) => Some(metrics),
                Err(error) => {
                    tracing::debug!(%error, sandbox.id = pod.id, "read metrics of pod");
                    None
                }
            }
        });
        all.buffered(WIDTH).filter_map(async |m| m).collect().await
    }

    async fn pod_metrics(
        &self,
        pod: &Pod,
        containers: impl Iterator<Item = &Arc<Container>> + Send,
    ) -> Result<PodSandboxMetrics> {
        let (config, netns) = {
            let metadata = pod.metadata.read();
            (
                metadata.config.metadata.clone(),
                metadata.netns_path.clone(),
            )
        };
        let names = config.unwrap_or_default();
        let pod_names = (names.name.as_str(), names.namespace.as_str());
        let base = [pod_names.0, pod_names.1, "", pod.id.as_str(), ""];
        let mut samples = Samples::new(unix_nanos(&now()), base);
        if !netns.is_empty() {
            let path = PathBuf::from(netns);
            for counters in blocking(move || network::counters(&path)).await? {
                samples.interface(&counters);
            }
        }
        let mut container_metrics = Vec::new();
        for container in containers {
            if container.state() != ContainerState::ContainerRunning {
                continue;
            }
            match self.container_metrics(container, pod_names).await {
                Ok(metrics) => container_metrics.push(metrics),
                Err(error) => {
                    tracing::debug!(%error, container.id = container.id, "read metrics of container");
                }
            }
        }
        Ok(PodSandboxMetrics {
            pod_sandbox_id: pod.id.clone(),
            metrics: samples.done(),
            container_metrics,
        })
    }

    async fn container_metrics(
        &self,
        container: &Container,
        (pod, namespace): (&str, &str),
    ) -> Result<ContainerMetrics> {
        let id = &container.id;
        let (at, cgroup) = self.container_cgroup(id).await?;
        let (name, image) = {
            let metadata = container.metadata.read();
            let config = &metadata.config;
            let image = config.image.clone().unwrap_or_default();
            let name = config.metadata.as_ref().map(|m| m.name.clone());
            (
                name.unwrap_or_default(),
                match image.user_specified_image.as_str() {
                    "" => image.image,
                    wanted => wanted.to_owned(),
                },
            )
        };
        let mut samples = Samples::new(at, [pod, namespace, &name, id, &image]);
        samples.facts(&self.facts(container, at).await?);
        samples.limits(&self.limits(container).await?);
        // Devices are named by files of sysfs.
        let samples = blocking(move || {
            samples.cgroup(&cgroup, &process::device);
            samples.no_huge_pages(&descriptors::page_sizes());
            Ok(samples)
        })
        .await?;
        Ok(ContainerMetrics {
            container_id: id.clone(),
            metrics: samples.done(),
        })
    }

    async fn facts(&self, container: &Container, at: i64) -> Result<Facts> {
        let (started, init) = {
            let status = container.status.read();
            (status.started_at, status.pid)
        };
        let task = self.tasks.get(&self.ns, &container.id).await?;
        let pids: Vec<u32> = task.pids().await?.iter().map(|p| p.pid).collect();
        let layer = self
            .images
            .writable_layer(&container.snapshotter, &container.id)
            .await;
        let root = self.images.root_of(&container.snapshotter);
        let used_bytes = layer.used_bytes.map_or(0, |b| b.value);
        let seconds = |nanos: i64| u64::try_from(nanos / NANOS).unwrap_or(0);
        blocking(move || {
            let fs = rustix::fs::statvfs(root.as_str())
                .map_err(std::io::Error::from)
                .with_context(|| format!("statvfs {root}"))?;
            let (files, sockets) = process::files(&pids);
            Ok(Facts {
                seen: seconds(at),
                started: seconds(started),
                processes: pids.len() as u64,
                files,
                sockets,
                open_files_limit: process::open_files_limit(init),
                used_bytes,
                size_bytes: fs.f_blocks.saturating_mul(fs.f_frsize),
                inodes: fs.f_files,
                inodes_free: fs.f_ffree,
            })
        })
        .await
    }

    async fn limits(&self, container: &Container) -> Result<Limits> {
        let record = self
            .metadata
            .containers()
            .get(&self.ns, &container.id)
            .await?;
        let limits = Limits::of_spec(record.spec.as_ref().map_or(&[][..], |s| &s.value));
        let updated = container
            .status
            .read()
            .resources
            .as_ref()
            .and_then(|r| r.linux.clone());
        Ok(match updated {
            Some(to) => limits.updated(&to),
            None => limits,
        })
    }
}
