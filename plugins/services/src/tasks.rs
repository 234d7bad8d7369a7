//! containerd.services.tasks.v1.Tasks: running containers.
//!
//! Every call begins with the container's record: a task exists only with one. Waiting is not limited; asking for a
//! state is, within the runtime, so that one stuck shim does not hide all others from List.

mod checkpoint;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use corten_core::containers::Containers;
use corten_core::content::Content;
use corten_core::filter::Filter;
use corten_core::runtime::{CreateOptions, ExecOptions, State, Stdio, Task, Tasks as Runtime};
use corten_core::service::{BLOCKIO_FILE, GrpcService};
use corten_core::warnings::{
    Deprecation, RUNC_OPTIONS_TASK_API_ADDRESS, RUNC_OPTIONS_TASK_API_VERSION, Warnings,
};
use corten_core::{Error, Kind, Namespace, Scope, kinds};
use corten_protos::containerd::runc::v1::{CheckpointOptions, Options};
use corten_protos::containerd::services::containers::v1::Container;
use corten_protos::containerd::services::tasks::v1::{
    CheckpointTaskRequest, CheckpointTaskResponse, CloseIoRequest, CreateTaskRequest,
    CreateTaskResponse, DeleteProcessRequest, DeleteResponse, DeleteTaskRequest,
    ExecProcessRequest, GetRequest, GetResponse, KillRequest, ListPidsRequest, ListPidsResponse,
    ListTasksRequest, ListTasksResponse, MetricsRequest, MetricsResponse, PauseTaskRequest,
    ResizePtyRequest, ResumeTaskRequest, StartRequest, StartResponse, UpdateTaskRequest,
    WaitRequest, WaitResponse, tasks_server,
};
use corten_protos::containerd::types::Metric;
use corten_protos::containerd::v1::types::{Process, ProcessInfo, Status as TaskStatus};
use corten_protos::google::protobuf::Empty;
use corten_protos::{any, time};
use corten_registry::{Context, Registration};
use futures::future::join_all;
use serde::{Deserialize, Serialize};
use tonic::{Request, async_trait};
use tracing::{error, info, warn};

use crate::{Answer, done, exposed, facade, reply, stamp};

#[derive(Clone)]
struct Service {
    containers: Arc<dyn Containers>,
    content: Arc<dyn Content>,
    /// Checkpoints taken out of the content store.
    unpacked: checkpoint::Unpacked,
    runtime: Arc<dyn Runtime>,
    /// How long a shim may take for its statistics.
    stats_patience: Duration,
    warnings: Arc<dyn Warnings>,
}

facade!(Service, tasks_server::TasksServer);

// === impl Service ===

impl Service {
    async fn task(&self, ns: &Namespace, id: &str) -> Result<Arc<dyn Task>, Error> {
        let container = self.containers.get(ns, id).await?;
        self.task_of(ns, &container.id).await
    }

    async fn task_of(&self, ns: &Namespace, id: &str) -> Result<Arc<dyn Task>, Error> {
        self.runtime
            .get(ns, id)
            .await
            .map_err(|_| Error::new(Kind::NotFound, format!("task {id} not found")))
    }

    async fn metric(&self, task: &Arc<dyn Task>) -> Option<Metric> {
        let timestamp = Some(time::now());
        let stats = match tokio::time::timeout(self.stats_patience, task.stats()).await {
            Ok(stats) => stats,
            Err(_) => Err(Error::new(
                Kind::DeadlineExceeded,
                Kind::DeadlineExceeded.words(),
            )),
        };
        match stats {
            Ok(data) => Some(Metric {
                timestamp,
                id: task.id().to_owned(),
                data,
            }),
            Err(e) => {
                if e.kind() != Kind::NotFound {
                    error!(container.id = task.id(), error = %e, "collect metrics");
                }
                None
            }
        }
    }
}

