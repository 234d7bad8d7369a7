//! containerd.services.namespaces.v1.Namespaces. The namespace is in the message here, not in a header.

use std::sync::Arc;

use corten_core::namespaces::Namespaces as Store;
use corten_core::service::GrpcService;
use corten_core::{Error, Namespace, id, kinds};
use corten_protos::containerd::services::namespaces::v1::{
    CreateNamespaceRequest, CreateNamespaceResponse, DeleteNamespaceRequest, GetNamespaceRequest,
    GetNamespaceResponse, ListNamespacesRequest, ListNamespacesResponse, Namespace as Message,
    UpdateNamespaceRequest, UpdateNamespaceResponse, namespaces_server,
};
use corten_protos::google::protobuf::Empty;
use corten_registry::Registration;
use tonic::{Request, async_trait};

use crate::{Answer, done, exposed, facade, paths, reply, required};

#[derive(Clone)]
struct Service {
    store: Arc<dyn Store>,
}

facade!(Service, namespaces_server::NamespacesServer);

#[async_trait]
impl namespaces_server::Namespaces for Service {
    async fn get(&self, r: Request<GetNamespaceRequest>) -> Answer<GetNamespaceResponse> {
        let name = r.into_inner().name;
        // containerd: a namespace that does not exist, whatever its name, is one without labels.
        let labels = match Namespace::new(name.clone()) {
            Ok(ns) => self.store.labels(&ns).await?,
            Err(_) => Default::default(),
        };
        reply(GetNamespaceResponse {
            namespace: Some(Message { name, labels }),
        })
    }

    async fn list(&self, _: Request<ListNamespacesRequest>) -> Answer<ListNamespacesResponse> {
        let all = self.store.list().await?;
        let namespaces = all
            .into_iter()
            .map(|(name, labels)| Message { name, labels })
            .collect();
        reply(ListNamespacesResponse { namespaces })
    }

    async fn create(&self, r: Request<CreateNamespaceRequest>) -> Answer<CreateNamespaceResponse> {
        let message = required(r.into_inner().namespace, "namespace")?;
        let ns = parse(&message.name)?;
        self.store.create(&ns, message.labels.clone()).await?;
        reply(CreateNamespaceResponse {
            namespace: Some(message),
        })
    }

    async fn update(&self, r: Request<UpdateNamespaceRequest>) -> Answer<UpdateNamespaceResponse> {
        let r = r.into_inner();
        let message = required(r.namespace, "namespace")?;
        let ns = parse(&message.name)?;
        let labels = self
            .store
            .update(&ns, message.labels, &paths(r.update_mask))
            .await?;
        reply(UpdateNamespaceResponse {
            namespace: Some(Message {
                name: message.name,
                labels,
            }),
        })
    }

    async fn delete(&self, r: Request<DeleteNamespaceRequest>) -> Answer<Empty> {
        self.store.delete(&parse(&r.get_ref().name)?).await?;
        done()
    }
}

fn parse(name: &str) -> Result<Namespace, Error> {
    id::validate(name)?;
    Namespace::new(name)
}

/// The service, and the plugin that puts it on the sockets.
pub fn registrations() -> [Registration; 2] {
    [service(), exposed("namespaces", "namespaces-service")]
}

fn service() -> Registration {
    Registration::new::<kinds::Service>("namespaces-service")
        .requires::<kinds::Metadata>()
        .init_plain(|cx| {
            Box::pin(async move {
                let store = cx.single::<kinds::Metadata>()?.namespaces();
                Ok(Arc::new(Service { store }) as Arc<dyn GrpcService>)
            })
        })
}
