//! io.containerd.runtime.v2 "task": the tasks of all namespaces, each in a shim.
//!
//! A task is made in the order bundle -> `start` -> Create in the shim (containerd 2.4 core/runtime/v2/task_manager.go).
//! Making one is a background task of its own: a client that goes away in the middle is noticed there, and what was
//! made so far is undone, each step with its own deadline, whatever the shim does.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use corten_core::containers::Containers;
use corten_core::events::Events;
use corten_core::kinds;
use corten_core::runtime::{CreateOptions, Exit, Task, Tasks};
use corten_core::sandbox::Sandboxes;
use corten_core::tasks_set::TaskSet;
use corten_core::warnings::CGROUP_V1;
use corten_core::{Any, Context as _, Error, Kind, Namespace, Result, spans};

use corten_protos::containerd::runtime::bootstrap::v1::BootstrapResult;
use corten_protos::containerd::task::v3::CreateTaskRequest;
use corten_protos::containerd::types::RuntimeInfo;
use corten_registry::{Platform, Registration};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tracing::{error, warn};

use crate::bundle::Bundle;
use crate::command::{self, Helper};
use crate::connection::{CallError, Connection};
use crate::manager::{Manager, ShimManager};
use crate::mounts::TaskMounts;
use crate::shim::Shim;
use crate::{bootstrap, features, log};

/// Log URIs that shims take.
const LOG_URI_SCHEMES: &str = "fifo,binary,binary-v2,file";
/// First version whose shims serve containers that they did not see in `start`.
const JOINABLE: i32 = 3;

/// `plugins."io.containerd.runtime.v2.task"`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(default)]
struct Config {
    /// Platforms that the runtimes serve, e.g. `linux/amd64`.
    platforms: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        let host = Platform::host();
        Self {
            platforms: vec![format!("{}/{}", host.os, host.architecture)],
        }
    }
}

/// The task manager. Clones share it.
#[derive(Clone)]
pub(crate) struct TaskManager(Arc<Inner>);

/// What the shims of a manager are made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Task,
    /// Their containers, if any, have bundles of their own; nobody asks the task API for them.
    Sandbox,
}

pub(crate) struct Inner {
    pub(crate) role: Role,
    pub(crate) manager: Arc<Manager>,
    /// Persistent folders of bundles.
    pub(crate) root: PathBuf,
    /// Bundles.
    pub(crate) state: PathBuf,
    pub(crate) events: Arc<dyn Events>,
    pub(crate) containers: Arc<dyn Containers>,
    pub(crate) sandboxes: Arc<dyn Sandboxes>,
    pub(crate) background: TaskSet,
    pub(crate) mounts: TaskMounts,
}

impl std::fmt::Debug for TaskManager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TaskManager({})", self.manager.shims.lock().len())
    }
}

impl std::ops::Deref for TaskManager {
    type Target = Inner;
    fn deref(&self) -> &Inner {
        &self.0
    }
}

// === impl Inner ===

impl Inner {
    pub(crate) fn helper<'a>(&'a self, binary: &'a Path, bundle: &'a Bundle) -> Helper<'a> {
        Helper {
            manager: &self.manager,
            binary,
            bundle,
        }
    }

    /// The shim of a task or sandbox.
    pub(crate) fn find(&self, ns: &Namespace, id: &str) -> Option<Arc<Shim>> {
        let key = (ns.clone(), id.to_owned());
        self.manager.shims.lock().get(&key).cloned()
    }

    /// The same, when it was made by this manager.
    pub(crate) fn find_own(&self, ns: &Namespace, id: &str) -> Option<Arc<Shim>> {
        self.find(ns, id).filter(|s| s.role == self.role)
    }

    fn add(&self, shim: &Arc<Shim>) -> Result<()> {
        let key = (shim.bundle.namespace.clone(), shim.bundle.id.clone());
        match self.manager.shims.lock().entry(key) {
            std::collections::hash_map::Entry::Occupied(e) => {
                Err(Error::already_exists(&e.key().1))
            }
            std::collections::hash_map::Entry::Vacant(e) => {
                e.insert(shim.clone());
                Ok(())
            }
        }
    }

    /// Forgets exactly this shim; `false` when it was not listed.
    pub(crate) fn remove(&self, shim: &Arc<Shim>) -> bool {
        let key = (shim.bundle.namespace.clone(), shim.bundle.id.clone());
        let mut shims = self.manager.shims.lock();
        let listed = shims.get(&key).is_some_and(|s| Arc::ptr_eq(s, shim));
        if listed {
            shims.remove(&key);
        }
        listed
    }
}

// === impl TaskManager ===

