//! What is wrong with a configuration.

use std::{fmt, path::PathBuf};

use tarbox_types::ErrorKind;

use super::Source;
use crate::program;

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The file is not TOML.
    Syntax {
        /// The file.
        path: PathBuf,
        /// As the parser says it, with the line.
        reason: String,
    },
    /// The file cannot be read.
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
        /// What named it.
        source: Source,
    },
    /// No such key.
    Unknown {
        /// As given.
        key: String,
        /// The one that was probably meant.
        nearest: Option<String>,
        /// All there are.
        allowed: Vec<String>,
        /// Where it stands.
        source: Source,
    },
    /// A value that is not allowed.
    Value {
        /// Its key.
        key: String,
        /// As given.
        value: String,
        /// What is allowed.
        allowed: String,
        /// Where it stands.
        source: Source,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax { path, reason } => write!(f, "{}: {}", path.display(), reason.trim_end()),
            Self::File { path, reason, source } => {
                write!(f, "the file {} (from {source}) cannot be read: {reason}", path.display())
            }
            Self::Unknown { key, nearest: Some(nearest), source, .. } => {
                write!(f, "unknown key `{key}` (from {source}); did you mean `{nearest}`?")
            }
            Self::Unknown { key, nearest: None, allowed, source } => {
                write!(f, "unknown key `{key}` (from {source}); allowed are {}", allowed.join(", "))
            }
            Self::Value { key, value, allowed, source } => {
                write!(f, "{key} = `{value}` (from {source}): allowed is {allowed}")
            }
        }
    }
}

/// All faults of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// At least one.
    pub faults: Vec<Fault>,
}

impl ConfigError {
    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::InvalidArgument
    }

    /// Whether only flags are at fault: that is wrong usage, and no file or variable has to be mended.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        self.faults.iter().all(|fault| match fault {
            Fault::Unknown { source, .. } | Fault::Value { source, .. } => matches!(source, Source::Flag(_)),
            Fault::Syntax { .. } | Fault::File { .. } => false,
        })
    }

    /// What a program ends with.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        if self.is_usage() { program::USAGE } else { program::CONFIGURATION }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.faults.as_slice() {
            [fault] => write!(f, "configuration: {fault}"),
            faults => {
                write!(f, "configuration: {} faults", faults.len())?;
                faults.iter().try_for_each(|fault| write!(f, "\n  {fault}"))
            }
        }
    }
}

impl std::error::Error for ConfigError {}
