//! Layers of an image made into snapshots.
//!
//! Each layer ends as a committed snapshot named by its chain id. Layers are asked for lazily, from the first one
//! whose snapshot is missing: what is unpacked already needs no download. Nothing half done stays: an extraction
//! that fails or is cancelled removes its active snapshot.
//!
//! ```text
//! prepare "extract-<time>-<rand> <chain>" --AlreadyExists--> next layer
//!    | staged by the snapshotter (read-only mounts) ----------------------------+
//!    v                                                                          v
//! fetch -> apply -> diff id as the config says? -> commit as <chain> -> label the blob
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use base64::Engine as _;
use corten_core::content::{Content, read_blob};
use corten_core::diff::{ApplyOptions, Differ};
use corten_core::digest::chain_ids;
use corten_core::keylock::{KeyGuard, KeyLocks};
use corten_core::labels::{GC_REF_SNAPSHOT, SNAPSHOT_PREFIX, SNAPSHOT_REF, UNCOMPRESSED};
use corten_core::mounts::is_read_only;
use corten_core::rollback::Rollback;
use corten_core::snapshots::{Commit, Snapshots};
use corten_core::{Context, Digest, Error, Kind, Labels, Mount, Result, Scope, spans};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;

use crate::fetch::{add_labels, annotate, stored_document};
use crate::oci::{Desc, Document, ImageConfig, MAX_CONFIG, is_config};
use crate::platform::Matcher;
use crate::progress::Tracker;

/// Brings a layer blob into the store.
#[async_trait]
pub trait LayerSource: Send + Sync {
    async fn fetch(&self, layer: &Desc) -> Result<()>;
}

/// Where and how an image is unpacked.
#[derive(Clone)]
pub struct UnpackTarget {
    /// Which images.
    pub platform: Matcher,
    pub snapshotter: String,
    /// Tried in this order until one knows the layer's media type.
    pub differs: Vec<Arc<dyn Differ>>,
    /// The snapshotter can name a parent at commit, so layers need not wait for each other.
    pub rebase: bool,
    /// Only configs of this media type; empty: any image config.
    pub config_type: String,
    /// Further media types that are layers of such an image.
    pub layer_types: Vec<String>,
    /// Layers are on disk before their snapshots are committed.
    pub sync_fs: bool,
}

impl std::fmt::Debug for UnpackTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "UnpackTarget({} {:?})", self.snapshotter, self.platform)
    }
}

/// Unpacks. Clones share the locks.
#[derive(Clone)]
pub struct Unpacker {
    pub content: Arc<dyn Content>,
    pub snapshots: Arc<dyn Snapshots>,
    pub locks: KeyLocks,
    /// Extractions at a time over all images; `None`: one after the other within an image.
    pub parallel: Option<Arc<Semaphore>>,
}

impl std::fmt::Debug for Unpacker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Unpacker(parallel: {})", self.parallel.is_some())
    }
}

/// What one image is made of.
#[derive(Debug, Clone)]
pub struct Layers {
    pub config: Desc,
    pub layers: Vec<Desc>,
}

/// One unpack of one image.
struct Job {
    unpacker: Unpacker,
    scope: Scope,
    target: UnpackTarget,
    diff_ids: Vec<Digest>,
    chain: Vec<Digest>,
    layers: Vec<Desc>,
    tracker: Option<Tracker>,
}

/// A prepared layer that is not committed yet; dropping it removes the active snapshot.
struct Active {
    key: String,
    mounts: Vec<Mount>,
    labels: Labels,
    staged: bool,
    undo: Rollback,
    _turn: KeyGuard,
}

impl Unpacker {
    /// Unpacks the image below `target` that fits `to.platform` best; all its blobs must be in the store. Gives the
    /// chain id of the top layer. With `reference` the snapshots get the labels of remote snapshotters.
    ///
    /// # Errors
    /// NotFound when no manifest fits or a blob is missing; else see [`Unpacker::unpack`].
    pub async fn unpack_image(
        &self,
        scope: &Scope,
        target: &Desc,
        to: &UnpackTarget,
        reference: Option<&str>,
    ) -> Result<Option<Digest>> {
        let select = self.select(scope, target.clone(), &to.platform);
        let (mut image, manifest) = select.await?;
        if let Some(reference) = reference {
            annotate(&mut image.layers, reference, &manifest);
        }
        self.unpack(scope, image, to, None, None).await
    }

