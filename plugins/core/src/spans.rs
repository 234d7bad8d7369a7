//! Spans of served calls and of their parts, for tracing (OpenTelemetry).
//!
//! The layer around the servers makes one for each call, but only when a [`Tracer`] was loaded. What serves the call
//! finds it as [`current`], begins its parts below it with [`within`], and tells other processes of it. Without a tracer
//! all of that is one look at a task-local variable.

use std::sync::Arc;

use tonic::Code;
use tonic::codegen::http::HeaderMap;

use crate::error::Result;
use crate::status;

/// Makes spans and hands them to whoever collects them.
pub trait Tracer: Send + Sync {
    /// Begins the span of a call of `/service/method`. `headers` may name its parent (W3C Trace Context).
    fn serve(&self, path: &str, namespace: &str, headers: &HeaderMap) -> Box<dyn Span>;
    /// Hands over what is left, in bounded time. Blocking.
    fn shutdown(&self);
}

/// A running span. Dropped without [`Span::end`], it ends without a code.
pub trait Span: Send + Sync {
    /// What others begin their spans below.
    fn point(&self) -> Arc<dyn Point>;
    /// The call ended with `code`.
    fn end(self: Box<Self>, code: Code);
}

/// A span as those below it see it; it may have ended.
pub trait Point: Send + Sync {
    /// Begins a span below this one.
    fn child(&self, name: &str) -> Box<dyn Span>;
    /// Begins the span of a call of `service/method` in another process.
    fn call(&self, name: &str) -> Box<dyn Span>;
    /// The trace that it is a part of, in hexadecimal.
    fn trace_id(&self) -> String;
    /// Name and value of the headers that tell other processes of this span (W3C Trace Context).
    fn headers(&self) -> Vec<(String, String)>;
}

tokio::task_local! {
    static CURRENT: Arc<dyn Point>;
}

/// The span of the current task's work, if it is traced.
pub fn current() -> Option<Arc<dyn Point>> {
    CURRENT.try_with(Arc::clone).ok()
}

/// `work` below `point`, if there is one.
pub async fn below<T>(point: Option<Arc<dyn Point>>, work: impl Future<Output = T>) -> T {
    match point {
        Some(point) => CURRENT.scope(point, work).await,
        None => work.await,
    }
}

/// `work` for another task, below the span that is the current one now.
pub fn carry<T>(work: impl Future<Output = T>) -> impl Future<Output = T> {
    below(current(), work)
}

/// `work` in a span of its own below the current one.
///
/// # Errors
/// Those of `work`.
pub async fn within<T>(name: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    let Some(parent) = current() else {
        return work.await;
    };
    let span = parent.child(name);
    let done = CURRENT.scope(span.point(), work).await;
    span.end(match &done {
        Ok(_) => Code::Ok,
        Err(e) => status::code(e.kind()),
    });
    done
}
