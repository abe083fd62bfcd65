//! Native mounts of a staged tenant, within what the node allows.

use std::{sync::Arc, time::Duration};

use super::{Staged, blocking, resolve};
use crate::{failure::AgentError, node::Node};

/// Mounts what is wanted and not there yet over the staged tree. May wait for the mounter, but not beyond `limit`.
///
/// # Errors
/// As [`tarbox_native::check`]; [`AgentError::Unfinished`] where the mounter does not answer in time.
pub(crate) async fn compose(node: &Arc<Node>, staged: &Staged, limit: Duration) -> Result<(), AgentError> {
    if staged.native.is_empty() {
        return Ok(());
    }
    let (allowed, wanted) = (node.settings.native_sources.clone(), staged.clone());
    let done = tokio::time::timeout(
        limit,
        blocking(move || {
            let staging =
                resolve(&wanted.staging_path).map_err(AgentError::io("resolve", &wanted.staging_path))?;
            Ok(tarbox_native::compose(&allowed, &wanted.native, &staging)?)
        }),
    );
    done.await.unwrap_or_else(|_| {
        Err(AgentError::Unfinished {
            tenant: staged.tenant,
            what: "mounting the native mounts",
            why: "the tenant does not answer".to_owned(),
        })
    })
}
