//! What is known of a tenant and has to outlive the supervisor.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tarbox_types::ByteSize;

/// A process, for certain: a pid is reused, a pid together with its start time is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Process {
    /// The process id in the supervisor's namespace.
    pub pid: u32,
    /// Field 22 of `/proc/PID/stat`: clock ticks since boot.
    pub start_time: u64,
}

/// The name of an executable's content (a hash); opaque here.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Build(pub String);

/// What was asked for at stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// The build to begin with.
    pub build: Build,
    /// The memory limit to begin with, bytes.
    pub memory: ByteSize,
}

/// What a process was spawned as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// To serve at once.
    Serve,
    /// To read itself in and wait for TakeOver.
    StandBy,
}

/// How far a mounter has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// Started; has not said anything that matters.
    Spawned,
    /// A stand-by that has read itself in.
    StandingBy,
    /// A stand-by that was told to serve.
    TakingOver,
    /// Serves.
    Serving,
    /// Was told to finish and leave the rest to its successor.
    Draining,
}

/// A mounter's process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mounter {
    /// Which process.
    pub process: Process,
    /// What it runs.
    pub build: Build,
    /// How far it has come.
    pub stage: Stage,
    /// Since when it is at that stage.
    pub since: Duration,
}

/// The tenant's FUSE connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Connection {
    /// Not mounted, and nothing is kept of it.
    #[default]
    None,
    /// Mounted, and somebody keeps its descriptors.
    Alive,
    /// Mounted, but the last descriptor is gone: ENOTCONN for ever. Mounting anew clears it away.
    Dead,
}

/// Where an upgrade stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Upgrading {
    /// The new build reads itself in beside the old one, which serves.
    StandBy,
    /// The old one finishes and ends.
    Draining,
    /// The old one is dead, the new one was told to serve.
    Switching,
    /// The new one serves, on probation.
    Proving,
    /// The new one failed: the old build is started again.
    RollingBack,
}

/// Where an unstage stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stopping {
    /// Everything is being committed.
    Flushing,
    /// The unmount ladder.
    Unmounting,
    /// Unmounted: the mounter ends, then everything kept of the tenant is dropped.
    Ending,
}

/// The states of the diagram in the crate's documentation. Times are CLOCK_BOOTTIME.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum State {
    /// Never staged.
    #[default]
    Absent,
    /// Mounting, spawning, or waiting until the mounter serves.
    Starting {
        /// Since when.
        since: Duration,
    },
    /// A mounter serves.
    Serving {
        /// Since when, without a crash in between.
        since: Duration,
    },
    /// No mounter, by choice: the next is started then.
    Restarting {
        /// When.
        at: Duration,
    },
    /// Another build takes over.
    Upgrading {
        /// How far it is.
        stage: Upgrading,
        /// Since when it is there.
        since: Duration,
        /// The new build.
        to: Build,
    },
    /// The circuit is open: no mounter could be kept alive.
    Broken {
        /// Since when.
        since: Duration,
    },
    /// On the way to Gone.
    Stopping {
        /// How far it is.
        stage: Stopping,
        /// Since when it is there.
        since: Duration,
    },
    /// Unstaged: nothing is left.
    Gone,
}

/// What is known of a tenant and has to outlive the supervisor. Valid within one boot.
///
/// Fields are only ever added; what an older release did not write has its default.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// What is staged; `None` once unstage was asked for.
    pub wanted: Option<Wanted>,
    /// Where in the diagram.
    pub state: State,
    /// The build that serves, or is started next.
    pub build: Option<Build>,
    /// A build to be upgraded to as soon as the tenant serves.
    pub upgrade_to: Option<Build>,
    /// The memory limit of the next mounter, bytes.
    pub memory: ByteSize,
    /// The FUSE connection as last known.
    pub connection: Connection,
    /// The only process that may serve.
    pub server: Option<Mounter>,
    /// A stand-by that was told nothing yet.
    pub spare: Option<Mounter>,
    /// Processes that are being killed and may still be alive.
    pub strays: Vec<Process>,
    /// Whether a mounter served since it was mounted: if not, there is nothing to flush, and nobody who uses it.
    pub served: bool,
    /// When mounters crashed, within the policy's window.
    pub crashes: Vec<Duration>,
    /// Whether the circuit is open: until it has been healthy, or somebody says that the cause is gone.
    pub open: bool,
    /// Restarts in a row that did not lead to lasting health: what the back-off grows by.
    pub streak: u32,
    /// Kills in a row of mounters that did not serve yet.
    pub kills: u32,
    /// Restarts since it was staged.
    pub restarts: u64,
    /// Since when nobody has served in health.
    pub outage_since: Option<Duration>,
    /// Whether errors are answered in the mounter's place.
    pub responding: bool,
    /// Why the last mounter ended, in its own words where it had any.
    pub last_words: Option<String>,
}
