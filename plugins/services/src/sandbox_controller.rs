//! containerd.services.sandbox.v1.Controller: runs sandboxes through the controller that a request names.
//!
//! As in containerd, an answer to Start or Status does not tell how to reach the shim (address and version stay
//! empty), and the exit of a sandbox becomes an event when somebody waits for it. Unlike there, Platform is served.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use corten_core::events::{Events, publish};
use corten_core::sandbox::{Controller, CreateOptions};
use corten_core::service::GrpcService;
use corten_core::{Context as _, Error, Kind, Scope, kinds};
use corten_protos::containerd::events::{SandboxCreate, SandboxExit, SandboxStart};
use corten_protos::containerd::services::sandbox::v1::{
    ControllerCreateRequest, ControllerCreateResponse, ControllerMetricsRequest,
    ControllerMetricsResponse, ControllerPlatformRequest, ControllerPlatformResponse,
    ControllerShutdownRequest, ControllerShutdownResponse, ControllerStartRequest,
    ControllerStartResponse, ControllerStatusRequest, ControllerStatusResponse,
    ControllerStopRequest, ControllerStopResponse, ControllerUpdateRequest,
    ControllerUpdateResponse, ControllerWaitRequest, ControllerWaitResponse, controller_server,
};
use corten_protos::containerd::types::Sandbox;
use corten_registry::Registration;
use tonic::{Request, async_trait};

use crate::{Answer, facade, reply};

#[derive(Clone)]
struct Service {
    controllers: Arc<BTreeMap<String, Arc<dyn Controller>>>,
    events: Arc<dyn Events>,
}

facade!(Service, controller_server::ControllerServer);

// === impl Service ===

impl Service {
    fn controller(&self, name: &str) -> Result<&dyn Controller, Error> {
        if name.is_empty() {
            return Err(Error::new(
                Kind::InvalidArgument,
                "invalid argument: sandbox controller name can not be empty",
            ));
        }
        self.controllers
            .get(name)
            .map(AsRef::as_ref)
            .ok_or_else(|| {
                Error::new(
                    Kind::NotFound,
                    format!("not found: failed to get sandbox controller by {name}"),
                )
            })
    }
}

#[async_trait]
impl controller_server::Controller for Service {
    async fn create(
        &self,
        r: Request<ControllerCreateRequest>,
    ) -> Answer<ControllerCreateResponse> {
        let ns = Scope::of(&r)?.namespace;
        let r = r.into_inner();
        let controller = self.controller(&r.sandboxer)?;
        // Clients before 2.0 send the id alone.
        let sandbox = r.sandbox.unwrap_or_else(|| Sandbox {
            sandbox_id: r.sandbox_id.clone(),
            ..Default::default()
        });
        let options = CreateOptions {
            rootfs: r.rootfs,
            options: r.options,
            netns_path: r.netns_path,
            annotations: r.annotations,
        };
        controller.create(&ns, sandbox, options).await?;
        let event = SandboxCreate {
            sandbox_id: r.sandbox_id.clone(),
        };
        publish(self.events.as_ref(), &ns, "/sandboxes/create", &event).await;
        reply(ControllerCreateResponse {
            sandbox_id: r.sandbox_id,
        })
    }

    async fn start(&self, r: Request<ControllerStartRequest>) -> Answer<ControllerStartResponse> {
        let ns = Scope::of(&r)?.namespace;
        let r = r.into_inner();
        let controller = self
            .controller(&r.sandboxer)
            .with_context(|| format!("failed to get sandbox controller for {:?}", r.sandboxer))?;
        let instance = controller
            .start(&ns, &r.sandbox_id)
            .await
            .with_context(|| format!("failed to start sandbox {:?}", r.sandbox_id))?;
        let event = SandboxStart {
            sandbox_id: r.sandbox_id,
        };
        publish(self.events.as_ref(), &ns, "/sandboxes/start", &event).await;
        reply(ControllerStartResponse {
            sandbox_id: instance.sandbox_id,
            pid: instance.pid,
            created_at: instance.created_at,
            labels: instance.labels,
            ..Default::default()
        })
    }

