//! Whose call this is: the namespace and the lease that came with it.

use crate::error::{Error, Kind, Result};
use crate::id::Namespace;

/// gRPC header that carries the namespace.
pub const NAMESPACE_HEADER: &str = "containerd-namespace";
/// ttrpc metadata key that carries the namespace.
pub const NAMESPACE_TTRPC: &str = "containerd-namespace-ttrpc";
/// gRPC header that carries the lease.
pub const LEASE_HEADER: &str = "containerd-lease";

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
        let header = |name: &str| {
            request
                .metadata()
                .get(name)
                .map(|v| {
                    v.to_str().map_err(|_| {
                        Error::new(Kind::InvalidArgument, format!("header {name} is not text"))
                    })
                })
                .transpose()
        };
        let namespace = Namespace::new(header(NAMESPACE_HEADER)?.unwrap_or_default())?;
        let lease = header(LEASE_HEADER)?
            .filter(|l| !l.is_empty())
            .map(str::to_owned);
        Ok(Self { namespace, lease })
    }
}
