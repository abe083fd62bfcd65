//! What can go wrong in the store.

use tarbox_types::{BranchId, ErrorKind, Layer, Seq, TenantId};

use crate::{model::Holder, publications::Publication};

/// Result of the store.
pub type Result<T> = std::result::Result<T, StoreError>;

/// A failure of the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The URL is not one.
    #[error("database URL `{url}`: {reason}")]
    Url {
        /// Without its password.
        url: String,
        /// What is wrong, what is allowed.
        reason: String,
    },
    /// The database cannot be reached or has broken off: trying again may help.
    #[error("the database {url} cannot be reached")]
    Unavailable {
        /// Without its password.
        url: String,
        /// Cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The schema is too new for this program.
    #[error(
        "the database {url} needs a Tarbox that knows schema {min_version}; this one knows up to {known}: use a newer release"
    )]
    Schema {
        /// Without its password.
        url: String,
        /// What the database asks for.
        min_version: u32,
        /// What this program knows.
        known: u32,
    },
    /// The schema is older than this program, and who is connected may not change it.
    #[error(
        "the database {url} has schema {found}, this program needs {needed}, and a tenant's login may not bring it up to date: \
         let an agent or a controller of this release open it first"
    )]
    SchemaOld {
        /// Without its password.
        url: String,
        /// What it has.
        found: u32,
        /// What this program needs.
        needed: u32,
    },
    /// No such tenant.
    #[error("there is no tenant `{0}`")]
    NoTenant(String),
    /// The tenant was deleted.
    #[error("tenant {0} has been deleted")]
    Deleted(TenantId),
    /// The name is taken.
    #[error("the name `{0}` belongs to another tenant")]
    NameTaken(String),
    /// A bad value.
    #[error("{key} `{value}`: {allowed}")]
    Invalid {
        /// Which value.
        key: &'static str,
        /// As given.
        value: String,
        /// What is allowed.
        allowed: String,
    },
    /// Somebody else holds the lease.
    #[error("tenant {tenant} is in use by pid {} on {}", .holder.pid, .holder.node)]
    Held {
        /// Tenant.
        tenant: TenantId,
        /// By whom.
        holder: Holder,
    },
    /// The lease is no longer ours; nothing was written.
    #[error("the lease of tenant {tenant} is no longer ours: its epoch is {epoch_now}, ours was {epoch}")]
    Fenced {
        /// Tenant.
        tenant: TenantId,
        /// Ours.
        epoch: i64,
        /// In the database.
        epoch_now: i64,
    },
    /// The lease is ours, the position is not the one the batch starts from; nothing was written.
    #[error("the database stands at journal position {found}, not at {expected}")]
    Position {
        /// What the batch starts from.
        expected: Seq,
        /// Where the database stands.
        found: Seq,
    },
    /// Blocks found by hash were collected in the meantime; nothing was written: upload them, commit again.
    #[error("{} blocks found by hash are gone", .0.len())]
    BlocksGone(Vec<u64>),
    /// Stored bytes are not what was written.
    #[error("{what} is damaged: {reason}")]
    Damaged {
        /// Which row.
        what: String,
        /// How it shows.
        reason: String,
    },
    /// The database's disk is full; nothing was written.
    #[error("the database {url} has no room left")]
    Full {
        /// Without its password.
        url: String,
        /// Cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No such checkpoint.
    #[error("there is no checkpoint at layer {layer} of branch {branch}")]
    NoLayer {
        /// Branch.
        branch: BranchId,
        /// Layer.
        layer: Layer,
    },
    /// Another line of history begins there.
    #[error("a clone or a restored line begins at layer {layer} of branch {branch}")]
    LayerInUse {
        /// Branch.
        branch: BranchId,
        /// Layer.
        layer: Layer,
    },
    /// Another node has the volume, in a way that leaves no room for one more.
    #[error(
        "the volume {} is published to node `{}` ({}{}): unpublish it there first",
        .0.tenant, .0.node, .0.mode.name(), if .0.read_only { ", read-only" } else { "" }
    )]
    PublishedElsewhere(Publication),
    /// The node has the volume already, otherwise.
    #[error(
        "the volume {} is published to node `{}` already, as {}{}",
        .0.tenant, .0.node, .0.mode.name(), if .0.read_only { ", read-only" } else { "" }
    )]
    Published(Publication),
    /// Another does the background work now; nothing was written.
    #[error("the lead of the background work is no longer ours")]
    NotLeading,
    /// A state that forbids it.
    #[error("{0}")]
    Refused(String),
    /// Anything else the database answered.
    #[error("the database refused a statement ({doing})")]
    Sql {
        /// What was being done.
        doing: &'static str,
        /// Cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl StoreError {
    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Url { .. } | Self::Invalid { .. } => ErrorKind::InvalidArgument,
            Self::Unavailable { .. } => ErrorKind::Unavailable,
            Self::Schema { .. } | Self::SchemaOld { .. } => ErrorKind::Incompatible,
            Self::NoTenant(_) | Self::NoLayer { .. } => ErrorKind::NotFound,
            Self::Deleted(_)
            | Self::Position { .. }
            | Self::BlocksGone(_)
            | Self::LayerInUse { .. }
            | Self::PublishedElsewhere(_)
            | Self::Refused(_) => ErrorKind::FailedPrecondition,
            Self::NameTaken(_) | Self::Published(_) => ErrorKind::AlreadyExists,
            Self::Held { .. } => ErrorKind::Busy,
            Self::Fenced { .. } | Self::NotLeading => ErrorKind::Fenced,
            Self::Damaged { .. } => ErrorKind::Damaged,
            Self::Full { .. } => ErrorKind::Exhausted,
            Self::Sql { .. } => ErrorKind::Internal,
        }
    }
}