    async fn platform(
        &self,
        r: Request<ControllerPlatformRequest>,
    ) -> Answer<ControllerPlatformResponse> {
        let ns = Scope::of(&r)?.namespace;
        let r = r.into_inner();
        let controller = self.controller(&r.sandboxer)?;
        reply(ControllerPlatformResponse {
            platform: Some(controller.platform(&ns, &r.sandbox_id).await?),
        })
    }

    async fn stop(&self, r: Request<ControllerStopRequest>) -> Answer<ControllerStopResponse> {
        let ns = Scope::of(&r)?.namespace;
        let r = r.into_inner();
        let patience = Duration::from_secs(r.timeout_secs.into());
        let controller = self.controller(&r.sandboxer)?;
        controller.stop(&ns, &r.sandbox_id, patience).await?;
        reply(ControllerStopResponse::default())
    }

    async fn wait(&self, r: Request<ControllerWaitRequest>) -> Answer<ControllerWaitResponse> {
        let ns = Scope::of(&r)?.namespace;
        let r = r.into_inner();
        let controller = self.controller(&r.sandboxer)?;
        let exit = controller.wait(&ns, &r.sandbox_id).await?;
        let event = SandboxExit {
            sandbox_id: r.sandbox_id,
            exit_status: exit.exit_status,
            exited_at: exit.exited_at,
        };
        publish(self.events.as_ref(), &ns, "/sandboxes/exit", &event).await;
        reply(exit)
    }

    async fn status(
        &self,
        r: Request<ControllerStatusRequest>,
    ) -> Answer<ControllerStatusResponse> {
        let ns = Scope::of(&r)?.namespace;
        let r = r.into_inner();
        let controller = self.controller(&r.sandboxer)?;
        let status = controller.status(&ns, &r.sandbox_id, r.verbose).await?;
        reply(ControllerStatusResponse {
            extra: Some(status.extra.unwrap_or_default()),
            address: String::new(),
            version: 0,
            ..status
        })
    }

    async fn shutdown(
        &self,
        r: Request<ControllerShutdownRequest>,
    ) -> Answer<ControllerShutdownResponse> {
        let ns = Scope::of(&r)?.namespace;
        let r = r.into_inner();
        let controller = self.controller(&r.sandboxer)?;
        controller.shutdown(&ns, &r.sandbox_id).await?;
        reply(ControllerShutdownResponse::default())
    }

    async fn metrics(
        &self,
        r: Request<ControllerMetricsRequest>,
    ) -> Answer<ControllerMetricsResponse> {
        let ns = Scope::of(&r)?.namespace;
        let r = r.into_inner();
        let controller = self.controller(&r.sandboxer)?;
        reply(ControllerMetricsResponse {
            metrics: controller.metrics(&ns, &r.sandbox_id).await?,
        })
    }

    async fn update(
        &self,
        r: Request<ControllerUpdateRequest>,
    ) -> Answer<ControllerUpdateResponse> {
        let ns = Scope::of(&r)?.namespace;
        let r = r.into_inner();
        let controller = self.controller(&r.sandboxer)?;
        let sandbox = r
            .sandbox
            .ok_or_else(|| Error::new(Kind::Unknown, "sandbox can not be nil"))?;
        controller
            .update(&ns, &r.sandbox_id, sandbox, r.fields)
            .await?;
        reply(ControllerUpdateResponse::default())
    }
}

/// The plugin.
pub fn registration() -> Registration {
    Registration::new::<kinds::Grpc>("sandbox-controllers")
        .requires::<kinds::PodSandbox>()
        .requires::<kinds::SandboxController>()
        .requires::<kinds::Event>()
        .init_plain(|cx| {
            Box::pin(async move {
                let mut controllers = cx.all::<kinds::PodSandbox>()?;
                controllers.extend(cx.all::<kinds::SandboxController>()?);
                if controllers.is_empty() {
                    return Err("no sandbox controllers initialized: plugin: not found".into());
                }
                let controllers = controllers.into_iter().map(|(id, (c, _))| (id, c));
                let service = Service {
                    controllers: Arc::new(controllers.collect()),
                    events: cx.by_id::<kinds::Event>("exchange")?,
                };
                Ok(Arc::new(service) as Arc<dyn GrpcService>)
            })
        })
}
