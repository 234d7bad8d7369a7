//! Backends and an exchange in memory, and a database over them in a folder that is removed at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use corten_core::content::{self, Backend, IngestStatus, ReadAt, Writer, WriterOptions};
use corten_core::events::Events;
use corten_core::filter::Filter;
use corten_core::metadata::Metadata;
use corten_core::protos::any;
use corten_core::protos::containerd::services::containers::v1::{Container, container};
use corten_core::protos::containerd::services::images::v1::Image;
use corten_core::protos::containerd::types::Envelope;
use corten_core::snapshots::{self, SnapshotKind, Snapshotter, Usage};
use corten_core::{Any, Descriptor, Digest, Error, Kind, Labels, Mount, Namespace, Result, Scope};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::{Parts, open};

/// A database with its backends.
pub(super) struct World {
    pub(super) root: tempfile::TempDir,
    pub(super) blobs: Arc<MemContent>,
    pub(super) layers: Arc<MemLayers>,
    pub(super) events: Arc<Recorder>,
    pub(super) md: Option<Arc<dyn Metadata>>,
    pub(super) isolated: bool,
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(false)
    }

    pub(super) fn with(isolated: bool) -> Self {
        let mut world = Self {
            root: tempfile::tempdir().unwrap(),
            blobs: Arc::default(),
            layers: Arc::default(),
            events: Arc::default(),
            md: None,
            isolated,
        };
        world.reopen();
        world
    }

    /// Closes and opens the database; the backends keep what they have.
    pub(super) fn reopen(&mut self) {
        self.md.take();
        self.md = Some(open_at(self.root.path(), self));
    }

    pub(super) fn md(&self) -> &Arc<dyn Metadata> {
        self.md.as_ref().unwrap()
    }

    pub(super) async fn collect(&self) -> usize {
        self.md().collector().collect().await.unwrap().removed
    }

    /// Brings a blob in.
    pub(super) async fn blob(&self, scope: &Scope, data: &[u8], labels: &[(&str, &str)]) -> Digest {
        let digest = Digest::sha256(data);
        let (target, store) = (descriptor(data), self.md().content());
        let name = format!("ref-{digest}");
        loop {
            let data = Bytes::copy_from_slice(data);
            match content::write_blob(&*store, scope, &name, &target, data, map(labels)).await {
                Ok(()) => return digest,
                // Another one writes it: clients wait and ask again.
                Err(e) if e.kind() == Kind::Unavailable => tokio::task::yield_now().await,
                Err(e) => panic!("{e}"),
            }
        }
    }

    pub(super) async fn image(&self, scope: &Scope, name: &str, data: &[u8], l: &[(&str, &str)]) {
        self.md()
            .images()
            .create(scope, image(name, data, l))
            .await
            .unwrap();
    }

    pub(super) async fn has_blob(&self, ns: &Namespace, digest: &Digest) -> bool {
        self.md().content().info(ns, digest).await.is_ok()
    }
}

fn open_at(root: &std::path::Path, world: &World) -> Arc<dyn Metadata> {
    open(Parts {
        root: root.to_owned(),
        content: world.blobs.clone(),
        snapshotters: [(
            "mem".to_owned(),
            world.layers.clone() as Arc<dyn Snapshotter>,
        )]
        .into(),
        events: world.events.clone(),
        isolated: world.isolated,
        no_sync: false,
        patience: None,
    })
    .unwrap()
}

pub(super) fn ns(name: &str) -> Namespace {
    Namespace::new(name).unwrap()
}

pub(super) fn scope(name: &str) -> Scope {
    Scope::new(ns(name))
}

