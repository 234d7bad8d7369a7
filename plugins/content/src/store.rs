//! The store: look-ups, listings, and the opening of writers.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use corten_core::content::{Backend, Info, IngestStatus, ReadAt, Writer, WriterOptions};
use corten_core::{Context, Digest, Error, Labels, Result};
use corten_sys::blocking;

use crate::hasher::Hasher;
use crate::ingest::Ingest;
use crate::locks::{Locks, RefLock};
use crate::writer::{LocalWriter, Open};

/// The local store.
#[derive(Debug, Clone)]
pub struct Store {
    root: Arc<PathBuf>,
    locks: Locks,
}

impl Store {
    /// Opens the store in `root`, making it when it is not there. A stock data root is taken as it is.
    ///
    /// # Errors
    /// The file system's.
    pub fn open(root: &Path) -> Result<Self> {
        let make = |dir: &Path, mode| {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(mode)
                .create(dir)
                .with_context(|| format!("make content folder {}", dir.display()))
        };
        make(root, 0o700)?;
        make(&root.join("ingest"), 0o700)?;
        make(&root.join("blobs"), 0o755)?;
        Ok(Self {
            root: Arc::new(root.to_owned()),
            locks: Locks::default(),
        })
    }

    pub(crate) fn blob(&self, digest: &Digest) -> PathBuf {
        self.root
            .join("blobs")
            .join(digest.algorithm())
            .join(digest.hex())
    }

