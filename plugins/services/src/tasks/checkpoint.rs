//! Checkpoints of tasks in the content store: a folder of images as one blob, and back.
//!
//! The blob is a tar of plain files. What comes out of the store may be anybody's: only plain files, each with a plain
//! name, are taken from it, into a new folder that nobody else can enter. The folder lives until the task has started.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::{Component, Path};
use std::sync::Arc;

use bytes::Bytes;
use corten_core::content::{Content, Reader, WriterOptions, open_writer, write_blob};
use corten_core::{Any, Context, Descriptor, Digest, Error, Kind, Namespace, Result, Scope};
use corten_sys::blocking;
use parking_lot::Mutex;
use prost::Message;
use tempfile::TempDir;
use tokio::sync::mpsc;

/// A tar of CRIU's images.
pub(super) const IMAGES: &str = "application/vnd.containerd.container.criu.checkpoint.criu.tar";
/// The container's spec, as the Any it is stored as.
const CONFIG: &str = "application/vnd.containerd.container.checkpoint.config.v1+proto";
/// Says that the images are in a folder already; containerd's CRI used it.
const FROM_PATH: &str = "RestoreFromPath";

/// Bytes of one piece on its way into the store, and how many may wait.
const PIECE: usize = 1 << 20;
const WAITING: usize = 4;

/// Folders of checkpoints whose tasks have not started yet. A daemon that ends meanwhile leaves them behind.
#[derive(Debug, Clone, Default)]
pub(super) struct Unpacked(Arc<Mutex<BTreeMap<(Namespace, String), TempDir>>>);

// === impl Unpacked ===

impl Unpacked {
    /// The path that a descriptor of a Create request stands for, unpacked if need be.
    pub(super) async fn open(
        &self,
        content: &dyn Content,
        ns: &Namespace,
        id: &str,
        from: &Descriptor,
    ) -> Result<String> {
        if let Some(path) = from.annotations.get(FROM_PATH) {
            return Ok(path.clone());
        }
        if from.media_type != IMAGES {
            let text = format!("unsupported checkpoint type {:?}", from.media_type);
            return Err(Error::new(Kind::Unknown, text));
        }
        let blob = content.reader_at(ns, &Digest::parse(&from.digest)?).await?;
        let folder = blocking(move || {
            let folder = folder()?;
            unpack(Reader::new(blob), folder.path()).context("unpack the checkpoint")?;
            Ok(folder)
        })
        .await?;
        let path = folder.path().to_string_lossy().into_owned();
        self.0.lock().insert((ns.clone(), id.to_owned()), folder);
        Ok(path)
    }

    /// The task has started, or never will.
    pub(super) async fn close(&self, ns: &Namespace, id: &str) {
        let folder = self.0.lock().remove(&(ns.clone(), id.to_owned()));
        if let Some(folder) = folder
            && let Err(error) = blocking(move || Ok(folder.close()?)).await
        {
            tracing::warn!(container.id = id, %error, "remove an unpacked checkpoint");
        }
    }
}

/// A new folder for images; gone when dropped.
pub(super) fn folder() -> Result<TempDir> {
    let place = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| Path::new(dir).is_absolute());
    let place = place.map_or_else(std::env::temp_dir, Into::into);
    tempfile::Builder::new()
        .prefix("ctrd-checkpoint")
        .tempdir_in(place)
        .context("make a folder for a checkpoint")
}

/// Writes images and spec of a container into the store.
pub(super) async fn save(
    content: &dyn Content,
    scope: &Scope,
    folder: &Path,
    spec: Option<&Any>,
) -> Result<Vec<Descriptor>> {
    let images = save_folder(content, scope, folder).await?;
    let spec = spec.map(Message::encode_to_vec).unwrap_or_default();
    let config = Descriptor {
        media_type: CONFIG.to_owned(),
        digest: Digest::sha256(&spec).to_string(),
        size: i64::try_from(spec.len()).unwrap_or(i64::MAX),
        annotations: BTreeMap::new(),
    };
    let name = folder.join("spec").to_string_lossy().into_owned();
    write_blob(content, scope, &name, &config, spec.into(), BTreeMap::new())
        .await
        .context("write the spec of a checkpoint")?;
    Ok(vec![images, config])
}

