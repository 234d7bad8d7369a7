//! The transfer plugin `local`: which ends go together, and what a transfer needs around it (lease, progress).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use corten_core::content::Content;
use corten_core::diff::Differ;
use corten_core::images::Images;
use corten_core::keylock::KeyLocks;
use corten_core::leases::Leases;
use corten_core::protos::containerd::types::transfer as api;
use corten_core::rollback::Rollback;
use corten_core::snapshots::{REBASE, Snapshots};
use corten_core::streaming::{Stream, Streams};
use corten_core::transfer::{Options, ProgressSink, Transfer};
use corten_core::{Any, Context, Error, Kind, Labels, Result, Scope, kinds, labels, spans};
use corten_registry::Registration;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use crate::bytestream::{ByteReader, ByteWriter};
use crate::credentials::StreamCredentials;
use crate::download::Downloads;
use crate::end::End;
use crate::fetch::Fetcher;
use crate::oci::{DOCKER_SCHEMA1, Desc};
use crate::platform::{Matcher, Platform};
use crate::progress::{Tracker, say, say_of};
use crate::pull::Pull;
use crate::push::Push;
use crate::registry::debug::Debug;
use crate::registry::{Registry, RegistryOptions};
use crate::store::{Store, rfc3339_in, target_of};
use crate::targets::{Targets, UnpackConfig};
use crate::unpack::{UnpackTarget, Unpacker};
use crate::verifier::{Verifiers, admit};
use crate::{archive, import};

/// How long a transfer's own lease lives when the daemon dies.
const LEASE: Duration = Duration::from_secs(24 * 3600);

/// `plugins."io.containerd.transfer.v1.local"`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Downloads at a time over all pulls; 0: no limit.
    pub max_concurrent_downloads: usize,
    /// Blobs above so many bytes are fetched in chunks of them, several at a time; below 512: each as one stream.
    pub concurrent_layer_fetch_buffer: u64,
    pub max_concurrent_uploaded_layers: usize,
    /// Match the whole platform of an unpack configuration, not only its operating system.
    pub check_platform_supported: bool,
    /// Registry configuration folders, separated by `:`, for clients that name none.
    pub config_path: String,
    /// Layers extracted at a time; more than 1 needs a snapshotter that can rebase.
    pub max_concurrent_unpacks: usize,
    /// Where images may be unpacked to; absent: every snapshotter, host platform, overlayfs by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unpack_config: Option<Vec<UnpackConfig>>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_concurrent_downloads: 3,
            concurrent_layer_fetch_buffer: 0,
            max_concurrent_uploaded_layers: 3,
            check_platform_supported: false,
            config_path: String::new(),
            max_concurrent_unpacks: 1,
            unpack_config: None,
        }
    }
}

/// The plugin.
pub struct Local {
    pub(crate) content: Arc<dyn Content>,
    pub(crate) images: Arc<dyn Images>,
    pub(crate) unpacker: Unpacker,
    leases: Arc<dyn Leases>,
    streams: Arc<dyn Streams>,
    targets: Targets,
    downloads: Downloads,
    other_downloads: Mutex<Option<((usize, u64), Downloads)>>,
    uploads: Arc<Semaphore>,
    roots: Vec<PathBuf>,
    verifiers: Verifiers,
}

impl std::fmt::Debug for Local {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Local")
            .field("targets", &self.targets)
            .finish_non_exhaustive()
    }
}

/// What [`Local::new`] works with.
pub struct Parts {
    pub content: Arc<dyn Content>,
    pub images: Arc<dyn Images>,
    pub snapshots: Arc<dyn Snapshots>,
    pub leases: Arc<dyn Leases>,
    pub streams: Arc<dyn Streams>,
    pub differs: BTreeMap<String, Arc<dyn Differ>>,
    /// Snapshotters that have the capability `rebase`.
    pub rebase: Vec<String>,
    /// Asked before every pull.
    pub verifiers: Verifiers,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Parts(differs: {:?})", self.differs.keys())
    }
}

#[async_trait]
impl Transfer for Local {
    async fn transfer(
        &self,
        scope: &Scope,
        source: Any,
        destination: Any,
        progress: Option<ProgressSink>,
    ) -> Result<()> {
        self.transfer_with(scope, source, destination, Options::default(), progress)
            .await
    }

