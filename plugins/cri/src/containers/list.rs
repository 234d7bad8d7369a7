//! ListContainers and StreamContainers.

use std::sync::Arc;
use std::time::Instant;

use corten_core::Result;
use corten_protos::runtime::v1::{
    Container as Listed, ContainerFilter, ListContainersRequest, ListContainersResponse,
    StreamContainersRequest, StreamContainersResponse,
};
use futures::StreamExt;

use crate::cri::Cri;
use crate::metrics::Timer;
use crate::service::Answers;
use crate::store::Container;

/// Containers in one message of a stream, as containerd sends them.
pub const BATCH: usize = 5000;

impl Cri {
    /// # Errors
    /// None.
    pub async fn list_containers(
        &self,
        r: ListContainersRequest,
    ) -> Result<ListContainersResponse> {
        let began = Instant::now();
        let containers = self.listed(r.filter);
        self.metrics.took(Timer::ContainerList, "", began);
        Ok(ListContainersResponse { containers })
    }

    /// In batches; no message for no container.
    ///
    /// # Errors
    /// None.
    pub async fn stream_containers(
        &self,
        r: StreamContainersRequest,
    ) -> Result<Answers<StreamContainersResponse>> {
        let began = Instant::now();
        let all = self.listed(r.filter);
        self.metrics.took(Timer::ContainerStream, "", began);
        let batches: Vec<_> = batches(all)
            .map(|containers| Ok(StreamContainersResponse { containers }))
            .collect();
        Ok(futures::stream::iter(batches).boxed())
    }

    fn listed(&self, filter: Option<ContainerFilter>) -> Vec<Listed> {
        let mut filter = filter.unwrap_or_default();
        // Prefixes of ids are fine; unknown ones match nothing.
        if let Ok(container) = self.containers.get(&filter.id) {
            filter.id.clone_from(&container.id);
        }
        if let Ok(pod) = self.pods.get(&filter.pod_sandbox_id) {
            filter.pod_sandbox_id.clone_from(&pod.id);
        }
        let all = self.containers.list();
        all.iter()
            .map(listed)
            .filter(|container| matches(&filter, container))
            .collect()
    }
}

fn batches(all: Vec<Listed>) -> impl Iterator<Item = Vec<Listed>> {
    let mut rest = all.into_iter();
    std::iter::from_fn(move || {
        let batch: Vec<_> = rest.by_ref().take(BATCH).collect();
        (!batch.is_empty()).then_some(batch)
    })
}

fn listed(container: &Arc<Container>) -> Listed {
    let metadata = container.metadata.read();
    let status = container.status.read();
    let config = &metadata.config;
    Listed {
        id: container.id.clone(),
        pod_sandbox_id: container.sandbox_id.clone(),
        metadata: config.metadata.clone(),
        image: config.image.clone(),
        // containerd 2.4 internal/cri/server/container_list.go: here both are the config's digest.
        image_ref: metadata.image_ref.clone(),
        image_id: metadata.image_ref.clone(),
        state: status.state() as i32,
        created_at: status.created_at,
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
    }
}

fn matches(filter: &ContainerFilter, container: &Listed) -> bool {
    let is = |wanted: &str, got: &str| wanted.is_empty() || wanted == got;
    is(&filter.id, &container.id)
        && is(&filter.pod_sandbox_id, &container.pod_sandbox_id)
        && filter
            .state
            .as_ref()
            .is_none_or(|s| s.state == container.state)
        && filter
            .label_selector
            .iter()
            .all(|(key, value)| container.labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use corten_protos::runtime::v1::{ContainerState, ContainerStateValue};

    use super::*;

    fn container(id: usize) -> Listed {
        Listed {
            id: id.to_string(),
            pod_sandbox_id: "p".into(),
            state: ContainerState::ContainerRunning as i32,
            labels: [("a".to_owned(), "1".to_owned())].into(),
            ..Listed::default()
        }
    }

    #[test]
    fn all_parts_of_a_filter_must_match() {
        let check = |filter: ContainerFilter, want: bool| {
            assert_eq!(matches(&filter, &container(7)), want, "{filter:?}");
        };
        let filter = ContainerFilter::default;
        check(filter(), true);
        let id = |id: &str| ContainerFilter {
            id: id.into(),
            ..filter()
        };
        check(id("7"), true);
        check(id("8"), false);
        let pod = |id: &str| ContainerFilter {
            pod_sandbox_id: id.into(),
            ..filter()
        };
        check(pod("p"), true);
        check(pod("q"), false);
        let state = |state: ContainerState| ContainerFilter {
            state: Some(ContainerStateValue {
                state: state as i32,
            }),
            ..filter()
        };
        check(state(ContainerState::ContainerRunning), true);
        check(state(ContainerState::ContainerCreated), false);
        let label = |value: &str| ContainerFilter {
            label_selector: [("a".to_owned(), value.to_owned())].into(),
            ..id("7")
        };
        check(label("1"), true);
        check(label("2"), false);
    }

    #[test]
    fn batches_are_full_at_their_limit() {
        let sizes = |n: usize| -> Vec<usize> {
            batches((0..n).map(container).collect())
                .map(|b| b.len())
                .collect()
        };
        assert_eq!(sizes(0), Vec::<usize>::new());
        assert_eq!(sizes(BATCH - 1), [BATCH - 1]);
        assert_eq!(sizes(BATCH), [BATCH]);
        assert_eq!(sizes(BATCH + 1), [BATCH, 1]);
    }
}
