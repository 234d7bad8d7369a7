//! Spans of served calls, for tracing (OpenTelemetry).
//!
//! Only the layer around the servers makes them, one for each call, and only when a [`Tracer`] was loaded.

use tonic::Code;
use tonic::codegen::http::HeaderMap;

/// Makes spans and hands them to whoever collects them.
pub trait Tracer: Send + Sync {
    /// Begins the span of a call of `/service/method`. `headers` may name its parent (W3C Trace Context).
    fn serve(&self, path: &str, namespace: &str, headers: &HeaderMap) -> Box<dyn Span>;
    /// Hands over what is left, in bounded time. Blocking.
    fn shutdown(&self);
}

/// A running span. Dropped without [`Span::end`], it ends without a code.
pub trait Span: Send + Sync {
    /// The call ended with `code`.
    fn end(self: Box<Self>, code: Code);
}
