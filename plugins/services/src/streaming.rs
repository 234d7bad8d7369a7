//! containerd.services.streaming.v1: streams that a client opens and names, for other services to use.
//!
//! The first message names the stream; it is registered and then acknowledged by an `Empty`, for which clients wait
//! before they name it to anybody. The call lasts until one side closes: the daemon by [`Stream::close`], the client by
//! going away, which also takes the stream out of the registry.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use corten_core::service::GrpcService;
use corten_core::streaming::{Stream, Streams};
use corten_core::{Any, Error, Kind, Namespace, Result, Scope, kinds};
use corten_protos::any;
use corten_protos::containerd::services::streaming::v1::{StreamInit, streaming_server};
use corten_protos::google::protobuf::Empty;
use corten_registry::Registration;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming};

use crate::{Answer, Streamed, facade};

/// Messages on their way to a client that does not read; more wait in `send`.
const AHEAD: usize = 16;
/// How long a stream that is closed waits for its last messages to be taken.
const LAST_WORDS: Duration = Duration::from_secs(1);

#[derive(Clone)]
struct Service {
    streams: Arc<dyn Streams>,
}

type Outgoing = mpsc::Sender<Result<Any, Status>>;

/// One open call, as the registry holds it.
struct Call {
    incoming: tokio::sync::Mutex<Streaming<Any>>,
    outgoing: Mutex<Option<Outgoing>>,
}

#[async_trait]
impl Stream for Call {
    async fn recv(&self) -> Result<Option<Any>> {
        match self.incoming.lock().await.message().await {
            Ok(message) => Ok(message),
            Err(status) => Err(status.into()),
        }
    }

    async fn send(&self, message: Any) -> Result<()> {
        let outgoing = self.outgoing.lock().clone();
        let gone = || Error::new(Kind::Unavailable, "stream is closed");
        outgoing
            .ok_or_else(gone)?
            .send(Ok(message))
            .await
            .map_err(|_| gone())
    }

    async fn close(&self) {
        let Some(outgoing) = self.outgoing.lock().take() else {
            return;
        };
        // All room is there when all was taken: what follows on another call of this client comes after it.
        let _ = tokio::time::timeout(LAST_WORDS, outgoing.reserve_many(AHEAD)).await;
    }
}

/// What the client reads; dropped when the call is over, however it ended.
struct Answers {
    messages: mpsc::Receiver<Result<Any, Status>>,
    streams: Arc<dyn Streams>,
    namespace: Namespace,
    id: String,
    call: Arc<dyn Stream>,
}

impl futures::Stream for Answers {
    type Item = Result<Any, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.messages.poll_recv(cx)
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        self.streams.remove(&self.namespace, &self.id, &self.call);
    }
}

#[tonic::async_trait]
impl streaming_server::Streaming for Service {
    async fn stream(&self, request: Request<Streaming<Any>>) -> Answer<Streamed<Any>> {
        let Scope { namespace, lease } = Scope::of(&request)?;
        let mut incoming = request.into_inner();
        let first = incoming
            .message()
            .await?
            .ok_or_else(|| Error::invalid("stream closed before its init message"))?;
        let init: StreamInit =
            any::unpack(&first).map_err(|e| Error::invalid(format!("stream init message: {e}")))?;
        let (tx, messages) = mpsc::channel(AHEAD);
        let call: Arc<dyn Stream> = Arc::new(Call {
            incoming: tokio::sync::Mutex::new(incoming),
            outgoing: Mutex::new(Some(tx.clone())),
        });
        self.streams
            .register_leased(&namespace, lease.as_deref(), &init.id, call.clone())?;
        let answers = Answers {
            messages,
            streams: self.streams.clone(),
            namespace,
            id: init.id,
            call,
        };
        // The channel is new and has room.
        let acknowledged = tx.try_send(Ok(any::pack(&Empty::default())));
        acknowledged.map_err(|_| Error::internal("acknowledge stream"))?;
        Ok(Response::new(Box::pin(answers)))
    }
}

facade!(Service, streaming_server::StreamingServer);

/// The plugin.
pub fn registration() -> Registration {
    Registration::new::<kinds::Grpc>("streaming")
        .requires::<kinds::Streaming>()
        .init_plain(|cx| {
            Box::pin(async move {
                let streams = cx.by_id::<kinds::Streaming>("manager")?;
                Ok(Arc::new(Service { streams }) as Arc<dyn GrpcService>)
            })
        })
}
