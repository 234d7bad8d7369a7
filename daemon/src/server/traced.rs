//! Spans of the calls of the ttrpc listener: what `layer` does for gRPC's.

use std::sync::Arc;

use async_trait::async_trait;
use corten_core::scope::NAMESPACE_TTRPC;
use corten_core::service::TtrpcServices;
use corten_core::spans::{self, Tracer};
use http::{HeaderMap, HeaderName, HeaderValue};
use tonic::Code;
use ttrpc::r#async::{MethodHandler, Service, TtrpcContext};
use ttrpc::proto::{Request, Response};

/// A method with a span around each of its calls.
struct Traced {
    inner: Box<dyn MethodHandler + Send + Sync>,
    /// `/service/method`.
    path: String,
    tracer: Arc<dyn Tracer>,
}

// === impl Traced ===

#[async_trait]
impl MethodHandler for Traced {
    async fn handler(&self, cx: TtrpcContext, request: Request) -> ttrpc::Result<Response> {
        let namespace = cx.metadata.get(NAMESPACE_TTRPC).and_then(|v| v.first());
        let namespace = namespace.map_or("", String::as_str);
        let span = self.tracer.serve(&self.path, namespace, &headers(&cx));
        let answer = spans::below(Some(span.point()), self.inner.handler(cx, request)).await;
        span.end(code(&answer));
        answer
    }
}

/// The same services; each of their unary calls has a span.
pub(super) fn traced(services: TtrpcServices, tracer: &Arc<dyn Tracer>) -> TtrpcServices {
    let service = |(name, service): (String, Service)| {
        let methods = service.methods.into_iter();
        let methods = methods.map(|(method, inner)| {
            let traced = Traced {
                inner,
                path: format!("/{name}/{method}"),
                tracer: tracer.clone(),
            };
            (
                method,
                Box::new(traced) as Box<dyn MethodHandler + Send + Sync>,
            )
        });
        let service = Service {
            methods: methods.collect(),
            streams: service.streams,
        };
        (name, service)
    };
    services.into_iter().map(service).collect()
}

/// The metadata of a call as headers; what cannot be one is none of ours.
fn headers(cx: &TtrpcContext) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, values) in &cx.metadata {
        let Ok(name) = name.parse::<HeaderName>() else {
            continue;
        };
        for value in values {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.append(name.clone(), value);
            }
        }
    }
    headers
}

/// The codes of ttrpc are gRPC's.
fn code(answer: &ttrpc::Result<Response>) -> Code {
    match answer {
        Ok(response) => Code::from_i32(response.status().code.value()),
        Err(_) => Code::Unknown,
    }
}
