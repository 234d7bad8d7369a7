//! io.containerd.sandbox.controller.v1 "shim": sandboxes, each in a shim of its own that containers may join.
//!
//! ```text
//! create    bundle -> `start` -> CreateSandbox          any failure tears the shim down
//! start     StartSandbox                                a failure ends the sandbox
//! stop      StopSandbox                                 a shim that is gone is stopped
//! shutdown  ShutdownSandbox -> connection, `delete`, bundle
//! ```
//! Shims are started, watched and found again after a restart exactly as those of tasks: this is a second
//! [`TaskManager`] with folders of its own over the same list of shims, which is how a task finds the shim of the
//! sandbox that it names. The bundle has a config.json only if the sandbox has a spec.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use corten_core::runtime::CreateOptions as ShimOptions;
use corten_core::sandbox::{Controller, CreateOptions, Exit, Instance, Status};
use corten_core::tasks_set::TaskSet;
use corten_core::{Context as _, Error, Kind, Namespace, Result, kinds};
use corten_protos::containerd::runtime::sandbox::v1::{
    CreateSandboxRequest, PlatformRequest, SandboxMetricsRequest, SandboxStatusRequest,
    ShutdownSandboxRequest, StartSandboxRequest, StopSandboxRequest, UpdateSandboxRequest,
    WaitSandboxRequest,
};
use corten_protos::containerd::types::{Metric, Platform, Sandbox};
use corten_protos::time;
use corten_protos::ttrpc::runtime::Context;
use corten_registry::Registration;
use tokio::sync::oneshot;
use tracing::error;

use crate::bundle::Bundle;
use crate::client::Sandboxes as Client;
use crate::connection::CallError;
use crate::manager::ShimManager;
use crate::shim::Shim;
use crate::task::{Inner, Role, TaskManager};

/// The controller.
#[derive(Debug, Clone)]
struct Sandboxes(TaskManager);

/// One call of the sandbox API, as long as it takes or within `patience`.
async fn call<T, F>(
    shim: &Shim,
    patience: Option<Duration>,
    call: impl FnOnce(Client, Context) -> F,
) -> Result<T, CallError>
where
    F: Future<Output = ttrpc::Result<T>>,
{
    let client = shim.connection.sandbox();
    shim.connection.call(patience, |cx| call(client, cx)).await
}

