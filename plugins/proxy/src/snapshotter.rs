//! containerd.services.snapshots.v1.Snapshots of another process as a snapshotter.

use std::sync::OnceLock;
use std::time::SystemTime;

use async_trait::async_trait;
use corten_core::snapshots::{Info, SnapshotKind, Snapshotter, Usage};
use corten_core::{Labels, Mount, Result};
use corten_protos::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient;
use corten_protos::containerd::services::snapshots::v1::{
    CleanupRequest, CommitSnapshotRequest, Info as Message, Kind, ListSnapshotsRequest,
    MountsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
    UpdateSnapshotRequest, UsageRequest, ViewSnapshotRequest,
};
use corten_protos::google::protobuf::{FieldMask, Timestamp};
use tonic::transport::Channel;

use crate::channel::{MAX_MESSAGE, Remote, request};

/// A snapshotter elsewhere.
#[derive(Debug)]
pub(crate) struct Proxy {
    remote: Remote,
    client: OnceLock<SnapshotsClient<Channel>>,
}

// === impl Proxy ===

impl Proxy {
    pub(crate) fn new(remote: Remote) -> Self {
        Self {
            remote,
            client: OnceLock::new(),
        }
    }

    fn client(&self) -> SnapshotsClient<Channel> {
        let make = || {
            SnapshotsClient::new(self.remote.channel())
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE)
        };
        self.client.get_or_init(make).clone()
    }

    fn name(&self) -> String {
        self.remote.name.clone()
    }

    fn info(&self, info: Option<Message>) -> Result<Info> {
        let m = info.ok_or_else(|| self.remote.incomplete("info"))?;
        Ok(info_of(m))
    }
}

#[async_trait]
impl Snapshotter for Proxy {
    async fn stat(&self, key: &str) -> Result<Info> {
        let r = StatSnapshotRequest {
            snapshotter: self.name(),
            key: key.to_owned(),
        };
        let answer = self.client().stat(request(r)).await;
        let answer = answer.map_err(|s| self.remote.failed(s))?;
        self.info(answer.into_inner().info)
    }

    async fn update(&self, info: Info, paths: &[String]) -> Result<Info> {
        let r = UpdateSnapshotRequest {
            snapshotter: self.name(),
            info: Some(message_of(info)),
            update_mask: Some(FieldMask {
                paths: paths.to_vec(),
            }),
        };
        let answer = self.client().update(request(r)).await;
        let answer = answer.map_err(|s| self.remote.failed(s))?;
        self.info(answer.into_inner().info)
    }

    async fn usage(&self, key: &str) -> Result<Usage> {
        let r = UsageRequest {
            snapshotter: self.name(),
            key: key.to_owned(),
        };
        let answer = self.client().usage(request(r)).await;
        let usage = answer.map_err(|s| self.remote.failed(s))?.into_inner();
        Ok(Usage {
            inodes: usage.inodes,
            size: usage.size,
        })
    }

    async fn mounts(&self, key: &str) -> Result<Vec<Mount>> {
        let r = MountsRequest {
            snapshotter: self.name(),
            key: key.to_owned(),
        };
        let answer = self.client().mounts(request(r)).await;
        let answer = answer.map_err(|s| self.remote.failed(s))?;
        Ok(answer.into_inner().mounts)
    }

    async fn prepare(&self, key: &str, parent: &str, labels: Labels) -> Result<Vec<Mount>> {
        let r = PrepareSnapshotRequest {
            snapshotter: self.name(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels,
        };
        let answer = self.client().prepare(request(r)).await;
        let answer = answer.map_err(|s| self.remote.failed(s))?;
        Ok(answer.into_inner().mounts)
    }

    async fn view(&self, key: &str, parent: &str, labels: Labels) -> Result<Vec<Mount>> {
        let r = ViewSnapshotRequest {
            snapshotter: self.name(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels,
        };
        let answer = self.client().view(request(r)).await;
        let answer = answer.map_err(|s| self.remote.failed(s))?;
        Ok(answer.into_inner().mounts)
    }

    async fn commit(&self, name: &str, key: &str, parent: &str, labels: Labels) -> Result<()> {
        let r = CommitSnapshotRequest {
            snapshotter: self.name(),
            name: name.to_owned(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels,
        };
        let answer = self.client().commit(request(r)).await;
        answer.map(drop).map_err(|s| self.remote.failed(s))
    }

    async fn remove(&self, key: &str) -> Result<()> {
        let r = RemoveSnapshotRequest {
            snapshotter: self.name(),
            key: key.to_owned(),
        };
        let answer = self.client().remove(request(r)).await;
        answer.map(drop).map_err(|s| self.remote.failed(s))
    }

    async fn list(&self) -> Result<Vec<Info>> {
        let r = ListSnapshotsRequest {
            snapshotter: self.name(),
            filters: Vec::new(),
        };
        let answer = self.client().list(request(r)).await;
        let mut batches = answer.map_err(|s| self.remote.failed(s))?.into_inner();
        let mut all = Vec::new();
        while let Some(batch) = batches.message().await.map_err(|s| self.remote.failed(s))? {
            all.extend(batch.info.into_iter().map(info_of));
        }
        Ok(all)
    }

    async fn cleanup(&self) -> Result<()> {
        let r = CleanupRequest {
            snapshotter: self.name(),
        };
        let answer = self.client().cleanup(request(r)).await;
        answer.map(drop).map_err(|s| self.remote.failed(s))
    }
}

fn info_of(m: Message) -> Info {
    let kind = match m.kind() {
        Kind::View => SnapshotKind::View,
        Kind::Committed => SnapshotKind::Committed,
        Kind::Active | Kind::Unknown => SnapshotKind::Active,
    };
    Info {
        kind,
        name: m.name,
        parent: m.parent,
        labels: m.labels,
        created_at: time_of(m.created_at),
        updated_at: time_of(m.updated_at),
    }
}

fn message_of(info: Info) -> Message {
    let kind = match info.kind {
        SnapshotKind::View => Kind::View,
        SnapshotKind::Active => Kind::Active,
        SnapshotKind::Committed => Kind::Committed,
    };
    Message {
        name: info.name,
        parent: info.parent,
        kind: kind.into(),
        created_at: Some(info.created_at.into()),
        updated_at: Some(info.updated_at.into()),
        labels: info.labels,
    }
}

/// A time of an answer; the epoch when it says none.
pub(crate) fn time_of(time: Option<Timestamp>) -> SystemTime {
    time.and_then(|t| SystemTime::try_from(t).ok())
        .unwrap_or(SystemTime::UNIX_EPOCH)
}
