//! One API request to one host: authorization, redirects, retries, and its errors in stock's words.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use corten_core::{Error, Kind, Result};
use futures::future::BoxFuture;
use reqwest::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, LOCATION,
    PROXY_AUTHORIZATION, RANGE, RETRY_AFTER, USER_AGENT,
};
use reqwest::{Body, Client, Method, RequestBuilder, Response, StatusCode, Url};

use super::auth::Authorizer;
use super::debug::Debug;
use super::hosts::{Capabilities, Host};
use super::{USER_AGENT_VALUE, tls};

/// Tries of one request, all reasons together.
const ATTEMPTS: usize = 5;
const MAX_REDIRECTS: usize = 10;
/// Most of an error body that is read.
const MAX_ERROR: usize = 64_000;
/// Longest wait that a registry may ask for by Retry-After.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(10);

/// A host ready to be asked.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub scheme: String,
    pub host: String,
    pub path: String,
    pub capabilities: Capabilities,
    pub headers: HeaderMap,
    client: Client,
    // Knows no client certificate: for other hosts.
    others: Client,
    authorizer: Option<Arc<Authorizer>>,
    debug: Option<Arc<Debug>>,
    // Configured as plain HTTP but with TLS settings: HTTPS is tried first, this says that it was in vain.
    may_fall_back: bool,
    plain: AtomicBool,
}

/// Makes the body anew for each try.
pub(super) type BodyFn = Arc<dyn Fn() -> BoxFuture<'static, Result<Body>> + Send + Sync>;

/// One request.
#[derive(Clone)]
pub(super) struct Request {
    pub method: Method,
    /// Path and query.
    pub path: String,
    pub headers: HeaderMap,
    pub endpoint: Arc<Endpoint>,
    /// Token scopes, `repository:name:pull`.
    pub scopes: Vec<String>,
    pub body: Option<(u64, BodyFn)>,
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.method, self.shown_url())
    }
}

// === impl Endpoint ===

impl Endpoint {
    /// Makes the client for `host`. Blocking.
    ///
    /// # Errors
    /// Certificates that cannot be loaded.
    pub(super) fn new(
        host: &Host,
        authorizer: Arc<Authorizer>,
        debug: Option<Arc<Debug>>,
    ) -> Result<Self> {
        let port = super::hosts::split_port(&host.host).1;
        let may_fall_back = host.scheme == "http" && host.has_tls() && port != Some("80");
        let scheme = if may_fall_back {
            "https".into()
        } else {
            host.scheme.clone()
        };
        let client = tls::client(host)?;
        let others = match host.client.is_empty() {
            true => client.clone(),
            false => tls::client(&Host {
                client: Vec::new(),
                ..host.clone()
            })?,
        };
        Ok(Self {
            scheme,
            host: host.host.clone(),
            path: host.path.clone(),
            capabilities: host.capabilities,
            headers: host.headers.clone(),
            client,
            others,
            authorizer: Some(authorizer),
            debug,
            may_fall_back,
            plain: AtomicBool::new(false),
        })
    }

    /// The same client for another place, without authorization: foreign URLs and moved uploads.
    pub(super) fn anonymous(&self, url: &Url) -> Self {
        Self {
            scheme: url.scheme().to_owned(),
            host: authority(url),
            path: String::new(),
            capabilities: self.capabilities,
            headers: HeaderMap::new(),
            client: self.client_for(url).clone(),
            others: self.others.clone(),
            authorizer: None,
            debug: self.debug.clone(),
            may_fall_back: false,
            plain: AtomicBool::new(false),
        }
    }

    fn scheme(&self) -> &str {
        if self.plain.load(Ordering::Relaxed) {
            "http"
        } else {
            &self.scheme
        }
    }

    /// `scheme://host[:port]`.
    pub(super) fn origin(&self) -> String {
        format!("{}://{}", self.scheme(), self.host)
    }

    /// Whether `url` is at this endpoint.
    pub(super) fn is_origin_of(&self, url: &Url) -> bool {
        Url::parse(&self.origin()).is_ok_and(|own| own.origin() == url.origin())
    }

    /// Whether `url` is on this endpoint's host, whatever its port, and not less protected: token servers and
    /// redirects there may learn what the file says for this host.
    fn trusts(&self, url: &Url) -> bool {
        Url::parse(&self.origin()).is_ok_and(|own| {
            own.host() == url.host() && (own.scheme() == url.scheme() || url.scheme() == "https")
        })
    }

