//! Layers: those sealed for a record are noted there, those kept for nothing any more go.

use tarbox_store::{Database, Purpose, SnapshotRecord, StoreError, all};
use tarbox_types::TenantId;
use tokio::time::Instant;

use super::of_one;
use crate::failure::Result;

/// Notes layers that were sealed after whoever asked for them had gone, and gives up bases whose clone is made or forgotten.
pub(super) async fn settle(database: &dyn Database) -> Result<()> {
    let page = |after, limit| database.kept_layers(after, limit);
    for record in all(|record: &SnapshotRecord| record.id, page).await? {
        let settled = match record.purpose {
            Purpose::Snapshot | Purpose::Checkpoint => settle_one(database, &record).await,
            Purpose::Base => give_up(database, &record).await,
            Purpose::Nothing => Ok(()),
        };
        of_one(record.tenant, settled)?;
    }
    Ok(())
}

async fn settle_one(database: &dyn Database, record: &SnapshotRecord) -> Result<()> {
    if record.layer.is_some() {
        return Ok(());
    }
    match database.open_tenant(record.tenant).await {
        // It was deleted before anything could be sealed.
        Err(StoreError::NoTenant(_)) => Ok(database.forget_snapshot(record.id).await?),
        Ok(store) => match store.sealed(&record.seal().request).await? {
            Some(layer) => Ok(database.settle_snapshot(record.id, &layer).await?),
            None => Ok(()),
        },
        Err(error) => Err(error.into()),
    }
}

/// A base is kept until its clone keeps the layer itself, or is not to be.
async fn give_up(database: &dyn Database, record: &SnapshotRecord) -> Result<()> {
    let clone = TenantId(record.id);
    if database.tenant(clone).await?.is_some() || database.volume(clone).await?.is_none() {
        database.drop_snapshot(record.id).await?;
    }
    Ok(())
}

/// Deletes layers that are kept for nothing, where nothing begins there.
pub(super) async fn clear(database: &dyn Database, until: Instant) -> Result<()> {
    let gone = tarbox_checkpoints::clear_dropped(database, &|| Instant::now() >= until).await?;
    for record in gone {
        tracing::info!(snapshot = %record.id, tenant = %record.tenant, "a layer that nobody keeps is gone");
    }
    Ok(())
}
