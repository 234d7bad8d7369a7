//! The one layer around every gRPC call: the caller's scope, the log line of a failure, panics, and the counts of
//! calls in flight and of calls handled. A call lasts until its answer's last frame, or until it is dropped.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use corten_core::Scope;
use corten_core::scope::{CALLER, NAMESPACE_HEADER};
use corten_core::spans::{self, Span, Tracer};
use futures::FutureExt as _;
use futures::future::Either;
use hyper::HeaderMap;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::Notify;
use tokio::time::Sleep;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::{Instrument as _, debug, error, error_span};

use super::calls::{Calls, Ticket};

/// Calls that last as long as their client wants, or whose client asks again: the drain does not wait for them. Of a pod
/// that is being made there is a record, and whoever asks for it again gets a new one.
const ENDLESS: [&str; 6] = [
    "/Wait",
    "/Subscribe",
    "/Stream",
    "/Watch",
    "/GetContainerEvents",
    "/RunPodSandbox",
];

/// Counts the finite calls that are running.
#[derive(Debug, Clone, Default)]
pub(super) struct InFlight {
    inner: Arc<Counter>,
}

#[derive(Debug, Default)]
struct Counter {
    running: AtomicUsize,
    changed: Notify,
}

struct Guard(Option<Arc<Counter>>);

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(c) = &self.0 {
            c.running.fetch_sub(1, Ordering::AcqRel);
            c.changed.notify_waiters();
        }
    }
}

impl InFlight {
    fn enter(&self, path: &str) -> Guard {
        if ENDLESS.iter().any(|e| path.ends_with(e)) {
            return Guard(None);
        }
        self.inner.running.fetch_add(1, Ordering::AcqRel);
        Guard(Some(self.inner.clone()))
    }

    /// The number of finite calls that are running.
    pub(super) fn count(&self) -> usize {
        self.inner.running.load(Ordering::Acquire)
    }

    /// Returns once no finite call runs. Cancel-safe.
    pub(super) async fn idle(&self) {
        loop {
            let changed = self.inner.changed.notified();
            if self.inner.running.load(Ordering::Acquire) == 0 {
                return;
            }
            changed.await;
        }
    }
}

/// The layer.
#[derive(Debug, Clone)]
pub(super) struct CallLayer {
    in_flight: InFlight,
    calls: Calls,
    tracer: Option<Tracing>,
    log_trace_id: bool,
}

/// Whoever makes spans, if anybody does.
#[derive(Clone)]
struct Tracing(Arc<dyn Tracer>);

impl std::fmt::Debug for Tracing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tracing")
    }
}

impl CallLayer {
    pub(super) fn new(in_flight: InFlight, calls: Calls) -> Self {
        Self {
            in_flight,
            calls,
            tracer: None,
            log_trace_id: false,
        }
    }

    /// With a span for each call; `log_trace_id`: what is logged during it names its trace.
    pub(super) fn traced_by(mut self, tracer: Option<Arc<dyn Tracer>>, log_trace_id: bool) -> Self {
        self.tracer = tracer.map(Tracing);
        self.log_trace_id = log_trace_id;
        self
    }
}

impl<S> Layer<S> for CallLayer {
    type Service = Call<S>;
    fn layer(&self, inner: S) -> Self::Service {
        Call {
            inner,
            in_flight: self.in_flight.clone(),
            calls: self.calls.clone(),
            tracer: self.tracer.clone(),
            log_trace_id: self.log_trace_id,
        }
    }
}

/// A service with the layer around it.
#[derive(Debug, Clone)]
pub(super) struct Call<S> {
    inner: S,
    in_flight: InFlight,
    calls: Calls,
    tracer: Option<Tracing>,
    log_trace_id: bool,
}

