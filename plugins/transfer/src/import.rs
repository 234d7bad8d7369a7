//! Import: an archive into the store, the wanted images of it unpacked and named.

use bytes::Bytes;
use corten_core::content::read_blob;
use corten_core::json::nullable;
use corten_core::transfer::ProgressSink;
use corten_core::{Error, Kind, Result, Scope};
use serde::Deserialize;
use tokio::sync::mpsc;

use crate::archive;
use crate::bytestream::{BlockingReader, BlockingWriter, ByteReader, ByteWriter};
use crate::fetch::{add_labels, stored_document};
use crate::local::Local;
use crate::oci::{Desc, MAX_DEPTH, MAX_REFERENCES, gc_labels, is_config, is_layer, is_manifest};
use crate::progress::{say, say_of};
use crate::store::{REF_SOURCE, Store};
use crate::unpack::{Layers, UnpackTarget};

/// Largest index of an archive.
const MAX_INDEX: u64 = 20 << 20;

/// Imports what `source` sends and stores the images found under the names that `store` gives them.
///
/// # Errors
/// The archive's, the store's; NotFound when nothing of the archive is wanted.
pub(crate) async fn import(
    local: &Local,
    scope: &Scope,
    source: ByteReader,
    plain_tar: bool,
    compress: bool,
    store: &Store,
    sink: Option<&ProgressSink>,
) -> Result<()> {
    say(sink, "Importing").await;
    let index = receive(local, scope, source, plain_tar, compress).await?;
    let targets = local.targets(&store.unpacks);
    let mut found = vec![index.clone()];
    let mut level = vec![index.clone()];
    let mut references = 1;
    let mut empty = true;
    for depth in 0..=MAX_DEPTH {
        let mut next = Vec::new();
        for desc in level {
            let children = if desc.digest == index.digest {
                let manifests = top(local, scope, &desc).await?;
                found.extend(manifests.iter().cloned());
                manifests
            } else if desc.is_document() {
                stored_document(&*local.content, scope, &desc)
                    .await?
                    .into_children()
            } else {
                continue;
            };
            keep(local, scope, &desc, &children).await?;
            let children = store.wanted(&desc, children)?;
            empty &= children.is_empty();
            if is_manifest(&desc.media_type) {
                unpack(local, scope, &children, &targets).await?;
            }
            next.extend(children);
        }
        references += next.len();
        if references > MAX_REFERENCES || depth == MAX_DEPTH {
            let text = format!("too many descriptors (limit {MAX_REFERENCES}): resource exhausted");
            return Err(Error::new(Kind::ResourceExhausted, text));
        }
        if next.is_empty() {
            break;
        }
        level = next;
    }
    if empty {
        return Err(Error::new(Kind::NotFound, "image might be filtered out"));
    }
    for desc in found {
        match store.save(scope, &*local.images, &desc).await {
            Ok(images) => {
                for image in images {
                    say_of(sink, "saved", &image.name, Some(&desc)).await;
                }
            }
            Err(e) if e.kind() == Kind::NotFound => {
                tracing::debug!(digest = desc.digest, "no name for imported image");
            }
            Err(e) => return Err(e),
        }
    }
    say(sink, "Completed import").await;
    Ok(())
}

async fn receive(
    local: &Local,
    scope: &Scope,
    mut source: ByteReader,
    plain_tar: bool,
    compress: bool,
) -> Result<Desc> {
    let (tx, reader) = BlockingReader::new();
    let (content, owned) = (local.content.clone(), scope.clone());
    let mut work = tokio::task::spawn_blocking(move || {
        archive::read(&content, &owned, reader, !plain_tar, compress)
    });
    let pump = pump(&mut source, tx);
    let done = tokio::select! {
        done = &mut work => done,
        () = pump => work.await,
    };
    source.close().await;
    done.unwrap_or_else(|_| Err(Error::internal("import panicked")))
}

