//! The services as a client sees them: over a socket, with the ttrpc crate at both ends.

use std::path::PathBuf;

use corten_protos::any;
use corten_protos::containerd::runtime::sandbox::v1::{
    CreateSandboxRequest, PingRequest, SandboxStatusRequest, ShutdownSandboxRequest,
    StartSandboxRequest, StopSandboxRequest, UpdateSandboxRequest,
};
use corten_protos::containerd::services::streaming::v1::StreamInit;
use corten_protos::containerd::types::transfer::{Data, WindowUpdate};
use corten_protos::corten::pod::v1::ReopenLogRequest;
use corten_protos::google::protobuf::{Any, Empty};
use corten_protos::ttrpc::{PodClient, SandboxClient, StreamingClient};
use tokio::net::{UnixListener, UnixStream};
use ttrpc::r#async::{CSReceiver, CSSender};
use ttrpc::asynchronous::transport::{Listener, Socket};
use ttrpc::asynchronous::{Client, Server};

use super::*;
use crate::events::Events;
use crate::io::{self, Stdio};

/// A shim that is served in this process, and a client of it.
struct Served {
    dir: PathBuf,
    shim: Rc<Shim>,
    client: Client,
    _server: Server,
}

impl Served {
    async fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("corten-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let listener = UnixListener::bind(dir.join("s")).unwrap();
        let incoming = futures::stream::unfold(listener, |listener| async move {
            let stream = listener.accept().await.map(|(stream, _)| stream);
            Some((stream, listener))
        });
        let (services, calls) = services();
        let mut server = Server::new()
            .add_listener(Listener::new(incoming))
            .register_service(services);
        server.start().await.unwrap();
        let shim = Rc::new(Shim::new("n", Rc::new(Events::new("n", "")), None));
        spawn_local(serve(shim.clone(), calls));
        let stream = UnixStream::connect(dir.join("s")).await.unwrap();
        Self {
            dir,
            shim,
            client: Client::new(Socket::new(stream)),
            _server: server,
        }
    }

