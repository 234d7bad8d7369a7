//! The differ: content in, mounts out, and the reverse.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use corten_core::compression::Compression;
use corten_core::content::{Content, Reader, Writer, WriterOptions};
use corten_core::diff::{ApplyOptions, CompareOptions, Differ};
use corten_core::mounts::{ActivateOptions, Manager};
use corten_core::tasks_set::TaskSet;
use corten_core::{
    Context, Descriptor, Digest, Error, Kind, Labels, Mount, Result, Scope, kinds, labels, mounts,
};
use corten_registry::{Context as Plugin, InitError, Registration};
use corten_sys::{blocking, mount, userns};
use tokio::sync::{mpsc, oneshot};

use crate::ahead::Ahead;
use crate::apply::{self, Target};
use crate::compare::{self, Trees};
use crate::media;
use crate::processors::{self, Processor, Processors};
use crate::stream::{Cancelled, ChunkSender, Deflate, Hashed, Layer, inflate};

/// Blobs of this size are inflated on a thread of their own; for less it is not worth one.
const LARGE: u64 = 1 << 20;

/// The differ over a content store.
#[derive(Clone)]
pub struct Walking {
    content: Arc<dyn Content>,
    /// For recipes that need more than mount(2).
    mounts: Option<Arc<dyn Manager>>,
    processors: Processors,
    background: TaskSet,
}

impl std::fmt::Debug for Walking {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Walking")
    }
}

impl Walking {
    /// A differ over `content`.
    pub fn new(content: Arc<dyn Content>) -> Self {
        Self {
            content,
            mounts: None,
            processors: Processors::default(),
            background: TaskSet::new(),
        }
    }

    /// The same with a mount manager.
    #[must_use]
    pub fn with_mounts(mut self, mounts: Option<Arc<dyn Manager>>) -> Self {
        self.mounts = mounts;
        self
    }

    /// The same with stream processors.
    #[must_use]
    pub fn with_processors(mut self, processors: Processors) -> Self {
        self.processors = processors;
        self
    }

    /// A differ over what a plugin's context has.
    pub(crate) fn of(cx: &Plugin) -> Result<Self, InitError> {
        let mut processors = BTreeMap::new();
        for (id, value) in &cx.properties().stream_processors {
            let processor: Processor = value
                .clone()
                .try_into()
                .map_err(|e| Error::invalid(format!("stream_processors.{id}: {e}")))?;
            processors.insert(id.clone(), processor);
        }
        Ok(Self::new(cx.single::<kinds::Metadata>()?.content())
            // containerd does without a mount manager too.
            .with_mounts(cx.single::<kinds::MountManager>().ok())
            .with_processors(Processors::new(processors)))
    }

    pub(crate) fn content(&self) -> &Arc<dyn Content> {
        &self.content
    }

    pub(crate) fn processors(&self) -> &Processors {
        &self.processors
    }

