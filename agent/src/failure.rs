//! What can go wrong on a node, and what a caller can do about it.

use std::{io, path::Path};

use tarbox_engine::MountError;
use tarbox_handover::HandoverError;
use tarbox_native::NativeError;
use tarbox_rpc::{Refusal, csi::RequestError};
use tarbox_runtime::{config::ConfigError, program};
use tarbox_store::StoreError;
pub use tarbox_types::Chain;
use tarbox_types::{ByteSize, ErrorKind, TenantId};

use crate::host::state::StateError;

/// Why the agent could not do something.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Faults in the configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A request that is incomplete or wrong.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The keeper, or a descriptor on its way.
    #[error("cannot {doing}")]
    Handover {
        /// What was being done.
        doing: &'static str,
        /// Why not.
        #[source]
        source: HandoverError,
    },
    /// Mounting or unmounting.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// Native mounts.
    #[error(transparent)]
    Native(#[from] NativeError),
    /// The system.
    #[error("cannot {doing}")]
    Io {
        /// What was being done, to what.
        doing: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The mounter's own last words.
    #[error("the mounter of {tenant} failed: {message}")]
    Mounter {
        /// Whose.
        tenant: TenantId,
        /// What it said it was.
        kind: ErrorKind,
        /// What it said.
        message: String,
    },
    /// The mounter's answer to a call.
    #[error("the mounter of {tenant} could not {doing}")]
    Control {
        /// Whose.
        tenant: TenantId,
        /// What it was asked for.
        doing: &'static str,
        /// What it answered.
        #[source]
        source: Refusal,
    },
    /// Not done within the caller's time; it goes on, and the call can be repeated.
    #[error("{what} of {tenant} goes on: {why}")]
    Unfinished {
        /// Whose.
        tenant: TenantId,
        /// What.
        what: &'static str,
        /// What it waits for.
        why: String,
    },
    /// A state file.
    #[error(transparent)]
    State(#[from] StateError),
    /// The node has as many volumes as it may.
    #[error("this node has {most} volumes, as many as maxVolumes allows")]
    Full {
        /// Most.
        most: usize,
    },
    /// The node has promised as much memory as it may.
    #[error(
        "the volume needs {needed} of memory (the agent's `memory`, its cache and its journal); of this node's memoryBudget of {budget}, \
         {promised} is promised to other volumes"
    )]
    OverBudget {
        /// What the volume would be promised.
        needed: ByteSize,
        /// What the others are.
        promised: ByteSize,
        /// What there is.
        budget: ByteSize,
    },
    /// Nothing that fits the request is there.
    #[error("{0}")]
    NotFound(String),
    /// Something else is there.
    #[error("{0}")]
    Conflict(String),
    /// What the node's configuration does not allow.
    #[error("{0}")]
    Denied(String),
    /// A state that forbids it.
    #[error("{0}")]
    Precondition(String),
    /// The node, or its configuration, lacks something.
    #[error("{0}")]
    Unusable(String),
}

impl AgentError {
    /// Wraps an error of the system: `doing` names the action, `path` its object.
    pub fn io(doing: &str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let doing = format!("{doing} {}", path.display());
        move |source| Self::Io { doing, source }
    }

    /// Wraps an error on the way to the keeper.
    pub fn handover(doing: &'static str) -> impl FnOnce(HandoverError) -> Self {
        move |source| Self::Handover { doing, source }
    }

    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Config(error) => error.kind(),
            Self::Request(error) => error.kind(),
            Self::Store(error) => error.kind(),
            Self::Handover { source, .. } => source.kind(),
            Self::Mount(error) => error.kind(),
            Self::Native(error) => error.kind(),
            Self::Io { source, .. } => ErrorKind::of_io(source),
            Self::Mounter { kind, .. } => *kind,
            Self::Control { source, .. } => source.kind(),
            Self::Unfinished { .. } => ErrorKind::Unavailable,
            Self::State(_) => ErrorKind::Internal,
            Self::Full { .. } | Self::OverBudget { .. } => ErrorKind::Exhausted,
            Self::NotFound(_) => ErrorKind::NotFound,
            Self::Conflict(_) => ErrorKind::AlreadyExists,
            Self::Denied(_) => ErrorKind::PermissionDenied,
            Self::Precondition(_) | Self::Unusable(_) => ErrorKind::FailedPrecondition,
        }
    }

    /// The whole chain in one line.
    #[must_use]
    pub fn report(&self) -> String {
        Chain(self).to_string()
    }
}

impl program::Failing for AgentError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Config(faults) => faults.exit_code(),
            Self::Request(error) if error.kind() == ErrorKind::InvalidArgument => program::USAGE,
            _ => program::FAILED,
        }
    }

    fn explanation(&self) -> String {
        self.report()
    }
}
