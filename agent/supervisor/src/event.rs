//! What happens to a tenant.

use std::time::Duration;

use tarbox_types::ErrorKind;

use crate::{Build, Connection, EffectId, Process, Role, Wanted};

/// Why a process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Exit code 0: unmounted, flushed, the lease given back.
    Clean,
    /// Exit code 3: drained for a successor.
    Drained,
    /// Exit codes 64 and 78: its command line or configuration is wrong; another try would say the same.
    Misconfigured,
    /// Any other exit code.
    Code(i32),
    /// A signal that was not the kernel's for want of memory.
    Signal(i32),
    /// Killed by the kernel at its memory limit.
    OutOfMemory,
    /// Ended unseen, while nobody could ask for its status.
    Unknown,
}

/// What a mounter's longest wait is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Waiting {
    /// The database.
    Database,
    /// The tenant's lease.
    Lease,
    /// A lock of another application.
    Lock,
    /// Room in the journal.
    Journal,
}

/// A mounter's answer to a ping; where nobody can answer one yet, what it says unasked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Whether it serves: it may have said so while nobody listened.
    pub serving: bool,
    /// How long the oldest request that executes has done so.
    pub executing_longest: Duration,
    /// What it waits for, the start of the mounter itself included.
    pub waiting_for: Option<Waiting>,
}

/// Why an effect did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What can be done about it.
    pub kind: ErrorKind,
    /// For people.
    pub message: String,
}

/// What an effect came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is done.
    Done,
    /// A mounter was spawned.
    Spawned(Process),
}

/// One process of the tenant, as seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// Which.
    pub process: Process,
    /// What it was spawned as.
    pub role: Role,
    /// What it runs.
    pub build: Build,
    /// Whether the supervisor holds its life-cycle channel.
    pub linked: bool,
}

/// What keeper, procfs and mountinfo say of a tenant; looked at after Attend, so that no keeper starts anything behind it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observation {
    /// The FUSE connection.
    pub connection: Connection,
    /// All live mounters of the tenant.
    pub mounters: Vec<Observed>,
}

/// What happens to a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The tenant is to be staged. Repeating it is harmless; on a broken tenant it is a new attempt.
    Stage(Wanted),
    /// The tenant is to be unstaged. Repeating it is harmless.
    Unstage,
    /// Another build is to serve it.
    UpgradeWanted {
        /// Which.
        build: Build,
    },
    /// An operator says that the cause of the crashes is gone.
    OperatorReset,
    /// Link: started.
    Hello {
        /// Who.
        process: Process,
    },
    /// Link: has read itself in.
    StandingBy {
        /// Who.
        process: Process,
    },
    /// Link: serves.
    Serving {
        /// Who.
        process: Process,
    },
    /// Link: its last words; it exits next.
    Failed {
        /// Who.
        process: Process,
        /// What went wrong.
        failure: Failure,
    },
    /// Link: ends well; it exits next.
    Ended {
        /// Who.
        process: Process,
        /// Whether because the file system was unmounted.
        unmounted: bool,
    },
    /// A process is dead: reaped, or its pidfd is readable.
    Exited {
        /// Who.
        process: Process,
        /// Why.
        cause: Cause,
    },
    /// A ping was answered.
    PingAnswered {
        /// By whom.
        process: Process,
        /// What it said.
        answer: Answer,
    },
    /// A ping was not answered within the policy's time.
    PingUnanswered {
        /// By whom.
        process: Process,
    },
    /// An effect is done.
    EffectDone {
        /// Which.
        id: EffectId,
        /// What it came to.
        outcome: Outcome,
    },
    /// An effect could not be carried out.
    EffectFailed {
        /// Which.
        id: EffectId,
        /// Why.
        failure: Failure,
    },
    /// The answer to [`crate::Order::Observe`].
    Observed(Observation),
    /// The time of [`crate::Order::ArmTimer`] has come. One too many is harmless.
    Tick,
}
