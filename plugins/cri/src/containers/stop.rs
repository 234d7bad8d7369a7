//! StopContainer: the container's signal, its time, then SIGKILL.
//!
//! Only a container that runs, or of which nobody knows, is stopped; for others it is done already. The signal is sent
//! once, however many ask; all wait for the same end.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use corten_core::runtime::Task;
use corten_core::{Context, Kind, Result};
use corten_protos::runtime::v1::{ContainerState, StopContainerRequest, StopContainerResponse};
use tracing::{info, warn};

use super::exit::Exit;
use super::signal;
use crate::cri::Cri;
use crate::metrics::Timer;
use crate::spec::signals;
use crate::store::Container;

/// How long the end of a container whose task is gone is waited for.
const SETTLE: Duration = Duration::from_secs(10);

impl Cri {
    /// Stops a container; one that is unknown is stopped.
    ///
    /// # Errors
    /// The shim's; InvalidArgument: the stop signal is none.
    pub async fn stop_container(
        self: &Arc<Self>,
        r: StopContainerRequest,
    ) -> Result<StopContainerResponse> {
        let began = Instant::now();
        let container = match self.containers.get(&r.container_id) {
            Ok(container) => container,
            Err(e) if e.kind() == Kind::NotFound => return Ok(StopContainerResponse {}),
            Err(e) => return Err(e),
        };
        let _block = self.block_plugins().await;
        let patience = Duration::from_secs(u64::try_from(r.timeout).unwrap_or(0));
        self.stop(&container, patience).await?;
        self.nri_stop(&container).await;
        self.metrics
            .took(Timer::ContainerStop, &container.runtime, began);
        Ok(StopContainerResponse {})
    }

    /// Stops a container at once; one that is unknown is stopped.
    ///
    /// # Errors
    /// The shim's.
    pub(crate) async fn stop_container_now(self: &Arc<Self>, id: &str) -> Result<()> {
        let r = StopContainerRequest {
            container_id: id.into(),
            timeout: 0,
        };
        self.stop_container(r).await?;
        Ok(())
    }

    /// Stops it, gently within `patience`.
    pub(crate) async fn stop(
        self: &Arc<Self>,
        container: &Arc<Container>,
        patience: Duration,
    ) -> Result<()> {
        let state = container.state();
        if !matches!(
            state,
            ContainerState::ContainerRunning | ContainerState::ContainerUnknown
        ) {
            return Ok(());
        }
        let unknown = state == ContainerState::ContainerUnknown;
        let id = &container.id;
        let task = match self.container_task(id).await {
            Ok(task) => task,
            // Its end is being dealt with.
            Err(e) if e.kind() == Kind::NotFound && !unknown => {
                let _ = tokio::time::timeout(SETTLE, wait_stopped(container)).await;
                return Ok(());
            }
            Err(e) if e.kind() == Kind::NotFound => {
                return self.ended(container, Exit::unknown()).await;
            }
            Err(e) => return Err(e.context(format!("failed to get task for container {id:?}"))),
        };
        if unknown {
            return self.stop_unknown(container, task, patience).await;
        }
        self.end_gently(container, task.as_ref(), patience).await?;
        wait_stopped(container).await;
        Ok(())
    }

    /// Stops what nobody watches.
    async fn stop_unknown(
        self: &Arc<Self>,
        container: &Arc<Container>,
        task: Arc<dyn Task>,
        patience: Duration,
    ) -> Result<()> {
        self.end_gently(container, task.as_ref(), patience).await?;
        let exit = match task.wait("").await {
            Ok(exit) => exit.into(),
            Err(error) => {
                warn!(container.id = %container.id, %error, "wait for an unknown container");
                Exit::unknown()
            }
        };
        self.ended(container, exit).await
    }

    /// Asks the container to end, waits for that, then kills it.
    async fn end_gently(
        &self,
        container: &Container,
        task: &dyn Task,
        patience: Duration,
    ) -> Result<()> {
        let id = &container.id;
        if !patience.is_zero() {
            let signal = self.stop_signal(container);
            if !container.signalled.swap(true, Ordering::AcqRel) {
                info!(container.id = %id, signal, "stop container");
                not_found_is_fine(task.kill("", signal, false).await)
                    .with_context(|| format!("failed to stop container {id:?}"))?;
            }
            let ended = tokio::select! {
                () = wait_stopped(container) => true,
                // For one that nobody watches.
                exit = task.wait(""), if container.state() == ContainerState::ContainerUnknown => exit.is_ok(),
                () = tokio::time::sleep(patience) => false,
            };
            if ended {
                return Ok(());
            }
        }
        info!(container.id = %id, "kill container");
        not_found_is_fine(task.kill("", signal::KILL, false).await)
            .with_context(|| format!("failed to kill container {id:?}"))
    }

    /// What was asked for, else what the image says, else SIGTERM. An image must not get its containers a life that
    /// nobody can end: with containerd, a signal that is none fails every stop.
    fn stop_signal(&self, container: &Container) -> u32 {
        let metadata = container.metadata.read();
        let asked = signals::of_cri(metadata.config.stop_signal).unwrap_or_default();
        let names = [asked.as_str(), &metadata.stop_signal];
        let name = names.into_iter().find(|name| !name.is_empty());
        signal::number(name.unwrap_or(signal::DEFAULT)).unwrap_or_else(|error| {
            warn!(container.id = %container.id, %error, "stop a container with SIGTERM instead");
            signal::TERM
        })
    }
}

/// Ends when the container has ended and everybody was told. Cancel-safe.
pub(super) async fn wait_stopped(container: &Container) {
    let mut stopped = container.stopped.subscribe();
    // The sender lives in `container`.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

fn not_found_is_fine(result: Result<()>) -> Result<()> {
    match result {
        Err(e) if e.kind() == Kind::NotFound => Ok(()),
        other => other,
    }
}
