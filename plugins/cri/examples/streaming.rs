//! A streaming server for judging clients by hand: containers are processes of this machine, pods its loopback.
//!
//! Each line on stdin asks for a URL, which is printed: `exec ARGS`, `tty ARGS`, `attach ARGS`, `forward PORTS`, with
//! the words of a command separated by `|`.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a program to be used by hand"
)]

use std::process::Stdio;
use std::sync::Arc;

use async_trait::async_trait;
use corten_core::Result;
use corten_cri::streaming::{Config, Duplex, Runtime, Server, Streams};
use corten_protos::runtime::v1::{AttachRequest, ExecRequest, PortForwardRequest};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, copy, copy_bidirectional};
use tokio::net::TcpStream;
use tokio::process::Command;

struct Machine;

#[async_trait]
impl Runtime for Machine {
    async fn exec(&self, request: &ExecRequest, streams: Streams) -> Result<u32> {
        let Streams {
            stdin,
            stdout,
            stderr,
            mut resize,
        } = streams;
        let mut stdout = stdout.unwrap();
        if request.tty {
            while let Some(size) = resize.next().await {
                let line = format!("{}x{}\r\n", size.width, size.height);
                stdout.write_all(line.as_bytes()).await?;
                if size.width == 1 {
                    break;
                }
            }
            return Ok(0);
        }
        let mut child = Command::new(request.cmd.first().unwrap())
            .args(request.cmd.iter().skip(1))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let (mut to, mut out, mut err) = (
            child.stdin.take().unwrap(),
            child.stdout.take().unwrap(),
            child.stderr.take().unwrap(),
        );
        let feed = tokio::spawn(async move {
            if let Some(mut stdin) = stdin {
                let _ = copy(&mut stdin, &mut to).await;
            }
        });
        let outputs = async {
            let errors = async {
                match stderr {
                    Some(mut stderr) => copy(&mut err, &mut stderr).await,
                    None => Ok(0),
                }
            };
            tokio::join!(copy(&mut out, &mut stdout), errors)
        };
        let (status, _) = tokio::join!(child.wait(), outputs);
        feed.abort();
        Ok(u32::try_from(status?.code().unwrap_or(255)).unwrap())
    }

    async fn attach(&self, request: &AttachRequest, streams: Streams) -> Result<()> {
        let cmd = request.container_id.split('|').map(str::to_owned).collect();
        let request = ExecRequest {
            cmd,
            ..ExecRequest::default()
        };
        self.exec(&request, streams).await.map(|_| ())
    }

    async fn port_forward(&self, _: &str, port: u16, mut stream: Duplex) -> Result<()> {
        let mut target = TcpStream::connect(("127.0.0.1", port)).await?;
        copy_bidirectional(&mut stream, &mut target).await?;
        Ok(())
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let server = Server::bind(Config::default(), Arc::new(Machine))
        .await
        .unwrap();
    let urls = server.urls();
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let ask = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            let (verb, args) = line.split_once(' ').unwrap();
            let words: Vec<String> = args.split('|').map(str::to_owned).collect();
            let tty = verb == "tty";
            let url = match verb {
                "forward" => urls.port_forward(PortForwardRequest {
                    pod_sandbox_id: "pod".into(),
                    port: args.split(',').map(|p| p.parse().unwrap()).collect(),
                }),
                "attach" => urls.attach(AttachRequest {
                    container_id: args.into(),
                    stdin: true,
                    stdout: true,
                    stderr: true,
                    tty: false,
                }),
                _ => urls.exec(ExecRequest {
                    container_id: "c".into(),
                    cmd: words,
                    tty,
                    stdin: true,
                    stdout: true,
                    stderr: !tty,
                }),
            };
            println!("{}", url.unwrap());
        }
    };
    server.serve(ask).await;
}