    async fn open(&self, id: &str) -> (CSSender<Any>, CSReceiver<Any>) {
        let client = StreamingClient::new(self.client.clone());
        let context = ttrpc::context::Context::default();
        let mut stream = client.stream(context).await.unwrap();
        let init = StreamInit { id: id.to_owned() };
        stream.send(&any::pack(&init)).await.unwrap();
        assert!(any::is::<Empty>(&stream.recv().await.unwrap()));
        stream.split()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

#[test]
fn output_flows_as_far_as_the_client_allows() {
    run(async {
        let served = Served::new("stream-out").await;
        let (sender, mut receiver) = served.open("out").await;
        let stdio = Stdio {
            stdout: "ttrpc+unix:///s?streaming_id=out".to_owned(),
            ..Stdio::default()
        };
        let (child, io) = io::open(&served.shim, "c", &stdio, (0, 0), &(0, 0))
            .await
            .unwrap();
        let corten_oci::Stdio::Fds(_, stdout, _) = child else {
            panic!("{child:?}");
        };
        rustix::io::write(&stdout, b"0123456789").unwrap();
        let allow = |update| any::pack(&WindowUpdate { update });
        let mut text = Vec::new();
        for window in [4, 100] {
            sender.send(&allow(window)).await.unwrap();
            let data: Data = any::unpack(&receiver.recv().await.unwrap()).unwrap();
            text.push(String::from_utf8(data.data.to_vec()).unwrap());
        }
        assert_eq!(text, ["0123", "456789"]);
        drop(stdout);
        io.drain().await;
        assert!(receiver.recv().await.is_err(), "the end");
        io.close().await;
    });
}

#[test]
fn input_ends_where_the_client_closes_its_stream() {
    run(async {
        let served = Served::new("stream-in").await;
        let (sender, mut receiver) = served.open("in").await;
        let stdio = Stdio {
            stdin: "ttrpc+unix:///s?streaming_id=in".to_owned(),
            ..Stdio::default()
        };
        let (child, _io) = io::open(&served.shim, "c", &stdio, (0, 0), &(0, 0))
            .await
            .unwrap();
        let corten_oci::Stdio::Fds(stdin, ..) = child else {
            panic!("{child:?}");
        };
        let update = receiver.recv().await.unwrap();
        assert!(any::is::<WindowUpdate>(&update));
        let data = Data {
            data: b"typed".to_vec().into(),
        };
        sender.send(&any::pack(&data)).await.unwrap();
        sender.close_send().await.unwrap();
        let reader = std::thread::spawn(move || {
            std::io::read_to_string(std::fs::File::from(stdin)).unwrap()
        });
        while !reader.is_finished() {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        assert_eq!(reader.join().unwrap(), "typed");
    });
}

#[test]
fn a_sandbox_lives_from_create_to_shutdown() {
    run(async {
        let served = Served::new("sandbox").await;
        let client = SandboxClient::new(served.client.clone());
        let context = ttrpc::context::Context::default;
        let sandbox_id = || "pod".to_owned();
        let ping = PingRequest {
            sandbox_id: sandbox_id(),
        };
        assert!(client.ping_sandbox(context(), &ping).await.is_err());
        let create = CreateSandboxRequest {
            sandbox_id: sandbox_id(),
            bundle_path: served.dir.to_str().unwrap().to_owned(),
            ..Default::default()
        };
        if let Err(e) = client.create_sandbox(context(), &create).await {
            println!("skipped: {e} (needs root)");
            return;
        }
        assert!(client.create_sandbox(context(), &create).await.is_err());
        assert!(!served.shim.is_idle());
        let start = StartSandboxRequest {
            sandbox_id: sandbox_id(),
        };
        let started = client.start_sandbox(context(), &start).await.unwrap();
        assert!(client.start_sandbox(context(), &start).await.is_err());
        let holder = format!("/proc/{}/ns/ipc", started.pid);
        let own = std::fs::read_link("/proc/self/ns/ipc").unwrap();
        assert_ne!(std::fs::read_link(holder).unwrap(), own);
        let status = SandboxStatusRequest {
            sandbox_id: sandbox_id(),
            verbose: true,
        };
        let got = client.sandbox_status(context(), &status).await.unwrap();
        assert_eq!(
            (got.state.as_str(), got.pid),
            ("SANDBOX_READY", started.pid)
        );
        let said = |json: &str| any::pack_json("io.containerd.cri.v1/UpdatedResources", json);
        let update = |json: &str| UpdateSandboxRequest {
            sandbox_id: sandbox_id(),
            sandbox: Some(corten_protos::containerd::types::Sandbox {
                extensions: [("updated-resources".to_owned(), said(json))].into(),
                ..Default::default()
            }),
            fields: vec!["extensions".to_owned()],
            ..Default::default()
        };
        let good = update(r#"{"Resources":{"cpu_shares":512}}"#);
        client.update_sandbox(context(), &good).await.unwrap();
        assert!(
            client
                .update_sandbox(context(), &update("{"))
                .await
                .is_err()
        );
        let got = client.sandbox_status(context(), &status).await.unwrap();
        let info: serde_json::Value = serde_json::from_str(&got.info["info"]).unwrap();
        assert_eq!(info["updatedResources"]["Resources"]["cpu_shares"], 512);
        let stop = StopSandboxRequest {
            sandbox_id: sandbox_id(),
            timeout_secs: 1,
        };
        client.stop_sandbox(context(), &stop).await.unwrap();
        let got = client.sandbox_status(context(), &status).await.unwrap();
        assert_eq!(got.state, "SANDBOX_NOTREADY");
        let shutdown = ShutdownSandboxRequest {
            sandbox_id: sandbox_id(),
        };
        client.shutdown_sandbox(context(), &shutdown).await.unwrap();
        assert!(served.shim.is_idle());
        assert!(served.shim.reserve("late").is_err(), "it is leaving");
    });
}

#[test]
fn only_known_processes_have_logs() {
    run(async {
        let served = Served::new("pod").await;
        let client = PodClient::new(served.client.clone());
        let request = ReopenLogRequest {
            container_id: "nobody".to_owned(),
            ..Default::default()
        };
        let context = ttrpc::context::Context::default();
        let error = client.reopen_log(context, &request).await.unwrap_err();
        assert!(matches!(error, ttrpc::Error::RpcStatus(s) if s.code() == ttrpc::Code::NOT_FOUND));
    });
}