    // The image, and the digest of its manifest.
    async fn select(
        &self,
        scope: &Scope,
        mut desc: Desc,
        platform: &Matcher,
    ) -> Result<(Layers, String)> {
        let name = desc.digest.clone();
        for _ in 0..crate::oci::MAX_DEPTH {
            match stored_document(&*self.content, scope, &desc).await? {
                Document::Manifest { config, layers } => {
                    let config = *config;
                    return Ok((Layers { config, layers }, desc.digest));
                }
                Document::Index(mut manifests) => {
                    manifests.retain(|m| m.platform.as_ref().is_none_or(|p| platform.matches(p)));
                    manifests
                        .sort_by(|a, b| platform.compare(a.platform.as_ref(), b.platform.as_ref()));
                    desc = manifests.into_iter().next().ok_or_else(|| {
                        Error::not_found(format!("no match for platform in manifest {name}"))
                    })?;
                }
            }
        }
        Err(Error::new(
            Kind::ResourceExhausted,
            format!("index {name} is nested too deeply"),
        ))
    }

    /// Whether the config's image is for `to`, without reading its layers.
    ///
    /// # Errors
    /// NotFound, InvalidArgument: the config.
    pub async fn fits(&self, scope: &Scope, config: &Desc, to: &UnpackTarget) -> Result<bool> {
        let parsed = self.config(scope, config).await?;
        let kind = &parsed.rootfs.kind;
        Ok(
            (to.config_type.is_empty() || to.config_type == config.media_type)
                && (kind.is_empty() || kind == "layers" || !is_image(&to.config_type))
                && to.platform.matches(&parsed.platform),
        )
    }

    async fn config(&self, scope: &Scope, config: &Desc) -> Result<ImageConfig> {
        let digest = config.checked_digest()?;
        let data = read_blob(&*self.content, &scope.namespace, &digest, MAX_CONFIG).await?;
        ImageConfig::parse(&data)
    }

    /// Unpacks `image`; `source` brings layers that are not there yet. Gives the chain id of the top layer, `None`
    /// for an image without layers.
    ///
    /// # Errors
    /// The source's, the snapshotter's, the differ's; FailedPrecondition when a layer is not what the config says.
    pub async fn unpack(
        &self,
        scope: &Scope,
        image: Layers,
        to: &UnpackTarget,
        source: Option<Arc<dyn LayerSource>>,
        tracker: Option<Tracker>,
    ) -> Result<Option<Digest>> {
        let diff_ids = self.config(scope, &image.config).await?.diff_ids()?;
        if image.layers.len() != diff_ids.len() {
            return Err(Error::precondition(format!(
                "number of layers and diffIDs don't match: {} != {}",
                image.layers.len(),
                diff_ids.len()
            )));
        }
        let chain = chain_ids(&diff_ids);
        let top = chain.last().cloned();
        let job = Arc::new(Job {
            unpacker: self.clone(),
            scope: scope.clone(),
            target: to.clone(),
            diff_ids,
            chain,
            layers: image.layers,
            tracker,
        });
        let arrivals = Arrivals::new(job.layers.clone(), source);
        let work = async {
            match &self.parallel {
                Some(limit) if to.rebase => job.side_by_side(limit.clone(), arrivals).await,
                _ => job.one_by_one(arrivals).await,
            }
        };
        spans::within("pkg.unpack.unpacker.unpack", work).await?;
        if let Some(top) = &top {
            let digest = image.config.checked_digest()?;
            let info = self.content.info(&scope.namespace, &digest).await?;
            let label = format!("{GC_REF_SNAPSHOT}.{}", to.snapshotter);
            let wanted = Labels::from([(label, top.to_string())]);
            if wanted.iter().any(|(k, v)| info.labels.get(k) != Some(v)) {
                add_labels(&*self.content, scope, info, wanted).await?;
            }
        }
        Ok(top)
    }
}

// === impl Job ===

impl Job {
    async fn one_by_one(self: Arc<Self>, mut arrivals: Arrivals) -> Result<()> {
        for i in 0..self.layers.len() {
            let parent = i
                .checked_sub(1)
                .map(|p| self.chain[p].to_string())
                .unwrap_or_default();
            let Some(active) = self.prepare(i, &parent).await? else {
                continue;
            };
            if !active.staged {
                arrivals.wait(i).await?;
                self.extract(i, &active.key, &active.mounts).await?;
            }
            self.commit(i, active, "").await?;
        }
        arrivals.finish().await
    }

