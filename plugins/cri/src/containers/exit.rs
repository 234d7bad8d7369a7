//! The end of a container: waited for from its start, dealt with once, told to everybody.
//!
//! What is told last is that it is over: by then the task is deleted, the log is whole and the status is on disk. A
//! shim that cannot be got rid of is tried again, ever more seldom; until then the container counts as running.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use corten_core::runtime::Task;
use corten_core::{Any, Context, Kind, Result};
use corten_protos::any;
use corten_protos::containerd::events::TaskOom;
use corten_protos::containerd::types::Envelope;
use corten_protos::io::containerd::cgroups::{v1 as cgroup1, v2 as cgroup2};
use corten_protos::runtime::v1::ContainerEventType;
use tracing::{debug, info, warn};

use super::{signal, state};
use crate::cri::Cri;
use crate::store::Container;

/// Exit code of a process that was killed, by the kernel for want of memory or by anybody.
const KILLED: i32 = 137;
/// How long one try may take, and the pauses between tries.
const TRY: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// How long output that others hold open is waited for.
const DRAIN: Duration = Duration::from_secs(10);

/// How a container ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Exit {
    pub(super) code: i32,
    pub(super) at: SystemTime,
}

impl Exit {
    /// An end that nobody saw.
    pub(super) fn unknown() -> Self {
        Self {
            code: state::UNKNOWN_CODE,
            at: SystemTime::now(),
        }
    }
}

impl From<corten_core::runtime::Exit> for Exit {
    fn from(exit: corten_core::runtime::Exit) -> Self {
        Self {
            code: i32::try_from(exit.status).unwrap_or(state::UNKNOWN_CODE),
            at: exit.at,
        }
    }
}

impl Cri {
    /// Waits for the end of a running container in the background.
    pub(super) fn watch(self: &Arc<Self>, container: Arc<Container>, task: Arc<dyn Task>) {
        let this = self.clone();
        self.background.spawn("container exit", async move {
            let exit = match task.wait("").await {
                Ok(exit) => Exit::from(exit),
                Err(error) => {
                    warn!(container.id = %container.id, %error, "wait for a container");
                    Exit::unknown()
                }
            };
            drop(task);
            info!(container.id = %container.id, exit.code = exit.code, "container exited");
            this.end_it(&container, exit).await;
        });
    }

