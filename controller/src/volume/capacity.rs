//! How much more volumes may have.

use tarbox_store::Tenant;
use tarbox_types::{ByteSize, database_url};

use crate::{
    databases::Place,
    failure::{ControllerError, Result},
};

/// Bytes that are left of `capacity`, and of the disk that an SQLite database is on. What a PostgreSQL server's disks have left, it does
/// not say; without `capacity` there is no limit there.
pub(crate) async fn available(place: &Place, capacity: Option<ByteSize>) -> Result<u64> {
    let mut left = i64::MAX.unsigned_abs();
    if let Some(directory) = database_url::sqlite_directory(&place.url) {
        let found = nix::sys::statvfs::statvfs(&directory).map_err(|errno| {
            ControllerError::io(format!("ask for the free space of {}", directory.display()))(errno.into())
        })?;
        left = found.blocks_available().saturating_mul(found.fragment_size());
    }
    if let Some(capacity) = capacity {
        left = left.min(not_promised(place, capacity).await?);
    }
    Ok(left)
}

/// What is left of `capacity` beside the capacities of all volumes.
pub(super) async fn not_promised(place: &Place, capacity: ByteSize) -> Result<u64> {
    Ok(capacity.bytes().saturating_sub(promised(place).await?))
}

async fn promised(place: &Place) -> Result<u64> {
    let page = |after, limit| place.database.live_tenants(after, limit);
    let tenants = tarbox_store::all(|tenant: &Tenant| tenant.id, page).await?;
    Ok(tenants.iter().fold(0u64, |sum, tenant| sum.saturating_add(tenant.limits.bytes)))
}