pub(super) fn map(pairs: &[(&str, &str)]) -> Labels {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

pub(super) fn descriptor(data: &[u8]) -> Descriptor {
    Descriptor {
        media_type: "application/x".into(),
        digest: Digest::sha256(data).to_string(),
        size: i64::try_from(data.len()).unwrap(),
        ..Default::default()
    }
}

pub(super) fn image(name: &str, data: &[u8], labels: &[(&str, &str)]) -> Image {
    Image {
        name: name.into(),
        labels: map(labels),
        target: Some(descriptor(data)),
        ..Default::default()
    }
}

pub(super) fn container(id: &str, key: &str) -> Container {
    Container {
        id: id.into(),
        image: "busybox".into(),
        runtime: Some(container::Runtime {
            name: "io.containerd.corten.v2".into(),
            options: None,
        }),
        spec: Some(Any {
            type_url: any::OCI_SPEC.into(),
            value: b"{}".to_vec(),
        }),
        snapshotter: "mem".into(),
        snapshot_key: key.into(),
        ..Default::default()
    }
}

/// Asserts class and text.
pub(super) fn fails<T: std::fmt::Debug>(done: Result<T>, kind: Kind, text: &str) {
    let e = done.unwrap_err();
    assert_eq!((e.kind(), e.to_string().as_str()), (kind, text));
}

// === events ===

/// Remembers what was published as `<ns><topic>`.
#[derive(Default)]
pub(super) struct Recorder(Mutex<Vec<(String, Any)>>);

impl Recorder {
    pub(super) fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock())
            .into_iter()
            .map(|e| e.0)
            .collect()
    }

    pub(super) fn take_all(&self) -> Vec<(String, Any)> {
        std::mem::take(&mut *self.0.lock())
    }
}

#[async_trait]
impl Events for Recorder {
    async fn publish(&self, ns: &Namespace, topic: &str, event: Any) -> Result<()> {
        self.0.lock().push((format!("{ns}{topic}"), event));
        Ok(())
    }
    async fn forward(&self, _: Envelope) -> Result<()> {
        Ok(())
    }
    fn subscribe(&self, _: Filter) -> mpsc::Receiver<Envelope> {
        mpsc::channel(1).1
    }
}

// === content ===

#[derive(Default)]
pub(super) struct MemContent(Arc<Mutex<Blobs>>);

#[derive(Default)]
struct Blobs {
    blobs: BTreeMap<Digest, Arc<Vec<u8>>>,
    ingests: BTreeMap<String, Vec<u8>>,
    open: BTreeSet<String>,
}

impl MemContent {
    pub(super) fn blobs(&self) -> Vec<Digest> {
        self.0.lock().blobs.keys().cloned().collect()
    }
    pub(super) fn ingests(&self) -> Vec<String> {
        self.0.lock().ingests.keys().cloned().collect()
    }
    pub(super) fn put(&self, data: &[u8]) -> Digest {
        let digest = Digest::sha256(data);
        self.0
            .lock()
            .blobs
            .insert(digest.clone(), Arc::new(data.to_vec()));
        digest
    }
}

struct MemBlob(Arc<Vec<u8>>);

impl ReadAt for MemBlob {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
        let from = usize::try_from(offset).unwrap().min(self.0.len());
        let n = buf.len().min(self.0.len() - from);
        buf[..n].copy_from_slice(&self.0[from..from + n]);
        Ok(n)
    }
}

fn status(r#ref: &str, data: &[u8]) -> IngestStatus {
    IngestStatus {
        r#ref: r#ref.into(),
        offset: data.len() as u64,
        total: 0,
        expected: None,
        started_at: SystemTime::UNIX_EPOCH,
        updated_at: SystemTime::UNIX_EPOCH,
    }
}

fn blob_info(digest: &Digest, data: &[u8]) -> content::Info {
    content::Info {
        digest: digest.clone(),
        size: data.len() as u64,
        created_at: SystemTime::UNIX_EPOCH,
        updated_at: SystemTime::UNIX_EPOCH,
        labels: Labels::new(),
    }
}

