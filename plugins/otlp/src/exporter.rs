//! io.containerd.tracing.processor.v1 "otlp": spans in batches to a collector.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use corten_registry::{InitError, Kind, Registration};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{SpanExporter, WithHttpConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::trace::BatchSpanProcessor;
use parking_lot::Mutex;
use tokio::runtime::Handle;

use crate::{enabled, process};

/// What takes finished spans. Only this crate's tracer needs it.
#[derive(Debug)]
pub(crate) struct TracingProcessor;

impl Kind for TracingProcessor {
    const URI: &'static str = "io.containerd.tracing.processor.v1";
    type Interface = Processor;
}

/// A processor, until the tracer takes it.
#[derive(Debug)]
pub(crate) struct Processor(Mutex<Option<BatchSpanProcessor>>);

impl Processor {
    /// The processor; none when it was taken.
    pub(crate) fn take(&self) -> Option<BatchSpanProcessor> {
        self.0.lock().take()
    }
}

/// HTTP for the SDK's own thread, on the daemon's runtime.
#[derive(Debug)]
struct Client {
    inner: reqwest::Client,
    runtime: Handle,
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(
        &self,
        request: http::Request<Bytes>,
    ) -> Result<http::Response<Bytes>, HttpError> {
        let client = self.inner.clone();
        let sent = self.runtime.spawn(async move {
            let response = client.execute(request.try_into()?).await?;
            let mut answer = http::Response::builder().status(response.status());
            if let Some(headers) = answer.headers_mut() {
                headers.clone_from(response.headers());
            }
            Ok::<_, HttpError>(answer.body(response.bytes().await?)?)
        });
        sent.await?
    }
}

fn exporter() -> Result<SpanExporter, InitError> {
    let protocol = process("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
        .or_else(|| process("OTEL_EXPORTER_OTLP_PROTOCOL"));
    match protocol.as_deref() {
        None | Some("http/protobuf") => {
            let client = Client {
                inner: reqwest::Client::builder().build()?,
                runtime: Handle::current(),
            };
            Ok(SpanExporter::builder()
                .with_http()
                .with_http_client(client)
                .build()?)
        }
        Some("grpc") => {
            let tls = tonic::transport::ClientTlsConfig::new().with_native_roots();
            Ok(SpanExporter::builder()
                .with_tonic()
                .with_tls_config(tls)
                .build()?)
        }
        Some(other) => Err(format!("OpenTelemetry protocol {other:?} : not implemented").into()),
    }
}

/// The plugin.
pub fn registration() -> Registration {
    Registration::new::<TracingProcessor>("otlp").init_plain(|_| {
        Box::pin(async {
            enabled(&process)?;
            if let Some(other) = process("OTEL_TRACES_EXPORTER").filter(|v| v != "otlp") {
                return Err(
                    format!("unsupported traces exporter {other:?}: invalid argument").into(),
                );
            }
            let processor = BatchSpanProcessor::builder(exporter()?).build();
            Ok(Arc::new(Processor(Mutex::new(Some(processor)))))
        })
    })
}
