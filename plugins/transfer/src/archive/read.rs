//! An image archive into the content store.
//!
//! Runs on a thread for blocking work. Every file becomes a blob; what the documents in the archive say about
//! their names is only used to find blobs again, never as a path on this host.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Read};
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use corten_core::compression::Compression;
use corten_core::content::{
    Content, Info, Reader, WriterOptions, open_writer, read_blob, write_blob,
};
use corten_core::filter::Filter;
use corten_core::labels::UNCOMPRESSED;
use corten_core::{Context, Digest, Error, Kind, Labels, Result, Scope};
use tokio::runtime::Handle;

use super::names::{normalize, oci_name};
use super::{DockerImage, INDEX, LAYOUT, LAYOUT_VERSION, MANIFEST};
use crate::oci::{
    DOCKER_CONFIG, DOCKER_LAYER, DOCKER_LAYER_GZIP, DOCKER_MANIFEST, Desc, IMAGE_NAME, ImageConfig,
    Index, MAX_CONFIG, Manifest, OCI_INDEX, REF_NAME,
};

/// Largest document of an archive that is read into memory (CVE-2023-25153).
pub(super) const MAX_JSON: u64 = 20 << 20;
/// Most bytes of long names and extended headers before one file.
const MAX_SPECIAL: u64 = 4 << 20;
const CHUNK: usize = 512 << 10;
/// A tar archive consists of blocks of this size, in bytes.
const BLOCK: u64 = 512;
/// Most files of one archive.
const MAX_FILES: usize = 100_000;

/// Imports what `source` gives, plain or compressed with gzip or zstd, and gives the descriptor of its index, whose
/// manifests carry the images' names as annotations. `compress` stores plain layers of Docker archives as gzip.
///
/// # Errors
/// InvalidArgument for what is no image archive; the store's.
pub fn read(
    content: &Arc<dyn Content>,
    scope: &Scope,
    source: impl Read,
    decompress: bool,
    compress: bool,
) -> Result<Desc> {
    let mut source = BufReader::with_capacity(64 << 10, source);
    let import = Import {
        content,
        scope,
        runtime: Handle::current(),
        compress,
    };
    if !decompress {
        return import.archive(source);
    }
    match Compression::of(source.fill_buf()?) {
        Compression::Gzip => import.archive(flate2::bufread::MultiGzDecoder::new(source)),
        Compression::Zstd => import.archive(zstd::Decoder::with_buffer(source)?),
        Compression::None => import.archive(source),
    }
}

/// A source of which `left` bytes may be read, and which may only end between two blocks.
struct Metered<R> {
    inner: R,
    left: Rc<Cell<u64>>,
    read: u64,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let left = self.left.get();
        if left == 0 {
            return Err(std::io::Error::other("extended header too long"));
        }
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        let n = self.inner.read(&mut buf[..most])?;
        // The tar crate's own error for this says nothing of the end.
        if n == 0 && most > 0 && !self.read.is_multiple_of(BLOCK) {
            return Err(std::io::Error::new(
                std::io::ErrorKind::UnexpectedEof,
                "unexpected EOF",
            ));
        }
        self.read += n as u64;
        self.left.set(left - n as u64);
        Ok(n)
    }
}

struct Import<'a> {
    content: &'a Arc<dyn Content>,
    scope: &'a Scope,
    runtime: Handle,
    compress: bool,
}

/// What the files of the archive were.
#[derive(Default)]
struct Files {
    layout: Option<String>,
    images: Option<Vec<DockerImage>>,
    links: Vec<(String, String)>,
    blobs: HashMap<String, Desc>,
}

