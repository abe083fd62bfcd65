//! The one map from [`FsError`] to errno.

use fuse3::Errno;

use crate::error::FsError;

impl From<FsError> for Errno {
    fn from(error: FsError) -> Self {
        Self::from(number(&error))
    }
}

/// Source: errno(3), and the manual page of each operation.
pub(crate) fn number(error: &FsError) -> i32 {
    match error {
        FsError::NotFound => libc::ENOENT,
        FsError::Exists => libc::EEXIST,
        FsError::NotDirectory => libc::ENOTDIR,
        FsError::IsDirectory => libc::EISDIR,
        FsError::NotEmpty => libc::ENOTEMPTY,
        FsError::NotPermitted => libc::EPERM,
        FsError::NameTooLong => libc::ENAMETOOLONG,
        FsError::Invalid => libc::EINVAL,
        FsError::NoSpace | FsError::AttributesFull => libc::ENOSPC,
        FsError::FileTooLarge => libc::EFBIG,
        FsError::ReadOnly => libc::EROFS,
        FsError::NoAttribute => libc::ENODATA,
        FsError::Range => libc::ERANGE,
        FsError::AttributeTooLarge => libc::E2BIG,
        FsError::NoData => libc::ENXIO,
        FsError::NotSupported => libc::EOPNOTSUPP,
        FsError::NotNeeded => libc::ENOSYS,
        FsError::TooManyLinks => libc::EMLINK,
        FsError::Stale => libc::ESTALE,
        FsError::Io(_) => libc::EIO,
    }
}
