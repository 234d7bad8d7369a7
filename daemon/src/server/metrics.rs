//! The Prometheus endpoint: `/v1/metrics` in the text format, under containerd's metric names.
//!
//! The count of calls is a plugin's, as all other figures that are not of the process as such.

use std::fmt::Write as _;
use std::sync::Arc;

use corten_core::metrics::{Source, escape, family};
use futures::future::join_all;

use super::process::Process;
use super::web::{Answer, Handler};
use crate::cli::VERSION;

const PATH: &str = "/v1/metrics";
const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";

/// Answers [`PATH`] with the daemon's own figures and those of `sources`.
pub(super) fn handler(sources: Vec<Arc<dyn Source>>) -> Handler {
    let shared = Arc::new(sources);
    Arc::new(move |path| {
        let shared = (path == PATH).then(|| shared.clone());
        Box::pin(async move {
            let sources = shared?;
            let mut out = text(&Process::now());
            for figures in join_all(sources.iter().map(|s| s.collect())).await {
                out.push_str(&figures);
            }
            Some(Answer::ok(CONTENT_TYPE, out))
        })
    })
}

fn text(process: &Process) -> String {
    let mut out = String::with_capacity(16 << 10);
    family(
        &mut out,
        "containerd_build_info_total",
        "counter",
        "containerd build information",
    );
    let _ = writeln!(
        out,
        "containerd_build_info_total{{revision=\"\",version=\"{}\"}} 1",
        escape(VERSION)
    );
    let p = process;
    for (name, kind, help, value) in [
        (
            "process_cpu_seconds_total",
            "counter",
            "Total user and system CPU time spent in seconds.",
            p.cpu_seconds,
        ),
        (
            "process_max_fds",
            "gauge",
            "Maximum number of open file descriptors.",
            p.max_fds as f64,
        ),
        (
            "process_open_fds",
            "gauge",
            "Number of open file descriptors.",
            p.open_fds as f64,
        ),
        (
            "process_resident_memory_bytes",
            "gauge",
            "Resident memory size in bytes.",
            p.resident_bytes as f64,
        ),
        (
            "process_start_time_seconds",
            "gauge",
            "Start time of the process since unix epoch in seconds.",
            p.started,
        ),
        (
            "process_threads",
            "gauge",
            "Number of OS threads in the process.",
            p.threads as f64,
        ),
        (
            "process_virtual_memory_bytes",
            "gauge",
            "Virtual memory size in bytes.",
            p.virtual_bytes as f64,
        ),
    ] {
        family(&mut out, name, kind, help);
        let _ = writeln!(out, "{name} {value}");
    }
    out
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::super::calls::Calls;
    use super::super::web;
    use super::*;

    #[tokio::test]
    async fn every_line_is_a_comment_or_a_sample() {
        let calls = Calls::new(true);
        let call = calls
            .start("/containerd.services.version.v1.Version/Version")
            .unwrap();
        call.finish(tonic::Code::Ok);
        let process = Process {
            resident_bytes: 5,
            started: 1.5,
            ..Process::default()
        };
        let text = calls.collect().await + &text(&process);
        for line in text.lines().filter(|l| !l.starts_with("# ")) {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().is_ok(), "{line}");
            assert!(
                !name.contains(' ') && name.contains('{') == name.ends_with('}'),
                "{line}"
            );
        }
        assert!(
            text.contains("\nprocess_resident_memory_bytes 5\n"),
            "{text}"
        );
        assert!(
            text.contains("\nprocess_start_time_seconds 1.5\n"),
            "{text}"
        );
        assert!(text.ends_with('\n'));
    }

    struct Fixed;

    #[async_trait::async_trait]
    impl Source for Fixed {
        async fn collect(&self) -> String {
            "container_x 1\n".into()
        }
    }

    #[tokio::test]
    async fn the_endpoint_serves_its_path_and_nothing_else() {
        let listener = web::Listener::Tcp(web::bind_tcp("127.0.0.1:0").await.unwrap());
        let address = listener.tcp_address().unwrap();
        let server = tokio::spawn(web::serve(listener, handler(vec![Arc::new(Fixed)])));
        let ask = |request: &'static str| async move {
            let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        };
        let found =
            ask("GET /v1/metrics?x=1 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        assert!(found.starts_with("HTTP/1.1 200 OK\r\n"), "{found}");
        assert!(
            found.contains("content-type: text/plain; version=0.0.4"),
            "{found}"
        );
        assert!(found.contains("\nprocess_open_fds "), "{found}");
        assert!(found.ends_with("\ncontainer_x 1\n"), "{found}");
        let other = ask("GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        assert!(other.starts_with("HTTP/1.1 404 "), "{other}");
        let posted = ask("POST /v1/metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        assert!(posted.starts_with("HTTP/1.1 405 "), "{posted}");
        server.abort();
    }
}
