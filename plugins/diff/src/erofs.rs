//! Plugin `io.containerd.differ.v1.erofs`: puts layers into snapshots of the erofs snapshotter as images, without
//! writing their files first.
//!
//! ```text
//! a layer that is an image (application/vnd.erofs.layer…)    copied
//! a tar, mkfs.erofs reads tars                               piped into mkfs.erofs
//! a tar, an older mkfs.erofs                                 applied to a folder aside, of which the image is made
//! ```
//! Snapshots of others are NotImplemented: the next differ's. What has an image already is FailedPrecondition, because
//! no other differ may write there either.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use async_trait::async_trait;
use corten_core::content::Reader;
use corten_core::diff::{ApplyOptions, CompareOptions, Differ};
use corten_core::{Context, Descriptor, Digest, Error, Mount, Result, Scope, kinds, mounts};
use corten_registry::{Registration, skip};
use corten_sys::blocking;
use corten_sys::image::{make_erofs, mkfs_erofs_help, succeeded};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::apply::{self, Target};
use crate::media;
use crate::stream::{Cancelled, Hashed, Layer as _, inflate};
use crate::walking::{Walking, classify};

/// Put into its folders by the erofs snapshotter.
const MARK: &str = ".erofslayer";
const LAYER: &str = "layer.erofs";
const NATIVE: &str = "application/vnd.erofs.layer";

/// The plugin's config table.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// More options for mkfs.erofs.
    pub mkfs_options: Vec<String>,
    /// Only an index of the tar is made, and the tar put behind it.
    pub enable_tar_index: bool,
    /// Not supported.
    pub enable_dmverity: bool,
}

/// The differ. Comparing is the walking differ's.
#[derive(Debug, Clone)]
pub struct Erofs {
    walking: Walking,
    options: Arc<Vec<String>>,
    tar: Tar,
}

/// What becomes of a tar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tar {
    Extract,
    Convert,
    Index,
}

impl Erofs {
    /// A differ beside `walking`; `help` is what mkfs.erofs says of its options.
    ///
    /// # Errors
    /// FailedPrecondition for options that this mkfs.erofs does not know.
    pub fn new(walking: Walking, config: &Config, help: &str) -> Result<Self> {
        let reads_tar = help.contains("--tar=");
        let mut options = config.mkfs_options.clone();
        // Images of 4 KiB blocks can be mounted whatever the size of pages; old ones know no others.
        if reads_tar && !options.iter().any(|o| o.starts_with("-b")) {
            options.insert(0, "-b4096".into());
        }
        let tar = match (reads_tar, config.enable_tar_index) {
            (true, true) => Tar::Index,
            (true, false) => Tar::Convert,
            (false, false) => Tar::Extract,
            (false, true) => {
                return Err(Error::precondition(
                    "enable_tar_index: mkfs.erofs does not support tar mode (--tar option)",
                ));
            }
        };
        Ok(Self {
            walking,
            options: Arc::new(options),
            tar,
        })
    }
}

/// The folder of the snapshot that `mounts` are of.
fn layer_of(mounts: &[Mount]) -> Result<PathBuf> {
    let foreign = || Error::not_implemented("mount layer type must be erofs-layer");
    let parent = |path: &str| Path::new(path).parent().map(Path::to_owned);
    let (Some(first), Some(last)) = (mounts.first(), mounts.last()) else {
        return Err(foreign());
    };
    let option = |key: &str| last.options.iter().find_map(|o| o.strip_prefix(key));
    let layer = match last.r#type.rsplit('/').next() {
        _ if first.r#type.starts_with("mkfs/") => parent(&first.source),
        Some("bind" | "erofs") => parent(&last.source),
        Some("overlay") => match (option("upperdir="), option("lowerdir=")) {
            (Some(upper), _) => parent(upper),
            (None, Some(_)) => parent(&first.source),
            (None, None) => None,
        },
        _ => None,
    };
    layer
        .filter(|dir| dir.join(MARK).is_file())
        .ok_or_else(foreign)
}

/// A native layer's type without compression, and whether it is compressed.
fn native(media_type: &str) -> Result<Option<(String, bool)>> {
    if !media_type.starts_with(NATIVE) {
        return Ok(None);
    }
    match media_type.split_once('+') {
        None => Ok(Some((media_type.to_owned(), false))),
        Some((base, "zstd")) => Ok(Some((base.to_owned(), true))),
        Some((_, other)) => Err(Error::not_implemented(format!(
            "unsupported erofs layer suffix: {other}"
        ))),
    }
}