    // All layers at once; they get their parents at commit, in order.
    async fn side_by_side(
        self: Arc<Self>,
        limit: Arc<Semaphore>,
        mut arrivals: Arrivals,
    ) -> Result<()> {
        let mut running = JoinSet::new();
        let mut ready: BTreeMap<usize, Active> = BTreeMap::new();
        for i in 0..self.layers.len() {
            let Some(mut active) = self.prepare(i, "").await? else {
                continue;
            };
            if active.staged {
                ready.insert(i, active);
                continue;
            }
            if i > 0 && self.target.snapshotter == "overlayfs" {
                active.mounts = bind_to_overlay(active.mounts);
            }
            let (job, limit, arrival) = (self.clone(), limit.clone(), arrivals.take(i));
            running.spawn(spans::carry(async move {
                arrived(arrival).await?;
                let _permit = limit.acquire().await;
                job.extract(i, &active.key, &active.mounts).await?;
                Ok::<_, Error>((i, active))
            }));
        }
        while let Some(done) = running.join_next().await {
            match done {
                Ok(Ok((i, active))) => {
                    ready.insert(i, active);
                }
                // The dropped set stops the others, the dropped snapshots are removed.
                Ok(Err(e)) => return Err(arrivals.error_or(e).await),
                Err(_) => return Err(Error::internal("layer extraction panicked")),
            }
        }
        for (i, active) in ready {
            let parent = i
                .checked_sub(1)
                .map(|p| self.chain[p].to_string())
                .unwrap_or_default();
            self.commit(i, active, &parent).await?;
        }
        arrivals.finish().await
    }

    // None: the chain is committed already.
    async fn prepare(&self, i: usize, parent: &str) -> Result<Option<Active>> {
        let (scope, snapshotter) = (&self.scope, &self.target.snapshotter);
        let chain = self.chain[i].to_string();
        let turn = format!("sn://{}/{snapshotter}/{chain}", scope.namespace);
        let turn = self.unpacker.locks.lock(turn).await;
        let mut labels = inherited(&self.layers[i].annotations);
        labels.insert(SNAPSHOT_REF.into(), chain.clone());
        labels.insert(
            format!("{SNAPSHOT_PREFIX}diff-id"),
            self.diff_ids[i].to_string(),
        );
        if i > 0 {
            let below = self.chain[i - 1].to_string();
            labels.insert(format!("{SNAPSHOT_PREFIX}parent-chain-id"), below);
        }
        for _ in 0..3 {
            let key = format!("extract-{} {chain}", unique());
            let snapshots = self.unpacker.snapshots.clone();
            match snapshots
                .prepare(scope, snapshotter, &key, parent, labels.clone())
                .await
            {
                Ok(mounts) => {
                    let staged = mounts.last().is_some_and(is_read_only);
                    let undo = self.removal(&key);
                    return Ok(Some(Active {
                        key,
                        mounts,
                        labels,
                        staged,
                        undo,
                        _turn: turn,
                    }));
                }
                Err(e) if e.kind() == Kind::AlreadyExists => {
                    match snapshots.stat(&scope.namespace, snapshotter, &chain).await {
                        Ok(_) => return Ok(None),
                        Err(e) if e.kind() == Kind::NotFound => {}
                        Err(e) => return Err(e.context(format!("failed to stat snapshot {chain}"))),
                    }
                }
                Err(e) => {
                    let text = format!("failed to prepare extraction snapshot {key:?}");
                    return Err(e.context(text));
                }
            }
        }
        Err(Error::already_exists(
            "unable to prepare extraction snapshot",
        ))
    }

    fn removal(&self, key: &str) -> Rollback {
        let mut undo = Rollback::new();
        let (snapshots, scope) = (self.unpacker.snapshots.clone(), self.scope.clone());
        let (snapshotter, key) = (self.target.snapshotter.clone(), key.to_owned());
        undo.push("remove extraction snapshot", async move {
            match snapshots.remove(&scope, &snapshotter, &key).await {
                Err(e) if e.kind() == Kind::NotFound => Ok(()),
                other => other,
            }
        });
        undo
    }

