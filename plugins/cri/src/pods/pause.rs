//! io.containerd.podsandbox.controller.v1 "podsandbox": pods that a pause container keeps, a task of any shim.
//!
//! ```text
//!  create          start                          stop, or it is killed           shutdown
//! --------> (new) -------> Ready (task runs) ------------------------> NotReady ---------> (nothing)
//! ```
//! [`files`] are what its containers have in common; [`start`] makes the container, [`found`] finds it again after a
//! restart, [`metrics`] reads the pod's cgroup. The controller is registered before the CRI plugin and works through
//! it, so it does nothing until that is up.

pub mod files;
pub mod found;
pub mod metrics;
pub mod start;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use corten_core::runtime::Task;
use corten_core::sandbox::{Controller, CreateOptions, Exit, Instance, NOT_READY, READY, Status};
use corten_core::{Context, Error, Kind, Namespace, Result, Timestamp};
use corten_protos::containerd::types::{Metric, Platform, Sandbox, sandbox};
use corten_protos::time;
use parking_lot::{Mutex, RwLock};
use serde_json::{Value, json};
use tokio::sync::watch;
use tracing::{info, warn};

use super::{record, request};
use crate::Cri;
use crate::store::pod::{Metadata, State};

/// The image where none is configured.
pub const IMAGE: &str = "registry.k8s.io/pause:3.10.2";

const KILL: u32 = 9;
/// Exit status of what ended unseen.
const UNKNOWN: u32 = 255;
/// Pauses before a task that could not be deleted is deleted again.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// The controller.
#[derive(Debug, Default)]
pub struct Pause {
    cri: OnceLock<Weak<Cri>>,
    pods: Mutex<HashMap<String, Arc<Entry>>>,
}

/// A pod of the controller's.
#[derive(Debug)]
pub struct Entry {
    id: String,
    metadata: RwLock<Metadata>,
    runtime: sandbox::Runtime,
    phase: watch::Sender<Phase>,
    /// One deletion of its task at a time.
    deleting: tokio::sync::Mutex<()>,
    /// Something of a failed start could not be taken back.
    left: AtomicBool,
}

/// How far a pod is.
#[derive(Debug, Clone, Default)]
pub struct Phase {
    pub state: State,
    pub pid: u32,
    pub created_at: Option<Timestamp>,
    /// Exit status and when.
    pub exit: Option<(u32, SystemTime)>,
    /// There is a container record.
    pub container: bool,
}

// === impl Pause ===

impl Pause {
    /// What it works through; the first counts.
    pub fn bind(&self, cri: &Arc<Cri>) {
        let _ = self.cri.set(Arc::downgrade(cri));
    }

    fn cri(&self) -> Result<Arc<Cri>> {
        let cri = self.cri.get().and_then(Weak::upgrade);
        cri.ok_or_else(|| Error::new(Kind::Unavailable, "the CRI plugin is not up"))
    }

    fn find(&self, id: &str) -> Result<Arc<Entry>> {
        let found = self.pods.lock().get(id).cloned();
        found.ok_or_else(|| {
            Error::new(
                Kind::NotFound,
                format!("unable to find sandbox {id:?}: not found"),
            )
        })
    }

    fn keep(&self, entry: &Arc<Entry>) {
        self.pods.lock().insert(entry.id.clone(), entry.clone());
    }
}

// === impl Entry ===

impl Entry {
    fn new(metadata: Metadata, runtime: sandbox::Runtime, phase: Phase) -> Arc<Self> {
        Arc::new(Self {
            id: metadata.id.clone(),
            metadata: RwLock::new(metadata),
            runtime,
            phase: watch::Sender::new(phase),
            deleting: tokio::sync::Mutex::default(),
            left: AtomicBool::new(false),
        })
    }

    fn phase(&self) -> Phase {
        self.phase.borrow().clone()
    }

    fn is_left(&self) -> bool {
        self.left.load(Ordering::Acquire)
    }

