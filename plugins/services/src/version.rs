//! containerd.services.version.v1.Version. Clients parse the version as semver and pick features by it.

use std::sync::Arc;

use corten_core::kinds;
use corten_core::service::GrpcService;
use corten_protos::containerd::services::version::v1::{VersionResponse, version_server};
use corten_protos::google::protobuf::Empty;
use corten_registry::Registration;
use tonic::{Request, async_trait};

use crate::{Answer, facade, reply};

/// The commit that this was built from, when the build says so.
const REVISION: &str = match option_env!("CORTEN_REVISION") {
    Some(revision) => revision,
    None => "",
};

#[derive(Clone)]
struct Service {
    version: String,
}

facade!(Service, version_server::VersionServer);

#[async_trait]
impl version_server::Version for Service {
    async fn version(&self, _: Request<Empty>) -> Answer<VersionResponse> {
        reply(VersionResponse {
            version: self.version.clone(),
            revision: REVISION.to_owned(),
        })
    }
}

/// The plugin.
pub fn registration() -> Registration {
    Registration::new::<kinds::Grpc>("version").init_plain(|cx| {
        Box::pin(async move {
            let version = cx.properties().version.clone();
            Ok(Arc::new(Service { version }) as Arc<dyn GrpcService>)
        })
    })
}
