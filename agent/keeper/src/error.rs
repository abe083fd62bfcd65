//! Why the keeper does not do what it is asked to.

use std::io;

use tarbox_handover::HandoverError;
use tarbox_handover::protocol::{Reason, Refused};
use tarbox_types::ErrorKind;

/// Why the keeper does not do what it is asked to.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// A value that can never be right.
    #[error("{field} `{value}`: allowed is {allowed}")]
    Value {
        /// Which value.
        field: &'static str,
        /// What it is.
        value: String,
        /// What it may be.
        allowed: &'static str,
    },
    /// Nothing is kept under that key.
    #[error("nothing is kept under `{0}`")]
    NoEntry(String),
    /// No child of that pid and start time.
    #[error("there is no child {pid} that started at {start_time}")]
    NoChild {
        /// Process id.
        pid: u32,
        /// Start time, in clock ticks since boot.
        start_time: u64,
    },
    /// The client is neither root nor of the keeper's own user.
    #[error("user {uid} may not use this keeper: only root and user {own} may")]
    Stranger {
        /// The client's user.
        uid: u32,
        /// The keeper's user.
        own: u32,
    },
    /// A process could not be started.
    #[error("cannot start `{program}`: {step}: {source}")]
    Spawn {
        /// Its first argument.
        program: String,
        /// What failed.
        step: String,
        /// Why.
        source: io::Error,
    },
    /// The system refused.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// Why not.
        source: io::Error,
    },
    /// A packet that cannot be understood, or descriptors that are missing.
    #[error(transparent)]
    Handover(#[from] HandoverError),
}

impl KeeperError {
    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Value { .. } => ErrorKind::InvalidArgument,
            Self::NoEntry(_) | Self::NoChild { .. } => ErrorKind::NotFound,
            Self::Stranger { .. } => ErrorKind::PermissionDenied,
            Self::Spawn { .. } | Self::Io { .. } => ErrorKind::Internal,
            Self::Handover(error) => error.kind(),
        }
    }

    /// As a client is told.
    pub(crate) fn refusal(&self) -> Refused {
        let reason = match self.kind() {
            ErrorKind::InvalidArgument => Reason::Invalid,
            ErrorKind::NotFound => Reason::NotFound,
            ErrorKind::PermissionDenied => Reason::Denied,
            ErrorKind::Incompatible => Reason::Incompatible,
            _ => Reason::Failed,
        };
        Refused { reason: reason.into(), message: told(self) }
    }

    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }
}

/// The error and what is behind it, cut to what fits in a packet.
fn told(error: &KeeperError) -> String {
    let mut text = error.to_string();
    if let KeeperError::Handover(handover) = error
        && let Some(source) = std::error::Error::source(handover)
    {
        text = format!("{text}: {source}");
    }
    text.truncate(text.floor_char_boundary(4096));
    text
}
