//! What the streaming server's clients are joined with: processes, containers, ports of pods.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use corten_core::{Context, Error, Kind, Result};
use corten_protos::runtime::v1::{AttachRequest, ExecRequest};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::fifos::Wanted;
use super::process::{self, Carried, Command};
use crate::cri::Cri;
use crate::pods::request;
use crate::streaming::{Duplex, Runtime, Streams as Clients};

/// How long a connection into a pod may take to be made.
const DIAL: Duration = Duration::from_secs(10);
/// How long a client may go on sending once the pod's side has ended.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The containers and pods of a CRI plugin, for its streaming server.
#[derive(Debug, Clone)]
pub struct Streams(Arc<Cri>);

impl Streams {
    /// Those of `cri`.
    pub fn new(cri: Arc<Cri>) -> Self {
        Self(cri)
    }
}

#[async_trait]
impl Runtime for Streams {
    async fn exec(&self, request: &ExecRequest, clients: Clients) -> Result<u32> {
        let container = self.0.running(&request.container_id)?;
        let command = Command {
            args: request.cmd.clone(),
            wanted: Wanted {
                tty: request.tty,
                stdin: clients.stdin.is_some(),
                stdout: clients.stdout.is_some(),
                stderr: clients.stderr.is_some(),
            },
            limit: None,
            owned: false,
        };
        let streams = process::Streams {
            stdin: clients.stdin,
            stdout: Carried(clients.stdout),
            stderr: Carried(clients.stderr),
            resize: clients.resize,
        };
        let (tell, told) = oneshot::channel();
        let run = process::run(self.0.clone(), container, command, streams, tell);
        self.0.background.spawn("exec", run);
        let ended = told
            .await
            .map_err(|_| Error::internal("an exec ended early"))?;
        ended.map(|(code, _, _)| code)
    }

    async fn attach(&self, request: &AttachRequest, clients: Clients) -> Result<()> {
        let container = self.0.running(&request.container_id)?;
        self.0.join_client(&container, request.tty, clients).await
    }

    async fn port_forward(&self, sandbox: &str, port: u16, stream: Duplex) -> Result<()> {
        let pod = self
            .0
            .pods
            .get(sandbox)
            .with_context(|| format!("failed to find sandbox {sandbox:?} in store"))?;
        let (config, netns) = {
            let metadata = pod.metadata.read();
            (metadata.config.clone(), metadata.netns_path.clone())
        };
        let netns = (!request::host_network(&config)).then_some(netns);
        let target = dial(netns.as_deref(), port).await.with_context(|| {
            let inside = netns.as_deref().unwrap_or("host");
            format!("failed to execute portforward in network namespace {inside:?}")
        })?;
        carry(stream, target).await?;
        Ok(())
    }
}

/// Connects to a port of the loopback in a network namespace, IPv4 first; the host's when none is given.
async fn dial(netns: Option<&str>, port: u16) -> Result<TcpStream> {
    let netns = netns.map(|path| Path::new(path).to_owned());
    let connect = move || {
        let mut why = Vec::new();
        for address in [
            IpAddr::from(Ipv4Addr::LOCALHOST),
            Ipv6Addr::LOCALHOST.into(),
        ] {
            let address = SocketAddr::new(address, port);
            match std::net::TcpStream::connect_timeout(&address, DIAL) {
                Ok(stream) => return Ok(stream),
                Err(e) => why.push(format!("{address}: {}", Error::from(e))),
            }
        }
        let why = why.join(", ");
        Err(Error::new(
            Kind::Unknown,
            format!("failed to connect to localhost:{port}: {why}"),
        ))
    };
    let stream = corten_sys::blocking(move || match netns {
        Some(path) => corten_sys::netns::within(&path, connect),
        None => connect(),
    })
    .await?;
    stream.set_nonblocking(true)?;
    Ok(TcpStream::from_std(stream)?)
}

/// Carries both ways until both have ended; a pod that has said its last word does not hear much more.
async fn carry<C, P>(client: C, pod: P) -> std::io::Result<()>
where
    C: AsyncRead + AsyncWrite + Unpin,
    P: AsyncRead + AsyncWrite + Unpin,
{
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_pod, mut to_pod) = tokio::io::split(pod);
    let up = async {
        let copied = tokio::io::copy(&mut from_client, &mut to_pod).await;
        // A pod that is gone already hears of no end.
        let _ = to_pod.shutdown().await;
        copied.map(|_| ())
    };
    let down = async {
        let copied = tokio::io::copy(&mut from_pod, &mut to_client).await;
        let _ = to_client.shutdown().await;
        copied.map(|_| ())
    };
    tokio::pin!(up, down);
    tokio::select! {
        done = &mut down => match tokio::time::timeout(LAST_WORDS, up).await {
            // What the pod did not want to hear is not a failure of forwarding.
            Ok(_) | Err(_) => done,
        },
        done = &mut up => {
            done?;
            down.await
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn a_half_closed_request_gets_its_whole_answer() {
        let (mut client, ours) = tokio::io::duplex(64);
        let (mut pod, theirs) = tokio::io::duplex(64);
        let forward = tokio::spawn(carry(ours, theirs));
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut heard = Vec::new();
        pod.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"question");
        let answer = vec![b'x'; 100_000];
        let (mut got, wrote) = (Vec::new(), answer.clone());
        let write = async {
            pod.write_all(&wrote).await.unwrap();
            drop(pod);
        };
        let (read, ()) = tokio::join!(client.read_to_end(&mut got), write);
        read.unwrap();
        assert_eq!(got, answer);
        forward.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_client_does_not_keep_an_ended_connection() {
        let (_client, ours) = tokio::io::duplex(64);
        let (pod, theirs) = tokio::io::duplex(64);
        drop(pod);
        let forward = tokio::time::timeout(LAST_WORDS * 2, carry(ours, theirs));
        forward.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn both_families_are_tried() {
        let listener = tokio::net::TcpListener::bind("[::1]:0").await;
        let Ok(listener) = listener else {
            eprintln!("skipped: no IPv6");
            return;
        };
        let port = listener.local_addr().unwrap().port();
        let (dialled, accepted) = tokio::join!(dial(None, port), listener.accept());
        assert!(dialled.is_ok() && accepted.is_ok());
        drop(listener);
        let e = dial(None, port).await.unwrap_err().to_string();
        assert!(e.contains("127.0.0.1") && e.contains("[::1]"), "{e}");
    }
}