    /// Leaves the rest to a later shutdown when `undone` is an error.
    fn or_leave(&self, undone: Result<()>) -> Result<()> {
        if undone.is_err() {
            self.left.store(true, Ordering::Release);
        }
        undone
    }

    fn ended(&self, status: u32, at: SystemTime) {
        self.phase.send_if_modified(|phase| {
            if phase.exit.is_some() {
                return false;
            }
            phase.state = State::NotReady;
            phase.pid = 0;
            phase.exit = Some((status, at));
            true
        });
    }

    /// Waits for its end. Cancel-safe.
    async fn exit(&self) -> Result<(u32, SystemTime)> {
        let mut phase = self.phase.subscribe();
        let ended = phase.wait_for(|p| p.exit.is_some()).await;
        let exit = ended.ok().and_then(|p| p.exit);
        exit.ok_or_else(|| Error::new(Kind::Unavailable, "the controller is going away"))
    }

    /// Kills the task, if there is one, and deletes it with its shim. Fine when there is none.
    async fn delete_task(&self, cri: &Cri) -> Result<()> {
        let _one = self.deleting.lock().await;
        if let Ok(task) = cri.tasks.get(&cri.ns, &self.id).await {
            kill(task.as_ref()).await?;
        }
        match cri.tasks.delete(&cri.ns, &self.id).await {
            Ok(exit) => {
                self.ended(exit.status, exit.at);
                Ok(())
            }
            Err(e) if e.kind() == Kind::NotFound => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Follows its task to its end and deletes it, again and again if need be.
    fn watch(self: &Arc<Self>, cri: &Arc<Cri>, task: Arc<dyn Task>) {
        let (entry, cri) = (self.clone(), cri.clone());
        cri.background.clone().spawn("pause exit", async move {
            let (status, at) = match task.wait("").await {
                Ok(exit) => (exit.status, exit.at),
                Err(error) => {
                    info!(sandbox.id = %entry.id, %error, "a pause container ended unseen");
                    (UNKNOWN, SystemTime::now())
                }
            };
            drop(task);
            let mut pause = FIRST_PAUSE;
            while let Err(error) = entry.delete_task(&cri).await {
                warn!(sandbox.id = %entry.id, %error, "delete the task of a pause container that ended");
                entry.ended(status, at);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            entry.ended(status, at);
        });
    }

    fn info(&self, container: Option<&Value>) -> Value {
        let (metadata, phase) = (self.metadata.read(), self.phase());
        let mut info = json!({
            "pid": phase.pid,
            "processStatus": if phase.pid == 0 { "deleted" } else { "running" },
            "runtimeType": self.runtime.name,
            "config": metadata.config,
        });
        if let (Some(info), Some(Value::Object(more))) = (info.as_object_mut(), container) {
            info.extend(more.clone());
        }
        info
    }
}

/// Ends a process and waits until it has ended.
async fn kill(task: &dyn Task) -> Result<()> {
    match task.kill("", KILL, false).await {
        // It has ended, or never began.
        Err(e) if matches!(e.kind(), Kind::NotFound | Kind::FailedPrecondition) => {}
        other => other.context("failed to kill pod sandbox container")?,
    }
    match task.wait("").await {
        Err(e) if e.kind() != Kind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[async_trait]
impl Controller for Pause {
    async fn create(&self, _: &Namespace, sandbox: Sandbox, _: CreateOptions) -> Result<()> {
        let id = &sandbox.sandbox_id;
        let metadata = record::metadata(&sandbox)
            .with_context(|| format!("failed to get sandbox {id:?} metadata"))?
            .ok_or_else(|| Error::not_found(format!("metadata of sandbox {id:?}")))?;
        let runtime = sandbox.runtime.unwrap_or_default();
        let entry = Entry::new(metadata, runtime, Phase::default());
        let mut pods = self.pods.lock();
        if pods.contains_key(&entry.id) {
            return Err(Error::already_exists(format!("sandbox {id}")));
        }
        pods.insert(entry.id.clone(), entry);
        Ok(())
    }

    async fn start(&self, _: &Namespace, id: &str) -> Result<Instance> {
        let (cri, entry) = (self.cri()?, self.find(id)?);
        let started = start::start(&cri, &entry).await;
        if started.is_err() && !entry.is_left() {
            self.pods.lock().remove(id);
        }
        started
    }

    async fn platform(&self, _: &Namespace, _: &str) -> Result<Platform> {
        let host = corten_registry::Platform::host();
        Ok(Platform {
            os: host.os,
            architecture: host.architecture,
            variant: host.variant,
            ..Platform::default()
        })
    }

    async fn stop(&self, _: &Namespace, id: &str, _: Duration) -> Result<()> {
        let (cri, entry) = (self.cri()?, self.find(id)?);
        let phase = entry.phase();
        if !phase.container {
            return Ok(());
        }
        if phase.state != State::NotReady {
            if let Ok(task) = cri.tasks.get(&cri.ns, id).await {
                kill(task.as_ref())
                    .await
                    .with_context(|| format!("failed to stop sandbox container {id:?}"))?;
            }
            if phase.state == State::Unknown {
                // Nobody follows it.
                entry.delete_task(&cri).await?;
                entry.ended(UNKNOWN, SystemTime::now());
            }
            entry.exit().await?;
        }
        let shm = files::shm(&cri.state, id);
        corten_sys::blocking(move || files::unmount(&shm))
            .await
            .context("failed to cleanup sandbox files")
    }

    async fn wait(&self, _: &Namespace, id: &str) -> Result<Exit> {
        let (status, at) = self.find(id)?.exit().await?;
        Ok(Exit {
            exit_status: status,
            exited_at: Some(at.into()),
        })
    }

    async fn status(&self, _: &Namespace, id: &str, verbose: bool) -> Result<Status> {
        let entry = self.find(id)?;
        let phase = entry.phase();
        let mut status = Status {
            sandbox_id: id.to_owned(),
            pid: phase.pid,
            state: match phase.state {
                State::Ready => READY,
                State::NotReady => NOT_READY,
                State::Unknown => "SANDBOX_UNKNOWN",
            }
            .to_owned(),
            created_at: phase.created_at,
            exited_at: Some(phase.exit.map_or(time::GO_ZERO, |(_, at)| at.into())),
            ..Status::default()
        };
        if verbose {
            let container = found::shown(&*self.cri()?, id).await;
            let info = entry.info(container.as_ref()).to_string();
            status.info.insert("info".into(), info);
        }
        Ok(status)
    }

    async fn shutdown(&self, _: &Namespace, id: &str) -> Result<()> {
        let cri = self.cri()?;
        let Ok(entry) = self.find(id) else {
            return Ok(());
        };
        files::remove(&cri, id).await?;
        entry
            .delete_task(&cri)
            .await
            .with_context(|| format!("failed to delete sandbox task {id:?}"))?;
        entry.ended(UNKNOWN, SystemTime::now());
        start::delete_container(&cri, id)
            .await
            .with_context(|| format!("failed to delete sandbox container {id:?}"))?;
        let label = entry.metadata.read().process_label.clone();
        cri.specs.release(&label);
        self.pods.lock().remove(id);
        Ok(())
    }

    async fn metrics(&self, _: &Namespace, id: &str) -> Result<Option<Metric>> {
        let entry = self.find(id)?;
        let parent = request::cgroup_parent(&entry.metadata.read().config).to_owned();
        if parent.is_empty() {
            return Err(Error::new(
                Kind::Unknown,
                format!("sandbox {id:?} has no cgroup parent"),
            ));
        }
        let data = corten_sys::blocking(move || metrics::read(&parent)).await?;
        Ok(Some(Metric {
            timestamp: Some(time::now()),
            id: id.to_owned(),
            data: Some(data),
        }))
    }

    /// The kubelet writes the pod's cgroup, and the pause container needs nothing.
    async fn update(&self, _: &Namespace, _: &str, _: Sandbox, _: Vec<String>) -> Result<()> {
        Ok(())
    }
}
