//! The ttrpc half of the crate: what the generated stubs stand on.
//!
//! `build/ttrpc.rs` prints, for each service spoken over ttrpc, a server trait, `create_<service>` and `<Service>Client` into
//! `<package>::<service>_ttrpc`; the ones in daily use are re-exported here. Frames, connections and the server itself are the
//! ttrpc crate's. This file turns payloads into our prost messages and errors into statuses, and holds no state.
//!
//! Task v2 and v3 have equal messages: [`Task`] and [`TaskClient`] serve and call both, only the service's name differs.
//!
//! Beware when writing a server: the ttrpc crate drops a handler's future at its await point when the connection goes away or
//! the request times out. Whatever must finish runs in a task of its own, which the handler merely awaits.

pub use crate::containerd::runtime::sandbox::v1::sandbox_ttrpc::{
    Sandbox, SandboxClient, create_sandbox,
};
pub use crate::containerd::services::events::ttrpc::v1::events_ttrpc::{
    Events, EventsClient, create_events,
};
pub use crate::containerd::services::streaming::v1::streaming_ttrpc::{
    Streaming, StreamingClient, create_streaming,
};
pub use crate::containerd::task::v2::task_ttrpc::{
    SERVICE as TASK_V2, create_task as create_task_v2,
};
pub use crate::containerd::task::v3::task_ttrpc::{
    SERVICE as TASK_V3, Task, TaskClient, create_task as create_task_v3,
};
pub use crate::corten::pod::v1::pod_ttrpc::{Pod, PodClient, create_pod};
pub use crate::nri::pkg::api::v1alpha1::plugin_ttrpc::{Plugin, PluginClient, create_plugin};
pub use crate::nri::pkg::api::v1alpha1::runtime_ttrpc::{Runtime, RuntimeClient, create_runtime};
pub use runtime::{Services, error};

/// What generated code calls. Public so that stubs of other crates may use it too.
pub mod runtime {
    use std::collections::HashMap;
    use std::sync::Arc;

    use ::ttrpc::r#async::{MethodHandler, Service, StreamHandler};
    use ::ttrpc::proto::{Code, Codec, Request, Response};
    use prost::Message;

    pub use ::ttrpc::r#async::{Client, ClientStream, ServerStream, StreamInner, TtrpcContext};
    pub use ::ttrpc::context::Context;
    pub use ::ttrpc::{Error, Result};
    pub use async_trait::async_trait;

    use crate::google::protobuf::Any;

    /// What `ttrpc::r#async::Server::register_service` takes.
    pub type Services = HashMap<String, Service>;