#[async_trait]
impl Differ for Erofs {
    async fn apply(
        &self,
        scope: &Scope,
        descriptor: &Descriptor,
        mounts: &[Mount],
        options: ApplyOptions,
    ) -> Result<Descriptor> {
        if mounts.last().is_some_and(mounts::is_read_only) {
            return Err(Error::precondition(
                "cannot apply to a read-only snapshot, its content is already populated",
            ));
        }
        let native = native(&descriptor.media_type)?;
        let steps = self.walking.processors().clone();
        if native.is_none() {
            steps.chain(&descriptor.media_type)?;
        }
        let dir = layer_of(mounts)?;
        let digest = Digest::parse(&descriptor.digest)?;
        let blob = self
            .walking
            .content()
            .reader_at(&scope.namespace, &digest)
            .await
            .context("failed to get reader from content store")?;
        let cancelled = Cancelled::default();
        let _guard = cancelled.guard();
        let this = self.clone();
        let media_type = descriptor.media_type.clone();
        let (kind, diff_id, size) = blocking(move || {
            let blob = Reader::new(blob);
            let at = dir.join(LAYER);
            if let Some((kind, compressed)) = native {
                let (diff_id, size) = copy(blob, compressed, &at, cancelled)?;
                return Ok((kind, diff_id, size));
            }
            let (steps, _) = steps.chain(&media_type)?;
            let (stream, running) = crate::processors::run(&steps, blob, &options.payloads)?;
            let stream = inflate(stream).context("open layer")?;
            let stream = Hashed::new(stream, cancelled);
            let made = this.make(&dir, &digest, stream);
            let (diff_id, size) = running.finish_after(made)?;
            if options.sync_fs {
                apply::sync(&dir).context("sync file system")?;
            }
            Ok((media::LAYER.to_owned(), diff_id, size))
        })
        .await?;
        Ok(Descriptor {
            media_type: kind,
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
        layer_of(upper).context("unsupported layer for erofsDiff Compare method")?;
        self.walking.compare(scope, lower, upper, options).await
    }
}

/// Copies an image that was the layer.
fn copy(
    blob: impl Read + Send,
    compressed: bool,
    at: &Path,
    cancelled: Cancelled,
) -> Result<(Digest, u64)> {
    let stream: Box<dyn Read + '_> = if compressed {
        inflate(blob).context("open layer")?
    } else {
        Box::new(blob)
    };
    let unfinished = at.with_extension("new");
    let write = || {
        let mut stream = Hashed::new(stream, cancelled);
        io::copy(&mut stream, &mut File::create(&unfinished)?)?;
        fs::rename(&unfinished, at)?;
        stream.finish()
    };
    write().map_err(|e| {
        // Absent when it could not be created.
        let _ = fs::remove_file(&unfinished);
        classify(e, "copy layer")
    })
}

impl Erofs {
    fn make<R: Read>(
        &self,
        dir: &Path,
        digest: &Digest,
        stream: Hashed<R>,
    ) -> Result<(Digest, u64)> {
        match self.tar {
            Tar::Extract => self.extract(dir, digest, stream),
            Tar::Convert => self.pipe(dir, digest, stream, None),
            Tar::Index => {
                let whole = dir.join("layer.tar");
                let tar = File::create_new(&whole).context("create tar beside its index")?;
                // Only the open file is needed.
                fs::remove_file(&whole).context("unlink tar")?;
                self.pipe(dir, digest, stream, Some(tar))
            }
        }
    }

    fn extract<R: Read>(
        &self,
        dir: &Path,
        digest: &Digest,
        stream: Hashed<R>,
    ) -> Result<(Digest, u64)> {
        let aside = dir.join("unpack");
        fs::create_dir(&aside).context("make folder to unpack")?;
        let target = Target {
            root: aside.clone(),
            overlay: Some(Vec::new()),
        };
        let done = inherit(&dir.join("fs"), &aside)
            .and_then(|()| {
                let rest = apply::apply(&target, stream)?;
                // Everything after the archive's end belongs to the digest too.
                rest.finish()
            })
            .map_err(|e| classify(e, "apply layer"))
            .and_then(|done| {
                let mut options = self.options.to_vec();
                options.push(format!("-U{}", uuid(digest)));
                make_erofs(&aside, &dir.join(LAYER), &options)?;
                Ok(done)
            });
        corten_sys::tree::remove(&aside).context("remove unpacked layer")?;
        done.context("failed to convert tar to erofs")
    }

