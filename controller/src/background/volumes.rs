//! Deleted volumes: their data goes in small batches, once they are mounted nowhere.

use tarbox_store::{Database, StoreError};
use tokio::time::Instant;

use crate::failure::Result;

/// Removes data of deleted tenants until nothing is left or the time is over.
pub(super) async fn reap(database: &dyn Database, until: Instant) -> Result<()> {
    for tenant in database.deleted_tenants().await? {
        let mut batches = 0u64;
        loop {
            match database.reap_tenant(tenant).await {
                Ok(true) => {
                    tracing::info!(%tenant, batches, "a deleted volume's data is gone");
                    break;
                }
                Ok(false) => batches += 1,
                // It is mounted still, or snapshots of it are kept: another time.
                Err(StoreError::Held { .. } | StoreError::Refused(_)) => break,
                Err(error) => return Err(error.into()),
            }
            if Instant::now() >= until {
                tracing::info!(%tenant, batches, "a deleted volume's data is being removed");
                return Ok(());
            }
        }
        if Instant::now() >= until {
            return Ok(());
        }
    }
    Ok(())
}
