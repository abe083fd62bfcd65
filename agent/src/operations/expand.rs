//! A new limit for a volume: in the database, then in the mounter.

use std::{sync::Arc, time::Duration};

use tarbox_proto::control::v1::SetQuotaRequest;
use tarbox_store::Limits;

use crate::{csi::request::Expand, failure::AgentError, node::Node};

/// Sets the limit; returns it in bytes, 0 = none.
///
/// # Errors
/// Where the volume is not staged here, or the database cannot be reached.
pub(crate) async fn expand(node: &Arc<Node>, request: Expand, limit: Duration) -> Result<u64, AgentError> {
    let Expand { tenant, volume_path, bytes, database_url: asked } = request;
    let seen = node.tenant(tenant).map(|handle| handle.snapshot.borrow().clone());
    let seen = seen
        .filter(|seen| {
            seen.staged.staging_path == volume_path || seen.staged.published.contains_key(&volume_path)
        })
        .ok_or_else(|| {
            AgentError::NotFound(format!("the volume {tenant} is not mounted at {}", volume_path.display()))
        })?;
    let url = asked.as_deref().or(node.own_url_of(&seen.staged)).unwrap_or(&seen.staged.database_url);
    let limits = tokio::time::timeout(limit, in_database(node, url, tenant, bytes)).await;
    let limits = limits.unwrap_or_else(|_| {
        Err(AgentError::Unfinished {
            tenant,
            what: "expanding",
            why: "the database does not answer".to_owned(),
        })
    })?;
    let quota = SetQuotaRequest {
        quota_bytes: limits.bytes,
        quota_inodes: limits.inodes,
        max_file_bytes: limits.file_bytes,
    };
    node.control(tenant).set_quota(quota, limit).await?;
    Ok(limits.bytes)
}

/// The tenant's row. A volume never gets smaller than it is: CSI asks for at least so much.
async fn in_database(
    node: &Node,
    url: &str,
    tenant: tarbox_types::TenantId,
    bytes: Option<u64>,
) -> Result<Limits, AgentError> {
    let database = node.databases.at(url).await?;
    let row = database.tenant(tenant).await?;
    let row =
        row.ok_or_else(|| AgentError::NotFound(format!("there is no volume {tenant} in the database")))?;
    let now = row.limits;
    match bytes {
        Some(bytes) if now.bytes != 0 && now.bytes < bytes => {
            let grown = Limits { bytes, ..now };
            Ok(database.resize_tenant(tenant, &grown).await?.limits)
        }
        Some(_) | None => Ok(now),
    }
}
