//! The one place where an [`Error`] becomes a gRPC status and back (containerd: errgrpc).

use tonic::{Code, Status};

use crate::error::{Error, Kind};

impl From<Error> for Status {
    fn from(e: Error) -> Self {
        Self::new(code(e.kind()), e.to_string())
    }
}

impl From<Status> for Error {
    fn from(s: Status) -> Self {
        Self::new(kind(s.code()), s.message().to_owned())
    }
}

/// The gRPC code of a class.
pub fn code(kind: Kind) -> Code {
    match kind {
        Kind::Unknown => Code::Unknown,
        Kind::InvalidArgument => Code::InvalidArgument,
        Kind::NotFound => Code::NotFound,
        Kind::AlreadyExists => Code::AlreadyExists,
        Kind::FailedPrecondition => Code::FailedPrecondition,
        Kind::Unavailable => Code::Unavailable,
        Kind::NotImplemented => Code::Unimplemented,
        Kind::Canceled => Code::Cancelled,
        Kind::DeadlineExceeded => Code::DeadlineExceeded,
        Kind::PermissionDenied => Code::PermissionDenied,
        Kind::Unauthenticated => Code::Unauthenticated,
        Kind::ResourceExhausted => Code::ResourceExhausted,
        Kind::Aborted => Code::Aborted,
        Kind::OutOfRange => Code::OutOfRange,
        Kind::DataLoss => Code::DataLoss,
        Kind::Internal => Code::Internal,
    }
}

/// The class of a gRPC code.
pub fn kind(code: Code) -> Kind {
    match code {
        Code::InvalidArgument => Kind::InvalidArgument,
        Code::NotFound => Kind::NotFound,
        Code::AlreadyExists => Kind::AlreadyExists,
        Code::FailedPrecondition => Kind::FailedPrecondition,
        Code::Unavailable => Kind::Unavailable,
        Code::Unimplemented => Kind::NotImplemented,
        Code::Cancelled => Kind::Canceled,
        Code::DeadlineExceeded => Kind::DeadlineExceeded,
        Code::PermissionDenied => Kind::PermissionDenied,
        Code::Unauthenticated => Kind::Unauthenticated,
        Code::ResourceExhausted => Kind::ResourceExhausted,
        Code::Aborted => Kind::Aborted,
        Code::OutOfRange => Kind::OutOfRange,
        Code::DataLoss => Kind::DataLoss,
        Code::Internal => Kind::Internal,
        Code::Ok | Code::Unknown => Kind::Unknown,
    }
}

/// The class of a numeric code, as ttrpc carries it.
pub fn kind_of_number(code: i32) -> Kind {
    kind(Code::from_i32(code))
}
