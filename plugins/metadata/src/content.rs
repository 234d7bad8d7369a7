//! Namespaced content over the store and a backend.
//!
//! A record says that a namespace has a blob; the bytes are shared. Deleting removes the record, the bytes go with the
//! collection that finds no record left. Ingests carry backend refs `<ns>/<number>/<ref>`.

mod writer;

use std::sync::Arc;

use async_trait::async_trait;
use corten_core::content::{Content, Info, IngestStatus, ReadAt, Writer, WriterOptions};
use corten_core::filter::{Fields, Filter, map_field};
use corten_core::protos::containerd::events::ContentDelete;
use corten_core::protos::containerd::services::content::v1::Info as Record;
use corten_core::protos::time;
use corten_core::{Digest, Error, Kind, Namespace, Result, Scope, Timestamp, labels};
use std::time::SystemTime;

use crate::db::{Db, Dirt, ensure_namespace};
use crate::keys::{self, backend_key, key, load, save};
use crate::leases;
use crate::records::{INGEST_LIFE, Ingest, checked_labels, masked_labels, system_time};
use crate::store::{Read, Txn};

use writer::Namespaced;

pub(crate) struct Store(pub(crate) Arc<Db>);

struct View<'a>(&'a Info);

#[async_trait]
impl Content for Store {
    async fn info(&self, ns: &Namespace, digest: &Digest) -> Result<Info> {
        let found = self.0.read(|r| load(r, &blob(ns, digest)))?;
        info(found.ok_or_else(|| unknown(digest))?)
    }

    async fn update(&self, ns: &Namespace, wanted: Info, paths: &[String]) -> Result<Info> {
        let (ns, paths) = (ns.clone(), paths.to_vec());
        self.0
            .write(move |txn| {
                let at = blob(&ns, &wanted.digest);
                let mut record: Record = load(txn, &at)?.ok_or_else(|| unknown(&wanted.digest))?;
                masked_labels(&mut record.labels, &wanted.labels, &paths, || {
                    format!("content info {:?}", wanted.digest.as_str())
                })?;
                checked_labels("info.Labels", &mut record.labels)?;
                record.updated_at = Some(time::now());
                save(txn, &at, &record)?;
                info(record)
            })
            .await
    }

    async fn list(&self, ns: &Namespace, filter: &Filter) -> Result<Vec<Info>> {
        let mut out = Vec::new();
        self.0.read(|r| {
            keys::each(
                r,
                &key(keys::BLOBS, &[ns.as_str()]),
                &mut |_, record: Record| {
                    let info = info(record)?;
                    if filter.matches(&View(&info)) {
                        out.push(info);
                    }
                    Ok(())
                },
            )
        })?;
        Ok(out)
    }

    async fn delete(&self, scope: &Scope, digest: &Digest) -> Result<()> {
        let (owned, wanted) = (scope.clone(), digest.clone());
        self.0
            .write_deleting(Dirt::Content, move |txn| {
                if !txn.delete(&blob(&owned.namespace, &wanted))? {
                    return Err(unknown(&wanted));
                }
                leases::release(txn, &owned, leases::CONTENT, wanted.as_str())
            })
            .await?;
        let event = ContentDelete {
            digest: digest.to_string(),
        };
        self.0
            .publish(&scope.namespace, "/content/delete", &event)
            .await;
        Ok(())
    }

    async fn reader_at(&self, ns: &Namespace, digest: &Digest) -> Result<Arc<dyn ReadAt>> {
        if !self.0.read(|r| Ok(r.get(&blob(ns, digest))?.is_some()))? {
            return Err(unknown(digest));
        }
        self.0.content.reader_at(digest).await
    }

