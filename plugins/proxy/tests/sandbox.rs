//! A sandbox controller behind a socket.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;
use std::time::Duration;

use corten_core::sandbox::CreateOptions;
use corten_core::{Kind, Namespace};
use corten_protos::containerd::services::sandbox::v1 as api;
use corten_protos::containerd::types::Sandbox;
use parking_lot::Mutex;
use tonic::{Request, Response, Status, async_trait};

/// Remembers what it was asked, with the namespace.
#[derive(Clone, Default)]
struct Fake(Arc<Mutex<Vec<String>>>);

impl Fake {
    fn asked<T>(&self, what: &str, r: &Request<T>, id: &str, sandboxer: &str) {
        let ns = r.metadata().get("containerd-namespace").unwrap();
        let line = format!("{what} {}/{id} {sandboxer}", ns.to_str().unwrap());
        self.0.lock().push(line);
    }
}

#[async_trait]
impl api::controller_server::Controller for Fake {
    async fn create(
        &self,
        r: Request<api::ControllerCreateRequest>,
    ) -> Result<Response<api::ControllerCreateResponse>, Status> {
        let m = r.get_ref();
        self.asked("create", &r, &m.sandbox_id, &m.sandboxer);
        assert_eq!(m.sandbox.as_ref().unwrap().sandbox_id, m.sandbox_id);
        Ok(Response::new(Default::default()))
    }
    async fn wait(
        &self,
        r: Request<api::ControllerWaitRequest>,
    ) -> Result<Response<api::ControllerWaitResponse>, Status> {
        let m = r.get_ref();
        self.asked("wait", &r, &m.sandbox_id, &m.sandboxer);
        if self.0.lock().len() < 3 {
            return Err(Status::unavailable("restarting"));
        }
        Ok(Response::new(api::ControllerWaitResponse {
            exit_status: 9,
            exited_at: None,
        }))
    }
    async fn stop(
        &self,
        _: Request<api::ControllerStopRequest>,
    ) -> Result<Response<api::ControllerStopResponse>, Status> {
        Err(Status::not_found("no such sandbox"))
    }
}

#[tokio::test]
async fn calls_arrive_with_names_and_waiting_outlives_the_controller() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sock");
    let fake = Fake::default();
    let server = tonic::transport::Server::builder()
        .add_service(api::controller_server::ControllerServer::new(fake.clone()));
    let address = path.to_str().unwrap().to_owned();
    let proxy = corten_proxy::sandbox("vm", &address).unwrap();
    let ns = Namespace::new("ns").unwrap();
    // Nobody is there yet: the wait waits.
    let waiting = tokio::spawn({
        let (proxy, ns) = (proxy.clone(), ns.clone());
        async move { proxy.wait(&ns, "s").await }
    });
    tokio::task::yield_now().await;
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
    tokio::spawn(server.serve_with_incoming(incoming));
    let sandbox = Sandbox {
        sandbox_id: "s".into(),
        ..Default::default()
    };
    proxy
        .create(&ns, sandbox, CreateOptions::default())
        .await
        .unwrap();
    let exit = tokio::time::timeout(Duration::from_secs(20), waiting).await;
    assert_eq!(exit.unwrap().unwrap().unwrap().exit_status, 9);
    assert_eq!(fake.0.lock()[0], "create ns/s vm");
    let e = proxy
        .stop(&ns, "s", Duration::from_secs(1))
        .await
        .unwrap_err();
    assert_eq!(
        (e.kind(), e.to_string().as_str()),
        (Kind::NotFound, "no such sandbox")
    );
    let e = proxy.start(&ns, "s").await.unwrap_err();
    assert_eq!(e.kind(), Kind::NotImplemented);
}
