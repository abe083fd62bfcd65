//! Why a program ends without success, and the exit code that says so.

use std::{error::Error, fmt, io, path::Path};

use tarbox_checkpoints::CheckpointError;
use tarbox_runtime::ConfigError;
pub use tarbox_runtime::program::{CONFIGURATION, FAILED, Failing, OK, USAGE};
use tarbox_store::StoreError;
pub use tarbox_types::Chain;
use tarbox_types::ErrorKind;

/// A failure as a user sees it.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Wrong use of the command line.
    #[error("{0}")]
    Usage(String),
    /// Faults in the configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An option that does not fit what is there.
    #[error("{0}")]
    Mismatch(String),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Checkpoints.
    #[error(transparent)]
    Checkpoint(CheckpointError),
    /// A state that forbids it, with what to do about it.
    #[error("{message}")]
    Refused {
        /// Kind.
        kind: ErrorKind,
        /// A sentence.
        message: String,
    },
    /// An operation of the system.
    #[error("{doing}")]
    Io {
        /// What was being done, to what.
        doing: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Another part of Tarbox.
    #[error("{doing}")]
    Part {
        /// Kind.
        kind: ErrorKind,
        /// What was being done.
        doing: String,
        /// Why it failed.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}

impl Failure {
    /// A refusal.
    pub fn refused(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self::Refused { kind, message: message.into() }
    }

    /// Wraps an error of the system: `doing` names the action, `path` its object.
    pub fn io(doing: &str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let doing = format!("{doing} {}", path.display());
        move |source| Self::Io { doing, source }
    }

    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Usage(_) | Self::Mismatch(_) => ErrorKind::InvalidArgument,
            Self::Config(error) => error.kind(),
            Self::Store(error) => error.kind(),
            Self::Checkpoint(error) => error.kind(),
            Self::Refused { kind, .. } | Self::Part { kind, .. } => *kind,
            Self::Io { source, .. } => ErrorKind::of_io(source),
        }
    }

    /// The whole chain in one line, and what a user can do where it is known.
    #[must_use]
    pub fn report(&self) -> Report<'_> {
        Report(self)
    }

    fn advice(&self) -> Option<&'static str> {
        if let Self::Checkpoint(error) = self {
            return advice_on_checkpoints(error);
        }
        let Self::Store(error) = self else { return None };
        match error {
            StoreError::NoTenant(_) => Some("`tarbox tenant list` shows those there are"),
            StoreError::Held { .. } => Some(
                "unmount it there with `tarbox umount`, or mount with --read-only; if that process is dead, its lease ends by itself within seconds",
            ),
            StoreError::Unavailable { .. } => {
                Some("check that it runs and that the URL is right; `tarbox doctor` tells more")
            }
            StoreError::Full { .. } => Some("make room on its disk"),
            StoreError::Damaged { .. } => Some("`tarbox fsck` lists every damaged place"),
            _ => None,
        }
    }
}

impl From<CheckpointError> for Failure {
    fn from(error: CheckpointError) -> Self {
        match error {
            CheckpointError::Store(error) => Self::Store(error),
            error => Self::Checkpoint(error),
        }
    }
}

fn advice_on_checkpoints(error: &CheckpointError) -> Option<&'static str> {
    match error {
        CheckpointError::NotFound { .. } => {
            Some("`tarbox checkpoint list` shows those there are; `head` is the present")
        }
        CheckpointError::TooMany { .. } | CheckpointError::HistoryFull { .. } => {
            Some("delete some with `tarbox checkpoint delete`")
        }
        CheckpointError::InUse { .. } => Some("it can go when they have gone"),
        CheckpointError::Unfinished { .. } => {
            Some("it is made as soon as that answers; `tarbox checkpoint list` shows it then")
        }
        _ => None,
    }
}

impl Failing for Failure {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Checkpoint(CheckpointError::Name { .. }) => USAGE,
            Self::Config(error) if error.is_usage() => USAGE,
            Self::Config(_)
            | Self::Mismatch(_)
            | Self::Store(StoreError::Url { .. } | StoreError::Invalid { .. }) => CONFIGURATION,
            Self::Store(_)
            | Self::Checkpoint(_)
            | Self::Refused { .. }
            | Self::Io { .. }
            | Self::Part { .. } => FAILED,
        }
    }

    fn explanation(&self) -> String {
        self.report().to_string()
    }
}

/// [`Failure::report`].
#[derive(Debug)]
pub struct Report<'f>(&'f Failure);

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Chain(self.0))?;
        self.0.advice().map_or(Ok(()), |advice| write!(f, "\n  {advice}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_to_fail_has_the_promised_exit_code() {
        let url = StoreError::Url { url: "x".into(), reason: "y".into() };
        for (failure, code) in [
            (Failure::Usage(String::new()), 64),
            (Failure::Mismatch(String::new()), 78),
            (Failure::Store(url), 78),
            (Failure::Store(StoreError::NoTenant("t".into())), 1),
            (Failure::refused(ErrorKind::Busy, "busy"), 1),
        ] {
            assert_eq!(failure.exit_code(), code, "{failure:?}");
        }
    }

    #[test]
    fn the_report_names_the_cause_once() {
        let source = io::Error::from_raw_os_error(13);
        let failure = Failure::io("open", Path::new("/x"))(source);
        assert_eq!(failure.report().to_string(), "open /x: Permission denied (os error 13)");
    }
}
