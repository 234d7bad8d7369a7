//! The other side of the proxies: the services over an implementation, one connection long.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use corten_core::content::{Backend, Info as BlobInfo, IngestStatus, Writer, WriterOptions};
use corten_core::diff::{ApplyOptions, CompareOptions, Differ};
use corten_core::snapshots::{Info, SnapshotKind, Snapshotter};
use corten_core::{Digest, Error, Scope};
use corten_protos::containerd::services::content::v1 as content;
use corten_protos::containerd::services::diff::v1 as diff;
use corten_protos::containerd::services::snapshots::v1 as snapshots;
use corten_protos::google::protobuf::Empty;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use tokio::net::UnixListener;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming, async_trait};

type Answer<T> = Result<Response<T>, Status>;
type Streamed<T> = BoxStream<'static, Result<T, Status>>;

/// Serves one connection at `socket` and then forgets the implementation.
pub(crate) fn serve(socket: &Path, routes: Routes) {
    let _ = std::fs::remove_file(socket);
    let listener = UnixListener::bind(socket).unwrap();
    let one = async move { listener.accept().await.map(|(stream, _)| stream) };
    tokio::spawn(async move {
        let server = tonic::transport::Server::builder().add_routes(routes);
        let _ = server.serve_with_incoming(one.into_stream().boxed()).await;
    });
}

fn reply<T>(message: T) -> Answer<T> {
    Ok(Response::new(message))
}

fn one<T: Send + 'static>(message: T) -> Answer<Streamed<T>> {
    reply(futures::stream::once(async { Ok(message) }).boxed())
}

/// The name under which tests call their snapshotter.
pub(crate) const NAME: &str = "proxied";

#[derive(Clone)]
pub(crate) struct Snapshots(pub(crate) Arc<dyn Snapshotter>);

impl Snapshots {
    fn of(&self, name: &str) -> &dyn Snapshotter {
        assert_eq!(name, NAME);
        self.0.as_ref()
    }
}

fn message(info: Info) -> snapshots::Info {
    let kind = match info.kind {
        SnapshotKind::View => snapshots::Kind::View,
        SnapshotKind::Active => snapshots::Kind::Active,
        SnapshotKind::Committed => snapshots::Kind::Committed,
    };
    snapshots::Info {
        name: info.name,
        parent: info.parent,
        kind: kind.into(),
        created_at: Some(info.created_at.into()),
        updated_at: Some(info.updated_at.into()),
        labels: info.labels,
    }
}

