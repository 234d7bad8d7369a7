//! containerd.services.events.ttrpc.v1.Events: how shims report what happens to their containers.

use std::sync::Arc;

use corten_core::events::Events as Exchange;
use corten_core::scope::NAMESPACE_TTRPC;
use corten_core::service::TtrpcServices;
use corten_core::{Error, Kind};
use corten_protos::containerd::services::events::ttrpc::v1::ForwardRequest;
use corten_protos::google::protobuf::Empty;
use corten_protos::ttrpc::runtime::TtrpcContext;
use corten_protos::ttrpc::{Events, create_events, error};
use tonic::async_trait;
use ttrpc::Code;

struct Service {
    events: Arc<dyn Exchange>,
}

#[async_trait]
impl Events for Service {
    async fn forward(&self, cx: &TtrpcContext, r: ForwardRequest) -> ttrpc::Result<Empty> {
        let mut envelope = r.envelope.ok_or_else(|| {
            error(
                Code::INVALID_ARGUMENT,
                "envelope required: invalid argument",
            )
        })?;
        if envelope.namespace.is_empty() {
            let called_in = cx.metadata.get(NAMESPACE_TTRPC).and_then(|v| v.first());
            envelope.namespace = called_in.cloned().unwrap_or_default();
        }
        self.events
            .forward(envelope)
            .await
            .map_err(|e| refused(&e))?;
        Ok(Empty::default())
    }
}

fn refused(e: &Error) -> ttrpc::Error {
    let code = match e.kind() {
        Kind::InvalidArgument => Code::INVALID_ARGUMENT,
        Kind::FailedPrecondition => Code::FAILED_PRECONDITION,
        Kind::Unavailable => Code::UNAVAILABLE,
        _ => Code::UNKNOWN,
    };
    error(code, e.to_string())
}

/// What the ttrpc socket serves.
pub(crate) fn services(events: Arc<dyn Exchange>) -> TtrpcServices {
    create_events(Arc::new(Service { events }))
}
