//! Errors on their way out: what SQLite said becomes what a caller can do about it.

use std::path::Path;

use rusqlite::{Error, ErrorCode};

use crate::error::{Result, StoreError};

/// A failure inside the engine, before it is known which database it speaks of.
#[derive(Debug)]
pub(super) enum Fault {
    Sql(Error),
    Store(StoreError),
}

/// Result inside the engine.
pub(super) type Outcome<T> = std::result::Result<T, Fault>;

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Sql(error)
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Fault {
    /// Whether the connection it came from should not be used again.
    pub(super) fn spoils_connection(&self) -> bool {
        matches!(
            self,
            Self::Sql(error) if matches!(
                error.sqlite_error_code(),
                Some(ErrorCode::SystemIoFailure | ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::CannotOpen)
            )
        )
    }
}

/// Where an error happened.
pub(super) struct Place<'a> {
    pub(super) url: &'a str,
    pub(super) dir: &'a Path,
}

impl Place<'_> {
    pub(super) fn settle<T>(&self, doing: &'static str, outcome: Outcome<T>) -> Result<T> {
        outcome.map_err(|fault| match fault {
            Fault::Store(error) => error,
            Fault::Sql(error) => self.name(doing, error),
        })
    }

    fn name(&self, doing: &'static str, error: Error) -> StoreError {
        let url = self.url.to_owned();
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => StoreError::Full { url, source: error.into() },
            // Only write(2) is told apart by SQLite; a failed fsync or growth of the shared memory is not.
            Some(ErrorCode::SystemIoFailure) if self.is_full() => {
                StoreError::Full { url, source: error.into() }
            }
            Some(
                ErrorCode::SystemIoFailure
                | ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::CannotOpen
                | ErrorCode::ReadOnly
                | ErrorCode::PermissionDenied
                | ErrorCode::OutOfMemory
                | ErrorCode::FileLockingProtocolFailed,
            ) => StoreError::Unavailable { url, source: error.into() },
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                StoreError::Damaged { what: format!("the database {url}"), reason: error.to_string() }
            }
            _ => StoreError::Sql { doing, source: error.into() },
        }
    }

    fn is_full(&self) -> bool {
        nix::sys::statvfs::statvfs(self.dir).is_ok_and(|stat| stat.blocks_available() == 0)
    }

    /// A failure of the file system below.
    pub(super) fn io(&self, path: &Path, error: std::io::Error) -> StoreError {
        let named = std::io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let url = self.url.to_owned();
        if matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded) {
            return StoreError::Full { url, source: named.into() };
        }
        StoreError::Unavailable { url, source: named.into() }
    }
}
