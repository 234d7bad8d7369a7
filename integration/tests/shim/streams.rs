//! Standard streams beside fifos: terminals of loggers and files, streams that clients open on the shim's socket.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use corten_integration::process::program;
use corten_protos::any;
use corten_protos::containerd::services::streaming::v1::StreamInit;
use corten_protos::containerd::types::transfer::{Data, WindowUpdate};
use corten_protos::corten::pod::v1::AttachRequest;
use corten_protos::google::protobuf::{Any, Empty};
use corten_protos::ttrpc::{PodClient, StreamingClient};
use ttrpc::r#async::{CSReceiver, CSSender};

use crate::container::{Container, Io, context, within};
use crate::host::{Host, is_reference, until};

/// A logger that writes its descriptor 3 to the file of its second argument.
pub(crate) fn logger(h: &Host, ready: &str) -> PathBuf {
    let path = h.base.join("logger");
    let script = format!("#!/bin/sh\n{ready}\nexec 5>&-\nexec /bin/cat <&3 >\"$2\"\n");
    program(&path, &script);
    path
}

async fn has(file: &Path, text: &str) {
    let (path, wanted) = (file.to_owned(), text.to_owned());
    let holds = move || fs::read_to_string(&path).is_ok_and(|seen| seen == wanted);
    until(&format!("{text:?} in {}", file.display()), holds).await;
}

/// Runs a container with a terminal whose output goes to `stdout`, and an exec like it.
pub(crate) async fn on_a_terminal(
    h: &Arc<Host>,
    options: Option<Any>,
    stdout: &(dyn Fn(&Path) -> String + Sync),
) {
    let (file, other) = (h.base.join("out"), h.base.join("exec-out"));
    let io = |file: &Path| Io {
        stdout: stdout(file),
        terminal: true,
        ..Io::default()
    };
    let script = "tty; echo first; exec sleep 1000000";
    let mut recipe = h.container("c", &["sh", "-c", script]).terminal();
    if let Some(options) = options {
        recipe = recipe.options(options);
    }
    let c = recipe.make().await;
    c.create_with(&io(&file)).await.unwrap();
    c.start().await.unwrap();
    has(&file, "/dev/pts/0\r\nfirst\r\n").await;
    c.exec("e", &["sh", "-c", "tty; exit 3"], &io(&other))
        .await
        .unwrap();
    c.start_exec("e").await.unwrap();
    assert_eq!(c.wait_exec("e").await.unwrap(), 3);
    c.delete_exec("e").await.unwrap();
    has(&other, "/dev/pts/1\r\n").await;
    assert_eq!(c.kill_and_delete().await, 137);
}

pub(crate) async fn a_terminal_writes_to_a_logger(h: Arc<Host>) {
    let path = logger(&h, "");
    let uri = |file: &Path| format!("binary://{}?file={}", path.display(), file.display());
    on_a_terminal(&h, None, &uri).await;
}

pub(crate) async fn a_terminal_writes_to_a_logger_that_says_it_is_ready(h: Arc<Host>) {
    if is_reference() {
        println!("Corten only: binary-v2");
        return;
    }
    let path = logger(&h, "printf r >&5");
    let uri = |file: &Path| format!("binary-v2://{}?file={}", path.display(), file.display());
    on_a_terminal(&h, None, &uri).await;
}

pub(crate) async fn a_terminal_writes_to_a_file(h: Arc<Host>) {
    if is_reference() {
        println!("Corten only: the stock shim refuses a terminal with file://");
        return;
    }
    on_a_terminal(&h, None, &|file| format!("file://{}", file.display())).await;
}

/// A stream that was opened on a shim's socket.
struct Stream {
    sender: CSSender<Any>,
    receiver: CSReceiver<Any>,
    seen: String,
}

// === impl Stream ===

impl Stream {
    async fn open(c: &Container, id: &str) -> Self {
        let client = StreamingClient::new(c.shim.client.clone());
        let mut stream = client.stream(context()).await.unwrap();
        let init = StreamInit { id: id.to_owned() };
        stream.send(&any::pack(&init)).await.unwrap();
        assert!(any::is::<Empty>(&stream.recv().await.unwrap()));
        let (sender, receiver) = stream.split();
        Self {
            sender,
            receiver,
            seen: String::new(),
        }
    }

