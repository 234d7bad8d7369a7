//! containerd.services.snapshots.v1.Snapshots.

use std::sync::Arc;
use std::time::SystemTime;

use corten_core::filter::Filter;
use corten_core::service::GrpcService;
use corten_core::snapshots::{Commit, Info, SnapshotKind, Snapshots as Store};
use corten_core::{Error, Scope, kinds};
use corten_protos::containerd::services::snapshots::v1::{
    CleanupRequest, CommitSnapshotRequest, Info as Message, Kind as KindMessage,
    ListSnapshotsRequest, ListSnapshotsResponse, MountsRequest, MountsResponse,
    PrepareSnapshotRequest, PrepareSnapshotResponse, RemoveSnapshotRequest, StatSnapshotRequest,
    StatSnapshotResponse, UpdateSnapshotRequest, UpdateSnapshotResponse, UsageRequest,
    UsageResponse, ViewSnapshotRequest, ViewSnapshotResponse, snapshots_server,
};
use corten_protos::google::protobuf::Empty;
use corten_registry::Registration;
use tonic::{Request, async_trait};

use crate::{Answer, Streamed, batched, done, exposed, facade, paths, reply, required, stamp};

#[derive(Clone)]
struct Service {
    store: Arc<dyn Store>,
}

facade!(Service, snapshots_server::SnapshotsServer);

#[async_trait]
impl snapshots_server::Snapshots for Service {
    async fn prepare(&self, r: Request<PrepareSnapshotRequest>) -> Answer<PrepareSnapshotResponse> {
        let scope = Scope::of(&r)?;
        let r = r.into_inner();
        let name = named(&r.snapshotter)?;
        let mounts = self
            .store
            .prepare(&scope, name, &r.key, &r.parent, r.labels)
            .await?;
        reply(PrepareSnapshotResponse { mounts })
    }

    async fn view(&self, r: Request<ViewSnapshotRequest>) -> Answer<ViewSnapshotResponse> {
        let scope = Scope::of(&r)?;
        let r = r.into_inner();
        let name = named(&r.snapshotter)?;
        let mounts = self
            .store
            .view(&scope, name, &r.key, &r.parent, r.labels)
            .await?;
        reply(ViewSnapshotResponse { mounts })
    }

    async fn mounts(&self, r: Request<MountsRequest>) -> Answer<MountsResponse> {
        let scope = Scope::of(&r)?;
        let r = r.into_inner();
        let name = named(&r.snapshotter)?;
        reply(MountsResponse {
            mounts: self.store.mounts(&scope.namespace, name, &r.key).await?,
        })
    }

    async fn commit(&self, r: Request<CommitSnapshotRequest>) -> Answer<Empty> {
        let scope = Scope::of(&r)?;
        let r = r.into_inner();
        let commit = Commit {
            name: r.name,
            key: r.key,
            parent: r.parent,
            labels: r.labels,
        };
        self.store
            .commit(&scope, named(&r.snapshotter)?, commit)
            .await?;
        done()
    }

    async fn remove(&self, r: Request<RemoveSnapshotRequest>) -> Answer<Empty> {
        let scope = Scope::of(&r)?;
        let r = r.into_inner();
        self.store
            .remove(&scope, named(&r.snapshotter)?, &r.key)
            .await?;
        done()
    }

    async fn stat(&self, r: Request<StatSnapshotRequest>) -> Answer<StatSnapshotResponse> {
        let scope = Scope::of(&r)?;
        let r = r.into_inner();
        let info = self
            .store
            .stat(&scope.namespace, named(&r.snapshotter)?, &r.key)
            .await?;
        reply(StatSnapshotResponse {
            info: Some(message(info)),
        })
    }

    async fn update(&self, r: Request<UpdateSnapshotRequest>) -> Answer<UpdateSnapshotResponse> {
        let scope = Scope::of(&r)?;
        let r = r.into_inner();
        let name = named(&r.snapshotter)?;
        let info = wanted(required(r.info, "info")?);
        let info = self
            .store
            .update(&scope.namespace, name, info, &paths(r.update_mask))
            .await?;
        reply(UpdateSnapshotResponse {
            info: Some(message(info)),
        })
    }

    async fn list(
        &self,
        r: Request<ListSnapshotsRequest>,
    ) -> Answer<Streamed<ListSnapshotsResponse>> {
        let scope = Scope::of(&r)?;
        let r = r.into_inner();
        let name = named(&r.snapshotter)?;
        let filter = Filter::parse(&r.filters)?;
        let all = self.store.list(&scope.namespace, name, &filter).await?;
        let all = all.into_iter().map(message).collect();
        reply(batched(all, |info| ListSnapshotsResponse { info }))
    }

    async fn usage(&self, r: Request<UsageRequest>) -> Answer<UsageResponse> {
        let scope = Scope::of(&r)?;
        let r = r.into_inner();
        let usage = self
            .store
            .usage(&scope.namespace, named(&r.snapshotter)?, &r.key)
            .await?;
        reply(UsageResponse {
            size: usage.size,
            inodes: usage.inodes,
        })
    }

    async fn cleanup(&self, r: Request<CleanupRequest>) -> Answer<Empty> {
        let scope = Scope::of(&r)?;
        let name = named(&r.get_ref().snapshotter)?;
        self.store.cleanup(&scope.namespace, name).await?;
        done()
    }
}

fn named(snapshotter: &str) -> Result<&str, Error> {
    if snapshotter.is_empty() {
        return Err(Error::invalid("snapshotter argument missing"));
    }
    Ok(snapshotter)
}

fn message(info: Info) -> Message {
    let kind = match info.kind {
        SnapshotKind::View => KindMessage::View,
        SnapshotKind::Active => KindMessage::Active,
        SnapshotKind::Committed => KindMessage::Committed,
    };
    Message {
        name: info.name,
        parent: info.parent,
        kind: kind.into(),
        created_at: stamp(info.created_at),
        updated_at: stamp(info.updated_at),
        labels: info.labels,
    }
}

/// What an update asks for: only name and labels count.
fn wanted(info: Message) -> Info {
    let kind = match KindMessage::try_from(info.kind) {
        Ok(KindMessage::View) => SnapshotKind::View,
        Ok(KindMessage::Committed) => SnapshotKind::Committed,
        _ => SnapshotKind::Active,
    };
    Info {
        kind,
        name: info.name,
        parent: info.parent,
        labels: info.labels,
        created_at: SystemTime::UNIX_EPOCH,
        updated_at: SystemTime::UNIX_EPOCH,
    }
}

/// The service, and the plugin that puts it on the sockets.
pub fn registrations() -> [Registration; 2] {
    [service(), exposed("snapshots", "snapshots-service")]
}

fn service() -> Registration {
    Registration::new::<kinds::Service>("snapshots-service")
        .requires::<kinds::Metadata>()
        .init_plain(|cx| {
            Box::pin(async move {
                let store = cx.single::<kinds::Metadata>()?.snapshots();
                Ok(Arc::new(Service { store }) as Arc<dyn GrpcService>)
            })
        })
}
