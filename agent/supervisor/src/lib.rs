//! What keeps one mounter serving each staged tenant: decisions only. No clock, no I/O, no threads.
//!
//! The shell (the agent, or a workstation's parent process) owns one [`Tenant`] per tenant, calls [`Tenant::step`] with what
//! happened, carries out the [`Effect`]s in their order and hands back what became of each. [`Upgrades`] decides which tenant of the
//! node is upgraded next.
//!
//! ```text
//!            Stage                       serves                      UpgradeWanted
//!  Absent ─────────► Starting ────────────────────────► Serving ─────────────────────► Upgrading
//!  Gone                │  ▲ mount, spawn, wait         ▲    │ ▲  ▲                        │ StandBy      the successor reads itself in
//!   ▲      cannot, died│  │ back-off over       serves │    │ │  └── aborted, done ──────┤ Draining     the old one ends; its death is waited for
//!   │                  ▼  │                            │    │ │                          │ Switching    TakeOver was said
//!   │               Restarting ◄───────────────────────┼────┘ └── the old build serves ──┤ Proving      serves, on probation
//!   │                  │  ▲    died, hung              │                                 └ RollingBack  the old build is started again
//!   │  too many crashes│  │
//!   │                  ▼  │ retry, reset, other build                     Unstage, from wherever somebody serves:
//!   │               Broken (errors are answered after a while)            Serving ─► Stopping: Flushing ─► Unmounting ─► Ending ─► Gone
//!   │                  │ Unstage: nobody can flush                                       │ dies: Restarting, then again
//!   └── Ending ◄───────┴─► Unmounting
//! ```
//!
//! What holds at every moment, whatever is lost, late or done twice (`tests/properties.rs`):
//! - A process is told to serve only when every other one that ever was is known to be dead: one `server`, one `spare` that has been
//!   told nothing, and `strays` that are being killed. Only an exit, or an observation of the machine, takes a process off the record.
//! - Nothing is unmounted unless Unstage was asked for.
//! - What a mounter *waits* for (database, lease, lock, journal) is never a reason to kill it.
//! - The record is persisted before anything it announces is done, and [`Tenant::resume`] goes on from any of them.

mod backoff;
mod condition;
mod decide;
mod effect;
mod event;
mod heard;
mod node;
mod policy;
mod record;
mod resume;
mod stopping;
mod tenant;
mod upgrade;
mod watchdog;

pub use condition::Condition;
pub use effect::{Effect, EffectId, Notice, Order, Report, Ticket, UnmountStep};
pub use event::{Answer, Cause, Event, Failure, Observation, Observed, Outcome, Waiting};
pub use node::Upgrades;
pub use policy::Policy;
pub use record::{
    Build, Connection, Mounter, Process, Record, Role, Stage, State, Stopping, Upgrading, Wanted,
};
pub use tenant::Tenant;
