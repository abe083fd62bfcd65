//! The one map from what goes wrong in the control directory to errno.

use std::io;

use fuse3::Errno;
use tarbox_checkpoints::CheckpointError;
use tarbox_types::ErrorKind;

use crate::failure::Failure;

/// Source: errno(3).
pub(super) fn of_failure(failure: &Failure) -> Errno {
    match failure {
        // Snapshots of CSI are deleted by who made them, whoever asks.
        Failure::Checkpoint(CheckpointError::IsSnapshot { .. }) => libc::EPERM.into(),
        Failure::Checkpoint(CheckpointError::InUse { .. }) => libc::EBUSY.into(),
        failure => of_kind(failure.kind()),
    }
}

pub(super) fn of_kind(kind: ErrorKind) -> Errno {
    let number = match kind {
        ErrorKind::NotFound => libc::ENOENT,
        ErrorKind::AlreadyExists => libc::EEXIST,
        ErrorKind::InvalidArgument => libc::EINVAL,
        ErrorKind::FailedPrecondition | ErrorKind::Busy => libc::EBUSY,
        ErrorKind::Exhausted => libc::ENOSPC,
        ErrorKind::PermissionDenied => libc::EPERM,
        ErrorKind::Unavailable | ErrorKind::Concurrent => libc::EAGAIN,
        ErrorKind::Unsupported => libc::EOPNOTSUPP,
        ErrorKind::OutOfRange => libc::ERANGE,
        ErrorKind::Fenced | ErrorKind::Damaged | ErrorKind::Incompatible | ErrorKind::Internal => libc::EIO,
    };
    number.into()
}

/// A document that cannot be read; one that is gone has no inode any more.
pub(super) fn of_io(error: &io::Error) -> Errno {
    match error.kind() {
        io::ErrorKind::NotFound => libc::ESTALE.into(),
        io::ErrorKind::StorageFull => libc::ENOSPC.into(),
        _ => libc::EIO.into(),
    }
}

/// What a view says to every change.
pub(super) fn read_only() -> Errno {
    libc::EROFS.into()
}

/// What the control directory says to whatever is no command.
pub(super) fn not_permitted() -> Errno {
    libc::EPERM.into()
}

pub(super) fn not_found() -> Errno {
    libc::ENOENT.into()
}

pub(super) fn exists() -> Errno {
    libc::EEXIST.into()
}

/// The inode is not there any more.
pub(super) fn stale() -> Errno {
    libc::ESTALE.into()
}

/// As between any two file systems.
pub(super) fn crosses() -> Errno {
    libc::EXDEV.into()
}

pub(super) fn invalid() -> Errno {
    libc::EINVAL.into()
}

/// No more checkpoints can be looked at through this mount.
pub(super) fn too_many_views() -> Errno {
    libc::ENFILE.into()
}

pub(super) fn no_attribute() -> Errno {
    libc::ENODATA.into()
}

/// Behind the end, for lseek(2).
pub(super) fn no_data() -> Errno {
    libc::ENXIO.into()
}

/// A file that only tells something is written by somebody who may do anything.
pub(super) fn no_command() -> Errno {
    libc::EACCES.into()
}

pub(super) fn not_a_directory() -> Errno {
    libc::ENOTDIR.into()
}
