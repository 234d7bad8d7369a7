//! containerd.services.sandbox.v1.Controller: runs sandboxes through the controller that a request names.
//!
//! No controller exists yet (they come with the CRI), so every name is an unknown one. Platform is not served by
//! containerd either.

use std::sync::Arc;

use corten_core::service::GrpcService;
use corten_core::{Error, Kind, kinds};
use corten_protos::containerd::services::sandbox::v1::{
    ControllerCreateRequest, ControllerCreateResponse, ControllerMetricsRequest,
    ControllerMetricsResponse, ControllerShutdownRequest, ControllerShutdownResponse,
    ControllerStartRequest, ControllerStartResponse, ControllerStatusRequest,
    ControllerStatusResponse, ControllerStopRequest, ControllerStopResponse,
    ControllerUpdateRequest, ControllerUpdateResponse, ControllerWaitRequest,
    ControllerWaitResponse, controller_server,
};
use corten_registry::Registration;
use tonic::{Request, Status, async_trait};

use crate::{Answer, facade};

#[derive(Clone)]
struct Service;

facade!(Service, controller_server::ControllerServer);

/// The answer to a request for controller `name`.
fn unknown(name: &str) -> Error {
    if name.is_empty() {
        return Error::new(
            Kind::InvalidArgument,
            "invalid argument: sandbox controller name can not be empty",
        );
    }
    Error::new(
        Kind::NotFound,
        format!("not found: failed to get sandbox controller by {name}"),
    )
}

fn refuse<T>(name: &str) -> Answer<T> {
    Err(Status::from(unknown(name)))
}

#[async_trait]
impl controller_server::Controller for Service {
    async fn create(
        &self,
        r: Request<ControllerCreateRequest>,
    ) -> Answer<ControllerCreateResponse> {
        refuse(&r.get_ref().sandboxer)
    }

    async fn start(&self, r: Request<ControllerStartRequest>) -> Answer<ControllerStartResponse> {
        let name = &r.get_ref().sandboxer;
        Err(unknown(name).context(format!("failed to get sandbox controller for {name:?}")))?
    }

    async fn stop(&self, r: Request<ControllerStopRequest>) -> Answer<ControllerStopResponse> {
        refuse(&r.get_ref().sandboxer)
    }

    async fn wait(&self, r: Request<ControllerWaitRequest>) -> Answer<ControllerWaitResponse> {
        refuse(&r.get_ref().sandboxer)
    }

    async fn status(
        &self,
        r: Request<ControllerStatusRequest>,
    ) -> Answer<ControllerStatusResponse> {
        refuse(&r.get_ref().sandboxer)
    }

    async fn shutdown(
        &self,
        r: Request<ControllerShutdownRequest>,
    ) -> Answer<ControllerShutdownResponse> {
        refuse(&r.get_ref().sandboxer)
    }

    async fn metrics(
        &self,
        r: Request<ControllerMetricsRequest>,
    ) -> Answer<ControllerMetricsResponse> {
        refuse(&r.get_ref().sandboxer)
    }

    async fn update(
        &self,
        r: Request<ControllerUpdateRequest>,
    ) -> Answer<ControllerUpdateResponse> {
        refuse(&r.get_ref().sandboxer)
    }
}

/// The plugin.
pub fn registration() -> Registration {
    Registration::new::<kinds::Grpc>("sandbox-controllers")
        .init_plain(|_| Box::pin(async { Ok(Arc::new(Service) as Arc<dyn GrpcService>) }))
}
