//! Owns the bridge from the ttrpc crate to the shim: requests become messages, each is served by a local task.
//!
//! The crate wants `Send` handlers and drops them at their await point when a connection goes away or a request times
//! out. A handler here holds nothing but the receiving end of an answer, so dropping it costs the answer and nothing else.

mod pod;
mod sandbox;
mod streaming;
mod task;

use std::rc::Rc;

use corten_protos::ttrpc::runtime::{self, Dispatch, Services, StreamInner, TtrpcContext};
use corten_protos::ttrpc::{TASK_V2, TASK_V3};
use prost::Message;
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_local;

use crate::error::{Error, Result};
use crate::task::Shim;

/// Requests on their way to the loop. When full, the crate's tasks wait, each holding one request.
const WAITING: usize = 16;

/// Which service a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Api {
    Task,
    Sandbox,
    Pod,
}

/// What comes from the crate.
#[derive(Debug)]
pub(crate) enum Call {
    Unary {
        api: Api,
        method: String,
        payload: Vec<u8>,
        reply: oneshot::Sender<Result<Vec<u8>>>,
    },
    /// A client's byte stream, and word of its end.
    Stream {
        stream: StreamInner,
        reply: oneshot::Sender<Result<()>>,
    },
}

/// What the crate calls: the table of one service, by the number of the list of its methods.
#[derive(Debug, Clone)]
struct Bridge<const API: u8> {
    calls: mpsc::Sender<Call>,
}

const TASK: u8 = 0;
const SANDBOX: u8 = 1;
const POD: u8 = 2;
const STREAMING: u8 = 3;

/// The tables of all services, and the other end of them.
pub(crate) fn services() -> (Services, mpsc::Receiver<Call>) {
    let (calls, receiver) = mpsc::channel(WAITING);
    let mut services = Services::new();
    for name in [TASK_V2, TASK_V3] {
        let calls = calls.clone();
        services.extend(runtime::register(name, Bridge::<TASK> { calls }));
    }
    let bridge = Bridge::<SANDBOX> {
        calls: calls.clone(),
    };
    services.extend(runtime::register(sandbox::NAME, bridge));
    let bridge = Bridge::<POD> {
        calls: calls.clone(),
    };
    services.extend(runtime::register(pod::NAME, bridge));
    let bridge = Bridge::<STREAMING> { calls };
    services.extend(runtime::register(streaming::NAME, bridge));
    (services, receiver)
}

/// Serves calls until there will be no more.
pub(crate) async fn serve(shim: Rc<Shim>, mut calls: mpsc::Receiver<Call>) {
    while let Some(call) = calls.recv().await {
        spawn_local(answer(shim.clone(), call));
    }
}

async fn answer(shim: Rc<Shim>, call: Call) {
    match call {
        Call::Unary {
            api,
            method,
            payload,
            mut reply,
        } => {
            let work = async {
                match api {
                    Api::Task => task::call(&shim, &method, &payload).await,
                    Api::Sandbox => sandbox::call(&shim, &method, &payload).await,
                    Api::Pod => pod::call(&shim, &method, &payload),
                }
            };
            let outcome = if [task::WAIT, sandbox::WAIT].contains(&method.as_str()) {
                // Nothing changes in a Wait: nobody left to answer means nobody left to wait.
                tokio::select! {
                    outcome = work => outcome,
                    () = reply.closed() => return,
                }
            } else {
                work.await
            };
            // The caller may be gone; what was done stays done.
            let _ = reply.send(outcome);
        }
        Call::Stream { stream, reply } => {
            let outcome = streaming::serve(&shim, stream).await;
            // As above.
            let _ = reply.send(outcome);
        }
    }
}

fn decode<M: Message + Default>(payload: &[u8]) -> Result<M> {
    M::decode(payload).map_err(|e| Error::invalid(format!("decode the request: {e}")))
}

/// Takes the message by value so that each arm of a `call` reads alike.
#[allow(clippy::needless_pass_by_value)]
fn encode<M: Message>(message: M) -> Result<Vec<u8>> {
    Ok(message.encode_to_vec())
}

fn gone() -> Error {
    Error::unavailable("the shim is going away")
}

// === impl Bridge ===

#[runtime::async_trait]
impl<const API: u8> Dispatch for Bridge<API> {
    const UNARY: &'static [&'static str] = match API {
        TASK => task::METHODS,
        SANDBOX => sandbox::METHODS,
        POD => pod::METHODS,
        _ => &[],
    };
    const DUPLEX: &'static [&'static str] = match API {
        STREAMING => streaming::METHODS,
        _ => &[],
    };

    async fn unary(
        &self,
        method: &str,
        _: &TtrpcContext,
        payload: &[u8],
    ) -> ttrpc::Result<Vec<u8>> {
        let (reply, answer) = oneshot::channel();
        let call = Call::Unary {
            api: match API {
                SANDBOX => Api::Sandbox,
                POD => Api::Pod,
                _ => Api::Task,
            },
            method: method.to_owned(),
            payload: payload.to_owned(),
            reply,
        };
        self.calls.send(call).await.map_err(|_| gone())?;
        Ok(answer.await.map_err(|_| gone())??)
    }

    async fn duplex(&self, _: &str, _: &TtrpcContext, stream: StreamInner) -> ttrpc::Result<()> {
        let (reply, answer) = oneshot::channel();
        let call = Call::Stream { stream, reply };
        self.calls.send(call).await.map_err(|_| gone())?;
        Ok(answer.await.map_err(|_| gone())??)
    }
}

#[cfg(test)]
mod tests;
