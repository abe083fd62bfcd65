//! What a volume holds, and how it does.

use std::{sync::Arc, time::Duration};

use tarbox_proto::control::v1::StatusResponse;

use crate::{
    csi::request::Stats,
    failure::AgentError,
    node::Node,
    tenant::{resolve, table},
};

/// How long the mounter may take to answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug)]
pub(crate) struct VolumeStats {
    /// What the mounter says; `None` where it does not answer.
    pub(crate) status: Option<StatusResponse>,
    /// What is wrong, if something is.
    pub(crate) trouble: Option<String>,
}

/// Asks the mounter, never the mount.
///
/// # Errors
/// Where the volume is not seen at the path.
pub(crate) async fn stats(
    node: &Arc<Node>,
    request: Stats,
    limit: Duration,
) -> Result<VolumeStats, AgentError> {
    let not_there = || {
        AgentError::NotFound(format!(
            "the volume {} is not mounted at {}",
            request.tenant,
            request.volume_path.display()
        ))
    };
    let handle = node.tenant(request.tenant).ok_or_else(not_there)?;
    let seen = handle.snapshot.borrow().clone();
    let is_ours =
        |path: &std::path::Path| path == seen.staged.staging_path || seen.staged.published.contains_key(path);
    let path = resolve(&request.volume_path).map_err(|_| not_there())?;
    if !is_ours(&request.volume_path) && !is_ours(&path) {
        return Err(not_there());
    }
    let mounts = table()?;
    let Some(mount) = mounts.top(&path) else { return Err(not_there()) };
    let mut trouble = seen.condition.is_abnormal().then(|| seen.trouble());
    if !mount.is_tarbox() {
        trouble =
            Some(format!("something else ({}) is mounted over it at {}", mount.fs_type, path.display()));
    }
    let status = match node.control(request.tenant).status(ANSWERS_WITHIN.min(limit)).await {
        Ok(status) => Some(status),
        Err(error) => {
            trouble.get_or_insert_with(|| error.report());
            None
        }
    };
    if let Some(status) = status.as_ref().filter(|status| !status.waiting_for.is_empty()) {
        trouble.get_or_insert_with(|| format!("the mounter waits for: {}", status.waiting_for));
    }
    Ok(VolumeStats { status, trouble })
}
