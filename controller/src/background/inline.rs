//! Volumes that pods asked for themselves, and whose nodes are gone: nobody is left to end them.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use tarbox_store::{Database, InUse, StoreError, TenantState, VolumeRecord, mark_deleted};
use tarbox_types::TenantId;
use tokio::time::Instant;

use super::of_one;
use crate::failure::Result;

/// Since when this leader has seen volumes that nobody holds, by database.
#[derive(Debug)]
pub(super) struct Unheld {
    grace: Duration,
    since: BTreeMap<String, HashMap<TenantId, Instant>>,
}

impl Unheld {
    /// `grace`: how long nobody may hold one before it counts as left behind.
    pub(super) fn new(grace: Duration) -> Self {
        Self { grace, since: BTreeMap::new() }
    }

    /// What was seen while another leads says nothing.
    pub(super) fn forget(&mut self, database: &dyn Database) {
        self.since.remove(&database.display_url());
    }

    /// Deletes those that nobody has held for as long as that.
    pub(super) async fn delete(&mut self, database: &dyn Database, records: &[VolumeRecord]) -> Result<()> {
        let seen = self.since.entry(database.display_url()).or_default();
        let mut unheld = HashMap::new();
        for record in records.iter().filter(|record| record.is_inline()) {
            let tenant = database.tenant(record.id).await?;
            if tenant.is_some_and(|tenant| tenant.state == TenantState::Live && tenant.holder.is_some()) {
                continue;
            }
            let since = seen.get(&record.id).copied().unwrap_or_else(Instant::now);
            if since.elapsed() < self.grace {
                unheld.insert(record.id, since);
            } else {
                of_one(record.id, delete(database, record.id).await)?;
            }
        }
        *seen = unheld;
        Ok(())
    }
}

async fn delete(database: &dyn Database, id: TenantId) -> Result<()> {
    match mark_deleted(database, id, InUse::Refuse).await {
        // It is held again.
        Err(StoreError::Held { .. }) => return Ok(()),
        marked => marked?,
    }
    database.forget_volume(id).await?;
    tracing::info!(volume_id = %id, "a volume that a pod asked for, and that its node left behind, is deleted");
    Ok(())
}
