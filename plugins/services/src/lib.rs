//! corten-services: the gRPC and ttrpc façades, one file per service, each over a trait of corten-core.
//!
//! A façade checks the request, reads the [`corten_core::Scope`] from its headers, calls the trait and turns records
//! into messages. It holds no state of its own and no transaction: what it streams is a list that is already complete.
//! Errors become statuses in `corten_core::status`, and nowhere here; their texts are those of containerd 2.4, because
//! clients match on some of them.
//!
//! Most services are two plugins, as in containerd: `io.containerd.service.v1.X-service` is the service, and
//! `io.containerd.grpc.v1.X` puts it on the sockets. There is one implementation, and nothing is passed on by method.
//!
//! Nothing here spawns: a stream is driven by the client that reads it, and dropped with it.

use std::pin::Pin;
use std::time::SystemTime;

use corten_core::{Error, Timestamp, kinds};
use corten_protos::google::protobuf::{Empty, FieldMask};
use corten_registry::Registration;
use futures::Stream;
use tonic::{Response, Status};

pub mod containers;
pub mod content;
pub mod diff;
pub mod events;
mod events_ttrpc;
pub mod health;
pub mod images;
pub mod introspection;
pub mod leases;
pub mod mounts;
pub mod namespaces;
pub mod sandbox;
pub mod sandbox_controller;
pub mod snapshots;
pub mod streaming;
pub mod tasks;
pub mod transfer;
pub mod version;

/// Infos in one message of a streamed list (containerd: contentserver.go, snapshots/service.go).
const BATCH: usize = 100;

/// What a server-streaming method answers with.
pub(crate) type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
/// What a method answers with.
pub(crate) type Answer<T> = Result<Response<T>, Status>;

/// Makes a `Clone` type a plugin of kind Grpc: `facade!(Service, images_server::ImagesServer)`. A third argument makes
/// what is served on ttrpc.
macro_rules! facade {
    ($service:ty, $server:ident :: $type:ident $(, $ttrpc:path)?) => {
        impl corten_core::service::GrpcService for $service {
            fn add_to(
                &self,
                routes: &mut tonic::service::RoutesBuilder,
                limits: corten_core::service::Limits,
            ) {
                let server = $server::$type::new(self.clone())
                    .max_decoding_message_size(limits.received)
                    .max_encoding_message_size(limits.sent);
                routes.add_service(server);
            }
            $(
                fn ttrpc(&self) -> corten_core::service::TtrpcServices {
                    $ttrpc(self)
                }
            )?
        }
    };
}
pub(crate) use facade;

/// The plugin `id` of kind Grpc: puts a service on the sockets.
pub(crate) fn exposed(id: &'static str, service: &'static str) -> Registration {
    Registration::new::<kinds::Grpc>(id)
        .requires::<kinds::Service>()
        .init_plain(move |cx| Box::pin(async move { Ok(cx.by_id::<kinds::Service>(service)?) }))
}

/// An answer.
pub(crate) fn reply<T>(message: T) -> Answer<T> {
    Ok(Response::new(message))
}

/// The answer without content.
pub(crate) fn done() -> Answer<Empty> {
    reply(Empty::default())
}

/// The message inside a request, which clients always send.
pub(crate) fn required<T>(field: Option<T>, name: &str) -> Result<T, Error> {
    field.ok_or_else(|| Error::invalid(format!("{name} required")))
}

/// Paths of an update mask; none when there is no mask.
pub(crate) fn paths(mask: Option<FieldMask>) -> Vec<String> {
    mask.map(|m| m.paths).unwrap_or_default()
}

/// A time as messages carry it.
pub(crate) fn stamp(time: SystemTime) -> Option<Timestamp> {
    Some(time.into())
}

/// Streams a complete list in messages of up to [`BATCH`] items; an empty list is an empty stream.
pub(crate) fn batched<T: Send + 'static, M: Send + 'static>(
    items: Vec<T>,
    message: impl Fn(Vec<T>) -> M + Send + 'static,
) -> Streamed<M> {
    let mut rest = items.into_iter();
    let batches = std::iter::from_fn(move || {
        let batch: Vec<T> = rest.by_ref().take(BATCH).collect();
        (!batch.is_empty()).then(|| Ok(message(batch)))
    });
    Box::pin(futures::stream::iter(batches))
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;

    #[tokio::test]
    async fn lists_are_streamed_in_batches() {
        let sizes = async |n: usize| -> Vec<usize> {
            batched((0..n).collect(), |b| b.len())
                .map(Result::unwrap)
                .collect()
                .await
        };
        assert_eq!(sizes(0).await, [0_usize; 0]);
        assert_eq!(sizes(100).await, [100]);
        assert_eq!(sizes(201).await, [100, 100, 1]);
    }
}