impl<S> Service<http::Request<Body>> for Call<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let path = request.uri().path().to_owned();
        let namespace = request
            .headers()
            .get(NAMESPACE_HEADER)
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default()
            .to_owned();
        // Before the library's own, which comes next and would say that the client had cancelled the call.
        let patience = patience(request.headers()).map(tokio::time::sleep);
        let guard = self.in_flight.enter(&path);
        let ticket = self.calls.start(&path);
        let scope = Scope::of_headers(request.headers());
        let request = match &ticket {
            Some(ticket) => request.map(|body| ticket.receive(body)),
            None => request,
        };
        let tracer = self.tracer.as_ref();
        let mut span = tracer.map(|t| t.0.serve(&path, &namespace, request.headers()));
        let begun = Instant::now();
        let point = span.as_ref().map(|s| s.point());
        let log_span = match &point {
            Some(point) if self.log_trace_id => error_span!("call", trace_id = point.trace_id()),
            _ => tracing::Span::none(),
        };
        let answer = spans::below(point, self.inner.call(request)).instrument(log_span);
        Box::pin(async move {
            let answer = match scope.clone() {
                Some(scope) => Either::Left(CALLER.scope(scope, answer)),
                None => Either::Right(answer),
            };
            let outcome = within(patience, AssertUnwindSafe(answer).catch_unwind()).await;
            let Ok(response) = outcome.unwrap_or_else(|| Ok(Ok(too_late()))) else {
                // A bug of ours must not take the daemon and its other clients with it (CVE-2026-95839).
                error!(method = %path, %namespace, "a call panicked");
                if let Some(ticket) = ticket {
                    ticket.finish(Code::Internal);
                }
                end(&mut span, Code::Internal);
                return Ok(Status::internal("internal error: the call panicked").into_http());
            };
            let response = response?;
            let took = begun.elapsed().as_secs_f64();
            let Some(status) = Status::from_header_map(response.headers()) else {
                debug!(method = %path, %namespace, took, "call");
                // How it ends is in its trailers, after the last message.
                return Ok(response.map(|body| {
                    Body::new(Answer {
                        inner: body,
                        ticket,
                        span,
                        scope,
                        _guard: guard,
                    })
                }));
            };
            if status.code() != Code::Ok {
                debug!(method = %path, %namespace, code = ?status.code(), error = status.message(), took, "call failed");
            }
            if let Some(ticket) = ticket {
                ticket.finish(status.code());
            }
            end(&mut span, status.code());
            Ok(response)
        })
    }
}

/// How long the client waits for its answer to begin, if it says so: at most eight digits and a unit.
fn patience(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(n * 3600)),
        "M" => Some(Duration::from_secs(n * 60)),
        "S" => Some(Duration::from_secs(n)),
        "m" => Some(Duration::from_millis(n)),
        "u" => Some(Duration::from_micros(n)),
        "n" => Some(Duration::from_nanos(n)),
        _ => None,
    }
}

/// The answer, unless `patience` ends before it.
async fn within<T>(patience: Option<Sleep>, answer: impl Future<Output = T>) -> Option<T> {
    let Some(patience) = patience else {
        return Some(answer.await);
    };
    tokio::select! {
        biased;
        answer = answer => Some(answer),
        () = patience => None,
    }
}

/// Go's words.
fn too_late() -> http::Response<Body> {
    Status::deadline_exceeded("context deadline exceeded").into_http()
}

/// The body of an answer, watched to its end.
struct Answer {
    inner: Body,
    ticket: Option<Ticket>,
    span: Option<Box<dyn Span>>,
    scope: Option<Scope>,
    _guard: Guard,
}

/// Ends a span that has not ended.
fn end(span: &mut Option<Box<dyn Span>>, code: Code) {
    if let Some(span) = span.take() {
        span.end(code);
    }
}

