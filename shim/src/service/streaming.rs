//! Owns `containerd.services.streaming.v1.Streaming`: clients open named byte streams, processes take them (`io::remote`).

use std::rc::Rc;

use corten_protos::any;
use corten_protos::containerd::services::streaming::v1::StreamInit;
use corten_protos::google::protobuf::{Any, Empty};
use corten_protos::ttrpc::runtime::{ServerStream, StreamInner};
use tokio::sync::oneshot;

use crate::error::{Error, Result};
use crate::io::Stream;
use crate::task::Shim;

pub(super) const NAME: &str = "containerd.services.streaming.v1.Streaming";

/// All methods of the service.
pub(super) const METHODS: &[&str] = &["Stream"];

/// Takes a stream in, and returns when nobody needs it any more: the answer closes it.
pub(super) async fn serve(shim: &Rc<Shim>, stream: StreamInner) -> Result<()> {
    let mut stream = ServerStream::<Any, Any>::new(stream);
    let init = loop {
        let first = stream.recv().await;
        let first = first.map_err(|e| Error::unknown(format!("open a stream: {e}")))?;
        let first = first.ok_or_else(|| Error::invalid("a stream ended before it began"))?;
        // The ttrpc crate makes a message of the request itself where the client did not flag it as empty.
        if !first.type_url.is_empty() {
            break first;
        }
    };
    let init: StreamInit = any::unpack(&init).map_err(|e| Error::invalid(e.to_string()))?;
    if init.id.is_empty() {
        return Err(Error::invalid("a stream needs an id"));
    }
    let (sender, receiver) = stream.split();
    // The client refers to the stream once it has this answer.
    let (open, mut closed) = oneshot::channel();
    let ready = sender.clone();
    shim.streams.add(Stream {
        id: init.id,
        sender,
        receiver,
        open,
    });
    let answered = ready.send(&any::pack(&Empty {})).await;
    answered.map_err(|e| Error::unknown(format!("open a stream: {e}")))?;
    drop(ready);
    // Nothing is ever sent: the other end is dropped.
    let _ = (&mut closed).await;
    Ok(())
}