#[async_trait]
impl snapshots::snapshots_server::Snapshots for Snapshots {
    async fn prepare(
        &self,
        r: Request<snapshots::PrepareSnapshotRequest>,
    ) -> Answer<snapshots::PrepareSnapshotResponse> {
        let r = r.into_inner();
        let sn = self.of(&r.snapshotter);
        let mounts = sn.prepare(&r.key, &r.parent, r.labels).await?;
        reply(snapshots::PrepareSnapshotResponse { mounts })
    }
    async fn view(
        &self,
        r: Request<snapshots::ViewSnapshotRequest>,
    ) -> Answer<snapshots::ViewSnapshotResponse> {
        let r = r.into_inner();
        let sn = self.of(&r.snapshotter);
        let mounts = sn.view(&r.key, &r.parent, r.labels).await?;
        reply(snapshots::ViewSnapshotResponse { mounts })
    }
    async fn mounts(
        &self,
        r: Request<snapshots::MountsRequest>,
    ) -> Answer<snapshots::MountsResponse> {
        let r = r.into_inner();
        let mounts = self.of(&r.snapshotter).mounts(&r.key).await?;
        reply(snapshots::MountsResponse { mounts })
    }
    async fn commit(&self, r: Request<snapshots::CommitSnapshotRequest>) -> Answer<Empty> {
        let r = r.into_inner();
        let sn = self.of(&r.snapshotter);
        sn.commit(&r.name, &r.key, &r.parent, r.labels).await?;
        reply(Empty::default())
    }
    async fn remove(&self, r: Request<snapshots::RemoveSnapshotRequest>) -> Answer<Empty> {
        let r = r.into_inner();
        self.of(&r.snapshotter).remove(&r.key).await?;
        reply(Empty::default())
    }
    async fn stat(
        &self,
        r: Request<snapshots::StatSnapshotRequest>,
    ) -> Answer<snapshots::StatSnapshotResponse> {
        let r = r.into_inner();
        let info = self.of(&r.snapshotter).stat(&r.key).await?;
        reply(snapshots::StatSnapshotResponse {
            info: Some(message(info)),
        })
    }
    async fn update(
        &self,
        r: Request<snapshots::UpdateSnapshotRequest>,
    ) -> Answer<snapshots::UpdateSnapshotResponse> {
        let r = r.into_inner();
        let m = r.info.unwrap_or_default();
        let wanted = Info {
            kind: SnapshotKind::Active,
            name: m.name,
            parent: m.parent,
            labels: m.labels,
            created_at: SystemTime::UNIX_EPOCH,
            updated_at: SystemTime::UNIX_EPOCH,
        };
        let paths = r.update_mask.unwrap_or_default().paths;
        let info = self.of(&r.snapshotter).update(wanted, &paths).await?;
        reply(snapshots::UpdateSnapshotResponse {
            info: Some(message(info)),
        })
    }
    async fn list(
        &self,
        r: Request<snapshots::ListSnapshotsRequest>,
    ) -> Answer<Streamed<snapshots::ListSnapshotsResponse>> {
        let all = self.of(&r.get_ref().snapshotter).list().await?;
        one(snapshots::ListSnapshotsResponse {
            info: all.into_iter().map(message).collect(),
        })
    }
    async fn usage(&self, r: Request<snapshots::UsageRequest>) -> Answer<snapshots::UsageResponse> {
        let r = r.into_inner();
        let usage = self.of(&r.snapshotter).usage(&r.key).await?;
        reply(snapshots::UsageResponse {
            size: usage.size,
            inodes: usage.inodes,
        })
    }
    async fn cleanup(&self, r: Request<snapshots::CleanupRequest>) -> Answer<Empty> {
        self.of(&r.get_ref().snapshotter).cleanup().await?;
        reply(Empty::default())
    }
}

#[derive(Clone)]
pub(crate) struct Content(pub(crate) Arc<dyn Backend>);

fn blob(i: BlobInfo) -> content::Info {
    content::Info {
        digest: i.digest.to_string(),
        size: i.size as i64,
        created_at: Some(i.created_at.into()),
        updated_at: Some(i.updated_at.into()),
        labels: i.labels,
    }
}

fn ingest(s: IngestStatus) -> content::Status {
    content::Status {
        started_at: Some(s.started_at.into()),
        updated_at: Some(s.updated_at.into()),
        r#ref: s.r#ref,
        offset: s.offset as i64,
        total: s.total as i64,
        expected: s.expected.map(|d| d.to_string()).unwrap_or_default(),
    }
}

fn options(r: &content::WriteContentRequest) -> Result<WriterOptions, Error> {
    Ok(WriterOptions {
        r#ref: r.r#ref.clone(),
        total: r.total as u64,
        expected: expected(r)?,
        media_type: String::new(),
    })
}

fn expected(r: &content::WriteContentRequest) -> Result<Option<Digest>, Error> {
    (!r.expected.is_empty())
        .then(|| Digest::parse(&r.expected))
        .transpose()
}

/// One message of a Write call.
async fn step(
    w: &mut Box<dyn Writer>,
    r: content::WriteContentRequest,
) -> Result<content::WriteContentResponse, Error> {
    let action = r.action();
    if action != content::WriteAction::Stat {
        if r.offset == 0 && w.status().offset > 0 {
            w.truncate(0).await?;
        }
        assert_eq!(r.offset as u64, w.status().offset);
        if !r.data.is_empty() {
            w.write(r.data.clone()).await?;
        }
    }
    let offset = w.status().offset as i64;
    if action == content::WriteAction::Commit {
        w.commit(r.total as u64, expected(&r)?, r.labels).await?;
    }
    Ok(content::WriteContentResponse {
        action: action.into(),
        started_at: Some(w.status().started_at.into()),
        updated_at: Some(w.status().updated_at.into()),
        offset,
        total: r.total,
        digest: w.digest().to_string(),
    })
}

