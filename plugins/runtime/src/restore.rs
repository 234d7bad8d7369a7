//! The boot: shims of a previous daemon are found by their bundles and connected again.
//!
//! ```text
//! bundle --shim answers, has processes (or is a sandbox)--> served
//!        --shim answers, has none--> leaked half-way through a create: torn down
//!        --nobody at the socket--> dead: `delete` binary, TaskExit + TaskDelete
//!        --connected, but no answer in time--> served: slow is not dead, and killing it would kill its container
//! ```
//! All bundles are looked at in parallel, each with one budget (`shim.load`) for everything asked of its shim, so that
//! silent shims hold up neither the others nor the start of the daemon. Read from the same files that creation writes.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

use corten_core::runtime::Task;
use corten_core::{Context, Error, Kind, Namespace, Result};
use corten_sys::blocking;
use futures::StreamExt;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use crate::bundle::Bundle;
use crate::connection::CallError;
use crate::end::unknown_exit;
use crate::shim::Shim;
use crate::task::TaskManager;
use crate::{bootstrap, log};

/// Bundles looked at at the same time. Each may run one helper process.
const AT_ONCE: usize = 32;

/// The folders of all bundles: passable for containers with a user namespace.
pub(crate) fn make_folders(tasks: &TaskManager) -> Result<()> {
    for dir in [&tasks.root, &tasks.state] {
        DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(dir)
            .with_context(|| format!("mkdir {}", dir.display()))?;
    }
    Ok(())
}

/// Restores everything. What cannot be restored is logged and cleaned up as far as possible.
pub(crate) async fn run(tasks: &TaskManager) {
    let state = tasks.state.clone();
    let bundles = match blocking(move || find_bundles(&state)).await {
        Ok(bundles) => bundles,
        Err(error) => {
            error!(%error, "look for shims");
            return;
        }
    };
    futures::stream::iter(bundles)
        .for_each_concurrent(AT_ONCE, |bundle| async move {
            if let Err(error) = load(tasks, &bundle).await {
                let namespace = bundle.namespace.as_str();
                error!(container.id = %bundle.id, namespace, %error, "failed to load shim");
            }
        })
        .await;
    if let Err(error) = sweep_work_folders(tasks).await {
        error!(%error, "clean up working folders");
    }
}

/// All bundles of all namespaces; sweeps what a removal left half-done.
fn find_bundles(state: &Path) -> Result<Vec<Bundle>> {
    let mut bundles = Vec::new();
    for ns in folders(state)? {
        let Ok(namespace) = Namespace::new(ns.clone()) else {
            warn!(namespace = %ns, "not a namespace");
            continue;
        };
        for id in folders(&state.join(&ns))? {
            if id.starts_with('.') {
                let hidden = state.join(&ns).join(&id);
                let _ = std::fs::remove_dir_all(&hidden)
                    .inspect_err(|error| warn!(%error, path = %hidden.display(), "sweep"));
                continue;
            }
            bundles.push(Bundle::load(state, &namespace, &id));
        }
    }
    Ok(bundles)
}

/// Names of the folders in `dir`; none when it does not exist.
fn folders(dir: &Path) -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::from(e).context(format!("read {}", dir.display()))),
    };
    Ok(entries
        .flatten()
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        .filter_map(|e| e.file_name().into_string().ok())
        .collect())
}

async fn load(tasks: &TaskManager, bundle: &Bundle) -> Result<()> {
    // Not to be seen into is not empty: to delete it would take the rootfs from a container that runs.
    let empty = std::fs::read_dir(&bundle.path).map(|mut d| d.next().is_none());
    if empty.with_context(|| format!("read bundle {}", bundle.path.display()))? {
        return bundle.delete().await;
    }
    let runtime = runtime_of(tasks, bundle).await;
    let binary = runtime.and_then(|runtime| match tasks.manager.discovery.resolve(&runtime) {
        // A shim whose program was replaced or removed may serve on; the program is only needed for its end.
        Err(_) if runtime.starts_with('/') => Ok(runtime.into()),
        other => other,
    });
    let binary = match binary {
        Ok(binary) => binary,
        Err(e) => {
            // Without a runtime nothing more can be learnt of this container.
            bundle.unmount().await?;
            bundle.delete().await?;
            return Err(e);
        }
    };
    let deadline = Instant::now() + tasks.manager.timeouts.load;
    match dial(tasks, bundle, &binary, deadline).await {
        Ok(shim) => keep_or_clean(tasks, &shim, deadline).await,
        // The daemon's own want says nothing about the shim: the bundle waits for the next boot.
        Err(e) if matches!(e.kind(), Kind::ResourceExhausted | Kind::Unavailable) => Err(e
            .context(format!(
                "unable to load shim {:?}, leaving it alone",
                bundle.id
            ))),
        Err(e) => {
            let exit = tasks.clean_up_or_later(&binary, bundle).await;
            let exit = exit.unwrap_or_else(|| unknown_exit(0));
            tasks.publish_end(bundle, exit).await;
            Err(e.context(format!("unable to load shim {:?}", bundle.id)))
        }
    }
}

