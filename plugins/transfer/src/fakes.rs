//! In-memory stand-ins for tests: a content store that behaves as the contract says, and nothing more.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use corten_core::content::{Content, Info, IngestStatus, ReadAt, Writer, WriterOptions};
use corten_core::diff::{ApplyOptions, CompareOptions, Differ};
use corten_core::filter::Filter;
use corten_core::snapshots::{self, Snapshots};
use corten_core::{Descriptor, Digest, Error, Kind, Labels, Mount, Namespace, Result, Scope};
use parking_lot::Mutex;

#[derive(Default)]
struct State {
    blobs: HashMap<Digest, (Bytes, Labels)>,
    ingests: BTreeMap<String, Vec<u8>>,
    open: Vec<String>,
    leased: Vec<Digest>,
}

/// A content store of one namespace.
#[derive(Clone, Default)]
pub(crate) struct Memory(Arc<Mutex<State>>);

impl Memory {
    pub(crate) fn labels(&self, digest: &Digest) -> Labels {
        self.0.lock().blobs[digest].1.clone()
    }
    pub(crate) fn bytes(&self, digest: &Digest) -> Option<Bytes> {
        self.0.lock().blobs.get(digest).map(|b| b.0.clone())
    }
    pub(crate) fn ingest(&self, name: &str) -> Option<Vec<u8>> {
        self.0.lock().ingests.get(name).cloned()
    }
    pub(crate) fn start_ingest(&self, name: &str, data: &[u8]) {
        self.0.lock().ingests.insert(name.into(), data.to_vec());
    }
    pub(crate) fn put(&self, data: impl Into<Bytes>) -> Digest {
        let data = data.into();
        let digest = Digest::sha256(&data);
        self.0
            .lock()
            .blobs
            .insert(digest.clone(), (data, Labels::new()));
        digest
    }
    /// Whether somebody tried to write this blob when it was there, which adds it to the lease of the call.
    pub(crate) fn leased(&self, digest: &Digest) -> bool {
        self.0.lock().leased.contains(digest)
    }
    pub(crate) fn content(&self) -> Arc<dyn Content> {
        Arc::new(self.clone())
    }
}

pub(crate) fn scope() -> Scope {
    Scope::new(Namespace::new("test").unwrap())
}

struct Blob(Bytes);
impl ReadAt for Blob {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
        let rest = &self.0[(offset as usize).min(self.0.len())..];
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }
}

struct Ingest {
    store: Memory,
    options: WriterOptions,
}

