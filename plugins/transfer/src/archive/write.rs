//! Images out of the content store as one archive that both OCI tools and `docker load` read.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::sync::Arc;

use corten_core::content::{Content, Reader};
use corten_core::labels::DISTRIBUTION_SOURCE;
use corten_core::{Digest, Error, Kind, Result, Scope};
use sha2::Digest as _;
use tokio::runtime::Handle;

use super::names::{familiar, oci_name};
use super::{DockerImage, INDEX, LAYOUT, LAYOUT_VERSION, MANIFEST};
use crate::fetch::stored_document;
use crate::oci::{
    Desc, Document, IMAGE_NAME, Index, MAX_DEPTH, MAX_REFERENCES, OCI_INDEX, REF_NAME, is_index,
    is_manifest, is_non_distributable,
};
use crate::platform::Matcher;

/// What goes into the archive.
#[derive(Debug, Clone)]
pub struct Export {
    /// Names and targets.
    pub images: Vec<(String, Desc)>,
    pub platform: Matcher,
    /// Blobs of every platform; `platform` still decides what `docker load` sees.
    pub all_platforms: bool,
    pub skip_docker: bool,
    pub skip_non_distributable: bool,
}

enum Entry {
    Folder,
    Text(Vec<u8>, u32),
    Blob(Digest, u64),
}

#[derive(Default)]
struct Records {
    entries: BTreeMap<String, Entry>,
    algorithms: BTreeSet<String>,
    references: usize,
}

/// An image for `manifest.json`, in the order of the request.
struct Loadable {
    manifest: Desc,
    names: Vec<String>,
}

/// Writes the archive. Blocking.
///
/// # Errors
/// NotFound for missing blobs and platforms; InvalidArgument for targets that are no images; the sink's.
pub fn write(
    content: &Arc<dyn Content>,
    scope: &Scope,
    export: &Export,
    sink: impl Write,
) -> Result<()> {
    let job = Job {
        content,
        scope,
        export,
        runtime: Handle::current(),
    };
    let records = job.records()?;
    job.archive(records, sink)
}

struct Job<'a> {
    content: &'a Arc<dyn Content>,
    scope: &'a Scope,
    export: &'a Export,
    runtime: Handle,
}