    async fn transfer_with(
        &self,
        scope: &Scope,
        source: Any,
        destination: Any,
        options: Options,
        progress: Option<ProgressSink>,
    ) -> Result<()> {
        let ends = (End::of(&source)?, End::of(&destination)?);
        if let (End::Import(from), End::Export(to)) = &ends {
            let reader = ByteReader::new(self.stream(scope, &from.stream)?);
            let writer = ByteWriter::new(self.stream(scope, &to.stream)?);
            return import::echo(reader, writer).await;
        }
        let (scope, lease) = self.leased(scope).await?;
        let work = self.leased_transfer(&scope, ends, options, progress.as_ref());
        let done = work.await;
        lease.run().await;
        done
    }
}

impl Local {
    /// Builds the plugin.
    ///
    /// # Errors
    /// A configuration that names what is not there.
    pub fn new(parts: Parts, config: &Config) -> Result<Self> {
        let limit = |n: usize| Arc::new(Semaphore::new(n.clamp(1, Semaphore::MAX_PERMITS)));
        let targets = Targets::new(&parts, config)?;
        let parallel =
            (config.max_concurrent_unpacks > 1).then(|| limit(config.max_concurrent_unpacks));
        let unpacker = Unpacker {
            content: parts.content.clone(),
            snapshots: parts.snapshots,
            locks: KeyLocks::default(),
            parallel,
        };
        Ok(Self {
            content: parts.content,
            images: parts.images,
            unpacker,
            leases: parts.leases,
            streams: parts.streams,
            targets,
            downloads: Downloads::new(
                config.max_concurrent_downloads,
                config.concurrent_layer_fetch_buffer,
            ),
            other_downloads: Mutex::default(),
            uploads: limit(match config.max_concurrent_uploaded_layers {
                0 => 32,
                n => n,
            }),
            roots: split_paths(&config.config_path),
            verifiers: parts.verifiers,
        })
    }

    /// The unpacker, for callers that have an image already.
    pub fn unpacker(&self) -> &Unpacker {
        &self.unpacker
    }

    /// The configured targets for what a client asked for; unsupported wishes are skipped, as stock does.
    pub fn targets(&self, wanted: &[(Platform, String)]) -> Vec<UnpackTarget> {
        self.targets.of(wanted)
    }

    fn targets_for(&self, to: &Store, options: &Options) -> Vec<UnpackTarget> {
        let mut targets = self.targets(&to.unpacks);
        for target in &mut targets {
            target.sync_fs = options.sync_fs;
        }
        targets
    }

    fn stream(&self, scope: &Scope, id: &str) -> Result<Arc<dyn Stream>> {
        self.streams.get(&scope.namespace, id)
    }

    // The caller's lease, or one of our own that goes with the transfer.
    async fn leased(&self, scope: &Scope) -> Result<(Scope, Rollback)> {
        let mut undo = Rollback::new();
        if scope.lease.is_some() {
            return Ok((scope.clone(), undo));
        }
        let expiry = Labels::from([(labels::GC_EXPIRE.to_owned(), rfc3339_in(LEASE))]);
        let id = self.leases.create(&scope.namespace, "", expiry).await?.id;
        let (leases, ns, own) = (self.leases.clone(), scope.namespace.clone(), id.clone());
        undo.push("delete transfer lease", async move {
            match leases.delete(&ns, &own, false).await {
                Err(e) if e.kind() == Kind::NotFound => Ok(()),
                other => other,
            }
        });
        Ok((scope.with_lease(id), undo))
    }

    async fn leased_transfer(
        &self,
        scope: &Scope,
        ends: (End, End),
        options: Options,
        sink: Option<&ProgressSink>,
    ) -> Result<()> {
        match ends {
            (End::Registry(from), End::Store(to)) => {
                let pull = self.pull(scope, from, *to, options, sink);
                spans::within("transfer.pull", pull).await
            }
            (End::Store(from), End::Registry(to)) => {
                let push = self.push(scope, &from, to, sink);
                spans::within("transfer.push", push).await
            }
            (End::Store(from), End::Export(to)) => self.export(scope, &from, to, sink).await,
            (End::Store(from), End::Store(to)) => self.tag(scope, &from, &to, &options).await,
            (End::Import(from), End::Store(to)) => {
                let source = ByteReader::new(self.stream(scope, &from.stream)?);
                let plain = !from.media_type.is_empty();
                import::import(self, scope, source, plain, from.force_compress, &to, sink).await
            }
            (from, to) => Err(Error::not_implemented(format!(
                "unable to transfer from {from} to {to}"
            ))),
        }
    }

