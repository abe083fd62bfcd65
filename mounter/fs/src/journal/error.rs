//! What can be wrong with a journal.

use std::{
    io,
    path::{Path, PathBuf},
};

use tarbox_types::{ErrorKind, Seq};

use super::format::FORMAT;
use crate::effect_codec::CodecError;

/// Why a journal could not be opened, extended or read. Whatever it is, nothing on disk was thrown away.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// A system call failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Another process has the journal open.
    #[error("the journal {} is in use by another process", dir.display())]
    Locked {
        /// The journal's directory.
        dir: PathBuf,
    },
    /// The segment could not be allocated.
    #[error("no room for {bytes} bytes of journal in {}", dir.display())]
    NoRoom {
        /// The journal's directory.
        dir: PathBuf,
        /// How much was asked for.
        bytes: u64,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Bytes are not what was written.
    #[error(
        "the journal is damaged: {what} ({} at byte {offset}, record {seq}); nothing was changed: restore the file, \
         or move {} away to start without the changes that are only there",
        file.display(), file.parent().unwrap_or(file).display()
    )]
    Damaged {
        /// File.
        file: PathBuf,
        /// Byte in the file.
        offset: u64,
        /// First record that cannot be read; 0 = unknown.
        seq: Seq,
        /// What does not fit.
        what: &'static str,
    },
    /// The checksum is right, but the record says something that this program does not know.
    #[error("record {seq} of the journal ({} at byte {offset}) cannot be understood", file.display())]
    Undecodable {
        /// File.
        file: PathBuf,
        /// Byte in the file.
        offset: u64,
        /// Record.
        seq: Seq,
        /// What is unknown.
        #[source]
        source: CodecError,
    },
    /// Written by a release whose format this one does not know.
    #[error("{} has journal format {found}; this program reads {oldest} to {newest}: start the release that wrote it", file.display())]
    Incompatible {
        /// File.
        file: PathBuf,
        /// Version found.
        found: u32,
        /// Oldest version that is read.
        oldest: u32,
        /// Newest version that is read.
        newest: u32,
    },
}

impl JournalError {
    pub(super) fn incompatible(file: &Path, found: u32) -> Self {
        let read = FORMAT.read();
        Self::Incompatible { file: file.to_owned(), found, oldest: *read.start(), newest: *read.end() }
    }

    pub(super) fn unsound(file: &Path, at: usize, seq: Seq) -> Self {
        Self::Damaged {
            file: file.to_owned(),
            offset: at as u64,
            seq,
            what: "the checksum of a record does not fit",
        }
    }

    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                ErrorKind::PermissionDenied
            }
            Self::Io { .. } => ErrorKind::Internal,
            Self::Locked { .. } => ErrorKind::Busy,
            Self::NoRoom { .. } => ErrorKind::Exhausted,
            Self::Damaged { .. } => ErrorKind::Damaged,
            Self::Undecodable { .. } | Self::Incompatible { .. } => ErrorKind::Incompatible,
        }
    }
}

/// Why a record was not appended. The journal is as it was before.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// All segments hold records not committed (or retained, or pinned): wait for a commit and try again.
    #[error("the journal is full: {max_bytes} bytes wait to be committed")]
    Full {
        /// The limit.
        max_bytes: u64,
    },
    /// As [`AppendError::Full`], but below the limit: the device has no room for a further segment.
    #[error(transparent)]
    NoRoom(JournalError),
    /// No segment can ever hold it.
    #[error("a journal record of {bytes} bytes is larger than a segment of {limit} bytes")]
    TooLarge {
        /// Size of the record with its payload.
        bytes: u64,
        /// The most that fits.
        limit: u64,
    },
}

impl AppendError {
    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Full { .. } | Self::NoRoom(_) => ErrorKind::Exhausted,
            Self::TooLarge { .. } => ErrorKind::Internal,
        }
    }

    /// Whether a commit makes room.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::NoRoom(_))
    }
}
