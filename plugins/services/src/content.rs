//! containerd.services.content.v1.Content: blobs and ingests. Writing has a file of its own.

mod write;

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use corten_core::content::{Content as Store, Info, IngestStatus, ReadAt};
use corten_core::filter::Filter;
use corten_core::service::GrpcService;
use corten_core::{Context, Digest, Error, Kind, Scope, kinds};
use corten_protos::containerd::services::content::v1::{
    AbortRequest, DeleteContentRequest, Info as InfoMessage, InfoRequest, InfoResponse,
    ListContentRequest, ListContentResponse, ListStatusesRequest, ListStatusesResponse,
    ReadContentRequest, ReadContentResponse, Status as StatusMessage, StatusRequest,
    StatusResponse, UpdateRequest, UpdateResponse, WriteContentRequest, WriteContentResponse,
    content_server,
};
use corten_protos::google::protobuf::Empty;
use corten_registry::Registration;
use corten_sys::blocking;
use tonic::{Request, Status, Streaming, async_trait};

use crate::{Answer, Streamed, batched, done, exposed, facade, paths, reply, required, stamp};

/// Bytes in one message of Read.
const CHUNK: usize = 256 << 10;

#[derive(Clone)]
struct Service {
    store: Arc<dyn Store>,
}

facade!(Service, content_server::ContentServer);

#[async_trait]
impl content_server::Content for Service {
    async fn info(&self, r: Request<InfoRequest>) -> Answer<InfoResponse> {
        let scope = Scope::of(&r)?;
        let digest = validated(&r.get_ref().digest)?;
        let info = self.store.info(&scope.namespace, &digest).await?;
        reply(InfoResponse {
            info: Some(info_message(info)),
        })
    }

    async fn update(&self, r: Request<UpdateRequest>) -> Answer<UpdateResponse> {
        let scope = Scope::of(&r)?;
        let r = r.into_inner();
        let info = required(r.info, "info")?;
        let info = Info {
            digest: validated(&info.digest)?,
            size: info.size.try_into().unwrap_or_default(),
            created_at: SystemTime::UNIX_EPOCH,
            updated_at: SystemTime::UNIX_EPOCH,
            labels: info.labels,
        };
        let info = self
            .store
            .update(&scope.namespace, info, &paths(r.update_mask))
            .await?;
        reply(UpdateResponse {
            info: Some(info_message(info)),
        })
    }

    async fn list(&self, r: Request<ListContentRequest>) -> Answer<Streamed<ListContentResponse>> {
        let scope = Scope::of(&r)?;
        let filter = Filter::parse(&r.get_ref().filters)?;
        let all = self.store.list(&scope.namespace, &filter).await?;
        let all = all.into_iter().map(info_message).collect();
        reply(batched(all, |info| ListContentResponse { info }))
    }

    async fn delete(&self, r: Request<DeleteContentRequest>) -> Answer<Empty> {
        let scope = Scope::of(&r)?;
        let digest = Digest::parse(&r.get_ref().digest)?;
        self.store.delete(&scope, &digest).await?;
        done()
    }

    async fn read(&self, r: Request<ReadContentRequest>) -> Answer<Streamed<ReadContentResponse>> {
        let scope = Scope::of(&r)?;
        let r = r.into_inner();
        let digest = Digest::parse(&r.digest)?;
        let reader = self.store.reader_at(&scope.namespace, &digest).await?;
        let (start, end) = range(r.offset, r.size, reader.size())?;
        reply(chunks(reader, start, end))
    }

    async fn status(&self, r: Request<StatusRequest>) -> Answer<StatusResponse> {
        let scope = Scope::of(&r)?;
        let name = &r.get_ref().r#ref;
        let status = self
            .store
            .status(&scope.namespace, name)
            .await
            .with_context(|| format!("could not get status for ref {name:?}"))?;
        reply(StatusResponse {
            status: Some(status_message(status)),
        })
    }

    async fn list_statuses(&self, r: Request<ListStatusesRequest>) -> Answer<ListStatusesResponse> {
        let scope = Scope::of(&r)?;
        let filter = Filter::parse(&r.get_ref().filters)?;
        let all = self.store.list_statuses(&scope.namespace, &filter).await?;
        reply(ListStatusesResponse {
            statuses: all.into_iter().map(status_message).collect(),
        })
    }

    async fn write(
        &self,
        r: Request<Streaming<WriteContentRequest>>,
    ) -> Answer<Streamed<WriteContentResponse>> {
        let scope = Scope::of(&r)?;
        reply(write::session(self.store.clone(), scope, r.into_inner()))
    }