#[async_trait]
impl Backend for MemContent {
    async fn info(&self, digest: &Digest) -> Result<content::Info> {
        tokio::task::yield_now().await;
        let all = self.0.lock();
        let data = all
            .blobs
            .get(digest)
            .ok_or_else(|| Error::not_found(digest))?;
        Ok(blob_info(digest, data))
    }
    async fn list(&self) -> Result<Vec<content::Info>> {
        Ok(self
            .0
            .lock()
            .blobs
            .iter()
            .map(|(k, v)| blob_info(k, v))
            .collect())
    }
    async fn delete(&self, digest: &Digest) -> Result<()> {
        tokio::task::yield_now().await;
        self.0
            .lock()
            .blobs
            .remove(digest)
            .map(|_| ())
            .ok_or_else(|| Error::not_found(digest))
    }
    async fn reader_at(&self, digest: &Digest) -> Result<Arc<dyn ReadAt>> {
        let all = self.0.lock();
        let data = all
            .blobs
            .get(digest)
            .ok_or_else(|| Error::not_found(digest))?;
        Ok(Arc::new(MemBlob(data.clone())))
    }
    async fn writer(&self, options: WriterOptions) -> Result<Box<dyn Writer>> {
        let mut all = self.0.lock();
        if !all.open.insert(options.r#ref.clone()) {
            let text = format!("ref {} locked: unavailable", options.r#ref);
            return Err(Error::new(Kind::Unavailable, text));
        }
        all.ingests.entry(options.r#ref.clone()).or_default();
        Ok(Box::new(MemWriter {
            store: self.0.clone(),
            r#ref: options.r#ref,
        }))
    }
    async fn status(&self, r#ref: &str) -> Result<IngestStatus> {
        let all = self.0.lock();
        all.ingests
            .get(r#ref)
            .map(|d| status(r#ref, d))
            .ok_or_else(|| Error::not_found(r#ref))
    }
    async fn list_statuses(&self) -> Result<Vec<IngestStatus>> {
        Ok(self
            .0
            .lock()
            .ingests
            .iter()
            .map(|(r, d)| status(r, d))
            .collect())
    }
    async fn abort(&self, r#ref: &str) -> Result<()> {
        let gone = self.0.lock().ingests.remove(r#ref);
        gone.map(|_| ()).ok_or_else(|| Error::not_found(r#ref))
    }
}

struct MemWriter {
    store: Arc<Mutex<Blobs>>,
    r#ref: String,
}

impl Drop for MemWriter {
    fn drop(&mut self) {
        self.store.lock().open.remove(&self.r#ref);
    }
}

impl MemWriter {
    fn data(&self) -> Vec<u8> {
        self.store
            .lock()
            .ingests
            .get(&self.r#ref)
            .cloned()
            .unwrap_or_default()
    }
}

#[async_trait]
impl Writer for MemWriter {
    async fn write(&mut self, data: Bytes) -> Result<()> {
        tokio::task::yield_now().await;
        self.store
            .lock()
            .ingests
            .entry(self.r#ref.clone())
            .or_default()
            .extend(&data);
        Ok(())
    }
    async fn truncate(&mut self, size: u64) -> Result<()> {
        let mut all = self.store.lock();
        let data = all.ingests.entry(self.r#ref.clone()).or_default();
        data.truncate(usize::try_from(size).unwrap());
        Ok(())
    }
    fn status(&self) -> IngestStatus {
        status(&self.r#ref, &self.data())
    }
    fn digest(&self) -> Digest {
        Digest::sha256(&self.data())
    }
    async fn commit(&mut self, _: u64, expected: Option<Digest>, _: Labels) -> Result<()> {
        let digest = self.digest();
        if expected.is_some_and(|e| e != digest) {
            return Err(Error::precondition("unexpected commit digest"));
        }
        tokio::task::yield_now().await;
        let mut all = self.store.lock();
        let data = all.ingests.remove(&self.r#ref).unwrap_or_default();
        match all.blobs.insert(digest.clone(), Arc::new(data)) {
            Some(_) => Err(Error::already_exists(digest)),
            None => Ok(()),
        }
    }
}

// === snapshots ===

/// Snapshots without layers; `remote` are targets that it can answer AlreadyExists for.
#[derive(Default)]
pub(super) struct MemLayers {
    all: Mutex<BTreeMap<String, snapshots::Info>>,
    pub(super) remote: Mutex<BTreeSet<String>>,
    /// While it is held for writing, nobody learns of the snapshots that are made.
    pub(super) gate: tokio::sync::RwLock<()>,
}

impl MemLayers {
    pub(super) fn keys(&self) -> Vec<String> {
        self.all.lock().keys().cloned().collect()
    }
    pub(super) fn labels(&self) -> Vec<Labels> {
        self.all.lock().values().map(|i| i.labels.clone()).collect()
    }
    async fn make(
        &self,
        key: &str,
        parent: &str,
        labels: Labels,
        kind: SnapshotKind,
    ) -> Result<Vec<Mount>> {
        tokio::task::yield_now().await;
        let made = self.make_now(key, parent, labels, kind);
        drop(self.gate.read().await);
        made
    }
    fn make_now(
        &self,
        key: &str,
        parent: &str,
        labels: Labels,
        kind: SnapshotKind,
    ) -> Result<Vec<Mount>> {
        let mut all = self.all.lock();
        if !parent.is_empty() {
            match all.get(parent).map(|p| p.kind) {
                Some(SnapshotKind::Committed) => {}
                Some(_) => {
                    return Err(Error::invalid(format!(
                        "parent {parent:?} is not committed"
                    )));
                }
                None => return Err(Error::not_found(format!("parent {parent:?}"))),
            }
        }
        let target = labels.get(corten_core::labels::SNAPSHOT_REF).cloned();
        let remote = target.filter(|t| self.remote.lock().contains(t));
        let now = SystemTime::now();
        let mut info = snapshots::Info {
            kind,
            name: key.into(),
            parent: parent.into(),
            labels,
            created_at: now,
            updated_at: now,
        };
        if let Some(target) = remote {
            info.kind = SnapshotKind::Committed;
            info.name = format!("remote-{target}");
            all.insert(info.name.clone(), info);
            return Err(Error::already_exists(target));
        }
        if all.contains_key(key) {
            return Err(Error::already_exists(key));
        }
        all.insert(key.into(), info);
        let source = format!("/mem/{key}");
        Ok(vec![Mount {
            r#type: "bind".into(),
            source,
            ..Default::default()
        }])
    }
}

#[async_trait]
impl Snapshotter for MemLayers {
    async fn stat(&self, key: &str) -> Result<snapshots::Info> {
        self.all
            .lock()
            .get(key)
            .cloned()
            .ok_or_else(|| Error::not_found(key))
    }
    async fn update(&self, info: snapshots::Info, _: &[String]) -> Result<snapshots::Info> {
        let mut all = self.all.lock();
        let found = all
            .get_mut(&info.name)
            .ok_or_else(|| Error::not_found(&info.name))?;
        found.labels = info.labels;
        Ok(found.clone())
    }
    async fn usage(&self, key: &str) -> Result<Usage> {
        self.stat(key).await?;
        Ok(Usage { inodes: 1, size: 2 })
    }
    async fn mounts(&self, key: &str) -> Result<Vec<Mount>> {
        let info = self.stat(key).await?;
        Ok(vec![Mount {
            source: format!("/mem/{}", info.name),
            ..Default::default()
        }])
    }
    async fn prepare(&self, key: &str, parent: &str, labels: Labels) -> Result<Vec<Mount>> {
        self.make(key, parent, labels, SnapshotKind::Active).await
    }
    async fn view(&self, key: &str, parent: &str, labels: Labels) -> Result<Vec<Mount>> {
        self.make(key, parent, labels, SnapshotKind::View).await
    }
    async fn commit(&self, name: &str, key: &str, parent: &str, labels: Labels) -> Result<()> {
        tokio::task::yield_now().await;
        let mut all = self.all.lock();
        if all.contains_key(name) {
            return Err(Error::already_exists(name));
        }
        let mut info = all.remove(key).ok_or_else(|| Error::not_found(key))?;
        info.kind = SnapshotKind::Committed;
        info.name = name.into();
        info.labels = labels;
        if !parent.is_empty() {
            info.parent = parent.into();
        }
        all.insert(name.into(), info);
        Ok(())
    }
    async fn remove(&self, key: &str) -> Result<()> {
        tokio::task::yield_now().await;
        let mut all = self.all.lock();
        if all.values().any(|i| i.parent == key) {
            return Err(Error::precondition(format!("{key} has children")));
        }
        all.remove(key)
            .map(|_| ())
            .ok_or_else(|| Error::not_found(key))
    }
    async fn list(&self) -> Result<Vec<snapshots::Info>> {
        Ok(self.all.lock().values().cloned().collect())
    }
    async fn cleanup(&self) -> Result<()> {
        Err(Error::not_implemented("cleanup"))
    }
}
