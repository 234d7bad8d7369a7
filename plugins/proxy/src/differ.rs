//! containerd.services.diff.v1.Diff of another process as a differ.

use std::sync::OnceLock;

use async_trait::async_trait;
use corten_core::diff::{ApplyOptions, CompareOptions, Differ};
use corten_core::{Descriptor, Mount, Result, Scope};
use corten_protos::containerd::services::diff::v1::diff_client::DiffClient;
use corten_protos::containerd::services::diff::v1::{ApplyRequest, DiffRequest};
use tonic::transport::Channel;

use crate::channel::{MAX_MESSAGE, Remote, in_scope};

/// A differ elsewhere.
#[derive(Debug)]
pub(crate) struct Proxy {
    remote: Remote,
    client: OnceLock<DiffClient<Channel>>,
}

// === impl Proxy ===

impl Proxy {
    pub(crate) fn new(remote: Remote) -> Self {
        Self {
            remote,
            client: OnceLock::new(),
        }
    }

    fn client(&self) -> DiffClient<Channel> {
        let make = || {
            DiffClient::new(self.remote.channel())
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE)
        };
        self.client.get_or_init(make).clone()
    }
}

#[async_trait]
impl Differ for Proxy {
    async fn apply(
        &self,
        scope: &Scope,
        descriptor: &Descriptor,
        mounts: &[Mount],
        options: ApplyOptions,
    ) -> Result<Descriptor> {
        let r = ApplyRequest {
            diff: Some(descriptor.clone()),
            mounts: mounts.to_vec(),
            payloads: options.payloads,
            sync_fs: options.sync_fs,
        };
        let answer = self.client().apply(in_scope(scope, r)).await;
        let answer = answer.map_err(|s| self.remote.failed(s))?.into_inner();
        answer
            .applied
            .ok_or_else(|| self.remote.incomplete("a descriptor"))
    }

    async fn compare(
        &self,
        scope: &Scope,
        lower: &[Mount],
        upper: &[Mount],
        options: CompareOptions,
    ) -> Result<Descriptor> {
        let r = DiffRequest {
            left: lower.to_vec(),
            right: upper.to_vec(),
            media_type: options.media_type,
            r#ref: options.r#ref,
            labels: options.labels,
            source_date_epoch: options.source_date_epoch.map(Into::into),
        };
        let answer = self.client().diff(in_scope(scope, r)).await;
        let answer = answer.map_err(|s| self.remote.failed(s))?.into_inner();
        answer
            .diff
            .ok_or_else(|| self.remote.incomplete("a descriptor"))
    }
}
