//! `cortend publish`: an event from standard input, for shims of containerd 1.x that call the daemon's binary.

use std::io::Read as _;

use anyhow::{Context as _, Result};
use corten_protos::containerd::services::events::v1::PublishRequest;
use corten_protos::containerd::services::events::v1::events_client::EventsClient;
use corten_protos::google::protobuf::Any;
use prost::Message as _;
use tonic::metadata::MetadataValue;

use crate::server::client;

/// An event larger than this is not an event.
const LIMIT: u64 = 4 << 20;

/// Reads an Any from standard input and publishes it.
pub(crate) fn run(address: &str, namespace: &str, topic: &str) -> Result<()> {
    let mut bytes = Vec::new();
    std::io::stdin()
        .lock()
        .take(LIMIT)
        .read_to_end(&mut bytes)
        .context("read the event")?;
    let event = Any::decode(bytes.as_slice()).context("decode the event as Any")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut events = EventsClient::new(client(address).await?);
        let mut request = tonic::Request::new(PublishRequest {
            topic: topic.into(),
            event: Some(event),
        });
        request.metadata_mut().insert(
            corten_core::scope::NAMESPACE_HEADER,
            MetadataValue::try_from(namespace).context("namespace is not a header value")?,
        );
        let published = events.publish(request).await;
        published.map_err(|status| anyhow::anyhow!("{}", status.message()))?;
        Ok(())
    })
}