// Ends when the peer has sent all or the decoder has enough.
async fn pump(source: &mut ByteReader, tx: mpsc::Sender<Result<Bytes>>) {
    loop {
        let item = match source.next().await {
            Ok(Some(chunk)) => Ok(chunk),
            Ok(None) => return,
            Err(e) => Err(e),
        };
        let last = item.is_err();
        if tx.send(item).await.is_err() || last {
            return;
        }
    }
}

// The manifests of the archive's index, marked so that their annotations name them.
async fn top(local: &Local, scope: &Scope, index: &Desc) -> Result<Vec<Desc>> {
    #[derive(Deserialize)]
    struct Top {
        #[serde(default, deserialize_with = "nullable")]
        manifests: Vec<Desc>,
    }
    let digest = index.checked_digest()?;
    let data = read_blob(&*local.content, &scope.namespace, &digest, MAX_INDEX).await?;
    let top: Top = serde_json::from_slice(&data)
        .map_err(|e| Error::new(Kind::InvalidArgument, format!("index.json: {e}")))?;
    let mut manifests = top.manifests;
    for m in &mut manifests {
        m.annotations.insert(REF_SOURCE.into(), "annotation".into());
    }
    Ok(manifests)
}

async fn keep(local: &Local, scope: &Scope, desc: &Desc, children: &[Desc]) -> Result<()> {
    let digest = desc.checked_digest()?;
    let info = local.content.info(&scope.namespace, &digest).await?;
    let mut wanted = gc_labels(children);
    wanted.retain(|k, v| info.labels.get(k) != Some(v));
    add_labels(&*local.content, scope, info, wanted).await
}

async fn unpack(
    local: &Local,
    scope: &Scope,
    children: &[Desc],
    targets: &[UnpackTarget],
) -> Result<()> {
    let Some(config) = children.iter().find(|c| is_config(&c.media_type)) else {
        return Ok(());
    };
    let layers: Vec<Desc> = children
        .iter()
        .filter(|c| is_layer(&c.media_type))
        .cloned()
        .collect();
    if layers.is_empty() {
        return Ok(());
    }
    for target in targets {
        if local.unpacker.fits(scope, config, target).await? {
            let image = Layers {
                config: config.clone(),
                layers,
            };
            local
                .unpacker
                .unpack(scope, image, target, None, None)
                .await?;
            break;
        }
    }
    Ok(())
}

/// Writes images as one archive to `sink`.
///
/// # Errors
/// The store's; Canceled when the reader is gone.
pub(crate) async fn export(
    local: &Local,
    scope: &Scope,
    export: archive::Export,
    sink: ByteWriter,
) -> Result<()> {
    let (writer, mut rx) = BlockingWriter::new();
    let (content, owned) = (local.content.clone(), scope.clone());
    let work =
        tokio::task::spawn_blocking(move || archive::write(&content, &owned, &export, writer));
    let mut sent = Ok(());
    while let Some(chunk) = rx.recv().await {
        sent = sink.write(chunk).await;
        if sent.is_err() {
            break;
        }
    }
    // The writer's next chunk finds nobody and ends it.
    drop(rx);
    let written = work
        .await
        .unwrap_or_else(|_| Err(Error::internal("export panicked")));
    if sent.is_ok() && written.is_ok() {
        sent = sink.finish_archive().await;
    }
    sink.close().await;
    // That the reader left is what the writer stumbled over.
    sent.and(written)
}

/// Sends back what comes in.
///
/// # Errors
/// The streams'.
pub(crate) async fn echo(mut source: ByteReader, sink: ByteWriter) -> Result<()> {
    let mut done = Ok(());
    loop {
        match source.next().await {
            Ok(Some(chunk)) => done = sink.write(chunk).await,
            Ok(None) => break,
            Err(e) => done = Err(e),
        }
        if done.is_err() {
            break;
        }
    }
    sink.close().await;
    source.close().await;
    done
}
