//! Tasks and sandboxes in a fake shim that speaks gRPC.

use std::sync::Arc;
use std::time::Duration;

use corten_core::Kind;
use corten_core::runtime::Tasks as _;
use corten_protos::containerd::task::v3;
use corten_protos::containerd::v1::types::Status as TaskStatus;
use parking_lot::Mutex;
use tokio::net::UnixListener;
use tokio::sync::oneshot;
use tonic::metadata::MetadataMap;
use tonic::transport::Server;
use tonic::{Request, Response, Status, async_trait};

use super::*;
use crate::fake::{Fake, ns, options};

/// What was asked, with the namespace that it was asked in.
#[derive(Clone, Default)]
struct Shim(Arc<Mutex<Vec<String>>>);

impl Shim {
    fn called(&self, what: &str, cx: &MetadataMap) {
        let ns = cx.get(NAMESPACE_HEADER).and_then(|v| v.to_str().ok());
        let told = format!("{what} in {}", ns.unwrap_or_default());
        self.0.lock().push(told);
    }
}

#[async_trait]
impl v3::task_server::Task for Shim {
    async fn create(
        &self,
        r: Request<v3::CreateTaskRequest>,
    ) -> Result<Response<v3::CreateTaskResponse>, Status> {
        self.called("create", r.metadata());
        Ok(Response::new(v3::CreateTaskResponse { pid: 42 }))
    }
    async fn state(
        &self,
        r: Request<v3::StateRequest>,
    ) -> Result<Response<v3::StateResponse>, Status> {
        assert!(r.metadata().contains_key("grpc-timeout"));
        match r.get_ref().exec_id.as_str() {
            "" => Ok(Response::new(v3::StateResponse {
                status: TaskStatus::Running.into(),
                ..Default::default()
            })),
            other => Err(Status::not_found(format!("process {other}: not found"))),
        }
    }
    async fn wait(
        &self,
        _: Request<v3::WaitRequest>,
    ) -> Result<Response<v3::WaitResponse>, Status> {
        std::future::pending().await
    }
    async fn delete(
        &self,
        r: Request<v3::DeleteRequest>,
    ) -> Result<Response<v3::DeleteResponse>, Status> {
        self.called("delete", r.metadata());
        Ok(Response::new(v3::DeleteResponse {
            pid: 42,
            exit_status: 7,
            ..Default::default()
        }))
    }
    async fn shutdown(&self, r: Request<v3::ShutdownRequest>) -> Result<Response<Empty>, Status> {
        self.called("shutdown", r.metadata());
        Ok(Response::new(Empty::default()))
    }
}

/// Serves the shim where `fake` says it is, until the sender is dropped; then every connection ends with it.
fn serve(fake: &Fake) -> (Shim, oneshot::Sender<()>) {
    let path = fake.path("sock");
    fake.answer(&format!(
        r#"{{"version":3,"address":"{}","protocol":"grpc"}}"#,
        path.display()
    ));
    let shim = Shim::default();
    let listener = UnixListener::bind(path).unwrap();
    let incoming = futures::stream::unfold(listener, |listener| async {
        let accepted = listener.accept().await.map(|(stream, _)| stream);
        Some((accepted, listener))
    });
    let served = Server::builder()
        .add_service(v3::task_server::TaskServer::new(shim.clone()))
        .serve_with_incoming(incoming);
    let (alive, dead) = oneshot::channel::<()>();
    // In a runtime of its own, which takes its connections with it.
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            tokio::select! {
                served = served => served.unwrap(),
                _ = dead => {}
            }
        });
    });
    (shim, alive)
}

#[tokio::test]
async fn a_task_comes_and_goes() {
    let fake = Fake::new();
    let (shim, _alive) = serve(&fake);
    let tasks = fake.manager();
    let task = tasks.create(&ns(), "c", options()).await.unwrap();
    assert_eq!(task.pid(), 42);
    assert_eq!(task.state("").await.unwrap().status, TaskStatus::Running);
    let e = task.state("x").await.unwrap_err();
    assert_eq!(
        (e.kind(), e.to_string().as_str()),
        (Kind::NotFound, "process x: not found")
    );
    assert_eq!(task.pause().await.unwrap_err().kind(), Kind::NotImplemented);
    assert_eq!(
        task.reopen_log("").await.unwrap_err().kind(),
        Kind::NotImplemented
    );
    assert_eq!(tasks.delete(&ns(), "c").await.unwrap().status, 7);
    assert_eq!(
        *shim.0.lock(),
        ["create in ns", "delete in ns", "shutdown in ns"]
    );
    assert!(fake.events.all().is_empty(), "its shim tells of it");
}

#[tokio::test]
async fn its_death_is_noticed() {
    let fake = Fake::new();
    let (_shim, alive) = serve(&fake);
    let tasks = fake.manager();
    let task = tasks.create(&ns(), "c", options()).await.unwrap();
    let waiting = tokio::spawn({
        let task = task.clone();
        async move { task.wait("").await }
    });
    tokio::task::yield_now().await;
    drop(alive);
    let exit = tokio::time::timeout(Duration::from_secs(40), waiting);
    assert_eq!(exit.await.unwrap().unwrap().unwrap().status, 137);
    assert_eq!(fake.ran("delete"), 1);
    assert_eq!(
        fake.events.all(),
        ["/tasks/exit ns/c 137", "/tasks/delete ns/c 137"]
    );
}

#[tokio::test]
async fn only_the_newest_api_is_spoken() {
    let fake = Fake::new();
    let (_shim, _alive) = serve(&fake);
    fake.answer(&format!(
        r#"{{"version":2,"address":"{}","protocol":"grpc"}}"#,
        fake.path("sock").display()
    ));
    let e = fake
        .manager()
        .create(&ns(), "c", options())
        .await
        .map(|_| ())
        .unwrap_err();
    let text = e.to_string();
    assert!(text.contains("only v3 GRPC task service (got 2)"), "{text}");
}