    /// The recipes as mount(2) takes them, with the names of what had to be activated for it.
    async fn activate(&self, scope: &Scope, recipes: [&[Mount]; 2]) -> Result<Activated> {
        let mut out = Activated {
            recipes: Vec::new(),
            names: Vec::new(),
        };
        for mounts in recipes {
            let simple = mounts.len() < 2 && !mounts.iter().any(|m| m.r#type.contains('/'));
            let manager = self.mounts.as_ref().filter(|_| !simple);
            let Some(manager) = manager else {
                out.recipes.push(mounts.to_vec());
                continue;
            };
            let name = format!("fs-diff-{}", unique_ref());
            let options = ActivateOptions {
                pinned: true,
                ..Default::default()
            };
            match manager.activate(scope, &name, mounts, options).await {
                Ok(info) => {
                    out.recipes.push(info.system);
                    out.names.push(name);
                }
                Err(e) if e.kind() == Kind::NotImplemented => out.recipes.push(mounts.to_vec()),
                Err(e) => {
                    self.deactivate(scope, out.names).await;
                    return Err(e.context("failed to activate mounts"));
                }
            }
        }
        Ok(out)
    }

    async fn deactivate(&self, scope: &Scope, names: Vec<String>) {
        for name in names {
            if let Some(manager) = &self.mounts
                && let Err(error) = manager.deactivate(&scope.namespace, &name).await
            {
                tracing::error!(name, %error, "deactivate the mounts of a diff");
            }
        }
    }

    /// Runs blocking work on activated mounts and takes them away afterwards, also when nobody waits any more.
    async fn on<T: Send + 'static>(
        &self,
        scope: &Scope,
        recipes: [&[Mount]; 2],
        work: impl FnOnce(Vec<Vec<Mount>>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let Activated { recipes, names } = self.activate(scope, recipes).await?;
        if names.is_empty() {
            return blocking(move || work(recipes)).await;
        }
        let (done, outcome) = oneshot::channel();
        let (this, scope) = (self.clone(), scope.clone());
        self.background
            .spawn("diff on activated mounts", async move {
                let result = blocking(move || work(recipes)).await;
                this.deactivate(&scope, names).await;
                // Nobody waits for an abandoned call.
                let _ = done.send(result);
            });
        outcome
            .await
            .map_err(|_| Error::internal("diff ended early"))?
    }
}

/// See [`Walking::activate`].
struct Activated {
    recipes: Vec<Vec<Mount>>,
    names: Vec<String>,
}

/// How the mounts of an apply are reached.
enum Place {
    /// Without mounting anything.
    Direct(Target),
    Mounted,
}

fn place(mounts: &[Mount]) -> Place {
    let [m] = mounts else { return Place::Mounted };
    let remaps = m
        .options
        .iter()
        .any(|o| o.starts_with("uidmap=") || o.starts_with("gidmap="));
    match m.r#type.as_str() {
        // Whiteout devices cannot be made in a user namespace.
        "overlay" if !userns::running_in_user_ns() => match compare::overlay_layers(m) {
            Some((Some(root), lower)) => Place::Direct(Target {
                root,
                overlay: Some(lower),
            }),
            _ => Place::Mounted,
        },
        "bind" if !remaps && m.target.is_empty() => Place::Direct(Target {
            root: PathBuf::from(&m.source),
            overlay: None,
        }),
        _ => Place::Mounted,
    }
}

#[async_trait]
impl Differ for Walking {
    async fn apply(
        &self,
        scope: &Scope,
        descriptor: &Descriptor,
        mounts: &[Mount],
        options: ApplyOptions,
    ) -> Result<Descriptor> {
        self.processors.chain(&descriptor.media_type)?;
        if mounts.last().is_some_and(mounts::is_read_only) {
            return Err(Error::precondition("apply a layer to a read-only mount"));
        }
        let digest = Digest::parse(&descriptor.digest)?;
        let blob = self
            .content
            .reader_at(&scope.namespace, &digest)
            .await
            .context("failed to get reader from content store")?;
        let cancelled = Cancelled::default();
        let _guard = cancelled.guard();
        let processors = self.processors.clone();
        let media_type = descriptor.media_type.clone();
        let work = move |recipes: Vec<Vec<Mount>>| {
            let mounts = recipes.into_iter().next().unwrap_or_default();
            let (steps, _) = processors.chain(&media_type)?;
            let large = blob.size() >= LARGE;
            let (stream, running) = processors::run(&steps, Reader::new(blob), &options.payloads)?;
            let stream = inflate(stream).context("open layer")?;
            let applied = if large {
                Ahead::new(stream, cancelled)
                    .context("open layer")
                    .and_then(|stream| apply_on(&mounts, stream, options.sync_fs))
            } else {
                apply_on(&mounts, Hashed::new(stream, cancelled), options.sync_fs)
            };
            running.finish_after(applied)
        };
        let (diff_id, size) = self.on(scope, [mounts, &[]], work).await?;
        Ok(Descriptor {
            media_type: media::LAYER.into(),
            digest: diff_id.to_string(),
            size: i64::try_from(size).unwrap_or(i64::MAX),
            ..Default::default()
        })
    }

