//! Whose call this is: the namespace and the lease that came with it.

use crate::error::{Error, Kind, Result};
use crate::id::Namespace;

/// gRPC header that carries the namespace.
pub const NAMESPACE_HEADER: &str = "containerd-namespace";
/// ttrpc metadata key that carries the namespace.
pub const NAMESPACE_TTRPC: &str = "containerd-namespace-ttrpc";
/// gRPC header that carries the lease.
pub const LEASE_HEADER: &str = "containerd-lease";

tokio::task_local! {
    /// The scope of the gRPC call that the current task serves. Only for what leaves the daemon through traits that
    /// are below namespaces: a proxy plugin hears of it as containerd's proxies do. Nothing inside decides by it.
    pub static CALLER: Scope;
}

/// First argument of every namespaced call.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Scope {
    pub namespace: Namespace,
    /// Everything the call creates is added to this lease.
    pub lease: Option<String>,
}

impl Scope {
    /// A scope without lease.
    pub fn new(namespace: Namespace) -> Self {
        Self {
            namespace,
            lease: None,
        }
    }

    /// The same namespace under `lease`.
    #[must_use]
    pub fn with_lease(&self, lease: impl Into<String>) -> Self {
        Self {
            namespace: self.namespace.clone(),
            lease: Some(lease.into()),
        }
    }

    /// Reads the headers of a gRPC request.
    ///
    /// # Errors
    /// FailedPrecondition "namespace is required" when the header is missing; InvalidArgument when malformed.
    pub fn of<T>(request: &tonic::Request<T>) -> Result<Self> {
        let get = |name: &str| request.metadata().get(name).map(|v| v.to_str().ok());
        Self::parse(get)
    }

    /// The same of bare headers, without saying what is wrong with them.
    pub fn of_headers(headers: &tonic::codegen::http::HeaderMap) -> Option<Self> {
        Self::parse(|name| headers.get(name).map(|v| v.to_str().ok())).ok()
    }

    /// `get` gives a header's value: none when absent, none inside when it is not text.
    fn parse<'a>(get: impl Fn(&str) -> Option<Option<&'a str>>) -> Result<Self> {
        let header = |name: &str| match get(name) {
            None => Ok(None),
            Some(Some(text)) => Ok(Some(text)),
            Some(None) => Err(Error::new(
                Kind::InvalidArgument,
                format!("header {name} is not text"),
            )),
        };
        let namespace = Namespace::new(header(NAMESPACE_HEADER)?.unwrap_or_default())?;
        let lease = header(LEASE_HEADER)?
            .filter(|l| !l.is_empty())
            .map(str::to_owned);
        Ok(Self { namespace, lease })
    }
}
