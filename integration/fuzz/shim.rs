//! Fuzz targets inside of the shim: `CORTEN_FUZZ=bootstrap` is what a daemon writes to `start`, `CORTEN_FUZZ=frame` what
//! somebody writes to the socket, and what systemd answers. Errors are fine; a panic or an overflow is a finding.
//!
//! The program is the shim with this module in place of its main function.
#![allow(dead_code, reason = "the first half of each message only")]

use std::sync::OnceLock;

use corten_oci::cgroup::systemd;
use corten_protos::any;
use corten_protos::containerd::runtime::sandbox::v1 as sandbox;
use corten_protos::containerd::task::v3 as task;
use corten_protos::runtime::v1::PodSandboxConfig;
use libfuzzer_sys::fuzz_target;
use prost::Message;
use ttrpc::proto::{GenMessage, Request};

use crate::bootstrap;
use crate::flags::Flags;
use crate::options::Options;

fuzz_target!(|bytes: &[u8]| {
    static FRAME: OnceLock<bool> = OnceLock::new();
    let frame = FRAME.get_or_init(|| std::env::var("CORTEN_FUZZ").is_ok_and(|t| t == "frame"));
    if *frame {
        frames(bytes);
    } else {
        started(bytes);
    }
});

/// stdin of `start`, the command line that came with it, and the options of any request.
fn started(bytes: &[u8]) {
    let flags = Flags {
        id: "web".into(),
        namespace: "n".into(),
        ..Flags::default()
    };
    let _ = bootstrap::Request::parse(bytes, &flags);
    if let Ok(any) = corten_protos::google::protobuf::Any::decode(bytes) {
        let _ = Options::from_any(Some(&any));
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = Flags::parse(text.split('\0').map(str::to_owned));
    }
}

/// Frames back to back, as a connection brings them; each payload as every message the shim reads.
fn frames(bytes: &[u8]) {
    static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    let runtime = RUNTIME.get_or_init(|| {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.build().expect("a runtime without drivers")
    });
    let mut rest = bytes;
    while !rest.is_empty() {
        let before = rest.len();
        let Ok(message) = runtime.block_on(GenMessage::read_from(&mut rest)) else {
            break;
        };
        if message.check().is_ok()
            && let Ok(request) = <Request as ttrpc::proto::Codec>::decode(&message.payload)
        {
            payload(&request.payload);
        }
        if rest.len() == before {
            break;
        }
    }
    let mut received = bytes.to_vec();
    while let Ok(Some(_)) = systemd::Incoming::take(&mut received) {}
}

fn payload(bytes: &[u8]) {
    if let Ok(create) = task::CreateTaskRequest::decode(bytes) {
        let _ = Options::from_any(create.options.as_ref());
    }
    if let Ok(update) = task::UpdateTaskRequest::decode(bytes) {
        let resources = update.resources.unwrap_or_default();
        let _ = corten_oci::Resources::parse(&resources.value);
    }
    if let Ok(exec) = task::ExecProcessRequest::decode(bytes) {
        let document = exec.spec.unwrap_or_default();
        let _ = corten_oci::Process::parse(&document.value);
    }
    if let Ok(create) = sandbox::CreateSandboxRequest::decode(bytes)
        && let Some(options) = &create.options
    {
        let _ = any::unpack::<PodSandboxConfig>(options);
    }
}
