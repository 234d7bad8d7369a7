//! The count of gRPC calls: how many of each method began, how they ended, how long they took.
//!
//! Messages are counted in both directions as they pass, by their frames alone.
//!
//! The names are those of go-grpc-middleware, as containerd's dashboards and alerts use them. What can be counted
//! is fixed when the table is made, from the descriptors of our own protocols: a client that invents method names
//! cannot make it grow. Without a metrics endpoint there is no table and nothing is counted.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use corten_core::metrics::family;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use prost::Message as _;
use tonic::body::Body;
use tonic::{Code, Status};

/// Names of the codes as go-grpc prints them, by number.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// Upper bounds of the histogram in seconds: the defaults of Prometheus' clients.
const BUCKETS: [f64; 11] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// The table, or nothing when nobody will read it. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Calls {
    methods: Option<Arc<BTreeMap<String, Arc<Method>>>>,
    histogram: bool,
}

#[derive(Debug)]
struct Method {
    kind: &'static str,
    service: String,
    name: String,
    started: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    handled: [AtomicU64; CODES.len()],
    /// One for each of [`BUCKETS`], not cumulative, and one for what is slower.
    took: [AtomicU64; BUCKETS.len() + 1],
    nanos: AtomicU64,
}

/// One running call. A ticket that is dropped without an outcome counts as cancelled by its client.
#[derive(Debug)]
pub(super) struct Ticket {
    method: Arc<Method>,
    sent: Frames,
    begun: Instant,
    done: bool,
}

// === impl Calls ===

impl Calls {
    /// A table of every method that our protocols have.
    pub(super) fn new(histogram: bool) -> Self {
        let methods = methods(corten_protos::DESCRIPTORS)
            .chain(health())
            .map(|(path, method)| (path, Arc::new(method)))
            .collect();
        Self {
            methods: Some(Arc::new(methods)),
            histogram,
        }
    }

    /// Counts a call that begins; none for a method that no protocol of ours has.
    pub(super) fn start(&self, path: &str) -> Option<Ticket> {
        let method = self.methods.as_ref()?.get(path)?.clone();
        method.started.fetch_add(1, Ordering::Relaxed);
        Some(Ticket {
            method,
            sent: Frames::default(),
            begun: Instant::now(),
            done: false,
        })
    }

    /// Writes the counters of the methods that were called at least once.
    pub(super) fn encode(&self, out: &mut String) {
        let Some(methods) = &self.methods else { return };
        let called: Vec<&Method> = methods
            .values()
            .map(AsRef::as_ref)
            .filter(|m| m.started.load(Ordering::Relaxed) > 0)
            .collect();
        type Counter = fn(&Method) -> &AtomicU64;
        let counters: [(&str, &str, Counter); 3] = [
            (
                "grpc_server_started_total",
                "Total number of RPCs started on the server.",
                |m| &m.started,
            ),
            (
                "grpc_server_msg_received_total",
                "Total number of messages that clients sent.",
                |m| &m.received,
            ),
            (
                "grpc_server_msg_sent_total",
                "Total number of messages that clients were sent.",
                |m| &m.sent,
            ),
        ];
        for (name, help, counter) in counters {
            family(out, name, "counter", help);
            for m in &called {
                let n = counter(m).load(Ordering::Relaxed);
                let _ = writeln!(out, "{name}{{{}}} {n}", m.labels());
            }
        }
        family(
            out,
            "grpc_server_handled_total",
            "counter",
            "Total number of RPCs completed on the server, regardless of success or failure.",
        );
        for m in &called {
            for (code, count) in CODES.iter().zip(&m.handled) {
                let n = count.load(Ordering::Relaxed);
                if n > 0 || *code == "OK" {
                    let _ = writeln!(
                        out,
                        "grpc_server_handled_total{{grpc_code=\"{code}\",{}}} {n}",
                        m.labels()
                    );
                }
            }
        }
        if self.histogram {
            histogram(out, &called);
        }
    }
}

fn histogram(out: &mut String, called: &[&Method]) {
    let name = "grpc_server_handling_seconds";
    family(
        out,
        name,
        "histogram",
        "Response latency in seconds of RPCs handled by the server.",
    );
    for m in called {
        let labels = m.labels();
        let mut total = 0;
        for (i, count) in m.took.iter().enumerate() {
            total += count.load(Ordering::Relaxed);
            match BUCKETS.get(i) {
                Some(le) => {
                    let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{le}\"}} {total}");
                }
                None => {
                    let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {total}");
                }
            }
        }
        let sum = m.nanos.load(Ordering::Relaxed) as f64 / 1e9;
        let _ = writeln!(
            out,
            "{name}_sum{{{labels}}} {sum}\n{name}_count{{{labels}}} {total}"
        );
    }
}