impl Ingest {
    fn with<T>(&self, f: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        let mut state = self.store.0.lock();
        f(state.ingests.entry(self.options.r#ref.clone()).or_default())
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        self.store
            .0
            .lock()
            .open
            .retain(|r| *r != self.options.r#ref);
    }
}

#[async_trait]
impl Writer for Ingest {
    async fn write(&mut self, data: Bytes) -> Result<()> {
        self.with(|d| d.extend_from_slice(&data));
        Ok(())
    }
    async fn truncate(&mut self, size: u64) -> Result<()> {
        self.with(|d| d.truncate(size as usize));
        Ok(())
    }
    fn status(&self) -> IngestStatus {
        IngestStatus {
            r#ref: self.options.r#ref.clone(),
            offset: self.with(|d| d.len() as u64),
            total: self.options.total,
            expected: self.options.expected.clone(),
            started_at: SystemTime::UNIX_EPOCH,
            updated_at: SystemTime::UNIX_EPOCH,
        }
    }
    fn digest(&self) -> Digest {
        self.with(|d| Digest::sha256(d))
    }
    async fn commit(&mut self, size: u64, expected: Option<Digest>, labels: Labels) -> Result<()> {
        let actual = self.digest();
        if size != 0 && size != self.status().offset {
            return Err(Error::precondition("unexpected commit size"));
        }
        if expected.as_ref().is_some_and(|e| *e != actual) {
            let text = format!(
                "unexpected commit digest {actual}, expected {}",
                expected.unwrap()
            );
            return Err(Error::precondition(text));
        }
        let mut state = self.store.0.lock();
        let data = state
            .ingests
            .remove(&self.options.r#ref)
            .unwrap_or_default();
        if state.blobs.contains_key(&actual) {
            return Err(Error::already_exists(format!("content {actual}")));
        }
        state.blobs.insert(actual, (data.into(), labels));
        Ok(())
    }
}

#[async_trait]
impl Content for Memory {
    async fn info(&self, _: &Namespace, digest: &Digest) -> Result<Info> {
        let state = self.0.lock();
        let (data, labels) = state
            .blobs
            .get(digest)
            .ok_or_else(|| Error::not_found(format!("content digest {digest}")))?;
        Ok(Info {
            digest: digest.clone(),
            size: data.len() as u64,
            created_at: SystemTime::UNIX_EPOCH,
            updated_at: SystemTime::UNIX_EPOCH,
            labels: labels.clone(),
        })
    }
    async fn update(&self, _: &Namespace, info: Info, paths: &[String]) -> Result<Info> {
        let mut state = self.0.lock();
        let blob = state
            .blobs
            .get_mut(&info.digest)
            .ok_or_else(|| Error::not_found(format!("content digest {}", info.digest)))?;
        blob.1 = corten_core::labels::masked(&blob.1, &info.labels, paths).unwrap();
        Ok(info)
    }
    async fn list(&self, ns: &Namespace, filter: &Filter) -> Result<Vec<Info>> {
        let digests: Vec<Digest> = self.0.lock().blobs.keys().cloned().collect();
        let mut out = Vec::new();
        for d in digests {
            let info = self.info(ns, &d).await?;
            if filter.matches_with(|path| match path {
                [first, rest @ ..] if first == "labels" => {
                    corten_core::filter::map_field(&info.labels, rest)
                }
                _ => None,
            }) {
                out.push(info);
            }
        }
        Ok(out)
    }
    async fn delete(&self, _: &Scope, digest: &Digest) -> Result<()> {
        self.0.lock().blobs.remove(digest);
        Ok(())
    }
    async fn reader_at(&self, _: &Namespace, digest: &Digest) -> Result<Arc<dyn ReadAt>> {
        let data = self.bytes(digest);
        let data = data.ok_or_else(|| Error::not_found(format!("content digest {digest}")))?;
        Ok(Arc::new(Blob(data)))
    }
    async fn writer(&self, _: &Scope, options: WriterOptions) -> Result<Box<dyn Writer>> {
        let mut state = self.0.lock();
        if let Some(there) = options
            .expected
            .clone()
            .filter(|e| state.blobs.contains_key(e))
        {
            state.leased.push(there);
            return Err(Error::already_exists("content"));
        }
        if state.open.contains(&options.r#ref) {
            return Err(Error::new(Kind::Unavailable, "ref locked"));
        }
        state.open.push(options.r#ref.clone());
        state.ingests.entry(options.r#ref.clone()).or_default();
        drop(state);
        Ok(Box::new(Ingest {
            store: self.clone(),
            options,
        }))
    }
    async fn status(&self, _: &Namespace, _: &str) -> Result<IngestStatus> {
        Err(Error::not_implemented("status"))
    }
    async fn list_statuses(&self, _: &Namespace, _: &Filter) -> Result<Vec<IngestStatus>> {
        Ok(Vec::new())
    }
    async fn abort(&self, _: &Scope, r#ref: &str) -> Result<()> {
        match self.0.lock().ingests.remove(r#ref) {
            Some(_) => Ok(()),
            None => Err(Error::not_found(format!("reference {ref}", ref = r#ref))),
        }
    }
}

/// A snapshotter of one namespace: names, parents, and who is being extracted.
#[derive(Clone, Default)]
pub(crate) struct Layers(Arc<Mutex<BTreeMap<String, (bool, String)>>>);

impl Layers {
    /// Committed ones with their parents.
    pub(crate) fn committed(&self) -> BTreeMap<String, String> {
        let all = self.0.lock();
        all.iter()
            .filter(|(_, s)| s.0)
            .map(|(k, s)| (k.clone(), s.1.clone()))
            .collect()
    }
    pub(crate) fn active(&self) -> usize {
        self.0.lock().values().filter(|s| !s.0).count()
    }
}

#[async_trait]
impl Snapshots for Layers {
    async fn stat(&self, _: &Namespace, _: &str, key: &str) -> Result<snapshots::Info> {
        let found = self.0.lock().get(key).cloned();
        let (committed, parent) = found.ok_or_else(|| Error::not_found(key))?;
        assert!(committed);
        Ok(snapshots::Info {
            kind: snapshots::SnapshotKind::Committed,
            name: key.into(),
            parent,
            labels: Labels::new(),
            created_at: SystemTime::UNIX_EPOCH,
            updated_at: SystemTime::UNIX_EPOCH,
        })
    }
    async fn prepare(
        &self,
        _: &Scope,
        _: &str,
        key: &str,
        parent: &str,
        labels: Labels,
    ) -> Result<Vec<Mount>> {
        let mut all = self.0.lock();
        let target = &labels[corten_core::labels::SNAPSHOT_REF];
        assert!(
            key.starts_with("extract-") && key.ends_with(target.as_str()),
            "{key}"
        );
        assert!(
            parent.is_empty() || all.get(parent).is_some_and(|p| p.0),
            "{parent}"
        );
        if all.contains_key(target) {
            return Err(Error::already_exists(target));
        }
        all.insert(key.into(), (false, parent.into()));
        Ok(vec![Mount {
            r#type: "bind".into(),
            source: "/nowhere".into(),
            ..Mount::default()
        }])
    }
    async fn commit(&self, _: &Scope, _: &str, commit: snapshots::Commit) -> Result<()> {
        let mut all = self.0.lock();
        let (_, parent) = all
            .remove(&commit.key)
            .ok_or_else(|| Error::not_found(&commit.key))?;
        let parent = if commit.parent.is_empty() {
            parent
        } else {
            commit.parent
        };
        assert!(
            parent.is_empty() || all.get(&parent).is_some_and(|p| p.0),
            "{parent}"
        );
        all.insert(commit.name, (true, parent));
        Ok(())
    }
    async fn remove(&self, _: &Scope, _: &str, key: &str) -> Result<()> {
        self.0
            .lock()
            .remove(key)
            .map(|_| ())
            .ok_or_else(|| Error::not_found(key))
    }
    fn names(&self) -> Vec<String> {
        vec!["overlayfs".into()]
    }
    async fn update(
        &self,
        _: &Namespace,
        _: &str,
        info: snapshots::Info,
        _: &[String],
    ) -> Result<snapshots::Info> {
        Ok(info)
    }
    async fn usage(&self, _: &Namespace, _: &str, _: &str) -> Result<snapshots::Usage> {
        Ok(snapshots::Usage::default())
    }
    async fn mounts(&self, _: &Namespace, _: &str, _: &str) -> Result<Vec<Mount>> {
        Ok(Vec::new())
    }
    async fn view(&self, _: &Scope, _: &str, _: &str, _: &str, _: Labels) -> Result<Vec<Mount>> {
        Ok(Vec::new())
    }
    async fn list(&self, _: &Namespace, _: &str, _: &Filter) -> Result<Vec<snapshots::Info>> {
        Ok(Vec::new())
    }
    async fn cleanup(&self, _: &Namespace, _: &str) -> Result<()> {
        Ok(())
    }
    fn backend(&self, _: &str) -> Result<Arc<dyn snapshots::Snapshotter>> {
        Err(Error::not_implemented("backend"))
    }
}

/// A differ whose layers are their own diffs; it refuses other media types than `0`, and notes of each whether it was
/// to be synced.
pub(crate) struct Plain(
    pub(crate) &'static str,
    pub(crate) Memory,
    pub(crate) Mutex<Vec<bool>>,
);

#[async_trait]
impl Differ for Plain {
    async fn apply(
        &self,
        scope: &Scope,
        descriptor: &Descriptor,
        _: &[Mount],
        options: ApplyOptions,
    ) -> Result<Descriptor> {
        if descriptor.media_type != self.0 {
            return Err(Error::not_implemented(&descriptor.media_type));
        }
        self.2.lock().push(options.sync_fs);
        // What the store does not have cannot be applied.
        self.1
            .info(&scope.namespace, &Digest::parse(&descriptor.digest)?)
            .await?;
        tokio::task::yield_now().await;
        Ok(descriptor.clone())
    }
    async fn compare(
        &self,
        _: &Scope,
        _: &[Mount],
        _: &[Mount],
        _: CompareOptions,
    ) -> Result<Descriptor> {
        Err(Error::not_implemented("compare"))
    }
}