    /// The client for a request to `url`: a client certificate is shown to its own host only. What makes servers
    /// trusted (`ca`, `skip_verify`) holds everywhere, as with stock: it gives nothing away that a host with this
    /// trust could not ask for itself.
    pub(super) fn client_for(&self, url: &Url) -> &Client {
        if self.trusts(url) {
            &self.client
        } else {
            &self.others
        }
    }

    /// Sends a request made with one of the clients, and shows it to whom it may concern.
    pub(super) async fn execute(&self, request: RequestBuilder) -> reqwest::Result<Response> {
        let (client, request) = request.build_split();
        let request = request?;
        if let Some(debug) = &self.debug {
            debug.request(&request).await;
        }
        let response = client.execute(request).await?;
        if let Some(debug) = &self.debug {
            debug.response(&response).await;
        }
        Ok(response)
    }

    /// The headers of the file, for its own host only.
    pub(super) fn headers_for(&self, url: &Url) -> HeaderMap {
        if self.trusts(url) {
            self.headers.clone()
        } else {
            HeaderMap::new()
        }
    }

    fn address(&self) -> String {
        match super::hosts::split_port(&self.host).1 {
            Some(_) => self.host.clone(),
            None => format!(
                "{}:{}",
                self.host,
                if self.scheme() == "http" { 80 } else { 443 }
            ),
        }
    }
}

pub(super) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port()
        .map_or_else(|| host.to_owned(), |p| format!("{host}:{p}"))
}

// === impl Request ===

impl Request {
    pub(super) fn new(
        endpoint: &Arc<Endpoint>,
        method: Method,
        path: String,
        scopes: Vec<String>,
    ) -> Self {
        Self {
            method,
            path,
            headers: endpoint.headers.clone(),
            endpoint: endpoint.clone(),
            scopes,
            body: None,
        }
    }

    /// Adds a query pair.
    pub(super) fn query(&mut self, key: &str, value: &str) {
        let mut encoder = Url::parse("x:x").ok();
        if let Some(url) = &mut encoder {
            url.query_pairs_mut().append_pair(key, value);
        }
        let pair = encoder.as_ref().and_then(Url::query).unwrap_or_default();
        self.path
            .push(if self.path.contains('?') { '&' } else { '?' });
        self.path.push_str(pair);
    }

    /// Replaces the `Accept` header by `media_type, */*`.
    pub(super) fn accept(&mut self, media_type: &str) {
        let value = match media_type {
            "" => HeaderValue::from_static("*/*"),
            m => HeaderValue::from_str(&format!("{m}, */*"))
                .unwrap_or(HeaderValue::from_static("*/*")),
        };
        self.headers.insert(ACCEPT, value);
    }

    /// Asks for the bytes from `start` on, up to the one before `end`.
    pub(super) fn range(&mut self, start: u64, end: Option<u64>) {
        let last = end.map_or_else(String::new, |end| end.saturating_sub(1).to_string());
        if let Ok(value) = HeaderValue::from_str(&format!("bytes={start}-{last}")) {
            self.headers.insert(RANGE, value);
        }
    }

    fn url(&self) -> String {
        format!("{}{}", self.endpoint.origin(), self.path)
    }

    /// The URL without secrets: query values other than `ns` are hidden.
    pub(super) fn shown_url(&self) -> String {
        redact(&self.url())
    }

    /// Sends, up to five times: on another answer to a challenge, on 408 and 429, on a passing failure of the last
    /// host (`last`). Any status is returned as such.
    ///
    /// # Errors
    /// What happened below HTTP; refused authorization.
    pub(super) async fn send(&mut self, last: bool) -> Result<Response> {
        let mut seen: Vec<StatusCode> = Vec::new();
        let mut attempt = 0;
        loop {
            attempt += 1;
            let response = match self.once().await {
                Ok(response) => response,
                Err(Failure::Passing(error)) if last && attempt < ATTEMPTS => {
                    tracing::debug!(%error, attempt, "transient transport error, retrying");
                    tokio::time::sleep(Duration::from_millis(50 << attempt)).await;
                    continue;
                }
                Err(Failure::Passing(e) | Failure::Final(e)) => return Err(e),
            };
            let status = response.status();
            let again = seen.last() == Some(&status);
            seen.push(status);
            if attempt >= ATTEMPTS || !self.wants_retry(&response, again, last, attempt).await? {
                return Ok(response);
            }
        }
    }

