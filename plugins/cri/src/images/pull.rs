//! Pull: one transfer for all who want the same, the names of what came, and the words for what did not.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use corten_core::protos::any;
use corten_core::protos::containerd::services::images::v1::Image;
use corten_core::protos::containerd::types::Platform as ProtoPlatform;
use corten_core::protos::containerd::types::transfer::{
    ImageStore, OciRegistry, RegistryResolver, UnpackConfiguration,
};
use corten_core::transfer::{Options, Refused, Unreachable};
use corten_core::{Context, Digest, Error, Kind, Result};
use corten_protos::runtime::v1::AuthConfig;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::mpsc;

use super::progress::Watch;
use super::reference::Named;
use super::{Images, auth};

/// What the kubelet looks for at the start of an error that another try may mend.
pub const REGISTRY_UNAVAILABLE: &str = "RegistryUnavailable";
/// What it looks for when a verifier refused the image.
pub const SIGNATURE_VALIDATION_FAILED: &str = "SignatureValidationFailed";

type Outcome = Result<String, Arc<Error>>;
type Running = BoxFuture<'static, Outcome>;

/// Pulls that are under way, by what they are of and for whom.
#[derive(Default)]
pub(super) struct Pulls {
    running: Mutex<HashMap<Key, WeakShared<Running>>>,
}

/// Whoever has other credentials is not served by somebody else's pull: pulling is how the kubelet learns whether a
/// pod may have the image.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    reference: String,
    snapshotter: String,
    /// A digest of the credentials.
    auth: Digest,
}

impl Pulls {
    // Joins the pull of that key, or starts it. It ends when nobody waits for it any more.
    fn join(&self, key: &Key, start: impl FnOnce() -> Running) -> Shared<Running> {
        let mut running = self.running.lock();
        running.retain(|_, pull| pull.upgrade().is_some());
        if let Some(pull) = running.get(key).and_then(WeakShared::upgrade) {
            return pull;
        }
        let pull = start().shared();
        if let Some(weak) = pull.downgrade() {
            running.insert(key.clone(), weak);
        }
        pull
    }
}

impl Images {
    /// Pulls `name` and unpacks it for `snapshotter`; gives the image's id. Several calls for the same image with the
    /// same credentials share one transfer.
    ///
    /// # Errors
    /// InvalidArgument: a malformed name. The transfer's; those that begin with [`REGISTRY_UNAVAILABLE`] or
    /// [`SIGNATURE_VALIDATION_FAILED`] are Unknown, as only then the kubelet reads them.
    pub async fn pull(
        self: &Arc<Self>,
        name: &str,
        auth: Option<AuthConfig>,
        snapshotter: &str,
    ) -> Result<String> {
        let named = Named::pulled(name)
            .with_context(|| format!("failed to parse image reference {name:?}"))?;
        let key = Key {
            reference: named.to_string(),
            snapshotter: snapshotter.to_owned(),
            auth: Digest::sha256(
                &auth
                    .as_ref()
                    .map(Message::encode_to_vec)
                    .unwrap_or_default(),
            ),
        };
        let pull = self.pulls.join(&key, || {
            let (images, snapshotter) = (self.clone(), snapshotter.to_owned());
            async move {
                images
                    .pull_alone(named, auth, &snapshotter)
                    .await
                    .map_err(Arc::new)
            }
            .boxed()
        });
        pull.await.map_err(|e| Error::new(e.kind(), e.to_string()))
    }

    async fn pull_alone(
        &self,
        named: Named,
        auth: Option<AuthConfig>,
        snapshotter: &str,
    ) -> Result<String> {
        let began = Instant::now();
        let pull = self.metrics.pull();
        let reference = named.to_string();
        let is_new = self.records.get(&self.ns, &reference).await.is_err();
        let bytes = self
            .fetch(&reference, auth, snapshotter)
            .await
            .context(format!("failed to pull and unpack image {reference:?}"))
            .map_err(worded)?;
        let image = self
            .records
            .get(&self.ns, &reference)
            .await
            .with_context(|| {
                format!("failed to get image {reference:?} from containerd image store")
            })?;
        let record = match self.loader.load(&image).await {
            Ok(record) => record,
            Err(e) => {
                if is_new {
                    self.forget_pulled(image).await;
                }
                return Err(e.context("get image config descriptor"));
            }
        };
        let digest = match &named.digest {
            Some(_) => reference.clone(),
            None => named.at(&record.target.digest),
        };
        let labels = self.labels_for(&reference);
        let names = [record.id.clone(), reference.clone(), digest.clone()];
        for name in &names {
            self.put_name(name, &record.target, &labels).await?;
            self.refresh(name)
                .await
                .with_context(|| format!("failed to update image store {name:?}"))?;
        }
        tracing::info!(
            image.name = reference,
            image.id = record.id,
            image.digest = digest,
            image.size = record.size,
            fetched = bytes,
            took = ?began.elapsed(),
            "pulled image"
        );
        pull.done(bytes);
        Ok(record.id)
    }

    // What is no image for the CRI has no id there, so that nobody could remove it.
    async fn forget_pulled(&self, image: Image) {
        let gone = self
            .records
            .delete(&self.scope(), &image.name, image.target)
            .await;
        if let Err(error) = gone {
            tracing::warn!(%error, image.name = image.name, "remove what is no image");
        }
    }

