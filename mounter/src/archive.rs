//! Tenants as tar streams: everything a file system has, in the PAX format that GNU tar and bsdtar read and write.
//!
//! Holes are written as GNU's sparse format 1.0, extended attributes as `SCHILY.xattr.*`, times with nanoseconds. tar
//! has no type for sockets: they are empty files with the record `TARBOX.type=socket`.

mod entry;
pub mod export;
pub mod import;
mod pax;
mod reader;
mod sparse;
mod writer;

pub use entry::{Entry, Kind};
pub use reader::Reader;
pub use writer::Writer;

use std::io;

use tarbox_types::ErrorKind;

/// What is wrong with a tar stream.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// It cannot be read or written.
    #[error("the archive cannot be read or written")]
    Io(#[from] io::Error),
    /// It is not one.
    #[error("not a tar archive, or damaged, at byte {offset}: {reason}")]
    Format {
        /// Where.
        offset: u64,
        /// What.
        reason: String,
    },
    /// A name that leads out of the tenant.
    #[error("the archive names `{0}`, which leads out of the tenant")]
    Outside(String),
}

impl ArchiveError {
    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Io(_) => ErrorKind::Unavailable,
            Self::Format { .. } => ErrorKind::Damaged,
            Self::Outside(_) => ErrorKind::InvalidArgument,
        }
    }
}

impl From<ArchiveError> for crate::failure::Failure {
    fn from(error: ArchiveError) -> Self {
        Self::Part { kind: error.kind(), doing: "archive".to_owned(), source: error.into() }
    }
}

/// Block of a tar stream, bytes.
const BLOCK: usize = 512;

#[cfg(test)]
mod tests;
