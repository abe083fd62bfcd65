//! More room for a volume. What is mounted learns of it with its holder's next heartbeat, or at once from its node.

use tarbox_rpc::csi::request::Capacity;
use tarbox_store::Limits;
use tarbox_types::{ByteSize, TenantId};

use super::{capacity::not_promised, find};
use crate::{
    databases::Databases,
    failure::{ControllerError, Result},
    settings::Settings,
};

/// What expanding came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Expanded {
    /// Bytes it has now.
    pub(crate) bytes: u64,
    /// A node that has it mounted can be told.
    pub(crate) is_mounted: bool,
}

/// Gives the volume at least what is required.
///
/// # Errors
/// Where it has more than is allowed already: a volume never shrinks. Where all volumes together would have more than they may.
pub(crate) async fn expand(
    databases: &Databases,
    settings: &Settings,
    id: TenantId,
    asked: Capacity,
    named: Option<&str>,
) -> Result<Expanded> {
    let place = databases.of_volume(id, named).await?;
    let volume = find(&*place.database, id).await?;
    let now = volume.tenant.limits;
    let is_mounted = volume.tenant.holder.is_some();
    let is_enough = now.bytes == 0 || now.bytes >= asked.required;
    if is_enough && asked.limit != 0 && (now.bytes == 0 || now.bytes > asked.limit) {
        let has = if now.bytes == 0 { "no limit".to_owned() } else { ByteSize(now.bytes).to_string() };
        return Err(ControllerError::Capacity(format!(
            "`limit_bytes` of {} is less than the volume has ({has}), and a volume never shrinks",
            ByteSize(asked.limit)
        )));
    }
    if is_enough {
        return Ok(Expanded { bytes: now.bytes.max(asked.required), is_mounted });
    }
    let bytes = asked.required;
    if let Some(capacity) = settings.capacity {
        let left = not_promised(&place, capacity).await?;
        if bytes - now.bytes > left {
            return Err(ControllerError::Capacity(format!(
                "of `capacity` ({capacity}) {} are left, and the volume would take {} more",
                ByteSize(left),
                ByteSize(bytes - now.bytes)
            )));
        }
    }
    let is_fixed = now.inodes == 0 || volume.description.inodes().is_some();
    let inodes = if is_fixed { now.inodes } else { now.inodes.max(Limits::inodes_of(bytes)) };
    let grown = Limits { bytes, inodes, ..now };
    place.database.resize_tenant(id, &grown).await?;
    Ok(Expanded { bytes, is_mounted })
}