#[async_trait]
impl tasks_server::Tasks for Service {
    async fn create(&self, r: Request<CreateTaskRequest>) -> Answer<CreateTaskResponse> {
        let ns = Scope::of(&r)?.namespace;
        let mut r = r.into_inner();
        let id = r.container_id.clone();
        let container = self.containers.get(&ns, &id).await?;
        for met in deprecated(&r) {
            self.warnings.emit(met);
        }
        let from = r.checkpoint.take();
        let mut options = create_options(r, container);
        if self.runtime.get(&ns, &id).await.is_ok() {
            return Err(Error::already_exists(format!("task {id}")))?;
        }
        if let Some(from) = from.filter(|_| options.checkpoint.is_empty()) {
            let opened = self.unpacked.open(&*self.content, &ns, &id, &from);
            options.checkpoint = opened.await?;
        }
        let task = match self.runtime.create(&ns, &id, options).await {
            Ok(task) => task,
            Err(e) => {
                self.unpacked.close(&ns, &id).await;
                return Err(e)?;
            }
        };
        info!(container.id = %id, namespace = %ns, pid = task.pid(), "task created");
        reply(CreateTaskResponse {
            container_id: id,
            pid: task.pid(),
        })
    }

    async fn start(&self, r: Request<StartRequest>) -> Answer<StartResponse> {
        let ns = Scope::of(&r)?.namespace;
        let r = r.into_inner();
        let task = self.task(&ns, &r.container_id).await?;
        let started = task.start(&r.exec_id).await;
        if r.exec_id.is_empty() {
            self.unpacked.close(&ns, &r.container_id).await;
        }
        reply(StartResponse { pid: started? })
    }

    async fn delete(&self, r: Request<DeleteTaskRequest>) -> Answer<DeleteResponse> {
        let ns = Scope::of(&r)?.namespace;
        let id = r.into_inner().container_id;
        self.task(&ns, &id).await?;
        let exit = self.runtime.delete(&ns, &id).await?;
        self.unpacked.close(&ns, &id).await;
        reply(DeleteResponse {
            id: String::new(),
            pid: exit.pid,
            exit_status: exit.status,
            exited_at: stamp(exit.at),
        })
    }

    async fn delete_process(&self, r: Request<DeleteProcessRequest>) -> Answer<DeleteResponse> {
        let ns = Scope::of(&r)?.namespace;
        let r = r.into_inner();
        let task = self.task(&ns, &r.container_id).await?;
        if r.exec_id.is_empty() {
            // With an empty id the shim would delete init behind the runtime's back.
            return Err(Error::new(Kind::InvalidArgument, "exec id cannot be empty"))?;
        }
        let exit = task.delete_exec(&r.exec_id).await?;
        reply(DeleteResponse {
            id: r.exec_id,
            pid: exit.pid,
            exit_status: exit.status,
            exited_at: stamp(exit.at),
        })
    }

    async fn get(&self, r: Request<GetRequest>) -> Answer<GetResponse> {
        let ns = Scope::of(&r)?.namespace;
        let r = r.into_inner();
        let task = self.task(&ns, &r.container_id).await?;
        reply(GetResponse {
            process: Some(process(&task, &r.exec_id).await?),
        })
    }

    async fn list(&self, r: Request<ListTasksRequest>) -> Answer<ListTasksResponse> {
        let ns = Scope::of(&r)?.namespace;
        let all = self.runtime.list(&ns).await?;
        let states = join_all(all.iter().map(|task| process(task, ""))).await;
        let mut tasks = Vec::with_capacity(all.len());
        for (task, state) in all.iter().zip(states) {
            match state {
                Ok(p) => tasks.push(p),
                // Deleted while we asked.
                Err(e) if e.kind() == Kind::NotFound => {}
                Err(error) => warn!(container.id = task.id(), %error, "get the state of a task"),
            }
        }
        reply(ListTasksResponse { tasks })
    }

    async fn kill(&self, r: Request<KillRequest>) -> Answer<Empty> {
        let ns = Scope::of(&r)?.namespace;
        let r = r.into_inner();
        let task = self.task(&ns, &r.container_id).await?;
        task.kill(&r.exec_id, r.signal, r.all).await?;
        done()
    }

