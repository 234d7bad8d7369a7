//! containerd.services.leases.v1.Leases.

use std::sync::Arc;

use corten_core::filter::Filter;
use corten_core::leases::Leases as Store;
use corten_core::service::GrpcService;
use corten_core::{Scope, kinds};
use corten_protos::containerd::services::leases::v1::{
    AddResourceRequest, CreateRequest, CreateResponse, DeleteRequest, DeleteResourceRequest,
    ListRequest, ListResourcesRequest, ListResourcesResponse, ListResponse, leases_server,
};
use corten_protos::google::protobuf::Empty;
use corten_registry::Registration;
use tonic::{Request, async_trait};

use crate::{Answer, done, facade, reply, required};

#[derive(Clone)]
struct Service {
    store: Arc<dyn Store>,
}

facade!(Service, leases_server::LeasesServer);

#[async_trait]
impl leases_server::Leases for Service {
    async fn create(&self, r: Request<CreateRequest>) -> Answer<CreateResponse> {
        let scope = Scope::of(&r)?;
        let r = r.into_inner();
        let lease = self.store.create(&scope.namespace, &r.id, r.labels).await?;
        reply(CreateResponse { lease: Some(lease) })
    }

    async fn delete(&self, r: Request<DeleteRequest>) -> Answer<Empty> {
        let scope = Scope::of(&r)?;
        self.store
            .delete(&scope.namespace, &r.get_ref().id, r.get_ref().sync)
            .await?;
        done()
    }

    async fn list(&self, r: Request<ListRequest>) -> Answer<ListResponse> {
        let scope = Scope::of(&r)?;
        let filter = Filter::parse(&r.get_ref().filters)?;
        reply(ListResponse {
            leases: self.store.list(&scope.namespace, &filter).await?,
        })
    }

    async fn add_resource(&self, r: Request<AddResourceRequest>) -> Answer<Empty> {
        let scope = Scope::of(&r)?;
        let r = r.into_inner();
        let resource = required(r.resource, "resource")?;
        self.store
            .add_resource(&scope.namespace, &r.id, resource)
            .await?;
        done()
    }

    async fn delete_resource(&self, r: Request<DeleteResourceRequest>) -> Answer<Empty> {
        let scope = Scope::of(&r)?;
        let r = r.into_inner();
        let resource = required(r.resource, "resource")?;
        self.store
            .delete_resource(&scope.namespace, &r.id, resource)
            .await?;
        done()
    }

    async fn list_resources(
        &self,
        r: Request<ListResourcesRequest>,
    ) -> Answer<ListResourcesResponse> {
        let scope = Scope::of(&r)?;
        let resources = self
            .store
            .resources(&scope.namespace, &r.get_ref().id)
            .await?;
        reply(ListResourcesResponse { resources })
    }
}

/// The plugin.
pub fn registration() -> Registration {
    Registration::new::<kinds::Grpc>("leases")
        .requires::<kinds::Lease>()
        .init_plain(|cx| {
            Box::pin(async move {
                let store = cx.single::<kinds::Lease>()?;
                Ok(Arc::new(Service { store }) as Arc<dyn GrpcService>)
            })
        })
}