    async fn extract(&self, i: usize, key: &str, mounts: &[Mount]) -> Result<()> {
        let layer = &self.layers[i];
        if let Some(t) = &self.tracker {
            t.extracting(layer);
        }
        let apply = spans::within("pkg.unpack.unpacker.unpackLayer", self.apply(layer, mounts));
        let applied = apply.await.with_context(|| {
            format!(
                "failed to extract layer ({} {}) to {} as {:?}",
                layer.media_type, layer.digest, self.target.snapshotter, key
            )
        })?;
        if applied != self.diff_ids[i].as_str() {
            return Err(Error::precondition(format!(
                "wrong diff id {applied:?} calculated on extraction {:?}, desc {:?}",
                self.diff_ids[i].as_str(),
                layer.digest
            )));
        }
        if let Some(t) = &self.tracker {
            t.extracted(layer);
        }
        Ok(())
    }

    async fn apply(&self, layer: &Desc, mounts: &[Mount]) -> Result<String> {
        let mut refused = Error::not_implemented(format!("no differ for {}", layer.media_type));
        for differ in &self.target.differs {
            let options = ApplyOptions {
                sync_fs: self.target.sync_fs,
                ..ApplyOptions::default()
            };
            match differ
                .apply(&self.scope, &layer.proto(), mounts, options)
                .await
            {
                Ok(applied) => return Ok(applied.digest),
                Err(e) if e.kind() == Kind::NotImplemented => refused = e,
                Err(e) => return Err(e),
            }
        }
        Err(refused)
    }

    async fn commit(&self, i: usize, active: Active, parent: &str) -> Result<()> {
        let Active {
            key,
            labels,
            staged,
            undo,
            _turn,
            ..
        } = active;
        let commit = Commit {
            name: self.chain[i].to_string(),
            key: key.clone(),
            parent: parent.to_owned(),
            labels,
        };
        match self
            .unpacker
            .snapshots
            .commit(&self.scope, &self.target.snapshotter, commit)
            .await
        {
            Ok(()) => undo.commit(),
            Err(e) => {
                undo.run().await;
                if e.kind() != Kind::AlreadyExists {
                    return Err(e.context(format!("failed to commit snapshot {key}")));
                }
            }
        }
        if staged {
            return Ok(());
        }
        let content = &*self.unpacker.content;
        let digest = self.layers[i].checked_digest()?;
        let info = content.info(&self.scope.namespace, &digest).await?;
        let diff_id = self.diff_ids[i].to_string();
        if info.labels.get(UNCOMPRESSED) == Some(&diff_id) {
            return Ok(());
        }
        let wanted = Labels::from([(UNCOMPRESSED.to_owned(), diff_id)]);
        add_labels(content, &self.scope, info, wanted).await
    }
}

// === arrivals ===

type Arrival = oneshot::Receiver<()>;

/// The layers as they come in; asked for from the first needed one on.
struct Arrivals {
    layers: Vec<Desc>,
    source: Option<Arc<dyn LayerSource>>,
    waiting: BTreeMap<usize, Arrival>,
    fetches: JoinSet<Result<()>>,
    started: bool,
}

impl Arrivals {
    fn new(layers: Vec<Desc>, source: Option<Arc<dyn LayerSource>>) -> Self {
        Self {
            layers,
            source,
            waiting: BTreeMap::new(),
            fetches: JoinSet::new(),
            started: false,
        }
    }

    fn start(&mut self, first: usize) {
        let Some(source) = self.source.clone().filter(|_| !self.started) else {
            return;
        };
        self.started = true;
        for (i, layer) in self.layers.iter().cloned().enumerate().skip(first) {
            let (tx, rx) = oneshot::channel();
            self.waiting.insert(i, rx);
            let source = source.clone();
            self.fetches.spawn(spans::carry(async move {
                let fetch = source.fetch(&layer);
                spans::within("pkg.unpack.unpacker.fetchLayer", fetch).await?;
                // Nobody waits for a layer whose snapshot is there.
                let _ = tx.send(());
                Ok(())
            }));
        }
    }

    // None: there is no source, the layer must be in the store.
    fn take(&mut self, i: usize) -> Option<Arrival> {
        self.start(i);
        self.waiting.remove(&i)
    }

