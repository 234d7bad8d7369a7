//! The debug socket: `/debug/vars`, what the daemon knows about itself, as JSON.
//!
//! containerd serves Go's profiles below `/debug/pprof`. There is no Go runtime here to profile, so those answer 404
//! and say so; SIGUSR1 logs what each thread waits for.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use corten_registry::{Record, Status};
use serde_json::{Value, json};

use super::layer::InFlight;
use super::process::Process;
use super::web::{Answer, Handler};
use crate::cli::VERSION;

const NO_PPROF: &str = "404: no pprof here: cortend is not a Go program. GET /debug/vars, or send SIGUSR1 and \
     read the log; perf(1) profiles the process.\n";

/// What the answers are made of.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) plugins: Vec<Record>,
    /// The daemon's state folder: its bundles are the tasks.
    pub(super) state: PathBuf,
    pub(super) in_flight: InFlight,
    pub(super) begun: Instant,
}

/// Answers `/debug/vars` and refuses `/debug/pprof`.
pub(super) fn handler(facts: Facts) -> Handler {
    Arc::new(move |path| {
        let answer = match path {
            "/debug/vars" => {
                let mut text = format!("{:#}", vars(&facts));
                text.push('\n');
                Some(Answer::ok("application/json; charset=utf-8", text))
            }
            p if p == "/debug/pprof" || p.starts_with("/debug/pprof/") => {
                Some(Answer::not_found(NO_PPROF))
            }
            _ => None,
        };
        Box::pin(async { answer })
    })
}

fn vars(facts: &Facts) -> Value {
    let p = Process::now();
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let plugins: Vec<Value> = facts.plugins.iter().map(plugin).collect();
    json!({
        "cmdline": std::env::args().collect::<Vec<_>>(),
        "version": VERSION,
        "pid": std::process::id(),
        "time": now.as_secs(),
        "uptime_seconds": facts.begun.elapsed().as_secs_f64(),
        "memory": { "resident_bytes": p.resident_bytes, "virtual_bytes": p.virtual_bytes },
        "cpu_seconds": p.cpu_seconds,
        "threads": p.threads,
        "fds": { "open": p.open_fds, "max": p.max_fds },
        "calls_in_flight": facts.in_flight.count(),
        "tasks": tasks(&facts.state),
        "plugins": plugins,
    })
}

fn plugin(record: &Record) -> Value {
    let (status, reason) = match &record.status {
        Status::Ok => ("ok", None),
        Status::Skipped(reason) => ("skip", Some(reason.to_string())),
        Status::Failed(error) => ("error", Some(error.to_string())),
    };
    let mut value = json!({
        "id": record.uri(),
        "status": status,
        "init_seconds": record.took.as_secs_f64(),
    });
    if let (Some(reason), Some(map)) = (reason, value.as_object_mut()) {
        map.insert("reason".into(), reason.into());
    }
    value
}

/// Number of bundles, for each namespace.
fn tasks(state: &std::path::Path) -> Value {
    let folders = |dir: PathBuf| {
        let entries = std::fs::read_dir(dir)
            .into_iter()
            .flatten()
            .filter_map(Result::ok);
        entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
    };
    let namespaces = folders(state.join("io.containerd.runtime.v2.task"));
    let counts = namespaces.map(|ns| {
        (
            ns.file_name().to_string_lossy().into_owned(),
            folders(ns.path()).count().into(),
        )
    });
    Value::Object(counts.collect())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::super::web;
    use super::*;

    fn facts(state: PathBuf) -> Facts {
        let record = Record {
            kind: "io.containerd.gc.v1",
            id: "scheduler".into(),
            requires: Vec::new(),
            meta: Default::default(),
            status: Status::Ok,
            took: std::time::Duration::from_millis(250),
        };
        Facts {
            plugins: vec![record],
            state,
            in_flight: InFlight::default(),
            begun: Instant::now(),
        }
    }

    #[tokio::test]
    async fn vars_over_a_unix_socket() {
        let dir = tempfile::tempdir().unwrap();
        let bundles = dir.path().join("io.containerd.runtime.v2.task/default");
        for id in ["a", "b"] {
            std::fs::create_dir_all(bundles.join(id)).unwrap();
        }
        let path = dir.path().join("debug.sock");
        let listener = web::Listener::Unix(tokio::net::UnixListener::bind(&path).unwrap());
        let server = tokio::spawn(web::serve(listener, handler(facts(dir.path().into()))));
        let mut stream = tokio::net::UnixStream::connect(&path).await.unwrap();
        stream
            .write_all(b"GET /debug/vars HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
        let vars: Value = serde_json::from_str(body).unwrap();
        assert_eq!(vars["tasks"]["default"], 2);
        assert_eq!(vars["plugins"][0]["id"], "io.containerd.gc.v1.scheduler");
        assert_eq!(vars["plugins"][0]["init_seconds"], 0.25);
        assert!(vars["memory"]["resident_bytes"].as_u64().unwrap() > 0);
        server.abort();
    }

    #[tokio::test]
    async fn pprof_says_why_it_is_not_there() {
        let h = handler(facts("/nowhere".into()));
        let answer = h("/debug/pprof/goroutine").await.unwrap();
        assert_eq!(answer.status, 404);
        assert!(answer.text.contains("not a Go program"));
        assert!(h("/debug/other").await.is_none());
    }
}
