//! io.containerd.internal.v1 "tracing": a span for each served call, and those of its parts below it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use corten_core::kinds;
use corten_core::spans::{Point, Span, Tracer};
use corten_registry::Registration;
use http::HeaderMap;
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanKind, Status, TraceContextExt as _, Tracer as _,
    TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, Span as SdkSpan};
use tonic::Code;

use crate::exporter::TracingProcessor;
use crate::{enabled, process};

/// How long the last spans may take at the end of the daemon.
const PATIENCE: Duration = Duration::from_secs(2);

struct Calls {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    parents: TraceContextPropagator,
}

/// A running span, and who makes those below it.
struct Call {
    span: SdkSpan,
    tracer: SdkTracer,
}

struct Below {
    context: Context,
    tracer: SdkTracer,
}

struct Headers<'a>(&'a HeaderMap);

// === impl Calls ===

impl Calls {
    fn new(provider: SdkTracerProvider) -> Self {
        Self {
            tracer: provider.tracer("cortend"),
            provider,
            parents: TraceContextPropagator::new(),
        }
    }
}

impl Tracer for Calls {
    fn serve(&self, path: &str, namespace: &str, headers: &HeaderMap) -> Box<dyn Span> {
        let parent = self
            .parents
            .extract_with_context(&Context::new(), &Headers(headers));
        let name = path.trim_start_matches('/').to_owned();
        let (service, method) = name.split_once('/').unwrap_or((&name, ""));
        let mut attributes = vec![
            KeyValue::new("rpc.system", "grpc"),
            KeyValue::new("rpc.service", service.to_owned()),
            KeyValue::new("rpc.method", method.to_owned()),
        ];
        if !namespace.is_empty() {
            attributes.push(KeyValue::new("containerd.namespace", namespace.to_owned()));
        }
        let builder = self
            .tracer
            .span_builder(name)
            .with_kind(SpanKind::Server)
            .with_attributes(attributes);
        Box::new(Call {
            span: self.tracer.build_with_context(builder, &parent),
            tracer: self.tracer.clone(),
        })
    }

    fn shutdown(&self) {
        // What cannot be sent now is lost, and the SDK has said why.
        let _ = self.provider.shutdown_with_timeout(PATIENCE);
    }
}

// === impl Call ===

impl Span for Call {
    fn point(&self) -> Arc<dyn Point> {
        let context = Context::new().with_remote_span_context(self.span.span_context().clone());
        Arc::new(Below {
            context,
            tracer: self.tracer.clone(),
        })
    }

    fn end(mut self: Box<Self>, code: Code) {
        let number = i64::from(code as i32);
        self.span
            .set_attribute(KeyValue::new("rpc.grpc.status_code", number));
        // Codes that are the server's fault, as OpenTelemetry sees it; the others are answers.
        let ours = [
            Code::Unknown,
            Code::DeadlineExceeded,
            Code::Unimplemented,
            Code::Internal,
            Code::Unavailable,
            Code::DataLoss,
        ];
        if ours.contains(&code) {
            self.span.set_status(Status::error(code.description()));
        }
        self.span.end();
    }
}

// === impl Below ===

impl Below {
    fn begin(&self, builder: SpanBuilder) -> Box<dyn Span> {
        Box::new(Call {
            span: self.tracer.build_with_context(builder, &self.context),
            tracer: self.tracer.clone(),
        })
    }
}

impl Point for Below {
    fn child(&self, name: &str) -> Box<dyn Span> {
        let builder = self.tracer.span_builder(name.to_owned());
        self.begin(builder.with_kind(SpanKind::Internal))
    }

    fn call(&self, name: &str) -> Box<dyn Span> {
        let (service, method) = name.split_once('/').unwrap_or((name, ""));
        let builder = self.tracer.span_builder(name.to_owned());
        let builder = builder.with_kind(SpanKind::Client);
        self.begin(builder.with_attributes([
            KeyValue::new("rpc.service", service.to_owned()),
            KeyValue::new("rpc.method", method.to_owned()),
        ]))
    }