// === impl Method ===

impl Method {
    fn new(
        service: &str,
        name: &str,
        client_streams: bool,
        server_streams: bool,
    ) -> (String, Self) {
        let kind = match (client_streams, server_streams) {
            (false, false) => "unary",
            (true, false) => "client_stream",
            (false, true) => "server_stream",
            (true, true) => "bidi_stream",
        };
        let method = Self {
            kind,
            service: service.to_owned(),
            name: name.to_owned(),
            started: AtomicU64::default(),
            received: AtomicU64::default(),
            sent: AtomicU64::default(),
            handled: Default::default(),
            took: Default::default(),
            nanos: AtomicU64::default(),
        };
        (format!("/{service}/{name}"), method)
    }

    fn labels(&self) -> String {
        format!(
            "grpc_method=\"{}\",grpc_service=\"{}\",grpc_type=\"{}\"",
            self.name, self.service, self.kind
        )
    }
}

// === impl Ticket ===

impl Ticket {
    /// The call ended with `code`.
    pub(super) fn finish(mut self, code: Code) {
        self.settle(code);
    }

    /// Counts the messages of the request as they are read.
    pub(super) fn receive(&self, body: Body) -> Body {
        Body::new(Received {
            inner: body,
            frames: Frames::default(),
            method: self.method.clone(),
        })
    }

    /// A frame of the answer: its messages, or how the call ended.
    pub(super) fn answered(&mut self, frame: Option<&Result<Frame<Bytes>, Status>>) {
        match frame {
            Some(Ok(f)) => {
                if let Some(data) = f.data_ref() {
                    let n = self.sent.feed(data);
                    self.method.sent.fetch_add(n, Ordering::Relaxed);
                }
                if let Some(status) = f.trailers_ref().and_then(Status::from_header_map) {
                    self.settle(status.code());
                }
            }
            Some(Err(status)) => self.settle(status.code()),
            None => self.settle(Code::Ok),
        }
    }