    /// With `tar`: mkfs.erofs makes the index only, and the tar is put behind it.
    fn pipe<R: Read>(
        &self,
        dir: &Path,
        digest: &Digest,
        mut stream: Hashed<R>,
        mut tar: Option<File>,
    ) -> Result<(Digest, u64)> {
        let (at, unfinished) = (dir.join(LAYER), dir.join("layer.new"));
        let mut command = Command::new("mkfs.erofs");
        if tar.is_some() {
            command.args(["--tar=i", "--aufs", "--quiet"]);
        } else {
            command.args(["--tar=f", "--aufs", "--quiet", "-Enoinline_data"]);
        }
        command
            .args(self.options.iter())
            .arg(format!("-U{}", uuid(digest)))
            .arg(&unfinished)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().context("run mkfs.erofs")?;
        let fed = match child.stdin.take() {
            Some(stdin) => feed(&mut stream, stdin, tar.as_mut()),
            None => Ok(()),
        };
        let out = child.wait_with_output().context("wait for mkfs.erofs")?;
        let finish = || {
            fed.map_err(|e| classify(e, "read layer"))?;
            succeeded("mkfs.erofs", &out)?;
            if let Some(mut tar) = tar {
                io::Seek::rewind(&mut tar)?;
                let mut image = File::options().append(true).open(&unfinished)?;
                io::copy(&mut tar, &mut image).context("append tar to its index")?;
            }
            fs::rename(&unfinished, &at)?;
            stream.finish().map_err(|e| classify(e, "read layer"))
        };
        finish().map_err(|e: Error| {
            // Absent when mkfs did not come to make it.
            let _ = fs::remove_file(&unfinished);
            e.context("failed to convert tar to erofs")
        })
    }
}

/// All of the stream: mkfs.erofs may not read what follows the archive's end, but the index is of the whole tar.
fn feed(stream: &mut impl Read, mut to: impl Write, mut tar: Option<&mut File>) -> io::Result<()> {
    let mut buffer = vec![0; 128 << 10];
    let mut heard = true;
    loop {
        let n = stream.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        if let Some(tar) = &mut tar {
            tar.write_all(&buffer[..n])?;
        }
        if heard {
            match to.write_all(&buffer[..n]) {
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => heard = false,
                done => done?,
            }
        }
    }
}

/// The root of the image is what the snapshot's root is.
fn inherit(from: &Path, to: &Path) -> io::Result<()> {
    let found = fs::metadata(from)?;
    std::os::unix::fs::lchown(to, Some(found.uid()), Some(found.gid()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(found.mode() & 0o7777))
}

/// The same for the same layer, so that its image is.
fn uuid(digest: &Digest) -> String {
    let hash = Sha256::digest(format!("erofs:blobs/{digest}"));
    let mut b = [0; 16];
    b.copy_from_slice(&hash[..16]);
    // Version 8: by a way of our own.
    (b[6], b[8]) = (b[6] & 0x0f | 0x80, b[8] & 0x3f | 0x80);
    let hex: String = b.iter().map(|b| format!("{b:02x}")).collect();
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}

/// The plugin: skipped where mkfs.erofs is missing.
pub fn registration() -> Registration {
    Registration::new::<kinds::Differ>("erofs")
        .requires::<kinds::Metadata>()
        .requires::<kinds::MountManager>()
        .config::<Config>()
        .init(|cx, config: Config| {
            Box::pin(async move {
                cx.host_platform();
                let help = match blocking(mkfs_erofs_help).await {
                    Ok(help) => help,
                    Err(e) => {
                        return Err(skip(format!(
                            "failed to check mkfs.erofs availability: {e}"
                        )));
                    }
                };
                if config.enable_dmverity {
                    return Err(skip("dm-verity is not supported"));
                }
                let walking = Walking::of(cx)?;
                Ok(Arc::new(Erofs::new(walking, &config, &help)?) as Arc<dyn Differ>)
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_found_by_their_mark() {
        let dir = tempfile::tempdir().unwrap();
        let marked = dir.path().join("7");
        fs::create_dir(&marked).unwrap();
        fs::write(marked.join(MARK), "").unwrap();
        let at = |name: &str| marked.join(name).display().to_string();
        let mount = |kind: &str, source: &str, options: &[&str]| Mount {
            r#type: kind.into(),
            source: source.into(),
            options: options.iter().map(|o| (*o).to_owned()).collect(),
            ..Default::default()
        };
        let upper = format!("upperdir={}", at("fs"));
        for good in [
            vec![mount("bind", &at("fs"), &[])],
            vec![mount("overlay", "overlay", &[&upper])],
            vec![
                mount("erofs", "/x/1/layer.erofs", &[]),
                mount(
                    "format/mkdir/overlay",
                    "overlay",
                    &[&upper, "lowerdir={{ mount 0 }}"],
                ),
            ],
            vec![
                mount("mkfs/ext4", &at("rwlayer.img"), &[]),
                mount("format/mkdir/bind", "{{ mount 0 }}/upper", &[]),
            ],
        ] {
            assert_eq!(layer_of(&good).unwrap(), marked, "{good:?}");
        }
        for foreign in [
            vec![],
            vec![mount("bind", "/etc/fs", &[])],
            vec![mount("tmpfs", &at("fs"), &[])],
            vec![mount("overlay", "overlay", &["upperdir=/other/fs"])],
        ] {
            let e = layer_of(&foreign).unwrap_err();
            assert_eq!(e.kind(), corten_core::Kind::NotImplemented, "{foreign:?}");
        }
        let (_, compressed) = native("application/vnd.erofs.layer.v1+zstd")
            .unwrap()
            .unwrap();
        assert!(compressed);
        assert!(native("application/vnd.erofs.layer.v1+gzip").is_err());
        assert!(native(media::LAYER).unwrap().is_none());
    }
}
