//! containerd.services.mounts.v1.Mounts: the mount manager's façade.
//!
//! There is no mount manager yet; every method answers Unimplemented, which clients take as "hand the mounts to the
//! runtime as they are".

use std::sync::Arc;

use corten_core::kinds;
use corten_core::service::GrpcService;
use corten_protos::containerd::services::mounts::v1::mounts_server;
use corten_registry::Registration;
use tonic::async_trait;

use crate::facade;

#[derive(Clone)]
struct Service;

facade!(Service, mounts_server::MountsServer);

#[async_trait]
impl mounts_server::Mounts for Service {}

/// The plugin.
pub fn registration() -> Registration {
    Registration::new::<kinds::Grpc>("mounts")
        .init_plain(|_| Box::pin(async { Ok(Arc::new(Service) as Arc<dyn GrpcService>) }))
}
