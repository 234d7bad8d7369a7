//! containerd.services.transfer.v1: one call that moves an image, with its progress on a stream of the client.

use std::sync::Arc;
use std::time::Duration;

use corten_core::service::GrpcService;
use corten_core::streaming::{Stream, Streams};
use corten_core::transfer::Transfer;
use corten_core::{Any, Error, Kind, Result, Scope, kinds};
use corten_protos::any;
use corten_protos::containerd::services::transfer::v1::{TransferRequest, transfer_server};
use corten_protos::containerd::types::transfer::Progress;
use corten_protos::google::protobuf::Empty;
use corten_registry::Registration;
use tokio::sync::mpsc;
use tonic::Request;

use crate::{Answer, done, facade, required};

/// Progress events on their way to a client that does not read; more make the transfer's reporter wait.
const AHEAD: usize = 32;
/// A client that takes no event for so long is told nothing more.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone)]
struct Service {
    transfers: Arc<Vec<Arc<dyn Transfer>>>,
    streams: Arc<dyn Streams>,
}

impl Service {
    // The first transfer plugin that knows this pair of ends.
    async fn run(
        &self,
        scope: &Scope,
        source: Any,
        destination: Any,
        progress: Option<mpsc::Sender<Progress>>,
    ) -> Result<()> {
        for transfer in self.transfers.iter() {
            let (from, to) = (source.clone(), destination.clone());
            match transfer.transfer(scope, from, to, progress.clone()).await {
                Err(e) if e.kind() == Kind::NotImplemented => {
                    tracing::debug!(error = %e, "transfer not implemented");
                }
                other => return other,
            }
        }
        Err(Error::new(
            Kind::NotImplemented,
            format!(
                "method Transfer not implemented for {} to {}",
                source.type_url, destination.type_url
            ),
        ))
    }
}

// Passes events on until there are no more; a client that stopped reading does not stop the transfer.
async fn report(mut events: mpsc::Receiver<Progress>, stream: &dyn Stream) {
    let mut listening = true;
    while let Some(event) = events.recv().await {
        if !listening {
            continue;
        }
        match tokio::time::timeout(PATIENCE, stream.send(any::pack(&event))).await {
            Ok(Ok(())) => continue,
            Ok(Err(error)) => tracing::debug!(%error, "progress not sent"),
            Err(_) => tracing::warn!("client reads no progress, it is told no more"),
        }
        listening = false;
    }
}

#[tonic::async_trait]
impl transfer_server::Transfer for Service {
    async fn transfer(&self, request: Request<TransferRequest>) -> Answer<Empty> {
        let scope = Scope::of(&request)?;
        let request = request.into_inner();
        let source = required(request.source, "source")?;
        let destination = required(request.destination, "destination")?;
        let id = request
            .options
            .map(|o| o.progress_stream)
            .unwrap_or_default();
        if id.is_empty() {
            self.run(&scope, source, destination, None).await?;
            return done();
        }
        let stream = self.streams.get(&scope.namespace, &id)?;
        let (tx, events) = mpsc::channel(AHEAD);
        // The channel ends with the transfer's last sender, so all events are out before the answer.
        let work = self.run(&scope, source, destination, Some(tx));
        let (result, ()) = tokio::join!(work, report(events, &*stream));
        stream.close().await;
        result?;
        done()
    }
}

facade!(Service, transfer_server::TransferServer);

/// The plugin.
pub fn registration() -> Registration {
    Registration::new::<kinds::Grpc>("transfer")
        .requires::<kinds::Transfer>()
        .requires::<kinds::Streaming>()
        .init_plain(|cx| {
            Box::pin(async move {
                let transfers = cx
                    .all::<kinds::Transfer>()?
                    .into_values()
                    .map(|(t, _)| t)
                    .collect();
                let streams = cx.by_id::<kinds::Streaming>("manager")?;
                Ok(Arc::new(Service {
                    transfers: Arc::new(transfers),
                    streams,
                }) as Arc<dyn GrpcService>)
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client that keeps its stream open and never reads.
    struct Deaf;

    #[tonic::async_trait]
    impl Stream for Deaf {
        async fn recv(&self) -> Result<Option<Any>> {
            std::future::pending().await
        }
        async fn send(&self, _: Any) -> Result<()> {
            std::future::pending().await
        }
        async fn close(&self) {}
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_no_progress_does_not_stop_the_transfer() {
        let (tx, events) = mpsc::channel(AHEAD);
        let work = async move {
            for _ in 0..AHEAD * 4 {
                tx.send(Progress::default()).await.unwrap();
            }
        };
        let both = futures::future::join(work, report(events, &Deaf));
        let patience = tokio::time::timeout(PATIENCE * 2, both);
        assert!(patience.await.is_ok(), "the transfer waits for its client");
    }
}
