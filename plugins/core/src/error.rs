//! The one error type of the daemon: containerd's error class, what was attempted, and the cause.
//!
//! Programs branch on [`Kind`], never on text. `Display` shows the context and then the causes, joined by `: `,
//! because that is the line that a client prints; `source` still gives the chain to who wants it.

use std::borrow::Cow;
use std::fmt;

/// containerd's errdefs classes; each has exactly one gRPC code (see [`crate::status`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    Unknown,
    InvalidArgument,
    NotFound,
    AlreadyExists,
    FailedPrecondition,
    Unavailable,
    NotImplemented,
    Canceled,
    DeadlineExceeded,
    PermissionDenied,
    Unauthenticated,
    ResourceExhausted,
    Aborted,
    OutOfRange,
    DataLoss,
    Internal,
}

impl Kind {
    /// containerd's own words for the class, as its Go clients print them.
    pub fn words(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::InvalidArgument => "invalid argument",
            Self::NotFound => "not found",
            Self::AlreadyExists => "already exists",
            Self::FailedPrecondition => "failed precondition",
            Self::Unavailable => "unavailable",
            Self::NotImplemented => "not implemented",
            Self::Canceled => "context canceled",
            Self::DeadlineExceeded => "context deadline exceeded",
            Self::PermissionDenied => "permission denied",
            Self::Unauthenticated => "unauthenticated",
            Self::ResourceExhausted => "resource exhausted",
            Self::Aborted => "aborted",
            Self::OutOfRange => "out of range",
            Self::DataLoss => "data loss",
            Self::Internal => "internal",
        }
    }
}

/// The daemon's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

type Source = Box<dyn std::error::Error + Send + Sync>;

/// An error of class [`Kind`] with its context and its cause.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    context: Cow<'static, str>,
    source: Option<Source>,
}

impl Error {
    /// `Error::new(Kind::NotFound, format!("image {name:?}: not found"))`.
    pub fn new(kind: Kind, context: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind,
            context: context.into(),
            source: None,
        }
    }

    /// `<what>: not found`, containerd's usual wording.
    pub fn not_found(what: impl fmt::Display) -> Self {
        Self::new(Kind::NotFound, format!("{what}: not found"))
    }

    /// `<what>: already exists`.
    pub fn already_exists(what: impl fmt::Display) -> Self {
        Self::new(Kind::AlreadyExists, format!("{what}: already exists"))
    }

    /// `<what>: invalid argument`.
    pub fn invalid(what: impl fmt::Display) -> Self {
        Self::new(Kind::InvalidArgument, format!("{what}: invalid argument"))
    }

    /// `<what>: failed precondition`.
    pub fn precondition(what: impl fmt::Display) -> Self {
        Self::new(
            Kind::FailedPrecondition,
            format!("{what}: failed precondition"),
        )
    }

    /// `<what>: not implemented`.
    pub fn not_implemented(what: impl fmt::Display) -> Self {
        Self::new(Kind::NotImplemented, format!("{what}: not implemented"))
    }

    /// A broken invariant of ours.
    pub fn internal(what: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Kind::Internal, what)
    }

    /// The class.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Adds the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Source>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Says what was attempted; keeps the class.
    #[must_use]
    pub fn context(self, what: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind: self.kind,
            context: what.into(),
            source: Some(Box::new(self)),
        }
    }

    /// Whether a `T` is among the causes: tells apart what has one class on the wire and two meanings inside.
    pub fn is_caused_by<T: std::error::Error + 'static>(&self) -> bool {
        let mut next = Some(self);
        while let Some(source) = next.and_then(|e| e.source.as_deref()) {
            if source.is::<T>() {
                return true;
            }
            next = source.downcast_ref();
        }
        false
    }

    /// The same error with another class, for the edges where containerd maps one to another.
    #[must_use]
    pub fn reclassify(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)?;
        let Some(source) = self.source.as_deref() else {
            return Ok(());
        };
        write!(f, ": {source}")?;
        let mut next = source.source();
        while let Some(e) = next {
            write!(f, ": {e}")?;
            next = e.source();
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    // The chain is already in Display (clients see one line), so it is not offered twice to generic printers.
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        None
    }
}

impl From<std::io::Error> for Error {
    fn from(e: std::io::Error) -> Self {
        let kind = match e.kind() {
            // Out of descriptors, memory or buffers: says nothing about what was asked for.
            _ if matches!(e.raw_os_error(), Some(12 | 23 | 24 | 105)) => Kind::ResourceExhausted,
            std::io::ErrorKind::NotFound => Kind::NotFound,
            std::io::ErrorKind::AlreadyExists => Kind::AlreadyExists,
            std::io::ErrorKind::PermissionDenied => Kind::PermissionDenied,
            std::io::ErrorKind::InvalidInput => Kind::InvalidArgument,
            std::io::ErrorKind::TimedOut => Kind::DeadlineExceeded,
            // A full backlog of a unix socket.
            std::io::ErrorKind::WouldBlock => Kind::Unavailable,
            std::io::ErrorKind::StorageFull => Kind::ResourceExhausted,
            _ => Kind::Unknown,
        };
        Self::new(kind, plain(&e))
    }
}

/// Text of an errno as Go prints it, which clients and their users look for: lower case, without "(os error N)".
fn plain(e: &std::io::Error) -> String {
    let text = e.to_string();
    match e.raw_os_error() {
        Some(_) => text.split(" (os error").next().unwrap_or("").to_lowercase(),
        None => text,
    }
}

/// `.context("…")` on results.
pub trait Context<T> {
    /// Says what was attempted.
    ///
    /// # Errors
    /// The same error with the context in front.
    fn context(self, what: impl Into<Cow<'static, str>>) -> Result<T>;
    /// Says what was attempted, built only on failure.
    ///
    /// # Errors
    /// The same error with the context in front.
    fn with_context<S: Into<Cow<'static, str>>>(self, what: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl Into<Cow<'static, str>>) -> Result<T> {
        self.map_err(|e| e.into().context(what))
    }
    fn with_context<S: Into<Cow<'static, str>>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|e| e.into().context(what()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_found_below_any_context() {
        let e = Error::internal("a")
            .with_source(std::fmt::Error)
            .context("b")
            .context("c");
        assert!(e.is_caused_by::<std::fmt::Error>());
        assert!(!e.is_caused_by::<std::io::Error>());
        assert!(
            !Error::internal("x")
                .context("y")
                .is_caused_by::<std::fmt::Error>()
        );
    }

    #[test]
    fn errno_texts_are_go_s() {
        let e = Error::from(std::io::Error::from_raw_os_error(28)).context("write x");
        assert_eq!(e.kind(), Kind::ResourceExhausted);
        assert_eq!(e.to_string(), "write x: no space left on device");
    }

    #[test]
    fn display_is_one_line_with_all_causes_and_the_class_survives() {
        let e = Error::not_found("blob sha256:00")
            .context("read manifest")
            .context("pull");
        assert_eq!(
            e.to_string(),
            "pull: read manifest: blob sha256:00: not found"
        );
        assert_eq!(e.kind(), Kind::NotFound);
    }
}
