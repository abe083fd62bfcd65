//! The one map between [`ErrorKind`] and gRPC codes: no other crate makes a [`tonic::Status`].

use tarbox_types::ErrorKind;
use tonic::{Code, Status};

/// The metadata key that carries the kind itself, because several kinds share a code.
const KIND_KEY: &str = "tarbox-kind";

/// The gRPC code of a kind.
#[must_use]
pub fn code(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::AlreadyExists => Code::AlreadyExists,
        ErrorKind::InvalidArgument => Code::InvalidArgument,
        ErrorKind::FailedPrecondition | ErrorKind::Busy | ErrorKind::Incompatible => Code::FailedPrecondition,
        ErrorKind::Exhausted => Code::ResourceExhausted,
        ErrorKind::PermissionDenied => Code::PermissionDenied,
        ErrorKind::Unavailable => Code::Unavailable,
        ErrorKind::Fenced | ErrorKind::Concurrent => Code::Aborted,
        ErrorKind::Damaged => Code::DataLoss,
        ErrorKind::Unsupported => Code::Unimplemented,
        ErrorKind::Internal => Code::Internal,
        ErrorKind::OutOfRange => Code::OutOfRange,
    }
}

/// The name of a kind on the wire; never changes.
fn word(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::NotFound => "not-found",
        ErrorKind::AlreadyExists => "already-exists",
        ErrorKind::InvalidArgument => "invalid-argument",
        ErrorKind::FailedPrecondition => "failed-precondition",
        ErrorKind::Busy => "busy",
        ErrorKind::Exhausted => "exhausted",
        ErrorKind::PermissionDenied => "permission-denied",
        ErrorKind::Unavailable => "unavailable",
        ErrorKind::Fenced => "fenced",
        ErrorKind::Damaged => "damaged",
        ErrorKind::Incompatible => "incompatible",
        ErrorKind::Unsupported => "unsupported",
        ErrorKind::Internal => "internal",
        ErrorKind::Concurrent => "concurrent",
        ErrorKind::OutOfRange => "out-of-range",
    }
}

/// The answer to a call that failed: its code, its message, and the kind for [`kind`] on the other side.
#[must_use]
pub fn status(kind: ErrorKind, message: impl Into<String>) -> Status {
    let mut status = Status::new(code(kind), message);
    status.metadata_mut().insert(KIND_KEY, tonic::metadata::MetadataValue::from_static(word(kind)));
    status
}

/// The kind of an answer. Codes that we do not send (a deadline passed, a connection broke) are mapped to what a
/// caller can do about them.
#[must_use]
pub fn kind(status: &Status) -> ErrorKind {
    let sent = status.metadata().get(KIND_KEY).and_then(|value| value.to_str().ok());
    if let Some(kind) = sent.and_then(|sent| ErrorKind::ALL.into_iter().find(|kind| word(*kind) == sent)) {
        return kind;
    }
    match status.code() {
        Code::NotFound => ErrorKind::NotFound,
        Code::AlreadyExists => ErrorKind::AlreadyExists,
        Code::InvalidArgument => ErrorKind::InvalidArgument,
        Code::OutOfRange => ErrorKind::OutOfRange,
        Code::FailedPrecondition => ErrorKind::FailedPrecondition,
        Code::ResourceExhausted => ErrorKind::Exhausted,
        Code::PermissionDenied | Code::Unauthenticated => ErrorKind::PermissionDenied,
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => ErrorKind::Unavailable,
        Code::Aborted => ErrorKind::Fenced,
        Code::DataLoss => ErrorKind::Damaged,
        Code::Unimplemented => ErrorKind::Unsupported,
        Code::Ok | Code::Unknown | Code::Internal => ErrorKind::Internal,
    }
}

/// A failed call, as an error for people: what the other side said, without gRPC's wrapping.
#[derive(Debug)]
pub struct Refusal {
    kind: ErrorKind,
    message: String,
}

impl Refusal {
    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        let message = match status.code() {
            Code::DeadlineExceeded | Code::Cancelled => "no answer within the deadline".to_owned(),
            _ => status.message().to_owned(),
        };
        Self { kind: kind(&status), message }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_survives_the_way_over_the_wire() {
        for sent in ErrorKind::ALL {
            let status = status(sent, "why");
            assert_eq!((kind(&status), status.message()), (sent, "why"));
            assert_ne!(status.code(), Code::Ok);
        }
    }

    #[test]
    fn codes_are_those_that_the_csi_specification_prescribes() {
        for (kind, expected) in [
            (ErrorKind::NotFound, Code::NotFound),
            (ErrorKind::AlreadyExists, Code::AlreadyExists),
            (ErrorKind::InvalidArgument, Code::InvalidArgument),
            (ErrorKind::FailedPrecondition, Code::FailedPrecondition),
            (ErrorKind::Busy, Code::FailedPrecondition),
            (ErrorKind::Exhausted, Code::ResourceExhausted),
            (ErrorKind::PermissionDenied, Code::PermissionDenied),
            (ErrorKind::Unavailable, Code::Unavailable),
            (ErrorKind::Fenced, Code::Aborted),
            (ErrorKind::Damaged, Code::DataLoss),
            (ErrorKind::Incompatible, Code::FailedPrecondition),
            (ErrorKind::Unsupported, Code::Unimplemented),
            (ErrorKind::Internal, Code::Internal),
            (ErrorKind::Concurrent, Code::Aborted),
            (ErrorKind::OutOfRange, Code::OutOfRange),
        ] {
            assert_eq!(code(kind), expected, "{kind:?}");
        }
    }

    #[test]
    fn a_code_without_a_kind_is_understood() {
        for number in 1..=16 {
            let code = Code::from_i32(number);
            let understood = kind(&Status::new(code, ""));
            if !matches!(
                code,
                Code::Cancelled | Code::Unknown | Code::DeadlineExceeded | Code::Unauthenticated
            ) {
                assert_eq!(super::code(understood), code);
            }
        }
    }
}