    /// One service's methods by their wire names. Implemented by generated code.
    #[async_trait]
    pub trait Dispatch: Send + Sync + 'static {
        const UNARY: &'static [&'static str];
        const DUPLEX: &'static [&'static str];

        async fn unary(&self, method: &str, ctx: &TtrpcContext, payload: &[u8]) -> Result<Vec<u8>>;
        async fn duplex(&self, method: &str, ctx: &TtrpcContext, stream: StreamInner)
        -> Result<()>;
    }

    struct Method<D> {
        service: Arc<D>,
        name: &'static str,
    }

    // === impl Method ===

    #[async_trait]
    impl<D: Dispatch> MethodHandler for Method<D> {
        async fn handler(&self, ctx: TtrpcContext, req: Request) -> Result<Response> {
            let mut response = Response::new();
            match self.service.unary(self.name, &ctx, &req.payload).await {
                Ok(payload) => {
                    response.set_status(::ttrpc::get_status(Code::OK, ""));
                    response.payload = payload;
                }
                Err(e) => response.set_status(into_status(e)),
            }
            Ok(response)
        }
    }

    #[async_trait]
    impl<D: Dispatch> StreamHandler for Method<D> {
        async fn handler(
            &self,
            ctx: TtrpcContext,
            stream: StreamInner,
        ) -> Result<Option<Response>> {
            let Err(e) = self.service.duplex(self.name, &ctx, stream).await else {
                return Ok(None);
            };
            let mut response = Response::new();
            response.set_status(into_status(e));
            Ok(Some(response))
        }
    }

    /// The service table of one service under `name`.
    pub fn register<D: Dispatch>(name: &'static str, service: D) -> Services {
        let service = Arc::new(service);
        let method = |name| Method {
            service: service.clone(),
            name,
        };
        let methods = D::UNARY
            .iter()
            .map(|m| {
                (
                    m.to_string(),
                    Box::new(method(m)) as Box<dyn MethodHandler + Send + Sync>,
                )
            })
            .collect();
        let streams = D::DUPLEX
            .iter()
            .map(|m| {
                (
                    m.to_string(),
                    Arc::new(method(m)) as Arc<dyn StreamHandler + Send + Sync>,
                )
            })
            .collect();
        HashMap::from([(name.to_owned(), Service { methods, streams })])
    }

    /// Calls a unary method and decodes its answer. A status other than OK is [`Error::RpcStatus`].
    pub async fn call<Q: Message, P: Message + Default>(
        client: &Client,
        service: &str,
        method: &str,
        ctx: Context,
        req: &Q,
    ) -> Result<P> {
        let mut request = request(service, method, ctx);
        request.payload = req.encode_to_vec();
        let response = client.request(request).await?;
        P::decode(response.payload.as_slice())
            .map_err(|e| Error::Others(format!("decode the answer of {service}/{method}: {e}")))
    }

    /// Opens a stream on which both ends send.
    pub async fn open<Q, P>(
        client: &Client,
        service: &str,
        method: &str,
        ctx: Context,
    ) -> Result<ClientStream<Q, P>>
    where
        Q: Codec<E: std::fmt::Display>,
        P: Codec<E: std::fmt::Display>,
    {
        let inner = client
            .new_stream(request(service, method, ctx), true, true)
            .await?;
        Ok(ClientStream::new(inner))
    }

    /// Decodes a request.
    pub fn decode<M: Message + Default>(payload: &[u8]) -> Result<M> {
        M::decode(payload)
            .map_err(|e| error(Code::INVALID_ARGUMENT, format!("decode the request: {e}")))
    }

    /// Encodes a response.
    pub fn encode<M: Message>(message: &M) -> Result<Vec<u8>> {
        Ok(message.encode_to_vec())
    }

    /// An error that reaches the caller with this code and text.
    pub fn error(code: Code, text: impl Into<String>) -> Error {
        Error::RpcStatus(::ttrpc::get_status(code, text.into()))
    }

    /// The answer of a method that is not written.
    pub fn unimplemented(service: &str, method: &str) -> Error {
        error(
            Code::UNIMPLEMENTED,
            format!("method {service}/{method} is not implemented"),
        )
    }

    fn request(service: &str, method: &str, ctx: Context) -> Request {
        Request {
            service: service.to_owned(),
            method: method.to_owned(),
            timeout_nano: ctx.timeout_nano,
            metadata: ::ttrpc::context::to_pb(ctx.metadata),
            ..Request::default()
        }
    }

    fn into_status(e: Error) -> ::ttrpc::proto::Status {
        match e {
            Error::RpcStatus(status) => status,
            other => ::ttrpc::get_status(Code::UNKNOWN, other.to_string()),
        }
    }

    /// Lets a message travel on a ttrpc stream. Unary calls do not need it.
    macro_rules! codec {
        ($($message:ty),+) => {$(
            impl Codec for $message {
                type E = prost::DecodeError;

                fn size(&self) -> u32 {
                    // A frame is at most 4 MiB; what is longer is refused when it is sent.
                    u32::try_from(self.encoded_len()).unwrap_or(u32::MAX)
                }
                fn encode(&self) -> std::result::Result<Vec<u8>, Self::E> {
                    Ok(self.encode_to_vec())
                }
                fn decode(buf: impl AsRef<[u8]>) -> std::result::Result<Self, Self::E> {
                    Message::decode(buf.as_ref())
                }
                fn merge(&mut self, buf: impl AsRef<[u8]>) -> std::result::Result<(), Self::E> {
                    Message::merge(self, buf.as_ref())
                }
            }
        )+};
    }

    codec!(Any);
}
