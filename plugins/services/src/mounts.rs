//! containerd.services.mounts.v1.Mounts: the mount manager's façade.
//!
//! Unimplemented from Activate means that nothing in the mounts needs the manager: the client mounts them as they are.

use std::sync::Arc;

use corten_core::filter::Filter;
use corten_core::mounts::{ActivateOptions, Manager};
use corten_core::service::GrpcService;
use corten_core::{Scope, kinds};
use corten_protos::containerd::services::mounts::v1::{
    ActivateRequest, ActivateResponse, DeactivateRequest, InfoRequest, InfoResponse, ListMessage,
    ListRequest, UpdateRequest, UpdateResponse, mounts_server,
};
use corten_protos::google::protobuf::Empty;
use corten_registry::Registration;
use futures::stream;
use tonic::{Request, async_trait};

use crate::{Answer, Streamed, done, facade, paths, reply, required};

#[derive(Clone)]
struct Service {
    manager: Arc<dyn Manager>,
}

facade!(Service, mounts_server::MountsServer);

#[async_trait]
impl mounts_server::Mounts for Service {
    async fn activate(&self, r: Request<ActivateRequest>) -> Answer<ActivateResponse> {
        let scope = Scope::of(&r)?;
        let r = r.into_inner();
        let options = ActivateOptions {
            labels: r.labels,
            temporary: r.temporary,
            ..Default::default()
        };
        let info = self
            .manager
            .activate(&scope, &r.name, &r.mounts, options)
            .await?;
        reply(ActivateResponse { info: Some(info) })
    }

    async fn deactivate(&self, r: Request<DeactivateRequest>) -> Answer<Empty> {
        let scope = Scope::of(&r)?;
        self.manager
            .deactivate(&scope.namespace, &r.get_ref().name)
            .await?;
        done()
    }

    async fn info(&self, r: Request<InfoRequest>) -> Answer<InfoResponse> {
        let scope = Scope::of(&r)?;
        let info = self
            .manager
            .info(&scope.namespace, &r.get_ref().name)
            .await?;
        reply(InfoResponse { info: Some(info) })
    }

    async fn update(&self, r: Request<UpdateRequest>) -> Answer<UpdateResponse> {
        let scope = Scope::of(&r)?;
        let r = r.into_inner();
        let info = required(r.info, "info")?;
        let info = self
            .manager
            .update(&scope.namespace, info, &paths(r.update_mask))
            .await?;
        reply(UpdateResponse { info: Some(info) })
    }

    async fn list(&self, r: Request<ListRequest>) -> Answer<Streamed<ListMessage>> {
        let scope = Scope::of(&r)?;
        let filter = Filter::parse(&r.get_ref().filters)?;
        let all = self.manager.list(&scope.namespace, &filter).await?;
        let all = all
            .into_iter()
            .map(|info| Ok(ListMessage { info: Some(info) }));
        reply(Box::pin(stream::iter(all)))
    }
}

/// The plugin.
pub fn registration() -> Registration {
    Registration::new::<kinds::Grpc>("mounts")
        .requires::<kinds::MountManager>()
        .init_plain(|cx| {
            Box::pin(async move {
                let manager = cx.single::<kinds::MountManager>()?;
                Ok(Arc::new(Service { manager }) as Arc<dyn GrpcService>)
            })
        })
}