    async fn exec(&self, r: Request<ExecProcessRequest>) -> Answer<Empty> {
        let ns = Scope::of(&r)?.namespace;
        let r = r.into_inner();
        if r.exec_id.is_empty() {
            return Err(Error::new(Kind::InvalidArgument, "exec id cannot be empty"))?;
        }
        let task = self.task(&ns, &r.container_id).await?;
        task.exec(ExecOptions {
            exec_id: r.exec_id,
            spec: r.spec,
            stdio: Stdio {
                stdin: r.stdin,
                stdout: r.stdout,
                stderr: r.stderr,
                terminal: r.terminal,
            },
        })
        .await?;
        done()
    }

    async fn resize_pty(&self, r: Request<ResizePtyRequest>) -> Answer<Empty> {
        let ns = Scope::of(&r)?.namespace;
        let r = r.into_inner();
        let task = self.task(&ns, &r.container_id).await?;
        task.resize_pty(&r.exec_id, r.width, r.height).await?;
        done()
    }

    async fn close_io(&self, r: Request<CloseIoRequest>) -> Answer<Empty> {
        let ns = Scope::of(&r)?.namespace;
        let r = r.into_inner();
        let task = self.task(&ns, &r.container_id).await?;
        if r.stdin {
            task.close_io(&r.exec_id, true).await?;
        }
        done()
    }

    async fn pause(&self, r: Request<PauseTaskRequest>) -> Answer<Empty> {
        let ns = Scope::of(&r)?.namespace;
        self.task(&ns, &r.get_ref().container_id)
            .await?
            .pause()
            .await?;
        done()
    }

    async fn resume(&self, r: Request<ResumeTaskRequest>) -> Answer<Empty> {
        let ns = Scope::of(&r)?.namespace;
        self.task(&ns, &r.get_ref().container_id)
            .await?
            .resume()
            .await?;
        done()
    }

    async fn list_pids(&self, r: Request<ListPidsRequest>) -> Answer<ListPidsResponse> {
        let ns = Scope::of(&r)?.namespace;
        let pids = self
            .task(&ns, &r.get_ref().container_id)
            .await?
            .pids()
            .await?;
        let processes = pids
            .into_iter()
            .map(|p| ProcessInfo {
                pid: p.pid,
                info: p.info,
            })
            .collect();
        reply(ListPidsResponse { processes })
    }

    async fn checkpoint(
        &self,
        r: Request<CheckpointTaskRequest>,
    ) -> Answer<CheckpointTaskResponse> {
        let scope = Scope::of(&r)?;
        let r = r.into_inner();
        let container = self
            .containers
            .get(&scope.namespace, &r.container_id)
            .await?;
        let task = self.task_of(&scope.namespace, &container.id).await?;
        let path = image_path(&container, r.options.as_ref())?;
        if !path.is_empty() {
            task.checkpoint(&path, r.options).await?;
            return reply(CheckpointTaskResponse::default());
        }
        let folder = checkpoint::folder()?;
        task.checkpoint(&folder.path().to_string_lossy(), r.options)
            .await?;
        let (content, path): (_, &Path) = (&*self.content, folder.path());
        let descriptors = checkpoint::save(content, &scope, path, container.spec.as_ref()).await?;
        corten_sys::blocking(move || Ok(folder.close()?)).await?;
        reply(CheckpointTaskResponse { descriptors })
    }

    async fn update(&self, r: Request<UpdateTaskRequest>) -> Answer<Empty> {
        let ns = Scope::of(&r)?.namespace;
        let r = r.into_inner();
        let task = self.task(&ns, &r.container_id).await?;
        task.update(r.resources, r.annotations).await?;
        done()
    }

    async fn metrics(&self, r: Request<MetricsRequest>) -> Answer<MetricsResponse> {
        let ns = Scope::of(&r)?.namespace;
        let filter = Filter::parse(&r.get_ref().filters)?;
        let mut tasks = self.runtime.list(&ns).await?;
        tasks.retain(|task| {
            filter.matches_with(|path| match path.first().map(String::as_str) {
                Some("id") => Some(task.id().to_owned()),
                Some("namespace") => Some(task.namespace().to_string()),
                _ => None,
            })
        });
        let metrics = join_all(tasks.iter().map(|task| self.metric(task))).await;
        reply(MetricsResponse {
            metrics: metrics.into_iter().flatten().collect(),
        })
    }

