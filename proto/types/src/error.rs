//! What went wrong, in the one vocabulary that is mapped to gRPC codes (`tarbox-rpc`) and to errno (`tarbox-fs`).

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
}
