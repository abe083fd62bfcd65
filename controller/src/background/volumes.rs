//! Deleted volumes: their data goes in small batches, once they are mounted nowhere.

use tarbox_store::{Database, StoreError};
use tarbox_types::TenantId;
use tokio::time::Instant;

use super::of_one;
use crate::failure::Result;

/// Removes data of deleted tenants until nothing is left or the time is over.
pub(super) async fn reap(database: &dyn Database, until: Instant) -> Result<()> {
    for tenant in database.deleted_tenants().await? {
        of_one(tenant, reap_one(database, tenant, until).await)?;
        if Instant::now() >= until {
            return Ok(());
        }
    }
    Ok(())
}

async fn reap_one(database: &dyn Database, tenant: TenantId, until: Instant) -> Result<()> {
    let mut batches = 0u64;
    loop {
        match database.reap_tenant(tenant).await {
            Ok(true) => {
                tracing::info!(%tenant, batches, "a deleted volume's data is gone");
                return Ok(());
            }
            Ok(false) => batches += 1,
            // It is mounted still, or snapshots of it are kept: another time.
            Err(StoreError::Held { .. } | StoreError::Refused(_)) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        if Instant::now() >= until {
            tracing::info!(%tenant, batches, "a deleted volume's data is being removed");
            return Ok(());
        }
    }
}
