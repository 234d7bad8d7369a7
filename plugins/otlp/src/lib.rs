//! corten-otlp: traces of served calls, sent by OTLP.
//!
//! ```text
//! io.containerd.tracing.processor.v1 "otlp"   batches spans and sends them    (exporter)
//! io.containerd.internal.v1 "tracing"         makes spans for the processors  (tracer)
//! ```
//! Below the span of a call are those of its parts that take time (pulls, layers, tasks), and shims are told of theirs.
//! Off unless `OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` is set: then both are skipped, and
//! no thread, buffer or span exists. Like containerd since 2.4, there is no config section; the other `OTEL_*` variables
//! (protocol, headers, timeout, sampler, service name, `OTEL_SDK_DISABLED`) mean what OpenTelemetry says. The batches
//! are sent from a thread of the SDK, so a collector that hangs costs spans, never a call.

mod exporter;
mod tracer;

use corten_registry::{InitError, skip};

pub use exporter::registration as otlp;
pub use tracer::registration as tracing;

/// The value of a variable; an empty one counts as none.
type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

fn process(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|v| !v.is_empty())
}

/// An error when tracing is off.
fn enabled(env: Env<'_>) -> Result<(), InitError> {
    if let Some(text) = env("OTEL_SDK_DISABLED") {
        match text.as_str() {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => {
                return Err(skip(format!(
                    "tracing disabled by env OTEL_SDK_DISABLED={text}"
                )));
            }
            "0" | "f" | "F" | "false" | "FALSE" | "False" => {}
            _ => {
                return Err(format!(
                    "invalid value for OTEL_SDK_DISABLED: {text:?}: invalid argument"
                )
                .into());
            }
        }
    }
    let endpoints = [
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    ];
    if endpoints.iter().all(|name| env(name).is_none()) {
        return Err(skip("tracing endpoint not configured"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_decides() {
        let check = |pairs: &[(&str, &str)], want: &str| {
            let env = |name: &str| {
                let found = pairs.iter().find(|(n, _)| *n == name);
                found.map(|(_, v)| (*v).to_owned())
            };
            let got = match enabled(&env) {
                Ok(()) => "on".to_owned(),
                Err(e) => e.to_string(),
            };
            assert!(got.contains(want), "{pairs:?}: {got}");
        };
        let endpoint = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://c:4318");
        check(&[], "skip plugin: tracing endpoint not configured");
        check(&[endpoint], "on");
        check(&[endpoint, ("OTEL_SDK_DISABLED", "false")], "on");
        check(
            &[endpoint, ("OTEL_SDK_DISABLED", "true")],
            "skip plugin: tracing disabled",
        );
        check(&[endpoint, ("OTEL_SDK_DISABLED", "maybe")], "invalid value");
    }
}
