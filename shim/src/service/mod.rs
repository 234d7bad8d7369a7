//! Owns the bridge from the ttrpc crate to the shim: requests become messages, each is served by a local task.
//!
//! The crate wants `Send` handlers and drops them at their await point when a connection goes away or a request times
//! out. A handler here holds nothing but the receiving end of an answer, so dropping it costs the answer and nothing else.

mod task;

use std::rc::Rc;

use corten_protos::ttrpc::runtime::{self, Dispatch, Services, StreamInner, TtrpcContext};
use corten_protos::ttrpc::{TASK_V2, TASK_V3};
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_local;

use crate::error::{Error, Result};
use crate::task::Shim;

/// Requests on their way to the loop. When full, the crate's tasks wait, each holding one request.
const WAITING: usize = 16;

/// One request.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) method: String,
    pub(crate) payload: Vec<u8>,
    reply: oneshot::Sender<Result<Vec<u8>>>,
}

/// What the crate calls.
#[derive(Debug, Clone)]
struct Bridge {
    calls: mpsc::Sender<Call>,
}

/// The tables of both task services, and the other end of them.
pub(crate) fn services() -> (Services, mpsc::Receiver<Call>) {
    let (calls, receiver) = mpsc::channel(WAITING);
    let bridge = Bridge { calls };
    let mut services = runtime::register(TASK_V2, bridge.clone());
    services.extend(runtime::register(TASK_V3, bridge));
    (services, receiver)
}

/// Serves calls until there will be no more.
pub(crate) async fn serve(shim: Rc<Shim>, mut calls: mpsc::Receiver<Call>) {
    while let Some(call) = calls.recv().await {
        spawn_local(answer(shim.clone(), call));
    }
}

async fn answer(shim: Rc<Shim>, mut call: Call) {
    let work = task::call(&shim, &call.method, &call.payload);
    let outcome = if call.method == task::WAIT {
        // Nothing changes in a Wait: nobody left to answer means nobody left to wait.
        tokio::select! {
            outcome = work => outcome,
            () = call.reply.closed() => return,
        }
    } else {
        work.await
    };
    // The caller may be gone; what was done stays done.
    let _ = call.reply.send(outcome);
}

// === impl Bridge ===

#[runtime::async_trait]
impl Dispatch for Bridge {
    const UNARY: &'static [&'static str] = task::METHODS;
    const DUPLEX: &'static [&'static str] = &[];

    async fn unary(
        &self,
        method: &str,
        _: &TtrpcContext,
        payload: &[u8],
    ) -> ttrpc::Result<Vec<u8>> {
        let gone = || Error::unavailable("the shim is going away");
        let (reply, answer) = oneshot::channel();
        let call = Call {
            method: method.to_owned(),
            payload: payload.to_owned(),
            reply,
        };
        self.calls.send(call).await.map_err(|_| gone())?;
        Ok(answer.await.map_err(|_| gone())??)
    }

    async fn duplex(&self, method: &str, _: &TtrpcContext, _: StreamInner) -> ttrpc::Result<()> {
        Err(runtime::unimplemented(TASK_V3, method))
    }
}
