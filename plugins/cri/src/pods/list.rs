//! ListPodSandbox and StreamPodSandboxes: from memory, never from a shim.

use std::time::Instant;

use corten_core::Result;
use corten_protos::runtime::v1::{
    ListPodSandboxRequest, ListPodSandboxResponse, PodSandbox, PodSandboxFilter,
    StreamPodSandboxesRequest, StreamPodSandboxesResponse,
};
use futures::StreamExt;

use crate::Cri;
use crate::metrics::Timer;
use crate::service::Answers;
use crate::store::pod::Pod;

/// Items in one message of a list stream.
pub const BATCH: usize = 5000;

impl Cri {
    /// # Errors
    /// None.
    pub async fn list_pod_sandbox(
        &self,
        request: ListPodSandboxRequest,
    ) -> Result<ListPodSandboxResponse> {
        let began = Instant::now();
        let items = listed(self, request.filter);
        self.metrics.took(Timer::SandboxList, "", began);
        Ok(ListPodSandboxResponse { items })
    }

    /// # Errors
    /// None; no pods are no message.
    pub async fn stream_pod_sandboxes(
        &self,
        request: StreamPodSandboxesRequest,
    ) -> Result<Answers<StreamPodSandboxesResponse>> {
        let began = Instant::now();
        let items = listed(self, request.filter);
        self.metrics.took(Timer::SandboxStream, "", began);
        Ok(batched(items, |pod_sandboxes| StreamPodSandboxesResponse {
            pod_sandboxes,
        }))
    }
}

/// Streams a list in messages of up to [`BATCH`] items.
pub fn batched<T: Send + 'static, M: Send + 'static>(
    items: Vec<T>,
    message: impl Fn(Vec<T>) -> M + Send + 'static,
) -> Answers<M> {
    let mut rest = items.into_iter();
    let messages = std::iter::from_fn(move || {
        let batch: Vec<T> = rest.by_ref().take(BATCH).collect();
        (!batch.is_empty()).then(|| Ok(message(batch)))
    });
    futures::stream::iter(messages).boxed()
}

fn listed(cri: &Cri, filter: Option<PodSandboxFilter>) -> Vec<PodSandbox> {
    let mut filter = filter.unwrap_or_default();
    // An id that names no pod by prefix is compared as it is, and matches none.
    if let Ok(pod) = cri.pods.get(&filter.id) {
        filter.id.clone_from(&pod.id);
    }
    let pods = cri.pods.list();
    let items = pods.iter().map(|pod| item(pod));
    items.filter(|item| matches(item, &filter)).collect()
}

fn item(pod: &Pod) -> PodSandbox {
    let (metadata, status) = (pod.metadata.read(), pod.status.read());
    PodSandbox {
        id: pod.id.clone(),
        metadata: metadata.config.metadata.clone(),
        state: status.state.cri() as i32,
        created_at: status.created_at,
        labels: metadata.config.labels.clone(),
        annotations: metadata.config.annotations.clone(),
        runtime_handler: metadata.runtime_handler.clone(),
    }
}

fn matches(item: &PodSandbox, filter: &PodSandboxFilter) -> bool {
    let id = filter.id.is_empty() || filter.id == item.id;
    let state = filter.state.is_none_or(|s| s.state == item.state);
    let mut labels = filter.label_selector.iter();
    id && state && labels.all(|(k, v)| item.labels.get(k) == Some(v))
}

#[cfg(test)]
mod tests {
    use corten_protos::runtime::v1::PodSandboxStateValue;

    use super::*;

    #[test]
    fn filters_are_all_to_be_met() {
        let item = PodSandbox {
            id: "a".into(),
            state: 0,
            labels: [("app".to_owned(), "web".to_owned())].into(),
            ..Default::default()
        };
        let check =
            |filter: PodSandboxFilter, want: bool| assert_eq!(matches(&item, &filter), want);
        let labels = |v: &str| [("app".to_owned(), v.to_owned())].into();
        check(PodSandboxFilter::default(), true);
        let all = PodSandboxFilter {
            id: "a".into(),
            state: Some(PodSandboxStateValue { state: 0 }),
            label_selector: labels("web"),
        };
        check(all.clone(), true);
        let other = PodSandboxFilter {
            id: "b".into(),
            ..all.clone()
        };
        check(other, false);
        let ended = PodSandboxFilter {
            state: Some(PodSandboxStateValue { state: 1 }),
            ..all.clone()
        };
        check(ended, false);
        let labelled = PodSandboxFilter {
            label_selector: labels("db"),
            ..all
        };
        check(labelled, false);
    }

    #[tokio::test]
    async fn streams_come_in_batches_and_nothing_is_no_message() {
        let sizes = async |n: usize| -> Vec<usize> {
            let stream = batched((0..n).collect(), |batch: Vec<usize>| batch.len());
            stream.map(Result::unwrap).collect().await
        };
        assert_eq!(sizes(0).await, [0usize; 0]);
        assert_eq!(sizes(BATCH).await, [BATCH]);
        assert_eq!(sizes(BATCH + 1).await, [BATCH, 1]);
    }
}
