//! What goes over the wire, for a client that asks to see it (`ctr images pull --http-dump`, `--http-trace`).
//!
//! Only heads are shown: bodies are layers, and tokens. Values of headers and queries that could be secrets are
//! blanked, unlike containerd's, because what is shown ends in logs.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use corten_core::streaming::Stream;
use reqwest::header::{
    AUTHORIZATION, COOKIE, HeaderMap, HeaderName, LOCATION, PROXY_AUTHORIZATION, SET_COOKIE,
};
use reqwest::{Request, Response};
use tokio::sync::Mutex;

use super::request::redact;
use crate::bytestream::ByteWriter;

/// A client that takes nothing for so long is shown nothing more.
const PATIENCE: Duration = Duration::from_secs(5);
const BLANK: &str = "REDACTED";

/// Shows requests and their answers.
pub struct Debug {
    dump: Dump,
    trace: bool,
}

enum Dump {
    Off,
    /// To the daemon's log.
    Log,
    /// To the client; gone when it does not read.
    Stream(Mutex<Option<ByteWriter>>),
}

impl std::fmt::Debug for Debug {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Debug(trace: {})", self.trace)
    }
}

impl Debug {
    /// Shows heads (`dump`), to `stream` when there is one, and tells the daemon's log of connections (`trace`).
    pub fn new(dump: bool, trace: bool, stream: Option<Arc<dyn Stream>>) -> Self {
        let dump = match (dump, stream) {
            (false, _) => Dump::Off,
            (true, None) => Dump::Log,
            (true, Some(stream)) => Dump::Stream(Mutex::new(Some(ByteWriter::new(stream)))),
        };
        Self { dump, trace }
    }

    pub(super) async fn request(&self, request: &Request) {
        let url = request.url();
        let shown = redact(url.as_str());
        let host = super::request::authority(url);
        // Without user info the shown URL is `scheme://host path`; with it, it is shown as a whole.
        let origin = format!("{}://{host}", url.scheme());
        let path = shown.strip_prefix(&origin).unwrap_or(&shown);
        let line = format!("{} {path} HTTP/1.1\r\nHost: {host}", request.method());
        self.show(&line, request.headers()).await;
    }

    pub(super) async fn response(&self, response: &Response) {
        if self.trace {
            let remote = response.remote_addr().map(|a| a.to_string());
            tracing::debug!(remote_addr = remote, "connection successful");
        }
        let line = format!("{:?} {}", response.version(), response.status());
        self.show(&line, response.headers()).await;
    }

    async fn show(&self, line: &str, headers: &HeaderMap) {
        match &self.dump {
            Dump::Off => {}
            Dump::Log => tracing::info!(head = head(line, headers), "registry"),
            Dump::Stream(writer) => {
                let mut writer = writer.lock().await;
                let Some(open) = &*writer else { return };
                let text = Bytes::from(head(line, headers));
                let shown = tokio::time::timeout(PATIENCE, open.write(text)).await;
                if !matches!(shown, Ok(Ok(()))) {
                    *writer = None;
                }
            }
        }
    }
}

fn head(line: &str, headers: &HeaderMap) -> String {
    let mut out = format!("{line}\r\n");
    for (name, value) in headers {
        let text = match value.to_str() {
            _ if value.is_sensitive() || is_secret(name) => BLANK.to_owned(),
            Ok(url) if *name == LOCATION => redact_relative(url),
            Ok(text) => text.to_owned(),
            Err(_) => "(not text)".to_owned(),
        };
        // Writing to a string cannot fail.
        let _ = write!(out, "{name}: {text}\r\n");
    }
    out.push_str("\r\n");
    out
}

fn is_secret(name: &HeaderName) -> bool {
    [AUTHORIZATION, PROXY_AUTHORIZATION, COOKIE, SET_COOKIE].contains(name)
}

// A location may be a path only.
fn redact_relative(location: &str) -> String {
    match location.split_once('?') {
        Some((path, _)) if !location.contains("://") => format!("{path}?{BLANK}"),
        _ if location.contains("://") => redact(location),
        _ => location.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_without_secrets() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("accept", "*/*"),
            ("authorization", "Bearer hunter2"),
            ("set-cookie", "id=hunter2"),
            ("location", "https://h/x?sig=hunter2"),
        ] {
            headers.insert(name, value.parse().unwrap());
        }
        let shown = head("GET /v2/ HTTP/1.1", &headers);
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(
            shown.starts_with("GET /v2/ HTTP/1.1\r\naccept: */*\r\n")
                && shown.contains("authorization: REDACTED\r\n")
                && shown.ends_with("\r\n\r\n"),
            "{shown}"
        );
        assert_eq!(redact_relative("/up/1?state=hunter2"), "/up/1?REDACTED");
    }
}
