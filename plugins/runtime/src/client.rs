//! The services of a shim over either of its protocols: the same methods, the same errors.
//!
//! ttrpc is what nearly all shims speak. One that answered `start` with the protocol `grpc` is spoken to in gRPC,
//! which has the newest task API only. What differs ends here: metadata, deadlines, and how an error arrives.

use corten_core::scope::{NAMESPACE_HEADER, NAMESPACE_TTRPC};
use corten_core::spans;
use corten_protos::containerd::runtime::sandbox::v1 as sandbox;
use corten_protos::containerd::task::v3 as task;
use corten_protos::corten::pod::v1 as pod;
use corten_protos::google::protobuf::Empty;
use corten_protos::ttrpc::runtime::Context;
use tonic::metadata::{AsciiMetadataKey, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

/// The largest message of a shim that speaks gRPC, in bytes.
const MAX_MESSAGE: usize = corten_core::service::MAX_MESSAGE;

macro_rules! clients {
    ($($(#[$doc:meta])* $name:ident($service:literal, $ttrpc:ident, $grpc:ty) {
        $($method:ident $wire:literal ($request:ty) -> $answer:ty;)*
    })*) => {$(
        $(#[$doc])*
        #[derive(Debug)]
        pub(crate) enum $name {
            Ttrpc(corten_protos::ttrpc::$ttrpc),
            Grpc($grpc),
        }

        impl $name {
            $(
                pub(crate) async fn $method(&self, cx: Context, request: &$request) -> ttrpc::Result<$answer> {
                    let call = |cx: Context| async move {
                        match self {
                            Self::Ttrpc(client) => client.$method(cx, request).await,
                            Self::Grpc(client) => {
                                let mut client = client.clone();
                                let call = client.$method(asked(&cx, request.clone()));
                                // Kept small: few shims need it, and every call would carry it.
                                answered(Box::pin(call).await)
                            }
                        }
                    };
                    traced(concat!($service, "/", $wire), cx, call).await
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
    Tasks("containerd.task.v3.Task", TaskClient, task::task_client::TaskClient<Channel>) {
        state "State" (task::StateRequest) -> task::StateResponse;
        create "Create" (task::CreateTaskRequest) -> task::CreateTaskResponse;
        start "Start" (task::StartRequest) -> task::StartResponse;
        delete "Delete" (task::DeleteRequest) -> task::DeleteResponse;
        pids "Pids" (task::PidsRequest) -> task::PidsResponse;
        pause "Pause" (task::PauseRequest) -> Empty;
        resume "Resume" (task::ResumeRequest) -> Empty;
        checkpoint "Checkpoint" (task::CheckpointTaskRequest) -> Empty;
        kill "Kill" (task::KillRequest) -> Empty;
        exec "Exec" (task::ExecProcessRequest) -> Empty;
        resize_pty "ResizePty" (task::ResizePtyRequest) -> Empty;
        close_io "CloseIO" (task::CloseIoRequest) -> Empty;
        update "Update" (task::UpdateTaskRequest) -> Empty;
        wait "Wait" (task::WaitRequest) -> task::WaitResponse;
        stats "Stats" (task::StatsRequest) -> task::StatsResponse;
        connect "Connect" (task::ConnectRequest) -> task::ConnectResponse;
        shutdown "Shutdown" (task::ShutdownRequest) -> Empty;
    }

    /// Sandboxes.
    Sandboxes("containerd.runtime.sandbox.v1.Sandbox", SandboxClient, sandbox::sandbox_client::SandboxClient<Channel>) {
        create_sandbox "CreateSandbox" (sandbox::CreateSandboxRequest) -> sandbox::CreateSandboxResponse;
        start_sandbox "StartSandbox" (sandbox::StartSandboxRequest) -> sandbox::StartSandboxResponse;
        platform "Platform" (sandbox::PlatformRequest) -> sandbox::PlatformResponse;
        stop_sandbox "StopSandbox" (sandbox::StopSandboxRequest) -> sandbox::StopSandboxResponse;
        wait_sandbox "WaitSandbox" (sandbox::WaitSandboxRequest) -> sandbox::WaitSandboxResponse;
        sandbox_status "SandboxStatus" (sandbox::SandboxStatusRequest) -> sandbox::SandboxStatusResponse;
        shutdown_sandbox "ShutdownSandbox" (sandbox::ShutdownSandboxRequest) -> sandbox::ShutdownSandboxResponse;
        sandbox_metrics "SandboxMetrics" (sandbox::SandboxMetricsRequest) -> sandbox::SandboxMetricsResponse;
        update_sandbox "UpdateSandbox" (sandbox::UpdateSandboxRequest) -> sandbox::UpdateSandboxResponse;
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

/// A call in a span of its own, of which the shim is told.
async fn traced<T, F>(
    name: &str,
    mut cx: Context,
    call: impl FnOnce(Context) -> F,
) -> ttrpc::Result<T>
where
    F: Future<Output = ttrpc::Result<T>>,
{
    let Some(point) = spans::current() else {
        return call(cx).await;
    };
    let span = point.call(name);
    for (name, value) in span.point().headers() {
        cx.set(name, vec![value]);
    }
    let answer = call(cx).await;
    span.end(match &answer {
        Ok(_) => Code::Ok,
        Err(ttrpc::Error::RpcStatus(status)) => Code::from_i32(status.code.value()),
        Err(_) => Code::Unavailable,
    });
    answer
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
