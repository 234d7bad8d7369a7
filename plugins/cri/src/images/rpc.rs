//! The ImageService: [`Images`] in the words of the CRI.

use std::collections::BTreeMap;
use std::sync::Arc;

use corten_core::{Context, Kind, Result};
use corten_protos::runtime::v1::{
    Image, ImageFilter, ImageFsInfoRequest, ImageFsInfoResponse, ImageSpec, ImageStatusRequest,
    ImageStatusResponse, Int64Value, ListImagesRequest, ListImagesResponse, PullImageRequest,
    PullImageResponse, RemoveImageRequest, RemoveImageResponse, StreamImagesRequest,
    StreamImagesResponse,
};
use serde::Serialize;

use super::{ImageConfig, ImageRecord, Images};
use crate::Cri;
use crate::service::Answers;
use crate::stats::batches;

/// Where kubelets before 1.29 name the runtime handler of a pull.
const HANDLER_ANNOTATION: &str = "io.containerd.cri.runtime-handler";

/// What ImageStatus tells when it is asked for more.
#[derive(Serialize)]
struct Verbose<'a> {
    #[serde(rename = "chainID")]
    chain_id: &'a str,
    #[serde(rename = "imageSpec")]
    config: &'a ImageConfig,
}

impl Cri {
    pub async fn list_images(self: &Arc<Self>, r: ListImagesRequest) -> Result<ListImagesResponse> {
        Ok(ListImagesResponse {
            images: listed(&self.images, r.filter.as_ref())?,
        })
    }

    pub async fn stream_images(
        self: &Arc<Self>,
        r: StreamImagesRequest,
    ) -> Result<Answers<StreamImagesResponse>> {
        let images = listed(&self.images, r.filter.as_ref())?;
        Ok(batches::batched(images, |images| StreamImagesResponse {
            images,
        }))
    }

    pub async fn image_status(
        self: &Arc<Self>,
        r: ImageStatusRequest,
    ) -> Result<ImageStatusResponse> {
        let name = name_of(r.image.as_ref());
        let record = match self.images.find(name) {
            Err(e) if e.kind() == Kind::NotFound => return Ok(ImageStatusResponse::default()),
            other => other.with_context(|| format!("can not resolve {name:?} locally"))?,
        };
        let mut info = BTreeMap::new();
        if r.verbose {
            let verbose = Verbose {
                chain_id: &record.chain_id,
                config: &record.config,
            };
            let text = serde_json::to_string(&verbose).unwrap_or_else(|e| e.to_string());
            info.insert("info".to_owned(), text);
        }
        Ok(ImageStatusResponse {
            image: Some(told(&record)),
            info,
        })
    }

    pub async fn pull_image(self: &Arc<Self>, r: PullImageRequest) -> Result<PullImageResponse> {
        let spec = r.image.unwrap_or_default();
        let mut handler = spec.runtime_handler.as_str();
        if let Some(pod) = r.sandbox_config.as_ref().filter(|_| handler.is_empty()) {
            handler = pod
                .annotations
                .get(HANDLER_ANNOTATION)
                .map_or("", String::as_str);
        }
        let snapshotter = self.images.snapshotter_of(handler);
        let image_ref = self.images.pull(&spec.image, r.auth, &snapshotter).await?;
        Ok(PullImageResponse { image_ref })
    }

    pub async fn remove_image(
        self: &Arc<Self>,
        r: RemoveImageRequest,
    ) -> Result<RemoveImageResponse> {
        self.images.remove(name_of(r.image.as_ref())).await?;
        Ok(RemoveImageResponse {})
    }

    pub async fn image_fs_info(
        self: &Arc<Self>,
        _: ImageFsInfoRequest,
    ) -> Result<ImageFsInfoResponse> {
        Ok(self.images.fs_info())
    }
}

impl Images {
    /// Removes an image by any of its names: all of them go, and so does what only it needed, before this answers. One
    /// that is not here is fine.
    ///
    /// # Errors
    /// InvalidArgument when several ids begin so; the records'.
    pub async fn remove(&self, name: &str) -> Result<()> {
        let image = match self.find(name) {
            Err(e) if e.kind() == Kind::NotFound => return Ok(()),
            other => other.with_context(|| format!("can not resolve {name:?} locally"))?,
        };
        let scope = self.scope();
        for reference in &image.references {
            let what = || {
                format!(
                    "failed to delete image reference {reference:?} for {:?}",
                    image.id
                )
            };
            match self.records.delete(&scope, reference, None).await {
                Err(e) if e.kind() != Kind::NotFound => return Err(e).with_context(what),
                _ => {}
            }
            self.refresh(reference).await.with_context(what)?;
        }
        self.gc
            .schedule_and_wait()
            .await
            .context("collect garbage")?;
        Ok(())
    }
}

fn name_of(spec: Option<&ImageSpec>) -> &str {
    spec.map_or("", |s| s.image.as_str())
}

fn listed(images: &Images, filter: Option<&ImageFilter>) -> Result<Vec<Image>> {
    let name = name_of(filter.and_then(|f| f.image.as_ref()));
    if name.is_empty() {
        return Ok(images.list().iter().map(|i| told(i)).collect());
    }
    match images.find(name) {
        Ok(image) => Ok(vec![told(&image)]),
        Err(e) if e.kind() == Kind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

fn told(record: &ImageRecord) -> Image {
    let (uid, username) = record.config.config.uid_or_name();
    Image {
        id: record.id.clone(),
        repo_tags: record.repo_tags(),
        repo_digests: record.repo_digests(),
        size: record.size,
        uid: uid.map(|value| Int64Value { value }),
        username,
        spec: None,
        pinned: record.pinned,
    }
}