    async fn compare(
        &self,
        scope: &Scope,
        lower: &[Mount],
        upper: &[Mount],
        options: CompareOptions,
    ) -> Result<Descriptor> {
        let (media_type, compression) = media::for_new_layer(&options.media_type)?;
        let named = !options.r#ref.is_empty();
        let r#ref = if named { options.r#ref } else { unique_ref() };
        let mut writer = self
            .content
            .writer(
                scope,
                WriterOptions {
                    r#ref: r#ref.clone(),
                    media_type: media_type.to_owned(),
                    ..Default::default()
                },
            )
            .await
            .context("failed to open writer")?;
        let job = Job {
            recipes: [lower.to_vec(), upper.to_vec()],
            compression,
            not_after: options.source_date_epoch.map(seconds).transpose()?,
        };
        let stored = self
            .store(scope, writer.as_mut(), job, (named, options.labels))
            .await;
        drop(writer);
        let (digest, diff_id) = match stored {
            Ok(done) => done,
            Err(e) => {
                if !named && let Err(error) = self.content.abort(scope, &r#ref).await {
                    tracing::warn!(r#ref, %error, "delete diff upload");
                }
                return Err(e);
            }
        };
        self.describe(scope, media_type, &digest, diff_id).await
    }
}

/// One comparison.
struct Job {
    /// Lower and upper tree.
    recipes: [Vec<Mount>; 2],
    compression: Compression,
    not_after: Option<i64>,
}

impl Walking {
    /// Writes and commits the layer; its digest, and its diff id when that is another.
    async fn store(
        &self,
        scope: &Scope,
        writer: &mut dyn Writer,
        job: Job,
        (named, mut labels): (bool, Labels),
    ) -> Result<(Digest, Option<Digest>)> {
        if named && writer.status().offset > 0 {
            writer.truncate(0).await?;
        }
        let compressed = job.compression != Compression::None;
        let cancelled = Cancelled::default();
        let _guard = cancelled.guard();
        let (sender, receiver) = ChunkSender::pair();
        let [lower, upper] = job.recipes.clone();
        let work = move |recipes: Vec<Vec<Mount>>| produce(&job, &recipes, sender, &cancelled);
        let produced = self.on(scope, [&lower, &upper], work);
        let (produced, consumed) = futures::join!(produced, consume(writer, receiver));
        // When storing failed, the producer's broken pipe is only a consequence.
        consumed.context("failed to write diff")?;
        let diff_id = produced.context("failed to write diff")?;
        if compressed {
            labels.insert(labels::UNCOMPRESSED.into(), diff_id.to_string());
        }
        let digest = writer.digest();
        match writer.commit(0, Some(digest.clone()), labels).await {
            Err(e) if e.kind() != Kind::AlreadyExists => return Err(e.context("failed to commit")),
            _ => {}
        }
        Ok((digest, compressed.then_some(diff_id)))
    }