/// Tells a sandbox to end, and its shim to go. A connection that is lost by it is what was wanted.
pub(crate) async fn shutdown(shim: &Shim) -> Result<()> {
    let request = ShutdownSandboxRequest {
        sandbox_id: shim.bundle.id.clone(),
    };
    let patience = shim.patience_to_end();
    let answer = call(shim, Some(patience), |c, cx| async move {
        c.shutdown_sandbox(cx, &request).await
    });
    match answer.await {
        Ok(_) | Err(CallError::Lost) => Ok(()),
        // It ended before, or its creation did not get far enough.
        Err(e) if e.is(Kind::NotFound) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

// === impl Sandboxes ===

impl Sandboxes {
    fn find(&self, ns: &Namespace, id: &str) -> Result<Arc<Shim>> {
        self.0
            .find_own(ns, id)
            .ok_or_else(|| Error::new(Kind::NotFound, Kind::NotFound.words()))
    }

    /// Makes a sandbox; `gone` ends when the client does not wait any more.
    async fn make(
        &self,
        ns: &Namespace,
        sandbox: &Sandbox,
        o: CreateOptions,
        gone: &mut oneshot::Sender<Result<Arc<Shim>>>,
    ) -> Result<Arc<Shim>> {
        let (tasks, id) = (&self.0, &sandbox.sandbox_id);
        if tasks.find_own(ns, id).is_some() {
            return Err(Error::already_exists(format!(
                "sandbox {id} already running"
            )));
        }
        let spec = sandbox.spec.as_ref();
        let bundle = tasks.make_bundle(ns, id, spec).await?;
        let made = self.make_in(&bundle, sandbox, o, gone).await;
        if made.is_err()
            && let Err(error) = bundle.delete().await
        {
            error!(sandbox.id = %id, %error, "failed to delete bundle");
        }
        made
    }

    async fn make_in(
        &self,
        bundle: &Bundle,
        sandbox: &Sandbox,
        o: CreateOptions,
        gone: &mut oneshot::Sender<Result<Arc<Shim>>>,
    ) -> Result<Arc<Shim>> {
        let (tasks, id) = (&self.0, &sandbox.sandbox_id);
        let runtime = sandbox.runtime.clone().unwrap_or_default();
        let options = ShimOptions {
            spec: sandbox.spec.clone(),
            runtime: runtime.name,
            runtime_options: runtime.options,
            ..Default::default()
        };
        let launched = tasks.launch(bundle, &options, gone).await;
        let shim =
            launched.with_context(|| format!("failed to start new shim for sandbox {id}"))?;
        let request = CreateSandboxRequest {
            sandbox_id: id.clone(),
            bundle_path: bundle.path.to_string_lossy().into_owned(),
            rootfs: o.rootfs,
            options: o.options,
            netns_path: o.netns_path,
            annotations: o.annotations,
        };
        let created = async {
            tasks.serve(&shim)?;
            let create = call(&shim, None, |c, cx| async move {
                c.create_sandbox(cx, &request).await
            });
            tokio::select! {
                created = create => created.map_err(Error::from),
                () = gone.closed() => Err(Error::new(Kind::Canceled, Kind::Canceled.words())),
            }
        };
        match created.await {
            Ok(_) => Ok(shim),
            Err(e) => {
                tasks.tear_down(&shim).await;
                Err(e.context(format!("failed to create sandbox {id}")))
            }
        }
    }

    /// Ends a sandbox with all that is left of it. Goes on when its client does not wait.
    async fn end(&self, shim: Arc<Shim>) {
        let (done, ended) = oneshot::channel::<()>();
        let tasks = self.0.clone();
        self.0.background.spawn("end sandbox", async move {
            tasks.tear_down(&shim).await;
            if let Err(error) = shim.bundle.delete().await {
                error!(sandbox.id = %shim.bundle.id, %error, "failed to delete bundle");
            }
            let _ = done.send(());
        });
        let _ = ended.await;
    }
}

#[async_trait]
impl Controller for Sandboxes {
    async fn create(&self, ns: &Namespace, sandbox: Sandbox, o: CreateOptions) -> Result<()> {
        let (mut done, made) = oneshot::channel();
        let (this, ns) = (self.clone(), ns.clone());
        self.0.background.spawn("create sandbox", async move {
            let result = this.make(&ns, &sandbox, o, &mut done).await;
            if let Err(Ok(shim)) = done.send(result) {
                // Made for a client that left just before it could hear of it.
                this.end(shim).await;
            }
        });
        made.await
            .map_err(|_| Error::internal("sandbox creation ended early"))??;
        Ok(())
    }

    async fn start(&self, ns: &Namespace, id: &str) -> Result<Instance> {
        let shim = self
            .0
            .find_own(ns, id)
            .ok_or_else(|| Error::new(Kind::Unknown, format!("unable to find sandbox {id:?}")))?;
        let request = StartSandboxRequest {
            sandbox_id: id.to_owned(),
        };
        let started = call(&shim, None, |c, cx| async move {
            c.start_sandbox(cx, &request).await
        });
        match started.await {
            Ok(answer) => {
                let (address, version) = shim.endpoint();
                Ok(Instance {
                    sandbox_id: id.to_owned(),
                    pid: answer.pid,
                    created_at: answer.created_at,
                    labels: Default::default(),
                    address,
                    version,
                    spec: answer.spec,
                })
            }
            Err(e) => {
                self.end(shim).await;
                Err(Error::from(e).context(format!("failed to start sandbox {id}")))
            }
        }
    }

    async fn platform(&self, ns: &Namespace, id: &str) -> Result<Platform> {
        let shim = self.find(ns, id)?;
        let request = PlatformRequest {
            sandbox_id: id.to_owned(),
        };
        let answer = call(&shim, None, |c, cx| async move {
            c.platform(cx, &request).await
        })
        .await
        .map_err(Error::from)
        .context("failed to get sandbox platform")?;
        Ok(answer.platform.unwrap_or_default())
    }

    async fn stop(&self, ns: &Namespace, id: &str, patience: Duration) -> Result<()> {
        let Ok(shim) = self.find(ns, id) else {
            return Ok(());
        };
        let request = StopSandboxRequest {
            sandbox_id: id.to_owned(),
            timeout_secs: u32::try_from(patience.as_secs()).unwrap_or(u32::MAX),
        };
        let stopped = call(&shim, None, |c, cx| async move {
            c.stop_sandbox(cx, &request).await
        });
        match stopped.await {
            Ok(_) | Err(CallError::Lost) => Ok(()),
            Err(e) if e.is(Kind::NotFound) || e.is(Kind::Unavailable) => Ok(()),
            Err(e) => Err(Error::from(e).context("failed to stop sandbox")),
        }
    }

    async fn wait(&self, ns: &Namespace, id: &str) -> Result<Exit> {
        let shim = self.find(ns, id)?;
        let request = WaitSandboxRequest {
            sandbox_id: id.to_owned(),
        };
        let answer = call(&shim, None, |c, cx| async move {
            c.wait_sandbox(cx, &request).await
        })
        .await
        .map_err(Error::from)
        .with_context(|| format!("failed to wait sandbox {id}"))?;
        Ok(Exit {
            exit_status: answer.exit_status,
            exited_at: answer.exited_at,
        })
    }

    async fn status(&self, ns: &Namespace, id: &str, verbose: bool) -> Result<Status> {
        let Ok(shim) = self.find(ns, id) else {
            return Ok(Status {
                sandbox_id: id.to_owned(),
                exited_at: Some(time::now()),
                ..Default::default()
            });
        };
        let request = SandboxStatusRequest {
            sandbox_id: id.to_owned(),
            verbose,
        };
        let answer = call(&shim, None, |c, cx| async move {
            c.sandbox_status(cx, &request).await
        })
        .await
        .map_err(Error::from)
        .with_context(|| format!("failed to query sandbox {id} status"))?;
        let (address, version) = shim.endpoint();
        Ok(Status {
            sandbox_id: answer.sandbox_id,
            pid: answer.pid,
            state: answer.state,
            info: answer.info,
            created_at: answer.created_at,
            exited_at: answer.exited_at,
            extra: answer.extra,
            address,
            version,
        })
    }

    async fn shutdown(&self, ns: &Namespace, id: &str) -> Result<()> {
        let shim = self.find(ns, id)?;
        shutdown(&shim)
            .await
            .context("failed to shutdown sandbox")?;
        let (done, closed) = oneshot::channel();
        let tasks = self.0.clone();
        self.0.background.spawn("close sandbox", async move {
            tasks.close(&shim).await;
            let _ = done.send(());
        });
        let _ = closed.await;
        Ok(())
    }

    async fn metrics(&self, ns: &Namespace, id: &str) -> Result<Option<Metric>> {
        let shim = self.find(ns, id)?;
        let request = SandboxMetricsRequest {
            sandbox_id: id.to_owned(),
        };
        let answer = call(&shim, None, |c, cx| async move {
            c.sandbox_metrics(cx, &request).await
        });
        Ok(answer.await?.metrics)
    }

    async fn update(
        &self,
        ns: &Namespace,
        id: &str,
        sandbox: Sandbox,
        fields: Vec<String>,
    ) -> Result<()> {
        let shim = self.find(ns, id)?;
        let request = UpdateSandboxRequest {
            sandbox_id: id.to_owned(),
            sandbox: Some(sandbox),
            fields,
            ..Default::default()
        };
        call(&shim, None, |c, cx| async move {
            c.update_sandbox(cx, &request).await
        })
        .await
        .map_err(Error::from)
        .with_context(|| format!("failed to update sandbox {id}"))?;
        Ok(())
    }
}

/// The plugin. All sandboxes of a previous daemon are connected again before it is up.
pub fn registration() -> Registration {
    Registration::new::<kinds::SandboxController>("shim")
        .requires::<ShimManager>()
        .requires::<kinds::Event>()
        .requires::<kinds::Metadata>()
        .init_plain(|cx| {
            Box::pin(async move {
                let metadata = cx.single::<kinds::Metadata>()?;
                let tasks = TaskManager::new(Inner {
                    role: Role::Sandbox,
                    manager: cx.single::<ShimManager>()?,
                    root: cx.root(),
                    state: cx.state(),
                    events: cx.single::<kinds::Event>()?,
                    containers: metadata.containers(),
                    sandboxes: metadata.sandboxes(),
                    background: TaskSet::new(),
                    mounts: crate::mounts::TaskMounts::default(),
                });
                crate::restore::make_folders(&tasks)?;
                crate::restore::run(&tasks).await;
                Ok(Arc::new(Sandboxes(tasks)) as Arc<dyn Controller>)
            })
        })
}

#[cfg(test)]
mod tests;
