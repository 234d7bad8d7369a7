//! The gRPC face: one line per RPC, which is a method of [`Cri`] of the same name.
//!
//! Clients of the CRI send no namespace: it is [`crate::cri::NAMESPACE`], whatever their headers say.

use std::sync::Arc;

use corten_core::scope::CALLER;
use corten_core::service::{GrpcService, Limits};
use corten_protos::runtime::v1;
use corten_protos::runtime::v1::image_service_server::{ImageService, ImageServiceServer};
use corten_protos::runtime::v1::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use tonic::codegen::BoxStream;
use tonic::service::RoutesBuilder;
use tonic::{Request, Response, Status, async_trait};

use crate::Cri;

/// What a server stream answers with.
pub type Answers<T> = BoxStream<T>;

/// The services of the CRI on the wire.
#[derive(Debug, Clone)]
pub struct Service(pub Arc<Cri>);

impl GrpcService for Service {
    fn add_to(&self, routes: &mut RoutesBuilder, limits: Limits) {
        routes.add_service(
            RuntimeServiceServer::new(self.clone())
                .max_decoding_message_size(limits.received)
                .max_encoding_message_size(limits.sent),
        );
        routes.add_service(
            ImageServiceServer::new(self.clone())
                .max_decoding_message_size(limits.received)
                .max_encoding_message_size(limits.sent),
        );
    }

    fn local_only(&self) -> bool {
        self.0.grpc.disable_tcp_service
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
                let answer = self.0.$rpc(request.into_inner());
                Ok(Response::new(CALLER.scope(self.0.scope(), answer).await?))
            })*
            $(async fn $stream(
                &self,
                request: Request<v1::$asked>,
            ) -> Result<Response<Answers<v1::$answers>>, Status> {
                let answer = self.0.$stream(request.into_inner());
                Ok(Response::new(CALLER.scope(self.0.scope(), answer).await?))
            })*
        }
    };
}

rpcs! {
    RuntimeService {
        unary {
            version(VersionRequest) -> VersionResponse;
            status(StatusRequest) -> StatusResponse;
            runtime_config(RuntimeConfigRequest) -> RuntimeConfigResponse;
            update_runtime_config(UpdateRuntimeConfigRequest) -> UpdateRuntimeConfigResponse;
            run_pod_sandbox(RunPodSandboxRequest) -> RunPodSandboxResponse;
            stop_pod_sandbox(StopPodSandboxRequest) -> StopPodSandboxResponse;
            remove_pod_sandbox(RemovePodSandboxRequest) -> RemovePodSandboxResponse;
            pod_sandbox_status(PodSandboxStatusRequest) -> PodSandboxStatusResponse;
            list_pod_sandbox(ListPodSandboxRequest) -> ListPodSandboxResponse;
            update_pod_sandbox_resources(UpdatePodSandboxResourcesRequest) -> UpdatePodSandboxResourcesResponse;
            create_container(CreateContainerRequest) -> CreateContainerResponse;
            start_container(StartContainerRequest) -> StartContainerResponse;
            stop_container(StopContainerRequest) -> StopContainerResponse;
            remove_container(RemoveContainerRequest) -> RemoveContainerResponse;
            list_containers(ListContainersRequest) -> ListContainersResponse;
            container_status(ContainerStatusRequest) -> ContainerStatusResponse;
            update_container_resources(UpdateContainerResourcesRequest) -> UpdateContainerResourcesResponse;
            reopen_container_log(ReopenContainerLogRequest) -> ReopenContainerLogResponse;
            exec_sync(ExecSyncRequest) -> ExecSyncResponse;
            exec(ExecRequest) -> ExecResponse;
            attach(AttachRequest) -> AttachResponse;
            port_forward(PortForwardRequest) -> PortForwardResponse;
            checkpoint_container(CheckpointContainerRequest) -> CheckpointContainerResponse;
            container_stats(ContainerStatsRequest) -> ContainerStatsResponse;
            list_container_stats(ListContainerStatsRequest) -> ListContainerStatsResponse;
            pod_sandbox_stats(PodSandboxStatsRequest) -> PodSandboxStatsResponse;
            list_pod_sandbox_stats(ListPodSandboxStatsRequest) -> ListPodSandboxStatsResponse;
            list_metric_descriptors(ListMetricDescriptorsRequest) -> ListMetricDescriptorsResponse;
            list_pod_sandbox_metrics(ListPodSandboxMetricsRequest) -> ListPodSandboxMetricsResponse;
        }
        streams {
            stream_pod_sandboxes(StreamPodSandboxesRequest) -> StreamPodSandboxesResponse;
            stream_containers(StreamContainersRequest) -> StreamContainersResponse;
            stream_container_stats(StreamContainerStatsRequest) -> StreamContainerStatsResponse;
            stream_pod_sandbox_stats(StreamPodSandboxStatsRequest) -> StreamPodSandboxStatsResponse;
            stream_pod_sandbox_metrics(StreamPodSandboxMetricsRequest) -> StreamPodSandboxMetricsResponse;
            get_container_events(GetEventsRequest) -> ContainerEventResponse;
        }
    }
}

rpcs! {
    ImageService {
        unary {
            list_images(ListImagesRequest) -> ListImagesResponse;
            image_status(ImageStatusRequest) -> ImageStatusResponse;
            pull_image(PullImageRequest) -> PullImageResponse;
            remove_image(RemoveImageRequest) -> RemoveImageResponse;
            image_fs_info(ImageFsInfoRequest) -> ImageFsInfoResponse;
        }
        streams {
            stream_images(StreamImagesRequest) -> StreamImagesResponse;
        }
    }
}
