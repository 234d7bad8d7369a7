//! The gRPC face: one line per RPC, which is a method of [`Cri`] of the same name.

use std::sync::Arc;

use corten_core::service::GrpcService;
use corten_protos::runtime::v1::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use tonic::async_trait;
use tonic::codegen::BoxStream;
use tonic::service::RoutesBuilder;

use crate::Cri;

/// The largest message taken and sent, as containerd's client and server allow: 16 MiB.
pub const MAX_MESSAGE: usize = 16 << 20;

/// What a server stream answers with.
pub type Answers<T> = BoxStream<T>;

/// The services of the CRI on the wire.
#[derive(Debug, Clone)]
pub struct Service(pub Arc<Cri>);

impl GrpcService for Service {
    fn add_to(&self, routes: &mut RoutesBuilder) {
        routes.add_service(
            RuntimeServiceServer::new(self.clone())
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE),
        );
    }
}

/// `rpc(Request) -> Response` for each line: the method of [`Cri`] of that name. An RPC without a line answers
/// Unimplemented.
macro_rules! rpcs {
    (
        $service:ident {
            unary { $($rpc:ident($request:ident) -> $response:ident;)* }
            streams { $($stream:ident($asked:ident) -> $answers:ident;)* }
        }
    ) => {
        #[async_trait]
        impl $service for Service {
            $(async fn $rpc(
                &self,
                request: Request<v1::$request>,
            ) -> Result<Response<v1::$response>, Status> {
                Ok(Response::new(self.0.$rpc(request.into_inner()).await?))
            })*
            $(async fn $stream(
                &self,
                request: Request<v1::$asked>,
            ) -> Result<Response<Answers<v1::$answers>>, Status> {
                Ok(Response::new(self.0.$stream(request.into_inner()).await?))
            })*
        }
    };
}

rpcs! {
    RuntimeService {
        unary {
        }
        streams {
        }
    }
}
