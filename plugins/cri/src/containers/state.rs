//! The status of a container: changed in one place, on disk before anybody hears of it.
//!
//! ```text
//!            StartContainer              exit
//! CREATED ------------------> RUNNING ----------> EXITED
//!    |  \_ fails: StartError ___________________/   ^
//!    |                            UNKNOWN ----------/   (stopped, or found ended)
//!    +-- nothing readable at start, or a clean-up nobody confirmed: UNKNOWN
//! ```
//! The state follows from the times, as in containerd's file `status`, which either daemon reads of the other.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use corten_core::{Context, Error, Result, Timestamp};
use corten_protos::runtime::v1::ContainerState;
use corten_protos::time;
use serde::{Deserialize, Serialize};

use crate::store::Container;
use crate::store::container::Status;

/// Reasons of an end.
pub(super) const COMPLETED: &str = "Completed";
pub(super) const ERROR: &str = "Error";
pub(super) const OOM_KILLED: &str = "OOMKilled";
pub(super) const START_ERROR: &str = "StartError";
pub(super) const UNKNOWN: &str = "Unknown";
/// Exit code of a container whose end nobody saw.
pub(super) const UNKNOWN_CODE: i32 = 255;
/// Exit code of a container that could not be started.
pub(super) const START_ERROR_CODE: i32 = 128;

/// The file in a container's folder.
const FILE: &str = "status";

#[derive(Serialize, Deserialize)]
struct Versioned<S> {
    #[serde(rename = "Version")]
    version: String,
    #[serde(flatten)]
    status: S,
}

/// Nanoseconds since 1970.
pub(super) fn nanos(at: SystemTime) -> i64 {
    time::unix_nanos(&Timestamp::from(at))
}

/// The CRI's name of a state, as it is put into errors.
pub(super) fn name(state: ContainerState) -> &'static str {
    state.as_str_name()
}

/// Writes the file, whole or not at all. Blocks.
///
/// # Errors
/// The file system's.
pub(super) fn save(dir: &Path, status: &Status) -> Result<()> {
    let path = dir.join(FILE);
    let what = || format!("failed to checkpoint status to {}", path.display());
    let text = serde_json::to_vec(&Versioned {
        version: "v1".into(),
        status,
    })
    .map_err(|e| Error::internal("encode status").with_source(e))?;
    let fresh = dir.join(".status.new");
    let write = || {
        use std::io::Write;
        let mut file = std::fs::OpenOptions::new();
        std::os::unix::fs::OpenOptionsExt::mode(&mut file, 0o600);
        let mut file = file.write(true).create(true).truncate(true).open(&fresh)?;
        file.write_all(&text)?;
        file.sync_all()?;
        std::fs::rename(&fresh, &path)
    };
    write().with_context(what)
}

/// Reads the file. Blocks.
///
/// # Errors
/// The file system's; InvalidArgument for what is no status.
pub(super) fn load(dir: &Path) -> Result<Status> {
    let path = dir.join(FILE);
    let what = || format!("read status of {}", path.display());
    let text = std::fs::read(&path).with_context(what)?;
    let read: Versioned<Status> = serde_json::from_slice(&text)
        .map_err(|e| Error::invalid(e.to_string()))
        .with_context(what)?;
    if read.version != "v1" {
        return Err(Error::invalid("unsupported version").context(what()));
    }
    Ok(read.status)
}

async fn write(dir: PathBuf, status: Status) -> Result<()> {
    corten_sys::blocking(move || save(&dir, &status)).await
}

/// The right to change a container's status.
#[derive(Debug)]
pub(super) struct Change<'a> {
    container: &'a Container,
    _turn: tokio::sync::MutexGuard<'a, ()>,
}

/// Waits for the right. Cancel-safe.
pub(super) async fn lock(container: &Container) -> Change<'_> {
    Change {
        container,
        _turn: container.changing.lock().await,
    }
}

/// Changes what is not on disk, if `change` allows.
///
/// # Errors
/// Those of `change`.
pub(super) async fn mark(
    container: &Container,
    change: impl FnOnce(&mut Status) -> Result<()>,
) -> Result<()> {
    let _turn = lock(container).await;
    change(&mut container.status.write())
}

/// Changes the status, on disk first.
///
/// # Errors
/// The file system's; nothing has changed then.
pub(super) async fn change(container: &Container, change: impl FnOnce(&mut Status)) -> Result<()> {
    lock(container).await.apply(change).await
}

/// Changes the status of a container that has ended, which is so whether the disk takes it or not.
pub(super) async fn end(container: &Container, change: impl FnOnce(&mut Status)) {
    let _turn = lock(container).await;
    let mut status = container.status.read().clone();
    change(&mut status);
    if let Err(error) = write(container.dir.clone(), status.clone()).await {
        tracing::warn!(container.id = %container.id, %error, "checkpoint the end of a container");
    }
    put(container, status);
}