    async fn registry(&self, scope: &Scope, end: api::OciRegistry) -> Result<Arc<Registry>> {
        let mut options = RegistryOptions {
            host_roots: self.roots.clone(),
            ..RegistryOptions::default()
        };
        if let Some(resolver) = end.resolver {
            if !resolver.host_dir.is_empty() {
                options.host_roots = split_paths(&resolver.host_dir);
            }
            options.default_scheme = resolver.default_scheme;
            options.headers = resolver.headers;
            if !resolver.auth_stream.is_empty() {
                let stream = self.stream(scope, &resolver.auth_stream)?;
                options.credentials = Some(Arc::new(StreamCredentials::new(
                    end.reference.clone(),
                    stream,
                )));
            }
            let stream = match (resolver.http_debug, resolver.logs_stream.as_str()) {
                (0, _) | (_, "") => None,
                (_, id) => Some(
                    self.stream(scope, id)
                        .context("failed to get stream for HTTP debug logs")?,
                ),
            };
            use api::HttpDebug::{Both, Debug as Dump, Trace};
            options.debug = match api::HttpDebug::try_from(resolver.http_debug) {
                Ok(Dump) => Some(Arc::new(Debug::new(true, false, stream))),
                Ok(Trace) => Some(Arc::new(Debug::new(false, true, stream))),
                Ok(Both) => Some(Arc::new(Debug::new(true, true, stream))),
                _ => None,
            };
        }
        Ok(Arc::new(Registry::open(&end.reference, options).await?))
    }

    // Those of the plugin, or those that all pulls with this wish share; the last other wish is remembered.
    fn downloads_for(&self, wished: Option<(usize, u64)>) -> Downloads {
        let Some((parallel, chunk)) = wished else {
            return self.downloads.clone();
        };
        let mut other = self.other_downloads.lock();
        match &*other {
            Some((known, downloads)) if *known == (parallel, chunk) => downloads.clone(),
            _ => {
                let downloads = Downloads::new(parallel, chunk);
                *other = Some(((parallel, chunk), downloads.clone()));
                downloads
            }
        }
    }

    async fn pull(
        &self,
        scope: &Scope,
        from: api::OciRegistry,
        store: Store,
        options: Options,
        sink: Option<&ProgressSink>,
    ) -> Result<()> {
        let shown = format!("OCI Registry ({})", from.reference);
        say(sink, format!("Resolving from {shown}")).await;
        let resolved = async {
            let registry = self.registry(scope, from).await?;
            let desc = registry.resolve().await?;
            Ok::<_, Error>((registry, desc))
        };
        let (registry, desc) = resolved.await.context("failed to resolve image")?;
        if desc.media_type == DOCKER_SCHEMA1 {
            return Err(Error::invalid(
                "schema 1 image manifests are no longer supported",
            ));
        }
        let name = registry.text().to_owned();
        admit(&self.verifiers, &name, &desc.proto()).await?;
        say(sink, format!("Pulling from {shown}")).await;
        say_of(sink, "fetching image content", &name, Some(&desc)).await;
        let tracker = sink.map(|s| Tracker::start(s.clone(), &name, "downloading"));
        let targets = self.targets_for(&store, &options);
        let pull = Arc::new(Pull {
            fetcher: Fetcher {
                content: self.content.clone(),
                scope: scope.clone(),
                registry,
                downloads: self.downloads_for(options.downloads),
                locks: self.unpacker.locks.clone(),
                tracker: tracker.clone(),
                options,
            },
            store: store.clone(),
            unpacker: self.unpacker.clone(),
            targets,
        });
        let work = async {
            pull.run(desc.clone()).await?;
            for image in store.save(scope, &*self.images, &desc).await? {
                say_of(sink, "saved", &image.name, Some(&desc)).await;
            }
            say(sink, format!("Completed pull from {shown}")).await;
            Ok(())
        };
        let done = work.await;
        // After the last words: clients draw when they hear of a blob.
        if let Some(t) = tracker {
            t.finish().await;
        }
        done
    }

