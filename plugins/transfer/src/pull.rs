//! Pull: the graph of documents below a name, level by level; blobs in parallel; layers unpacked as they come.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use corten_core::{Error, Kind, Result, spans};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::fetch::Fetcher;
use crate::oci::{Desc, MAX_DEPTH, MAX_REFERENCES, is_config, is_layer, is_manifest};
use crate::progress::Tracker;
use crate::store::Store;
use crate::unpack::{LayerSource, Layers, UnpackTarget, Unpacker};

/// Descriptors of one level that are worked on at a time.
const WIDTH: usize = 32;

/// One pull.
pub(crate) struct Pull {
    pub fetcher: Fetcher,
    pub store: Store,
    pub unpacker: Unpacker,
    /// Empty: only fetch.
    pub targets: Vec<UnpackTarget>,
}

impl std::fmt::Debug for Pull {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pull({:?})", self.fetcher)
    }
}

/// The layers of manifests whose config is on its way, by the config's digest; and who works in the background.
#[derive(Default)]
struct Queue {
    waiting: Mutex<HashMap<String, Vec<Vec<Desc>>>>,
    background: Mutex<JoinSet<Result<()>>>,
}

impl Pull {
    /// Fetches everything wanted below `root` and unpacks it. When this returns, nothing of it runs any more.
    ///
    /// # Errors
    /// The first failure; ResourceExhausted for a graph that is too wide or too deep.
    pub(crate) async fn run(self: Arc<Self>, root: Desc) -> Result<()> {
        let queue = Arc::new(Queue::default());
        let walked = self.walk(&queue, root).await;
        let mut background = std::mem::take(&mut *queue.background.lock());
        if let Err(e) = walked {
            background.shutdown().await;
            return Err(e);
        }
        let mut failure = Ok(());
        while let Some(done) = background.join_next().await {
            let done = done.unwrap_or_else(|_| Err(Error::internal("unpack panicked")));
            if failure.is_ok() && done.is_err() {
                failure = done;
                background.abort_all();
            }
        }
        failure
    }

    async fn walk(self: &Arc<Self>, queue: &Arc<Queue>, root: Desc) -> Result<()> {
        let width = Arc::new(Semaphore::new(WIDTH));
        let mut level = vec![root];
        let mut references = 1;
        for _ in 0..MAX_DEPTH {
            let mut running = JoinSet::new();
            for desc in level.drain(..) {
                let (pull, queue, width) = (self.clone(), queue.clone(), width.clone());
                running.spawn(spans::carry(async move {
                    let _turn = width.acquire().await;
                    pull.handle(&queue, desc).await
                }));
            }
            while let Some(done) = running.join_next().await {
                let children = done.unwrap_or_else(|_| Err(Error::internal("fetch panicked")))?;
                references += children.len();
                if references > MAX_REFERENCES {
                    let text = format!(
                        "too many descriptors (limit {MAX_REFERENCES}): resource exhausted"
                    );
                    return Err(Error::new(Kind::ResourceExhausted, text));
                }
                level.extend(children);
            }
            if level.is_empty() {
                return Ok(());
            }
        }
        let text = format!("image index nested deeper than {MAX_DEPTH}: resource exhausted");
        Err(Error::new(Kind::ResourceExhausted, text))
    }

    // Fetches one descriptor and gives the ones to visit next.
    async fn handle(self: &Arc<Self>, queue: &Arc<Queue>, desc: Desc) -> Result<Vec<Desc>> {
        if let Some(t) = &self.fetcher.tracker {
            t.add(&desc);
        }
        if !desc.is_document() {
            self.fetcher.blob(&desc).await?;
            if self.is_config(&desc) {
                self.config_arrived(queue, desc).await?;
            }
            return Ok(Vec::new());
        }
        let document = self.fetcher.document(&desc).await?;
        let children = self.store.wanted(&desc, document.into_children())?;
        if let Some(t) = &self.fetcher.tracker {
            t.add_children(&desc, &children);
        }
        if self.targets.is_empty() || !is_manifest(&desc.media_type) {
            return Ok(children);
        }
        let (layers, others): (Vec<_>, Vec<_>) =
            children.into_iter().partition(|c| self.is_layer(c));
        let config = others.iter().find(|c| self.is_config(c));
        match config {
            // Something else than an image: its layers are just blobs.
            None => Ok(others.into_iter().chain(layers).collect()),
            Some(_) if layers.is_empty() => Ok(others),
            Some(config) => {
                queue
                    .waiting
                    .lock()
                    .entry(config.digest.clone())
                    .or_default()
                    .push(layers);
                Ok(others)
            }
        }
    }

    fn is_config(&self, desc: &Desc) -> bool {
        let wanted = |t: &UnpackTarget| t.config_type == desc.media_type;
        is_config(&desc.media_type) || self.targets.iter().any(wanted)
    }

    fn is_layer(&self, desc: &Desc) -> bool {
        let wanted = |t: &UnpackTarget| t.layer_types.contains(&desc.media_type);
        is_layer(&desc.media_type) || self.targets.iter().any(wanted)
    }

    // Starts to unpack the manifests that share this config. The first is unpacked; of the other variants (another
    // compression of the same layers) the blobs are fetched.
    async fn config_arrived(self: &Arc<Self>, queue: &Arc<Queue>, config: Desc) -> Result<()> {
        let Some(mut variants) = queue.waiting.lock().remove(&config.digest) else {
            return Ok(());
        };
        let several = variants.len() > 1;
        let mut target = None;
        for t in &self.targets {
            if self.unpacker.fits(&self.fetcher.scope, &config, t).await? {
                target = Some(t.clone());
                break;
            }
        }
        let mut background = queue.background.lock();
        if let Some(target) = target {
            let first = match several {
                // All blobs are wanted then, also those of the variant that is unpacked.
                true => variants[0].clone(),
                false => variants.remove(0),
            };
            let pull = self.clone();
            background.spawn(spans::carry(async move {
                let image = Layers {
                    config,
                    layers: first,
                };
                let tracker: Option<Tracker> = pull.fetcher.tracker.clone();
                let source: Arc<dyn LayerSource> = Arc::new(pull.fetcher.clone());
                let scope = &pull.fetcher.scope;
                pull.unpacker
                    .unpack(scope, image, &target, Some(source), tracker)
                    .await
                    .map(|_| ())
            }));
        }
        for layer in variants.into_iter().flatten() {
            let fetcher = self.fetcher.clone();
            let fetch = async move { LayerSource::fetch(&fetcher, &layer).await };
            background.spawn(spans::carry(fetch));
        }
        Ok(())
    }
}

#[async_trait]
impl LayerSource for Fetcher {
    async fn fetch(&self, layer: &Desc) -> Result<()> {
        if let Some(t) = &self.tracker {
            t.add(layer);
        }
        self.blob(layer).await
    }
}

#[cfg(test)]
mod tests;
