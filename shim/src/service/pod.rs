//! Owns `corten.pod.v1.Pod`, our own extension for processes whose stdout is `cri-log://`: one fn per RPC.

use std::rc::Rc;

use corten_protos::corten::pod::v1::{
    AttachRequest, AttachResponse, ReopenLogRequest, ReopenLogResponse,
};

use super::{decode, encode};
use crate::error::{Error, Result};
use crate::io::{self, CriLog};
use crate::task::Shim;

pub(super) const NAME: &str = "corten.pod.v1.Pod";

/// All methods of the service.
pub(super) const METHODS: &[&str] = &["ReopenLog", "Attach"];

/// Decodes, serves, encodes.
pub(super) fn call(shim: &Rc<Shim>, method: &str, payload: &[u8]) -> Result<Vec<u8>> {
    match method {
        "ReopenLog" => encode(reopen_log(shim, &decode(payload)?)?),
        "Attach" => encode(attach(shim, &decode(payload)?)?),
        other => Err(Error::unimplemented(format!("method {other}"))),
    }
}

fn find_log(shim: &Shim, container: &str, exec: &str) -> Result<Rc<CriLog>> {
    let (_, process) = shim.process(container, exec)?;
    let io = process.io.borrow().clone();
    let log = io.and_then(|io| io.cri_log());
    log.ok_or_else(|| Error::precondition(format!("container {container} has no cri-log")))
}

fn reopen_log(shim: &Shim, r: &ReopenLogRequest) -> Result<ReopenLogResponse> {
    find_log(shim, &r.container_id, &r.exec_id)?.reopen()?;
    Ok(ReopenLogResponse {})
}

fn attach(shim: &Shim, r: &AttachRequest) -> Result<AttachResponse> {
    let log = find_log(shim, &r.container_id, &r.exec_id)?;
    let mut sinks = Vec::new();
    for (stream, place) in [&r.stdout, &r.stderr].into_iter().enumerate() {
        if !place.is_empty() {
            sinks.push((stream, io::open_reader(shim, place)?));
        }
    }
    for (stream, sink) in sinks {
        log.attach(stream, sink);
    }
    Ok(AttachResponse {})
}
