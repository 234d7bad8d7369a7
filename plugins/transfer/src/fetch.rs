//! Blobs from a registry into the content store: resumed, bounded, checked, once.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use bytes::{Bytes, BytesMut};
use corten_core::content::{Content, Writer, WriterOptions, open_writer, read_blob};
use corten_core::keylock::{KeyGuard, KeyLocks};
use corten_core::labels::{self, DISTRIBUTION_SOURCE};
use corten_core::transfer::Options;
use corten_core::{Context, Digest, Error, Kind, Labels, Result, Scope};
use tokio::sync::mpsc;

use crate::download::Downloads;
use crate::oci::{Desc, Document, MAX_DOCUMENT, gc_labels, is_layer};
use crate::progress::Tracker;
use crate::registry::Registry;

/// Fetches from one repository into one scope.
#[derive(Clone)]
pub struct Fetcher {
    pub content: Arc<dyn Content>,
    pub scope: Scope,
    pub registry: Arc<Registry>,
    pub downloads: Downloads,
    pub locks: KeyLocks,
    pub tracker: Option<Tracker>,
    pub options: Options,
}

impl std::fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Fetcher({})", self.registry.text())
    }
}

/// Opens the ingest for `desc`; waits while another client writes it. AlreadyExists when the blob is there.
async fn ingest(content: &dyn Content, scope: &Scope, desc: &Desc) -> Result<Box<dyn Writer>> {
    let options = WriterOptions::of(desc.ref_key(), &desc.proto())?;
    open_writer(content, scope, options).await
}