impl TaskManager {
    pub(crate) fn new(inner: Inner) -> Self {
        Self(Arc::new(inner))
    }

    /// Lists a shim and watches its connection.
    pub(crate) fn serve(&self, shim: &Arc<Shim>) -> Result<()> {
        self.add(shim)?;
        let (this, shim) = (self.clone(), shim.clone());
        self.background.spawn("watch shim", async move {
            shim.connection.ended().await;
            if shim.release() {
                this.on_lost(shim).await;
            }
        });
        Ok(())
    }

    /// Dials and starts to copy the shim's log.
    pub(crate) async fn connect(
        &self,
        bundle: &Bundle,
        binary: &Path,
        bootstrap: BootstrapResult,
        log: tokio::net::unix::pipe::Receiver,
    ) -> Result<Arc<Shim>> {
        let timeouts = self.manager.timeouts;
        let connection = Connection::dial(&bundle.namespace, &bootstrap, timeouts.load).await?;
        let ended = connection.end_signal();
        self.background
            .spawn("shim log", log::copy(log, bundle.id.clone(), ended));
        let shim = Shim::new(
            self.role,
            bundle.clone(),
            binary.into(),
            bootstrap,
            connection,
            timeouts,
        );
        Ok(Arc::new(shim))
    }

    /// Starts a shim of the container's own.
    pub(crate) async fn launch(
        &self,
        bundle: &Bundle,
        o: &CreateOptions,
        gone: &mut oneshot::Sender<Result<Arc<Shim>>>,
    ) -> Result<Arc<Shim>> {
        let binary = self.manager.discovery.resolve(&o.runtime)?;
        let connected = async {
            let log = log::open(bundle)?;
            let answer = self
                .helper(&binary, bundle)
                .start(options_of(o).as_ref())
                .await?;
            bundle
                .write("shim-binary-path", path_bytes(&binary), 0o600)
                .await?;
            let answer = bootstrap::parse(&answer)?;
            // Before it is dialled: should the daemon die now, the next one finds the shim.
            bootstrap::save(bundle, &answer).await?;
            self.connect(bundle, &binary, answer, log).await
        };
        // A helper that is killed half-way may leave a shim that nobody knows: without a client it may still end, but
        // not hang, for as long as it runs the id is taken.
        let abandoned = async {
            gone.closed().await;
            tokio::time::sleep(self.manager.timeouts.cleanup).await;
        };
        let connected = tokio::select! {
            connected = connected => connected,
            () = abandoned => Err(Error::new(Kind::Canceled, Kind::Canceled.words())),
        };
        match connected {
            Ok(shim) => Ok(shim),
            Err(e) => {
                // It may have left a shim behind, even when it failed.
                self.clean_up(&binary, bundle).await;
                Err(e.context("start failed"))
            }
        }
    }

    /// What a shim said that can serve this container beside others; `None` when the container needs its own.
    async fn joinable(&self, ns: &Namespace, o: &CreateOptions) -> Result<Option<BootstrapResult>> {
        if o.sandbox_id.is_empty() {
            return Ok(None);
        }
        match self.sandboxes.get(ns, &o.sandbox_id).await {
            Ok(_) => {}
            Err(e) if e.kind() == Kind::NotFound => {
                warn!(sandbox.id = %o.sandbox_id, "sandbox not found, maybe created from v1.x");
                return Ok(None);
            }
            Err(e) => return Err(e),
        }
        let holder = self.find(ns, &o.sandbox_id);
        let result = if o.address.is_empty() {
            let holder = holder.ok_or_else(|| {
                Error::not_found(format!("can't find shim for sandbox {}", o.sandbox_id))
            })?;
            bootstrap::load(&holder.bundle).await.with_context(|| {
                format!("failed to get bootstrap params of sandbox {}", o.sandbox_id)
            })?
        } else {
            let (protocol, address) = o.address.split_once('+').ok_or_else(|| {
                Error::new(
                    Kind::Unknown,
                    "the scheme of sandbox address should be in the form of \
                     <protocol>+<unix|vsock|tcp>, i.e. ttrpc+unix or grpc+vsock",
                )
            })?;
            BootstrapResult {
                version: i32::try_from(o.version).unwrap_or(i32::MAX),
                protocol: protocol.to_owned(),
                address: address.to_owned(),
                extensions: holder
                    .map(|h| h.bootstrap.extensions.clone())
                    .unwrap_or_default(),
                ..Default::default()
            }
        };
        Ok(Some(result).filter(|r| r.version >= JOINABLE))
    }