    /// Lets the other side send so much.
    async fn allow(&self, update: i32) {
        let update = any::pack(&WindowUpdate { update });
        self.sender.send(&update).await.unwrap();
    }

    async fn send(&self, text: &str) {
        let data = text.as_bytes().to_vec().into();
        self.sender.send(&any::pack(&Data { data })).await.unwrap();
    }

    /// Reads until `text` has come.
    async fn wait(&mut self, text: &str) {
        while !self.seen.contains(text) {
            let limit = Duration::from_secs(15);
            let next = tokio::time::timeout(limit, self.receiver.recv()).await;
            let next =
                next.unwrap_or_else(|_| panic!("no {text:?} in {limit:?}, but {:?}", self.seen));
            let Ok(next) = next else {
                panic!("the stream ended before {text:?}, after {:?}", self.seen);
            };
            let data: Data = any::unpack(&next).expect("data");
            self.seen.push_str(&String::from_utf8_lossy(&data.data));
        }
    }
}

fn url(c: &Container, id: &str) -> String {
    format!("ttrpc+{}?streaming_id={id}", c.address)
}

pub(crate) async fn a_terminal_speaks_over_streams(h: Arc<Host>) {
    if is_reference() {
        println!("Corten only: the stock shim has no streaming service");
        return;
    }
    let script = "while read l; do echo got $l; done; exit 4";
    let c = h
        .container("c", &["sh", "-c", script])
        .terminal()
        .make()
        .await;
    let input = Stream::open(&c, "in").await;
    let mut output = Stream::open(&c, "out").await;
    let io = Io {
        stdin: url(&c, "in"),
        stdout: url(&c, "out"),
        terminal: true,
        ..Io::default()
    };
    c.create_with(&io).await.unwrap();
    c.start().await.unwrap();
    output.allow(1 << 20).await;
    input.send("hello\n").await;
    output.wait("got hello\r\n").await;
    // What a terminal takes for the end.
    input.send("\x04").await;
    assert_eq!(c.wait().await, 4);
    assert_eq!(c.delete().await, 4);
}

/// Any number of clients see the output of a process that logs, by fifo or by stream, and may go.
pub(crate) async fn clients_attach_to_a_log(h: Arc<Host>) {
    if is_reference() {
        println!("Corten only: cri-log");
        return;
    }
    let log = h.base.join("cri.log");
    for terminal in [false, true] {
        let id = if terminal { "tty" } else { "plain" };
        let script = "while [ ! -e /go ]; do sleep 0.02; done; echo one; while [ ! -e /on ]; do sleep 0.02; done; echo two; exec sleep 1000000";
        let mut recipe = h.container(id, &["sh", "-c", script]);
        if terminal {
            recipe = recipe.terminal();
        }
        let c = recipe.make().await;
        let io = Io {
            stdout: format!("cri-log://{}", log.display()),
            terminal,
            ..Io::default()
        };
        c.create_with(&io).await.unwrap();
        c.start().await.unwrap();
        let pod = PodClient::new(c.shim.client.clone());
        let mut streams = Vec::new();
        for name in ["a", "b"] {
            let stream = Stream::open(&c, name).await;
            stream.allow(1 << 20).await;
            let request = AttachRequest {
                container_id: id.to_owned(),
                stdout: url(&c, name),
                ..AttachRequest::default()
            };
            within("Attach", pod.attach(context(), &request))
                .await
                .unwrap();
            streams.push(stream);
        }
        let end = if terminal { "\r\n" } else { "\n" };
        assert_eq!(c.run("go", &["touch", "/go"]).await, 0);
        for stream in &mut streams {
            stream.wait(&format!("one{end}")).await;
        }
        // One of them leaves.
        drop(streams.pop());
        assert_eq!(c.run("on", &["touch", "/on"]).await, 0);
        for stream in &mut streams {
            stream.wait(&format!("two{end}")).await;
        }
        assert_eq!(c.kill_and_delete().await, 137);
    }
    let text = fs::read_to_string(&log).unwrap();
    let lines: Vec<_> = text
        .lines()
        .filter_map(|l| l.split_once(' '))
        .map(|l| l.1)
        .collect();
    assert_eq!(lines.len(), 4, "{text}");
    assert_eq!(lines[..2], ["stdout F one", "stdout F two"], "{text}");
}
