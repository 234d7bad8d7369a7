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
use corten_protos::google::protobuf::{Empty, Timestamp};
use corten_registry::Registration;
use tonic::{Request, async_trait};

use crate::{Answer, done, exposed, facade, paths, reply, required};

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
        let r = r.into_inner();
        let image = named(r.image, r.source_date_epoch)?;
        let image = self.store.create(&scope, image).await?;
        reply(CreateImageResponse { image: Some(image) })
    }

    async fn update(&self, r: Request<UpdateImageRequest>) -> Answer<UpdateImageResponse> {
        let scope = Scope::of(&r)?;
        let r = r.into_inner();
        let image = named(r.image, r.source_date_epoch)?;
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

// The client's image; its times are those of the epoch it asks for, and never its own.
fn named(image: Option<Image>, epoch: Option<Timestamp>) -> Result<Image, Error> {
    let image = required(image, "Image")?;
    if image.name.is_empty() {
        return Err(Error::new(Kind::InvalidArgument, "Image.Name required"));
    }
    Ok(Image {
        created_at: epoch,
        updated_at: epoch,
        ..image
    })
}

/// The service, and the plugin that puts it on the sockets.
pub fn registrations() -> [Registration; 2] {
    [service(), exposed("images", "images-service")]
}

fn service() -> Registration {
    Registration::new::<kinds::Service>("images-service")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_epoch_sets_times() {
        let at = |seconds| Some(Timestamp { seconds, nanos: 0 });
        let sent = Image {
            name: "i".into(),
            created_at: at(1),
            updated_at: at(2),
            ..Image::default()
        };
        for epoch in [None, at(1_700_000_000)] {
            let image = named(Some(sent.clone()), epoch).unwrap();
            assert_eq!((image.created_at, image.updated_at), (epoch, epoch));
        }
    }
}