    async fn join(
        &self,
        bundle: &Bundle,
        o: &CreateOptions,
        answer: BootstrapResult,
    ) -> Result<Arc<Shim>> {
        bundle
            .write("sandbox", o.sandbox_id.clone().into_bytes(), 0o600)
            .await?;
        bootstrap::save(bundle, &answer).await?;
        let binary = self.manager.discovery.resolve(&o.runtime)?;
        bundle
            .write("shim-binary-path", path_bytes(&binary), 0o600)
            .await?;
        let log = log::open(bundle)?;
        self.connect(bundle, &binary, answer, log)
            .await
            .with_context(|| format!("failed to load sandbox task {:?}", o.sandbox_id))
    }

    /// Makes a task; `gone` ends when the client does not wait any more.
    async fn make(
        &self,
        ns: &Namespace,
        id: &str,
        o: CreateOptions,
        gone: &mut oneshot::Sender<Result<Arc<Shim>>>,
    ) -> Result<Arc<Shim>> {
        let bundle = self.make_bundle(ns, id, o.spec.as_ref()).await?;
        let made = self.make_in(&bundle, o, gone).await;
        if made.is_err()
            && let Err(error) = bundle.delete().await
        {
            error!(container.id = %id, %error, "failed to delete bundle");
        }
        made
    }

    async fn make_in(
        &self,
        bundle: &Bundle,
        o: CreateOptions,
        gone: &mut oneshot::Sender<Result<Arc<Shim>>>,
    ) -> Result<Arc<Shim>> {
        let begin = async {
            let shim = match self.joinable(&bundle.namespace, &o).await? {
                Some(answer) => self.join(bundle, &o, answer).await?,
                None => self.launch(bundle, &o, gone).await?,
            };
            Ok::<_, Error>(shim)
        };
        let begun = spans::within("runtime.shim.start", begin);
        let shim = begun.await.context("failed to start shim")?;
        let mut activated = false;
        let created = async {
            self.serve(&shim)?;
            let mut o = o;
            // After the start: the shim says what it mounts itself.
            (o.rootfs, activated) = self.mounts.activate(&shim, &o).await?;
            features::validate(&self.manager, &o).await?;
            let request = create_request(&shim.bundle, o);
            let create = async {
                shim.create(request)
                    .await
                    .map_err(Error::from)
                    .context("failed to create shim task")
            };
            tokio::select! {
                created = create => created,
                () = gone.closed() => Err(Error::new(Kind::Canceled, Kind::Canceled.words())),
            }
        };
        match created.await {
            Ok(_) => Ok(shim),
            Err(e) => {
                self.tear_down(&shim).await;
                if activated {
                    self.mounts.deactivate(bundle).await;
                }
                Err(e)
            }
        }
    }
}

#[async_trait]
impl Tasks for TaskManager {
    async fn create(
        &self,
        ns: &Namespace,
        id: &str,
        options: CreateOptions,
    ) -> Result<Arc<dyn Task>> {
        let (mut done, made) = oneshot::channel();
        let (this, ns, id) = (self.clone(), ns.clone(), id.to_owned());
        let work = async move {
            let making = this.make(&ns, &id, options, &mut done);
            let result = spans::within("runtime.task.create", making).await;
            if let Err(Ok(shim)) = done.send(result) {
                // Made for a client that left just before it could hear of it.
                this.tear_down(&shim).await;
                this.mounts.deactivate(&shim.bundle).await;
                if let Err(error) = shim.bundle.delete().await {
                    error!(container.id = %id, %error, "failed to delete bundle");
                }
            }
        };
        self.background.spawn("create task", spans::carry(work));
        let shim = made
            .await
            .map_err(|_| Error::internal("task creation ended early"))??;
        Ok(shim)
    }

    async fn get(&self, ns: &Namespace, id: &str) -> Result<Arc<dyn Task>> {
        match self.find_own(ns, id) {
            Some(shim) => Ok(shim),
            None => Err(Error::new(Kind::NotFound, Kind::NotFound.words())),
        }
    }

    async fn list(&self, ns: &Namespace) -> Result<Vec<Arc<dyn Task>>> {
        let shims = self.manager.shims.lock();
        let mut all: Vec<Arc<Shim>> = shims
            .iter()
            .filter(|((n, _), s)| n == ns && s.role == self.role)
            .map(|(_, s)| s.clone())
            .collect();
        drop(shims);
        all.sort_by(|a, b| a.bundle.id.cmp(&b.bundle.id));
        Ok(all.into_iter().map(|s| s as Arc<dyn Task>).collect())
    }