    /// The stored layer's descriptor. A blob that was there before may lack its diff id.
    async fn describe(
        &self,
        scope: &Scope,
        media_type: &str,
        digest: &Digest,
        diff_id: Option<Digest>,
    ) -> Result<Descriptor> {
        let ns = &scope.namespace;
        let mut info = self
            .content
            .info(ns, digest)
            .await
            .context("failed to get info from content store")?;
        let size = info.size;
        if let Some(diff_id) = diff_id
            && !info.labels.contains_key(labels::UNCOMPRESSED)
        {
            info.labels
                .insert(labels::UNCOMPRESSED.into(), diff_id.to_string());
            let path = format!("labels.{}", labels::UNCOMPRESSED);
            self.content
                .update(ns, info, &[path])
                .await
                .context("error setting uncompressed label")?;
        }
        Ok(Descriptor {
            media_type: media_type.to_owned(),
            digest: digest.to_string(),
            size: i64::try_from(size).unwrap_or(i64::MAX),
            ..Default::default()
        })
    }
}

fn apply_on(mounts: &[Mount], stream: impl Layer, sync: bool) -> Result<(Digest, u64)> {
    match place(mounts) {
        Place::Direct(target) => apply_to(&target, stream, sync),
        Place::Mounted => mount::with_temp_mount(mounts, None, |root| {
            let target = Target {
                root: root.to_owned(),
                overlay: None,
            };
            apply_to(&target, stream, sync)
        }),
    }
}

fn apply_to(target: &Target, stream: impl Layer, sync: bool) -> Result<(Digest, u64)> {
    let rest = apply::apply(target, stream).map_err(|e| classify(e, "apply layer"))?;
    // Everything after the archive's end belongs to the digest too.
    let done = rest.finish().map_err(|e| classify(e, "read layer"))?;
    if sync {
        apply::sync(&target.root).context("sync file system")?;
    }
    Ok(done)
}

/// A broken archive is the caller's fault, not an unknown one.
pub(crate) fn classify(e: io::Error, what: &'static str) -> Error {
    let kind = match e.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => Some(Kind::InvalidArgument),
        // A name that an archive gave, not one that a client asked for.
        io::ErrorKind::NotFound | io::ErrorKind::AlreadyExists => Some(Kind::Unknown),
        _ => None,
    };
    let e = Error::from(e).context(what);
    match kind {
        Some(kind) => e.reclassify(kind),
        None => e,
    }
}

fn produce(
    job: &Job,
    active: &[Vec<Mount>],
    sender: ChunkSender,
    cancelled: &Cancelled,
) -> Result<Digest> {
    let [lower, upper] = active else {
        return Err(Error::internal("a comparison is of two trees"));
    };
    let [asked_lower, asked_upper] = &job.recipes;
    let changes = compare::changes_of(lower, upper)
        .or_else(|| compare::changes_over_images(asked_lower, asked_upper, upper));
    let read_only = mounts::read_only(upper);
    mount::with_temp_mount(lower, None, |lower| {
        mount::with_temp_mount(&read_only, None, |upper| {
            let trees = Trees {
                lower,
                upper,
                changes: changes.as_deref(),
                not_after: job.not_after,
            };
            write_layer(&trees, sender, job.compression, cancelled).context("compare trees")
        })
    })
}

fn write_layer(
    trees: &Trees<'_>,
    sender: ChunkSender,
    compression: Compression,
    cancelled: &Cancelled,
) -> io::Result<Digest> {
    let output = io::BufWriter::with_capacity(64 * 1024, Deflate::new(sender, compression)?);
    let output = compare::write_diff(trees, output, cancelled)?;
    output
        .into_inner()
        .map_err(io::IntoInnerError::into_error)?
        .finish()
}

async fn consume(writer: &mut dyn Writer, mut receiver: mpsc::Receiver<Bytes>) -> Result<()> {
    while let Some(chunk) = receiver.recv().await {
        writer.write(chunk).await?;
    }
    Ok(())
}

fn seconds(time: SystemTime) -> Result<i64> {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_err(|_| Error::invalid("source date epoch before 1970"))?;
    i64::try_from(since.as_secs()).map_err(|_| Error::invalid("source date epoch"))
}

fn unique_ref() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    format!(
        "{}-{}",
        now.as_nanos(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

/// The plugin.
pub fn registration() -> Registration {
    Registration::new::<kinds::Differ>("walking")
        .requires::<kinds::Metadata>()
        .requires::<kinds::MountManager>()
        .init_plain(|cx| {
            Box::pin(async move {
                cx.host_platform();
                Ok(Arc::new(Walking::of(cx)?) as Arc<dyn Differ>)
            })
        })
}
