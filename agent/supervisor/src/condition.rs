//! How a tenant is, for people.

use crate::{Build, Record, State, Waiting};

/// How a tenant is, for `ps`, metrics and the volume condition of CSI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Nothing is staged.
    Absent,
    /// Being started for the first time, or again.
    Starting,
    /// Serves.
    Serving,
    /// Lives, but waits.
    Waiting(Waiting),
    /// May hang: a ping was missed, or a request executes for long.
    Suspicious,
    /// Crashed; will be started again.
    Restarting {
        /// Why the last one ended.
        why: String,
    },
    /// Another build is taking over.
    Upgrading {
        /// Which.
        to: Build,
    },
    /// The circuit is open.
    Broken {
        /// Why the last one ended.
        why: String,
    },
    /// Being unstaged.
    Stopping,
}

impl Condition {
    /// Whether the volume's condition is abnormal in the sense of CSI.
    #[must_use]
    pub fn is_abnormal(&self) -> bool {
        match self {
            Self::Waiting(waiting) => matches!(waiting, Waiting::Database | Waiting::Lease),
            Self::Suspicious | Self::Restarting { .. } | Self::Broken { .. } => true,
            Self::Absent | Self::Starting | Self::Serving | Self::Upgrading { .. } | Self::Stopping => false,
        }
    }
}

/// The condition that follows from the record and from the last ping.
pub(crate) fn condition(record: &Record, waiting: Option<Waiting>, suspicious: bool) -> Condition {
    let why = || record.last_words.clone().unwrap_or_default();
    match &record.state {
        State::Absent | State::Gone => Condition::Absent,
        State::Broken { .. } => Condition::Broken { why: why() },
        State::Restarting { .. } => Condition::Restarting { why: why() },
        // An attempt with the circuit open changes nothing before it succeeds.
        State::Starting { .. } if record.open => Condition::Broken { why: why() },
        State::Stopping { .. } => Condition::Stopping,
        State::Starting { .. } | State::Serving { .. } | State::Upgrading { .. } if waiting.is_some() => {
            waiting.map_or(Condition::Starting, Condition::Waiting)
        }
        State::Serving { .. } | State::Upgrading { .. } if suspicious => Condition::Suspicious,
        State::Starting { .. } if record.streak > 1 => Condition::Restarting { why: why() },
        State::Starting { .. } => Condition::Starting,
        State::Serving { .. } => Condition::Serving,
        State::Upgrading { to, .. } => Condition::Upgrading { to: to.clone() },
    }
}