impl Job<'_> {
    fn records(&self) -> Result<Records> {
        let mut records = Records::default();
        let layout = format!("{{\"imageLayoutVersion\":\"{LAYOUT_VERSION}\"}}");
        records
            .entries
            .insert(LAYOUT.into(), Entry::Text(layout.into_bytes(), 0o444));
        let mut manifests = Vec::new();
        let mut loadable: Vec<Loadable> = Vec::new();
        for (name, target) in &self.export.images {
            let desc = self.named(name, target)?;
            let manifest = if is_manifest(&desc.media_type) {
                self.tree(&mut records, &desc, 0)?;
                Some(desc.clone())
            } else if is_index(&desc.media_type) {
                self.index(&mut records, &desc)?
            } else {
                return Err(Error::invalid("only manifests may be exported"));
            };
            if let Some(manifest) = manifest {
                match loadable
                    .iter_mut()
                    .find(|l| l.manifest.digest == manifest.digest)
                {
                    Some(known) => known.names.push(name.clone()),
                    None => loadable.push(Loadable {
                        manifest,
                        names: vec![name.clone()],
                    }),
                }
            }
            manifests.push(desc);
        }
        let index = Index {
            schema_version: 2,
            media_type: OCI_INDEX.into(),
            manifests,
        };
        records
            .entries
            .insert(INDEX.into(), Entry::Text(encode(&index)?, 0o644));
        if !self.export.skip_docker && !loadable.is_empty() {
            let images = self.docker_images(&loadable)?;
            records
                .entries
                .insert(MANIFEST.into(), Entry::Text(encode(&images)?, 0o644));
        }
        if !records.algorithms.is_empty() {
            records.entries.insert("blobs/".into(), Entry::Folder);
            for algorithm in &records.algorithms {
                records
                    .entries
                    .insert(format!("blobs/{algorithm}/"), Entry::Folder);
            }
        }
        Ok(records)
    }

    // The target with its name, and where its blobs came from, as annotations.
    fn named(&self, name: &str, target: &Desc) -> Result<Desc> {
        let mut desc = target.clone();
        desc.annotations.insert(IMAGE_NAME.into(), name.to_owned());
        desc.annotations.insert(REF_NAME.into(), oci_name(name));
        let digest = desc.checked_digest()?;
        let info = self
            .runtime
            .block_on(self.content.info(&self.scope.namespace, &digest))?;
        let sources = info
            .labels
            .into_iter()
            .filter(|(k, _)| k.starts_with(DISTRIBUTION_SOURCE));
        desc.annotations.extend(sources);
        Ok(desc)
    }

    fn document(&self, desc: &Desc) -> Result<Document> {
        self.runtime
            .block_on(stored_document(&**self.content, self.scope, desc))
    }

    // An index and the trees of its platforms; gives the manifest that docker is to load.
    fn index(&self, records: &mut Records, desc: &Desc) -> Result<Option<Desc>> {
        self.blob(records, desc)?;
        let Document::Index(children) = self.document(desc)? else {
            return Ok(None);
        };
        let mut fitting = Vec::new();
        for child in children {
            if child
                .platform
                .as_ref()
                .is_none_or(|p| self.export.platform.matches(p))
            {
                fitting.push(child.clone());
            } else if !self.export.all_platforms {
                continue;
            }
            self.tree(records, &child, 0)?;
        }
        fitting.sort_by(|a, b| {
            self.export
                .platform
                .compare(a.platform.as_ref(), b.platform.as_ref())
        });
        match fitting.into_iter().next() {
            Some(best) => Ok(is_manifest(&best.media_type).then_some(best)),
            None => Err(Error::not_found("no manifest found for platform")),
        }
    }

    fn tree(&self, records: &mut Records, desc: &Desc, depth: usize) -> Result<()> {
        records.references += 1;
        if depth > MAX_DEPTH || records.references > MAX_REFERENCES {
            let text = format!("too many descriptors (limit {MAX_REFERENCES}): resource exhausted");
            return Err(Error::new(Kind::ResourceExhausted, text));
        }
        self.blob(records, desc)?;
        if desc.is_document() {
            for child in self.document(desc)?.into_children() {
                self.tree(records, &child, depth + 1)?;
            }
        }
        Ok(())
    }

    fn blob(&self, records: &mut Records, desc: &Desc) -> Result<()> {
        let digest = desc.checked_digest()?;
        records.algorithms.insert(digest.algorithm().to_owned());
        if self.export.skip_non_distributable && is_non_distributable(&desc.media_type) {
            return Ok(());
        }
        let size = desc.checked_size()?;
        records
            .entries
            .insert(path_of(&digest), Entry::Blob(digest, size));
        Ok(())
    }

    fn docker_images(&self, loadable: &[Loadable]) -> Result<Vec<DockerImage>> {
        let mut out = Vec::new();
        for image in loadable {
            let Document::Manifest { config, layers } = self.document(&image.manifest)? else {
                continue;
            };
            let path = |d: &Desc| Ok(path_of(&d.checked_digest()?));
            out.push(DockerImage {
                config: path(&config)?,
                repo_tags: image.names.iter().map(|n| familiar(n)).collect(),
                layers: layers.iter().map(path).collect::<Result<_>>()?,
            });
        }
        Ok(out)
    }

    fn archive(&self, records: Records, sink: impl Write) -> Result<()> {
        let mut archive = tar::Builder::new(sink);
        for (name, entry) in records.entries {
            let mut header = tar::Header::new_ustar();
            header.set_mtime(0);
            header.set_uid(0);
            header.set_gid(0);
            match entry {
                Entry::Folder => {
                    header.set_entry_type(tar::EntryType::Directory);
                    header.set_mode(0o755);
                    header.set_size(0);
                    archive.append_data(&mut header, &name, std::io::empty())?;
                }
                Entry::Text(data, mode) => {
                    header.set_entry_type(tar::EntryType::Regular);
                    header.set_mode(mode);
                    header.set_size(data.len() as u64);
                    archive.append_data(&mut header, &name, data.as_slice())?;
                }
                Entry::Blob(digest, size) => {
                    header.set_entry_type(tar::EntryType::Regular);
                    header.set_mode(0o444);
                    header.set_size(size);
                    let open = self.content.reader_at(&self.scope.namespace, &digest);
                    let reader = self.runtime.block_on(open)?;
                    if reader.size() != size {
                        return Err(Error::precondition(format!(
                            "unexpected copy size for {name}"
                        )));
                    }
                    let mut checked = Checked {
                        inner: Reader::new(reader),
                        hasher: sha2::Sha256::new(),
                    };
                    archive.append_data(&mut header, &name, &mut checked)?;
                    checked.verify(&digest)?;
                }
            }
        }
        archive.into_inner()?.flush()?;
        Ok(())
    }
}

/// Hashes what it reads.
struct Checked {
    inner: Reader,
    hasher: sha2::Sha256,
}

impl Read for Checked {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.hasher.update(&buf[..n]);
        Ok(n)
    }
}

impl Checked {
    fn verify(self, wanted: &Digest) -> Result<()> {
        let actual = Digest::from_sha256(self.hasher.finalize().as_slice());
        if wanted.algorithm() == "sha256" && actual != *wanted {
            return Err(Error::new(
                Kind::DataLoss,
                format!("unexpected digest {actual} copied"),
            ));
        }
        Ok(())
    }
}

fn path_of(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}

fn encode(document: &impl serde::Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(document).map_err(|e| Error::internal(format!("encode document: {e}")))
}
