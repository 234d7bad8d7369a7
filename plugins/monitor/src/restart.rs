//! io.containerd.monitor.container.v1 "restart": keeps containers as their labels want them.
//!
//! Every interval each container with the label `containerd.io/restart.status` is compared with its task:
//!
//! ```text
//! wanted   found                          done
//! running  running, paused                -
//! running  stopped or no task             started again, if its policy says so
//! stopped  anything but stopped, no task  killed and deleted
//! ```
//! The state of a container is its shim's answer and the count of its restarts is a label, so nothing is remembered
//! between two looks, nor across a restart of the daemon. A container that was made within the last interval and has
//! no task yet is left to the client that is making it.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use corten_core::containers::Containers;
use corten_core::filter::Filter;
use corten_core::namespaces::Namespaces;
use corten_core::runtime::{CreateOptions, Stdio, Task, Tasks};
use corten_core::snapshots::Snapshots;
use corten_core::tasks_set::TaskSet;
use corten_core::{Context as _, Error, Kind, Mount, Namespace, Result, Scope, duration, kinds};
use corten_protos::containerd::services::containers::v1::Container;
use corten_protos::containerd::v1::types::Status;
use corten_registry::Registration;
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use tracing::{error, info, warn};

use crate::policy::explicitly_stopped;
use crate::policy::{COUNT, EXPLICITLY_STOPPED, LOG_URI, NAMES, Policy, STATUS, count};

/// Containers that are changed at the same time.
const AT_ONCE: usize = 16;
/// How long a killed task may take to be gone before the next look.
const PATIENCE: Duration = Duration::from_secs(20);
const KILL: u32 = 9;

/// `plugins."io.containerd.monitor.container.v1.restart"`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(default)]
struct Config {
    /// Between two looks.
    #[serde(with = "duration")]
    interval: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(10),
        }
    }
}

#[derive(Clone)]
struct Monitor {
    namespaces: Arc<dyn Namespaces>,
    containers: Arc<dyn Containers>,
    snapshots: Arc<dyn Snapshots>,
    tasks: Arc<dyn Tasks>,
    interval: Duration,
}

/// What is to be done to a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Start,
    Stop,
}