    fn trace_id(&self) -> String {
        self.context.span().span_context().trace_id().to_string()
    }

    fn headers(&self) -> Vec<(String, String)> {
        let mut headers = HashMap::new();
        TraceContextPropagator::new().inject_context(&self.context, &mut headers);
        headers.retain(|_, value| !value.is_empty());
        headers.into_iter().collect()
    }
}

// === impl Headers ===

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

/// The plugin.
pub fn registration() -> Registration {
    Registration::new::<kinds::Tracing>("tracing")
        .requires::<TracingProcessor>()
        .init_plain(|cx| {
            Box::pin(async move {
                enabled(&process)?;
                let mut resource = Resource::builder();
                if process("OTEL_SERVICE_NAME").is_none() {
                    resource = resource.with_service_name("containerd");
                }
                let mut provider = SdkTracerProvider::builder().with_resource(resource.build());
                for (_, (processor, _)) in cx.all::<TracingProcessor>()? {
                    if let Some(processor) = processor.take() {
                        provider = provider.with_span_processor(processor);
                    }
                }
                Ok(Arc::new(Calls::new(provider.build())) as Arc<dyn Tracer>)
            })
        })
}

#[cfg(test)]
mod tests {
    use opentelemetry_sdk::trace::InMemorySpanExporter;

    use super::*;

    #[test]
    fn a_call_is_a_span_with_its_parent_and_outcome() {
        let exporter = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder()
            .with_simple_exporter(exporter.clone())
            .build();
        let calls = Calls::new(provider);
        let mut headers = HeaderMap::new();
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        headers.insert("traceparent", parent.parse().unwrap());
        calls.serve("/a.B/Get", "ns", &headers).end(Code::Internal);
        calls
            .serve("/a.B/Get", "", &HeaderMap::new())
            .end(Code::NotFound);
        let spans = exporter.get_finished_spans().unwrap();
        assert_eq!(spans[0].name, "a.B/Get");
        assert_eq!(
            spans[0].span_context.trace_id().to_string(),
            "0af7651916cd43dd8448eb211c80319c"
        );
        assert_eq!(spans[0].parent_span_id.to_string(), "b7ad6b7169203331");
        assert!(matches!(spans[0].status, Status::Error { .. }));
        assert!(matches!(spans[1].status, Status::Unset));
        let has = |key: &str, value: &str| {
            let mut all = spans[0].attributes.iter();
            all.any(|a| a.key.as_str() == key && a.value.as_str() == value)
        };
        assert!(has("rpc.service", "a.B") && has("containerd.namespace", "ns"));
        assert!(has("rpc.grpc.status_code", "13"));
    }

    #[tokio::test]
    async fn parts_of_a_call_are_below_it_also_in_other_tasks() {
        use corten_core::spans;
        let exporter = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder()
            .with_simple_exporter(exporter.clone())
            .build();
        let calls = Calls::new(provider);
        let call = calls.serve("/a.B/Get", "ns", &HeaderMap::new());
        let told = spans::below(Some(call.point()), async {
            let part = spans::within("part", async {
                let inner = spans::carry(spans::within("inner", async { Ok(()) }));
                tokio::spawn(inner).await.unwrap()?;
                Ok(spans::current().unwrap().headers())
            });
            part.await.unwrap()
        });
        let told = told.await;
        call.end(Code::Ok);
        let spans = exporter.get_finished_spans().unwrap();
        let names: Vec<_> = spans.iter().map(|s| s.name.as_ref()).collect();
        assert_eq!(names, ["inner", "part", "a.B/Get"]);
        for (span, parent) in [(0, 1), (1, 2)] {
            let parent = spans[parent].span_context.span_id();
            assert_eq!(spans[span].parent_span_id, parent);
        }
        let trace = spans[2].span_context.trace_id().to_string();
        let id = spans[1].span_context.span_id().to_string();
        assert_eq!(
            told,
            [("traceparent".to_owned(), format!("00-{trace}-{id}-01"))]
        );
    }
}