    async fn delete(&self, ns: &Namespace, id: &str) -> Result<Exit> {
        let shim = self
            .find_own(ns, id)
            .ok_or_else(|| Error::new(Kind::NotFound, Kind::NotFound.words()))?;
        let failed = |e: Error| e.context("failed to delete task");
        let absent = match shim.delete_init(None).await {
            Ok(_) => None,
            Err(e) if e.is(Kind::NotFound) => Some(Error::from(e)),
            // The shim died meanwhile. Its end is being dealt with; the exit found there is the answer.
            Err(CallError::Lost) => {
                return shim
                    .end()
                    .await
                    .ok_or_else(|| failed(CallError::Lost.into()));
            }
            Err(e) => return Err(failed(e.into())),
        };
        // A failure here leaves record, connection and bundle, so that the client can try again: the shim will say
        // NotFound then, and the remembered exit is what the client gets (containerd#7496).
        shim.shutdown()
            .await
            .map_err(|e| failed(Error::from(e).context("failed to invoke shutdown")))?;
        let (done, closed) = oneshot::channel();
        let (this, closing) = (self.clone(), shim.clone());
        self.background.spawn("close shim", async move {
            this.close(&closing).await;
            this.mounts.deactivate(&closing.bundle).await;
            let _ = done.send(());
        });
        let _ = closed.await;
        match (shim.deleted(), absent) {
            (Some(exit), _) => Ok(exit),
            (None, Some(e)) => Err(failed(e)),
            (None, None) => Err(Error::internal("a deleted task has an exit")),
        }
    }

    async fn info(&self, runtime: &str, options: Option<Any>) -> Result<RuntimeInfo> {
        let binary = self.manager.discovery.resolve(runtime)?;
        command::info(&binary, options.as_ref()).await
    }
}

/// The options that win: those of the task, else those of the container record.
pub(crate) fn options_of(o: &CreateOptions) -> Option<Any> {
    o.task_options
        .clone()
        .filter(|t| !t.value.is_empty())
        .or_else(|| o.runtime_options.clone())
        .or_else(|| o.task_options.clone())
}

fn create_request(bundle: &Bundle, o: CreateOptions) -> CreateTaskRequest {
    CreateTaskRequest {
        id: bundle.id.clone(),
        bundle: bundle.path.to_string_lossy().into_owned(),
        options: options_of(&o),
        rootfs: o.rootfs,
        terminal: o.stdio.terminal,
        stdin: o.stdio.stdin,
        stdout: o.stdio.stdout,
        stderr: o.stdio.stderr,
        checkpoint: o.checkpoint,
        parent_checkpoint: String::new(),
    }
}

fn path_bytes(path: &Path) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt;
    path.as_os_str().as_bytes().to_vec()
}

fn platform(text: &str) -> Result<Platform> {
    let mut parts = text.split('/');
    match (
        parts.next(),
        parts.next(),
        parts.next().unwrap_or_default(),
        parts.next(),
    ) {
        (Some(os), Some(architecture), variant, None) if !os.is_empty() => Ok(Platform {
            os: os.into(),
            architecture: architecture.into(),
            variant: variant.into(),
        }),
        _ => Err(Error::invalid(format!("platform {text:?}"))),
    }
}

/// The plugin. All shims of a previous daemon are connected again before it is up.
pub fn registration() -> Registration {
    Registration::new::<kinds::Runtime>("task")
        .requires::<ShimManager>()
        .requires::<kinds::Event>()
        .requires::<kinds::Metadata>()
        .requires::<kinds::MountManager>()
        .requires::<kinds::Warning>()
        .config::<Config>()
        .init(|cx, config: Config| {
            Box::pin(async move {
                for text in &config.platforms {
                    cx.platform(platform(text)?);
                }
                cx.export("log-uri-schemes", LOG_URI_SCHEMES);
                if !corten_sys::cgroups::are_unified() {
                    cx.by_id::<kinds::Warning>("deprecations")?.emit(CGROUP_V1);
                }
                let metadata = cx.single::<kinds::Metadata>()?;
                let tasks = TaskManager::new(Inner {
                    role: Role::Task,
                    manager: cx.single::<ShimManager>()?,
                    root: cx.root(),
                    state: cx.state(),
                    events: cx.single::<kinds::Event>()?,
                    containers: metadata.containers(),
                    sandboxes: metadata.sandboxes(),
                    background: TaskSet::new(),
                    // containerd runs without a mount manager too.
                    mounts: TaskMounts::new(cx.single::<kinds::MountManager>().ok()),
                });
                crate::restore::make_folders(&tasks)?;
                crate::restore::run(&tasks).await;
                Ok(Arc::new(tasks) as Arc<dyn Tasks>)
            })
        })
}

#[cfg(test)]
mod tests;