/// How a call ended, if `frame` is its end.
fn outcome(frame: Option<&Result<Frame<Bytes>, Status>>) -> Option<Code> {
    match frame {
        None => Some(Code::Ok),
        Some(Err(status)) => Some(status.code()),
        Some(Ok(f)) => {
            let status = f.trailers_ref().and_then(Status::from_header_map);
            status.map(|s| s.code())
        }
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let mut inner = Pin::new(&mut this.inner);
        // A stream does its work while it is read.
        let frame = ready!(match &this.scope {
            Some(scope) => CALLER.sync_scope(scope.clone(), || inner.as_mut().poll_frame(cx)),
            None => inner.poll_frame(cx),
        });
        if let Some(ticket) = &mut this.ticket {
            ticket.answered(frame.as_ref());
        }
        if let (Some(_), Some(code)) = (&this.span, outcome(frame.as_ref())) {
            end(&mut this.span, code);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn idle_waits_for_finite_calls_only() {
        let f = InFlight::default();
        let endless = f.enter("/containerd.services.tasks.v1.Tasks/Wait");
        f.idle().await;
        let finite = f.enter("/containerd.services.tasks.v1.Tasks/Create");
        let waiting = f.clone();
        let idle = tokio::spawn(async move { waiting.idle().await });
        tokio::task::yield_now().await;
        assert!(!idle.is_finished());
        drop(finite);
        idle.await.unwrap();
        drop(endless);
    }

    #[tokio::test]
    async fn a_call_lasts_to_the_end_of_its_answer_and_its_stream_knows_the_caller() {
        let f = InFlight::default();
        let layer = CallLayer::new(f.clone(), Calls::default());
        let caller = || CALLER.try_with(|s| s.namespace.to_string()).ok();
        let mut service = layer.layer(tower::service_fn(
            move |_: http::Request<Body>| async move {
                assert_eq!(caller().as_deref(), Some("ns"));
                let stream = futures::stream::poll_fn(move |_| {
                    assert_eq!(caller().as_deref(), Some("ns"));
                    Poll::Ready(None::<Result<Frame<Bytes>, Status>>)
                });
                let body = Body::new(http_body_util::StreamBody::new(stream));
                Ok::<_, std::convert::Infallible>(http::Response::new(body))
            },
        ));
        let request = http::Request::builder()
            .uri("http://x/containerd.services.content.v1.Content/Read")
            .header(NAMESPACE_HEADER, "ns")
            .body(Body::empty())
            .unwrap();
        let response = service.call(request).await.unwrap();
        assert_eq!(f.count(), 1);
        let read = http_body_util::BodyExt::collect(response.into_body()).await;
        assert!(read.unwrap().to_bytes().is_empty());
        f.idle().await;
    }

    #[tokio::test]
    async fn a_call_that_takes_longer_than_its_client_waits_is_late_and_not_cancelled() {
        let layer = CallLayer::new(InFlight::default(), Calls::default());
        let mut service = layer.layer(tower::service_fn(|_: http::Request<Body>| {
            std::future::pending::<Result<http::Response<Body>, std::convert::Infallible>>()
        }));
        let request = http::Request::builder()
            .uri("http://x/runtime.v1.ImageService/PullImage")
            .header("grpc-timeout", "1m")
            .body(Body::empty())
            .unwrap();
        let response = service.call(request).await.unwrap();
        let status = Status::from_header_map(response.headers()).unwrap();
        assert_eq!(status.code(), Code::DeadlineExceeded);
    }

    #[test]
    fn a_client_says_how_long_it_waits() {
        let check = |text: &str, want: Option<Duration>| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            assert_eq!(patience(&headers), want, "{text:?}");
        };
        check("99999999H", Some(Duration::from_secs(99_999_999 * 3600)));
        check("2M", Some(Duration::from_secs(120)));
        check("3S", Some(Duration::from_secs(3)));
        check("1m", Some(Duration::from_millis(1)));
        check("20u", Some(Duration::from_micros(20)));
        check("7n", Some(Duration::from_nanos(7)));
        for none in ["", "S", "1", "100000000S", "-1S", "1x"] {
            check(none, None);
        }
    }
}
