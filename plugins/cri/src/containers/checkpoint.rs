//! CheckpointContainer: the state of a running container in one archive, for the forensic checkpointing of Kubernetes.
//!
//! The container stands still meanwhile, and goes on whatever becomes of it. The archive is containerd's and CRI-O's,
//! which checkpointctl reads:
//!
//! | name | content |
//! |---|---|
//! | `checkpoint/` | CRIU's images |
//! | `rootfs-diff.tar` | what the container changed of its image, a gzipped layer |
//! | `config.dump`, `spec.dump`, `status.dump` | who it is, its OCI document, its status in the CRI |
//! | `status`, `container.log` | what is kept of it here, its log so far |
//! | `dump.log`, `stats-dump` | CRIU's own words |

use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use corten_core::content::Reader;
use corten_core::diff::CompareOptions;
use corten_core::{Context, Digest, Error, Kind, Labels, Result, Scope};
use corten_protos::containerd::runc::v1::CheckpointOptions;
use corten_protos::containerd::services::containers::v1::Container as Record;
use corten_protos::runtime::v1::{
    CheckpointContainerRequest, CheckpointContainerResponse, ContainerState, ContainerStatus,
    ContainerStatusRequest,
};
use corten_protos::{any, time};
use rustix::fs::{Mode, OFlags};
use serde_json::{Value, json};

use super::remove::remove_folder;
use super::{record, state};
use crate::cri::Cri;
use crate::metrics::Timer;
use crate::store::Container;

/// Where it is prepared, in the container's folder.
const FOLDER: &str = "ctrd-checkpoint";
/// CRIU's images, in that.
const IMAGES: &str = "checkpoint";

impl Cri {
    /// # Errors
    /// Of no class: switched off, no CRIU, the container does not run. Those of the shim, and of the file system.
    pub async fn checkpoint_container(
        self: &Arc<Self>,
        r: CheckpointContainerRequest,
    ) -> Result<CheckpointContainerResponse> {
        let began = Instant::now();
        let refuse = |why: &str| {
            let why = format!("failed to checkpoint container {:?}: {why}", r.container_id);
            Error::new(Kind::Unknown, why)
        };
        if !self.runtime.enable_criu {
            return Err(refuse("criu support is disabled by configuration"));
        }
        if find_criu().is_none() {
            return Err(refuse("criu binary not found in shim path or system PATH"));
        }
        let container = self.containers.get(&r.container_id)?;
        let now = container.state();
        let running = ContainerState::ContainerRunning;
        if now != running {
            return Err(refuse(&format!(
                "container {:?} is in {} state. only {} containers can be checkpointed",
                container.id,
                state::name(now),
                state::name(running)
            )));
        }
        if !Path::new(&r.location).is_absolute() {
            return Err(Error::invalid(format!("location {:?}", r.location)));
        }
        let status = ContainerStatusRequest {
            container_id: container.id.clone(),
            verbose: false,
        };
        let status = self.container_status(status).await?.status;
        let folder = container.dir.join(FOLDER);
        remove_folder(folder.clone(), "an earlier checkpoint").await?;
        let made = self
            .checkpoint_in(&container, &folder, status.unwrap_or_default(), &r.location)
            .await;
        let removed = remove_folder(folder, "what a checkpoint was made in").await;
        let runtime = made?;
        removed?;
        self.metrics
            .took(Timer::ContainerCheckpoint, &runtime, began);
        Ok(CheckpointContainerResponse {})
    }

    /// The name of the runtime that did it.
    async fn checkpoint_in(
        self: &Arc<Self>,
        container: &Arc<Container>,
        folder: &Path,
        status: ContainerStatus,
        location: &str,
    ) -> Result<String> {
        let record = self.record(&container.id).await?;
        let spec = record::parse(&record)?;
        make_folder(folder)?;
        make_folder(&folder.join(IMAGES))?;
        let runtime = record.runtime.clone().unwrap_or_default().name;
        // Spawned: a client that goes away must not leave the container frozen.
        let (this, its, place, work) = (
            self.clone(),
            container.clone(),
            folder.to_owned(),
            record.clone(),
        );
        let saved = tokio::spawn(async move { this.save_frozen(&its, &work, &place).await });
        saved
            .await
            .unwrap_or_else(|_| Err(Error::internal("the checkpoint was given up")))
            .with_context(|| format!("checkpointing container {:?} failed", container.id))?;
        let image = status.image.as_ref().map_or("", |i| i.image.as_str());
        let config = json!({
            "id": container.id,
            "name": container.metadata.read().name,
            "rootfsImage": image,
            "rootfsImageRef": status.image_ref,
            "rootfsImageName": image,
            "runtime": runtime,
            "createdTime": record.created_at.map_or_else(String::new, |at| time::rfc3339(&at)),
            "checkpointedTime": time::rfc3339(&time::now()),
            "restoredTime": time::rfc3339(&time::GO_ZERO),
            "restored": false,
        });
        let log = PathBuf::from(&status.log_path);
        let status = serde_json::to_value(&status)
            .map_err(|e| Error::internal("failed to marshal container status").with_source(e))?;
        let (folder, checkpointed, location) = (
            folder.to_owned(),
            container.dir.join("status"),
            location.to_owned(),
        );
        corten_sys::blocking(move || {
            for (name, value) in [
                ("config.dump", &config),
                ("spec.dump", &spec),
                ("status.dump", &status),
            ] {
                write(&folder.join(name), value)?;
            }
            copy(&checkpointed, &folder.join("status"))?;
            if log.is_file() {
                copy(&log, &folder.join("container.log"))?;
            }
            archive(&folder, Path::new(&location))
        })
        .await?;
        Ok(runtime)
    }

