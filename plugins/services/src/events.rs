//! containerd.services.events.v1.Events.
//!
//! Subscribe needs no namespace and sees all of them unless a filter says otherwise.

use std::sync::Arc;

use corten_core::events::Events as Exchange;
use corten_core::filter::Filter;
use corten_core::service::{GrpcService, TtrpcServices};
use corten_core::{Context, Error, Kind, Scope, kinds};
use corten_protos::containerd::services::events::v1::{
    ForwardRequest, PublishRequest, SubscribeRequest, events_server,
};
use corten_protos::containerd::types::Envelope;
use corten_protos::google::protobuf::Empty;
use corten_registry::Registration;
use futures::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, async_trait};

use crate::{Answer, Streamed, done, events_ttrpc, facade, reply, required};

/// Shims forward their events on the ttrpc socket.
fn ttrpc(service: &Service) -> TtrpcServices {
    events_ttrpc::services(service.events.clone())
}

#[derive(Clone)]
struct Service {
    events: Arc<dyn Exchange>,
}

facade!(Service, events_server::EventsServer, ttrpc);

#[async_trait]
impl events_server::Events for Service {
    async fn publish(&self, r: Request<PublishRequest>) -> Answer<Empty> {
        let scope = Scope::of(&r)?;
        let r = r.into_inner();
        let event = required(r.event, "event")?;
        self.events
            .publish(&scope.namespace, &r.topic, event)
            .await?;
        done()
    }

    async fn forward(&self, r: Request<ForwardRequest>) -> Answer<Empty> {
        let envelope = required(r.into_inner().envelope, "envelope")?;
        self.events.forward(envelope).await?;
        done()
    }

    async fn subscribe(&self, r: Request<SubscribeRequest>) -> Answer<Streamed<Envelope>> {
        let filter =
            Filter::parse(&r.get_ref().filters).context("failed parsing subscription filters")?;
        let envelopes = ReceiverStream::new(self.events.subscribe(filter)).map(Ok);
        // The exchange ends a channel only to get rid of a reader that is too slow: there is a gap from here on.
        let end = futures::stream::once(async {
            Err(Status::from(Error::new(
                Kind::ResourceExhausted,
                "subscription error: the subscriber does not keep up",
            )))
        });
        reply(Box::pin(envelopes.chain(end)))
    }
}

/// The plugin.
pub fn registration() -> Registration {
    Registration::new::<kinds::Grpc>("events")
        .requires::<kinds::Event>()
        .init_plain(|cx| {
            Box::pin(async move {
                let events = cx.by_id::<kinds::Event>("exchange")?;
                Ok(Arc::new(Service { events }) as Arc<dyn GrpcService>)
            })
        })
}
