//! A server whose containers are a few lines of code.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use corten_core::{Error, Result};
use corten_protos::runtime::v1::{AttachRequest, ExecRequest, PortForwardRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, oneshot, watch};

use crate::streaming::server::Urls;
use crate::streaming::{Config, Duplex, Runtime, Server, Streams};

/// What the containers do.
#[derive(Debug, Default)]
pub(super) struct Fake {
    pub(super) started: Notify,
    /// How many futures are under way.
    pub(super) running: Arc<watch::Sender<usize>>,
}

/// A server that runs while it is held.
pub(super) struct Served {
    pub(super) urls: Urls,
    pub(super) fake: Arc<Fake>,
    _stop: oneshot::Sender<()>,
}

struct Running(Arc<watch::Sender<usize>>);

impl Fake {
    fn begin(&self) -> Running {
        self.running.send_modify(|n| *n += 1);
        self.started.notify_one();
        Running(self.running.clone())
    }

    /// Waits until nothing runs any more.
    pub(super) async fn idle(&self) {
        let mut running = self.running.subscribe();
        let idle = running.wait_for(|n| *n == 0);
        tokio::time::timeout(Duration::from_secs(10), idle)
            .await
            .unwrap()
            .unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.send_modify(|n| *n -= 1);
    }
}

#[async_trait]
impl Runtime for Fake {
    async fn exec(&self, request: &ExecRequest, streams: Streams) -> Result<u32> {
        let _running = self.begin();
        let Streams {
            stdin,
            stdout,
            stderr,
            mut resize,
        } = streams;
        let words: Vec<_> = request.cmd.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["cat"] => {
                tokio::io::copy(&mut stdin.unwrap(), &mut stdout.unwrap()).await?;
                Ok(0)
            }
            ["exit", code] => {
                stdout.unwrap().write_all(b"out\n").await?;
                if let Some(mut stderr) = stderr {
                    stderr.write_all(b"err\n").await?;
                }
                Ok(code.parse().unwrap())
            }
            ["sizes", count] => {
                let mut stdout = stdout.unwrap();
                for _ in 0..count.parse().unwrap() {
                    let size = resize.next().await.unwrap();
                    let line = format!("{}x{}\n", size.width, size.height);
                    stdout.write_all(line.as_bytes()).await?;
                }
                Ok(0)
            }
            ["flood", size] => {
                let mut stdout = stdout.unwrap();
                let block = [b'x'; 8192];
                for _ in 0..size.parse::<usize>().unwrap() / block.len() {
                    stdout.write_all(&block).await?;
                }
                Ok(0)
            }
            ["deaf"] => {
                drop(stdin);
                stdout.unwrap().write_all(b"done").await?;
                Ok(0)
            }
            ["hang"] => std::future::pending().await,
            other => Err(Error::not_found(format!("executable {other:?}"))),
        }
    }

    async fn attach(&self, request: &AttachRequest, streams: Streams) -> Result<()> {
        let _running = self.begin();
        let request = ExecRequest {
            cmd: vec![request.container_id.clone()],
            ..ExecRequest::default()
        };
        self.exec(&request, streams).await.map(|_| ())
    }

    async fn port_forward(&self, sandbox: &str, port: u16, mut stream: Duplex) -> Result<()> {
        let _running = self.begin();
        match port {
            7 => {
                let (mut from, mut to) = tokio::io::split(stream);
                tokio::io::copy(&mut from, &mut to).await?;
                to.shutdown().await?;
                Ok(())
            }
            8 => {
                let mut all = Vec::new();
                stream.read_to_end(&mut all).await?;
                stream
                    .write_all(format!("{sandbox} got {}", all.len()).as_bytes())
                    .await?;
                Ok(())
            }
            9 => std::future::pending().await,
            _ => Err(Error::not_found(format!("listener at {port}"))),
        }
    }
}

pub(super) async fn serve(config: Config) -> Served {
    let fake = Arc::new(Fake::default());
    let server = Server::bind(config, fake.clone()).await.unwrap();
    let urls = server.urls();
    let (stop, stopped) = oneshot::channel();
    tokio::spawn(server.serve(async {
        let _: std::result::Result<(), _> = stopped.await;
    }));
    Served {
        urls,
        fake,
        _stop: stop,
    }
}

/// A request for all streams that a terminal or none leaves.
pub(super) fn exec(cmd: &[&str], tty: bool) -> ExecRequest {
    ExecRequest {
        container_id: "c".into(),
        cmd: cmd.iter().map(|w| (*w).to_owned()).collect(),
        tty,
        stdin: true,
        stdout: true,
        stderr: !tty,
    }
}

pub(super) fn forward(ports: &[i32]) -> PortForwardRequest {
    PortForwardRequest {
        pod_sandbox_id: "pod".into(),
        port: ports.to_vec(),
    }
}