    async fn push(
        &self,
        scope: &Scope,
        store: &Store,
        to: api::OciRegistry,
        sink: Option<&ProgressSink>,
    ) -> Result<()> {
        let (image, desc) = store.get(&scope.namespace, &*self.images).await?;
        let shown = format!("OCI Registry ({})", to.reference);
        say(sink, format!("Pushing to {shown}")).await;
        say_of(sink, "pushing content", &image.name, Some(&desc)).await;
        let registry = self.registry(scope, to).await?;
        let tracker = sink.map(|s| Tracker::start(s.clone(), &image.name, "uploading"));
        let push = Push {
            content: self.content.clone(),
            scope: scope.clone(),
            registry,
            platform: Matcher::ordered(&store.platforms),
            limit: self.uploads.clone(),
            tracker: tracker.clone(),
        };
        let work = async {
            push.run(desc.clone()).await?;
            say_of(sink, "pushed content", &image.name, Some(&desc)).await;
            say_of(sink, format!("Completed push to {shown}"), "", Some(&desc)).await;
            Ok(())
        };
        let done = work.await;
        if let Some(t) = tracker {
            t.finish().await;
        }
        done
    }

    async fn export(
        &self,
        scope: &Scope,
        store: &Store,
        to: api::ImageExportStream,
        sink: Option<&ProgressSink>,
    ) -> Result<()> {
        let out = ByteWriter::new(self.stream(scope, &to.stream)?);
        say(sink, "Exporting").await;
        let images = store
            .lookup(&scope.namespace, &*self.images)
            .await?
            .iter()
            .map(|i| Ok((i.name.clone(), target_of(i)?)))
            .collect::<Result<Vec<(String, Desc)>>>()?;
        let platforms: Vec<Platform> = to.platforms.iter().map(Platform::from).collect();
        let platform = match platforms.as_slice() {
            [] => Matcher::ordered(&[Platform::host()]),
            some => Matcher::ordered(some),
        };
        let export = archive::Export {
            images,
            platform,
            all_platforms: to.all_platforms,
            skip_docker: to.skip_compatibility_manifest,
            skip_non_distributable: to.skip_non_distributable,
        };
        import::export(self, scope, export, out).await?;
        say(sink, "Completed export").await;
        Ok(())
    }

    // Another name; and, beyond stock, unpacked where the new record wants it.
    async fn tag(&self, scope: &Scope, from: &Store, to: &Store, options: &Options) -> Result<()> {
        let (_, desc) = from.get(&scope.namespace, &*self.images).await?;
        let reference = options.annotate.then_some(to.name.as_str());
        for target in self.targets_for(to, options) {
            let unpack = self.unpacker.unpack_image(scope, &desc, &target, reference);
            unpack.await?;
        }
        to.save(scope, &*self.images, &desc).await.map(|_| ())
    }
}

fn split_paths(text: &str) -> Vec<PathBuf> {
    text.split(':')
        .filter(|p| !p.is_empty())
        .map(PathBuf::from)
        .collect()
}

/// The plugin.
pub fn registration() -> Registration {
    Registration::new::<kinds::Transfer>("local")
        .requires::<kinds::Metadata>()
        .requires::<kinds::Differ>()
        .requires::<kinds::Snapshotter>()
        .requires::<kinds::Streaming>()
        .requires::<kinds::ImageVerifier>()
        .config::<Config>()
        .init(|cx, config| {
            Box::pin(async move {
                let metadata = cx.single::<kinds::Metadata>()?;
                let differs = cx.all::<kinds::Differ>()?;
                let rebase = cx
                    .all::<kinds::Snapshotter>()?
                    .into_iter()
                    .filter(|(_, (_, meta))| meta.capabilities.iter().any(|c| c == REBASE))
                    .map(|(id, _)| id)
                    .collect();
                let verifiers = cx.all::<kinds::ImageVerifier>()?;
                let parts = Parts {
                    verifiers: verifiers.into_iter().map(|(id, (v, _))| (id, v)).collect(),
                    content: metadata.content(),
                    images: metadata.images(),
                    snapshots: metadata.snapshots(),
                    leases: metadata.leases(),
                    streams: cx.by_id::<kinds::Streaming>("manager")?,
                    differs: differs.into_iter().map(|(id, (d, _))| (id, d)).collect(),
                    rebase,
                };
                Ok(Arc::new(Local::new(parts, &config)?) as Arc<dyn Transfer>)
            })
        })
}
