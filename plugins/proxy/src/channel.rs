//! A connection to a plugin in another process, made when it is needed and again when it broke.

use std::path::{Path, PathBuf};

use corten_core::scope::{CALLER, LEASE_HEADER, NAMESPACE_HEADER};
use corten_core::{Error, Kind, Namespace, Result, Scope};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};

/// Largest message in both directions, in bytes (containerd: defaults.DefaultMaxRecvMsgSize).
pub(crate) const MAX_MESSAGE: usize = 16 << 20;

/// The other process. Clones share its connection.
#[derive(Debug, Clone)]
pub(crate) struct Remote {
    pub(crate) name: String,
    path: PathBuf,
    endpoint: Endpoint,
}

// === impl Remote ===

impl Remote {
    pub(crate) fn new(name: &str, address: &str) -> Result<Self> {
        let path = Path::new(address.strip_prefix("unix://").unwrap_or(address));
        if !path.is_absolute() {
            return Err(Error::invalid(format!(
                "proxy plugin {name}: address {address:?} is not the path of a unix socket"
            )));
        }
        Ok(Self {
            name: name.to_owned(),
            path: path.to_owned(),
            // Goes into `:authority`, and is what Go's clients say over unix sockets.
            endpoint: Endpoint::from_static("http://localhost"),
        })
    }

    /// A lazy connection. Within an async runtime only.
    pub(crate) fn channel(&self) -> Channel {
        let path = self.path.clone();
        self.endpoint
            .connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            }))
    }

    /// What a failed call means: what the plugin said, or that it could not be asked.
    pub(crate) fn failed(&self, status: Status) -> Error {
        let Some(source) = std::error::Error::source(&status) else {
            return Error::from(status);
        };
        // Only a status made on this side has a cause: the connection could not be made, or broke.
        let mut text = source.to_string();
        let mut next = source.source();
        while let Some(cause) = next {
            let cause_text = cause.to_string();
            // Wrappers say what they wrap.
            if !text.ends_with(&cause_text) {
                text = format!("{text}: {cause_text}");
            }
            next = cause.source();
        }
        Error::new(
            Kind::Unavailable,
            format!(
                "proxy plugin {:?} at {}: {text}",
                self.name,
                self.path.display()
            ),
        )
    }

    /// An answer without a part that the protocol requires.
    pub(crate) fn incomplete(&self, what: &str) -> Error {
        Error::new(
            Kind::Unknown,
            format!("proxy plugin {:?} answered without {what}", self.name),
        )
    }
}

/// A request in the caller's scope, if there is a caller: garbage collection has none.
pub(crate) fn request<T>(message: T) -> Request<T> {
    match CALLER.try_with(Clone::clone) {
        Ok(scope) => in_scope(&scope, message),
        Err(_) => Request::new(message),
    }
}

/// A request in `scope`.
pub(crate) fn in_scope<T>(scope: &Scope, message: T) -> Request<T> {
    let mut request = in_namespace(&scope.namespace, message);
    if let Some(Ok(lease)) = scope.lease.as_ref().map(MetadataValue::try_from) {
        request.metadata_mut().insert(LEASE_HEADER, lease);
    }
    request
}

/// A request in `ns`.
pub(crate) fn in_namespace<T>(ns: &Namespace, message: T) -> Request<T> {
    let mut request = Request::new(message);
    if let Ok(ns) = MetadataValue::try_from(ns.as_str()) {
        request.metadata_mut().insert(NAMESPACE_HEADER, ns);
    }
    request
}