    // Waits for layer `i`, or for the failure of any.
    async fn wait(&mut self, i: usize) -> Result<()> {
        let Some(mut arrival) = self.take(i) else {
            return Ok(());
        };
        loop {
            tokio::select! {
                biased;
                done = &mut arrival => {
                    if done.is_ok() {
                        return Ok(());
                    }
                    return Err(self.error_or(Error::new(Kind::Canceled, "fetch ended")).await);
                }
                Some(done) = self.fetches.join_next() => joined(done)?,
            }
        }
    }

    // The failure of a fetch, which explains more than that a layer did not come.
    async fn error_or(&mut self, otherwise: Error) -> Error {
        if otherwise.kind() != Kind::Canceled {
            return otherwise;
        }
        while let Some(done) = self.fetches.join_next().await {
            if let Err(e) = joined(done) {
                return e;
            }
        }
        otherwise
    }

    async fn finish(mut self) -> Result<()> {
        while let Some(done) = self.fetches.join_next().await {
            joined(done)?;
        }
        Ok(())
    }
}

fn joined(done: Result<Result<()>, tokio::task::JoinError>) -> Result<()> {
    done.unwrap_or_else(|_| Err(Error::internal("layer fetch panicked")))
}

async fn arrived(arrival: Option<Arrival>) -> Result<()> {
    match arrival {
        None => Ok(()),
        Some(a) => a
            .await
            .map_err(|_| Error::new(Kind::Canceled, "fetch ended")),
    }
}

// === small facts ===

fn is_image(config_type: &str) -> bool {
    config_type.is_empty() || is_config(config_type)
}

/// Snapshot labels that an image may not set: what they say is the host's or the unpacker's to decide (the id maps
/// are CVE-2026-53493's sibling in 2.4.1).
const NOT_THE_IMAGES: [&str; 6] = [
    "uidmapping",
    "gidmapping",
    "max-size",
    "overlay.upperdir",
    "diff-id",
    "parent-chain-id",
];

// Only labels meant for snapshotters, and none that are not the image's to set.
fn inherited(annotations: &BTreeMap<String, String>) -> Labels {
    annotations
        .iter()
        .filter(|(k, _)| {
            k.strip_prefix(SNAPSHOT_PREFIX)
                .is_some_and(|name| !NOT_THE_IMAGES.contains(&name))
        })
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect()
}

// `<nanoseconds>-<4 characters>`, as containerd names its extractions.
fn unique() -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let random = uuid::Uuid::new_v4();
    let random = base64::engine::general_purpose::URL_SAFE.encode(&random.as_bytes()[..3]);
    format!("{}-{random}", now.subsec_nanos())
}

// Without a parent overlayfs gives a bind mount, into which whiteouts would be applied as deletions: the differ must
// see an upper dir instead.
fn bind_to_overlay(mounts: Vec<Mount>) -> Vec<Mount> {
    match mounts.as_slice() {
        [only] if only.r#type == "bind" => {
            let mut options: Vec<String> = only
                .options
                .iter()
                .filter(|o| *o != "rbind")
                .cloned()
                .collect();
            options.push(format!("upperdir={}", only.source));
            vec![Mount {
                r#type: "overlay".into(),
                source: "overlay".into(),
                target: only.target.clone(),
                options,
            }]
        }
        _ => mounts,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_cannot_set_what_is_the_hosts() {
        let annotations: BTreeMap<String, String> = [
            "containerd.io/snapshot.ref",
            "containerd.io/snapshot/uidmapping",
            "containerd.io/snapshot/gidmapping",
            "containerd.io/snapshot/max-size",
            "containerd.io/snapshot/overlay.upperdir",
            "containerd.io/snapshot/diff-id",
            "containerd.io/snapshot/parent-chain-id",
            "containerd.io/snapshot/remote/x",
            "containerd.io/gc.root",
        ]
        .map(|k| (k.to_owned(), "v".to_owned()))
        .into();
        let keys: Vec<_> = inherited(&annotations).into_keys().collect();
        assert_eq!(keys, ["containerd.io/snapshot/remote/x"]);
    }

    #[test]
    fn extraction_keys() {
        let key = unique();
        let (nanos, random) = key.split_once('-').unwrap();
        assert!(nanos.parse::<u32>().is_ok() && random.len() == 4, "{key}");
    }
}