    /// Images and changes of one moment.
    async fn save_frozen(
        &self,
        container: &Container,
        record: &Record,
        folder: &Path,
    ) -> Result<()> {
        let task = self.container_task(&container.id).await?;
        let options = CheckpointOptions {
            exit: false,
            work_path: folder.to_string_lossy().into_owned(),
            ..CheckpointOptions::default()
        };
        task.pause().await.context("pause")?;
        let images = folder.join(IMAGES);
        let saved = async {
            task.checkpoint(&images.to_string_lossy(), Some(any::pack(&options)))
                .await?;
            self.save_changes(record, folder).await
        }
        .await;
        let resumed = task.resume().await.context("resume");
        saved.and(resumed)
    }

    /// Writes what a container changed of its image to a file.
    async fn save_changes(&self, record: &Record, folder: &Path) -> Result<()> {
        let name = format!("checkpoint-{}", uuid::Uuid::new_v4().simple());
        let leases = self.metadata.leases();
        leases
            .create(&self.ns, &name, Labels::new())
            .await
            .context("create a lease")?;
        let scope = self.scope().with_lease(&name);
        let saved = self.save_changes_as(&scope, &name, record, folder).await;
        // The blob was for the archive alone.
        let released = leases.delete(&self.ns, &name, false).await;
        saved.context("save the changes of the root file system")?;
        released.context("delete the lease of a checkpoint")
    }

    async fn save_changes_as(
        &self,
        scope: &Scope,
        name: &str,
        record: &Record,
        folder: &Path,
    ) -> Result<()> {
        let snapshots = self.metadata.snapshots();
        let (snapshotter, key) = (&record.snapshotter, &record.snapshot_key);
        let parent = snapshots.stat(&self.ns, snapshotter, key).await?.parent;
        let upper = snapshots.mounts(&self.ns, snapshotter, key).await?;
        let lower = snapshots
            .view(scope, snapshotter, name, &parent, Labels::new())
            .await?;
        let options = CompareOptions {
            r#ref: name.to_owned(),
            ..CompareOptions::default()
        };
        let compared = self.differ.compare(scope, &lower, &upper, options).await;
        let removed = snapshots.remove(scope, snapshotter, name).await;
        let blob = Digest::parse(&compared?.digest)?;
        removed?;
        let blob = self.metadata.content().reader_at(&self.ns, &blob).await?;
        let path = folder.join("rootfs-diff.tar");
        corten_sys::blocking(move || {
            let copied = std::io::copy(&mut Reader::new(blob), &mut private(&path)?);
            copied
                .map(drop)
                .with_context(|| format!("write {}", path.display()))
        })
        .await
    }
}

/// The program that does the work, for whatever runtime.
fn find_criu() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join("criu"))
        .find(|file| file.is_file())
}

fn make_folder(path: &Path) -> Result<()> {
    std::fs::DirBuilder::new()
        .mode(0o700)
        .create(path)
        .with_context(|| format!("make {}", path.display()))
}

fn write(path: &Path, value: &Value) -> Result<()> {
    let mut file = private(path)?;
    serde_json::to_writer(&mut file, value)
        .map_err(std::io::Error::from)
        .with_context(|| format!("write {}", path.display()))
}

fn private(path: &Path) -> Result<std::fs::File> {
    std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("make {}", path.display()))
}

/// Copies a file that is what it seems: neither is a link.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let what = || format!("copy {}", from.display());
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let source = rustix::fs::open(from, flags, Mode::empty())
        .map_err(std::io::Error::from)
        .with_context(what)?;
    let mut source = std::fs::File::from(source);
    if !source.metadata().with_context(what)?.is_file() {
        return Err(Error::invalid("not a regular file").context(what()));
    }
    std::io::copy(&mut source, &mut private(to)?).with_context(what)?;
    Ok(())
}

/// Packs a folder into a tar file.
fn archive(folder: &Path, location: &Path) -> Result<()> {
    let what = || format!("write checkpoint archive {}", location.display());
    let file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(location)
        .with_context(what)?;
    let mut tar = tar::Builder::new(file);
    tar.follow_symlinks(false);
    let packed = tar
        .append_dir_all(".", folder)
        .and_then(|()| tar.into_inner())
        .and_then(|file| file.sync_all());
    packed.with_context(what).inspect_err(|_| {
        // Half of an archive is of no use; the first error is the one worth telling.
        let _ = std::fs::remove_file(location);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_holds_what_the_folder_holds() {
        let lab = tempfile::tempdir().unwrap();
        let folder = lab.path().join("folder");
        make_folder(&folder).unwrap();
        make_folder(&folder.join("checkpoint")).unwrap();
        write(&folder.join("config.dump"), &json!({"id": "x"})).unwrap();
        std::fs::write(folder.join("checkpoint/core-1.img"), "image").unwrap();
        let secret = lab.path().join("secret");
        std::fs::write(&secret, "secret").unwrap();
        std::os::unix::fs::symlink(&secret, lab.path().join("link")).unwrap();
        assert!(copy(&lab.path().join("link"), &folder.join("container.log")).is_err());
        let location = lab.path().join("out.tar");
        archive(&folder, &location).unwrap();
        let mut tar = tar::Archive::new(std::fs::File::open(&location).unwrap());
        let mut names: Vec<_> = tar
            .entries()
            .unwrap()
            .map(|e| e.unwrap().path().unwrap().display().to_string())
            .filter(|name| !matches!(name.as_str(), "." | "./" | "checkpoint"))
            .collect();
        names.sort();
        assert_eq!(names, ["checkpoint/core-1.img", "config.dump"]);
        assert!(archive(&folder, &lab.path().join("none/x.tar")).is_err());
    }
}