    async fn wants_retry(
        &mut self,
        response: &Response,
        again: bool,
        last: bool,
        attempt: usize,
    ) -> Result<bool> {
        match response.status() {
            StatusCode::UNAUTHORIZED => {
                let Some(authorizer) = self.endpoint.authorizer.clone() else {
                    return Ok(false);
                };
                // Where a redirect led to is nobody we would identify ourselves to.
                if !self.endpoint.is_origin_of(response.url()) {
                    return Ok(false);
                }
                let origin = self.endpoint.origin();
                authorizer
                    .challenged(&origin, &self.endpoint.host, response.headers(), again)
                    .await
            }
            StatusCode::METHOD_NOT_ALLOWED
                if self.method == Method::HEAD && self.path.contains("/manifests/") =>
            {
                self.method = Method::GET;
                Ok(true)
            }
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
                let wait = retry_after(response.headers())
                    .unwrap_or_else(|| Duration::from_millis(100 << attempt));
                tokio::time::sleep(wait.min(MAX_RETRY_AFTER)).await;
                Ok(true)
            }
            StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
            | StatusCode::INTERNAL_SERVER_ERROR => {
                let retry = last && !again;
                if retry {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Ok(retry)
            }
            _ => Ok(false),
        }
    }

    async fn once(&self) -> Result<Response, Failure> {
        // Seen before the try: another request may find out the same meanwhile.
        let tls = !self.endpoint.plain.load(Ordering::Relaxed);
        match self.follow().await {
            // The host is configured as plain HTTP; TLS was only an attempt to do better.
            Err((e, _)) if tls && self.falls_back(&e) => {
                self.endpoint.plain.store(true, Ordering::Relaxed);
                self.follow().await.map_err(|(e, error)| failure(&e, error))
            }
            other => other.map_err(|(e, error)| failure(&e, error)),
        }
    }

    fn falls_back(&self, e: &Option<reqwest::Error>) -> bool {
        let Some(e) = e else { return false };
        if !self.endpoint.may_fall_back {
            return false;
        }
        let no_port = super::hosts::split_port(&self.endpoint.host).1.is_none();
        tls::speaks_plain_http(e) || (no_port && tls::is_dial_error(e))
    }

    // Sends and follows redirects.
    async fn follow(&self) -> Result<Response, (Option<reqwest::Error>, Error)> {
        let fatal = |e: Error| (None, e);
        let mut url = Url::parse(&self.url())
            .map_err(|e| fatal(Error::invalid(format!("URL {:?}: {e}", self.shown_url()))))?;
        let mut method = self.method.clone();
        for _ in 0..=MAX_REDIRECTS {
            let response = self.single(&method, &url).await?;
            let status = response.status();
            let moved = matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308);
            let Some(to) = response.headers().get(LOCATION).filter(|_| moved) else {
                return Ok(response);
            };
            let next = to
                .to_str()
                .ok()
                .and_then(|to| url.join(to).ok())
                .filter(|u| matches!(u.scheme(), "http" | "https"))
                .ok_or_else(|| fatal(Error::invalid("redirect to an unusable location")))?;
            if status.as_u16() <= 303 && !matches!(method, Method::GET | Method::HEAD) {
                method = Method::GET;
            }
            url = next;
        }
        Err(fatal(Error::new(
            Kind::Unknown,
            "stopped after 10 redirects",
        )))
    }

    async fn single(
        &self,
        method: &Method,
        url: &Url,
    ) -> Result<Response, (Option<reqwest::Error>, Error)> {
        let home = self.endpoint.is_origin_of(url);
        let mut headers = if home {
            self.headers.clone()
        } else {
            foreign(&self.headers)
        };
        headers
            .entry(USER_AGENT)
            .or_insert(HeaderValue::from_static(USER_AGENT_VALUE));
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if home && let Some(authorizer) = &self.endpoint.authorizer {
            let value = authorizer
                .header(&self.endpoint, &self.scopes)
                .await
                .map_err(|e| (None, e.context("failed to authorize")))?;
            if let Some(value) = value {
                headers.insert(AUTHORIZATION, value);
            }
        }
        let mut request = self
            .endpoint
            .client_for(url)
            .request(method.clone(), url.clone())
            .headers(headers);
        if let Some((length, body)) = self.body.as_ref().filter(|_| *method == self.method) {
            let body = body().await.map_err(|e| (None, e))?;
            request = request.header("content-length", *length).body(body);
        }
        self.endpoint.execute(request).await.map_err(|e| {
            let address = if home {
                self.endpoint.address()
            } else {
                authority(url)
            };
            let error = tls::request_error(&e, method, &redact(url.as_str()), &address);
            (Some(e), error)
        })
    }
}

