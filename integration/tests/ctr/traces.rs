//! Traces by OpenTelemetry, sent to a collector of this file: HTTP, protobuf, one request after the other.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use corten_integration::case::Case;
use corten_integration::daemon::Setup;
use corten_integration::images;
use corten_integration::process::{DEADLINE, eventually};
use corten_integration::registry::{Tiny, Trick};
use corten_integration::runner::Test;
use corten_integration::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests![sends_traces_to_a_collector, serves_without_its_collector]
}

/// What arrived, and at which path.
type Arrived = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

/// A collector at a port of its own; it takes what comes until the process ends.
fn collector() -> (String, Arrived) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let arrived = Arrived::default();
    let seen = Arc::clone(&arrived);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            // A connection may carry several requests.
            while let Some(request) = request(&mut reader) {
                seen.lock().unwrap().push(request);
                let answer = "HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\n\
                              Content-Length: 0\r\n\r\n";
                if stream.write_all(answer.as_bytes()).is_err() {
                    break;
                }
            }
        }
    });
    (endpoint, arrived)
}

fn request(reader: &mut impl BufRead) -> Option<(String, Vec<u8>)> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut length = 0;
    loop {
        line.clear();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.split_once(':') else {
            break;
        };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((path, body))
}

fn contains(body: &[u8], text: &str) -> bool {
    body.windows(text.len()).any(|w| w == text.as_bytes())
}

fn sends_traces_to_a_collector(c: &Case) {
    let (endpoint, arrived) = collector();
    let daemon = Setup::new(c.daemon.kind)
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)
        .env("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        .env("OTEL_BSP_SCHEDULE_DELAY", "100")
        .start();
    let ctr = |words: &str| {
        let cmd = c
            .client
            .command(&daemon.socket(), "traced", &daemon.base.join("t"));
        cmd.words(words)
    };
    let registry = Tiny::serve(images::busybox(), Trick::None);
    ctr("images pull --plain-http")
        .arg(registry.reference())
        .ok();
    let run = ctr("run --rm --null-io --runtime").arg(&c.runtime);
    run.args([&registry.reference(), "a", "true"]).ok();
    let mut wanted = vec![
        "containerd.services.transfer.v1.Transfer/Transfer",
        "containerd.services.tasks.v1.Tasks/Create",
        "pkg.unpack.unpacker.unpackLayer",
        "pkg.unpack.unpacker.fetchLayer",
        // What the shim is asked for.
        "containerd.task.v3.Task/Create",
        "containerd.task.v3.Task/Start",
        "containerd.task.v3.Task/Delete",
    ];
    if c.is_reference() {
        println!("Corten only: names of its own for the making of a task");
    } else {
        wanted.extend(["transfer.pull", "runtime.task.create", "runtime.shim.start"]);
    }
    let missing = || -> Vec<&str> {
        let arrived = arrived.lock().unwrap();
        let there = |name: &&&str| !arrived.iter().any(|(_, body)| contains(body, name));
        wanted.iter().filter(there).copied().collect()
    };
    let all = eventually(DEADLINE, || missing().is_empty().then_some(()));
    assert!(all.is_some(), "no span of {:?}", missing());
    let arrived = arrived.lock().unwrap();
    assert!(arrived.iter().all(|(path, _)| path == "/v1/traces"));
    assert!(
        arrived
            .iter()
            .any(|(_, body)| contains(body, "service.name"))
    );
    drop(arrived);
    assert_eq!(daemon.stop(), 0);
}

fn serves_without_its_collector(c: &Case) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let daemon = Setup::new(c.daemon.kind)
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)
        .env("OTEL_BSP_SCHEDULE_DELAY", "100")
        .start();
    for _ in 0..5 {
        let cmd = c
            .client
            .command(&daemon.socket(), "traced", &daemon.base.join("t"));
        cmd.words("images ls").ok();
    }
    assert_eq!(daemon.stop(), 0);
}