    async fn wait(&self, r: Request<WaitRequest>) -> Answer<WaitResponse> {
        let ns = Scope::of(&r)?.namespace;
        let r = r.into_inner();
        let task = self.task(&ns, &r.container_id).await?;
        let exit = task.wait(&r.exec_id).await?;
        reply(WaitResponse {
            exit_status: exit.status,
            exited_at: stamp(exit.at),
        })
    }
}

/// From the request and the container's record to what a task is made from.
fn create_options(r: CreateTaskRequest, container: Container) -> CreateOptions {
    let runtime = container.runtime.unwrap_or_default();
    // Other runtimes have options of other types, which only their shims understand.
    let runc: Option<Options> = r.options.as_ref().and_then(|o| any::unpack(o).ok());
    let runc = runc.unwrap_or_default();
    #[expect(
        deprecated,
        reason = "older clients still name the address there (API 1.12)"
    )]
    let (address, version) = (runc.task_api_address, runc.task_api_version);
    CreateOptions {
        spec: container.spec,
        rootfs: r.rootfs,
        stdio: Stdio {
            stdin: r.stdin,
            stdout: r.stdout,
            stderr: r.stderr,
            terminal: r.terminal,
        },
        checkpoint: runc.criu_image_path,
        runtime: if r.runtime_path.is_empty() {
            runtime.name
        } else {
            r.runtime_path
        },
        runtime_options: runtime.options,
        task_options: r.options,
        sandbox_id: container.sandbox,
        address: if r.task_api_address.is_empty() {
            address
        } else {
            r.task_api_address
        },
        version: if r.task_api_version == 0 {
            version
        } else {
            r.task_api_version
        },
    }
}

/// What of a request will go: the sandbox named in runc's options.
fn deprecated(r: &CreateTaskRequest) -> Vec<Deprecation> {
    let options: Option<Options> = r.options.as_ref().and_then(|o| any::unpack(o).ok());
    let options = options.unwrap_or_default();
    #[expect(deprecated, reason = "that is the point")]
    let (address, version) = (options.task_api_address, options.task_api_version);
    let mut met = Vec::new();
    if r.task_api_address.is_empty() && !address.is_empty() {
        met.push(RUNC_OPTIONS_TASK_API_ADDRESS);
    }
    if r.task_api_version == 0 && version != 0 {
        met.push(RUNC_OPTIONS_TASK_API_VERSION);
    }
    met
}

/// Where the client wants the checkpoint's images; empty: in the content store.
fn image_path(container: &Container, options: Option<&corten_core::Any>) -> Result<String, Error> {
    let Some(options) = options else {
        return Ok(String::new());
    };
    let options: CheckpointOptions = any::unpack(options).map_err(|_| {
        let runtime = container.runtime.as_ref().map_or("", |r| r.name.as_str());
        Error::new(
            Kind::Unknown,
            format!("invalid task checkpoint option for {runtime}"),
        )
    })?;
    Ok(options.image_path)
}

/// The state of one process. A shim that answers with an error has a process all the same, in an unknown state.
async fn process(task: &Arc<dyn Task>, exec_id: &str) -> Result<Process, Error> {
    let id = if exec_id.is_empty() {
        task.id()
    } else {
        exec_id
    };
    let state = match task.state(exec_id).await {
        Ok(state) => state,
        Err(e) => match e.kind() {
            Kind::NotFound | Kind::Unavailable | Kind::DeadlineExceeded => return Err(e),
            _ => {
                error!(container.id = task.id(), error = %e, "get state");
                State {
                    status: TaskStatus::Unknown,
                    pid: 0,
                    exit_status: 0,
                    exited_at: None,
                    stdio: Stdio::default(),
                }
            }
        },
    };
    Ok(Process {
        // containerd leaves it empty; clients use the id.
        container_id: String::new(),
        id: id.to_owned(),
        pid: state.pid,
        status: state.status.into(),
        stdin: state.stdio.stdin,
        stdout: state.stdio.stdout,
        stderr: state.stdio.stderr,
        terminal: state.stdio.terminal,
        exit_status: state.exit_status,
        exited_at: Some(state.exited_at.map_or(time::GO_ZERO, Into::into)),
    })
}

