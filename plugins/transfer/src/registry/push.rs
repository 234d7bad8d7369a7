//! Pushing blobs and documents: existence check, mount from another repository, upload.

use std::collections::BTreeMap;
use std::sync::Arc;

use corten_core::labels::DISTRIBUTION_SOURCE;
use corten_core::{Context, Error, Kind, Result};
use reqwest::header::{CONTENT_TYPE, HeaderValue, LOCATION};
use reqwest::{Method, StatusCode, Url};

use super::request::{BodyFn, Endpoint, Request, unexpected};
use super::{Registry, header_text};
use crate::oci::Desc;

/// How a push of one blob ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// The registry had it, or mounted it.
    Exists,
    Uploaded,
}

impl Registry {
    /// Pushes `desc`, whose bytes `body` gives anew for each try. A document goes under the reference's tag if
    /// `tagged`, else under its digest. `sources` are the `containerd.io/distribution.source.*` labels of the blob.
    ///
    /// # Errors
    /// The registry's; refused authorization.
    pub async fn push(
        &self,
        desc: &Desc,
        tagged: bool,
        sources: &BTreeMap<String, String>,
        body: BodyFn,
    ) -> Result<Pushed> {
        let digest = desc.checked_digest()?;
        let size = u64::try_from(desc.size).map_err(|_| Error::invalid("negative size"))?;
        let Some(host) = self.endpoints.iter().find(|e| e.capabilities.push) else {
            return Err(Error::not_found("no push hosts"));
        };
        let document = desc.is_document();
        let tag = self.reference.tag().filter(|_| tagged && document);
        let path = match (document, tag) {
            (false, _) => format!("blobs/{digest}"),
            (true, Some(tag)) => format!("manifests/{tag}"),
            (true, None) => format!("manifests/{digest}"),
        };
        if self.exists(host, &path, desc, tag.is_some()).await? {
            return Ok(Pushed::Exists);
        }
        let mut put = if document {
            let mut put = self.request(host, Method::PUT, &path, "pull,push");
            let media_type = HeaderValue::from_str(&desc.media_type)
                .map_err(|_| Error::invalid(format!("media type {:?}", desc.media_type)))?;
            put.headers.insert(CONTENT_TYPE, media_type);
            put
        } else {
            match self.start_upload(host, desc, sources).await? {
                Some(put) => put,
                None => return Ok(Pushed::Exists),
            }
        };
        put.body = Some((size, body));
        let response = put.send(true).await.map_err(push_denied)?;
        if !matches!(response.status().as_u16(), 200 | 201 | 202 | 204) {
            return Err(unexpected(&Method::PUT, response).await);
        }
        if let Some(actual) = header_text(response.headers(), "docker-content-digest")
            && actual != digest.as_str()
        {
            return Err(Error::new(
                Kind::Unknown,
                format!("got digest {actual}, expected {digest}"),
            ));
        }
        Ok(Pushed::Uploaded)
    }

    async fn exists(
        &self,
        host: &Arc<Endpoint>,
        path: &str,
        desc: &Desc,
        by_tag: bool,
    ) -> Result<bool> {
        let mut head = self.request(host, Method::HEAD, path, "pull,push");
        head.accept(&desc.media_type);
        let response = match head.send(true).await {
            Ok(response) => response,
            // Not allowed to look does not mean not allowed to push.
            Err(e) if e.kind() == Kind::Unauthenticated => return Ok(false),
            Err(e) => return Err(e),
        };
        match response.status() {
            StatusCode::OK if by_tag => {
                Ok(header_text(response.headers(), "docker-content-digest")
                    == Some(desc.digest.as_str()))
            }
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            StatusCode::FORBIDDEN if head.method == Method::HEAD => {
                let error = unexpected(&Method::HEAD, response).await;
                let mut get = self.request(host, Method::GET, path, "pull,push");
                get.accept(&desc.media_type);
                match get.send(false).await {
                    Ok(r) if r.status() == StatusCode::FORBIDDEN => {
                        Err(unexpected(&Method::HEAD, r).await)
                    }
                    _ => Err(error),
                }
            }
            _ => Err(unexpected(&head.method, response).await),
        }
    }

    // None: the registry already has the blob (mounted).
    async fn start_upload(
        &self,
        host: &Arc<Endpoint>,
        desc: &Desc,
        sources: &BTreeMap<String, String>,
    ) -> Result<Option<Request>> {
        let post = || self.request(host, Method::POST, "blobs/uploads/", "pull,push");
        let mut response = None;
        if let Some(from) = self.mount_candidate(sources) {
            let mut mount = post();
            mount.query("mount", &desc.digest);
            mount.query("from", &from);
            mount.scopes.push(format!("repository:{from}:pull"));
            match mount.send(true).await {
                Ok(r) if r.status() == StatusCode::UNAUTHORIZED => {}
                Ok(r) => response = Some(r),
                Err(e) if e.kind() == Kind::Unauthenticated => {}
                Err(e) => return Err(e).with_context(|| format!("pushing with mount from {from}")),
            }
        }
        let response = match response {
            Some(r) => r,
            None => post().send(true).await.map_err(push_denied)?,
        };
        match response.status() {
            StatusCode::OK | StatusCode::ACCEPTED | StatusCode::NO_CONTENT => {}
            StatusCode::CREATED => return Ok(None),
            _ => return Err(unexpected(&Method::POST, response).await),
        }
        let location = header_text(response.headers(), LOCATION.as_str()).unwrap_or_default();
        let url = response
            .url()
            .join(location)
            .map_err(|e| Error::invalid(format!("unable to parse location: {e}")))?;
        Ok(Some(self.upload_to(host, &url, desc)?))
    }

    fn upload_to(&self, host: &Arc<Endpoint>, url: &Url, desc: &Desc) -> Result<Request> {
        let mut path = url.path().to_owned();
        if let Some(query) = url.query() {
            path = format!("{path}?{query}");
        }
        let mut put = if host.is_origin_of(url) {
            let scopes = vec![self.scope("pull,push")];
            Request::new(host, Method::PUT, path, scopes)
        } else {
            // The registry sends us elsewhere: without who we are.
            if !matches!(url.scheme(), "http" | "https") {
                return Err(Error::invalid("unable to parse location"));
            }
            Request::new(
                &Arc::new(host.anonymous(url)),
                Method::PUT,
                path,
                Vec::new(),
            )
        };
        put.query("digest", &desc.digest);
        put.headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/octet-stream"),
        );
        Ok(put)
    }

    // The known repository on this registry that shares most of its path with ours.
    fn mount_candidate(&self, sources: &BTreeMap<String, String>) -> Option<String> {
        let host = self.reference.host();
        let host = super::hosts::split_port(host).0;
        let target = self.reference.repository();
        let known = sources.get(&format!("{DISTRIBUTION_SOURCE}.{host}"))?;
        let common = |repo: &str| {
            repo.split('/')
                .zip(target.split('/'))
                .take_while(|(a, b)| a == b)
                .count()
        };
        known
            .split(',')
            .filter(|r| !r.is_empty() && *r != target)
            .max_by_key(|r| common(r))
            .map(str::to_owned)
    }
}

fn push_denied(e: Error) -> Error {
    match e.kind() {
        Kind::Unauthenticated => {
            e.context("push access denied, repository does not exist or may require authorization")
        }
        _ => e,
    }
}
