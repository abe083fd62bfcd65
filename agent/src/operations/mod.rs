//! What the Node service asks for, done with the tenants' tasks. Each may be repeated, and cut off anywhere.

mod expand;
mod publish;
mod stage;
mod stats;

pub(crate) use expand::expand;
pub(crate) use publish::{publish, unpublish};
pub(crate) use stage::{stage, unstage};
pub(crate) use stats::{VolumeStats, stats};

use std::time::Duration;

use tokio::sync::watch;

use crate::tenant::Snapshot;

/// How long a call may take whose caller says nothing.
pub(crate) const DEFAULT_LIMIT: Duration = Duration::from_secs(60);
/// The answer is on its way that much before the caller gives up.
const MARGIN: Duration = Duration::from_millis(500);

/// The time that is left for the work of a call.
pub(crate) fn limit(callers: Option<Duration>) -> Duration {
    let limit = callers.unwrap_or(DEFAULT_LIMIT).min(Duration::from_secs(600));
    limit.saturating_sub(MARGIN).max(limit / 2)
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_comes_before_the_caller_gives_up() {
        for caller in [1, 10, 500, 1000, 120_000] {
            let caller = Duration::from_millis(caller);
            assert!(limit(Some(caller)) < caller && limit(Some(caller)) >= caller / 2, "{caller:?}");
        }
        assert!(limit(None) < DEFAULT_LIMIT);
    }
}
