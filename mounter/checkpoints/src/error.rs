//! What can go wrong with checkpoints.

use tarbox_store::StoreError;
use tarbox_types::{ByteSize, ErrorKind, TenantId};
use uuid::Uuid;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, CheckpointError>;

/// Why something could not be done.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The tenant is no more.
    #[error("tenant {0} is gone")]
    Gone(TenantId),
    /// Nothing has this name.
    #[error("tenant `{tenant}` has no checkpoint `{name}`")]
    NotFound {
        /// Tenant.
        tenant: String,
        /// As given.
        name: String,
    },
    /// A name that cannot be one.
    #[error("the {what} `{value}`: allowed is {allowed}")]
    Name {
        /// Checkpoint or tag.
        what: &'static str,
        /// As given.
        value: String,
        /// What is allowed.
        allowed: &'static str,
    },
    /// The name belongs to something else in the tenant.
    #[error("there is a {what} `{name}` already")]
    Taken {
        /// Checkpoint or tag.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// The name belongs to a snapshot of another tenant.
    #[error("the name `{name}` belongs to a snapshot of {of}, not of {asked}")]
    Elsewhere {
        /// The name.
        name: String,
        /// Whose snapshot it is.
        of: TenantId,
        /// Of whom it was asked for.
        asked: TenantId,
    },
    /// A tenant has as many checkpoints as it may.
    #[error("tenant {tenant} has {found} checkpoints, `maxCheckpoints` allows {most}")]
    TooMany {
        /// Whose.
        tenant: TenantId,
        /// Has.
        found: usize,
        /// May have.
        most: usize,
    },
    /// A tenant's history takes as much as it may.
    #[error("the history of tenant {tenant} takes {used}, `historyQuota` allows {quota}")]
    HistoryFull {
        /// Whose.
        tenant: TenantId,
        /// Takes.
        used: ByteSize,
        /// May take.
        quota: ByteSize,
    },
    /// Not done within the caller's time; it goes on, and can be asked for again.
    #[error("the checkpoint of {tenant} is not made yet: {why}")]
    Unfinished {
        /// Whose.
        tenant: TenantId,
        /// What is waited for.
        why: String,
    },
    /// A snapshot of CSI is deleted by who made it.
    #[error(
        "`{name}` is the CSI snapshot {id}: delete it where it was made (its VolumeSnapshot, or DeleteSnapshot)"
    )]
    IsSnapshot {
        /// Name.
        name: String,
        /// Id of the snapshot.
        id: Uuid,
    },
    /// Something begins there.
    #[error("`{name}` is needed: {} there", by.join(", "))]
    InUse {
        /// Name.
        name: String,
        /// Who, each with a verb.
        by: Vec<String>,
    },
}

impl CheckpointError {
    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Store(error) => error.kind(),
            Self::Gone(_) | Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Name { .. } => ErrorKind::InvalidArgument,
            Self::Taken { .. } | Self::Elsewhere { .. } => ErrorKind::AlreadyExists,
            Self::TooMany { .. } | Self::HistoryFull { .. } => ErrorKind::Exhausted,
            Self::Unfinished { .. } => ErrorKind::Unavailable,
            Self::IsSnapshot { .. } | Self::InUse { .. } => ErrorKind::FailedPrecondition,
        }
    }
}
