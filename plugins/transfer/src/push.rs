//! Push: blobs first, in parallel, then manifests, then the indexes that list them; the tag comes last.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use corten_core::content::Content;
use corten_core::labels::DISTRIBUTION_SOURCE;
use corten_core::{Error, Kind, Result, Scope};
use futures::FutureExt;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::fetch::stored_document;
use crate::oci::{Desc, MAX_DEPTH, MAX_REFERENCES, is_index, is_manifest};
use crate::platform::Matcher;
use crate::progress::Tracker;
use crate::registry::{Pushed, Registry};

const CHUNK: usize = 256 << 10;

/// One push.
#[derive(Clone)]
pub(crate) struct Push {
    pub content: Arc<dyn Content>,
    pub scope: Scope,
    pub registry: Arc<Registry>,
    pub platform: Matcher,
    /// Uploads at a time, over all transfers.
    pub limit: Arc<Semaphore>,
    pub tracker: Option<Tracker>,
}

impl std::fmt::Debug for Push {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Push({})", self.registry.text())
    }
}

#[derive(Default)]
struct Plan {
    seen: BTreeSet<String>,
    references: usize,
    blobs: Vec<Desc>,
    manifests: Vec<Desc>,
    // Each index after the indexes that list it.
    indexes: Vec<Desc>,
}

impl Push {
    /// Pushes everything below `root` that is for the wanted platforms.
    ///
    /// # Errors
    /// NotFound when a blob is not in the store; the registry's.
    pub(crate) async fn run(self, root: Desc) -> Result<()> {
        let plan = self.plan(&root).await?;
        self.all(plan.blobs, &root).await?;
        self.all(plan.manifests, &root).await?;
        for index in plan.indexes.into_iter().rev() {
            self.all(vec![index], &root).await?;
        }
        Ok(())
    }

    // Level by level, so that an index comes after its parents.
    async fn plan(&self, root: &Desc) -> Result<Plan> {
        let mut plan = Plan::default();
        let mut level = vec![root.clone()];
        for _ in 0..MAX_DEPTH {
            let mut next = Vec::new();
            for desc in level {
                plan.references += 1;
                if plan.references > MAX_REFERENCES {
                    break;
                }
                desc.checked_digest()?;
                if let Some(t) = &self.tracker {
                    t.add(&desc);
                }
                if desc.is_document() {
                    let document = stored_document(&*self.content, &self.scope, &desc).await?;
                    let mut children = document.into_children();
                    children
                        .retain(|c| c.platform.as_ref().is_none_or(|p| self.platform.matches(p)));
                    if let Some(t) = &self.tracker {
                        t.add_children(&desc, &children);
                    }
                    next.extend(children);
                }
                if !plan.seen.insert(desc.digest.clone()) {
                    continue;
                }
                match () {
                    () if is_manifest(&desc.media_type) => plan.manifests.push(desc),
                    () if is_index(&desc.media_type) => plan.indexes.push(desc),
                    () => plan.blobs.push(desc),
                }
            }
            if plan.references > MAX_REFERENCES {
                break;
            }
            if next.is_empty() {
                return Ok(plan);
            }
            level = next;
        }
        let text = format!("too many descriptors (limit {MAX_REFERENCES}): resource exhausted");
        Err(Error::new(Kind::ResourceExhausted, text))
    }

    async fn all(&self, descs: Vec<Desc>, root: &Desc) -> Result<()> {
        let mut running = JoinSet::new();
        for desc in descs {
            let (push, tagged) = (self.clone(), desc.digest == root.digest);
            running.spawn(async move {
                let _permit = push.limit.acquire().await;
                push.one(desc, tagged).await
            });
        }
        while let Some(done) = running.join_next().await {
            done.unwrap_or_else(|_| Err(Error::internal("push panicked")))?;
        }
        Ok(())
    }

    async fn one(&self, desc: Desc, is_root: bool) -> Result<()> {
        let digest = desc.checked_digest()?;
        let info = self.content.info(&self.scope.namespace, &digest).await?;
        let mut sources: BTreeMap<String, String> = info.labels;
        sources.retain(|k, _| k.starts_with(DISTRIBUTION_SOURCE));
        // A reference with another digest than ours keeps its tag for that one.
        let tagged = is_root
            && self
                .registry
                .reference()
                .digest()
                .is_none_or(|d| d == digest);
        let (content, scope, tracker) = (
            self.content.clone(),
            self.scope.clone(),
            self.tracker.clone(),
        );
        let blob = desc.clone();
        let body = Arc::new(move || {
            body(
                content.clone(),
                scope.clone(),
                blob.clone(),
                tracker.clone(),
            )
            .boxed()
        });
        let pushed = self.registry.push(&desc, tagged, &sources, body).await?;
        if let Some(t) = &self.tracker {
            match pushed {
                Pushed::Exists => t.exists(&desc),
                Pushed::Uploaded => t.complete(&desc),
            }
        }
        Ok(())
    }
}

// The blob as a request body, read by a thread for blocking work a few chunks ahead.
async fn body(
    content: Arc<dyn Content>,
    scope: Scope,
    desc: Desc,
    tracker: Option<Tracker>,
) -> Result<reqwest::Body> {
    let digest = desc.checked_digest()?;
    let reader = content.reader_at(&scope.namespace, &digest).await?;
    // Full: the disk waits for the network.
    let (tx, rx) = mpsc::channel::<std::io::Result<Bytes>>(4);
    tokio::task::spawn_blocking(move || {
        let mut offset = 0;
        loop {
            let mut chunk = vec![0; CHUNK];
            let item = match reader.read_at(&mut chunk, offset) {
                Ok(0) => return,
                Ok(n) => {
                    chunk.truncate(n);
                    offset += n as u64;
                    Ok(chunk.into())
                }
                Err(e) => Err(e),
            };
            let failed = item.is_err();
            if tx.blocking_send(item).is_err() || failed {
                return;
            }
        }
    });
    let chunks = futures::stream::unfold(
        (rx, 0u64, desc, tracker),
        |(mut rx, sent, desc, tracker)| async move {
            let item = rx.recv().await?;
            let sent = sent + item.as_ref().map_or(0, |c: &Bytes| c.len() as u64);
            if let Some(t) = &tracker {
                t.moved(&desc, sent);
            }
            Some((item, (rx, sent, desc, tracker)))
        },
    );
    Ok(reqwest::Body::wrap_stream(chunks))
}
