//! Owns the engine's error: what was attempted, and a kind a caller may branch on.

use std::fmt;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Class of an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The document or the request is wrong.
    Invalid,
    /// Valid, but not something this engine does.
    Unsupported,
    NotFound,
    /// The system refused; `source` has the errno.
    System,
}

/// Error with a complete lower-case text.
#[derive(Debug)]
pub struct Error {
    pub kind: Kind,
    text: String,
    source: Option<std::io::Error>,
}

// === impl Error ===

impl Error {
    pub(crate) fn invalid(text: impl Into<String>) -> Self {
        Self {
            kind: Kind::Invalid,
            text: text.into(),
            source: None,
        }
    }

    pub(crate) fn unsupported(text: impl Into<String>) -> Self {
        Self {
            kind: Kind::Unsupported,
            text: text.into(),
            source: None,
        }
    }

    pub(crate) fn system(text: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        let source = source.into();
        let kind = match source.kind() {
            std::io::ErrorKind::NotFound => Kind::NotFound,
            _ => Kind::System,
        };
        Self {
            kind,
            text: text.into(),
            source: Some(source),
        }
    }

    /// errno of a system error.
    pub fn errno(&self) -> Option<i32> {
        self.source.as_ref().and_then(std::io::Error::raw_os_error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            None => f.write_str(&self.text),
            Some(e) => write!(f, "{}: {}", self.text, errno_text(e)),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|e| e as _)
    }
}

/// `strerror` text in lower case, as Go prints it, without Rust's "(os error N)".
pub(crate) fn errno_text(e: &std::io::Error) -> String {
    let text = e.to_string();
    match e.raw_os_error() {
        Some(_) => text.split(" (os error").next().unwrap_or("").to_lowercase(),
        None => text,
    }
}
