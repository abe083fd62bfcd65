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

use tarbox_types::TenantId;
use tokio::sync::watch;

use crate::{failure::AgentError, node::Node, tenant::Snapshot};

/// Whoever attaches volumes has said where this one may be mounted; nothing is said where nobody does.
fn check_attached(node: &Node, tenant: TenantId, attached_to: Option<&str>) -> Result<(), AgentError> {
    let here = &node.settings.node_id;
    match attached_to.filter(|attached_to| attached_to != here) {
        None => Ok(()),
        Some(elsewhere) => Err(AgentError::Precondition(format!(
            "the volume {tenant} is published to node `{elsewhere}`, this is `{here}`"
        ))),
    }
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