/// What is needed of an OCI spec.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Spec {
    process: Option<Process>,
    linux: Option<Linux>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Process {
    terminal: bool,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Linux {
    mount_label: String,
}

// === impl Monitor ===

impl Monitor {
    async fn run(self) {
        loop {
            self.look().await;
            tokio::time::sleep(self.interval).await;
        }
    }

    /// All containers that have a wish.
    async fn watched(&self) -> Result<Vec<(Namespace, Container)>> {
        let filter = Filter::parse(&[format!("labels.{STATUS:?}")])?;
        let mut all = Vec::new();
        for (name, _) in self.namespaces.list().await? {
            let ns = Namespace::new(name)?;
            let found = self.containers.list(&ns, &filter).await?;
            all.extend(found.into_iter().map(|c| (ns.clone(), c)));
        }
        Ok(all)
    }

    /// Once at the start: containers that always run do so after a reboot, even if they were stopped before it.
    async fn forget_stops(&self) {
        let all = match self.watched().await {
            Ok(all) => all,
            Err(error) => return error!(%error, "list containers to restart"),
        };
        for (ns, container) in all {
            let always = Policy::of(&container.labels) == Ok(Policy::Always);
            if !always || !explicitly_stopped(&container.labels) {
                continue;
            }
            let id = container.id.clone();
            if let Err(error) = self
                .label(&ns, container, EXPLICITLY_STOPPED, "false")
                .await
            {
                error!(container.id = %id, %error, "reset the label of a stopped container");
            }
        }
    }

    async fn label(&self, ns: &Namespace, mut c: Container, key: &str, value: &str) -> Result<()> {
        c.labels.insert(key.to_owned(), value.to_owned());
        let path = format!("labels.{key}");
        let scope = Scope::new(ns.clone());
        self.containers.update(&scope, c, &[path]).await?;
        Ok(())
    }

    async fn look(&self) {
        let all = match self.watched().await {
            Ok(all) => all,
            Err(error) => return error!(%error, "list containers to restart"),
        };
        futures::stream::iter(all)
            .for_each_concurrent(AT_ONCE, |(ns, container)| async move {
                let id = container.id.clone();
                if let Err(error) = self.settle(&ns, container).await {
                    error!(container.id = %id, namespace = %ns, %error, "apply change");
                }
            })
            .await;
    }

    async fn settle(&self, ns: &Namespace, container: Container) -> Result<()> {
        let found = match self.tasks.get(ns, &container.id).await {
            Ok(task) => match task.state("").await {
                Ok(state) => Some((state.status, state.exit_status)),
                Err(e) if e.kind() == Kind::NotFound => None,
                // A shim that does not answer has a container that may well run.
                Err(e) => return Err(e.context("get state")),
            },
            Err(_) => None,
        };
        match change(&container, found, self.interval) {
            None => Ok(()),
            Some(Change::Stop) => self.remove_task(ns, &container.id).await,
            Some(Change::Start) => self.start(ns, container).await,
        }
    }

    async fn start(&self, ns: &Namespace, container: Container) -> Result<()> {
        let restarts = count(&container.labels) + 1;
        self.label(ns, container.clone(), COUNT, &restarts.to_string())
            .await?;
        if let Err(error) = self.remove_task(ns, &container.id).await {
            warn!(container.id = %container.id, %error, "remove the task of a container to restart");
        }
        let id = container.id.clone();
        let options = self.options(ns, container).await?;
        let task = self.tasks.create(ns, &id, options).await?;
        if let Err(e) = task.start("").await {
            let _ = self.remove_task(ns, &id).await;
            return Err(e);
        }
        info!(container.id = %id, namespace = %ns, restarts, "container restarted");
        Ok(())
    }

    async fn options(&self, ns: &Namespace, container: Container) -> Result<CreateOptions> {
        let json = container.spec.as_ref().map(|s| s.value.as_slice());
        let spec: Spec = serde_json::from_slice(json.unwrap_or(b"{}"))
            .map_err(|e| Error::invalid(format!("decode spec: {e}")))?;
        let mut rootfs = Vec::new();
        if !container.snapshot_key.is_empty() {
            let key = &container.snapshot_key;
            let mounts = self.snapshots.mounts(ns, &container.snapshotter, key).await;
            rootfs = mounts.with_context(|| format!("mounts of snapshot {key}"))?;
            labelled(&mut rootfs, &spec);
        }
        let uri = container.labels.get(LOG_URI).cloned().unwrap_or_default();
        let runtime = container.runtime.unwrap_or_default();
        Ok(CreateOptions {
            spec: container.spec,
            rootfs,
            stdio: Stdio {
                stdin: String::new(),
                terminal: !uri.is_empty() && spec.process.is_some_and(|p| p.terminal),
                stdout: uri.clone(),
                stderr: uri,
            },
            runtime: runtime.name,
            runtime_options: runtime.options,
            sandbox_id: container.sandbox,
            ..Default::default()
        })
    }

    /// Kills and deletes a task, if there is one.
    async fn remove_task(&self, ns: &Namespace, id: &str) -> Result<()> {
        let Ok(task) = self.tasks.get(ns, id).await else {
            return Ok(());
        };
        let removed = async {
            kill(&task).await;
            self.tasks.delete(ns, id).await.map(drop)
        };
        match tokio::time::timeout(PATIENCE, removed).await {
            Ok(removed) => removed,
            Err(_) => Err(Error::new(
                Kind::DeadlineExceeded,
                format!("remove task {id}: {}", Kind::DeadlineExceeded.words()),
            )),
        }
    }
}

/// Kills all of a task and waits for its end. Whatever fails, the delete that follows tells.
async fn kill(task: &Arc<dyn Task>) {
    if task.kill("", KILL, true).await.is_ok() {
        let _ = task.wait("").await;
    }
}

/// What the labels of a container ask for, given the state and exit status of its task.
fn change(container: &Container, found: Option<(Status, u32)>, young: Duration) -> Option<Change> {
    let labels = &container.labels;
    match (labels.get(STATUS)?.as_str(), found) {
        ("stopped", Some((Status::Stopped, _)) | None) => None,
        ("stopped", Some(_)) => Some(Change::Stop),
        ("running", Some((Status::Running | Status::Paused | Status::Pausing, _))) => None,
        ("running", None) if is_younger(container, young) => None,
        ("running", found) => {
            let policy = Policy::of(labels)
                .inspect_err(|error| error!(container.id = %container.id, error, "restart policy"))
                .ok()?;
            let exit_status = found.map_or(0, |(_, exit)| exit);
            policy
                .restarts(exit_status, labels)
                .then_some(Change::Start)
        }
        _ => None,
    }
}

fn is_younger(container: &Container, age: Duration) -> bool {
    let made = container
        .created_at
        .and_then(|t| SystemTime::try_from(t).ok());
    made.and_then(|made| made.elapsed().ok())
        .is_some_and(|passed| passed < age)
}

/// Adds the SELinux label that the spec wants for the root file system.
fn labelled(mounts: &mut [Mount], spec: &Spec) {
    let label = spec.linux.as_ref().map_or("", |l| l.mount_label.as_str());
    if !label.is_empty() {
        for m in mounts {
            m.options.push(format!("context={label:?}"));
        }
    }
}

/// What the daemon holds of the monitor: it stops with it.
struct Running {
    _background: TaskSet,
}

/// The plugin.
pub fn registration() -> Registration {
    Registration::new::<kinds::ContainerMonitor>("restart")
        .requires::<kinds::Metadata>()
        .requires::<kinds::Runtime>()
        .config::<Config>()
        .init(|cx, config: Config| {
            Box::pin(async move {
                for name in NAMES {
                    cx.capability(name);
                }
                let metadata = cx.single::<kinds::Metadata>()?;
                let interval = match config.interval {
                    Duration::ZERO => Config::default().interval,
                    interval => interval,
                };
                let monitor = Monitor {
                    namespaces: metadata.namespaces(),
                    containers: metadata.containers(),
                    snapshots: metadata.snapshots(),
                    tasks: cx.by_id::<kinds::Runtime>("task")?,
                    interval,
                };
                monitor.forget_stops().await;
                let background = TaskSet::new();
                background.spawn("restart containers", monitor.run());
                let running = Running {
                    _background: background,
                };
                Ok(Arc::new(running) as Arc<dyn Any + Send + Sync>)
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(status: &str, policy: &str, age: u64) -> Container {
        let mut c = Container::default();
        c.labels.insert(STATUS.into(), status.into());
        c.labels
            .insert("containerd.io/restart.policy".into(), policy.into());
        c.created_at = Some((SystemTime::now() - Duration::from_secs(age)).into());
        c
    }

    #[test]
    fn wishes_and_states_give_changes() {
        let check = |wish, policy, found, want| {
            let got = change(&container(wish, policy, 60), found, Duration::from_secs(10));
            assert_eq!(got, want, "{wish} {policy} {found:?}");
        };
        let stopped = |code| Some((Status::Stopped, code));
        check("running", "always", Some((Status::Running, 0)), None);
        check("running", "always", Some((Status::Paused, 0)), None);
        check("running", "always", stopped(0), Some(Change::Start));
        check("running", "always", None, Some(Change::Start));
        check("running", "no", stopped(1), None);
        check("running", "on-failure", stopped(1), Some(Change::Start));
        check("running", "on-failure", stopped(0), None);
        // What it ended with is gone with its task.
        check("running", "on-failure", None, None);
        check("running", "nonsense", stopped(1), None);
        check(
            "stopped",
            "always",
            Some((Status::Running, 0)),
            Some(Change::Stop),
        );
        check("stopped", "always", stopped(0), None);
        check("stopped", "always", None, None);
        check("created", "always", None, None);
    }

    #[test]
    fn a_container_that_is_being_made_is_left_alone() {
        let c = container("running", "always", 2);
        assert_eq!(change(&c, None, Duration::from_secs(10)), None);
        let ended = Some((Status::Stopped, 0));
        assert_eq!(
            change(&c, ended, Duration::from_secs(10)),
            Some(Change::Start)
        );
        assert_eq!(
            change(&c, None, Duration::from_secs(1)),
            Some(Change::Start)
        );
    }
}