/// The marks of [`Working`] are not part of a change: they may be lifted while the disk works.
fn put(container: &Container, status: Status) {
    let mut current = container.status.write();
    *current = Status {
        starting: current.starting,
        removing: current.removing,
        ..status
    };
}

impl Change<'_> {
    /// Makes one change, on disk first.
    ///
    /// # Errors
    /// The file system's; nothing has changed then.
    pub(super) async fn apply(&self, change: impl FnOnce(&mut Status)) -> Result<()> {
        let mut status = self.container.status.read().clone();
        change(&mut status);
        write(self.container.dir.clone(), status.clone()).await?;
        put(self.container, status);
        Ok(())
    }
}

/// Begins work that nothing else may overlap with; dropping it ends the work.
#[derive(Debug)]
pub(super) struct Working {
    container: Arc<Container>,
    work: Work,
}

/// The sorts of such work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    Starting,
    Removing,
}

impl Working {
    /// # Errors
    /// Unknown class, as containerd's: the container is in another state, or something else is under way.
    pub(super) async fn begin(container: &Arc<Container>, work: Work) -> Result<Self> {
        mark(container, |status| {
            refuse(status, work)?;
            *flag(status, work) = true;
            Ok(())
        })
        .await?;
        Ok(Self {
            container: container.clone(),
            work,
        })
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        *flag(&mut self.container.status.write(), self.work) = false;
    }
}

fn flag(status: &mut Status, work: Work) -> &mut bool {
    match work {
        Work::Starting => &mut status.starting,
        Work::Removing => &mut status.removing,
    }
}

fn refuse(status: &Status, work: Work) -> Result<()> {
    let state = status.state();
    let why = match work {
        Work::Starting if state != ContainerState::ContainerCreated => {
            format!("container is in {} state", name(state))
        }
        Work::Starting if status.removing => {
            "container is in removing state, can't be started".to_owned()
        }
        Work::Starting if status.starting => "container is already in starting state".to_owned(),
        Work::Removing if state == ContainerState::ContainerRunning => {
            "container is still running, to stop first".to_owned()
        }
        Work::Removing if state == ContainerState::ContainerUnknown => {
            "container state is unknown, to stop first".to_owned()
        }
        Work::Removing if status.starting => {
            "container is in starting state, can't be removed".to_owned()
        }
        Work::Removing if status.removing => "container is already in removing state".to_owned(),
        Work::Starting | Work::Removing => return Ok(()),
    };
    Err(Error::new(corten_core::Kind::Unknown, why))
}

#[cfg(test)]
mod tests {
    use corten_protos::runtime::v1::{ContainerResources, LinuxContainerResources};

    use super::*;

    fn status() -> Status {
        Status {
            pid: 7,
            created_at: 1,
            started_at: 2,
            resources: Some(ContainerResources {
                linux: Some(LinuxContainerResources {
                    cpu_shares: 512,
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn the_file_is_containerds() {
        let dir = tempfile::tempdir().unwrap();
        assert!(load(dir.path()).is_err());
        save(dir.path(), &status()).unwrap();
        assert_eq!(load(dir.path()).unwrap(), status());
        let text = std::fs::read_to_string(dir.path().join("status")).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"Version": "v1", "Pid": 7, "CreatedAt": 1, "StartedAt": 2, "FinishedAt": 0,
                "ExitCode": 0, "Reason": "", "Message": "", "Resources": {"linux": {"cpu_shares": 512}}})
        );
        let stock = r#"{"Version":"v1","Pid":0,"CreatedAt":1,"StartedAt":2,"FinishedAt":3,"ExitCode":-1,
            "Reason":"","Message":"","Resources":null}"#;
        std::fs::write(dir.path().join("status"), stock).unwrap();
        let read = load(dir.path()).unwrap();
        assert_eq!((read.exit_code, read.finished_at), (-1, 3));
        for broken in ["", "{}", r#"{"Version":"v2"}"#, "[1]"] {
            std::fs::write(dir.path().join("status"), broken).unwrap();
            assert!(load(dir.path()).is_err(), "{broken}");
        }
    }

    #[test]
    fn work_does_not_overlap() {
        let created = Status {
            created_at: 1,
            ..Status::default()
        };
        let exited = Status {
            finished_at: 3,
            ..status()
        };
        let check = |status: &Status, work, fine: bool| {
            assert_eq!(refuse(status, work).is_ok(), fine, "{status:?} {work:?}");
        };
        check(&created, Work::Starting, true);
        check(&created, Work::Removing, true);
        check(&status(), Work::Starting, false);
        check(&status(), Work::Removing, false);
        check(&exited, Work::Starting, false);
        check(&exited, Work::Removing, true);
        let mut busy = created.clone();
        busy.starting = true;
        check(&busy, Work::Starting, false);
        check(&busy, Work::Removing, false);
        busy.starting = false;
        busy.removing = true;
        check(&busy, Work::Starting, false);
        check(&busy, Work::Removing, false);
        let unknown = Status {
            unknown: true,
            ..exited
        };
        check(&unknown, Work::Removing, false);
    }
}
