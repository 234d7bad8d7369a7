//! Owns the shim's error: a status code of the errdefs classes and the text a client will show.

use std::fmt;

use corten_protos::ttrpc::runtime;
use ttrpc::Code;

/// Result of this crate.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// What a caller gets: code and complete text. Nothing here branches on the text.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Error {
    pub(crate) code: Code,
    text: String,
}

// === impl Error ===

impl Error {
    fn new(code: Code, text: impl Into<String>) -> Self {
        Self {
            code,
            text: text.into(),
        }
    }

    /// An error of a class, with the class's name behind the text as Go's wrapped sentinels print it.
    fn of(code: Code, text: impl fmt::Display, class: &str) -> Self {
        Self::new(code, format!("{text}: {class}"))
    }

    /// The class containerd gives to a plain error.
    pub(crate) fn unknown(text: impl Into<String>) -> Self {
        Self::new(Code::UNKNOWN, text)
    }

    pub(crate) fn not_found(text: impl fmt::Display) -> Self {
        Self::of(Code::NOT_FOUND, text, "not found")
    }

    pub(crate) fn exists(text: impl fmt::Display) -> Self {
        Self::of(Code::ALREADY_EXISTS, text, "already exists")
    }

    pub(crate) fn invalid(text: impl fmt::Display) -> Self {
        Self::of(Code::INVALID_ARGUMENT, text, "invalid argument")
    }

    pub(crate) fn precondition(text: impl fmt::Display) -> Self {
        Self::of(Code::FAILED_PRECONDITION, text, "failed precondition")
    }

    pub(crate) fn unimplemented(text: impl fmt::Display) -> Self {
        Self::of(Code::UNIMPLEMENTED, text, "not implemented")
    }

    pub(crate) fn unavailable(text: impl fmt::Display) -> Self {
        Self::of(Code::UNAVAILABLE, text, "unavailable")
    }

    /// Puts what was attempted before the text; the class stays.
    pub(crate) fn context(mut self, what: impl fmt::Display) -> Self {
        self.text = format!("{what}: {}", self.text);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Error {}

impl From<std::io::Error> for Error {
    fn from(e: std::io::Error) -> Self {
        Self::unknown(plain(&e))
    }
}

impl From<rustix::io::Errno> for Error {
    fn from(e: rustix::io::Errno) -> Self {
        std::io::Error::from(e).into()
    }
}

impl From<corten_oci::Error> for Error {
    fn from(e: corten_oci::Error) -> Self {
        let code = match e.kind {
            corten_oci::Kind::Unsupported => Code::UNIMPLEMENTED,
            _ => Code::UNKNOWN,
        };
        Self::new(code, e.to_string())
    }
}

impl From<Error> for ttrpc::Error {
    fn from(e: Error) -> Self {
        runtime::error(e.code, e.text)
    }
}

/// Text of an errno as Go prints it: lower case, without "(os error N)".
pub(crate) fn plain(e: &std::io::Error) -> String {
    let text = e.to_string();
    match e.raw_os_error() {
        Some(_) => text.split(" (os error").next().unwrap_or("").to_lowercase(),
        None => text,
    }
}

/// Adds what was attempted to any error of this crate's sources.
pub(crate) trait Context<T> {
    fn context(self, what: impl fmt::Display) -> Result<T>;
}

impl<T, E: Into<Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|e| e.into().context(what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errno_text_is_go_s() {
        let e = std::io::Error::from_raw_os_error(2);
        let text = Err::<(), _>(e).context("open \"x\"").unwrap_err();
        assert_eq!(text.to_string(), "open \"x\": no such file or directory");
        assert_eq!(text.code, Code::UNKNOWN);
    }
}
