//! The end of a shim: wanted, failed, or sudden.
//!
//! Whoever first claims it (`Shim::release`) deals with it; others wait for `Shim::end`. Every step asked of a shim
//! that may be stuck is bounded.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use corten_core::runtime::{Exit, Task};
use corten_core::{Any, Error, Kind, Namespace, Result, events};
use corten_protos::containerd::events::{TaskDelete, TaskExit};
use tracing::{error, info, warn};

use crate::bootstrap;
use crate::bundle::Bundle;
use crate::shim::Shim;
use crate::task::{Inner, Role};

/// Exit status of a container whose end nobody could tell.
const UNKNOWN_EXIT: u32 = 255;
/// How long a shim that was told to go may take to do so before its bundle goes.
const LAST_STEPS: Duration = Duration::from_millis(250);

// === impl Inner ===

impl Inner {
    /// Tells everybody that a container ended whose shim cannot tell.
    pub(crate) async fn publish_end(&self, bundle: &Bundle, exit: Exit) {
        if self.role == Role::Sandbox {
            // Those who wait for the sandbox are told; its containers have bundles and ends of their own.
            return;
        }
        let (ns, id) = (&bundle.namespace, &bundle.id);
        let exited = TaskExit {
            container_id: id.clone(),
            id: id.clone(),
            pid: exit.pid,
            exit_status: exit.status,
            exited_at: Some(exit.at.into()),
        };
        events::publish(self.events.as_ref(), ns, "/tasks/exit", &exited).await;
        let deleted = TaskDelete {
            container_id: id.clone(),
            pid: exit.pid,
            exit_status: exit.status,
            exited_at: Some(exit.at.into()),
            ..Default::default()
        };
        events::publish(self.events.as_ref(), ns, "/tasks/delete", &deleted).await;
    }

    /// Runs the shim's `delete` for a bundle whose shim is dead, then removes the bundle. A bundle whose `delete`
    /// failed stays: the next boot tries again.
    pub(crate) async fn clean_up(&self, binary: &Path, bundle: &Bundle) -> Option<Exit> {
        info!(container.id = %bundle.id, "cleaning up dead shim");
        let done = async {
            let exit = self.helper(binary, bundle).delete().await?;
            self.remove_dead_socket(bundle).await;
            bundle.delete().await?;
            Ok::<_, Error>(exit)
        };
        let timeouts = self.manager.timeouts;
        let done = tokio::time::timeout(timeouts.cleanup, done)
            .await
            .unwrap_or_else(|_| {
                Err(Error::new(
                    Kind::DeadlineExceeded,
                    "shim killed after context deadline exceeded: signal: killed",
                ))
            });
        done.inspect_err(|error| {
            warn!(container.id = %bundle.id, %error, "clean up after a dead shim");
        })
        .ok()
    }

    /// The same; what fails is tried again when somebody wants the id, and at the next boot.
    pub(crate) async fn clean_up_or_later(&self, binary: &Path, bundle: &Bundle) -> Option<Exit> {
        let exit = self.clean_up(binary, bundle).await;
        if exit.is_none() {
            let mut leftovers = self.manager.leftovers.lock();
            leftovers.insert(bundle.path.clone(), binary.to_owned());
        }
        exit
    }

    /// Makes the folders of a new container or sandbox; what is left of an earlier one of that id is cleaned up first.
    pub(crate) async fn make_bundle(
        &self,
        ns: &Namespace,
        id: &str,
        spec: Option<&Any>,
    ) -> Result<Bundle> {
        let create = || Bundle::create(&self.root, &self.state, ns, id, spec);
        let taken = match create().await {
            Err(e) if e.kind() == Kind::AlreadyExists => e,
            other => return other,
        };
        let old = Bundle::load(&self.state, ns, id);
        let Some(binary) = self.manager.leftovers.lock().remove(&old.path) else {
            return Err(taken);
        };
        match self.clean_up_or_later(&binary, &old).await {
            Some(_) => create().await,
            None => Err(taken),
        }
    }

