//! What can go wrong between two of our processes.

use std::io;

use tarbox_types::ErrorKind;

use crate::protocol::Reason;

/// Why something could not be handed over.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// A system call failed.
    #[error("cannot {doing}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The process on the other side is gone.
    #[error("the other side has closed the connection")]
    Closed,
    /// No answer within the time given.
    #[error("no answer within {0:?}")]
    TimedOut(std::time::Duration),
    /// Bytes that are no message.
    #[error("a packet of {bytes} bytes is no message")]
    Malformed {
        /// Its length.
        bytes: usize,
        /// What the decoder says.
        #[source]
        source: prost::DecodeError,
    },
    /// A message of a kind that this version does not know.
    #[error("a message of an unknown kind (format {format})")]
    UnknownMessage {
        /// The format it was written in.
        format: u32,
    },
    /// A packet of a format that this version does not read.
    #[error("a packet of format {found}; this version reads {oldest} to {newest}")]
    Format {
        /// What it says.
        found: u32,
        /// Oldest format that is read.
        oldest: u32,
        /// Newest format that is read.
        newest: u32,
    },
    /// More than fits in a packet.
    #[error(
        "a packet of {bytes} bytes and {descriptors} descriptors; at most {} and {} are allowed",
        crate::MOST_BYTES,
        crate::MOST_DESCRIPTORS
    )]
    TooLarge {
        /// Its length.
        bytes: usize,
        /// Descriptors with it.
        descriptors: usize,
    },
    /// The descriptors that came are not those that the message names.
    #[error("{what}: {found} descriptors came, {expected} were expected")]
    Descriptors {
        /// In which message.
        what: &'static str,
        /// How many came.
        found: usize,
        /// How many the message names.
        expected: usize,
    },
    /// Something that a message must have is missing.
    #[error("{what}: `{field}` is missing")]
    Missing {
        /// In which message.
        what: &'static str,
        /// What is missing.
        field: &'static str,
    },
    /// The keeper does not do what it was asked to.
    #[error("the keeper refused: {message}")]
    Refused {
        /// Why, in a word.
        reason: Reason,
        /// Why.
        message: String,
    },
    /// A reply that does not fit the request.
    #[error("the keeper answered {0} with something else")]
    OtherReply(&'static str),
    /// A number under which no end of a link was inherited.
    #[error(
        "descriptor {number} is no end of a link that was inherited (a SOCK_SEQPACKET socket, 3 or higher)"
    )]
    NotALink {
        /// The number.
        number: i32,
    },
    /// There is no such process (any more).
    #[error("there is no process {pid} that started at {start_time}")]
    NoProcess {
        /// Process id.
        pid: u32,
        /// Start time in clock ticks since boot.
        start_time: u64,
    },
}

impl HandoverError {
    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { .. } | Self::OtherReply(_) => ErrorKind::Internal,
            Self::Closed | Self::TimedOut(_) => ErrorKind::Unavailable,
            Self::Malformed { .. }
            | Self::TooLarge { .. }
            | Self::Descriptors { .. }
            | Self::NotALink { .. }
            | Self::Missing { .. } => ErrorKind::InvalidArgument,
            Self::UnknownMessage { .. } | Self::Format { .. } => ErrorKind::Incompatible,
            Self::Refused { reason, .. } => reason.kind(),
            Self::NoProcess { .. } => ErrorKind::NotFound,
        }
    }

    pub(crate) fn io(doing: &'static str) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |errno| Self::Io { doing, source: errno.into() }
    }
}
