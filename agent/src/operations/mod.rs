//! What the Node service asks for, done with the tenants' tasks. Each may be repeated, and cut off anywhere.

mod expand;
mod inline;
mod publish;
mod stage;
mod stats;

pub(crate) use expand::expand;
pub(crate) use inline::{clear as clear_inline, forget as forget_inline, publish_inline};
pub(crate) use publish::{publish, unpublish};
pub(crate) use stage::{stage, unstage};
pub(crate) use stats::{VolumeStats, stats};

use std::time::Duration;

use tokio::sync::watch;

use crate::tenant::Snapshot;

/// Waits until the tenant's task shows what `is_there` looks for; `None` after the time, `Some(None)` where the task is
/// over.
async fn wait_until(
    snapshot: &mut watch::Receiver<Snapshot>,
    limit: Duration,
    is_there: impl Fn(&Snapshot) -> bool,
) -> Option<Option<Snapshot>> {
    let found = tokio::time::timeout(limit, snapshot.wait_for(|seen| is_there(seen))).await;
    found.ok().map(|found| found.ok().map(|seen| seen.clone()))
}
