//! The plugin `io.containerd.cri.v1.images`.

use std::any::Any;
use std::path::PathBuf;
use std::sync::Arc;

use corten_core::{Namespace, kinds};
use corten_registry::{Kind, Registration};
use corten_sys::blocking;

use super::{Images, Parts};
use crate::cri::NAMESPACE;
use crate::metrics::Metrics;

/// The parts of the CRI that are plugins of their own: `images`, `runtime`. Who uses one knows its type.
#[derive(Debug)]
pub struct CriService;

impl Kind for CriService {
    const URI: &'static str = "io.containerd.cri.v1";
    type Interface = dyn Any + Send + Sync;
}

/// The plugin; its instance is [`Images`].
pub fn registration(metrics: Arc<Metrics>) -> Registration {
    Registration::new::<CriService>("images")
        .requires::<kinds::Metadata>()
        .requires::<kinds::Snapshotter>()
        .requires::<kinds::Transfer>()
        .requires::<kinds::Streaming>()
        .requires::<kinds::MountManager>()
        .requires::<kinds::Event>()
        .requires::<kinds::Gc>()
        .requires::<kinds::Warning>()
        .config::<crate::config::Images>()
        .init(|cx, config| {
            Box::pin(async move {
                let metadata = cx.single::<kinds::Metadata>()?;
                let snapshots = metadata.snapshots();
                let mut roots: std::collections::BTreeMap<_, _> = cx
                    .all::<kinds::Snapshotter>()?
                    .into_iter()
                    .filter_map(|(id, (_, meta))| {
                        Some((id, PathBuf::from(meta.exports.get("root")?)))
                    })
                    .collect();
                for id in snapshots.names() {
                    // One that does not tell, a proxy: where it would be if it were ours.
                    let own = format!("io.containerd.snapshotter.v1.{id}");
                    roots
                        .entry(id)
                        .or_insert_with(|| cx.root().with_file_name(own));
                }
                let parts = Parts {
                    ns: Namespace::new(NAMESPACE)?,
                    records: metadata.images(),
                    content: metadata.content(),
                    snapshots,
                    gc: cx.single::<kinds::Gc>()?,
                    transfer: cx.single::<kinds::Transfer>()?,
                    streams: cx.by_id::<kinds::Streaming>("manager")?,
                    mounts: cx.single::<kinds::MountManager>()?,
                    events: cx.single::<kinds::Event>()?,
                    roots,
                    state: cx.state(),
                    // Where containerd has them, among the folders of its CRI plugin.
                    volumes: cx
                        .daemon_state()
                        .join("io.containerd.grpc.v1.cri/image-volumes"),
                    metrics,
                };
                let discard = config.discard_unpacked_layers;
                let images = blocking(move || Images::new(parts, config)).await?;
                let warnings = cx.by_id::<kinds::Warning>("deprecations")?;
                for deprecation in images.deprecated() {
                    warnings.emit(*deprecation);
                }
                cx.export("DiscardUnpackedLayers", discard.to_string());
                cx.export("RegistryConfigPath", images.registries.config_path.clone());
                let images = Arc::new(images);
                images.start().await?;
                Ok(images as Arc<dyn Any + Send + Sync>)
            })
        })
}