impl Fetcher {
    /// Fetches a config, a layer or any other blob without children.
    ///
    /// # Errors
    /// The registry's and the store's; FailedPrecondition when the bytes are not those of `desc`.
    pub async fn blob(&self, desc: &Desc) -> Result<()> {
        let _turn = self.turn(desc).await?;
        let mut retried = false;
        loop {
            let mut writer = match ingest(&*self.content, &self.scope, desc).await {
                Ok(writer) => writer,
                Err(e) if e.kind() == Kind::AlreadyExists => return self.exists(desc).await,
                Err(e) => return Err(e),
            };
            let resumed = writer.status().offset > 0;
            let done = self.fill(desc, &mut *writer).await;
            drop(writer);
            match done {
                Ok(()) => {
                    if let Some(t) = &self.tracker {
                        t.complete(desc);
                    }
                    return Ok(());
                }
                // What is there is not what was asked for; a later pull must not find it half done.
                Err(e) if e.kind() == Kind::FailedPrecondition => {
                    self.forget(desc).await;
                    if !resumed || retried {
                        return Err(e);
                    }
                    tracing::warn!(error = %e, digest = desc.digest, "resumed ingest is unusable, starting again");
                    retried = true;
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Fetches a manifest or index and gives what it lists. The labels that keep its children alive are set with it.
    ///
    /// # Errors
    /// As [`Fetcher::blob`]; InvalidArgument when it is not what its media type says.
    pub async fn document(&self, desc: &Desc) -> Result<Document> {
        let mut document = self.bare_document(desc).await?;
        if self.options.annotate
            && let Document::Manifest { layers, .. } = &mut document
        {
            annotate(layers, self.registry.text(), &desc.digest);
        }
        Ok(document)
    }

    async fn bare_document(&self, desc: &Desc) -> Result<Document> {
        let _turn = self.turn(desc).await?;
        let mut writer = match ingest(&*self.content, &self.scope, desc).await {
            Ok(writer) => writer,
            Err(e) if e.kind() == Kind::AlreadyExists => {
                let document = stored_document(&*self.content, &self.scope, desc).await?;
                self.label(desc, &self.gc_of(&document)).await?;
                self.exists(desc).await?;
                return Ok(document);
            }
            Err(e) => return Err(e),
        };
        let (digest, size) = (desc.checked_digest()?, desc.checked_size()?);
        let complete = writer.status().offset == size;
        if !complete {
            if writer.status().offset > 0 {
                writer.truncate(0).await?;
            }
            let data = self.small(desc, size).await?;
            let actual = hash_like(&digest, &data);
            if actual.as_ref().is_some_and(|a| *a != digest) {
                drop(writer);
                self.forget(desc).await;
                return Err(Error::precondition(format!(
                    "failed commit on ref {:?}: unexpected commit digest {}, expected {digest}",
                    desc.ref_key(),
                    actual.map(|a| a.to_string()).unwrap_or_default()
                )));
            }
            let document = Document::parse(desc, &data)?;
            let mut all = self.gc_of(&document);
            all.extend(self.source_label(&Labels::new()));
            writer.write(data).await?;
            committed(writer.commit(size, Some(digest), all).await, desc)?;
            if let Some(t) = &self.tracker {
                t.complete(desc);
            }
            return Ok(document);
        }
        committed(
            writer
                .commit(size, Some(digest), self.source_label(&Labels::new()))
                .await,
            desc,
        )?;
        let document = stored_document(&*self.content, &self.scope, desc).await?;
        self.label(desc, &self.gc_of(&document)).await?;
        if let Some(t) = &self.tracker {
            t.complete(desc);
        }
        Ok(document)
    }

    async fn turn(&self, desc: &Desc) -> Result<KeyGuard> {
        desc.checked_digest()?;
        desc.checked_size()?;
        if desc.media_type == crate::oci::DOCKER_SCHEMA1 {
            return Err(Error::new(
                Kind::Unknown,
                format!("{} not supported", desc.media_type),
            ));
        }
        let key = format!("blob://{}/{}", self.scope.namespace, desc.digest);
        Ok(self.locks.lock(key).await)
    }

    // Layers that nothing refers to go with the lease of the pull.
    fn gc_of(&self, document: &Document) -> Labels {
        let mut document = document.clone();
        if self.options.discard_layers
            && let Document::Manifest { layers, .. } = &mut document
        {
            layers.retain(|l| !is_layer(&l.media_type));
        }
        gc_of(&document)
    }

    async fn exists(&self, desc: &Desc) -> Result<()> {
        if let Some(t) = &self.tracker {
            t.exists(desc);
        }
        self.label(desc, &Labels::new()).await
    }

    async fn forget(&self, desc: &Desc) {
        if let Err(error) = self.content.abort(&self.scope, &desc.ref_key()).await
            && error.kind() != Kind::NotFound
        {
            tracing::warn!(%error, r#ref = desc.ref_key(), "abort ingest");
        }
    }

    // Adds `wanted` and our repository to the labels of an existing blob, if they are not there.
    async fn label(&self, desc: &Desc, wanted: &Labels) -> Result<()> {
        let digest = desc.checked_digest()?;
        let info = self.content.info(&self.scope.namespace, &digest).await?;
        let mut wanted = wanted.clone();
        wanted.extend(self.source_label(&info.labels));
        wanted.retain(|k, v| info.labels.get(k) != Some(v));
        add_labels(&*self.content, &self.scope, info, wanted).await
    }

    // `containerd.io/distribution.source.<host>` with our repository added to what is there.
    fn source_label(&self, current: &Labels) -> BTreeMap<String, String> {
        let reference = self.registry.reference();
        let host = crate::registry::hosts::split_port(reference.host()).0;
        let key = format!("{DISTRIBUTION_SOURCE}.{host}");
        let mut repositories: Vec<&str> = current
            .get(&key)
            .map_or(Vec::new(), |v| v.split(',').collect());
        repositories.push(reference.repository());
        repositories.sort_unstable();
        repositories.dedup();
        let value = repositories.join(",");
        match labels::validate(&key, &value) {
            Ok(()) => BTreeMap::from([(key, value)]),
            Err(error) => {
                tracing::warn!(%error, "skip to append distribution label");
                BTreeMap::new()
            }
        }
    }

    async fn fill(&self, desc: &Desc, writer: &mut dyn Writer) -> Result<()> {
        let (digest, size) = (desc.checked_digest()?, desc.checked_size()?);
        if writer.status().offset > size {
            writer.truncate(0).await?;
        }
        if writer.status().offset < size {
            match embedded(desc, size) {
                Some(data) => {
                    writer.truncate(0).await?;
                    writer.write(data).await?;
                }
                None => self
                    .copy(desc, size, writer)
                    .await
                    .context("failed to copy")?,
            }
        }
        let own = self.source_label(&Labels::new());
        committed(writer.commit(size, Some(digest), own).await, desc)
    }

    // Downloads and writes at the same time.
    async fn copy(&self, desc: &Desc, size: u64, writer: &mut dyn Writer) -> Result<()> {
        let start = writer.status().offset;
        // Full: the download waits for the disk.
        let (tx, mut rx) = mpsc::channel::<Bytes>(4);
        let write = async {
            let mut offset = start;
            while let Some(data) = rx.recv().await {
                offset += data.len() as u64;
                if !data.is_empty() {
                    writer.write(data).await?;
                }
                if let Some(t) = &self.tracker {
                    t.moved(desc, offset);
                }
            }
            Ok(())
        };
        let read = self.downloads.run(&self.registry, desc, start..size, tx);
        tokio::try_join!(read, write).map(|_| ())
    }

    async fn small(&self, desc: &Desc, size: u64) -> Result<Bytes> {
        if size > MAX_DOCUMENT {
            return Err(Error::new(
                Kind::ResourceExhausted,
                format!(
                    "{} of {size} bytes is larger than {MAX_DOCUMENT}",
                    desc.ref_key()
                ),
            ));
        }
        if let Some(data) = embedded(desc, size) {
            return Ok(data);
        }
        let (tx, mut rx) = mpsc::channel::<Bytes>(4);
        let gather = async {
            let mut out = BytesMut::new();
            while let Some(data) = rx.recv().await {
                out.extend_from_slice(&data);
                if let Some(t) = &self.tracker {
                    t.moved(desc, out.len() as u64);
                }
            }
            Ok(out.freeze())
        };
        let read = self.downloads.run(&self.registry, desc, 0..size, tx);
        let ((), data) = tokio::try_join!(read, gather).context("failed to copy")?;
        Ok(data)
    }
}

/// Reads a document that is in the store.
///
/// # Errors
/// NotFound, ResourceExhausted above 4 MiB, InvalidArgument when it is not what its media type says.
pub(crate) async fn stored_document(
    content: &dyn Content,
    scope: &Scope,
    desc: &Desc,
) -> Result<Document> {
    let digest = desc.checked_digest()?;
    let data = read_blob(content, &scope.namespace, &digest, MAX_DOCUMENT).await?;
    Document::parse(desc, &data)
}

/// Sets `wanted` on a blob, and nothing else; an empty set does nothing.
///
/// # Errors
/// The store's.
pub(crate) async fn add_labels(
    content: &dyn Content,
    scope: &Scope,
    mut info: corten_core::content::Info,
    wanted: Labels,
) -> Result<()> {
    if wanted.is_empty() {
        return Ok(());
    }
    let paths: Vec<String> = wanted.keys().map(|k| format!("labels.{k}")).collect();
    info.labels = wanted;
    content
        .update(&scope.namespace, info, &paths)
        .await
        .map(|_| ())
}

/// The labels for the children of `document`.
pub(crate) fn gc_of(document: &Document) -> Labels {
    gc_labels(&document.clone().into_children())
}

/// Prefix of the labels by which remote snapshotters find an image (containerd: pkg/snapshotters/annotations.go).
const REMOTE: &str = "containerd.io/snapshot/cri.";

// The annotations become labels of the snapshots: the layer itself, and as many of those after it as a label takes.
pub(crate) fn annotate(layers: &mut [Desc], reference: &str, manifest: &str) {
    let digests: Vec<String> = layers.iter().map(|l| l.digest.clone()).collect();
    let key = format!("{REMOTE}image-layers");
    for (i, layer) in layers.iter_mut().enumerate() {
        let mut rest = digests[i].clone();
        for next in digests.iter().skip(i + 1) {
            let longer = format!("{rest},{next}");
            if labels::validate(&key, &longer).is_err() {
                break;
            }
            rest = longer;
        }
        for (name, value) in [
            ("image-ref", reference),
            ("manifest-digest", manifest),
            ("layer-digest", &digests[i]),
            ("image-layers", &rest),
        ] {
            layer
                .annotations
                .insert(format!("{REMOTE}{name}"), value.to_owned());
        }
    }
}

fn committed(done: Result<()>, desc: &Desc) -> Result<()> {
    match done {
        Err(e) if e.kind() == Kind::AlreadyExists => Ok(()),
        other => other.with_context(|| format!("failed commit on ref {:?}", desc.ref_key())),
    }
}

// None for algorithms that only the store checks.
fn hash_like(wanted: &Digest, data: &[u8]) -> Option<Digest> {
    (wanted.algorithm() == "sha256").then(|| Digest::sha256(data))
}

fn embedded(desc: &Desc, size: u64) -> Option<Bytes> {
    let data = base64::engine::general_purpose::STANDARD
        .decode(desc.data.as_ref()?)
        .ok()?;
    (data.len() as u64 == size).then(|| data.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remote_snapshotters_learn_of_the_layers() {
        let layer = |n: usize| Desc {
            digest: format!("sha256:{n:064}"),
            ..Desc::default()
        };
        let mut layers: Vec<Desc> = (0..100).map(layer).collect();
        annotate(&mut layers, "h.io/a:1", "sha256:m");
        let of = |i: usize, name: &str| layers[i].annotations[&format!("{REMOTE}{name}")].clone();
        assert_eq!(of(0, "image-ref"), "h.io/a:1");
        assert_eq!(of(0, "manifest-digest"), "sha256:m");
        assert_eq!(of(3, "layer-digest"), layers[3].digest);
        assert!(of(3, "image-layers").starts_with(&layers[3].digest));
        assert_eq!(of(99, "image-layers"), layers[99].digest);
        let longest = of(0, "image-layers");
        assert!(longest.len() > 3900 && longest.len() + REMOTE.len() + 12 <= labels::MAX_SIZE);
    }
}