    /// Deals with the end of a container until that is done.
    async fn end_it(self: &Arc<Self>, container: &Arc<Container>, exit: Exit) {
        let mut pause = FIRST_PAUSE;
        loop {
            let ended = tokio::time::timeout(TRY + DRAIN, self.ended(container, exit)).await;
            match ended {
                Ok(Ok(())) => return,
                Ok(Err(error)) => {
                    warn!(container.id = %container.id, %error, "handle the exit of a container");
                }
                Err(_) => {
                    warn!(container.id = %container.id, "handling the exit of a container takes too long");
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Deals with the end of a container: no task of it is left afterwards. May be repeated.
    ///
    /// # Errors
    /// The shim's: the task may still be there.
    pub(super) async fn ended(
        self: &Arc<Self>,
        container: &Arc<Container>,
        exit: Exit,
    ) -> Result<()> {
        let found = match self.container_task(&container.id).await {
            Ok(task) => Some(task),
            Err(e) if matches!(e.kind(), Kind::NotFound | Kind::Unavailable) => None,
            Err(e) => return Err(e.context("failed to load task for container")),
        };
        if let Some(task) = found {
            if self.ended_by_oom(task.as_ref(), exit).await {
                container.oom.store(true, Ordering::Release);
            }
            self.delete_task(&container.id).await?;
        }
        let copier = container.io.write().take();
        if let Some(copier) = copier
            && tokio::time::timeout(DRAIN, copier.ended()).await.is_err()
        {
            warn!(container.id = %container.id, "output is still held open after the exit");
        }
        let oom = container.oom.load(Ordering::Acquire);
        state::end(container, |status| {
            if status.finished_at == 0 {
                status.pid = 0;
                status.finished_at = state::nanos(exit.at);
                status.exit_code = exit.code;
            }
            if oom {
                status.reason = state::OOM_KILLED.into();
            }
            status.unknown = false;
        })
        .await;
        // Whoever waits for the end may remove the container now, but tells of that after this was told.
        let telling = container.telling.lock().await;
        container.stopped.send_replace(true);
        self.nri_exited(container).await;
        let stopped = ContainerEventType::ContainerStoppedEvent;
        self.announce(&container.id, &container.sandbox_id, stopped)
            .await;
        drop(telling);
        Ok(())
    }

    /// Deletes a task that ended, or ends it first; none is fine.
    ///
    /// # Errors
    /// The shim's: it may still be there.
    pub(super) async fn delete_task(&self, id: &str) -> Result<()> {
        let delete = || self.tasks.delete(&self.ns, id);
        let deleted = match delete().await {
            // The wait failed, but the container did not end.
            Err(e) if e.kind() == Kind::FailedPrecondition => {
                if let Ok(task) = self.container_task(id).await {
                    if let Err(error) = task.kill("", signal::KILL, true).await {
                        debug!(container.id = %id, %error, "kill a container");
                    }
                    let _ = tokio::time::timeout(TRY, task.wait("")).await;
                }
                delete().await
            }
            other => other,
        };
        match deleted {
            Err(e) if e.kind() != Kind::NotFound => Err(e).context("failed to stop container"),
            _ => Ok(()),
        }
    }

    /// Whether the kernel killed something in a container that was killed, for want of memory. The event may still be
    /// on its way when the exit is known; the container's own count is not.
    pub(super) async fn ended_by_oom(&self, task: &dyn Task, exit: Exit) -> bool {
        if exit.code != KILLED {
            return false;
        }
        match task.stats().await {
            Ok(Some(stats)) => oom_kills(&stats) > 0,
            Ok(None) => false,
            Err(error) => {
                debug!(container.id = task.id(), %error, "read the statistics of an ended container");
                false
            }
        }
    }

    /// Takes note of an event of the daemon; only TaskOOM is of interest.
    pub(crate) async fn on_event(&self, envelope: &Envelope) {
        if envelope.namespace != self.ns.as_str() || envelope.topic != "/tasks/oom" {
            return;
        }
        let event = envelope.event.as_ref().map(any::unpack::<TaskOom>);
        let Some(Ok(event)) = event else { return };
        let Ok(container) = self.containers.get(&event.container_id) else {
            return;
        };
        container.oom.store(true, Ordering::Release);
        let noted = state::change(&container, |s| s.reason = state::OOM_KILLED.into()).await;
        if let Err(error) = noted {
            warn!(container.id = %container.id, %error, "note an OOM kill");
        }
    }
}

fn oom_kills(stats: &Any) -> u64 {
    if let Ok(v1) = any::unpack::<cgroup1::Metrics>(stats) {
        return v1.memory_oom_control.map_or(0, |m| m.oom_kill);
    }
    if let Ok(v2) = any::unpack::<cgroup2::Metrics>(stats) {
        return v2.memory_events.map_or(0, |m| m.oom_kill);
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_are_counted_on_either_cgroup_version() {
        let v1 = cgroup1::Metrics {
            memory_oom_control: Some(cgroup1::MemoryOomControl {
                oom_kill: 2,
                ..Default::default()
            }),
            ..Default::default()
        };
        let v2 = cgroup2::Metrics {
            memory_events: Some(cgroup2::MemoryEvents {
                oom_kill: 3,
                ..Default::default()
            }),
            ..Default::default()
        };
        assert_eq!(oom_kills(&any::pack(&v1)), 2);
        assert_eq!(oom_kills(&any::pack(&v2)), 3);
        assert_eq!(oom_kills(&Any::default()), 0);
    }
}