/// The runtime that made the bundle: its file says, else the container's record.
async fn runtime_of(tasks: &TaskManager, bundle: &Bundle) -> Result<String> {
    match bundle.read("shim-binary-path").await {
        Ok(path) if !path.is_empty() => return Ok(String::from_utf8_lossy(&path).into_owned()),
        Ok(_) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => warn!(container.id = %bundle.id, %error, "read shim-binary-path"),
    }
    let container = tasks
        .containers
        .get(&bundle.namespace, &bundle.id)
        .await
        .with_context(|| format!("loading container {}", bundle.id))?;
    Ok(container.runtime.unwrap_or_default().name)
}

/// Connects and asks for a sign of life. An error means that the shim is dead.
async fn dial(
    tasks: &TaskManager,
    bundle: &Bundle,
    binary: &Path,
    deadline: Instant,
) -> Result<Arc<Shim>> {
    let answer = bootstrap::load(bundle).await?;
    let log = log::open(bundle)?;
    let shim = tasks.connect(bundle, binary, answer, log).await?;
    shim.announce();
    match tokio::time::timeout_at(deadline, shim.connect()).await {
        Ok(Ok(())) => Ok(shim),
        Err(_) | Ok(Err(CallError::TimedOut)) => {
            warn!(container.id = %bundle.id, "shim does not answer, keeping it registered");
            if let Some(pid) = written_pid(bundle).await {
                shim.assume_pid(pid);
            }
            Ok(shim)
        }
        Ok(Err(e)) => {
            shim.connection.close();
            Err(e.into())
        }
    }
}

/// The pid that shims of the runc family write down.
async fn written_pid(bundle: &Bundle) -> Option<u32> {
    let text = bundle.read("init.pid").await.ok()?;
    String::from_utf8(text).ok()?.trim().parse().ok()
}

/// Serves the shim, unless it is one that a create which never ended left behind.
async fn keep_or_clean(tasks: &TaskManager, shim: &Arc<Shim>, deadline: Instant) -> Result<()> {
    let (namespace, id) = (&shim.bundle.namespace, &shim.bundle.id);
    let processes = tokio::time::timeout_at(deadline, shim.processes()).await;
    let none = match &processes {
        Ok(Ok(p)) => p.is_empty(),
        Ok(Err(e)) => e.is(Kind::NotFound),
        Err(_) => false,
    };
    let is_sandbox = match tasks.sandboxes.get(namespace, id).await {
        Ok(_) => true,
        Err(e) => e.kind() != Kind::NotFound,
    };
    if none && !is_sandbox && !has_ended(shim, deadline).await {
        info!(container.id = %id, "cleaning leaked shim process");
        tasks.tear_down(shim).await;
        return shim.bundle.delete().await;
    }
    if let Ok(Err(e)) = processes
        && !none
    {
        let error = Error::from(e);
        warn!(container.id = %id, %error, "failed to query shim pids, keeping shim registered");
    }
    tasks.serve(shim)?;
    debug!(container.id = %id, pid = shim.pid(), "loaded shim");
    Ok(())
}

/// Whether the container has no process because it ended while no daemon was there: its exit is still to be fetched.
async fn has_ended(shim: &Arc<Shim>, deadline: Instant) -> bool {
    use corten_protos::containerd::v1::types::Status;
    match tokio::time::timeout_at(deadline, shim.state("")).await {
        Ok(Ok(state)) => state.status == Status::Stopped,
        // Slow is not gone.
        Ok(Err(e)) => e.kind() == Kind::DeadlineExceeded,
        Err(_) => true,
    }
}

/// Removes persistent folders whose task is gone: after a reboot, all of them.
async fn sweep_work_folders(tasks: &TaskManager) -> Result<()> {
    let tasks = tasks.clone();
    blocking(move || {
        for ns in folders(&tasks.root)? {
            let Ok(namespace) = Namespace::new(ns.clone()) else {
                continue;
            };
            for id in folders(&tasks.root.join(&ns))? {
                let bundle = tasks.state.join(&ns).join(&id);
                if tasks.find(&namespace, &id).is_some() || bundle.exists() {
                    continue;
                }
                let path = tasks.root.join(&ns).join(&id);
                let _ = std::fs::remove_dir_all(&path)
                    .inspect_err(|error| error!(%error, path = %path.display(), "sweep"));
            }
        }
        Ok(())
    })
    .await
}

#[cfg(test)]
mod tests;
