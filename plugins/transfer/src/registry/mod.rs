//! Our registry client: resolves names, fetches and pushes blobs, over the hosts that `hosts.toml` lists.
//!
//! ```text
//! hosts (where) -> tls (client) -> request (one call: auth, redirects, retries) -> Registry (resolve, fetch) + push
//!                                     +-> debug (who wants to see it)
//! ```

pub mod auth;
pub mod debug;
pub mod hosts;
mod push;
mod request;
mod tls;

#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use corten_core::reference::{OBJECT_REQUIRED, Reference};
use corten_core::{Digest, Error, Kind, Result};
use reqwest::header::{
    CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue,
};
use reqwest::{Method, Response, StatusCode, Url};
use sha2::Digest as _;

use auth::Authorizer;
pub use auth::{Credential, Credentials};
pub use push::Pushed;
use request::{Endpoint, Request, unexpected};

use crate::oci::{DOCKER_SCHEMA1, Desc, MAX_DOCUMENT};

pub(crate) const USER_AGENT_VALUE: &str = concat!("corten/", env!("CARGO_PKG_VERSION"));

const ACCEPTED: &str = "application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, */*";

/// How a registry is reached.
#[derive(Clone, Default)]
pub struct RegistryOptions {
    /// Folders with a folder for each host; the first that knows the host wins.
    pub host_roots: Vec<PathBuf>,
    /// `http` or `https` for the registry itself when no file says; empty: the rule of containerd.
    pub default_scheme: String,
    /// Headers of every API request.
    pub headers: BTreeMap<String, String>,
    pub credentials: Option<Arc<dyn Credentials>>,
    /// Where to show what is asked and answered.
    pub debug: Option<Arc<debug::Debug>>,
}

impl std::fmt::Debug for RegistryOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryOptions")
            .field("host_roots", &self.host_roots)
            .finish_non_exhaustive()
    }
}

/// The repository of one image reference, on all its hosts.
#[derive(Debug)]
pub struct Registry {
    text: String,
    reference: Reference,
    endpoints: Vec<Arc<Endpoint>>,
    headers: HeaderMap,
}

/// An open blob: its response, and how many bytes of it come before the wanted ones.
#[derive(Debug)]
pub struct Body {
    pub response: Response,
    pub skip: u64,
    /// The registry took the range into account.
    pub partial: bool,
}

