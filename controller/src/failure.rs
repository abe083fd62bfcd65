//! What can go wrong in the controller, and what a caller can do about it.

use std::io;

use tarbox_checkpoints::CheckpointError;
use tarbox_rpc::csi::RequestError;
use tarbox_runtime::{config::ConfigError, program};
use tarbox_store::StoreError;
use tarbox_types::{ByteSize, Chain, ErrorKind};

/// Result of the controller.
pub type Result<T> = std::result::Result<T, ControllerError>;

/// Why the controller could not do something.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    /// Faults in the configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A request that is incomplete or wrong.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Checkpoints.
    #[error(transparent)]
    Checkpoint(CheckpointError),
    /// The system.
    #[error("cannot {doing}")]
    Io {
        /// What was being done, to what.
        doing: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Neither the request nor the configuration names a database.
    #[error(
        "no database is known: `databaseURL` is neither in the request's secrets nor in the parameters nor in the controller's configuration"
    )]
    NoDatabase,
    /// No such volume.
    #[error("there is no volume `{0}`")]
    NoVolume(String),
    /// No such node.
    #[error("there is no node `{0}`: no agent of that name has said in the database that it is there")]
    NoNode(String),
    /// No such snapshot.
    #[error("there is no snapshot `{0}`")]
    NoSnapshot(String),
    /// The name belongs to something that is not what is asked for.
    #[error("`name` = `{name}` belongs to a {what} made from other values: {differs}")]
    Differs {
        /// The name.
        name: String,
        /// Volume or snapshot.
        what: &'static str,
        /// In what.
        differs: String,
    },
    /// A capacity that cannot be.
    #[error("`capacity_range`: {0}")]
    Capacity(String),
    /// More than all volumes may have together.
    #[error("the volume asks for {wanted}; of the controller's capacity of {capacity}, {left} is left")]
    Exhausted {
        /// Asked for.
        wanted: ByteSize,
        /// Not promised yet.
        left: ByteSize,
        /// Of so much.
        capacity: ByteSize,
    },
    /// A volume cannot be where it is to be used.
    #[error("`accessibility_requirements`: volumes can be used in {here} only")]
    Elsewhere {
        /// Where.
        here: String,
    },
    /// A page that does not follow from any.
    #[error("`starting_token` = `{0}` is none that was given out: begin again without one")]
    Token(String),
}

impl ControllerError {
    /// Wraps an error of the system.
    pub fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }

    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Config(error) => error.kind(),
            Self::Request(error) => error.kind(),
            Self::Store(error) => error.kind(),
            Self::Checkpoint(error) => error.kind(),
            Self::Io { source, .. } => ErrorKind::of_io(source),
            Self::NoDatabase => ErrorKind::FailedPrecondition,
            Self::NoVolume(_) | Self::NoNode(_) | Self::NoSnapshot(_) => ErrorKind::NotFound,
            Self::Differs { .. } => ErrorKind::AlreadyExists,
            Self::Capacity(_) => ErrorKind::OutOfRange,
            Self::Exhausted { .. } | Self::Elsewhere { .. } => ErrorKind::Exhausted,
            // As CSI prescribes for ListVolumes and ListSnapshots.
            Self::Token(_) => ErrorKind::Concurrent,
        }
    }

    /// The whole chain in one line.
    #[must_use]
    pub fn report(&self) -> String {
        Chain(self).to_string()
    }
}

impl From<CheckpointError> for ControllerError {
    fn from(error: CheckpointError) -> Self {
        match error {
            CheckpointError::Store(error) => Self::Store(error),
            CheckpointError::Gone(tenant) => Self::NoVolume(tenant.to_string()),
            error => Self::Checkpoint(error),
        }
    }
}

impl program::Failing for ControllerError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Config(faults) => faults.exit_code(),
            _ => program::FAILED,
        }
    }

    fn explanation(&self) -> String {
        self.report()
    }
}
