//! containerd.services.images.v1.Images: image records.

use std::sync::Arc;

use corten_core::filter::Filter;
use corten_core::gc::Scheduler;
use corten_core::images::Images as Store;
use corten_core::service::GrpcService;
use corten_core::{Error, Kind, Scope, kinds};
use corten_protos::containerd::services::images::v1::{
    CreateImageRequest, CreateImageResponse, DeleteImageRequest, GetImageRequest, GetImageResponse,
    Image, ListImagesRequest, ListImagesResponse, UpdateImageRequest, UpdateImageResponse,
    images_server,
};
use corten_protos::google::protobuf::Empty;
use corten_registry::Registration;
use tonic::{Request, async_trait};

use crate::{Answer, done, facade, paths, reply, required};

#[derive(Clone)]
struct Service {
    store: Arc<dyn Store>,
    gc: Arc<dyn Scheduler>,
}

facade!(Service, images_server::ImagesServer);

#[async_trait]
impl images_server::Images for Service {
    async fn get(&self, r: Request<GetImageRequest>) -> Answer<GetImageResponse> {
        let scope = Scope::of(&r)?;
        let image = self.store.get(&scope.namespace, &r.get_ref().name).await?;
        reply(GetImageResponse { image: Some(image) })
    }

    async fn list(&self, r: Request<ListImagesRequest>) -> Answer<ListImagesResponse> {
        let scope = Scope::of(&r)?;
        let filter = Filter::parse(&r.get_ref().filters)?;
        reply(ListImagesResponse {
            images: self.store.list(&scope.namespace, &filter).await?,
        })
    }

    async fn create(&self, r: Request<CreateImageRequest>) -> Answer<CreateImageResponse> {
        let scope = Scope::of(&r)?;
        let image = named(r.into_inner().image)?;
        let image = self.store.create(&scope, image).await?;
        reply(CreateImageResponse { image: Some(image) })
    }

    async fn update(&self, r: Request<UpdateImageRequest>) -> Answer<UpdateImageResponse> {
        let scope = Scope::of(&r)?;
        let r = r.into_inner();
        let image = named(r.image)?;
        let image = self
            .store
            .update(&scope, image, &paths(r.update_mask))
            .await?;
        reply(UpdateImageResponse { image: Some(image) })
    }

    async fn delete(&self, r: Request<DeleteImageRequest>) -> Answer<Empty> {
        let scope = Scope::of(&r)?;
        let r = r.into_inner();
        self.store.delete(&scope, &r.name, r.target).await?;
        if r.sync {
            self.gc.schedule_and_wait().await?;
        }
        done()
    }
}

fn named(image: Option<Image>) -> Result<Image, Error> {
    let image = required(image, "Image")?;
    if image.name.is_empty() {
        return Err(Error::new(Kind::InvalidArgument, "Image.Name required"));
    }
    Ok(image)
}

/// The plugin.
pub fn registration() -> Registration {
    Registration::new::<kinds::Grpc>("images")
        .requires::<kinds::Metadata>()
        .requires::<kinds::Gc>()
        .init_plain(|cx| {
            Box::pin(async move {
                let store = cx.single::<kinds::Metadata>()?.images();
                let gc = cx.single::<kinds::Gc>()?;
                Ok(Arc::new(Service { store, gc }) as Arc<dyn GrpcService>)
            })
        })
}