    /// Removes the socket of a shim that was killed: nobody else does. One that still serves others is kept.
    async fn remove_dead_socket(&self, bundle: &Bundle) {
        let Ok(answer) = bootstrap::load(bundle).await else {
            return;
        };
        let Some(path) = answer.address.strip_prefix("unix://").map(Path::new) else {
            return;
        };
        if path.parent() != Some(self.manager.socket_dir.as_path()) {
            return;
        }
        let refused = |e: &std::io::Error| e.kind() == std::io::ErrorKind::ConnectionRefused;
        if tokio::net::UnixStream::connect(path)
            .await
            .as_ref()
            .is_err_and(refused)
            && let Err(error) = tokio::fs::remove_file(path).await
        {
            warn!(container.id = %bundle.id, %error, "remove the socket of a dead shim");
        }
    }

    /// What the loss of a connection means: the shim is dead, and so is its container.
    pub(crate) async fn on_lost(&self, shim: Arc<Shim>) {
        if shim.deleted().is_some() {
            // It published its events itself and had nothing left to do.
            return self.finish(&shim).await;
        }
        info!(container.id = %shim.bundle.id, "shim disconnected");
        let exit = self
            .clean_up_or_later(&shim.binary, &shim.bundle)
            .await
            .unwrap_or_else(|| unknown_exit(shim.pid()));
        if self.remove(&shim) && shim.is_announced() {
            self.publish_end(&shim.bundle, exit).await;
        }
        shim.set_end(Some(exit));
    }

    /// Tears down a shim on which nothing can be built. Every step is bounded; none stops the next.
    pub(crate) async fn tear_down(&self, shim: &Arc<Shim>) {
        self.remove(shim);
        if !shim.release() {
            return self.await_end(shim).await;
        }
        if self.role == Role::Sandbox
            && let Err(error) = crate::sandbox::shutdown(shim).await
        {
            warn!(sandbox.id = %shim.bundle.id, %error, "shut down a sandbox");
        }
        let deleted = match self.role {
            Role::Task => shim
                .delete_init(Some(self.manager.timeouts.cleanup))
                .await
                .ok(),
            Role::Sandbox => None,
        };
        if let Err(e) = shim.shutdown().await {
            warn!(container.id = %shim.bundle.id, error = %Error::from(e), "shut down a shim");
        }
        shim.connection.close();
        if deleted.is_none() {
            // The shim could not, or had nothing to: whatever a half-made container left is its binary's to find.
            self.clean_up(&shim.binary, &shim.bundle).await;
        }
        shim.set_end(deleted);
    }

    /// Closes a connection that did its duty, and removes the bundle.
    pub(crate) async fn close(&self, shim: &Arc<Shim>) {
        if !shim.release() {
            return self.await_end(shim).await;
        }
        if !self.has_company(shim) && !shim.socket_is_gone().await {
            // It goes now. Shims find their sockets through the bundle, and leave them if that goes first.
            let _ = tokio::time::timeout(LAST_STEPS, shim.connection.ended()).await;
        }
        shim.connection.close();
        if shim.deleted().is_none() {
            self.clean_up(&shim.binary, &shim.bundle).await;
        }
        self.finish(shim).await;
    }

    /// Whether its process serves somebody else too.
    fn has_company(&self, shim: &Arc<Shim>) -> bool {
        let shims = self.manager.shims.lock();
        shims
            .values()
            .any(|s| !Arc::ptr_eq(s, shim) && s.bootstrap.address == shim.bootstrap.address)
    }

    async fn finish(&self, shim: &Arc<Shim>) {
        if let Err(error) = shim.bundle.delete().await {
            error!(container.id = %shim.bundle.id, %error, "failed to delete bundle");
        }
        self.remove(shim);
        shim.set_end(shim.deleted());
    }

    /// Someone else deals with the end of this shim: waits for it, in vain only if that is stuck.
    async fn await_end(&self, shim: &Arc<Shim>) {
        let patience = self.manager.timeouts.cleanup * 3;
        if tokio::time::timeout(patience, shim.end()).await.is_err() {
            warn!(container.id = %shim.bundle.id, "the clean-up of a shim takes too long");
        }
    }
}

/// The end of a container of which nobody can tell more.
pub(crate) fn unknown_exit(pid: u32) -> Exit {
    Exit {
        pid,
        status: UNKNOWN_EXIT,
        at: SystemTime::now(),
    }
}