    async fn writer(&self, scope: &Scope, options: WriterOptions) -> Result<Box<dyn Writer>> {
        if options.r#ref.is_empty() {
            return Err(Error::invalid("ref must not be empty"));
        }
        let (db, scope) = (self.0.clone(), scope.clone());
        self.0
            .whole(async move { open(db, scope, options).await })
            .await
    }

    async fn status(&self, ns: &Namespace, r#ref: &str) -> Result<IngestStatus> {
        let record: Option<Ingest> = self
            .0
            .read(|r| load(r, &key(keys::INGESTS, &[ns.as_str(), r#ref])))?;
        let record = record.ok_or_else(|| no_ingest(r#ref))?;
        let status = self.0.content.status(&record.backend).await?;
        Ok(IngestStatus {
            r#ref: r#ref.to_owned(),
            ..status
        })
    }

    async fn list_statuses(&self, ns: &Namespace, filter: &Filter) -> Result<Vec<IngestStatus>> {
        let mut records = Vec::new();
        self.0.read(|r| {
            keys::each(
                r,
                &key(keys::INGESTS, &[ns.as_str()]),
                &mut |k, ingest: Ingest| {
                    records.push((keys::last(k)?, ingest.backend));
                    Ok(())
                },
            )
        })?;
        let mut out = Vec::new();
        for (r#ref, backend) in records {
            let wanted =
                filter.matches_with(|path| (path.first()? == "ref").then(|| r#ref.clone()));
            if !wanted {
                continue;
            }
            match self.0.content.status(&backend).await {
                Ok(status) => out.push(IngestStatus { r#ref, ..status }),
                Err(e) if e.kind() == Kind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Ok(out)
    }

    async fn abort(&self, scope: &Scope, r#ref: &str) -> Result<()> {
        let (db, scope, r#ref) = (self.0.clone(), scope.clone(), r#ref.to_owned());
        self.0
            .whole(async move { abort(&db, scope, r#ref).await })
            .await
    }
}

impl Fields for View<'_> {
    fn field(&self, path: &[String]) -> Option<String> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "digest" => Some(self.0.digest.to_string()),
            "labels" => map_field(&self.0.labels, rest),
            _ => None,
        }
    }
}

/// The key of a blob's record.
fn blob(ns: &Namespace, digest: &Digest) -> Vec<u8> {
    key(keys::BLOBS, &[ns.as_str(), digest.as_str()])
}

fn unknown(digest: &Digest) -> Error {
    Error::not_found(format!("content digest {digest}"))
}

fn no_ingest(r#ref: &str) -> Error {
    Error::not_found(format!("reference {ref}"))
}

fn info(record: Record) -> Result<Info> {
    Ok(Info {
        digest: Digest::parse(&record.digest)?,
        size: u64::try_from(record.size).unwrap_or_default(),
        created_at: system_time(record.created_at),
        updated_at: system_time(record.updated_at),
        labels: record.labels,
    })
}

/// What the record of an ingest says after opening.
struct Opened {
    backend: String,
    /// This call made the record.
    created: bool,
}

/// Opens or resumes an ingest.
async fn open(db: Arc<Db>, scope: Scope, mut options: WriterOptions) -> Result<Box<dyn Writer>> {
    let sweep = db.content_sweep.read().await;
    let alone = db.lock_ingest(&scope, &options.r#ref).await;
    let shared = shareable(&db, &options).await?;
    if let Some(size) = shared {
        options.total = size;
    }
    let (owned, r#ref, expected) = (
        scope.clone(),
        options.r#ref.clone(),
        options.expected.clone(),
    );
    let opened = db
        .write(move |txn| {
            if let Some(digest) = &expected {
                // The blob may have come since the look above.
                if txn.has(&blob(&owned.namespace, digest))? {
                    leases::hold(txn, &owned, leases::CONTENT, digest.as_str())
                        .map_err(|e| e.context("unable to lease content"))?;
                    // Not an error here: the lease must be kept.
                    return Ok(None);
                }
            }
            let taken = shared.and(expected.as_ref());
            record_ingest(txn, &owned, &r#ref, taken).map(Some)
        })
        .await?;
    let Some(opened) = opened else {
        let digest = options.expected.map(|d| d.to_string()).unwrap_or_default();
        return Err(Error::already_exists(format!("content {digest}")));
    };
    let inner = match shared {
        Some(_) => None,
        None => match db
            .content
            .writer(writer::backend_options(&opened.backend, options.total))
            .await
        {
            Ok(inner) => Some(inner),
            Err(e) => {
                if opened.created {
                    forget(&db, &scope, &options.r#ref).await?;
                }
                return Err(e);
            }
        },
    };
    drop((alone, sweep));
    Ok(Box::new(Namespaced::new(
        db,
        scope,
        options,
        opened.backend,
        inner,
    )))
}

/// The size of the wanted blob when the backend has it and this namespace may take it over.
async fn shareable(db: &Db, options: &WriterOptions) -> Result<Option<u64>> {
    let Some(digest) = &options.expected else {
        return Ok(None);
    };
    if db.isolated && !db.read(|r| shared_by_label(r, digest))? {
        return Ok(None);
    }
    match db.content.info(digest).await {
        // A wrong size is for the caller to find out at commit, with bytes of its own.
        Ok(info) if options.total == 0 || options.total == info.size => Ok(Some(info.size)),
        Ok(_) => Ok(None),
        Err(e) if e.kind() == Kind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Whether a namespace that shares its content has the blob.
fn shared_by_label(from: &dyn Read, digest: &Digest) -> Result<bool> {
    let mut shared = false;
    keys::each(
        from,
        &[keys::NAMESPACES],
        &mut |_, ns: crate::namespaces::Record| {
            let open = ns
                .labels
                .get(labels::SHAREABLE)
                .is_some_and(|v| v == "true");
            let at = key(keys::BLOBS, &[&ns.name, digest.as_str()]);
            shared |= open && from.get(&at)?.is_some();
            Ok(())
        },
    )?;
    Ok(shared)
}

/// Makes or renews the record of an ingest.
fn record_ingest(
    txn: &mut Txn<'_>,
    scope: &Scope,
    r#ref: &str,
    taken: Option<&Digest>,
) -> Result<Opened> {
    let ns = &scope.namespace;
    ensure_namespace(txn, ns)?;
    let leased = leases::hold(txn, scope, leases::INGESTS, r#ref)?;
    let at = key(keys::INGESTS, &[ns.as_str(), r#ref]);
    let found: Option<Ingest> = load(txn, &at)?;
    let created = found.is_none();
    let mut record = match found {
        Some(record) => record,
        None => Ingest {
            backend: backend_key(txn, ns.as_str(), r#ref)?,
            ..Default::default()
        },
    };
    if !leased {
        record.expire_at = Some(Timestamp::from(SystemTime::now() + INGEST_LIFE));
    }
    record.expected = taken.map(Digest::to_string).unwrap_or_default();
    save(txn, &at, &record)?;
    Ok(Opened {
        backend: record.backend,
        created,
    })
}

/// Removes the record of an ingest that came to nothing.
async fn forget(db: &Db, scope: &Scope, r#ref: &str) -> Result<()> {
    let (scope, r#ref) = (scope.clone(), r#ref.to_owned());
    db.write_deleting(Dirt::Content, move |txn| {
        txn.delete(&key(keys::INGESTS, &[scope.namespace.as_str(), &r#ref]))?;
        leases::release(txn, &scope, leases::INGESTS, &r#ref)
    })
    .await
}

async fn abort(db: &Db, scope: Scope, r#ref: String) -> Result<()> {
    let _sweep = db.content_sweep.read().await;
    let _alone = db.lock_ingest(&scope, &r#ref).await;
    let record = db
        .write_deleting(Dirt::Content, move |txn| {
            let at = key(keys::INGESTS, &[scope.namespace.as_str(), &r#ref]);
            let record: Ingest = load(txn, &at)?.ok_or_else(|| no_ingest(&r#ref))?;
            txn.delete(&at)?;
            leases::release(txn, &scope, leases::INGESTS, &r#ref)?;
            Ok(record)
        })
        .await?;
    if !record.expected.is_empty() {
        return Ok(());
    }
    match db.content.abort(&record.backend).await {
        // The record is gone: should this fail half way, the sweep takes what is left.
        Err(e) if e.kind() != Kind::NotFound => {
            db.soil_content();
            Err(e)
        }
        _ => Ok(()),
    }
}
