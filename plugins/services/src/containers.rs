//! containerd.services.containers.v1.Containers: container records.

use std::sync::Arc;

use corten_core::containers::Containers as Store;
use corten_core::filter::Filter;
use corten_core::service::GrpcService;
use corten_core::{Error, Scope, kinds};
use corten_protos::containerd::services::containers::v1::{
    CreateContainerRequest, CreateContainerResponse, DeleteContainerRequest, GetContainerRequest,
    GetContainerResponse, ListContainerMessage, ListContainersRequest, ListContainersResponse,
    UpdateContainerRequest, UpdateContainerResponse, containers_server,
};
use corten_protos::google::protobuf::Empty;
use corten_registry::Registration;
use tonic::{Request, async_trait};

use crate::{Answer, Streamed, done, exposed, facade, paths, reply, required};

#[derive(Clone)]
struct Service {
    store: Arc<dyn Store>,
}

facade!(Service, containers_server::ContainersServer);

#[async_trait]
impl containers_server::Containers for Service {
    async fn get(&self, r: Request<GetContainerRequest>) -> Answer<GetContainerResponse> {
        let scope = Scope::of(&r)?;
        let container = self.store.get(&scope.namespace, &r.get_ref().id).await?;
        reply(GetContainerResponse {
            container: Some(container),
        })
    }

    async fn list(&self, r: Request<ListContainersRequest>) -> Answer<ListContainersResponse> {
        let scope = Scope::of(&r)?;
        let filter = Filter::parse(&r.get_ref().filters)?;
        let containers = self.store.list(&scope.namespace, &filter).await?;
        reply(ListContainersResponse { containers })
    }

    async fn list_stream(
        &self,
        r: Request<ListContainersRequest>,
    ) -> Answer<Streamed<ListContainerMessage>> {
        let scope = Scope::of(&r)?;
        let filter = Filter::parse(&r.get_ref().filters)?;
        let containers = self.store.list(&scope.namespace, &filter).await?;
        let messages = containers
            .into_iter()
            .map(|c| Ok(ListContainerMessage { container: Some(c) }));
        reply(Box::pin(futures::stream::iter(messages)))
    }

    async fn create(&self, r: Request<CreateContainerRequest>) -> Answer<CreateContainerResponse> {
        let scope = Scope::of(&r)?;
        let container = required(r.into_inner().container, "Container")?;
        let container = self.store.create(&scope, container).await?;
        reply(CreateContainerResponse {
            container: Some(container),
        })
    }

    async fn update(&self, r: Request<UpdateContainerRequest>) -> Answer<UpdateContainerResponse> {
        let scope = Scope::of(&r)?;
        let r = r.into_inner();
        let container = required(r.container, "Container")?;
        if container.id.is_empty() {
            return Err(Error::new(
                corten_core::Kind::InvalidArgument,
                "Container.ID required",
            ))?;
        }
        let container = self
            .store
            .update(&scope, container, &paths(r.update_mask))
            .await?;
        reply(UpdateContainerResponse {
            container: Some(container),
        })
    }

    async fn delete(&self, r: Request<DeleteContainerRequest>) -> Answer<Empty> {
        let scope = Scope::of(&r)?;
        self.store.delete(&scope, &r.get_ref().id).await?;
        done()
    }
}

/// The service, and the plugin that puts it on the sockets.
pub fn registrations() -> [Registration; 2] {
    [service(), exposed("containers", "containers-service")]
}

fn service() -> Registration {
    Registration::new::<kinds::Service>("containers-service")
        .requires::<kinds::Metadata>()
        .init_plain(|cx| {
            Box::pin(async move {
                let store = cx.single::<kinds::Metadata>()?.containers();
                Ok(Arc::new(Service { store }) as Arc<dyn GrpcService>)
            })
        })
}