/// `[plugins."io.containerd.service.v1.tasks-service"]`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct Config {
    /// What classes of block I/O mean to the CRI.
    blockio_config_file: String,
    /// What classes of cache and memory bandwidth are to be made.
    rdt_config_file: String,
}

// === impl Config ===

impl Config {
    fn tell(self, cx: &mut Context) {
        if !self.blockio_config_file.is_empty() {
            cx.export(BLOCKIO_FILE, self.blockio_config_file);
        }
        if !self.rdt_config_file.is_empty() {
            error!("RDT initialization failed: cortend makes no classes of it");
        }
    }
}

/// The service, and the plugin that puts it on the sockets.
pub fn registrations() -> [Registration; 2] {
    [service(), exposed("tasks", "tasks-service")]
}

fn service() -> Registration {
    Registration::new::<kinds::Service>("tasks-service")
        .requires::<kinds::Metadata>()
        .requires::<kinds::Runtime>()
        .requires::<kinds::Warning>()
        .config::<Config>()
        .init(|cx, config: Config| {
            Box::pin(async move {
                config.tell(cx);
                let stats = cx
                    .properties()
                    .timeouts
                    .get("io.containerd.timeout.metrics.shimstats");
                let service = Service {
                    stats_patience: stats.copied().unwrap_or(Duration::from_secs(2)),
                    containers: cx.single::<kinds::Metadata>()?.containers(),
                    content: cx.single::<kinds::Metadata>()?.content(),
                    unpacked: checkpoint::Unpacked::default(),
                    runtime: cx.by_id::<kinds::Runtime>("task")?,
                    warnings: cx.by_id::<kinds::Warning>("deprecations")?,
                };
                Ok(Arc::new(service) as Arc<dyn GrpcService>)
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container() -> Container {
        let mut c = Container {
            id: "c".into(),
            sandbox: "s".into(),
            ..Default::default()
        };
        c.runtime.get_or_insert_default().name = "io.containerd.runc.v2".into();
        c
    }

    #[test]
    fn a_task_is_made_from_request_and_record() {
        let o = create_options(CreateTaskRequest::default(), container());
        assert_eq!(
            (o.runtime.as_str(), o.sandbox_id.as_str()),
            ("io.containerd.runc.v2", "s")
        );
        #[expect(deprecated, reason = "that is the point")]
        let old = Options {
            task_api_address: "ttrpc+unix:///old".into(),
            task_api_version: 3,
            criu_image_path: "/img".into(),
            ..Default::default()
        };
        let r = CreateTaskRequest {
            runtime_path: "/opt/shim".into(),
            options: Some(any::pack(&old)),
            task_api_address: "ttrpc+unix:///new".into(),
            ..Default::default()
        };
        assert_eq!(deprecated(&r), [RUNC_OPTIONS_TASK_API_VERSION]);
        let o = create_options(r, container());
        assert_eq!(o.runtime, "/opt/shim");
        assert_eq!((o.address.as_str(), o.version), ("ttrpc+unix:///new", 3));
        assert_eq!(o.checkpoint, "/img");
    }

    #[test]
    fn checkpoint_options_of_another_type_are_refused() {
        assert_eq!(image_path(&container(), None).unwrap(), "");
        let wanted = CheckpointOptions {
            image_path: "/x".into(),
            ..Default::default()
        };
        assert_eq!(
            image_path(&container(), Some(&any::pack(&wanted))).unwrap(),
            "/x"
        );
        let e = image_path(&container(), Some(&any::pack(&Options::default()))).unwrap_err();
        assert_eq!(
            e.to_string(),
            "invalid task checkpoint option for io.containerd.runc.v2"
        );
    }
}
