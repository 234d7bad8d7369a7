//! How pods end: whoever ended them, they are not ready from then on.

use std::sync::Arc;
use std::time::SystemTime;

use corten_protos::runtime::v1::ContainerEventType;
use tracing::{info, warn};

use super::controller;
use crate::Cri;
use crate::store::pod::{Pod, State};

/// Exit status of what ended unseen.
const UNKNOWN: u32 = 255;

/// Follows a pod to its end.
pub fn watch(cri: &Arc<Cri>, pod: &Arc<Pod>) {
    let (cri, pod) = (cri.clone(), pod.clone());
    cri.background.clone().spawn("pod exit", async move {
        let keeper = match controller(&cri, &pod.sandboxer) {
            Ok(keeper) => keeper,
            Err(error) => {
                warn!(sandbox.id = %pod.id, %error, "follow a pod");
                return;
            }
        };
        let (status, at) = match keeper.wait(&cri.ns, &pod.id).await {
            Ok(exit) => (
                exit.exit_status,
                exit.exited_at
                    .and_then(|at| SystemTime::try_from(at).ok())
                    .unwrap_or_else(SystemTime::now),
            ),
            Err(error) => {
                info!(sandbox.id = %pod.id, %error, "a pod ended unseen");
                (UNKNOWN, SystemTime::now())
            }
        };
        ended(&cri, &pod, status, at).await;
    });
}

/// Notes that a pod has ended, once.
pub async fn ended(cri: &Arc<Cri>, pod: &Pod, exit_status: u32, at: SystemTime) {
    {
        let mut status = pod.status.write();
        let before = std::mem::replace(&mut status.state, State::NotReady);
        if before == State::NotReady {
            return;
        }
        status.pid = 0;
        status.exit_status = exit_status;
        status.exited_at = Some(at);
    }
    pod.stopped.send_replace(true);
    let stopped = ContainerEventType::ContainerStoppedEvent;
    cri.announce(&pod.id, &pod.id, stopped).await;
}

/// The same for a pod that nobody follows, or whose end nobody can see.
pub async fn ended_unseen(cri: &Arc<Cri>, pod: &Pod) {
    ended(cri, pod, UNKNOWN, SystemTime::now()).await;
}
