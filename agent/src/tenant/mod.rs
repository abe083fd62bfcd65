//! One tenant on this node: a task owns its state machine, carries out what that decides, and hands back what became of it.
//!
//! ```text
//! csi ── command ─► shell (owns supervisor::Tenant) ── orders ─► kernel, keeper, mounter
//!  ▲                  │      ▲                                      │
//!  └──── snapshot ◄───┘      └───────────────── events ◄────────────┘   links, pidfds, pings, timers
//! ```

mod control;
mod group;
mod mounters;
mod mounting;
mod native;
mod observe;
mod orders;
pub(crate) mod pods;
mod publication;
mod shell;
mod snapshot;
mod spec;
mod staged;

pub(crate) use control::Control;
pub(crate) use group::give as give_group;
pub(crate) use mounting::{blocking, table};
pub(crate) use native::compose;
pub(crate) use publication::{Place, bind, is_shown, place, resolve, unbind};
pub(crate) use shell::{Command, Handle, start};
pub(crate) use snapshot::{Snapshot, UpgradeOutcome};
pub(crate) use spec::{Surroundings, control_socket, environment, limits, may_spare, mounter_dir, spec};
pub(crate) use staged::{
    Publication, Staged, StateFile, awaits_password, clear_earlier, clear_stale, reborn,
};

/// Works beside the tenant's task; what it logs is the tenant's as well.
fn beside<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> tokio::task::JoinHandle<T> {
    tokio::spawn(tracing::Instrument::in_current_span(work))
}