#[async_trait]
impl content::content_server::Content for Content {
    async fn info(&self, r: Request<content::InfoRequest>) -> Answer<content::InfoResponse> {
        let info = self.0.info(&Digest::parse(&r.get_ref().digest)?).await?;
        reply(content::InfoResponse {
            info: Some(blob(info)),
        })
    }
    async fn list(
        &self,
        _: Request<content::ListContentRequest>,
    ) -> Answer<Streamed<content::ListContentResponse>> {
        let all = self.0.list().await?;
        one(content::ListContentResponse {
            info: all.into_iter().map(blob).collect(),
        })
    }
    async fn delete(&self, r: Request<content::DeleteContentRequest>) -> Answer<Empty> {
        self.0.delete(&Digest::parse(&r.get_ref().digest)?).await?;
        reply(Empty::default())
    }
    async fn read(
        &self,
        r: Request<content::ReadContentRequest>,
    ) -> Answer<Streamed<content::ReadContentResponse>> {
        let r = r.into_inner();
        let reader = self.0.reader_at(&Digest::parse(&r.digest)?).await?;
        let mut data = vec![0; r.size as usize];
        let n = reader.read_at(&mut data, r.offset as u64)?;
        data.truncate(n);
        one(content::ReadContentResponse {
            offset: r.offset,
            data: data.into(),
        })
    }
    async fn status(&self, r: Request<content::StatusRequest>) -> Answer<content::StatusResponse> {
        let status = self.0.status(&r.get_ref().r#ref).await?;
        reply(content::StatusResponse {
            status: Some(ingest(status)),
        })
    }
    async fn list_statuses(
        &self,
        _: Request<content::ListStatusesRequest>,
    ) -> Answer<content::ListStatusesResponse> {
        let all = self.0.list_statuses().await?;
        reply(content::ListStatusesResponse {
            statuses: all.into_iter().map(ingest).collect(),
        })
    }
    async fn write(
        &self,
        r: Request<Streaming<content::WriteContentRequest>>,
    ) -> Answer<Streamed<content::WriteContentResponse>> {
        let mut requests = r.into_inner();
        let first = requests.message().await?.unwrap();
        let mut w = self.0.writer(options(&first)?).await?;
        let answer = step(&mut w, first).await?;
        let rest = futures::stream::try_unfold((w, requests), |(mut w, mut requests)| async {
            let Some(r) = requests.message().await? else {
                return Ok(None);
            };
            let answer = step(&mut w, r).await?;
            Ok(Some((answer, (w, requests))))
        });
        reply(futures::stream::iter([Ok(answer)]).chain(rest).boxed())
    }
    async fn abort(&self, r: Request<content::AbortRequest>) -> Answer<Empty> {
        self.0.abort(&r.get_ref().r#ref).await?;
        reply(Empty::default())
    }
}

#[derive(Clone)]
pub(crate) struct Diff(pub(crate) Arc<dyn Differ>);

#[async_trait]
impl diff::diff_server::Diff for Diff {
    async fn apply(&self, r: Request<diff::ApplyRequest>) -> Answer<diff::ApplyResponse> {
        let scope = Scope::of(&r)?;
        let r = r.into_inner();
        let options = ApplyOptions {
            sync_fs: r.sync_fs,
            payloads: r.payloads,
        };
        let descriptor = r.diff.unwrap_or_default();
        let applied = self
            .0
            .apply(&scope, &descriptor, &r.mounts, options)
            .await?;
        reply(diff::ApplyResponse {
            applied: Some(applied),
        })
    }
    async fn diff(&self, r: Request<diff::DiffRequest>) -> Answer<diff::DiffResponse> {
        let scope = Scope::of(&r)?;
        let r = r.into_inner();
        let options = CompareOptions {
            media_type: r.media_type,
            r#ref: r.r#ref,
            labels: r.labels,
            source_date_epoch: r.source_date_epoch.map(|t| t.try_into().unwrap()),
        };
        let made = self.0.compare(&scope, &r.left, &r.right, options).await?;
        reply(diff::DiffResponse { diff: Some(made) })
    }
}
