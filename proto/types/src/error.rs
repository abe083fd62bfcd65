//! What went wrong, in the one vocabulary that is mapped to gRPC codes (`tarbox-rpc`) and to errno (`tarbox-fs`).

use std::{error::Error, fmt, io};

/// The kind of a failure: what a caller can do about it, not where it happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The named thing does not exist.
    NotFound,
    /// The named thing exists and may not.
    AlreadyExists,
    /// A value that can never be right.
    InvalidArgument,
    /// A request that is right, but not in the present state.
    FailedPrecondition,
    /// Somebody else holds what is needed (a lease, a busy mount point).
    Busy,
    /// A quota or a device is full.
    Exhausted,
    /// The caller may not do this.
    PermissionDenied,
    /// The other side cannot be reached now; trying again may help.
    Unavailable,
    /// The lease was lost: nothing of this writer will ever be committed again.
    Fenced,
    /// Stored bytes are not what was written.
    Damaged,
    /// Data or schema of a version that this program does not know.
    Incompatible,
    /// Not offered.
    Unsupported,
    /// A defect of this program or of the machine under it.
    Internal,
    /// Another request for the same thing is under way.
    Concurrent,
    /// A size that is right, but cannot be had.
    OutOfRange,
}

impl ErrorKind {
    /// Every kind, once.
    pub const ALL: [Self; 15] = [
        Self::NotFound,
        Self::AlreadyExists,
        Self::InvalidArgument,
        Self::FailedPrecondition,
        Self::Busy,
        Self::Exhausted,
        Self::PermissionDenied,
        Self::Unavailable,
        Self::Fenced,
        Self::Damaged,
        Self::Incompatible,
        Self::Unsupported,
        Self::Internal,
        Self::Concurrent,
        Self::OutOfRange,
    ];

    /// The kind that is spelt so in the source.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| format!("{kind:?}") == name)
    }

    /// What the system's own error comes to.
    #[must_use]
    pub fn of_io(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::NotFound,
            io::ErrorKind::PermissionDenied => Self::PermissionDenied,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Exhausted,
            _ => Self::Internal,
        }
    }
}

/// Shows an error with all its causes, each once.
#[derive(Debug)]
pub struct Chain<'e>(pub &'e (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = self.0.to_string();
        f.write_str(&shown)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // Libraries often repeat their source in their own message.
            if !shown.ends_with(&text) {
                write!(f, ": {text}")?;
            }
            shown = text;
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_kind_is_found_by_its_name() {
        assert_eq!(ErrorKind::ALL.into_iter().collect::<HashSet<_>>().len(), ErrorKind::ALL.len());
        for kind in ErrorKind::ALL {
            assert_eq!(ErrorKind::of_name(&format!("{kind:?}")), Some(kind));
        }
        assert_eq!(ErrorKind::of_name("not found"), None);
    }
}