impl Import<'_> {
    fn archive(&self, source: impl Read) -> Result<Desc> {
        let mut files = self.files(source)?;
        if let Some(version) = files.layout {
            if version != LAYOUT_VERSION {
                return Err(invalid(format!("unsupported OCI version {version}")));
            }
            let mut index = files.blobs.remove(INDEX).ok_or_else(|| {
                invalid(format!("missing index.json in OCI layout {LAYOUT_VERSION}"))
            })?;
            index.media_type = OCI_INDEX.into();
            return Ok(index);
        }
        let images = files
            .images
            .take()
            .ok_or_else(|| invalid("unrecognized image format"))?;
        for (name, target) in std::mem::take(&mut files.links) {
            let desc = files.blobs.get(&target).cloned().ok_or_else(|| {
                invalid(format!(
                    "no target for symlink layer from {name:?} to {target:?}"
                ))
            })?;
            files.blobs.insert(name, desc);
        }
        let mut manifests = Vec::new();
        for image in &images {
            manifests.extend(self.docker_image(image, &files.blobs)?);
        }
        self.put_json(
            &Index {
                schema_version: 2,
                media_type: String::new(),
                manifests,
            },
            OCI_INDEX,
        )
    }

    fn files(&self, source: impl Read) -> Result<Files> {
        let mut files = Files::default();
        let left = Rc::new(Cell::new(0));
        let mut archive = tar::Archive::new(Metered {
            inner: source,
            left: left.clone(),
            read: 0,
        });
        let unreadable = |e: std::io::Error| invalid(format!("read image archive: {e}"));
        let mut entries = archive.entries().map_err(unreadable)?;
        for count in 0.. {
            // The tar crate takes names of any length into memory: what comes between two files is limited here.
            left.set(MAX_SPECIAL);
            let Some(entry) = entries.next() else { break };
            left.set(u64::MAX);
            let mut entry = entry.map_err(unreadable)?;
            if count >= MAX_FILES {
                return Err(Error::new(
                    Kind::ResourceExhausted,
                    "too many files in image archive",
                ));
            }
            let name = clean(&String::from_utf8_lossy(&entry.path_bytes()));
            match entry.header().entry_type() {
                tar::EntryType::Symlink => {
                    let link = entry.link_name_bytes().unwrap_or_default();
                    let link = String::from_utf8_lossy(&link).into_owned();
                    let folder = name.rsplit_once('/').map_or("", |p| p.0);
                    files
                        .links
                        .push((name.clone(), clean(&format!("{folder}/{link}"))));
                }
                tar::EntryType::Regular | tar::EntryType::Continuous => {
                    let size = entry.size();
                    self.file(&mut files, name, &mut entry, size)?;
                }
                tar::EntryType::GNUSparse => {
                    return Err(invalid(format!("read {name:?}: unexpected sparse file")));
                }
                _ => {}
            }
            std::io::copy(&mut entry, &mut std::io::sink()).map_err(unreadable)?;
        }
        Ok(files)
    }

    fn file(
        &self,
        files: &mut Files,
        name: String,
        entry: &mut impl Read,
        declared: u64,
    ) -> Result<()> {
        match name.as_str() {
            LAYOUT => {
                #[derive(serde::Deserialize)]
                struct Layout {
                    #[serde(rename = "imageLayoutVersion")]
                    version: String,
                }
                let layout: Layout =
                    json(entry).with_context(|| format!("untar oci layout {name:?}"))?;
                files.layout = Some(layout.version);
            }
            MANIFEST => {
                let images = json(entry).with_context(|| format!("untar manifest {name:?}"))?;
                files.images = Some(images);
            }
            _ => {
                let (digest, size) = self
                    .ingest(&format!("tar-{name}"), entry, Labels::new())
                    .with_context(|| format!("failed to ingest {name:?}"))?;
                // The tar crate takes the end of its source for the end of a file.
                if size != declared {
                    return Err(invalid(format!("read {name:?}: unexpected EOF")));
                }
                files.blobs.insert(name, described(&digest, size, ""));
            }
        }
        Ok(())
    }

    // Writes a stream of unknown digest as a blob. The source is read outside of the runtime: it may block.
    fn ingest(&self, name: &str, mut source: impl Read, labels: Labels) -> Result<(Digest, u64)> {
        let options = WriterOptions {
            r#ref: name.to_owned(),
            ..WriterOptions::default()
        };
        // Another import may be writing a file of the same name just now.
        let open = open_writer(&**self.content, self.scope, options);
        let mut writer = self.runtime.block_on(open)?;
        if writer.status().offset > 0 {
            self.runtime.block_on(writer.truncate(0))?;
        }
        let mut size = 0;
        loop {
            let mut chunk = Vec::with_capacity(CHUNK);
            let n = source.by_ref().take(CHUNK as u64).read_to_end(&mut chunk)?;
            if n == 0 {
                break;
            }
            size += n as u64;
            self.runtime.block_on(writer.write(Bytes::from(chunk)))?;
        }
        let digest = writer.digest();
        match self
            .runtime
            .block_on(writer.commit(size, Some(digest.clone()), labels))
        {
            Err(e) if e.kind() != Kind::AlreadyExists => Err(e),
            _ => Ok((digest, size)),
        }
    }

    fn put_json(&self, document: &impl serde::Serialize, media_type: &str) -> Result<Desc> {
        let data = serde_json::to_vec(document)
            .map_err(|e| Error::internal(format!("encode {media_type}: {e}")))?;
        let desc = described(&Digest::sha256(&data), data.len() as u64, media_type);
        let name = format!("manifest-{}", desc.digest);
        let (proto, data) = (desc.proto(), Bytes::from(data));
        let write = write_blob(
            &**self.content,
            self.scope,
            &name,
            &proto,
            data,
            Labels::new(),
        );
        self.runtime
            .block_on(write)
            .context("write docker manifest")?;
        Ok(desc)
    }

    fn docker_image(
        &self,
        image: &DockerImage,
        blobs: &HashMap<String, Desc>,
    ) -> Result<Vec<Desc>> {
        let mut config = blobs
            .get(&clean(&image.config))
            .cloned()
            .ok_or_else(|| invalid(format!("image config {:?} not found", image.config)))?;
        config.media_type = DOCKER_CONFIG.into();
        let platform = self.platform(&config)?;
        let mut layers = Vec::new();
        for name in &image.layers {
            let layer = blobs.get(&clean(name)).ok_or_else(|| {
                invalid(format!(
                    "failed to resolve layers: layer {name:?} not found"
                ))
            })?;
            layers.push(self.layer(layer).context("failed to resolve layers")?);
        }
        let manifest = Manifest {
            schema_version: 2,
            media_type: DOCKER_MANIFEST.into(),
            config,
            layers,
        };
        let mut desc = self.put_json(&manifest, DOCKER_MANIFEST)?;
        desc.platform = Some(platform);
        if image.repo_tags.is_empty() {
            return Ok(vec![desc]);
        }
        image
            .repo_tags
            .iter()
            .map(|tag| {
                let name = normalize(tag)?;
                let mut named = desc.clone();
                named.annotations = BTreeMap::from([
                    (REF_NAME.to_owned(), oci_name(&name)),
                    (IMAGE_NAME.to_owned(), name),
                ]);
                Ok(named)
            })
            .collect()
    }

    fn platform(&self, config: &Desc) -> Result<crate::platform::Platform> {
        let digest = config.checked_digest()?;
        let read = read_blob(&**self.content, &self.scope.namespace, &digest, MAX_CONFIG);
        let data = self.runtime.block_on(read)?;
        Ok(ImageConfig::parse(&data)
            .context("unable to resolve platform")?
            .platform
            .normal())
    }

    // The blob for a layer file: a compressed form of it that is there already, or itself.
    fn layer(&self, file: &Desc) -> Result<Desc> {
        let filter = format!("labels.\"{UNCOMPRESSED}\"=={}", file.digest);
        let known = Filter::parse(&[filter])?;
        let found = self
            .runtime
            .block_on(self.content.list(&self.scope.namespace, &known))?;
        for info in found {
            if !self.lease(file, &info)? {
                continue;
            }
            let media_type = match self.compression(&info.digest)? {
                Compression::None => DOCKER_LAYER,
                _ => DOCKER_LAYER_GZIP,
            };
            return Ok(described(&info.digest, info.size, media_type));
        }
        let mut layer = file.clone();
        let digest = file.checked_digest()?;
        if self.compression(&digest)? != Compression::None {
            layer.media_type = DOCKER_LAYER_GZIP.into();
            return Ok(layer);
        }
        layer.media_type = DOCKER_LAYER.into();
        if !self.compress {
            return Ok(layer);
        }
        let reader = self
            .runtime
            .block_on(self.content.reader_at(&self.scope.namespace, &digest))?;
        let mut gzip =
            flate2::read::GzEncoder::new(Reader::new(reader), flate2::Compression::default());
        let name = format!("compress-blob-{}-{}", digest.algorithm(), digest.hex());
        let labels = Labels::from([(UNCOMPRESSED.to_owned(), digest.to_string())]);
        let (digest, size) = self.ingest(&name, &mut gzip, labels)?;
        Ok(described(&digest, size, DOCKER_LAYER_GZIP))
    }

    // Adds a blob that another image brought to the lease of this import; false when it is gone meanwhile.
    fn lease(&self, file: &Desc, info: &Info) -> Result<bool> {
        let options = WriterOptions {
            r#ref: format!("reuse-{}-for-{}", info.digest, file.digest),
            total: info.size,
            expected: Some(info.digest.clone()),
            ..WriterOptions::default()
        };
        // A blob that is there cannot be written again: that it is leased by the attempt is what is wanted.
        match self
            .runtime
            .block_on(open_writer(&**self.content, self.scope, options))
        {
            Err(e) if e.kind() == Kind::AlreadyExists => Ok(true),
            Err(e) => Err(e.context("lease the layer that is there")),
            Ok(writer) => {
                let name = writer.status().r#ref.clone();
                drop(writer);
                self.runtime
                    .block_on(self.content.abort(self.scope, &name))?;
                Ok(false)
            }
        }
    }

    fn compression(&self, digest: &Digest) -> Result<Compression> {
        let reader = self
            .runtime
            .block_on(self.content.reader_at(&self.scope.namespace, digest))?;
        let mut head = [0; 8];
        let n = reader.read_at(&mut head, 0)?;
        Ok(Compression::of(&head[..n]))
    }
}

