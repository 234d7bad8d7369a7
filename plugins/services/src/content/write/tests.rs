//! The write session against a store in memory.

use std::collections::BTreeMap;

use async_trait::async_trait;
use bytes::Bytes;
use corten_core::content::{Info, IngestStatus, ReadAt};
use corten_core::filter::Filter;
use corten_core::{Labels, Namespace};
use futures::TryStreamExt;
use parking_lot::Mutex;
use tonic::Code;

use super::*;

/// Blobs by digest, ingests by ref; a ref that is being written is absent from `ingests`.
#[derive(Default)]
struct Memory {
    blobs: Mutex<BTreeMap<String, Labels>>,
    ingests: Mutex<BTreeMap<String, Vec<u8>>>,
}

struct MemoryWriter {
    store: Arc<Memory>,
    options: WriterOptions,
    data: Vec<u8>,
    committed: bool,
}

impl Drop for MemoryWriter {
    fn drop(&mut self) {
        if !self.committed {
            let data = std::mem::take(&mut self.data);
            self.store
                .ingests
                .lock()
                .insert(self.options.r#ref.clone(), data);
        }
    }
}

#[async_trait]
impl Writer for MemoryWriter {
    async fn write(&mut self, data: Bytes) -> Result<()> {
        self.data.extend_from_slice(&data);
        Ok(())
    }
    async fn truncate(&mut self, size: u64) -> Result<()> {
        self.data.truncate(usize::try_from(size).unwrap());
        Ok(())
    }
    fn status(&self) -> IngestStatus {
        IngestStatus {
            r#ref: self.options.r#ref.clone(),
            offset: self.data.len() as u64,
            total: self.options.total,
            expected: self.options.expected.clone(),
            started_at: std::time::SystemTime::now(),
            updated_at: std::time::SystemTime::now(),
        }
    }
    fn digest(&self) -> Digest {
        Digest::sha256(&self.data)
    }
    async fn commit(&mut self, size: u64, expected: Option<Digest>, labels: Labels) -> Result<()> {
        let digest = self.digest();
        if size != 0 && size != self.data.len() as u64 || expected.is_some_and(|e| e != digest) {
            return Err(Error::precondition("unexpected commit"));
        }
        self.committed = true;
        self.store.blobs.lock().insert(digest.to_string(), labels);
        Ok(())
    }
}

struct Handle(Arc<Memory>);

#[async_trait]
impl Content for Handle {
    async fn info(&self, _: &Namespace, digest: &Digest) -> Result<Info> {
        match self.0.blobs.lock().get(digest.as_str()) {
            Some(labels) => Ok(Info {
                digest: digest.clone(),
                size: 0,
                created_at: std::time::SystemTime::now(),
                updated_at: std::time::SystemTime::now(),
                labels: labels.clone(),
            }),
            None => Err(Error::not_found(digest)),
        }
    }
    async fn writer(&self, _: &Scope, options: WriterOptions) -> Result<Box<dyn Writer>> {
        let data = self
            .0
            .ingests
            .lock()
            .remove(&options.r#ref)
            .unwrap_or_default();
        Ok(Box::new(MemoryWriter {
            store: self.0.clone(),
            options,
            data,
            committed: false,
        }))
    }
    async fn abort(&self, _: &Scope, r#ref: &str) -> Result<()> {
        self.0
            .ingests
            .lock()
            .remove(r#ref)
            .map(|_| ())
            .ok_or_else(|| Error::not_found(r#ref))
    }
    async fn update(&self, _: &Namespace, _: Info, _: &[String]) -> Result<Info> {
        unreachable!()
    }
    async fn list(&self, _: &Namespace, _: &Filter) -> Result<Vec<Info>> {
        unreachable!()
    }
    async fn delete(&self, _: &Scope, _: &Digest) -> Result<()> {
        unreachable!()
    }
    async fn reader_at(&self, _: &Namespace, _: &Digest) -> Result<Arc<dyn ReadAt>> {
        unreachable!()
    }
    async fn status(&self, _: &Namespace, _: &str) -> Result<IngestStatus> {
        unreachable!()
    }
    async fn list_statuses(&self, _: &Namespace, _: &Filter) -> Result<Vec<IngestStatus>> {
        unreachable!()
    }
}

fn message(action: WriteAction, offset: i64, data: &'static [u8]) -> WriteContentRequest {
    WriteContentRequest {
        action: action.into(),
        r#ref: "r".into(),
        offset,
        data: Bytes::from_static(data),
        ..Default::default()
    }
}

async fn run(
    store: &Arc<Memory>,
    requests: Vec<WriteContentRequest>,
) -> Result<Vec<WriteContentResponse>, Status> {
    let scope = Scope::new(Namespace::new("ns").unwrap());
    let requests = futures::stream::iter(requests.into_iter().map(Ok));
    session(Arc::new(Handle(store.clone())), scope, requests)
        .try_collect()
        .await
}

async fn check_err(
    store: &Arc<Memory>,
    requests: Vec<WriteContentRequest>,
    code: Code,
    text: &str,
) {
    let e = run(store, requests).await.unwrap_err();
    assert_eq!((e.code(), e.message()), (code, text));
}

use WriteAction::{Commit, Stat, Write};

#[tokio::test]
async fn a_blob_is_written_and_committed_and_the_stream_ends() {
    let store = Arc::new(Memory::default());
    let mut commit = message(Commit, 6, b"");
    commit.labels = Labels::from([("a".into(), "b".into())]);
    let digest = Digest::sha256(b"abcdef").to_string();
    commit.expected.clone_from(&digest);
    commit.total = 6;
    let after = message(Stat, 0, b"");
    let requests = vec![
        message(Stat, 0, b""),
        message(Write, 0, b"abc"),
        message(Write, 3, b"def"),
        commit,
        after,
    ];
    let answers = run(&store, requests).await.unwrap();
    let offsets: Vec<_> = answers.iter().map(|a| a.offset).collect();
    assert_eq!(offsets, [0, 3, 6, 6]);
    // Times told by STAT stay in later answers.
    assert!(answers[3].started_at.is_some());
    assert_eq!(answers[3].digest, digest);
    assert_eq!(store.blobs.lock()[&digest]["a"], "b");
}

#[tokio::test]
async fn offsets_are_checked_and_zero_starts_over() {
    let store = Arc::new(Memory::default());
    check_err(
        &store,
        vec![message(Write, 0, b"abc"), message(Write, 7, b"x")],
        Code::OutOfRange,
        "write @7 must occur at current offset 3",
    )
    .await;
    // The ingest survived the failed session and is resumed.
    let answers = run(&store, vec![message(Stat, 0, b"")]).await.unwrap();
    assert_eq!(answers[0].offset, 3);
    let answers = run(
        &store,
        vec![message(Write, 0, b"z"), message(Commit, 1, b"")],
    )
    .await
    .unwrap();
    assert_eq!(answers[0].offset, 1);
    assert_eq!(answers[1].digest, Digest::sha256(b"z").to_string());
}

#[tokio::test]
async fn a_digest_that_exists_ends_the_session_and_removes_the_ingest() {
    let store = Arc::new(Memory::default());
    let digest = Digest::sha256(b"there").to_string();
    store.blobs.lock().insert(digest.clone(), Labels::new());
    let mut late = message(Write, 1, b"b");
    late.expected.clone_from(&digest);
    check_err(
        &store,
        vec![message(Write, 0, b"a"), late],
        Code::AlreadyExists,
        &format!("blob with expected digest {digest} exists"),
    )
    .await;
    assert!(store.ingests.lock().is_empty());
}

#[tokio::test]
async fn bad_messages_are_refused() {
    let store = Arc::new(Memory::default());
    let mut unnamed = message(Stat, 0, b"");
    unnamed.r#ref.clear();
    let text = "first message must have a reference";
    check_err(&store, vec![unnamed], Code::InvalidArgument, text).await;
    let mut nonsense = message(Write, 0, b"a");
    nonsense.expected = "sha256:../../x".into();
    assert_eq!(
        run(&store, vec![nonsense]).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    let mut odd = message(Write, 0, b"a");
    odd.action = 9;
    assert_eq!(
        run(&store, vec![odd]).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    let mut wrong = message(Commit, 0, b"a");
    wrong.total = 5;
    assert_eq!(
        run(&store, vec![wrong]).await.unwrap_err().code(),
        Code::FailedPrecondition
    );
    assert!(run(&store, vec![]).await.unwrap().is_empty());
}