    // Runs the transfer; gives the bytes that came from the registry.
    async fn fetch(
        &self,
        reference: &str,
        auth: Option<AuthConfig>,
        snapshotter: &str,
    ) -> Result<u64> {
        let host = corten_registry::Platform::host();
        let platform = ProtoPlatform {
            os: host.os,
            architecture: host.architecture,
            variant: host.variant,
            ..ProtoPlatform::default()
        };
        let store = ImageStore {
            name: reference.to_owned(),
            labels: self.labels_for(reference),
            platforms: vec![platform.clone()],
            unpacks: vec![UnpackConfiguration {
                platform: Some(platform),
                snapshotter: snapshotter.to_owned(),
            }],
            ..ImageStore::default()
        };
        let credentials = auth::register(&self.streams, &self.ns, auth, self.auths.clone())?;
        let source = OciRegistry {
            reference: reference.to_owned(),
            resolver: Some(RegistryResolver {
                auth_stream: credentials.id.clone(),
                headers: self.registries.headers.clone(),
                host_dir: self.registries.config_path.clone(),
                ..RegistryResolver::default()
            }),
        };
        // Full: the transfer waits for the watch, which only counts.
        let (tx, mut progress) = mpsc::channel(64);
        let scope = self.scope();
        let own = crate::config::Images::default();
        let (parallel, chunk) = (
            self.config.max_concurrent_downloads,
            self.config.concurrent_layer_fetch_buffer,
        );
        let defaults = (
            own.max_concurrent_downloads,
            own.concurrent_layer_fetch_buffer,
        );
        let options = Options {
            // Who configured nothing here shares the limits of all other pulls.
            downloads: Some((parallel, chunk)).filter(|wished| *wished != defaults),
            discard_layers: self.config.discard_unpacked_layers,
            annotate: !self.config.disable_snapshot_annotations,
            sync_fs: self.config.image_pull_with_sync_fs,
        };
        let (source, store) = (any::pack(&source), any::pack(&store));
        let transfer = self
            .transfer
            .transfer_with(&scope, source, store, options, Some(tx));
        let mut watch = Watch::new(self.config.image_pull_progress_timeout);
        tokio::select! {
            done = transfer => done?,
            () = watch.stalled(&mut progress) => {
                let patience = self.config.image_pull_progress_timeout;
                return Err(Error::new(
                    Kind::DeadlineExceeded,
                    format!("no progress in {patience:?}: context canceled"),
                ));
            }
        }
        // What was said last.
        while let Ok(event) = progress.try_recv() {
            watch.take(&event);
        }
        Ok(watch.bytes)
    }
}

// Puts the words in front that the kubelet looks for.
fn worded(e: Error) -> Error {
    let word = match e.kind() {
        _ if e.is_caused_by::<Refused>() => SIGNATURE_VALIDATION_FAILED,
        _ if e.is_caused_by::<Unreachable>() => REGISTRY_UNAVAILABLE,
        Kind::Unavailable | Kind::DeadlineExceeded => REGISTRY_UNAVAILABLE,
        _ => return e,
    };
    e.context(word).reclassify(Kind::Unknown)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn key(name: &str, secret: &[u8]) -> Key {
        Key {
            reference: name.into(),
            snapshotter: "s".into(),
            auth: Digest::sha256(secret),
        }
    }

    #[tokio::test]
    async fn the_same_pull_is_made_once() {
        let (pulls, made) = (Pulls::default(), Arc::new(AtomicUsize::new(0)));
        let start = |made: &Arc<AtomicUsize>| {
            let made = made.clone();
            move || -> Running {
                async move {
                    tokio::task::yield_now().await;
                    made.fetch_add(1, Ordering::SeqCst);
                    Ok("id".to_owned())
                }
                .boxed()
            }
        };
        let a = pulls.join(&key("a", b""), start(&made));
        let b = pulls.join(&key("a", b""), start(&made));
        let other = pulls.join(&key("a", b"secret"), start(&made));
        let (a, b, other) = tokio::join!(a, b, other);
        assert_eq!(
            (a.unwrap(), b.unwrap(), other.unwrap()),
            ("id".into(), "id".into(), "id".into())
        );
        assert_eq!(made.load(Ordering::SeqCst), 2);
        // One that is over is not joined.
        pulls.join(&key("a", b""), start(&made)).await.unwrap();
        assert_eq!(made.load(Ordering::SeqCst), 3);
    }

    #[tokio::test]
    async fn a_pull_that_nobody_wants_ends() {
        let pulls = Pulls::default();
        let (held, dropped) = tokio::sync::oneshot::channel::<()>();
        let pull = pulls.join(&key("a", b""), || {
            async move {
                let _held = held;
                std::future::pending().await
            }
            .boxed()
        });
        let again = pulls.join(&key("a", b""), || panic!("it runs"));
        drop(pull);
        drop(again);
        assert!(dropped.await.is_err());
    }

    #[test]
    fn the_kubelet_finds_its_words() {
        let e = worded(Error::new(Kind::Unavailable, "503").context("failed to pull"));
        assert_eq!(e.to_string(), "RegistryUnavailable: failed to pull: 503");
        assert_eq!(e.kind(), Kind::Unknown);
        let refused = Error::new(Kind::Unknown, "blocked").with_source(Refused("bad".into()));
        let e = worded(refused.context("failed to pull"));
        assert_eq!(
            e.to_string(),
            "SignatureValidationFailed: failed to pull: blocked: bad"
        );
        let gone = Error::new(Kind::Unknown, "head").with_source(Unreachable("refused".into()));
        assert_eq!(
            worded(gone).to_string(),
            "RegistryUnavailable: head: refused"
        );
        let e = worded(Error::not_found("x"));
        assert_eq!(
            (e.kind(), e.to_string().as_str()),
            (Kind::NotFound, "x: not found")
        );
    }
}