async fn save_folder(content: &dyn Content, scope: &Scope, folder: &Path) -> Result<Descriptor> {
    let options = WriterOptions {
        r#ref: folder.to_string_lossy().into_owned(),
        media_type: IMAGES.to_owned(),
        ..WriterOptions::default()
    };
    let mut writer = open_writer(content, scope, options).await?;
    let (pieces, mut arriving) = mpsc::channel(WAITING);
    let folder = folder.to_owned();
    let packing = blocking(move || {
        let mut pieces = io::BufWriter::with_capacity(PIECE, Pieces(pieces));
        pack(&folder, &mut pieces).context("pack the checkpoint")?;
        pieces.flush().context("pack the checkpoint")
    });
    let storing = async move {
        let mut size = 0_u64;
        // Who packs hears of an error by the end of whoever listens.
        while let Some(piece) = arriving.recv().await {
            let piece: Bytes = piece;
            size += piece.len() as u64;
            writer.write(piece).await?;
        }
        Ok::<_, Error>((writer, size))
    };
    let (packed, stored) = tokio::join!(packing, storing);
    // An error of the store is why packing failed, not the other way round.
    let (mut writer, size) = stored?;
    packed?;
    let digest = writer.digest();
    match writer
        .commit(size, Some(digest.clone()), BTreeMap::new())
        .await
    {
        Err(e) if e.kind() != Kind::AlreadyExists => return Err(e),
        _ => {}
    }
    Ok(Descriptor {
        media_type: IMAGES.to_owned(),
        digest: digest.to_string(),
        size: i64::try_from(size).unwrap_or(i64::MAX),
        annotations: BTreeMap::new(),
    })
}

/// The writing end of a blob that is stored by somebody else.
struct Pieces(mpsc::Sender<Bytes>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Bytes::copy_from_slice(bytes));
        sent.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Every plain file of a folder, in the order of their names.
fn pack(folder: &Path, into: &mut impl Write) -> io::Result<()> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            names.push(entry.file_name());
        }
    }
    names.sort();
    let mut tar = tar::Builder::new(into);
    tar.follow_symlinks(false);
    for name in names {
        tar.append_path_with_name(folder.join(&name), &name)?;
    }
    tar.into_inner().map(drop)
}

fn unpack(from: impl Read, into: &Path) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut tar = tar::Archive::new(from);
    for entry in tar.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let refuse = |what: &str| {
            let text = format!("{what} {:?} in a checkpoint", path.display().to_string());
            io::Error::new(io::ErrorKind::InvalidData, text)
        };
        let mut parts = path.components().filter(|c| *c != Component::CurDir);
        let name = match (parts.next(), parts.next()) {
            // The folder itself.
            (None, _) if entry.header().entry_type().is_dir() => continue,
            (Some(Component::Normal(name)), None) => name,
            _ => return Err(refuse("the name")),
        };
        if !entry.header().entry_type().is_file() {
            return Err(refuse("no plain file:"));
        }
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(into.join(name))?;
        io::copy(&mut entry, &mut file)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_comes_back() {
        let lab = tempfile::tempdir().unwrap();
        let (from, to) = (lab.path().join("from"), lab.path().join("to"));
        for dir in [&from, &to] {
            std::fs::create_dir(dir).unwrap();
        }
        std::fs::write(from.join("b.img"), vec![7; 3 << 20]).unwrap();
        std::fs::write(from.join("a.img"), "a").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", from.join("parent")).unwrap();
        let mut tar = Vec::new();
        pack(&from, &mut tar).unwrap();
        unpack(tar.as_slice(), &to).unwrap();
        assert_eq!(std::fs::read(to.join("b.img")).unwrap(), vec![7; 3 << 20]);
        assert_eq!(std::fs::read(to.join("a.img")).unwrap(), b"a");
        assert_eq!(std::fs::read_dir(&to).unwrap().count(), 2);
        // Nothing there is written over.
        assert!(unpack(tar.as_slice(), &to).is_err());
    }

    #[test]
    fn only_plain_files_with_plain_names_come_out() {
        let entry = |kind: tar::EntryType, name: &[u8], link: &str| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(0);
            let place = &mut header.as_old_mut().name;
            place.get_mut(..name.len()).unwrap().copy_from_slice(name);
            if !link.is_empty() {
                header.set_link_name(link).unwrap();
            }
            header.set_cksum();
            let mut tar = tar::Builder::new(Vec::new());
            tar.append(&header, io::empty()).unwrap();
            tar.into_inner().unwrap()
        };
        let lab = tempfile::tempdir().unwrap();
        let into = |tar: Vec<u8>| unpack(tar.as_slice(), lab.path());
        use tar::EntryType;
        for name in ["../x", "/x", "a/b", "a/../x"] {
            assert!(
                into(entry(EntryType::Regular, name.as_bytes(), "")).is_err(),
                "{name}"
            );
        }
        assert!(into(entry(EntryType::Symlink, b"x", "/etc/passwd")).is_err());
        assert!(into(entry(EntryType::Link, b"x", "y")).is_err());
        assert!(into(entry(EntryType::Fifo, b"x", "")).is_err());
        into(entry(EntryType::Directory, b"./", "")).unwrap();
        into(entry(EntryType::Regular, b"x", "")).unwrap();
        assert!(lab.path().join("x").is_file());
    }
}