    fn settle(&mut self, code: Code) {
        if std::mem::replace(&mut self.done, true) {
            return;
        }
        let m = &self.method;
        if let Some(count) = m.handled.get(code as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let took = self.begun.elapsed();
        let bucket = BUCKETS
            .iter()
            .position(|le| took.as_secs_f64() <= *le)
            .unwrap_or(BUCKETS.len());
        m.took[bucket].fetch_add(1, Ordering::Relaxed);
        m.nanos.fetch_add(
            u64::try_from(took.as_nanos()).unwrap_or(u64::MAX),
            Ordering::Relaxed,
        );
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.settle(Code::Cancelled);
    }
}

/// A request body whose messages are counted.
struct Received {
    inner: Body,
    frames: Frames,
    method: Arc<Method>,
}

impl HttpBody for Received {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        if let Some(data) = frame
            .as_ref()
            .and_then(|f| f.as_ref().ok())
            .and_then(Frame::data_ref)
        {
            let n = self.frames.feed(data);
            self.method.received.fetch_add(n, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Where one is in a sequence of gRPC's messages: a flag, four bytes of length, as many bytes.
#[derive(Debug, Default)]
struct Frames {
    header: [u8; 5],
    have: usize,
    left: u64,
}

impl Frames {
    /// How many messages end in `data`.
    fn feed(&mut self, mut data: &[u8]) -> u64 {
        let mut ended = 0;
        while !data.is_empty() {
            if self.have < self.header.len() {
                let n = data.len().min(self.header.len() - self.have);
                self.header[self.have..self.have + n].copy_from_slice(&data[..n]);
                self.have += n;
                data = &data[n..];
                if self.have < self.header.len() {
                    break;
                }
                let [_, a, b, c, d] = self.header;
                self.left = u32::from_be_bytes([a, b, c, d]).into();
            }
            let n = usize::try_from(self.left).map_or(data.len(), |left| left.min(data.len()));
            self.left -= n as u64;
            data = &data[n..];
            if self.left == 0 {
                self.have = 0;
                ended += 1;
            }
        }
        ended
    }
}

// === the descriptors, as far as they are needed here ===

#[derive(Clone, PartialEq, prost::Message)]
struct Files {
    #[prost(message, repeated, tag = "1")]
    file: Vec<File>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct File {
    #[prost(string, tag = "2")]
    package: String,
    #[prost(message, repeated, tag = "6")]
    service: Vec<ServiceDescriptor>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ServiceDescriptor {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, repeated, tag = "2")]
    method: Vec<MethodDescriptor>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct MethodDescriptor {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(bool, tag = "5")]
    client_streams: bool,
    #[prost(bool, tag = "6")]
    server_streams: bool,
}

fn methods(descriptors: &[u8]) -> impl Iterator<Item = (String, Method)> {
    let files = Files::decode(descriptors).unwrap_or_default().file;
    files.into_iter().flat_map(|f| {
        let package = f.package;
        f.service.into_iter().flat_map(move |s| {
            let service = format!("{package}.{}", s.name);
            s.method
                .into_iter()
                .map(move |m| Method::new(&service, &m.name, m.client_streams, m.server_streams))
        })
    })
}

/// gRPC's own health protocol, which tonic-health brings.
fn health() -> [(String, Method); 2] {
    let service = "grpc.health.v1.Health";
    [
        Method::new(service, "Check", false, false),
        Method::new(service, "Watch", false, true),
    ]
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use tonic::metadata::MetadataMap;

    use super::*;

    const CREATE: &str = "/containerd.services.tasks.v1.Tasks/Create";
    const READ: &str = "/containerd.services.content.v1.Content/Read";

    fn text(calls: &Calls) -> String {
        let mut out = String::new();
        calls.encode(&mut out);
        out
    }

    #[test]
    fn outcomes_are_counted_by_method_and_code() {
        let calls = Calls::new(false);
        calls.start(CREATE).unwrap().finish(Code::Ok);
        calls.start(CREATE).unwrap().finish(Code::NotFound);
        drop(calls.start(READ).unwrap());
        let text = text(&calls);
        let create = "grpc_method=\"Create\",grpc_service=\"containerd.services.tasks.v1.Tasks\",grpc_type=\"unary\"";
        let read = "grpc_method=\"Read\",grpc_service=\"containerd.services.content.v1.Content\",grpc_type=\"server_stream\"";
        for line in [
            "# TYPE grpc_server_started_total counter".to_owned(),
            format!("grpc_server_started_total{{{create}}} 2"),
            format!("grpc_server_started_total{{{read}}} 1"),
            format!("grpc_server_handled_total{{grpc_code=\"OK\",{create}}} 1"),
            format!("grpc_server_handled_total{{grpc_code=\"NotFound\",{create}}} 1"),
            format!("grpc_server_handled_total{{grpc_code=\"Canceled\",{read}}} 1"),
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("handling_seconds") && !text.contains("Delete"));
    }

    #[test]
    fn invented_methods_and_an_absent_endpoint_count_nothing() {
        let calls = Calls::new(true);
        assert!(calls.start("/x.Y/Z").is_none() && calls.start("").is_none());
        assert!(calls.start("/grpc.health.v1.Health/Check").is_some());
        assert!(Calls::default().start(CREATE).is_none());
        assert_eq!(text(&Calls::default()), "");
    }

    #[test]
    fn histograms_are_cumulative() {
        let calls = Calls::new(true);
        calls.start(CREATE).unwrap().finish(Code::Ok);
        let text = text(&calls);
        let line = |start: &str| {
            text.lines()
                .find(|l| l.contains(start))
                .unwrap_or_default()
                .to_owned()
        };
        assert!(line("le=\"+Inf\"").ends_with(" 1"), "{text}");
        assert!(line("le=\"10\"").ends_with(" 1"), "{text}");
        assert!(line("seconds_count").ends_with(" 1"), "{text}");
    }

    #[tokio::test]
    async fn messages_are_counted_and_a_stream_ends_with_its_trailers() {
        let calls = Calls::new(false);
        let mut trailers = http::HeaderMap::new();
        Status::with_metadata(Code::DataLoss, "gone", MetadataMap::new())
            .add_header(&mut trailers)
            .unwrap();
        let mut ticket = calls.start(READ).unwrap();
        // Two messages and a bit, in two pieces.
        let pieces = [&b"\0\0\0\0\x01a\0\0\0"[..], &b"\0\x02bc\0\0"[..]];
        for piece in pieces {
            ticket.answered(Some(&Ok(Frame::data(Bytes::copy_from_slice(piece)))));
        }
        ticket.answered(Some(&Ok(Frame::trailers(trailers))));
        let request =
            http_body_util::Full::new(Bytes::from_static(b"\0\0\0\0\0")).map_err(|e| match e {});
        let request = ticket.receive(Body::new(request));
        assert_eq!(request.collect().await.unwrap().to_bytes().len(), 5);
        drop(ticket);
        let text = text(&calls);
        for part in [
            "grpc_code=\"DataLoss\"",
            "grpc_server_msg_sent_total{grpc_method=\"Read\",grpc_service=\"containerd.services.content.v1.Content\",grpc_type=\"server_stream\"} 2",
            "grpc_server_msg_received_total{grpc_method=\"Read\",grpc_service=\"containerd.services.content.v1.Content\",grpc_type=\"server_stream\"} 1",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(!text.contains("Canceled"), "{text}");
    }
}