    async fn abort(&self, r: Request<AbortRequest>) -> Answer<Empty> {
        let scope = Scope::of(&r)?;
        self.store.abort(&scope, &r.get_ref().r#ref).await?;
        done()
    }
}

fn validated(digest: &str) -> Result<Digest, Error> {
    Digest::parse(digest).map_err(|_| {
        Error::new(
            Kind::InvalidArgument,
            format!("{digest:?} failed validation"),
        )
    })
}

/// The part of a blob that a Read asks for; size 0 means to the end.
fn range(offset: i64, size: i64, blob: u64) -> Result<(u64, u64), Error> {
    let start = u64::try_from(offset).unwrap_or(0);
    if start > blob {
        return Err(Error::new(
            Kind::OutOfRange,
            format!("read past object length {blob} bytes"),
        ));
    }
    let end = match u64::try_from(size) {
        Ok(size) if size > 0 => start.saturating_add(size).min(blob),
        _ => blob,
    };
    Ok((start, end))
}

/// Streams `start..end`. The offsets told begin at 0, wherever `start` is.
fn chunks(reader: Arc<dyn ReadAt>, start: u64, end: u64) -> Streamed<ReadContentResponse> {
    let stream = futures::stream::try_unfold(start, move |at| {
        let reader = reader.clone();
        async move {
            let wanted = usize::try_from(end.saturating_sub(at))
                .unwrap_or(CHUNK)
                .min(CHUNK);
            if wanted == 0 {
                return Ok(None);
            }
            let data = blocking(move || {
                let mut buffer = vec![0; wanted];
                let mut filled = 0;
                while filled < wanted {
                    match reader.read_at(&mut buffer[filled..], at + filled as u64)? {
                        0 => break,
                        n => filled += n,
                    }
                }
                buffer.truncate(filled);
                Ok(buffer)
            })
            .await?;
            if data.is_empty() {
                return Err(Status::from(Error::new(Kind::Unknown, "unexpected EOF")));
            }
            let next = at + data.len() as u64;
            let offset = i64::try_from(at - start).unwrap_or(i64::MAX);
            let message = ReadContentResponse {
                offset,
                data: Bytes::from(data),
            };
            Ok(Some((message, next)))
        }
    });
    Box::pin(stream)
}

fn info_message(info: Info) -> InfoMessage {
    InfoMessage {
        digest: info.digest.to_string(),
        size: signed(info.size),
        created_at: stamp(info.created_at),
        updated_at: stamp(info.updated_at),
        labels: info.labels,
    }
}

fn status_message(status: IngestStatus) -> StatusMessage {
    StatusMessage {
        started_at: stamp(status.started_at),
        updated_at: stamp(status.updated_at),
        r#ref: status.r#ref,
        offset: signed(status.offset),
        total: signed(status.total),
        expected: status.expected.map(|d| d.to_string()).unwrap_or_default(),
    }
}

fn signed(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

/// The service, and the plugin that puts it on the sockets.
pub fn registrations() -> [Registration; 2] {
    [service(), exposed("content", "content-service")]
}

fn service() -> Registration {
    Registration::new::<kinds::Service>("content-service")
        .requires::<kinds::Metadata>()
        .init_plain(|cx| {
            Box::pin(async move {
                let store = cx.single::<kinds::Metadata>()?.content();
                Ok(Arc::new(Service { store }) as Arc<dyn GrpcService>)
            })
        })
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt;

    use super::*;

    struct Blob(Vec<u8>);
    impl ReadAt for Blob {
        fn size(&self) -> u64 {
            self.0.len() as u64
        }
        fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
            let rest = &self.0[usize::try_from(offset).unwrap()..];
            // Short reads, as files may give.
            let n = rest.len().min(buf.len()).min(100_000);
            buf[..n].copy_from_slice(&rest[..n]);
            Ok(n)
        }
    }

    #[test]
    fn ranges_follow_containerd() {
        assert_eq!(range(0, 0, 10).unwrap(), (0, 10));
        assert_eq!(range(-3, -1, 10).unwrap(), (0, 10));
        assert_eq!(range(4, 3, 10).unwrap(), (4, 7));
        assert_eq!(range(4, i64::MAX, 10).unwrap(), (4, 10));
        assert_eq!(range(10, 0, 10).unwrap(), (10, 10));
        let e = range(11, 0, 10).unwrap_err();
        assert_eq!(e.kind(), Kind::OutOfRange);
        assert_eq!(e.to_string(), "read past object length 10 bytes");
    }

    #[tokio::test]
    async fn reading_tells_offsets_from_zero() {
        let data: Vec<u8> = (0..CHUNK * 2 + 10).map(|i| (i % 251) as u8).collect();
        let blob: Arc<dyn ReadAt> = Arc::new(Blob(data.clone()));
        let all: Vec<_> = chunks(blob, 5, data.len() as u64)
            .try_collect()
            .await
            .unwrap();
        let offsets: Vec<_> = all
            .iter()
            .map(|m| usize::try_from(m.offset).unwrap())
            .collect();
        assert_eq!(offsets, [0, CHUNK, 2 * CHUNK]);
        let read: Vec<u8> = all.iter().flat_map(|m| m.data.clone()).collect();
        assert_eq!(read, data[5..]);
        let none: Vec<_> = chunks(Arc::new(Blob(vec![])), 0, 0)
            .try_collect()
            .await
            .unwrap();
        assert!(none.is_empty());
    }
}
