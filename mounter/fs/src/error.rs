//! How an operation can fail, in POSIX's terms. `errno.rs` is the one place that turns this into a number.

use tarbox_store::StoreError;
use tarbox_types::ErrorKind;

use crate::{acl::AclError, xattr::XattrError};

/// Why an operation failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FsError {
    /// No such file or directory.
    #[error("no such file or directory")]
    NotFound,
    /// The name exists.
    #[error("the name exists")]
    Exists,
    /// A directory was expected.
    #[error("not a directory")]
    NotDirectory,
    /// Not with a directory.
    #[error("is a directory")]
    IsDirectory,
    /// The directory has names in it.
    #[error("directory not empty")]
    NotEmpty,
    /// Not permitted, whoever asks.
    #[error("not permitted")]
    NotPermitted,
    /// A name of more than 255 bytes, or a path too long.
    #[error("name too long")]
    NameTooLong,
    /// An argument that makes no sense.
    #[error("invalid argument")]
    Invalid,
    /// The tenant's quota of bytes or inodes is reached.
    #[error("no space left in the tenant's quota")]
    NoSpace,
    /// The file would be larger than the tenant allows.
    #[error("file too large")]
    FileTooLarge,
    /// Mounted read-only.
    #[error("read-only file system")]
    ReadOnly,
    /// No such attribute.
    #[error("no such attribute")]
    NoAttribute,
    /// The caller's buffer is too small.
    #[error("result does not fit")]
    Range,
    /// The value or the list of values is too large.
    #[error("attribute too large")]
    AttributeTooLarge,
    /// The inode's attributes together are as many bytes as may be.
    #[error("no space left for attributes of this inode")]
    AttributesFull,
    /// No data or hole beyond this offset.
    #[error("no data beyond this offset")]
    NoData,
    /// Not offered for this kind of file or at all.
    #[error("operation not supported")]
    NotSupported,
    /// The kernel is asked not to send this any more.
    #[error("not needed")]
    NotNeeded,
    /// Too many links.
    #[error("too many links")]
    TooManyLinks,
    /// The inode is gone.
    #[error("stale file handle")]
    Stale,
    /// Stored data is damaged, or the lease is lost.
    #[error("input/output error: {0}")]
    Io(String),
}

impl FsError {
    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound | Self::NoAttribute | Self::NoData | Self::Stale => ErrorKind::NotFound,
            Self::Exists => ErrorKind::AlreadyExists,
            Self::NotDirectory
            | Self::IsDirectory
            | Self::NameTooLong
            | Self::Invalid
            | Self::Range
            | Self::AttributeTooLarge => ErrorKind::InvalidArgument,
            Self::NotEmpty | Self::TooManyLinks => ErrorKind::FailedPrecondition,
            Self::NotPermitted | Self::ReadOnly => ErrorKind::PermissionDenied,
            Self::NoSpace | Self::FileTooLarge | Self::AttributesFull => ErrorKind::Exhausted,
            Self::NotSupported | Self::NotNeeded => ErrorKind::Unsupported,
            Self::Io(_) => ErrorKind::Damaged,
        }
    }
}

impl From<XattrError> for FsError {
    fn from(error: XattrError) -> Self {
        match error {
            XattrError::BadName => Self::Range,
            XattrError::ValueTooLarge => Self::AttributeTooLarge,
            XattrError::NoRoom => Self::AttributesFull,
            XattrError::Exists => Self::Exists,
            XattrError::Missing => Self::NoAttribute,
            XattrError::Damaged => Self::Io(error.to_string()),
        }
    }
}

impl From<AclError> for FsError {
    fn from(error: AclError) -> Self {
        match error {
            AclError::Version(_) => Self::NotSupported,
            AclError::Malformed | AclError::Invalid => Self::Invalid,
        }
    }
}

/// A store failure that no waiting mends becomes an I/O error; its text has been logged where it was handled.
impl From<&StoreError> for FsError {
    fn from(error: &StoreError) -> Self {
        Self::Io(error.to_string())
    }
}
