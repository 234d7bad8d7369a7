//! The services of a shim over either of its protocols: the same methods, the same errors.
//!
//! ttrpc is what nearly all shims speak. One that answered `start` with the protocol `grpc` is spoken to in gRPC,
//! which has the newest task API only. What differs ends here: metadata, deadlines, and how an error arrives.

use corten_core::scope::{NAMESPACE_HEADER, NAMESPACE_TTRPC};
use corten_protos::containerd::runtime::sandbox::v1 as sandbox;
use corten_protos::containerd::task::v3 as task;
use corten_protos::corten::pod::v1 as pod;
use corten_protos::google::protobuf::Empty;
use corten_protos::ttrpc::runtime::Context;
use tonic::metadata::{AsciiMetadataKey, MetadataValue};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

/// The largest message of a shim that speaks gRPC, in bytes.
const MAX_MESSAGE: usize = corten_core::service::MAX_MESSAGE;

macro_rules! clients {
    ($($(#[$doc:meta])* $name:ident($ttrpc:ident, $grpc:ty) { $($method:ident($request:ty) -> $answer:ty;)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug)]
        pub(crate) enum $name {
            Ttrpc(corten_protos::ttrpc::$ttrpc),
            Grpc($grpc),
        }

        impl $name {
            $(
                pub(crate) async fn $method(&self, cx: Context, request: &$request) -> ttrpc::Result<$answer> {
                    match self {
                        Self::Ttrpc(client) => client.$method(cx, request).await,
                        Self::Grpc(client) => {
                            let mut client = client.clone();
                            // Kept small: few shims need it, and every call would carry it.
                            answered(Box::pin(client.$method(asked(&cx, request.clone()))).await)
                        }
                    }
                }
            )*

            pub(crate) fn over(channel: Channel) -> Self {
                Self::Grpc(<$grpc>::new(channel).max_decoding_message_size(MAX_MESSAGE))
            }
        }
    )*};
}

clients! {
    /// Tasks.
    Tasks(TaskClient, task::task_client::TaskClient<Channel>) {
        state(task::StateRequest) -> task::StateResponse;
        create(task::CreateTaskRequest) -> task::CreateTaskResponse;
        start(task::StartRequest) -> task::StartResponse;
        delete(task::DeleteRequest) -> task::DeleteResponse;
        pids(task::PidsRequest) -> task::PidsResponse;
        pause(task::PauseRequest) -> Empty;
        resume(task::ResumeRequest) -> Empty;
        checkpoint(task::CheckpointTaskRequest) -> Empty;
        kill(task::KillRequest) -> Empty;
        exec(task::ExecProcessRequest) -> Empty;
        resize_pty(task::ResizePtyRequest) -> Empty;
        close_io(task::CloseIoRequest) -> Empty;
        update(task::UpdateTaskRequest) -> Empty;
        wait(task::WaitRequest) -> task::WaitResponse;
        stats(task::StatsRequest) -> task::StatsResponse;
        connect(task::ConnectRequest) -> task::ConnectResponse;
        shutdown(task::ShutdownRequest) -> Empty;
    }

    /// Sandboxes.
    Sandboxes(SandboxClient, sandbox::sandbox_client::SandboxClient<Channel>) {
        create_sandbox(sandbox::CreateSandboxRequest) -> sandbox::CreateSandboxResponse;
        start_sandbox(sandbox::StartSandboxRequest) -> sandbox::StartSandboxResponse;
        platform(sandbox::PlatformRequest) -> sandbox::PlatformResponse;
        stop_sandbox(sandbox::StopSandboxRequest) -> sandbox::StopSandboxResponse;
        wait_sandbox(sandbox::WaitSandboxRequest) -> sandbox::WaitSandboxResponse;
        sandbox_status(sandbox::SandboxStatusRequest) -> sandbox::SandboxStatusResponse;
        shutdown_sandbox(sandbox::ShutdownSandboxRequest) -> sandbox::ShutdownSandboxResponse;
        sandbox_metrics(sandbox::SandboxMetricsRequest) -> sandbox::SandboxMetricsResponse;
        update_sandbox(sandbox::UpdateSandboxRequest) -> sandbox::UpdateSandboxResponse;
    }
}

/// Our own shim's logs and outputs. It speaks ttrpc; others do not have the service.
#[derive(Debug)]
pub(crate) enum Pods {
    Ttrpc(corten_protos::ttrpc::PodClient),
    None,
}

// === impl Pods ===

impl Pods {
    pub(crate) async fn reopen_log(
        &self,
        cx: Context,
        request: &pod::ReopenLogRequest,
    ) -> ttrpc::Result<pod::ReopenLogResponse> {
        match self {
            Self::Ttrpc(client) => client.reopen_log(cx, request).await,
            Self::None => Err(unimplemented()),
        }
    }

    pub(crate) async fn attach(
        &self,
        cx: Context,
        request: &pod::AttachRequest,
    ) -> ttrpc::Result<pod::AttachResponse> {
        match self {
            Self::Ttrpc(client) => client.attach(cx, request).await,
            Self::None => Err(unimplemented()),
        }
    }
}

fn unimplemented() -> ttrpc::Error {
    corten_protos::ttrpc::error(ttrpc::Code::UNIMPLEMENTED, "not a service of this shim")
}

/// A request with what the call's context says.
fn asked<T>(cx: &Context, message: T) -> Request<T> {
    let mut request = Request::new(message);
    for (name, values) in &cx.metadata {
        let name = match name.as_str() {
            NAMESPACE_TTRPC => NAMESPACE_HEADER,
            other => other,
        };
        let Ok(name) = name.parse::<AsciiMetadataKey>() else {
            continue;
        };
        for value in values {
            if let Ok(value) = MetadataValue::try_from(value) {
                request.metadata_mut().append(name.clone(), value);
            }
        }
    }
    if let Ok(nanos @ 1..) = u64::try_from(cx.timeout_nano) {
        request.set_timeout(std::time::Duration::from_nanos(nanos));
    }
    request
}

/// What a shim answered, as ttrpc has it.
fn answered<T>(answer: Result<Response<T>, Status>) -> ttrpc::Result<T> {
    answer.map(Response::into_inner).map_err(|status| {
        match std::error::Error::source(&status) {
            // Only a status made on this side has a cause: the connection broke.
            Some(cause) => ttrpc::Error::Socket(cause.to_string()),
            None => ttrpc::Error::RpcStatus(ttrpc::get_status(
                code(status.code()),
                status.message().to_owned(),
            )),
        }
    })
}

/// The codes are the same; the type is another.
fn code(code: tonic::Code) -> ttrpc::Code {
    use ttrpc::Code as To;
    match code {
        tonic::Code::Ok => To::OK,
        tonic::Code::Cancelled => To::CANCELLED,
        tonic::Code::Unknown => To::UNKNOWN,
        tonic::Code::InvalidArgument => To::INVALID_ARGUMENT,
        tonic::Code::DeadlineExceeded => To::DEADLINE_EXCEEDED,
        tonic::Code::NotFound => To::NOT_FOUND,
        tonic::Code::AlreadyExists => To::ALREADY_EXISTS,
        tonic::Code::PermissionDenied => To::PERMISSION_DENIED,
        tonic::Code::ResourceExhausted => To::RESOURCE_EXHAUSTED,
        tonic::Code::FailedPrecondition => To::FAILED_PRECONDITION,
        tonic::Code::Aborted => To::ABORTED,
        tonic::Code::OutOfRange => To::OUT_OF_RANGE,
        tonic::Code::Unimplemented => To::UNIMPLEMENTED,
        tonic::Code::Internal => To::INTERNAL,
        tonic::Code::Unavailable => To::UNAVAILABLE,
        tonic::Code::DataLoss => To::DATA_LOSS,
        tonic::Code::Unauthenticated => To::UNAUTHENTICATED,
    }
}

#[cfg(test)]
mod tests;