fn described(digest: &Digest, size: u64, media_type: &str) -> Desc {
    Desc {
        media_type: media_type.into(),
        digest: digest.to_string(),
        size: i64::try_from(size).unwrap_or(i64::MAX),
        ..Desc::default()
    }
}

fn invalid(why: impl std::fmt::Display) -> Error {
    Error::new(Kind::InvalidArgument, why.to_string())
}

fn json<T: serde::de::DeserializeOwned>(source: &mut impl Read) -> Result<T> {
    let mut data = Vec::new();
    source.take(MAX_JSON + 1).read_to_end(&mut data)?;
    if data.len() as u64 > MAX_JSON {
        return Err(Error::new(
            Kind::ResourceExhausted,
            format!("larger than {MAX_JSON} bytes"),
        ));
    }
    serde_json::from_slice(&data).map_err(|e| invalid(e.to_string()))
}

// The shortest form of a relative path; `..` never leads above the start.
fn clean(path: &str) -> String {
    let mut out: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                out.pop();
            }
            part => out.push(part),
        }
    }
    out.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        assert_eq!(clean("./a//b/../c"), "a/c");
        assert_eq!(clean("/../../etc/x"), "etc/x");
    }

    #[test]
    fn documents_are_bounded() {
        let mut endless = std::io::repeat(b' ');
        let e = json::<u32>(&mut endless).unwrap_err();
        assert_eq!(e.kind(), Kind::ResourceExhausted);
    }
}
