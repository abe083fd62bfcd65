//! What a volume holds, and how it does.

use std::{path::Path, sync::Arc, time::Duration};

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
            request.volume,
            request.volume_path.display()
        ))
    };
    let tenant = node.tenant_of(&request.volume).ok_or_else(not_there)?;
    let handle = node.tenant(tenant).ok_or_else(not_there)?;
    let seen = handle.snapshot.borrow().clone();
    let is_ours = |path: &Path| path == seen.staged.staging_path || seen.staged.published.contains_key(path);
    let path = resolve(&request.volume_path).map_err(|_| not_there())?;
    if !is_ours(&request.volume_path) && !is_ours(&path) {
        return Err(not_there());
    }
    let mounts = table()?;
    let Some(mount) = mounts.top(&path) else { return Err(not_there()) };
    let mut trouble = seen.condition.is_abnormal().then(|| seen.trouble());
    let staging = resolve(&seen.staged.staging_path).unwrap_or_else(|_| seen.staged.staging_path.clone());
    let served = mounts.top(&staging).filter(|mount| mount.is_tarbox()).map(|mount| mount.device.as_str());
    if let Some(lost) = lost(served, &mount.device, &path, &staging) {
        trouble.get_or_insert(lost);
    }
    if !mount.is_tarbox() {
        trouble =
            Some(format!("something else ({}) is mounted over it at {}", mount.fs_type, path.display()));
    }
    let status = match node.control(tenant).status(ANSWERS_WITHIN.min(limit)).await {
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

/// What has become of the mount at the path, where it is not the one that is staged. Pure.
fn lost(served: Option<&str>, device: &str, path: &Path, staging: &Path) -> Option<String> {
    let (path, staging) = (path.display(), staging.display());
    match served {
        Some(served) if served == device => None,
        Some(_) => Some(format!(
            "the mount at {path} is dead: its connection was aborted or lost, and the volume is mounted anew at {staging}; unpublish it, and publish it again"
        )),
        None => Some(format!(
            "somebody has unmounted the volume at {staging}, where it is staged: stage it again"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_that_is_not_what_is_staged_is_lost() {
        let lost = |served| lost(served, "0:7", Path::new("/t"), Path::new("/s"));
        assert_eq!(lost(Some("0:7")), None);
        assert!(lost(Some("0:8")).is_some_and(|why| why.contains("/t") && why.contains("aborted")));
        assert!(lost(None).is_some_and(|why| why.contains("unmounted") && why.contains("/s")));
    }
}
