//! containerd.services.sandbox.v1.Store: sandbox records.

use std::sync::Arc;

use corten_core::filter::Filter;
use corten_core::sandbox::Sandboxes;
use corten_core::service::GrpcService;
use corten_core::{Scope, kinds};
use corten_protos::containerd::services::sandbox::v1::{
    StoreCreateRequest, StoreCreateResponse, StoreDeleteRequest, StoreDeleteResponse,
    StoreGetRequest, StoreGetResponse, StoreListRequest, StoreListResponse, StoreUpdateRequest,
    StoreUpdateResponse, store_server,
};
use corten_registry::Registration;
use tonic::{Request, async_trait};

use crate::{Answer, facade, reply, required};

#[derive(Clone)]
struct Service {
    store: Arc<dyn Sandboxes>,
}

facade!(Service, store_server::StoreServer);

#[async_trait]
impl store_server::Store for Service {
    async fn create(&self, r: Request<StoreCreateRequest>) -> Answer<StoreCreateResponse> {
        let scope = Scope::of(&r)?;
        let sandbox = required(r.into_inner().sandbox, "sandbox")?;
        let sandbox = self.store.create(&scope, sandbox).await?;
        reply(StoreCreateResponse {
            sandbox: Some(sandbox),
        })
    }

    async fn update(&self, r: Request<StoreUpdateRequest>) -> Answer<StoreUpdateResponse> {
        let scope = Scope::of(&r)?;
        let r = r.into_inner();
        let sandbox = required(r.sandbox, "sandbox")?;
        let sandbox = self.store.update(&scope, sandbox, &r.fields).await?;
        reply(StoreUpdateResponse {
            sandbox: Some(sandbox),
        })
    }

    async fn delete(&self, r: Request<StoreDeleteRequest>) -> Answer<StoreDeleteResponse> {
        let scope = Scope::of(&r)?;
        self.store.delete(&scope, &r.get_ref().sandbox_id).await?;
        reply(StoreDeleteResponse::default())
    }

    async fn list(&self, r: Request<StoreListRequest>) -> Answer<StoreListResponse> {
        let scope = Scope::of(&r)?;
        let filter = Filter::parse(&r.get_ref().filters)?;
        reply(StoreListResponse {
            list: self.store.list(&scope.namespace, &filter).await?,
        })
    }

    async fn get(&self, r: Request<StoreGetRequest>) -> Answer<StoreGetResponse> {
        let scope = Scope::of(&r)?;
        let sandbox = self
            .store
            .get(&scope.namespace, &r.get_ref().sandbox_id)
            .await?;
        reply(StoreGetResponse {
            sandbox: Some(sandbox),
        })
    }
}

/// The plugin.
pub fn registration() -> Registration {
    Registration::new::<kinds::Grpc>("sandboxes")
        .requires::<kinds::SandboxStore>()
        .init_plain(|cx| {
            Box::pin(async move {
                let store = cx.by_id::<kinds::SandboxStore>("local")?;
                Ok(Arc::new(Service { store }) as Arc<dyn GrpcService>)
            })
        })
}
