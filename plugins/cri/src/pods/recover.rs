//! What a new daemon finds: pods from their records, their state from who keeps them.
//!
//! All at once, each within a bound: a shim that does not answer holds up nobody. A pod whose namespace is gone (a
//! reboot) or whose RunPodSandbox did not end is not ready, whatever still runs of it; the kubelet removes it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use corten_core::filter::Filter;
use corten_core::sandbox::{self, READY};
use corten_core::{Context, Error, Kind, Result};
use corten_protos::containerd::services::containers::v1::Container;
use corten_protos::containerd::types::Sandbox;
use corten_protos::time;
use corten_sys::blocking;
use futures::StreamExt;
use tracing::{info, warn};

use super::pause::files;
use super::pause::start::{KIND, SANDBOX};
use super::{controller, monitor, network, record};
use crate::Cri;
use crate::config::PODSANDBOX;
use crate::store::pod::{Pod, State};

/// Pods looked at at the same time.
const AT_ONCE: usize = 32;
/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Takes over all pods.
///
/// # Errors
/// Of the store. What is wrong with one pod is logged.
pub async fn recover(cri: &Arc<Cri>) -> Result<()> {
    let of_pods = Filter::parse(&[format!("labels.{KIND:?}=={SANDBOX}")])?;
    let containers = cri.metadata.containers();
    let pauses = containers
        .list(&cri.ns, &of_pods)
        .await
        .context("failed to list sandbox containers")?;
    let records = cri.metadata.sandboxes();
    let records = records
        .list(&cri.ns, &Filter::all())
        .await
        .context("failed to list sandboxes from API")?;
    let mut known: HashSet<String> = pauses.iter().map(|c| c.id.clone()).collect();
    known.extend(records.iter().map(|r| r.sandbox_id.clone()));
    let paused = futures::stream::iter(pauses).map(|container| async move {
        let found = tokio::time::timeout(PATIENCE, from_container(cri, &container)).await;
        settle(&container.id, found);
    });
    paused.buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
    let recorded = futures::stream::iter(records).map(|record| async move {
        let found = tokio::time::timeout(PATIENCE * 2, from_record(cri, &record)).await;
        settle(&record.sandbox_id, found);
    });
    recorded
        .buffer_unordered(AT_ONCE)
        .collect::<Vec<()>>()
        .await;
    sweep(cri, known).await?;
    network::pay_debts(cri).await;
    network::collect_garbage(cri).await;
    info!(pods = cri.pods.list().len(), "pods recovered");
    Ok(())
}

fn settle(id: &str, found: Result<Result<()>, tokio::time::error::Elapsed>) {
    match found {
        Ok(Ok(())) => {}
        Ok(Err(error)) => warn!(sandbox.id = id, %error, "failed to load sandbox"),
        Err(_) => warn!(sandbox.id = id, "loading a sandbox took too long"),
    }
}

async fn from_container(cri: &Arc<Cri>, container: &Container) -> Result<()> {
    let (mut metadata, phase) = cri.pause.take_over(cri, container).await?;
    let record = cri.metadata.sandboxes().get(&cri.ns, &container.id).await;
    let updated = match &record {
        Ok(record) => {
            // Newer than what the container was made with.
            if let Ok(Some(stored)) = record::metadata(record) {
                metadata = stored;
            }
            record::updated(record)
        }
        Err(_) => record::Updated::default(),
    };
    let runtime = container.runtime.clone().unwrap_or_default().name;
    let pod = Arc::new(Pod::new(metadata, PODSANDBOX.to_owned(), runtime));
    {
        let mut status = pod.status.write();
        status.state = phase.state;
        status.pid = phase.pid;
        status.created_at = phase.created_at.as_ref().map_or(0, time::unix_nanos);
        status.overhead = updated.overhead;
        status.resources = updated.resources;
    }
    let complete = record.as_ref().is_ok_and(record::is_complete) || record.is_err();
    adopt(cri, pod, complete).await
}

async fn from_record(cri: &Arc<Cri>, record: &Sandbox) -> Result<()> {
    let id = &record.sandbox_id;
    if cri.pods.get(id).is_ok_and(|pod| pod.id == *id) {
        return Ok(());
    }
    let Some(metadata) = record::metadata(record)? else {
        info!(sandbox.id = %id, "a sandbox that is not the CRI's is left alone");
        return Ok(());
    };
    let runtime = record.runtime.clone().unwrap_or_default().name;
    let pod = Arc::new(Pod::new(metadata, record.sandboxer.clone(), runtime));
    let said = match controller(cri, &pod.sandboxer) {
        Ok(keeper) => tokio::time::timeout(PATIENCE, keeper.status(&cri.ns, id, false))
            .await
            .unwrap_or_else(|_| {
                Err(Error::new(
                    Kind::DeadlineExceeded,
                    "the controller does not answer",
                ))
            }),
        Err(e) => Err(e),
    };
    let updated = record::updated(record);
    {
        let mut status = pod.status.write();
        status.state = state(id, &said);
        let said = said.unwrap_or_default();
        status.pid = said.pid;
        let created = said.created_at.or(record.created_at);
        status.created_at = created.as_ref().map_or(0, time::unix_nanos);
        status.overhead = updated.overhead;
        status.resources = updated.resources;
        *pod.endpoint.write() = (said.address, said.version);
    }
    adopt(cri, pod, record::is_complete(record)).await
}

fn state(id: &str, said: &Result<sandbox::Status>) -> State {
    match said {
        Ok(said) if said.state == READY => State::Ready,
        Ok(_) => State::NotReady,
        Err(e) if e.kind() == Kind::NotFound => State::NotReady,
        Err(error) => {
            warn!(sandbox.id = id, %error, "failed to recover sandbox state");
            State::Unknown
        }
    }
}

/// Puts a pod into the store and follows it, if it still runs.
async fn adopt(cri: &Arc<Cri>, pod: Arc<Pod>, complete: bool) -> Result<()> {
    let metadata = pod.metadata.read().clone();
    let runs = pod.state() == State::Ready;
    if runs {
        let closed = network::is_closed(&metadata).await.unwrap_or(false);
        if !complete || closed {
            info!(sandbox.id = %pod.id, complete, closed, "a sandbox that runs is not whole, and so not ready");
            pod.status.write().state = State::Unknown;
        }
    }
    if pod.state() == State::NotReady {
        pod.stopped.send_replace(true);
    }
    cri.specs.reserve(&metadata.process_label);
    match cri.pod_names.reserve(&metadata.name, &pod.id) {
        Ok(reserved) => reserved.keep(),
        Err(error) => warn!(sandbox.id = %pod.id, %error, "a name is taken twice"),
    }
    cri.pods.add(&pod.id, pod.clone())?;
    if runs {
        monitor::watch(cri, &pod);
    }
    Ok(())
}

/// Removes folders that are no pod's.
async fn sweep(cri: &Arc<Cri>, known: HashSet<String>) -> Result<()> {
    let bases = [cri.root.join("sandboxes"), cri.state.join("sandboxes")];
    blocking(move || {
        for base in bases {
            let Ok(found) = std::fs::read_dir(&base) else {
                continue;
            };
            for dir in found.flatten() {
                let id = dir.file_name().to_string_lossy().into_owned();
                if known.contains(&id) {
                    continue;
                }
                match files::remove_dir(&dir.path()) {
                    Ok(()) => info!(sandbox.id = %id, "removed what a sandbox left"),
                    Err(error) => warn!(sandbox.id = %id, %error, "remove what a sandbox left"),
                }
            }
        }
        Ok(())
    })
    .await
}
