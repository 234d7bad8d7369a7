//! The printed ttrpc stubs against each other over a socket, on the one thread that a shim has.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
#![cfg(feature = "ttrpc")]

use std::sync::Arc;

use corten_protos::any;
use corten_protos::containerd::task::v3::{StateRequest, StateResponse, WaitRequest};
use corten_protos::google::protobuf::{Any, Empty};
use corten_protos::ttrpc::runtime::{
    Client, Context, Error, Result, ServerStream, TtrpcContext, async_trait,
};
use corten_protos::ttrpc::{
    Streaming, StreamingClient, TASK_V2, Task, TaskClient, create_streaming, create_task_v2,
    create_task_v3, error,
};
use ttrpc::r#async::Server;
use ttrpc::proto::Code;

struct Shim;

#[async_trait]
impl Task for Shim {
    async fn state(&self, ctx: &TtrpcContext, req: StateRequest) -> Result<StateResponse> {
        if req.id != "c1" {
            return Err(error(Code::NOT_FOUND, "no such container"));
        }
        let namespace = ctx.metadata["containerd-namespace-ttrpc"][0].clone();
        Ok(StateResponse {
            id: req.id,
            pid: 7,
            bundle: namespace,
            ..Default::default()
        })
    }
}

#[async_trait]
impl Streaming for Shim {
    async fn stream(&self, _: &TtrpcContext, mut stream: ServerStream<Any, Any>) -> Result<()> {
        while let Some(any) = stream.recv().await? {
            stream.send(&any).await?;
        }
        Ok(())
    }
}

async fn serve(dir: &tempfile::TempDir) -> (Server, Client) {
    let address = format!("unix://{}/s.sock", dir.path().display());
    // Served as a trait object under one name and as its own type under the other.
    let object: Arc<dyn Task> = Arc::new(Shim);
    let mut server = Server::new()
        .bind(&address)
        .unwrap()
        .register_service(create_task_v3(object))
        .register_service(create_task_v2(Arc::new(Shim)))
        .register_service(create_streaming(Arc::new(Shim)));
    server.start().await.unwrap();
    let client = Client::connect(&address).await.unwrap();
    (server, client)
}

fn status(error: Error) -> (Code, String) {
    let Error::RpcStatus(status) = error else {
        panic!("not a status: {error}")
    };
    (status.code(), status.message)
}

#[tokio::test]
async fn one_server_answers_under_both_names() {
    let dir = tempfile::tempdir().unwrap();
    let (mut server, client) = serve(&dir).await;
    for task in [
        TaskClient::new(client.clone()),
        TaskClient::with_service(client, TASK_V2),
    ] {
        let mut ctx = Context::default();
        ctx.add("containerd-namespace-ttrpc".into(), "default".into());
        let request = StateRequest {
            id: "c1".into(),
            ..Default::default()
        };
        let state = task.state(ctx, &request).await.unwrap();
        assert_eq!((state.pid, state.bundle.as_str()), (7, "default"));

        let error = task
            .state(Context::default(), &StateRequest::default())
            .await
            .unwrap_err();
        assert_eq!(status(error), (Code::NOT_FOUND, "no such container".into()));

        let error = task
            .wait(Context::default(), &WaitRequest::default())
            .await
            .unwrap_err();
        assert_eq!(status(error).0, Code::UNIMPLEMENTED);
    }
    server.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_stream_echoes() {
    let dir = tempfile::tempdir().unwrap();
    let (mut server, client) = serve(&dir).await;
    let mut stream = StreamingClient::new(client)
        .stream(Context::default())
        .await
        .unwrap();
    for _ in 0..3 {
        let any = any::pack(&Empty {});
        stream.send(&any).await.unwrap();
        assert_eq!(stream.recv().await.unwrap(), any);
    }
    stream.close_send().await.unwrap();
    assert!(matches!(
        stream.recv().await,
        Err(Error::Eof | Error::RemoteClosed)
    ));
    server.shutdown().await.unwrap();
}