impl Registry {
    /// Reads the hosts configuration for `reference`. Nothing is sent.
    ///
    /// # Errors
    /// InvalidArgument for an unusable reference or header; unreadable configuration or certificates.
    pub async fn open(text: &str, options: RegistryOptions) -> Result<Self> {
        let reference = Reference::parse(text)?;
        let mut headers = HeaderMap::new();
        for (name, value) in &options.headers {
            let bad = |_| Error::invalid(format!("header {name:?}"));
            let key = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad(()))?;
            let mut value = HeaderValue::from_str(value).map_err(|_| bad(()))?;
            value.set_sensitive(true);
            headers.append(key, value);
        }
        let host = reference.host().to_owned();
        let load = move || -> Result<Vec<Arc<Endpoint>>> {
            let authorizer = Arc::new(Authorizer::new(options.credentials));
            hosts::load(&host, &options.host_roots, &options.default_scheme)?
                .iter()
                .map(|h| {
                    Ok(Arc::new(Endpoint::new(
                        h,
                        authorizer.clone(),
                        options.debug.clone(),
                    )?))
                })
                .collect()
        };
        let endpoints = tokio::task::spawn_blocking(load)
            .await
            .map_err(|_| Error::internal("loading of registry hosts panicked"))??;
        Ok(Self {
            text: text.to_owned(),
            reference,
            endpoints,
            headers,
        })
    }

    /// The reference as the client wrote it.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The parsed reference.
    pub fn reference(&self) -> &Reference {
        &self.reference
    }

    fn scope(&self, actions: &str) -> String {
        format!("repository:{}:{actions}", self.reference.repository())
    }

    fn request(
        &self,
        endpoint: &Arc<Endpoint>,
        method: Method,
        rest: &str,
        actions: &str,
    ) -> Request {
        let path = format!("{}/{}/{rest}", endpoint.path, self.reference.repository());
        let mut request = Request::new(endpoint, method, path, vec![self.scope(actions)]);
        for (name, value) in &self.headers {
            request.headers.append(name.clone(), value.clone());
        }
        let host = self.reference.host();
        let hub = host == "docker.io" && endpoint.host == "registry-1.docker.io";
        if host != endpoint.host && !hub {
            request.query("ns", host);
        }
        request
    }

    /// Finds out what the reference names now.
    ///
    /// # Errors
    /// NotFound when no host knows it; refused authorization; what else kept every host from answering. The most
    /// telling of the hosts' errors is returned.
    pub async fn resolve(&self) -> Result<Desc> {
        if self.reference.object.is_empty() {
            return Err(Error::new(Kind::InvalidArgument, OBJECT_REQUIRED));
        }
        let digest = match self.reference.object.split_once('@') {
            Some((_, text)) => {
                let wrong = Digest::wrong(text).map(|why| Error::new(Kind::InvalidArgument, why));
                Some(wrong.map_or_else(|| Digest::parse(text), Err)?)
            }
            None => None,
        };
        let paths = match &digest {
            Some(d) => vec![format!("manifests/{d}"), format!("blobs/{d}")],
            None => vec![format!("manifests/{}", self.reference.object)],
        };
        let hosts: Vec<_> = self
            .endpoints
            .iter()
            .filter(|e| e.capabilities.pull && (digest.is_some() || e.capabilities.resolve))
            .collect();
        if hosts.is_empty() {
            return Err(Error::not_found("no resolve hosts"));
        }
        // Higher wins: nobody answered, nobody has it, somebody refused.
        let mut worst: Option<(u8, Error)> = None;
        for path in &paths {
            for (i, endpoint) in hosts.iter().enumerate() {
                match self
                    .resolve_at(endpoint, path, digest.clone(), i + 1 == hosts.len())
                    .await
                {
                    Ok(desc) => return Ok(desc),
                    Err((priority, error)) => {
                        tracing::debug!(%error, host = endpoint.host, "resolve");
                        if worst.as_ref().is_none_or(|(p, _)| *p < priority) {
                            worst = Some((priority, error));
                        }
                    }
                }
            }
            if worst.as_ref().is_some_and(|(p, _)| *p > 2) {
                break;
            }
        }
        Err(worst.map_or_else(|| Error::not_found(&self.text), |w| w.1))
    }

    async fn resolve_at(
        &self,
        endpoint: &Arc<Endpoint>,
        path: &str,
        wanted: Option<Digest>,
        last: bool,
    ) -> Result<Desc, (u8, Error)> {
        let request = |method| {
            let mut r = self.request(endpoint, method, path, "pull");
            r.headers
                .insert("accept", HeaderValue::from_static(ACCEPTED));
            r
        };
        let mut head = request(Method::HEAD);
        let response = head.send(last).await.map_err(|e| (1, pull_denied(e)))?;
        let status = response.status();
        if status == StatusCode::NOT_FOUND {
            return Err((2, Error::not_found(&self.text)));
        }
        if status == StatusCode::FORBIDDEN && head.method == Method::HEAD {
            // A HEAD has no body: ask again for the registry's reason.
            let head_error = unexpected(&Method::HEAD, response).await;
            return Err(match request(Method::GET).send(false).await {
                Ok(got) if got.status() == status => (3, unexpected(&Method::HEAD, got).await),
                _ => (3, head_error),
            });
        }
        if !status.is_success() {
            return Err((3, unexpected(&head.method, response).await));
        }
        let sent = header_text(response.headers(), "docker-content-digest").map(str::to_owned);
        let length =
            header_text(response.headers(), CONTENT_LENGTH.as_str()).and_then(|l| l.parse().ok());
        let media_type = media_type(response.headers());
        if let Some(size) = length {
            let digest = match (wanted.clone(), sent) {
                (Some(d), _) => Some(d),
                (None, Some(text)) => Some(Digest::parse(&text).map_err(|e| {
                    (
                        3,
                        e.context(format!("{text:?} in header not a valid digest")),
                    )
                })?),
                (None, None) => None,
            };
            if let Some(digest) = digest {
                return self.described(&digest, media_type, size);
            }
        }
        // No digest or no length: the document itself tells.
        let response = request(Method::GET)
            .send(true)
            .await
            .map_err(|e| (1, pull_denied(e)))?;
        if !response.status().is_success() {
            return Err((3, unexpected(&Method::GET, response).await));
        }
        let (digest, media_type, size) = measure(response).await.map_err(|e| (3, e))?;
        self.described(&wanted.unwrap_or(digest), media_type, size)
    }

    fn described(
        &self,
        digest: &Digest,
        media_type: String,
        size: u64,
    ) -> Result<Desc, (u8, Error)> {
        if size > MAX_DOCUMENT {
            let text = format!("rejecting {size} byte manifest for {}", self.text);
            return Err((4, Error::not_found(text)));
        }
        Ok(Desc {
            media_type,
            digest: digest.to_string(),
            size: i64::try_from(size).unwrap_or(i64::MAX),
            ..Desc::default()
        })
    }

    /// Opens blob or document `desc`, which has `total` bytes, for its bytes `span`. More may come than that: from
    /// an earlier byte on (see [`Body::skip`]), or behind the end of `span`.
    ///
    /// # Errors
    /// NotFound when no host has it; the first host's other errors.
    pub async fn fetch(&self, desc: &Desc, span: Range<u64>, total: u64) -> Result<Body> {
        desc.checked_digest()?;
        let span = Span::of(span, total);
        for url in &desc.urls {
            match self.fetch_foreign(url, desc, span).await {
                Ok(Some(body)) => return Ok(body),
                Ok(None) => {}
                Err(e) if e.kind() == Kind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        let kind = if desc.is_document() {
            "manifests"
        } else {
            "blobs"
        };
        let path = format!("{kind}/{}", desc.digest);
        let hosts: Vec<_> = self
            .endpoints
            .iter()
            .filter(|e| e.capabilities.pull)
            .collect();
        let mut first: Option<Error> = None;
        for (i, endpoint) in hosts.iter().enumerate() {
            let request = self.request(endpoint, Method::GET, &path, "pull");
            match open(request, &desc.media_type, span, i + 1 == hosts.len()).await {
                Ok(body) => return Ok(body),
                Err(error) => {
                    tracing::debug!(%error, host = endpoint.host, "fetch");
                    first.get_or_insert(error);
                }
            }
        }
        match first {
            None => Err(Error::not_found("no pull hosts")),
            Some(e) if e.kind() == Kind::NotFound && kind == "blobs" => {
                Err(Error::not_found(format!(
                    "could not fetch content descriptor {} ({}) from remote",
                    desc.digest, desc.media_type
                )))
            }
            Some(e) => Err(e),
        }
    }

    // A foreign layer: other origins get no credentials, cookies or configured headers.
    async fn fetch_foreign(&self, url: &str, desc: &Desc, span: Span) -> Result<Option<Body>> {
        let Ok(url) = Url::parse(url) else {
            return Ok(None);
        };
        if !matches!(url.scheme(), "http" | "https") {
            return Ok(None);
        }
        let Some(any) = self.endpoints.first() else {
            return Ok(None);
        };
        let mut path = url.path().to_owned();
        if let Some(query) = url.query() {
            path = format!("{path}?{query}");
        }
        let request = match self.endpoints.iter().find(|e| e.is_origin_of(&url)) {
            Some(own) => Request::new(own, Method::GET, path, vec![self.scope("pull")]),
            None => Request::new(
                &Arc::new(any.anonymous(&url)),
                Method::GET,
                path,
                Vec::new(),
            ),
        };
        open(request, &desc.media_type, span, false).await.map(Some)
    }
}

/// The bytes that a request asks for.
#[derive(Debug, Clone, Copy)]
struct Span {
    start: u64,
    /// None: to the end of the blob.
    end: Option<u64>,
}

impl Span {
    fn of(span: Range<u64>, total: u64) -> Self {
        Self {
            start: span.start,
            end: Some(span.end).filter(|end| *end < total),
        }
    }

    fn is_whole(self) -> bool {
        self.start == 0 && self.end.is_none()
    }
}

async fn open(mut request: Request, media_type: &str, span: Span, last: bool) -> Result<Body> {
    request.accept(media_type);
    if !span.is_whole() {
        request.range(span.start, span.end);
    }
    let response = request.send(last).await?;
    let status = response.status();
    if status == StatusCode::NOT_FOUND {
        return Err(Error::not_found(format!(
            "content at {} not found",
            request.shown_url()
        )));
    }
    if !status.is_success() {
        return Err(unexpected(&request.method, response).await);
    }
    if let Some(encoding) = header_text(response.headers(), "content-encoding")
        && !matches!(encoding.trim(), "" | "identity")
    {
        let text = format!("unsupported Content-Encoding algorithm: {encoding}");
        return Err(Error::new(Kind::NotImplemented, text));
    }
    let partial = status == StatusCode::PARTIAL_CONTENT;
    let skip = match header_text(response.headers(), CONTENT_RANGE.as_str()) {
        _ if span.is_whole() => 0,
        Some(range) if !range.starts_with(&format!("bytes {}-", span.start)) => {
            let text = format!("unhandled content range in response: {range}");
            return Err(Error::new(Kind::Unknown, text));
        }
        None if !partial => span.start,
        _ => 0,
    };
    Ok(Body {
        response,
        skip,
        partial,
    })
}

async fn measure(mut response: Response) -> Result<(Digest, String, u64)> {
    let media_type = media_type(response.headers());
    if media_type == DOCKER_SCHEMA1 {
        return Err(Error::not_implemented(format!(
            "media type {DOCKER_SCHEMA1:?} is no longer supported since containerd v2.0"
        )));
    }
    let mut hasher = sha2::Sha256::new();
    let mut size = 0;
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) => {
                hasher.update(&chunk);
                size += chunk.len() as u64;
            }
            Ok(None) => break,
            Err(e) => return Err(Error::new(Kind::Unknown, format!("read manifest: {e}"))),
        }
        if size > MAX_DOCUMENT {
            break;
        }
    }
    Ok((
        Digest::from_sha256(hasher.finalize().as_slice()),
        media_type,
        size,
    ))
}

fn header_text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().filter(|t| !t.is_empty())
}

fn media_type(headers: &HeaderMap) -> String {
    let text = header_text(headers, CONTENT_TYPE.as_str()).unwrap_or_default();
    match text.split(';').next().unwrap_or_default().trim() {
        "text/plain" => DOCKER_SCHEMA1.into(),
        other => other.into(),
    }
}

fn pull_denied(e: Error) -> Error {
    match e.kind() {
        Kind::Unauthenticated => {
            e.context("pull access denied, repository does not exist or may require authorization")
        }
        _ => e,
    }
}