    fn ingest(&self, r#ref: &str) -> Ingest {
        Ingest::of(&self.root.join("ingest"), r#ref)
    }

    /// Opens or resumes the ingest; `lock` is its ref's.
    fn open_writer(&self, options: &WriterOptions, lock: RefLock) -> Result<LocalWriter> {
        if let Some(expected) = &options.expected
            && self.blob(expected).exists()
        {
            return Err(Error::already_exists(format!("content {expected}")));
        }
        let ingest = self.ingest(&options.r#ref);
        let mut hasher = Hasher::for_digest(options.expected.as_ref());
        let mut resumed = None;
        if !ingest.make_dir()? {
            match resume(&ingest, options, &mut hasher) {
                Ok(status) => resumed = Some(status),
                Err(error) => {
                    tracing::info!(r#ref = options.r#ref, %error, "start a broken ingest anew");
                    hasher = Hasher::for_digest(options.expected.as_ref());
                }
            }
        }
        let fresh = resumed.is_none();
        let mut status = match resumed {
            Some(status) => status,
            None => {
                let now = SystemTime::now();
                ingest.start(&options.r#ref, options.total, now)?;
                IngestStatus {
                    r#ref: options.r#ref.clone(),
                    offset: 0,
                    total: options.total,
                    expected: None,
                    started_at: now,
                    updated_at: now,
                }
            }
        };
        status.expected.clone_from(&options.expected);
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(fresh)
            .open(ingest.data())
            .context("open ingest data")?;
        Ok(LocalWriter::new(Open {
            store: self.clone(),
            ingest,
            file,
            hasher,
            status,
            _lock: lock,
        }))
    }
}

/// Reads the ingest's status and hashes its data, so that it can go on.
fn resume(ingest: &Ingest, options: &WriterOptions, hasher: &mut Hasher) -> Result<IngestStatus> {
    let mut status = ingest.status()?;
    if status.r#ref != options.r#ref {
        return Err(Error::internal(format!(
            "ref key does not match: {} != {}",
            options.r#ref, status.r#ref
        )));
    }
    if options.total > 0 && status.total > 0 && options.total != status.total {
        return Err(Error::internal(format!(
            "provided total differs from status: {} != {}",
            options.total, status.total
        )));
    }
    status.offset = hasher
        .rehash(&ingest.data(), u64::MAX)
        .context("hash ingest data")?;
    if status.total == 0 {
        status.total = options.total;
    }
    Ok(status)
}

fn info_of(digest: Digest, metadata: &fs::Metadata) -> Info {
    let created_at = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
    let accessed = u64::try_from(metadata.atime()).unwrap_or(0);
    Info {
        digest,
        size: metadata.len(),
        created_at,
        // containerd keeps the time of the last label update in the access time.
        updated_at: (SystemTime::UNIX_EPOCH + Duration::from_secs(accessed)).max(created_at),
        labels: Labels::new(),
    }
}

/// NotFound in containerd's words, other errors with their path.
fn absent(e: io::Error, digest: &Digest, path: &Path) -> Error {
    if e.kind() == io::ErrorKind::NotFound {
        return Error::not_found(format!("content {digest}"));
    }
    Error::from(e).context(format!("blob {}", path.display()))
}

struct Blob {
    file: File,
    size: u64,
}

impl ReadAt for Blob {
    fn size(&self) -> u64 {
        self.size
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buf, offset)
    }
    fn file(&self) -> Option<&File> {
        Some(&self.file)
    }
}

#[async_trait]
impl Backend for Store {
    async fn info(&self, digest: &Digest) -> Result<Info> {
        let (path, digest) = (self.blob(digest), digest.clone());
        blocking(move || match fs::metadata(&path) {
            Ok(m) => Ok(info_of(digest, &m)),
            Err(e) => Err(absent(e, &digest, &path)),
        })
        .await
    }

    async fn list(&self) -> Result<Vec<Info>> {
        let blobs = self.root.join("blobs");
        blocking(move || {
            let mut out = Vec::new();
            for algorithm in ["sha256", "sha384", "sha512"] {
                let dir = match fs::read_dir(blobs.join(algorithm)) {
                    Ok(dir) => dir,
                    Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                    Err(e) => return Err(e).context("list blobs"),
                };
                for entry in dir {
                    let entry = entry.context("list blobs")?;
                    let name = entry.file_name();
                    let text = format!("{algorithm}:{}", name.to_string_lossy());
                    let Ok(digest) = Digest::parse(&text) else {
                        tracing::error!(path = %entry.path().display(), "invalid digest for blob path");
                        continue;
                    };
                    // One that goes meanwhile is not there.
                    if let Ok(m) = entry.metadata() {
                        out.push(info_of(digest, &m));
                    }
                }
            }
            Ok(out)
        })
        .await
    }

    async fn delete(&self, digest: &Digest) -> Result<()> {
        let (path, digest) = (self.blob(digest), digest.clone());
        blocking(move || fs::remove_file(&path).map_err(|e| absent(e, &digest, &path))).await
    }

    async fn reader_at(&self, digest: &Digest) -> Result<Arc<dyn ReadAt>> {
        let (path, digest) = (self.blob(digest), digest.clone());
        blocking(move || {
            let open = File::open(&path).and_then(|f| Ok((f.metadata()?.len(), f)));
            match open {
                Ok((size, file)) => Ok(Arc::new(Blob { file, size }) as Arc<dyn ReadAt>),
                Err(e) => Err(absent(e, &digest, &path)),
            }
        })
        .await
    }

    async fn writer(&self, options: WriterOptions) -> Result<Box<dyn Writer>> {
        if options.r#ref.is_empty() {
            return Err(Error::invalid("ref must not be empty"));
        }
        let lock = self.locks.lock(&options.r#ref)?;
        let store = self.clone();
        let writer = blocking(move || store.open_writer(&options, lock)).await?;
        Ok(Box::new(writer))
    }

    async fn status(&self, r#ref: &str) -> Result<IngestStatus> {
        let ingest = self.ingest(r#ref);
        blocking(move || ingest.status())
            .await
            .map_err(not_found_in_words)
    }

    async fn list_statuses(&self) -> Result<Vec<IngestStatus>> {
        let dir = self.root.join("ingest");
        blocking(move || {
            let mut out = Vec::new();
            for entry in fs::read_dir(dir).context("list ingests")? {
                let entry = entry.context("list ingests")?;
                // Half-made and vanishing ones are not listed.
                if let Ok(status) = Ingest::at(entry.path()).status() {
                    out.push(status);
                }
            }
            Ok(out)
        })
        .await
    }

    async fn abort(&self, r#ref: &str) -> Result<()> {
        let (ingest, name) = (self.ingest(r#ref), r#ref.to_owned());
        blocking(move || match ingest.remove() {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                Err(Error::not_found(format!("ingest ref {name:?}")))
            }
            Err(e) => Err(e).with_context(|| format!("abort ingest {name:?}")),
        })
        .await
    }
}

/// The class's words, where the operating system's text lacks them.
fn not_found_in_words(e: Error) -> Error {
    if e.kind() == corten_core::Kind::NotFound {
        Error::not_found(e)
    } else {
        e
    }
}
