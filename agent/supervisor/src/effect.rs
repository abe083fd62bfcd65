//! What the shell is asked to do.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tarbox_types::ByteSize;

use crate::{Build, Condition, Process, Record, Role};

/// Names one effect among those of one [`crate::Tenant`] value.
pub type EffectId = u64;

/// One thing to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effect {
    /// By what name its result is reported.
    pub id: EffectId,
    /// What.
    pub order: Order,
}

/// What is to be done. Each may be asked for twice, and may already be done.
///
/// Mount, Spawn, Flush, Unmount and ForgetState report [`crate::Event::EffectDone`] or [`crate::Event::EffectFailed`], SendTakeOver and
/// SendDrain a failure; Ping and Observe have answers of their own; of the others nothing has to be reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Write the record durably. If that fails, drop all effects behind it in the list and report the failure before any other event.
    Persist(Box<Record>),
    /// See that the tenant is mounted at its staging path: clear a dead mount away, mount, make slots, give all to the keeper.
    Mount,
    /// Spawn a mounter through the keeper and send it Start with what the keeper holds.
    Spawn {
        /// As what.
        role: Role,
        /// What to run.
        build: Build,
        /// Its memory limit, bytes.
        memory: ByteSize,
    },
    /// Tell a stand-by to serve: its predecessor is dead.
    SendTakeOver(Process),
    /// Tell a mounter to finish what executes within this time and leave the rest.
    SendDrain(Process, Duration),
    /// Tell a mounter to flush, give back its lease and end.
    SendStop(Process),
    /// SIGKILL, if pid and start time still fit.
    Kill(Process),
    /// Ask a mounter how it is, with the policy's deadline.
    Ping(Process),
    /// Save the stacks of a hanging mounter's threads, for its developers.
    StackDump(Process),
    /// Answer requests with errors in a mounter's place, or no longer.
    RespondErrors(bool),
    /// Commit everything.
    Flush(Process),
    /// Unmount; done only when the device number is mounted nowhere that could be undone.
    Unmount(UnmountStep),
    /// What the keeper restarts by itself while no supervisor attends. It must first kill every other child of the tenant and wait for
    /// its death. `None`: nothing.
    Ticket(Option<Ticket>),
    /// Tell people: logs, metrics, events, the volume's condition.
    Report(Report),
    /// Look at keeper, procfs and mountinfo; the answer is [`crate::Event::Observed`].
    Observe,
    /// Drop everything kept of the tenant: ticket, keeper's entry, cgroup, state file. Not its journal.
    ForgetState,
    /// Send a Tick at this time; replaces the one before.
    ArmTimer(Duration),
}

/// A rung of the unmount ladder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UnmountStep {
    /// umount(2).
    Normal,
    /// umount2(2) with MNT_DETACH.
    Lazy,
}

/// What a keeper restarts by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// What to run.
    pub build: Build,
    /// Its memory limit, bytes.
    pub memory: ByteSize,
}

/// What people are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// The tenant's condition is another one now.
    Condition(Condition),
    /// Something happened once.
    Notice(Notice),
}

/// What happened once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A mounter ended, or could not be started.
    Setback {
        /// Why.
        why: String,
        /// How long until the next is started.
        delay: Duration,
    },
    /// A mounter is killed because it hangs.
    Hung {
        /// Who.
        process: Process,
        /// What shows it.
        why: String,
    },
    /// An upgrade is through.
    Upgraded {
        /// To which build.
        build: Build,
    },
    /// An upgrade was not done, or undone.
    UpgradeFailed {
        /// To which build.
        build: Build,
        /// Why.
        why: String,
    },
    /// Somebody else unmounted the tenant; it is mounted again.
    MountLost,
    /// Unmounted without everything committed: the journal on this node holds the rest.
    JournalLeft {
        /// Why.
        why: String,
    },
    /// The mount cannot be taken away yet; it is tried again.
    StillMounted {
        /// What pins it.
        why: String,
    },
    /// An effect failed and is tried again.
    EffectFailed {
        /// What and why.
        why: String,
    },
}