enum Failure {
    Passing(Error),
    Final(Error),
}

fn failure(e: &Option<reqwest::Error>, error: Error) -> Failure {
    match e {
        Some(e) if tls::is_transient(e) => Failure::Passing(error),
        _ => Failure::Final(error),
    }
}

// What may be told to somewhere else than the registry: what is wanted, nothing about who wants it.
fn foreign(headers: &HeaderMap) -> HeaderMap {
    let keep: [HeaderName; 3] = [ACCEPT, RANGE, USER_AGENT];
    let mut out = HeaderMap::new();
    for (name, value) in headers {
        if keep.contains(name) {
            out.append(name.clone(), value.clone());
        }
    }
    debug_assert!(!out.contains_key(AUTHORIZATION) && !out.contains_key(PROXY_AUTHORIZATION));
    out
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers
        .get(RETRY_AFTER)?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()?;
    Some(Duration::from_secs(seconds))
}

/// Hides user info and query values, which may be signatures and tokens.
pub(super) fn redact(text: &str) -> String {
    let Ok(mut url) = Url::parse(text) else {
        return "(unparsable URL)".into();
    };
    if url.password().is_some() {
        // Cannot fail for a URL that has a password already.
        let _ = url.set_password(Some("xxxxx"));
    }
    if url.query().is_some() {
        let pairs: Vec<(String, String)> = url
            .query_pairs()
            .map(|(k, v)| {
                let hidden = k != "ns" && !v.is_empty();
                (
                    k.into_owned(),
                    if hidden {
                        "REDACTED".into()
                    } else {
                        v.into_owned()
                    },
                )
            })
            .collect();
        url.query_pairs_mut().clear().extend_pairs(pairs);
    }
    url.to_string()
}

// === errors ===

#[derive(serde::Deserialize)]
struct Errors {
    #[serde(default)]
    errors: Vec<RegistryError>,
}

#[derive(serde::Deserialize)]
struct RegistryError {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// The error of a status that was not expected, with what the registry said about it.
pub(super) fn unexpected_status(
    method: &Method,
    url: &str,
    status: StatusCode,
    body: &[u8],
) -> Error {
    let kind = match status.as_u16() {
        404 => Kind::NotFound,
        401 => Kind::Unauthenticated,
        403 => Kind::PermissionDenied,
        429 => Kind::ResourceExhausted,
        503 => Kind::Unavailable,
        _ => Kind::Unknown,
    };
    let reason = status.canonical_reason().unwrap_or_default();
    let mut text = format!(
        "unexpected status from {method} request to {}: {} {reason}",
        redact(url),
        status.as_u16()
    );
    if let Ok(parsed) = serde_json::from_slice::<Errors>(body) {
        for e in parsed.errors.iter().take(8) {
            let code = e.code.to_lowercase().replace('_', " ");
            let message: String = e.message.chars().take(512).collect();
            text.push('\n');
            text.push_str(code.trim());
            if !message.is_empty() {
                text.push_str(": ");
                text.push_str(&message);
            }
        }
    }
    Error::new(kind, text)
}

/// [`unexpected_status`] of a response; reads its body.
pub(super) async fn unexpected(method: &Method, mut response: Response) -> Error {
    let (url, status) = (response.url().to_string(), response.status());
    let body = bounded(&mut response, MAX_ERROR).await;
    unexpected_status(method, &url, status, &body)
}

async fn bounded(response: &mut Response, limit: usize) -> Vec<u8> {
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        body.extend_from_slice(&chunk);
        if body.len() >= limit {
            body.truncate(limit);
            break;
        }
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_shown_without_secrets() {
        let shown = redact("https://u:p@h/v2/a?ns=docker.io&token=abc&X=");
        assert!(!shown.contains("abc") && !shown.contains(":p@"), "{shown}");
        assert!(
            shown.contains("ns=docker.io") && shown.contains("token=REDACTED"),
            "{shown}"
        );
    }

    #[test]
    fn the_registrys_words_are_kept() {
        let e = unexpected_status(
            &Method::GET,
            "https://r/v2/x/manifests/y",
            StatusCode::FORBIDDEN,
            br#"{"errors":[{"code":"DENIED","message":"go away","detail":null}]}"#,
        );
        assert_eq!(
            e.to_string(),
            "unexpected status from GET request to https://r/v2/x/manifests/y: 403 Forbidden\ndenied: go away"
        );
    }
}
